package engine

import "time"

// Forecast returns how long the engine takes, from the end of the step in
// flight, to compute the prompts of all sequences that it has, if no more come:
// what a request that comes now waits for; and how long every step behind it
// takes at least, for the answers that are then written. It changes nothing.
//
// It plays the coming steps as [Core.Begin] would plan them, but takes every
// sequence to fit and none to end its answer: where blocks are short the engine
// takes longer, where many answers end soon it is sooner done.
func (c *Core) Forecast() (prompts, step time.Duration) {
	f := forecast{core: c, soon: map[Digest]struct{}{}}
	bs := c.cfg.BlockSize
	for _, s := range c.running {
		at := s.computed + s.scheduled
		c.extendDigests(s, at/bs)
		for _, d := range s.digests[s.computed/bs : at/bs] {
			f.soon[d] = struct{}{}
		}
		switch length := s.length; {
		case s.scheduled > 0 && at == length:
			f.answer(s, length+1)
		case s.decoding():
			f.answer(s, length)
		}
	}
	f.begin()
	for _, s := range c.running {
		if at := s.computed + s.scheduled; at < s.length && !s.decoding() {
			f.prefill(s, at)
		}
	}
	for _, s := range c.waiting {
		f.prefill(s, f.find(s))
	}
	if f.step.prefillTokens > 0 {
		f.end()
	}
	return f.total, c.cfg.Profile.duration(f.base)
}

// forecast plays steps.
type forecast struct {
	core  *Core
	total time.Duration
	// base is what decoding adds to every step, step the one being filled, and
	// left what is left of its budget.
	base, step work
	left       int
	// soon are blocks that steps before this one computed, filled those of
	// this one.
	soon   map[Digest]struct{}
	filled []Digest
	// done are the sequences whose prompts this step completes.
	done []*sequence
}

func (f *forecast) begin() {
	f.step = f.base
	f.left = max(1, f.core.cfg.TokenBudget-f.base.decodes)
}

func (f *forecast) end() {
	f.total += f.core.cfg.Profile.duration(f.step)
	for _, d := range f.filled {
		f.soon[d] = struct{}{}
	}
	f.base.decodeContext += f.base.decodes // every answer is a token longer
	for _, s := range f.done {
		f.answer(s, s.length+1)
	}
	f.filled, f.done = f.filled[:0], f.done[:0]
	f.begin()
}

// answer has a sequence of a length decode in the steps to come, unless its
// answer is whole.
func (f *forecast) answer(s *sequence, length int) {
	if length < s.target {
		f.base.addDecode(length)
	}
}

// find returns how many tokens of a waiting sequence will be cached when it is
// admitted, and counts what is to be loaded of them.
func (f *forecast) find(s *sequence) int {
	if f.left == 0 {
		f.end()
	}
	c := f.core
	hits, _ := c.match(s)
	n, limit := len(hits), (s.length-1)/c.cfg.BlockSize
	for n < limit && f.comes(s.digests[n]) {
		n++
	}
	loaded := 0
	for ; c.host != nil && n < limit; n++ {
		// What is computed is copied to the host tier as well.
		if _, ok := c.host.at[s.digests[n]]; !ok && !f.comes(s.digests[n]) {
			break
		}
		loaded++
	}
	f.step.loaded += loaded * c.cfg.BlockSize
	return n * c.cfg.BlockSize
}

func (f *forecast) comes(d Digest) bool {
	_, ok := f.soon[d]
	return ok
}

// prefill computes a sequence from a token on.
func (f *forecast) prefill(s *sequence, from int) {
	bs := f.core.cfg.BlockSize
	f.core.extendDigests(s, s.length/bs)
	for from < s.length {
		if f.left == 0 {
			f.end()
		}
		n := min(s.length-from, f.left)
		f.step.addPrefill(from, n)
		f.left -= n
		f.filled = append(f.filled, s.digests[from/bs:(from+n)/bs]...)
		from += n
	}
	f.done = append(f.done, s)
}
