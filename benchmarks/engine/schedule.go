package engine

import (
	"slices"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// Begin plans the next step and returns how long it takes. It reports false,
// and plans nothing, if there is nothing to run. It must not be called while
// a step is in flight.
//
// Order within the token budget: sequences that decode, then prompts that
// have begun, both by admission; then waiting sequences by arrival, as long as
// all of their blocks would fit. A sequence that cannot get its next block
// throws the latest admitted one back to the queue, to be recomputed; in such
// a step nothing is admitted.
func (c *Core) Begin(now time.Time) (time.Duration, bool) {
	if c.inFlight {
		panic("engine: Begin while a step is in flight")
	}
	c.result = StepResult{Emitted: c.result.Emitted[:0], Started: c.result.Started[:0], Finished: c.result.Finished[:0]}
	c.step = c.step[:0]
	preemptions := c.stats.Preemptions
	budget := c.cfg.TokenBudget
	c.loading = 0

	for _, decoding := range []bool{true, false} {
		// The list shrinks at its end while sequences are preempted.
		for i := 0; i < len(c.running) && budget > 0; i++ {
			if s := c.running[i]; s.scheduled == 0 && s.decoding() == decoding {
				c.grant(s, &budget)
			}
		}
	}
	if c.stats.Preemptions == preemptions {
		c.admit(now, &budget)
	}

	c.work = work{loaded: c.loading}
	for _, s := range c.step {
		if s.decoding() {
			c.work.addDecode(s.length)
		} else {
			c.work.addPrefill(s.computed, s.scheduled)
		}
	}
	if len(c.step) == 0 {
		return 0, false
	}
	c.inFlight = true
	c.result.Duration = c.cfg.Profile.duration(c.work)
	return c.result.Duration, true
}

// grant schedules as much of a running sequence as the budget allows.
func (c *Core) grant(s *sequence, budget *int) {
	for {
		n := min(s.remaining(), *budget)
		need := c.blocksFor(s.computed+n) - len(s.blocks)
		if need <= c.pool.free {
			c.allocate(s, need)
			c.schedule(s, n, budget)
			return
		}
		victim := c.running[len(c.running)-1]
		*budget += c.preempt(victim)
		if victim == s {
			return
		}
	}
}

// admit moves waiting sequences to running, strictly in order: the first that
// does not fit holds back those behind it.
func (c *Core) admit(now time.Time, budget *int) {
	for len(c.waiting) > 0 && *budget > 0 && len(c.running) < c.cfg.MaxSeqs {
		s := c.waiting[0]
		hits, idle := c.match(s)
		// Hits that nobody uses leave the free list as well.
		if c.blocksFor(s.length)-len(hits)+idle > c.pool.free {
			return
		}
		loaded := c.matchHost(s, len(hits))
		c.waiting = slices.Delete(c.waiting, 0, 1)
		c.running = append(c.running, s)
		for _, id := range hits {
			c.pool.touch(id)
			s.blocks = append(s.blocks, id)
			s.nodes = append(s.nodes, c.pool.blocks[id].node)
		}
		s.computed = (len(hits) + loaded) * c.cfg.BlockSize
		c.loading += loaded * c.cfg.BlockSize
		if !s.admitted {
			s.admitted = true
			s.stats.Admitted = now
			s.stats.CachedTokens = s.computed
			s.stats.LoadedTokens = loaded * c.cfg.BlockSize
			c.stats.CacheQueries += uint64(s.length)
			c.stats.CacheHits += uint64(len(hits) * c.cfg.BlockSize)
			c.stats.HostHits += uint64(loaded * c.cfg.BlockSize)
		}
		n := min(s.remaining(), *budget)
		c.allocate(s, c.blocksFor(s.computed+n)-len(s.blocks))
		c.schedule(s, n, budget)
	}
}

// match finds the longest cached prefix. The last token is always computed,
// for its output is needed: of a prompt that is a whole number of blocks and
// fully cached, the last block is computed again. idle counts the hits without
// references. The result is valid until the next call or change of the pool.
func (c *Core) match(s *sequence) (hits []int32, idle int) {
	hits = c.hits[:0]
	limit := (s.length - 1) / c.cfg.BlockSize
	c.extendDigests(s, limit)
	for _, d := range s.digests[:limit] {
		id, ok := c.pool.lookup(d)
		if !ok {
			break
		}
		if c.pool.blocks[id].refs == 0 {
			idle++
		}
		hits = append(hits, id)
	}
	c.hits = hits
	return hits, idle
}

// extendDigests makes sure that the first n blocks have their digests.
func (c *Core) extendDigests(s *sequence, n int) {
	bs := c.cfg.BlockSize
	for i := len(s.digests); i < n && s.tokens == nil; i++ {
		name := splitmix(s.random + uint64(i))
		if i < len(s.names) {
			name = uint64(s.names[i])
		}
		s.digests = append(s.digests, namedDigest(name))
	}
	for i := len(s.digests); i < n; i++ {
		parent, salt := c.hasher.none, s.scope.salt
		if i > 0 {
			parent, salt = s.digests[i-1], ""
		}
		s.digests = append(s.digests, c.hasher.block(parent, s.tokens[i*bs:(i+1)*bs], s.scope.adapter, salt))
	}
}

// allocate gives n free blocks to a sequence and announces what they held.
func (c *Core) allocate(s *sequence, n int) {
	for range n {
		id, evicted := c.pool.take()
		s.blocks = append(s.blocks, id)
		if evicted != nil && !c.cfg.NoEvents {
			c.emit(BlockRemoved{
				Hashes: []kvindex.EngineHash{evicted.digest.Wire()},
				Medium: MediumGPU,
			})
		}
	}
}

func (c *Core) schedule(s *sequence, n int, budget *int) {
	s.scheduled = n
	*budget -= n
	c.step = append(c.step, s)
}

// preempt throws the latest admitted sequence back to the front of the queue
// and returns the budget it had in this step. What is visible of its blocks
// stays cached until it is evicted.
func (c *Core) preempt(s *sequence) (budget int) {
	c.running = c.running[:len(c.running)-1]
	if s.scheduled > 0 {
		budget = s.scheduled
		s.scheduled = 0
		c.step = slices.DeleteFunc(c.step, func(o *sequence) bool { return o == s })
	}
	c.pool.release(s.blocks)
	s.blocks, s.nodes, s.computed = nil, nil, 0
	s.stats.Preemptions++
	c.stats.Preemptions++
	c.waiting = slices.Insert(c.waiting, 0, s)
	return budget
}

// End finishes the step in flight: computed blocks become visible, sequences
// that are up to date sample a token, finished ones free their blocks.
func (c *Core) End(now time.Time) StepResult {
	if !c.inFlight {
		panic("engine: End without a step in flight")
	}
	r := &c.result
	r.PrefillTokens, r.DecodeTokens = c.work.prefillTokens, c.work.decodes
	c.inFlight = false
	c.stats.Steps++
	c.stats.ComputedTokens += uint64(c.work.prefillTokens + c.work.decodes)

	ended := false
	for _, s := range c.step {
		s.computed += s.scheduled
		s.scheduled = 0
		c.publish(s)
		if !s.aborted && s.remaining() == 0 {
			c.sample(now, s)
		}
		if s.aborted || s.length == s.target {
			ended = true
			c.discard(s)
		}
	}
	if ended {
		c.running = slices.DeleteFunc(c.running, func(s *sequence) bool {
			return s.aborted || s.length == s.target
		})
	}
	r.Events = c.pending
	c.pending = nil
	return *r
}

// sample appends the next output token.
func (c *Core) sample(now time.Time, s *sequence) {
	n := s.length - s.prompt
	if n == 0 {
		s.stats.FirstToken = now
		c.result.Started = append(c.result.Started, s.id)
		c.stats.PromptTokens += uint64(s.prompt)
	}
	var t kvindex.TokenID
	if s.tokens != nil {
		t = c.output(s.tokens[len(s.tokens)-1], splitmix(s.random+uint64(n)))
		s.tokens = append(s.tokens, t)
	}
	s.length++
	c.stats.GenerationTokens++
	c.result.Emitted = append(c.result.Emitted, Emission{ID: s.id, Token: t})
	if s.length == s.target {
		s.stats.OutputTokens = s.target - s.prompt
		s.stats.Done = now
		c.result.Finished = append(c.result.Finished, s.stats)
	}
}

// publish makes the blocks visible that the step filled, and announces them
// with one event.
func (c *Core) publish(s *sequence) {
	bs := c.cfg.BlockSize
	from, to := len(s.nodes), s.computed/bs
	if from == to {
		return
	}
	c.extendDigests(s, to)
	var parent *node
	if from > 0 {
		parent = s.nodes[from-1]
	}
	for i := from; i < to; i++ {
		n := c.contentOf(s, i, parent)
		s.nodes = append(s.nodes, n)
		c.pool.publish(s.blocks[i], n)
		parent = n
	}
	if !c.cfg.NoEvents {
		c.emit(c.stored(s, from, to))
	}
	if c.host != nil {
		c.offload(s.nodes[from:to])
	}
}

// contentOf returns the node of a sequence's block: the one that is cached
// already, if another sequence computed the same content.
func (c *Core) contentOf(s *sequence, i int, parent *node) *node {
	if id, ok := c.pool.lookup(s.digests[i]); ok {
		return c.pool.blocks[id].node
	}
	n := &node{parent: parent, digest: s.digests[i], scope: s.scope}
	if s.tokens != nil {
		bs := c.cfg.BlockSize
		n.tokens = slices.Clone(s.tokens[i*bs : (i+1)*bs])
	}
	return n
}

// stored describes blocks from to to of a sequence.
func (c *Core) stored(s *sequence, from, to int) BlockStored {
	bs := c.cfg.BlockSize
	e := BlockStored{
		Hashes:    make([]kvindex.EngineHash, 0, to-from),
		Root:      from == 0,
		BlockSize: bs,
		LoRAID:    c.loraIDs[s.scope.adapter],
		LoRAName:  s.scope.adapter,
		Medium:    MediumGPU,
		Kind:      KindFullAttention,
	}
	if s.tokens != nil {
		e.Tokens = slices.Clone(s.tokens[from*bs : to*bs])
		e.ExtraKeys = make([][]string, to-from)
	}
	if from > 0 {
		e.Parent = s.digests[from-1].Wire()
	}
	for i := from; i < to; i++ {
		e.Hashes = append(e.Hashes, s.digests[i].Wire())
		if e.ExtraKeys == nil {
			continue
		}
		var keys []string
		if s.scope.adapter != "" {
			keys = append(keys, s.scope.adapter)
		}
		if s.scope.salt != "" && i == 0 {
			keys = append(keys, s.scope.salt)
		}
		e.ExtraKeys[i-from] = keys
	}
	return e
}
