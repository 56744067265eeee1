package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/warmpath/warmpath/benchmarks/sim"
)

// results are cells like those of a small experiment.
func results(worse float64) sim.Result {
	var r sim.Result
	for _, w := range []string{"chat", "a<b"} {
		for i, s := range []string{"random", "prefix-cache"} {
			for j, load := range []float64{0.5, 1, 1.5} {
				factor := []float64{3, worse}[i]
				c := sim.Cell{
					Workload: w, Strategy: s, Endpoints: 2, Load: load, Seeds: 5,
					MeanTTFT: sim.Estimate{Mean: 0.2 * factor * math.Pow(3, float64(j)), CI95: 0.01}, P90TTFT: sim.Estimate{Mean: 0.5 * factor * math.Pow(3, float64(j)), CI95: 0.05},
					TPOT: sim.Estimate{Mean: 0.02, CI95: 0.0001}, TokenHit: sim.Estimate{Mean: 0.6 / factor, CI95: 0.01},
					CeilingHit: 0.7, PooledTTFT: 0.1, Imbalance: 1.1,
				}
				c.Capacity = 1
				if load == 1.5 {
					c.Waiting = [][]float64{{0, 1, 2}, {3, 1, 0}}
					c.Regret = []float64{0.5, 0.2, 0.1, 0.1, 0.1, 0}
				}
				r.Cells = append(r.Cells, c)
			}
		}
		big := r.Cells[len(r.Cells)-1]
		big.Capacity, big.Setting = 2, "capacity 2"
		r.Cells = append(r.Cells, big)
	}
	return r
}

func save(t *testing.T, r sim.Result) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "result.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Write(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// command runs a command and returns what it printed.
func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	run := Compare
	if args[0] == "report" {
		run = Report
	}
	failed := run(t.Context(), args[1:], out)
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text), failed
}

func TestCompare(t *testing.T) {
	base, slower := save(t, results(1)), save(t, results(1.4))
	out, err := command(t, "compare", base, base)
	if err != nil || !strings.Contains(out, "0 better, 56 same, 0 worse, 0 too noisy") {
		t.Errorf("with itself: %v\n%s", err, out)
	}
	out, err = command(t, "compare", base, slower)
	if err == nil || !strings.Contains(err.Error(), "figures are worse") || !strings.Contains(out, "0 better, 32 same, 24 worse") {
		t.Errorf("with a slower one: %v\n%s", err, out)
	}
	out, err = command(t, "compare", "--metric", "mean_ttft_s", slower, base)
	if err != nil || !strings.Contains(out, "8 better, 6 same, 0 worse") {
		t.Errorf("the other way round: %v\n%s", err, out)
	}
	out, err = command(t, "compare", "--metric", "token_hit", base+":random", base+":prefix-cache")
	if err != nil || !strings.Contains(out, "6 better, 0 same") || !strings.Contains(out, "2 cells are in only one of them") {
		t.Errorf("two strategies: %v\n%s", err, out)
	}
	// Columns align: the verdict ends where its heading does.
	lines := strings.Split(out, "\n")
	for _, l := range lines[3:10] {
		if l != "" && utf8.RuneCountInString(l) != utf8.RuneCountInString(lines[3]) && !strings.HasPrefix(l, "6 better") {
			t.Errorf("%q does not align with %q", l, lines[3])
		}
	}
}

func TestCompare_Faults(t *testing.T) {
	base := save(t, results(1))
	other := results(1)
	for i := range other.Cells {
		other.Cells[i].Endpoints = 99
	}
	noisy := results(1.1)
	for i := range noisy.Cells {
		noisy.Cells[i].MeanTTFT.CI95 = noisy.Cells[i].MeanTTFT.Mean
	}
	junk := filepath.Join(t.TempDir(), "junk.json")
	if err := os.WriteFile(junk, []byte(`{"lanes":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{base}, "two results are needed"},
		{[]string{base, "no-such-file"}, "no such file"},
		{[]string{base, junk}, "not a result of sim --json"},
		{[]string{base, base + ":prefix-cash"}, `no cells of strategy "prefix-cash"; did you mean prefix-cache?`},
		{[]string{base, save(t, other)}, "no cell in common"},
		{[]string{"--metric", "ttft", base, base}, `--metric "ttft": no such metric`},
		{[]string{"--margin", "2", base, base}, "--margin 2"},
		{[]string{"--strict", "--metric", "mean_ttft_s", base, save(t, noisy)}, "too noisy; use more seeds"},
	} {
		if _, err := command(t, append([]string{"compare"}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.html")
	table, err := command(t, "report", "--html", path, "--markdown", "-", "--slo", "2", save(t, results(1)))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"## chat, 2 endpoints\n", "## chat, 2 endpoints, capacity 2\n",
		"| strategy | load 0.5 | load 1 | load 1.5 |\n|---|---:|---:|---:|\n",
		"| prefix-cache | **0.2 ± 0.01** | **0.6 ± 0.01** | **1.8 ± 0.01** |\n",
		"| (pooled reference) | 0.1 | 0.1 | 0.1 |\n",
		"| prefix-cache | 1 | 1.5 ± 0.05 | 1.5 | 4.5 ± 0.05 |\n", // its knee
		"| random | 0.5 | 1.5 ± 0.05 | 1 | 4.5 ± 0.05 |\n",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
	html, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := wellFormed(html); got != nil {
		t.Error(got)
	}
	if bytes.Contains(html, []byte("a<b")) {
		t.Error("a name is not escaped")
	}
	for _, outside := range []string{"<script", "<link", "@import", "src=", "url("} {
		if bytes.Contains(html, []byte(outside)) {
			t.Errorf("the page needs something from outside: %s", outside)
		}
	}
	// Per workload: four metrics against load, heat and regret of two
	// strategies; of the one cell of twice the cache heat and regret, too; hits
	// against cache size.
	if got, want := bytes.Count(html, []byte("<svg")), 2*(4+4+2+1); got != want {
		t.Errorf("%d drawings, want %d", got, want)
	}
	again := filepath.Join(t.TempDir(), "r.html")
	if _, err := command(t, "report", "--html", again, save(t, results(1))); err != nil {
		t.Fatal(err)
	}
	if second, _ := os.ReadFile(again); !bytes.Equal(html, second) {
		t.Error("equal results give different pages")
	}
}

// wellFormed reads a page as XML, which the generated part must satisfy.
func wellFormed(html []byte) error {
	d := xml.NewDecoder(bytes.NewReader(bytes.ReplaceAll(html, []byte("<!doctype html>"), nil)))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	depth := 0
	for {
		token, err := d.Token()
		switch token.(type) {
		case xml.StartElement:
			depth++
		case xml.EndElement:
			depth--
		}
		if err == io.EOF && depth == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("depth %d: %w", depth, err)
		}
	}
}

func TestReport_Faults(t *testing.T) {
	base := save(t, results(1))
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "no result"},
		{[]string{"--slo", "0", base}, "--slo 0"},
		{[]string{"--strategies", "nobody", base}, "no cells to show"},
		{[]string{"--html", "no/such/folder/x", base}, "no such file"},
	} {
		if _, err := command(t, append([]string{"report"}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestGroup_Strategies(t *testing.T) {
	g := &group{}
	for i, s := range []string{"c", "b", "prefix-cache", "a"} {
		g.cells = append(g.cells, &sim.Cell{Strategy: s, Load: 1, MeanTTFT: sim.Estimate{Mean: float64(10 - i)}})
	}
	if d := cmp.Diff([]string{"prefix-cache", "a", "b", "c"}, g.strategies()); d != "" {
		t.Error(d)
	}
}

// A strategy has its colour in all drawings of a section, whichever is best
// there.
func TestCapacities_Colors(t *testing.T) {
	var cells []sim.Cell
	for _, load := range []float64{0.5, 0.9} {
		for _, capacity := range []float64{1, 2} {
			for i, name := range []string{"a", "b"} {
				high := (i == 0) == (load == 0.5) // a is the better at the first load only
				c := sim.Cell{Workload: "w", Strategy: name, Endpoints: 2, Load: load, CeilingHit: 1}
				c.Capacity, c.Setting = capacity, fmt.Sprint(capacity)
				c.MeanTTFT.Mean, c.TokenHit.Mean = 2, 0.1
				if high {
					c.MeanTTFT.Mean, c.TokenHit.Mean = 1, 0.9
				}
				cells = append(cells, c)
			}
		}
	}
	doc, err := newDocument("t", 2, cells)
	if err != nil {
		t.Fatal(err)
	}
	s := doc.Sections[len(doc.Sections)-1]
	if len(s.Drawings) != 2 || len(s.Keys) != 2 || s.Keys[0].Name != "a" {
		t.Fatalf("%d drawings, keys %v", len(s.Drawings), s.Keys)
	}
	// height of a strategy's line: SVGs of the library grow upwards.
	height := func(drawing int, k legend) float64 {
		line := regexp.MustCompile(`<path d="M[0-9.]+,([0-9.]+)L[^"]*"\s+style="[^"]*stroke:` + strings.ToUpper(k.Color) + `[^"]*stroke-width`)
		found := line.FindStringSubmatch(string(s.Drawings[drawing]))
		if found == nil {
			t.Fatalf("no line in %s: %.3000s", k.Color, s.Drawings[drawing])
		}
		y, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return y
	}
	if a, b := height(0, s.Keys[0]), height(0, s.Keys[1]); a <= b {
		t.Errorf("at the first load a is drawn at %v and b at %v", a, b)
	}
	if a, b := height(1, s.Keys[0]), height(1, s.Keys[1]); a >= b {
		t.Errorf("at the second load a is drawn at %v and b at %v", a, b)
	}
}
