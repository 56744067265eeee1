package faults

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// An engine lives long: prompts that all begin alike keep a few blocks cached
// for ever, two copies of some of them among these, while all others are
// evicted again and again. However many that were, the index has what the
// engine has, but for blocks of which a copy was removed.
func TestLongLife_IndexIsTheEngine(t *testing.T) {
	const blocks, blockSize, requests = 32, 4, 6000
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			core, err := engine.New(engine.Config{Blocks: blocks, BlockSize: blockSize, MaxSeqs: 4})
			if err != nil {
				t.Fatal(err)
			}
			index, err := kvindex.New(kvindex.Config{})
			if err != nil {
				t.Fatal(err)
			}
			w, err := index.Open(kvindex.Publisher{ID: 1})
			if err != nil {
				t.Fatal(err)
			}
			hasher := kvindex.NewHasher(fleetSeed)
			applier := events.NewApplier(hasher, "m", new(pool.State), w)
			root := hasher.Root(kvindex.Scope{Model: "m", BlockSize: blockSize})
			random := rand.New(rand.NewPCG(seed, 1))
			now := time.Unix(1000, 0)
			removed := 0
			for n := range requests {
				var prompt []kvindex.TokenID
				family := random.Uint32N(6)
				for i := range 4 + random.Uint32N(40) {
					prompt = append(prompt, kvindex.TokenID(1+family*100+i))
				}
				for range random.IntN(6) {
					prompt = append(prompt, kvindex.TokenID(1000+random.Uint32N(1000)))
				}
				if _, err := core.Submit(now, engine.Request{Prompt: prompt, OutputTokens: 3}); err != nil {
					t.Fatal(err)
				}
				for s := core.Stats(); s.Waiting+s.Running > random.IntN(4); s = core.Stats() {
					length, ok := core.Begin(now)
					if !ok {
						break
					}
					now = now.Add(length)
					es := core.End(now).Events
					if len(es) == 0 {
						continue
					}
					for _, e := range es {
						if r, ok := e.(engine.BlockRemoved); ok {
							removed += len(r.Hashes)
						}
					}
					if !applier.Apply(engine.AppendBatch(nil, engine.FormatMap, 1, es, 0)) {
						t.Fatal("a batch was not understood")
					}
				}
				if core.InFlight() || core.PendingEvents() > 0 {
					continue
				}
				held := map[kvindex.BlockHash]bool{}
				for _, h := range index.AppendHeld(nil, 1) {
					held[h] = true
				}
				found := 0
				for _, b := range core.Held() {
					chain := kvindex.AppendChain(nil, root, hasher.AppendContents(nil, b.AppendPrefix(nil), blockSize))
					in := held[chain[len(chain)-1]]
					if in {
						found++
					}
					if !in && !b.CopyRemoved {
						st := index.Stats().Publishers[0]
						t.Fatalf("request %d, %d removals: the engine holds %d blocks, the index lacks one at depth %d: %+v", n, removed, len(core.Held()), b.Blocks(), st)
					}
				}
				if found != len(held) {
					t.Fatalf("request %d: the index has %d blocks, of which the engine holds %d", n, len(held), found)
				}
			}
			t.Logf("%d removals, %+v", removed, index.Stats().Publishers[0])
		})
	}
}
