package kvindex

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The history check: writers and readers run at full speed and note, by one
// logical clock, when each call began and ended. Afterwards every answer is
// judged. A walk is not atomic, so it promises this, for each publisher: every
// block it counted was held at some instant of the call, and the block that
// ended the count was missing at some instant of it.
type history struct {
	clock atomic.Int64
	mu    sync.Mutex
	// flips are the changes of one block of one life of a publisher, in order.
	flips map[life]map[BlockHash][]flip
	calls []call
}

// life is one incarnation of a publisher id.
type life struct {
	id          PublisherID
	incarnation uint32
}

type flip struct {
	held       bool
	begin, end int64
}

type call struct {
	chain      []BlockHash
	begin, end int64
	found      []Match
}

// heldWithin says whether the block may have been held at an instant of the
// window, missingWithin whether it may have been missing.
func (h *history) heldWithin(l life, b BlockHash, begin, end int64) bool {
	fs := h.flips[l][b]
	for i, f := range fs {
		until := int64(math.MaxInt64)
		if i+1 < len(fs) {
			until = fs[i+1].end
		}
		if f.held && f.begin <= end && until >= begin {
			return true
		}
	}
	return false
}

func (h *history) missingWithin(l life, b BlockHash, begin, end int64) bool {
	fs := h.flips[l][b]
	since := int64(math.MinInt64)
	for _, f := range fs {
		if f.held {
			if since <= end && f.end >= begin {
				return true
			}
			since = math.MaxInt64
		} else {
			since = f.begin
		}
	}
	return since <= end
}

func (h *history) judge(t *testing.T) {
	bad := 0
	fail := func(format string, args ...any) {
		if bad++; bad < 10 {
			t.Errorf(format, args...)
		}
	}
	counted := 0
	for _, c := range h.calls {
		seen := map[life]bool{}
		for _, m := range c.found {
			l := life{m.ID, m.Incarnation}
			if seen[l] {
				fail("publisher %v twice in one answer", l)
			}
			seen[l] = true
			counted += int(m.Device)
			for i, b := range c.chain[:m.Device] {
				if !h.heldWithin(l, b, c.begin, c.end) {
					fail("publisher %v: block %d of %d counted, but not held at any instant of [%d,%d]: %v", l, i, m.Device, c.begin, c.end, h.flips[l][b])
				}
			}
			if int(m.Device) < len(c.chain) && !h.missingWithin(l, c.chain[m.Device], c.begin, c.end) {
				fail("publisher %v: block %d ended the count, but was held at every instant of [%d,%d]: %v", l, m.Device, c.begin, c.end, h.flips[l][c.chain[m.Device]])
			}
		}
		for l := range h.flips {
			if !seen[l] && !h.missingWithin(l, c.chain[0], c.begin, c.end) {
				fail("publisher %v left out, but it held the first block at every instant of [%d,%d]", l, c.begin, c.end)
			}
		}
	}
	if bad > 0 {
		t.Errorf("%d violations in %d answers", bad, len(h.calls))
	}
	if counted == 0 {
		t.Error("no answer counted a block: the test says nothing")
	}
}

// historian is one writer with the notes that it takes.
type historian struct {
	*history
	rng    *rand.Rand
	ix     *Index
	w      *Writer
	life   life
	held   map[BlockHash]bool
	chains [][]BlockHash
	root   BlockHash
	name   func(BlockHash) EngineHash
}

// note runs a change and files what it did, which do returns.
func (x *historian) note(do func() map[BlockHash]bool) {
	begin := x.clock.Add(1)
	changed := do()
	end := x.clock.Add(1)
	x.mu.Lock()
	defer x.mu.Unlock()
	for b, held := range changed {
		if x.held[b] == held {
			continue
		}
		x.held[b] = held
		if x.flips[x.life] == nil {
			x.flips[x.life] = map[BlockHash][]flip{}
		}
		x.flips[x.life][b] = append(x.flips[x.life][b], flip{held, begin, end})
	}
}

func (x *historian) step(t *testing.T) {
	chain := x.chains[x.rng.IntN(len(x.chains))]
	from := x.rng.IntN(len(chain))
	to := from + 1 + x.rng.IntN(len(chain)-from)
	if x.rng.IntN(2) == 0 {
		from = 0
	}
	switch n := x.rng.IntN(100); {
	case n < 50:
		s := Stored{Root: x.root}
		if from > 0 {
			s.HasParent, s.Parent = true, x.name(chain[from-1])
			if !x.held[chain[from-1]] {
				return // it would wait for its parent: another test's matter
			}
		}
		changed := map[BlockHash]bool{}
		before := x.root
		if from > 0 {
			before = chain[from-1]
		}
		for _, b := range chain[from:to] {
			s.Names = append(s.Names, x.name(b))
			s.Contents = append(s.Contents, Unmix(before, b))
			before = b
			changed[b] = true
		}
		x.note(func() map[BlockHash]bool { x.w.Store(s); return changed })
	case n < 96:
		var names []EngineHash
		changed := map[BlockHash]bool{}
		for _, b := range slices.Backward(chain[from:to]) {
			names = append(names, x.name(b))
			changed[b] = false
		}
		x.note(func() map[BlockHash]bool { x.w.Remove(names, TierDevice, 0); return changed })
	default:
		gone := map[BlockHash]bool{}
		for b := range x.held {
			gone[b] = false
		}
		if n < 98 {
			x.note(func() map[BlockHash]bool { x.w.Clear(); return gone })
			return
		}
		x.note(func() map[BlockHash]bool { x.w.Close(); return gone })
		x.life.incarnation++
		x.held = map[BlockHash]bool{}
		x.open(t)
	}
}

func (x *historian) open(t *testing.T) {
	w, err := x.ix.Open(Publisher{ID: x.life.id, Endpoint: EndpointID(x.life.id), Incarnation: x.life.incarnation})
	if err != nil {
		t.Error(err)
		return
	}
	x.w = w
}

// runHistory lets writers and readers loose on chains that fork everywhere.
func runHistory(t *testing.T, seed uint64, writers, readers, steps int, private bool) {
	t.Logf("seed %d", seed)
	ix, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ix.remember = 8 // segments come and go
	h := &history{flips: map[life]map[BlockHash][]flip{}}
	rng := rand.New(rand.NewPCG(seed, 1))
	var contents [][]ContentHash
	var chains [][]BlockHash
	for range 6 {
		var c []ContentHash
		if len(contents) > 0 {
			from := contents[rng.IntN(len(contents))]
			c = slices.Clone(from[:rng.IntN(len(from))])
		}
		for n := 20 + rng.IntN(120); len(c) < n; {
			c = append(c, ContentHash(rng.Uint64()))
		}
		contents = append(contents, c)
		chains = append(chains, AppendChain(nil, machineRoot, c))
	}
	var wg, rg sync.WaitGroup
	var done atomic.Bool
	for i := range writers {
		x := &historian{
			history: h, rng: rand.New(rand.NewPCG(seed, uint64(i)+2)), ix: ix, life: life{PublisherID(i), 1},
			held: map[BlockHash]bool{}, chains: chains, root: machineRoot,
			name: func(b BlockHash) EngineHash {
				if private {
					return EngineHash(b) * EngineHash(2*i+3)
				}
				return EngineHash(b) * 3
			},
		}
		x.open(t)
		wg.Go(func() {
			for range steps {
				x.step(t)
			}
		})
	}
	for i := range readers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)+1000))
		rg.Go(func() {
			var calls []call
			ask := func(chain []BlockHash) {
				c := call{chain: chain}
				c.begin = h.clock.Add(1)
				c.found = ix.Match(nil, c.chain, time.Unix(0, 0), nil)
				c.end = h.clock.Add(1)
				calls = append(calls, c)
			}
			for !done.Load() && len(calls) < 20*steps {
				chain := chains[rng.IntN(len(chains))]
				ask(chain[:1+rng.IntN(len(chain))])
			}
			// However the scheduler mixed the two, what the writers left is looked at.
			wg.Wait()
			for _, chain := range chains {
				ask(chain)
			}
			h.mu.Lock()
			h.calls = append(h.calls, calls...)
			h.mu.Unlock()
		})
	}
	wg.Wait()
	done.Store(true)
	rg.Wait()
	h.judge(t)
	if err := ix.audit(); err != nil {
		t.Error(err)
	}
}

func TestIndex_HistoryOfConcurrentCalls(t *testing.T) {
	scheduleAtGaps(t)
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			runHistory(t, seed, 4, 2, 400, seed%2 == 1)
		})
	}
}
