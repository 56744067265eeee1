package tokenizer

import (
	"slices"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

// question is what a tokenizer is asked, and what is to become of its answer.
// It is read-only, for several attempts share it.
type question struct {
	*payload
	hasher kvindex.Hasher
	sizes  []int
	// earlier are remembered prompts that the new one may continue.
	earlier []*prompt
}

// reading makes a prompt of its token ids as they arrive: they are hashed and
// forgotten, for a long prompt has megabytes of them. Its memory is pooled.
type reading struct {
	question
	reader answerReader
	// prompt is the result, and shared with nobody before it is recorded.
	prompt *prompt
	// pending are the last ids that have arrived, from position base on: those
	// that are not in a block of every size yet, and those that may become the
	// prompt's tail.
	pending []kvindex.TokenID
	base    int
	// kept is, for each of the earlier prompts, how many of its last tokens the
	// new one has in their place, without a gap.
	kept []int
}

// answered is what an answer said.
func (r *reading) answered() answered { return answered{r.end(), r.earlier, r.kept} }

// begin starts over with another question.
func (r *reading) begin(q question) {
	r.question = q
	r.prompt = &prompt{blocks: make([]routing.TokenBlocks, len(q.sizes))}
	for i, size := range q.sizes {
		r.prompt.blocks[i].Size = size
	}
	r.pending, r.base = r.pending[:0], 0
	r.kept = append(r.kept[:0], make([]int, len(q.earlier))...)
}

// expect implements [sink].
func (r *reading) expect(n int) {
	for i := range r.prompt.blocks {
		b := &r.prompt.blocks[i]
		b.Contents = make([]kvindex.ContentHash, 0, n/b.Size)
	}
}

// take implements [sink].
func (r *reading) take(ids []kvindex.TokenID) {
	from := r.base + len(r.pending)
	for i, p := range r.earlier {
		for next := p.tailAt + r.kept[i]; next >= from && next < from+len(ids) && r.kept[i] < len(p.tail); next++ {
			if p.tail[r.kept[i]] != ids[next-from] {
				break // what follows begins behind next, so nothing more is counted
			}
			r.kept[i]++
		}
	}
	r.pending = append(r.pending, ids...)
	to := from + len(ids)
	// A tail begins less than a block of the first size before its last tokens.
	keep := to
	if len(r.sizes) > 0 {
		keep = max(0, to-tailTokens-r.sizes[0])
	}
	for i := range r.prompt.blocks {
		b := &r.prompt.blocks[i]
		b.Contents = r.hasher.AppendContents(b.Contents, r.pending[len(b.Contents)*b.Size-r.base:], b.Size)
		keep = min(keep, len(b.Contents)*b.Size)
	}
	r.pending = append(r.pending[:0], r.pending[keep-r.base:]...)
	r.base = keep
}

// end returns the prompt when all of its ids have arrived.
func (r *reading) end() *prompt {
	p := r.prompt
	p.count = r.base + len(r.pending)
	for i := range p.blocks {
		// It will be kept for long: what no server announces grows with room to
		// spare.
		if b := &p.blocks[i]; cap(b.Contents) > len(b.Contents)+len(b.Contents)/16 {
			b.Contents = slices.Clone(b.Contents)
		}
	}
	if len(r.sizes) > 0 {
		p.tailAt = max(0, p.count-tailTokens) / r.sizes[0] * r.sizes[0]
		p.tail = slices.Clone(r.pending[p.tailAt-r.base:])
	}
	return p
}

// release has r refer to nothing of its question and its answer.
func (r *reading) release() {
	r.question, r.prompt = question{}, nil
	clear(r.kept)
}

// answered is the prompt that a tokenizer's answer made, and what it shows of
// the prompts before it.
type answered struct {
	*prompt
	earlier []*prompt
	kept    []int
}

// loss is how many of p's last tokens the answer does not have in their place,
// at most guardTokens+1; ok is false if p is not among the earlier prompts.
func (a *answered) loss(p *prompt) (tokens int, ok bool) {
	i := slices.Index(a.earlier, p)
	if i < 0 {
		return 0, false
	}
	if len(p.blocks) == 0 {
		return guardTokens + 1, true
	}
	first := p.blocks[0]
	first.Contents = first.Contents[:p.tailAt/first.Size]
	if common(first, a.blocks) < len(first.Contents) {
		return guardTokens + 1, true
	}
	return min(len(p.tail)-a.kept[i], guardTokens+1), true
}
