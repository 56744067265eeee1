package engine

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
)

// play runs requests, one every few steps, to their end.
func play(t *rapid.T, cfg Config, requests []Request) (finished []Finished, stats Stats) {
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	for i := 0; ; i++ {
		if i%3 == 0 && len(requests) > 0 {
			if _, err := c.Submit(now, requests[0]); err != nil {
				t.Fatal(err)
			}
			requests = requests[1:]
		}
		length, ok := c.Begin(now)
		if !ok && len(requests) == 0 {
			return finished, c.Stats()
		}
		now = now.Add(length)
		if ok {
			finished = append(finished, c.End(now).Finished...)
		}
	}
}

// TestNamed_AsTokens demands that requests given by names of blocks are
// treated as those given by tokens, with and without a host tier.
func TestNamed_AsTokens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{
			BlockSize: 4, Blocks: rapid.IntRange(12, 40).Draw(t, "blocks"), MaxSeqs: 4, TokenBudget: 16,
			HostBlocks: rapid.SampledFrom([]int{0, 8, 60}).Draw(t, "host"),
		}
		var byTokens, byNames []Request
		for range rapid.IntRange(1, 20).Draw(t, "requests") {
			n := rapid.IntRange(1, 30).Draw(t, "length")
			alike := rapid.IntRange(0, n).Draw(t, "alike")
			fill := kvindex.TokenID(rapid.IntRange(1, 3).Draw(t, "fill"))
			prompt := make([]kvindex.TokenID, n)
			for i := range prompt {
				if prompt[i] = 7; i >= alike {
					prompt[i] = fill
				}
			}
			out := rapid.IntRange(1, 8).Draw(t, "out")
			named := Request{PromptTokens: n, OutputTokens: out}
			for i := 4; i <= n; i += 4 {
				b := make([]byte, 0, 4*i)
				for _, token := range prompt[:i] {
					b = binary.LittleEndian.AppendUint32(b, uint32(token))
				}
				named.Names = append(named.Names, kvindex.EngineHash(xxh3.Hash(b)))
			}
			// The answer of tokens must be known by nobody else.
			byTokens = append(byTokens, Request{Prompt: prompt, OutputTokens: out})
			byNames = append(byNames, named)
		}
		unique := kvindex.TokenID(1000)
		cfg.Output = func(kvindex.TokenID, uint64) kvindex.TokenID { unique++; return unique }
		wantEnds, want := play(t, cfg, byTokens)
		gotEnds, got := play(t, cfg, byNames)
		if d := cmp.Diff(wantEnds, gotEnds) + cmp.Diff(want, got); d != "" {
			t.Fatal(d)
		}
	})
}

func TestHostTier(t *testing.T) {
	cfg := Config{BlockSize: 4, Blocks: 4, HostBlocks: 8, Profile: Profile{Name: "t", Base: 1, PerPrefillToken: 1, PerLoadedToken: 0.25}}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	onHost := map[kvindex.EngineHash]bool{}
	run := func(names ...kvindex.EngineHash) (Finished, time.Duration) {
		t.Helper()
		if _, err := c.Submit(now, Request{PromptTokens: 4*len(names) + 1, OutputTokens: 1, Names: names}); err != nil {
			t.Fatal(err)
		}
		length, ok := c.Begin(now)
		if !ok {
			t.Fatal("nothing to run")
		}
		now = now.Add(length)
		r := c.End(now)
		for _, e := range r.Events {
			switch e := e.(type) {
			case BlockStored:
				for _, h := range e.Hashes {
					if e.Medium == MediumCPU {
						onHost[h] = true
					}
				}
			case BlockRemoved:
				for _, h := range e.Hashes {
					if e.Medium == MediumCPU {
						delete(onHost, h)
					}
				}
			}
		}
		return r.Finished[0], length
	}
	run(1, 2, 3) // fills the device
	run(4, 5, 6) // evicts 1 to 3 from there
	got, length := run(1, 2, 3)
	if got.CachedTokens != 12 || got.LoadedTokens != 12 {
		t.Errorf("%d tokens cached, %d loaded: want all 12 from the host tier", got.CachedTokens, got.LoadedTokens)
	}
	// Base, one computed token, twelve loaded ones.
	if want := 5 * time.Millisecond; length != want {
		t.Errorf("the step takes %v, want %v", length, want)
	}
	if got, _ = run(1, 2, 3); got.CachedTokens != 12 || got.LoadedTokens != 0 {
		t.Errorf("%d tokens cached, %d loaded: want all 12 on the device", got.CachedTokens, got.LoadedTokens)
	}
	// Three more make nine: the oldest is 6, the tail of the oldest chain.
	run(7, 8, 9)
	want := map[kvindex.EngineHash]bool{1: true, 2: true, 3: true, 4: true, 5: true, 7: true, 8: true, 9: true}
	if d := cmp.Diff(want, onHost); d != "" {
		t.Error("on the host tier, as announced: " + d)
	}
	if s := c.Stats(); s.HostHits != 12 || s.CacheHits != 12 {
		t.Errorf("host hits %d, hits %d: want 12 each", s.HostHits, s.CacheHits)
	}
}
