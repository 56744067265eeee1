package engine

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/warmpath/warmpath/kvindex"
	"pgregory.net/rapid"
)

// reader is what a consumer knows from the events alone.
type reader struct {
	set    map[kvindex.EngineHash]bool // set semantics: a removal ends it
	count  map[kvindex.EngineHash]int  // stored minus removed
	prefix map[kvindex.EngineHash][]kvindex.TokenID
}

func newReader() *reader {
	return &reader{
		set:    make(map[kvindex.EngineHash]bool),
		count:  make(map[kvindex.EngineHash]int),
		prefix: make(map[kvindex.EngineHash][]kvindex.TokenID),
	}
}

func (r *reader) apply(t *rapid.T, events []Event) {
	for _, event := range events {
		switch e := event.(type) {
		case BlockStored:
			r.store(t, e)
		case BlockRemoved:
			for _, h := range e.Hashes {
				delete(r.set, h)
				if r.count[h]--; r.count[h] < 0 {
					t.Fatalf("block %d removed more often than stored", h)
				}
			}
		case AllBlocksCleared:
			clear(r.set)
			clear(r.count)
		}
	}
}

func (r *reader) store(t *rapid.T, e BlockStored) {
	if len(e.Tokens) != len(e.Hashes)*e.BlockSize || len(e.ExtraKeys) != len(e.Hashes) {
		t.Fatalf("event with %d hashes of %d tokens has %d tokens, %d extra keys",
			len(e.Hashes), e.BlockSize, len(e.Tokens), len(e.ExtraKeys))
	}
	var prefix []kvindex.TokenID
	if !e.Root {
		var ok bool
		if prefix, ok = r.prefix[e.Parent]; !ok {
			t.Fatalf("parent %d was never announced", e.Parent)
		}
	}
	for i, h := range e.Hashes {
		prefix = slices.Concat(prefix, e.Tokens[i*e.BlockSize:(i+1)*e.BlockSize])
		if known, ok := r.prefix[h]; ok && !slices.Equal(known, prefix) {
			t.Fatalf("block %d stands for two prefixes", h)
		}
		r.prefix[h] = prefix
		r.set[h] = true
		r.count[h]++
	}
}

// agree compares the events' view with the pool's own.
func (r *reader) agree(t *rapid.T, c *Core) {
	held := make(map[kvindex.EngineHash]bool)
	for _, h := range c.Held() {
		held[h.Hash] = true
		if r.count[h.Hash] != h.Copies {
			t.Fatalf("block %d: %d copies by the events, %d in the pool", h.Hash, r.count[h.Hash], h.Copies)
		}
		if r.set[h.Hash] == h.CopyRemoved {
			t.Fatalf("block %d is held, with a copy removed: %t; by the names in the events it is held: %t", h.Hash, h.CopyRemoved, r.set[h.Hash])
		}
		prefix := h.AppendPrefix(nil)
		if !slices.Equal(prefix, r.prefix[h.Hash]) {
			t.Fatalf("block %d: prefix %v in the pool, %v by the events", h.Hash, prefix, r.prefix[h.Hash])
		}
		if got := naiveHash(t, c, prefix, h.Adapter, h.Salt); got != h.Hash {
			t.Fatalf("block %d: its prefix, adapter and salt hash to %d", h.Hash, got)
		}
	}
	for h := range r.set {
		if !held[h] {
			t.Fatalf("block %d is not held, and the events say it is", h)
		}
	}
}

// naiveHash hashes a prefix from the start.
func naiveHash(t *rapid.T, c *Core, tokens []kvindex.TokenID, adapter, salt string) kvindex.EngineHash {
	h, err := newHasher(c.cfg.Hash, c.cfg.HashSeed)
	if err != nil {
		t.Fatal(err)
	}
	d := h.none
	for block := range slices.Chunk(tokens, c.cfg.BlockSize) {
		d = h.block(d, block, adapter, salt)
		salt = ""
	}
	return d.Wire()
}

// checkPool compares the pool's references with what sequences hold.
func checkPool(t *rapid.T, c *Core) {
	refs := make(map[int32]int32)
	for _, s := range c.sequences {
		if len(s.nodes) > len(s.blocks) || s.computed > len(s.blocks)*c.cfg.BlockSize {
			t.Fatalf("sequence %d: %d tokens computed, %d blocks, %d visible", s.id, s.computed, len(s.blocks), len(s.nodes))
		}
		for i, id := range s.blocks {
			refs[id]++
			if i < len(s.nodes) && c.pool.blocks[id].node != s.nodes[i] {
				t.Fatalf("sequence %d: block %d has lost its content", s.id, id)
			}
		}
	}
	for id := range int32(c.pool.capacity()) {
		if got := c.pool.blocks[id].refs; got != refs[id] {
			t.Fatalf("block %d has %d references, sequences hold %d", id, got, refs[id])
		}
	}
	if s := c.Stats(); s.Running > c.cfg.MaxSeqs {
		t.Fatalf("%d sequences run, at most %d may", s.Running, c.cfg.MaxSeqs)
	}
	if s := c.Stats(); s.BlocksInUse != len(refs) || s.Running+s.Waiting != len(c.sequences) {
		t.Fatalf("stats %+v, %d blocks in use, %d sequences", s, len(refs), len(c.sequences))
	}
}

// coreMachine drives a Core and remembers what was asked of it.
type coreMachine struct {
	core     *Core
	reader   *reader
	now      time.Time
	asked    map[SequenceID]Request
	answers  map[SequenceID][]kvindex.TokenID
	byPrompt map[string][]kvindex.TokenID
}

func newCoreMachine(t *rapid.T) *coreMachine {
	c, err := New(Config{
		BlockSize:   4,
		Blocks:      rapid.IntRange(2, 16).Draw(t, "blocks"),
		MaxModelLen: 64,
		TokenBudget: rapid.IntRange(1, 24).Draw(t, "budget"),
		MaxSeqs:     rapid.IntRange(1, 4).Draw(t, "seqs"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &coreMachine{
		core: c, reader: newReader(), now: time.Unix(1000, 0),
		asked:    make(map[SequenceID]Request),
		answers:  make(map[SequenceID][]kvindex.TokenID),
		byPrompt: make(map[string][]kvindex.TokenID),
	}
}

// submit asks for a prompt that likely shares a prefix with earlier ones.
func (m *coreMachine) submit(t *rapid.T) {
	n := rapid.IntRange(1, 40).Draw(t, "prompt")
	prompt := make([]kvindex.TokenID, n)
	for i := range prompt {
		prompt[i] = kvindex.TokenID(i)
	}
	for range rapid.IntRange(0, 1).Draw(t, "change") {
		prompt[rapid.IntRange(0, n-1).Draw(t, "at")] = 1000
	}
	r := Request{
		Prompt:       prompt,
		OutputTokens: rapid.IntRange(1, 12).Draw(t, "outputs"),
		Adapter:      rapid.SampledFrom([]string{"", "", "ad"}).Draw(t, "adapter"),
		Salt:         rapid.SampledFrom([]string{"", "", "s"}).Draw(t, "salt"),
	}
	id, err := m.core.Submit(m.now, r)
	needed := (n + r.OutputTokens - 1 + 3) / 4
	if tooBig := needed > m.core.pool.capacity(); tooBig != (err != nil) {
		t.Fatalf("%d blocks needed of %d: error %v", needed, m.core.pool.capacity(), err)
	}
	if err == nil {
		m.asked[id] = r
	}
}

// end finishes a step and checks what it reports.
func (m *coreMachine) end(t *rapid.T, length time.Duration) {
	m.now = m.now.Add(length)
	r := m.core.End(m.now)
	if r.Duration != length {
		t.Fatalf("step took %v, begun with %v", r.Duration, length)
	}
	if n := r.PrefillTokens + r.DecodeTokens; n < 1 || n > m.core.cfg.TokenBudget {
		t.Fatalf("step computed %d tokens, budget %d", n, m.core.cfg.TokenBudget)
	}
	m.reader.apply(t, r.Events)
	seen := make(map[SequenceID]bool)
	for _, e := range r.Emitted {
		if _, alive := m.asked[e.ID]; !alive || seen[e.ID] {
			t.Fatalf("sequence %d emitted twice or after its end", e.ID)
		}
		seen[e.ID] = true
		m.answers[e.ID] = append(m.answers[e.ID], e.Token)
	}
	for _, f := range r.Finished {
		m.finish(t, f)
	}
}

func (m *coreMachine) finish(t *rapid.T, f Finished) {
	q := m.asked[f.ID]
	answer := m.answers[f.ID]
	delete(m.asked, f.ID)
	if len(answer) != q.OutputTokens || f.OutputTokens != q.OutputTokens || f.PromptTokens != len(q.Prompt) {
		t.Fatalf("sequence %d: %d tokens emitted, %d asked, summary %+v", f.ID, len(answer), q.OutputTokens, f)
	}
	if f.CachedTokens%4 != 0 || f.CachedTokens >= len(q.Prompt) {
		t.Fatalf("sequence %d: %d of %d prompt tokens cached", f.ID, f.CachedTokens, len(q.Prompt))
	}
	if f.Arrived.After(f.Admitted) || !f.Admitted.Before(f.FirstToken) || f.FirstToken.After(f.Done) {
		t.Fatalf("sequence %d: times out of order: %+v", f.ID, f)
	}
	key := fmt.Sprint(q.Prompt, q.Adapter)
	n := min(len(answer), len(m.byPrompt[key]))
	if !slices.Equal(answer[:n], m.byPrompt[key][:n]) {
		t.Fatalf("one prompt had the answers %v and %v", answer, m.byPrompt[key])
	}
	if len(answer) > n {
		m.byPrompt[key] = answer
	}
}

func TestCoreAgainstEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newCoreMachine(t)
		c := m.core
		t.Repeat(map[string]func(*rapid.T){
			"submit": m.submit,
			"step": func(t *rapid.T) {
				length, ok := c.Begin(m.now)
				if ok == (len(m.asked) == 0) {
					t.Fatalf("began %t with %d sequences", ok, len(m.asked))
				}
				if !ok {
					return
				}
				if rapid.IntRange(0, 4).Draw(t, "midway") == 0 {
					m.submit(t)
				}
				if len(m.asked) > 0 && rapid.IntRange(0, 4).Draw(t, "abort") == 0 {
					m.abort(t)
				}
				m.end(t, length)
			},
			"abort": func(t *rapid.T) {
				if len(m.asked) == 0 {
					t.Skip("nothing to abort")
				}
				m.abort(t)
			},
			"reset": func(t *rapid.T) {
				free := c.Stats().BlocksInUse == 0
				if got := c.Reset(); got != free {
					t.Fatalf("reset: %t with %d blocks in use", got, c.Stats().BlocksInUse)
				}
				if free && len(c.Held()) > 0 {
					t.Fatalf("%d blocks held after a reset", len(c.Held()))
				}
			},
			"": func(t *rapid.T) {
				checkPool(t, c)
				if c.PendingEvents() == 0 {
					m.reader.agree(t, c)
				}
			},
		})
		for steps := 0; len(m.asked) > 0; steps++ {
			length, ok := c.Begin(m.now)
			if !ok || steps > 10_000 {
				t.Fatalf("%d sequences never end", len(m.asked))
			}
			m.end(t, length)
		}
		checkPool(t, c)
		if _, ok := c.Begin(m.now); ok || c.Stats().BlocksInUse != 0 {
			t.Fatalf("not idle after the last sequence: %+v", c.Stats())
		}
	})
}

func (m *coreMachine) abort(t *rapid.T) {
	ids := make([]SequenceID, 0, len(m.asked))
	for id := range m.asked {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	id := rapid.SampledFrom(ids).Draw(t, "id")
	if !m.core.Abort(id) || m.core.Abort(id) {
		t.Fatalf("sequence %d: abort must succeed once", id)
	}
	delete(m.asked, id)
}
