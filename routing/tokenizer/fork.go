package tokenizer

import (
	"math"
	"slices"
	"unicode/utf8"

	"github.com/warmpath/warmpath/routing"
)

// tail is a text that ended behind a boundary.
type tail struct {
	// name is that of the text behind the boundary, bytes its length.
	name  key
	bytes int
	*prompt
}

// fork is a point where prompts that began alike went on differently. It is
// immutable; learning replaces it.
type fork struct {
	// head is how the first continuation began.
	head head
	// shared bounds the tokens that two of the continuations have in common
	// behind the fork: the least bound of any two that certainly differ; -1 if
	// there are none.
	shared int
	// agreed are the blocks that all continuations had in common.
	agreed []routing.TokenBlocks
	// tails are texts that ended behind this boundary, newest first.
	tails []tail
}

// certain is how many tokens any continuation of the fork begins with: those
// that all continuations so far had in common, less what text they share may
// have made of it.
func (f *fork) certain() int {
	if f.shared < 0 {
		return 0
	}
	tokens := 0
	for _, b := range f.agreed {
		tokens = max(tokens, b.Size*len(b.Contents))
	}
	return max(0, tokens-f.shared-guardTokens)
}

// shared bounds the tokens of what two heads have in common; -1 if they do not
// certainly differ. They do at a character that is no white space in either:
// some templates strip white space, and what ends where the other goes on may
// go on with white space that is stripped. A byte makes one token at most,
// where tokenizers do not rewrite the text first; they do that to other than
// ASCII (NFKC makes up to 18 characters of one of 3 bytes).
func shared(a, b head) int {
	tokens := min(a.space, b.space)
	for x, y := a.text, b.text; len(x) > 0 && len(y) > 0; {
		r, n := utf8.DecodeRune(x)
		q, _ := utf8.DecodeRune(y)
		switch {
		case r == q && r < utf8.RuneSelf:
			tokens++
		case r == q:
			tokens += 18
		case isSpace(r), isSpace(q):
			return -1
		default:
			return tokens
		}
		x, y = x[n:], y[n:]
	}
	return -1
}

// clip returns the blocks that begin in the first n tokens. Fewer than all are
// copied, which frees the rest; all of them are shared with the prompt, which
// is as immutable as the fork, and counted for both.
func clip(blocks []routing.TokenBlocks, n int) []routing.TokenBlocks {
	out := make([]routing.TokenBlocks, 0, len(blocks))
	for _, b := range blocks {
		if k := n/b.Size + 1; k < len(b.Contents) {
			b.Contents = slices.Clone(b.Contents[:k])
		}
		out = append(out, b)
	}
	return out
}

// endedIn returns the texts that ended behind the boundary and that text, which
// follows it, goes on from. f may be nil.
func (f *fork) endedIn(text string, seed uint64) (all []tail) {
	if f == nil {
		return nil
	}
	for _, t := range f.tails {
		if t.bytes < len(text) && t.name == (key{}).thenString(text[:t.bytes], seed) {
			all = append(all, t)
		}
	}
	return all
}

// joined returns f, which may be nil, after another continuation.
func (f *fork) joined(begins head, blocks []routing.TokenBlocks) *fork {
	if f == nil {
		return &fork{head: head{slices.Clone(begins.text), begins.space}, shared: -1, agreed: clip(blocks, math.MaxInt)}
	}
	g := &fork{head: f.head, shared: f.shared, tails: f.tails}
	if n := shared(f.head, begins); n >= 0 && (n < f.shared || f.shared < 0) {
		g.shared = n
	}
	for _, b := range f.agreed {
		same := common(b, blocks)
		if same == 0 {
			continue
		}
		if same < len(b.Contents) {
			b.Contents = slices.Clone(b.Contents[:same]) // frees the rest
		}
		g.agreed = append(g.agreed, b)
	}
	return g
}
