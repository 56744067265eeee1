package workload

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// Blocks have equal names exactly if they and all before them have equal
// tokens: compared with prompts written out token by token.
func TestChain_Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := &generator{blocks: map[blockKey]uint64{}}
		names, contents := map[string]uint64{}, map[uint64]string{}
		lengths := rapid.SliceOfN(rapid.IntRange(0, 700), 1, 5).Draw(t, "lengths")
		for range 12 {
			adapter := rapid.SampledFrom([]string{"", "a"}).Draw(t, "adapter")
			var prompt []piece
			written := adapter + ":"
			var tokens []string
			for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(lengths)-1), 1, 4).Draw(t, "prompt") {
				prompt = append(prompt, piece{uint64(i), lengths[i]})
				for at := range lengths[i] {
					tokens = append(tokens, fmt.Sprintf("%d.%d,", i, at))
				}
			}
			var want []string
			for chunk := range slices.Chunk(tokens, BlockTokens) {
				written += strings.Join(chunk, "")
				want = append(want, written)
			}
			got := g.chain(adapter, prompt, true)
			if len(got) != len(want) {
				t.Fatalf("%d blocks for %d tokens, want %d", len(got), len(tokens), len(want))
			}
			for i, b := range got {
				if name, ok := names[want[i]]; ok && name != b {
					t.Fatalf("block %d: equal tokens are called %d and %d", i, name, b)
				}
				if content, ok := contents[b]; ok && content != want[i] {
					t.Fatalf("block %d: %d names different tokens", i, b)
				}
				names[want[i]], contents[b] = b, want[i]
			}
			if whole := g.chain(adapter, prompt, false); !slices.Equal(whole, got[:len(tokens)/BlockTokens]) {
				t.Fatal("whole blocks are not those of the prompt")
			}
		}
	})
}

func TestDist_Moments(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const n = 200_000
	for _, d := range []Dist{fixed(7), uniform(2, 20), {Mean: 300, SD: 150}, {Mean: 4, SD: 2.5}, {Mean: 10, SD: 20}} {
		mean, sd := d.Mean, d.SD
		if mean == 0 {
			mean, sd = (d.Min+d.Max)/2, (d.Max-d.Min)/math.Sqrt(12)
		}
		got := moments(n, func() float64 { return d.draw(random) })
		if math.Abs(got[0]-mean) > 0.02*mean || math.Abs(got[1]-sd) > 0.08*sd {
			t.Errorf("%+v: mean %.3f deviation %.3f, want %.3f %.3f", d, got[0], got[1], mean, sd)
		}
	}
	for _, shape := range []float64{1, 1.0 / 16, 1.0 / 64, 3} {
		got := moments(n, func() float64 { return gamma(random, shape) })
		if math.Abs(got[0]-shape) > 0.03*shape || math.Abs(got[1]-math.Sqrt(shape)) > 0.08*math.Sqrt(shape) {
			t.Errorf("gamma(%v): mean %v deviation %v, want %v %v", shape, got[0], got[1], shape, math.Sqrt(shape))
		}
	}
	bounded := Dist{Mean: 100, SD: 200, Min: 50, Max: 120}
	for range 1000 {
		if v := bounded.draw(random); v < 50 || v > 120 {
			t.Fatalf("%v is outside of 50 to 120", v)
		}
	}
	z := newZipf(100, 1.1)
	counts := make([]float64, 100)
	for range n {
		counts[z.draw(random)]++
	}
	if got, want := counts[0]/counts[9], math.Pow(10, 1.1); math.Abs(got-want) > 0.1*want {
		t.Errorf("the first is drawn %.1f times as often as the tenth, want %.1f", got, want)
	}
}

func moments(n int, draw func() float64) [2]float64 {
	sum, squares := 0.0, 0.0
	for range n {
		v := draw()
		sum += v
		squares += v * v
	}
	mean := sum / float64(n)
	return [2]float64{mean, math.Sqrt(squares/float64(n) - mean*mean)}
}

// The presets are like what they are named after. hit is the share of prompt
// tokens that an unbounded cache finds, prompt and output are mean lengths.
func TestPresets(t *testing.T) {
	for _, c := range []struct {
		name                    string
		prompt, output, hit, cv float64
	}{
		// 150 prefixes x 6,000 + 750 x 1,200 tokens are seen once.
		{"shared-prefix", 7200, 245, 0.97, 1},
		{"shared-prefix-long", 9000, 1000, 0.95, 1},
		{"chat", 5725, 300, 0.73, 0},
		{"agentic", 15_300, 396, 0.88, 0},
		{"tools", 1900, 43, 0.68, 1},
		{"rag", 23_474, 16, 0.85, 1},
		{"no-reuse", 1155, 211, 0, 1},
		{"burst", 2048, 28, 0.54, 8},
		{"lora", 4050, 250, 0.77, 0},
		{"code", 56_000, 790, 0.86, 0},
		{"research", 51_000, 296, 0.78, 0},
		{"reasoning", 1250, 7700, 0, 1},
	} {
		spec, err := Preset(c.name)
		if err != nil {
			t.Fatal(err)
		}
		w, err := spec.Generate(3)
		if err != nil {
			t.Fatal(err)
		}
		if len(w.Requests) != spec.Requests {
			t.Errorf("%s: %d requests, want %d", c.name, len(w.Requests), spec.Requests)
		}
		n, input, output := float64(len(w.Requests)), 0.0, 0.0
		for i := range w.Requests {
			input += float64(w.Requests[i].InputTokens)
			output += float64(w.Requests[i].OutputTokens)
		}
		if got := input / n; math.Abs(got-c.prompt) > 0.1*c.prompt {
			t.Errorf("%s: prompts of %.0f tokens, want %.0f", c.name, got, c.prompt)
		}
		if got := output / n; math.Abs(got-c.output) > 0.1*c.output {
			t.Errorf("%s: answers of %.0f tokens, want %.0f", c.name, got, c.output)
		}
		if got := ReuseOf(w, nil, 0).Unbounded(); math.Abs(got-c.hit) > 0.05 {
			t.Errorf("%s: finds %.3f, want %.3f", c.name, got, c.hit)
		}
		if got := n / w.Span().Seconds(); math.Abs(got-spec.Rate) > 0.25*spec.Rate {
			t.Errorf("%s: %.2f requests a second, want %.2f", c.name, got, spec.Rate)
		}
		if c.cv > 0 { // one request a session
			i := 0
			got := moments(len(w.Requests)-1, func() float64 {
				i++
				return (w.Requests[i].Arrival - w.Requests[i-1].Arrival).Seconds()
			})
			if cv := got[1] / got[0]; math.Abs(cv-c.cv) > 0.2*c.cv {
				t.Errorf("%s: coefficient of variation of arrivals %.2f, want %.2f", c.name, cv, c.cv)
			}
		}
	}
}

// A turn's prompt holds the prompt and the answer of the turn before it.
func TestGenerate_SessionsContinue(t *testing.T) {
	for _, name := range []string{"chat", "agentic", "lora", "code"} {
		spec, err := Preset(name)
		if err != nil {
			t.Fatal(err)
		}
		spec.Requests = 2000
		w, err := spec.Generate(5)
		if err != nil {
			t.Fatal(err)
		}
		last, turns := map[string]*Request{}, 0
		for i := range w.Requests {
			r := &w.Requests[i]
			if before := last[r.Session]; before != nil {
				turns++
				all := slices.Concat(before.Blocks[:before.WholeBlocks()], before.OutputBlocks)
				if len(all) > len(r.Blocks) || !slices.Equal(r.Blocks[:len(all)], all) || r.Adapter != before.Adapter {
					t.Fatalf("%s: request %d does not continue its session", name, i)
				}
				if got, want := len(all), (before.InputTokens+before.OutputTokens)/BlockTokens; got != want {
					t.Fatalf("%s: a turn leaves %d blocks, want %d", name, got, want)
				}
			}
			last[r.Session] = r
		}
		if turns < 500 {
			t.Errorf("%s: %d turns continue a session, want many", name, turns)
		}
	}
}

// Helpers of a session start at once, and it waits for them.
func TestGenerate_Helpers(t *testing.T) {
	spec, err := Preset("agentic")
	if err != nil {
		t.Fatal(err)
	}
	w, err := spec.Generate(5)
	if err != nil {
		t.Fatal(err)
	}
	started, together := map[string]int{}, 0
	prefix := map[uint64]bool{}
	for i := range w.Requests {
		r := &w.Requests[i]
		if strings.Count(r.Session, ".") == 2 {
			prefix[r.Blocks[0]] = true
			key := r.Session[:strings.LastIndex(r.Session, ".")] + r.Arrival.String()
			if started[key]++; started[key] > 1 {
				together++
			}
		}
	}
	if len(prefix) != 1 {
		t.Errorf("helpers begin in %d ways, want 1", len(prefix))
	}
	if together < 1000 {
		t.Errorf("%d helpers start together with another, want many", together)
	}
}

func TestGenerate_Seeds(t *testing.T) {
	spec, err := Preset("agentic")
	if err != nil {
		t.Fatal(err)
	}
	spec.Requests = 300
	var sums []string
	for _, seed := range []uint64{1, 1, 2} {
		w, err := spec.Generate(seed)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, w.SHA256)
		path := filepath.Join(t.TempDir(), "w.jsonl.gz")
		if err := w.Save(path); err != nil {
			t.Fatal(err)
		}
		again, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if again.SHA256 != w.SHA256 {
			t.Errorf("seed %d: the file's sum is %s, want %s", seed, again.SHA256, w.SHA256)
		}
		var a, b bytes.Buffer
		w.Write(&a)
		again.Write(&b)
		if d := cmp.Diff(a.String(), b.String()); d != "" {
			t.Errorf("seed %d: the way through a file changes it", seed)
		}
	}
	if sums[0] != sums[1] || sums[0] == sums[2] {
		t.Errorf("sums of seeds 1, 1, 2: %v", sums)
	}
}

func TestSpec_Validate(t *testing.T) {
	err := Spec{Rate: -1, ArrivalCV: 0.5, FanOut: 2, Turns: Dist{SD: 1}}.Validate()
	for _, want := range []string{"requests: 0", "rate: -1", "arrival cv: 0.5", "fan-out: 2", "turns: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not name %q", err, want)
		}
	}
	if _, err := Preset("chta"); err == nil || !strings.Contains(err.Error(), "did you mean chat?") {
		t.Errorf("%v: no suggestion", err)
	}
	if _, err := Preset("entirely different"); err == nil || strings.Contains(err.Error(), "did you mean") {
		t.Errorf("%v: suggests what is not near", err)
	}
}
