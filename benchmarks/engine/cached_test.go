package engine

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
)

// What Cached says is what the request then finds, if it is admitted at once.
func TestCached(t *testing.T) {
	cfg := Config{BlockSize: 4, Blocks: 12, HostBlocks: 8}
	found := map[bool]int{}
	rapid.Check(t, func(t *rapid.T) {
		core, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Unix(0, 0)
		for range rapid.IntRange(1, 15).Draw(t, "requests") {
			group, tokens := rapid.IntRange(0, 3).Draw(t, "group"), rapid.IntRange(1, 30).Draw(t, "tokens")
			r := Request{PromptTokens: tokens, OutputTokens: 1}
			for i := range tokens / cfg.BlockSize {
				r.Names = append(r.Names, kvindex.EngineHash(100*group+i+1))
			}
			device, host := core.Cached(r)
			if again, more := core.Cached(r); again != device || more != host {
				t.Fatalf("asked twice: %d+%d, then %d+%d", device, host, again, more)
			}
			if d, h := held(core, r.Names, (tokens-1)/cfg.BlockSize); d*cfg.BlockSize != device || h*cfg.BlockSize != host {
				t.Fatalf("block by block %d+%d, all together %d+%d", d, h, device, host)
			}
			if _, err := core.Submit(now, r); err != nil {
				t.Fatal(err)
			}
			for core.Stats().Running+core.Stats().Waiting > 0 {
				length, ok := core.Begin(now)
				if !ok {
					t.Fatal("no step")
				}
				now = now.Add(length)
				for _, f := range core.End(now).Finished {
					if f.CachedTokens-f.LoadedTokens != device || f.LoadedTokens != host {
						t.Fatalf("found %d+%d, foretold %d+%d", f.CachedTokens-f.LoadedTokens, f.LoadedTokens, device, host)
					}
				}
			}
			found[host > 0]++
		}
	})
	if found[true] == 0 {
		t.Error("the host tier was never asked")
	}
}

// held asks for one block after the other, up to a limit.
func held(c *Core, names []kvindex.EngineHash, limit int) (device, host int) {
	for _, n := range names[:min(limit, len(names))] {
		d, h := c.Holds(n)
		switch {
		case d && host == 0:
			device++
		case h:
			host++
		default:
			return device, host
		}
	}
	return device, host
}
