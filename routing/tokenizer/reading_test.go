package tokenizer

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

// whole is the dumb model of reading: it has all ids at once.
func whole(ids []kvindex.TokenID, h kvindex.Hasher, sizes []int) *prompt {
	p := &prompt{count: len(ids)}
	for _, size := range sizes {
		p.blocks = append(p.blocks, routing.TokenBlocks{Size: size, Contents: h.AppendContents(nil, ids, size)})
	}
	if len(sizes) > 0 {
		p.tailAt = max(0, len(ids)-tailTokens) / sizes[0] * sizes[0]
		p.tail = slices.Clone(ids[p.tailAt:])
	}
	return p
}

// lost is the dumb model of answered.loss: it compares ids.
func lost(p *prompt, before, ids []kvindex.TokenID) int {
	if len(p.blocks) == 0 || p.tailAt > len(ids) || !slices.Equal(before[:p.tailAt], ids[:p.tailAt]) {
		return guardTokens + 1
	}
	n := p.tailAt
	for n < len(before) && n < len(ids) && before[n] == ids[n] {
		n++
	}
	return min(len(before)-n, guardTokens+1)
}

// Ids that arrive in pieces make the prompt that they make at once, and show
// the same of the prompts before it.
func TestReading_Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := kvindex.NewHasher(5)
		sizes := rapid.SampledFrom([][]int{nil, {1}, {4}, {16}, {16, 64}, {64, 16}, {3, 7}}).Draw(t, "sizes")
		tokens := rapid.SliceOfN(rapid.Map(rapid.Uint32Range(0, 2), func(n uint32) kvindex.TokenID { return kvindex.TokenID(n) }), 0, 300)
		ids := tokens.Draw(t, "ids")
		var earlier []*prompt
		var before [][]kvindex.TokenID
		for range rapid.IntRange(0, 3).Draw(t, "earlier") {
			old := slices.Clone(ids[:rapid.IntRange(0, len(ids)).Draw(t, "kept")])
			old = append(old, tokens.Draw(t, "then")[:]...)
			if len(old) > 0 && rapid.Bool().Draw(t, "changed") {
				old[rapid.IntRange(0, len(old)-1).Draw(t, "where")] ^= 1
			}
			earlier, before = append(earlier, whole(old, h, sizes)), append(before, old)
		}
		r := reading{}
		if rapid.Bool().Draw(t, "used") {
			r.begin(question{hasher: h, sizes: sizes, earlier: earlier})
			r.take(ids)
			r.release()
		}
		r.begin(question{hasher: h, sizes: sizes, earlier: earlier})
		if n := rapid.IntRange(0, 400).Draw(t, "announced"); n > 0 {
			r.expect(n)
		}
		for rest := ids; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "batch")
			batch := slices.Clone(rest[:n])
			r.take(batch)
			clear(batch)
			rest = rest[n:]
		}
		got, want := r.answered(), whole(ids, h, sizes)
		if got.count != want.count || got.tailAt != want.tailAt || !slices.Equal(got.tail, want.tail) {
			t.Fatalf("got %d tokens, tail %v at %d, want %d, %v at %d", got.count, got.tail, got.tailAt, want.count, want.tail, want.tailAt)
		}
		for i, b := range want.blocks {
			if g := got.blocks[i]; g.Size != b.Size || !slices.Equal(g.Contents, b.Contents) {
				t.Fatalf("blocks of %d: %x, want %x", b.Size, g.Contents, b.Contents)
			}
			if c := got.blocks[i].Contents; cap(c) > len(c)+len(c)/16+8 {
				t.Fatalf("room for %d blocks is kept for %d", cap(c), len(c))
			}
		}
		for i, p := range earlier {
			if n, ok := got.loss(p); !ok || n != lost(p, before[i], ids) {
				t.Fatalf("prompt %d lost %d tokens (%v), want %d", i, n, ok, lost(p, before[i], ids))
			}
		}
		if _, ok := got.loss(&prompt{}); ok {
			t.Fatal("judged a prompt that was not asked about")
		}
	})
}
