package tokenizer

import (
	"sync"

	"github.com/maypok86/otter/v2"

	"github.com/warmpath/warmpath/routing"
)

// What is believed of a tokenizer. All of it only makes claims shorter.
const (
	// guardTokens is how many of a known prompt's last tokens are never
	// claimed: text that follows may merge with them, and what a template opens
	// the answer with need not be how it renders the answer later. It is twice
	// what chat templates usually open an answer with. It is also the most last
	// tokens that may differ in a continuation for the prompt to count as kept.
	guardTokens = 8
	// proofWords is how many words the last message of a prompt must have, at
	// least, for a continuation to prove anything: a template that moves or
	// rewrites that message must show in more than guardTokens.
	proofWords = guardTokens + 2
	// firstProofs is how many continuations must have kept the tokens of what
	// they continue before others like them are believed to; it is multiplied
	// by proofGrowth whenever that turns out wrong.
	firstProofs, proofGrowth, maxProofs = 3, 4, 1 << 20
	// maxRules bounds how many kinds of continuations are learned.
	maxRules = 8192
	// maxTails is how many texts that ended behind one boundary are kept.
	maxTails = 4
	// tailTokens is the least number of last tokens kept with a prompt, if it
	// has that many.
	tailTokens = 2 * guardTokens
	// entryOverhead is what an entry costs besides its arrays, in bytes: the
	// entry itself and the cache's own nodes.
	entryOverhead = 320
)

// entry is what the cache holds: one of the two.
type entry struct {
	prompt *prompt
	fork   *fork
}

func (e *entry) weight() uint32 {
	n := entryOverhead
	if e.prompt != nil {
		n += e.prompt.weight()
	}
	if f := e.fork; f != nil {
		n += cap(f.head.text)
		for _, b := range f.agreed {
			n += 40 + 8*len(b.Contents)
		}
		for _, t := range f.tails {
			n += 56 + t.prompt.weight()
		}
	}
	return uint32(n)
}

// rule is what has been learned about one kind of continuation (see
// outline.transition).
type rule struct {
	// proofs counts continuations that kept the tokens since the last one that
	// did not; need is how many it takes.
	proofs, need int
	// loss is the most tokens that any of the proofs lost.
	loss int
}

// memory is what has been learned from tokenizers. Look-ups take no lock;
// learning is serialized by mu.
type memory struct {
	cache *otter.Cache[key, *entry]
	mu    sync.Mutex
	rules *otter.Cache[key, rule]
}

func newMemory(bytes uint64) *memory {
	inline := func(f func()) { f() }
	return &memory{
		cache: otter.Must(&otter.Options[key, *entry]{
			MaximumWeight: bytes,
			Weigher:       func(_ key, e *entry) uint32 { return e.weight() },
			Executor:      inline,
		}),
		rules: otter.Must(&otter.Options[key, rule]{MaximumSize: maxRules, Executor: inline}),
	}
}

// exact returns the prompt of o, nil if it or one of the block sizes is not
// known.
func (m *memory) exact(ns key, o *outline, sizes []int) *prompt {
	if e, ok := m.cache.GetIfPresent(o.end().in(ns)); ok && covers(e.prompt.blocks, sizes) {
		return e.prompt
	}
	return nil
}

// claim is a prefix of a prompt that is believed to be known.
type claim struct {
	// tokens is its length; blocks are those wholly inside it.
	tokens int
	blocks []routing.TokenBlocks
	// bytes is how much of the request it covers.
	bytes int
}

// take makes c the claim of tokens of blocks if it is longer than what c has.
// It keeps c's memory.
func (c *claim) take(blocks []routing.TokenBlocks, sizes []int, tokens, bytes int) {
	if tokens <= c.tokens || !covers(blocks, sizes) {
		return
	}
	c.tokens, c.bytes, c.blocks = tokens, bytes, c.blocks[:0]
	for _, b := range blocks {
		if n := min(len(b.Contents), tokens/b.Size); n > 0 {
			c.blocks = append(c.blocks, routing.TokenBlocks{Size: b.Size, Contents: b.Contents[:n]})
		}
	}
}

// Two kinds of names derive from a segment's end: where prompts ended it is
// the end itself, forks have these.
const forkOfText = 0x666f726b

func forkKey(at key, shape uint64, seed uint64) key { return at.derive(forkOfText^shape, seed) }

// prefix returns the longest claim for o in c, empty if there is none.
func (m *memory) prefix(ns key, o *outline, text string, sizes []int, c *claim) {
	c.tokens, c.bytes, c.blocks = 0, 0, c.blocks[:0]
	if o.kind == routing.PromptText {
		m.textPrefix(ns, o, text, sizes, c)
		return
	}
	n := len(o.segs)
	if o.hasTip {
		at, bytes := o.before(n - 1)
		if e, ok := m.cache.GetIfPresent(forkKey(at, o.segs[n-1].shape, o.seed).in(ns)); ok {
			c.take(e.fork.agreed, sizes, e.fork.certain(), bytes)
		}
	}
	for i := n - 2; i >= 0; i-- {
		e, ok := m.cache.GetIfPresent(o.segs[i].end.in(ns))
		if !ok {
			continue
		}
		if margin, ok := m.margin(ns, o.transition(i)); ok {
			c.take(e.prompt.blocks, sizes, e.prompt.count-margin, o.segs[i].bytes)
			return // an earlier end claims less
		}
	}
}

// before names the prompt before segment i.
func (o *outline) before(i int) (key, int) {
	if i == 0 {
		return o.start, 0
	}
	return o.segs[i-1].end, o.segs[i-1].bytes
}

func (m *memory) textPrefix(ns key, o *outline, text string, sizes []int, c *claim) {
	margin, proven := m.margin(ns, o.transition(0))
	for i := len(o.segs) - 1; i >= 0; i-- {
		at, bytes := o.boundary(i)
		e, ok := m.cache.GetIfPresent(forkKey(at, 0, o.seed).in(ns))
		if !ok {
			continue
		}
		c.take(e.fork.agreed, sizes, e.fork.certain(), bytes)
		for _, t := range e.fork.tails {
			if proven && bytes+t.bytes < len(text) && t.name == (key{}).thenString(text[bytes:bytes+t.bytes], o.seed) {
				c.take(t.blocks, sizes, t.count-margin, bytes+t.bytes)
			}
		}
		if c.tokens > 0 {
			return
		}
	}
}

// margin returns how many of a prompt's last tokens are not claimed for a
// continuation of a kind; ok is false if that kind is not known to keep any.
func (m *memory) margin(ns key, transition uint64) (tokens int, ok bool) {
	r, ok := m.rules.GetIfPresent(key{transition, 0}.in(ns))
	if !ok || r.proofs < r.need {
		return 0, false
	}
	return guardTokens + r.loss, true
}

// learned is what recording a prompt taught besides the prompt.
type learned struct {
	// refuted: a kind of continuation that was believed to keep tokens did not.
	refuted bool
	// overclaimed counts blocks that had been claimed and were wrong.
	overclaimed int
}

// earlier returns the prompts that o continues, as record will want to judge
// them.
func (m *memory) earlier(ns key, o *outline, text string) (all []*prompt) {
	if o.kind == routing.PromptText {
		for i := range o.segs {
			at, from := o.boundary(i)
			for _, t := range m.forkAt(forkKey(at, 0, o.seed).in(ns)).endedIn(text[from:], o.seed) {
				all = append(all, t.prompt)
			}
		}
		return all
	}
	for i := range len(o.segs) - 1 {
		if e, ok := m.cache.GetIfPresent(o.segs[i].end.in(ns)); ok {
			all = append(all, e.prompt)
		}
	}
	return all
}

// record learns the tokens of o, which must own its heads. made is what had
// been claimed for it. A prompt that has become known after o was asked for is
// not judged.
func (m *memory) record(ns key, o *outline, text string, a *answered, made []routing.TokenBlocks) learned {
	var l learned
	p := a.prompt
	for _, b := range made {
		l.overclaimed += len(b.Contents) - common(b, p.blocks)
	}
	p.proves = o.kind == routing.PromptText || o.lastWords >= proofWords
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(o.segs)
	if o.kind == routing.PromptText {
		for i := range n {
			at, _ := o.boundary(i)
			l.refuted = m.recordText(ns, o, i, at, a, text) || l.refuted
		}
	} else {
		for i := n - 2; i >= 0; i-- {
			if e, ok := m.cache.GetIfPresent(o.segs[i].end.in(ns)); ok {
				l.refuted = m.judge(ns, o.transition(i), e.prompt, a) || l.refuted
			}
		}
		if o.hasTip {
			at, _ := o.before(n - 1)
			k := forkKey(at, o.segs[n-1].shape, o.seed).in(ns)
			m.cache.Set(k, &entry{fork: m.forkAt(k).joined(o.last, p.blocks)})
		}
	}
	m.cache.Set(o.end().in(ns), &entry{prompt: p})
	return l
}

func (m *memory) forkAt(k key) *fork {
	if e, ok := m.cache.GetIfPresent(k); ok {
		return e.fork
	}
	return nil
}

// recordText learns what a text tells about its boundary i.
func (m *memory) recordText(ns key, o *outline, i int, at key, a *answered, text string) (refuted bool) {
	k := forkKey(at, 0, o.seed).in(ns)
	old := m.forkAt(k)
	_, from := o.boundary(i)
	for _, t := range old.endedIn(text[from:], o.seed) {
		refuted = m.judge(ns, o.transition(0), t.prompt, a) || refuted
	}
	// More than one token a byte is not believed; it would only cost memory.
	f := old.joined(o.heads[i], clip(a.blocks, from+guardTokens))
	if i == len(o.segs)-1 {
		own := tail{name: (key{}).thenString(text[from:], o.seed), bytes: len(text) - from, prompt: a.prompt}
		tails := append(make([]tail, 0, maxTails), own)
		for _, t := range f.tails {
			if t.name != own.name && len(tails) < maxTails {
				tails = append(tails, t)
			}
		}
		f.tails = tails
	}
	m.cache.Set(k, &entry{fork: f})
	return refuted
}

// judge counts a, a continuation of p. It reports whether that refuted what was
// believed. The caller holds mu.
func (m *memory) judge(ns key, transition uint64, p *prompt, a *answered) (refuted bool) {
	loss, ok := a.loss(p)
	if !ok {
		return false
	}
	k := key{transition, 0}.in(ns)
	r, known := m.rules.GetIfPresent(k)
	if !known {
		r.need = firstProofs
	}
	believed := r.proofs >= r.need
	switch {
	case loss > guardTokens:
		if known && r.proofs == 0 {
			return false // as was known
		}
		r.need, r.proofs = min(r.need*proofGrowth, maxProofs), 0
		m.rules.Set(k, r)
		return believed
	case p.proves:
		r.proofs++
		r.loss = max(r.loss, loss)
		m.rules.Set(k, r)
	}
	return false
}
