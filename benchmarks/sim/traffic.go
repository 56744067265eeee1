package sim

import (
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/warmpath/warmpath/benchmarks/workload"
	"github.com/warmpath/warmpath/kvindex"
)

// traffic is a workload in the terms of engine and router. It is immutable and
// shared by runs.
type traffic struct {
	*workload.Workload
	prompts []prompt
	// adapters are the LoRA adapters, sorted.
	adapters []string
}

// prompt is a request's prompt.
type prompt struct {
	// names are its whole blocks', and behind them those of its answer's that
	// later prompts contain.
	names []kvindex.EngineHash
	// whole is how many blocks the prompt fills by itself, contents their
	// content hashes.
	whole    int
	contents []kvindex.ContentHash
	// key is equal for prompts whose first block is.
	key string
}

// newTraffic prepares a workload.
func newTraffic(w *workload.Workload) *traffic {
	t := &traffic{Workload: w, prompts: make([]prompt, len(w.Requests))}
	keys := map[uint64]string{}
	seen := map[string]bool{}
	for i := range w.Requests {
		r, p := &w.Requests[i], &t.prompts[i]
		if !seen[r.Adapter] && r.Adapter != "" {
			seen[r.Adapter] = true
			t.adapters = append(t.adapters, r.Adapter)
		}
		p.whole = r.WholeBlocks()
		p.names = make([]kvindex.EngineHash, 0, p.whole+len(r.OutputBlocks))
		for _, id := range r.Blocks[:p.whole] {
			p.names = append(p.names, nameOf(id, r.Adapter))
		}
		for _, id := range r.OutputBlocks {
			p.names = append(p.names, nameOf(id, r.Adapter))
		}
		p.contents = make([]kvindex.ContentHash, p.whole)
		for j, n := range p.names[:p.whole] {
			p.contents[j] = contentOf(n)
		}
		first := r.Blocks[0]
		if keys[first] == "" {
			keys[first] = fmt.Sprint(first)
		}
		p.key = keys[first]
	}
	return t
}

// nameOf is the engines' name of a block of the workload.
func nameOf(id uint64, adapter string) kvindex.EngineHash {
	return kvindex.EngineHash(mix(id ^ xxh3.HashString(adapter)))
}

// contentOf is the content hash of a block by its engine name: where there are
// no tokens, the name stands for them.
func contentOf(n kvindex.EngineHash) kvindex.ContentHash {
	return kvindex.ContentHash(mix(uint64(n)))
}

// AppendPrompt appends the tokens of a request's prompt, as they are with
// Scenario.Wire: equal blocks have equal tokens.
func AppendPrompt(dst []kvindex.TokenID, w *workload.Request) []kvindex.TokenID {
	left := w.InputTokens
	for _, id := range w.Blocks {
		n := min(left, blockTokens)
		dst = appendTokens(dst, id, n)
		left -= n
	}
	return dst
}

// appendTokens appends n tokens of a block of the workload.
func appendTokens(dst []kvindex.TokenID, id uint64, n int) []kvindex.TokenID {
	h := mix(id)
	for i := range n {
		// Below 2^20 and above 0: the size of a vocabulary, and never padding.
		dst = append(dst, kvindex.TokenID(mix(h+uint64(i))>>44|1))
	}
	return dst
}

// mix is the output function of SplitMix64 (Steele, Lea, Flood 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
