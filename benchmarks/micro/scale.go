package micro

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// The lanes of a large fleet, on our index alone.
const (
	scaleEndpoints = 1000
	scaleBlocks    = 20_000 // held by each endpoint
	scalePrompt    = 64
	scalePrompts   = 20
)

// dice is SplitMix64 again; a lane's stream depends on nothing else.
type dice struct{ state uint64 }

func (d *dice) next() uint64 {
	d.state += 0x9e3779b97f4a7c15
	return spread(d.state)
}
func (d *dice) below(n int) int { return int(d.next() % uint64(n)) }

// script is a chain with its engine names.
type script struct {
	contents []kvindex.ContentHash
	names    []kvindex.EngineHash
	chain    []kvindex.BlockHash
}

func (d *dice) script(from script, n int) script {
	s := script{slices.Clip(from.contents), slices.Clip(from.names), nil}
	for range n {
		s.contents = append(s.contents, kvindex.ContentHash(d.next()))
		s.names = append(s.names, kvindex.EngineHash(d.next()))
	}
	s.chain = kvindex.AppendChain(nil, root, s.contents)
	return s
}

// tell stores blocks [from,to) in events of up to 64 blocks.
func (s script) tell(w *kvindex.Writer, from, to int) {
	for ; from < to; from += 64 {
		end := min(from+64, to)
		e := kvindex.Stored{Root: root, Names: s.names[from:end], Contents: s.contents[from:end]}
		if from > 0 {
			e.HasParent, e.Parent = true, s.names[from-1]
		}
		w.Store(e)
	}
}

func openFleet() (*kvindex.Index, []*kvindex.Writer, error) {
	ix, err := kvindex.New(kvindex.Config{MaxBlocks: scaleEndpoints * scaleBlocks * 5 / 4})
	if err != nil {
		return nil, nil, err
	}
	ws := make([]*kvindex.Writer, scaleEndpoints)
	for i := range ws {
		if ws[i], err = ix.Open(kvindex.Publisher{ID: kvindex.PublisherID(i), Endpoint: kvindex.EndpointID(i)}); err != nil {
			return nil, nil, fmt.Errorf("open endpoint %d: %w", i, err)
		}
	}
	return ix, ws, nil
}

// scaleLanes runs all of them.
func scaleLanes(progress io.Writer) (map[string]float64, error) {
	figures := map[string]float64{}
	for _, lane := range []func(map[string]float64) error{scaleShared, scaleFleet} {
		if err := lane(figures); err != nil {
			return nil, err
		}
		fmt.Fprintln(progress, "scale:", figures)
	}
	return figures, nil
}

// scaleShared matches 192 blocks of which 1,000 endpoints hold the first 64.
func scaleShared(figures map[string]float64) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	ix, ws, err := openFleet()
	if err != nil {
		return err
	}
	var d dice
	prompt := d.script(script{}, scalePrompt)
	var talks []script
	for i, w := range ws {
		prompt.tell(w, 0, scalePrompt)
		if i < 100 {
			t := d.script(prompt, 128)
			t.tell(w, scalePrompt, len(t.names))
			talks = append(talks, t)
		}
	}
	var found []kvindex.Match
	var times []float64
	for range 100 {
		for owner, t := range talks {
			start := time.Now()
			found = ix.Match(found[:0], t.chain, start, nil)
			times = append(times, float64(time.Since(start).Nanoseconds())/1000)
			for _, m := range found {
				want := uint32(scalePrompt)
				if int(m.ID) == owner {
					want = 192
				}
				if m.Device != want {
					return fmt.Errorf("scale: endpoint %d has %d blocks, want %d: %w", m.ID, m.Device, want, errWrong)
				}
			}
			if len(found) != scaleEndpoints {
				return fmt.Errorf("scale: %d endpoints, want %d: %w", len(found), scaleEndpoints, errWrong)
			}
		}
	}
	slices.Sort(times)
	figures["match_192_of_1000_p50_us"] = times[len(times)/2]
	figures["match_192_of_1000_p99_us"] = times[len(times)*99/100]
	return nil
}

// scaleFleet fills 1,000 endpoints with 20,000 blocks each, conversations of
// 128 to 512 blocks behind 20 shared prompts, 80 % on one endpoint and the
// rest on three, and clears an endpoint while another asks.
func scaleFleet(figures map[string]float64) error {
	before, err := settledAnon()
	if err != nil {
		return err
	}
	ix, ws, err := openFleet()
	if err != nil {
		return err
	}
	var d dice
	var prompts []script
	for range scalePrompts {
		prompts = append(prompts, d.script(script{}, scalePrompt))
	}
	held := make([]int, scaleEndpoints)
	for i, w := range ws {
		for _, p := range prompts {
			p.tell(w, 0, scalePrompt)
			held[i] += scalePrompt
		}
	}
	type placed struct {
		script
		on []int
	}
	var samples []placed // a few talks whose answers are checked
	var mine []script    // all of endpoint 0, to fill it again
	start := cpuTime()
	stored := 0
	for first := range ws {
		for n := 0; held[first] < scaleBlocks; n++ {
			t := d.script(prompts[d.below(scalePrompts)], 64+d.below(385))
			on := []int{first}
			if d.below(100) < 20 {
				on = append(on, (first+1+d.below(300))%scaleEndpoints, (first+301+d.below(300))%scaleEndpoints)
			}
			for _, e := range on {
				t.tell(ws[e], scalePrompt, len(t.names))
				held[e] += len(t.names) - scalePrompt
				stored += len(t.names) - scalePrompt
			}
			if n == 0 {
				samples = append(samples, placed{t, on})
			}
			if slices.Contains(on, 0) {
				mine = append(mine, t)
			}
		}
	}
	figures["fleet_store_ns_per_block"] = perBlock(cpuTime()-start, stored)
	after, err := settledAnon()
	if err != nil {
		return err
	}
	s := ix.Stats()
	figures["fleet_pairs"] = float64(s.Held)
	figures["fleet_distinct_blocks"] = float64(s.Blocks)
	figures["fleet_mib"] = float64(after-before) / (1 << 20)
	figures["fleet_bytes_per_pair"] = float64(after-before) / float64(s.Held)
	figures["fleet_bytes_per_block"] = float64(after-before) / float64(s.Blocks)
	var found []kvindex.Match
	check := func(p placed, besides int) error {
		found = ix.Match(found[:0], p.chain, time.Unix(0, 0), nil)
		full := 0
		for _, m := range found {
			want := uint32(scalePrompt)
			if slices.Contains(p.on, int(m.ID)) {
				want = uint32(len(p.chain))
				full++
			}
			if int(m.ID) != besides && m.Device != want {
				return fmt.Errorf("fleet: endpoint %d has %d blocks, want %d: %w", m.ID, m.Device, want, errWrong)
			}
		}
		if full < len(p.on)-1 || full < len(p.on) && !slices.Contains(p.on, besides) {
			return fmt.Errorf("fleet: %d of %d holders found: %w", full, len(p.on), errWrong)
		}
		return nil
	}
	for _, p := range samples {
		if err := check(p, -1); err != nil {
			return err
		}
	}
	// Clear endpoint 0 and fill it again, over and over, while another
	// goroutine asks; the longest answer counts that overlaps a clear.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var clearing, done atomic.Bool
	// On a shared machine a wall-clock maximum is a time slice of somebody
	// else's; the thread's own time is what the index costs.
	var longest, longestOwn, longestClear time.Duration
	asked := 0
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for i := 0; !done.Load(); i++ {
			p := samples[i%len(samples)]
			within := clearing.Load()
			t, own := time.Now(), threadTime()
			found = ix.Match(found[:0], p.chain, t, nil)
			took, tookOwn := time.Since(t), threadTime()-own
			if within || clearing.Load() {
				longest, longestOwn = max(longest, took), max(longestOwn, tookOwn)
				asked++
			}
			if err := check(p, 0); err != nil {
				result <- err
				return
			}
		}
		result <- nil
	}()
	for range 100 {
		clearing.Store(true)
		t := time.Now()
		ws[0].Clear()
		longestClear = max(longestClear, time.Since(t))
		clearing.Store(false)
		for _, p := range prompts {
			p.tell(ws[0], 0, scalePrompt)
		}
		for _, t := range mine {
			t.tell(ws[0], scalePrompt, len(t.names))
		}
	}
	done.Store(true)
	err = <-result
	if err == nil && asked == 0 {
		err = errors.New("fleet: no match ran beside a clear")
	}
	figures["matches_beside_clear"] = float64(asked)
	figures["longest_match_beside_clear_us"] = float64(longest.Nanoseconds()) / 1000
	figures["longest_match_beside_clear_cpu_us"] = float64(longestOwn.Nanoseconds()) / 1000
	figures["longest_clear_us"] = float64(longestClear.Nanoseconds()) / 1000
	return err
}
