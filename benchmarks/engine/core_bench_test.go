package engine

import (
	"slices"
	"testing"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// BenchmarkCore runs conversations of 4 turns, 2000 new tokens and 100 output
// tokens a turn, eight at a time, on a full cache. One operation is a request.
func BenchmarkCore(b *testing.B) {
	for _, hash := range []HashAlgorithm{HashSHA256CBOR, HashXXH3CBOR} {
		for _, silent := range []bool{false, true} {
			name := string(hash) + "/events"
			if silent {
				name = string(hash) + "/silent"
			}
			b.Run(name, func(b *testing.B) { benchmarkCore(b, Config{Hash: hash, NoEvents: silent}) })
		}
	}
}

func benchmarkCore(b *testing.B, cfg Config) {
	c, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	now := time.Unix(1000, 0)
	random := uint64(1)
	prompts := make(map[SequenceID][]kvindex.TokenID)
	submit := func(prompt []kvindex.TokenID) {
		if len(prompt) > 8000 {
			prompt = nil
		}
		for range 2000 {
			random = splitmix(random)
			prompt = append(prompt, kvindex.TokenID(random%OrdinaryTokens))
		}
		id, err := c.Submit(now, Request{Prompt: slices.Clone(prompt), OutputTokens: 100})
		if err != nil {
			b.Fatal(err)
		}
		prompts[id] = prompt
	}
	for range 8 {
		submit(nil)
	}
	b.ReportAllocs()
	steps := uint64(0)
	for done := 0; done < b.N; {
		length, _ := c.Begin(now)
		now = now.Add(length)
		r := c.End(now)
		steps++
		for _, e := range r.Emitted {
			prompts[e.ID] = append(prompts[e.ID], e.Token)
		}
		for _, f := range r.Finished {
			done++
			prompt := prompts[f.ID]
			delete(prompts, f.ID)
			submit(prompt)
		}
	}
	b.ReportMetric(float64(steps)/float64(b.N), "steps/op")
	b.ReportMetric(float64(c.Stats().CacheHits)/float64(c.Stats().CacheQueries), "hit-rate")
}
