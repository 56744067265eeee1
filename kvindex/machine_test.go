package kvindex

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// machine plays random events against the index and the model.
type machine struct {
	ix      *Index
	model   *model
	writers map[PublisherID]*Writer
	chains  [][]ContentHash
	now     time.Time
	request uint64
	// many lets a block have several names, and names mean nothing in common
	// between publishers.
	many     bool
	remember bool
	next     uint32 // incarnation
	// also is given what is done to a publisher's Writer, reopened what was
	// closed and opened again; nil: nobody is.
	also     func(id PublisherID, do func(*Writer))
	reopened func(id PublisherID)
}

const (
	machinePublishers = 5
	machineRoot       = BlockHash(0x5eed)
	machineTTL        = time.Second
)

func newMachine(t *rapid.T) *machine {
	ix, err := New(Config{PredictionTTL: machineTTL})
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{
		ix: ix, model: newModel(), writers: map[PublisherID]*Writer{}, now: time.Unix(1000, 0),
		remember: rapid.Bool().Draw(t, "remember"),
	}
	if m.many = m.remember && rapid.Bool().Draw(t, "many names"); !m.remember {
		ix.remember = 0
	} else {
		ix.remember = 1 << 20
	}
	for id := range PublisherID(machinePublishers) {
		m.open(t, id)
	}
	return m
}

func (m *machine) open(t *rapid.T, id PublisherID) {
	m.next++
	p := Publisher{ID: id, Endpoint: EndpointID(id / 2), Incarnation: m.next}
	w, err := m.ix.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	mp := &modelPub{Publisher: p}
	mp.clear()
	m.writers[id], m.model.pubs[id] = w, mp
}

// chain draws a chain that mostly shares a prefix with one drawn before.
func (m *machine) chain(t *rapid.T) []ContentHash {
	if len(m.chains) > 0 && rapid.IntRange(0, 9).Draw(t, "old chain") > 0 {
		return rapid.SampledFrom(m.chains).Draw(t, "chain")
	}
	var c []ContentHash
	if len(m.chains) > 0 {
		from := rapid.SampledFrom(m.chains).Draw(t, "from")
		c = slices.Clone(from[:rapid.IntRange(0, len(from)).Draw(t, "cut")])
	}
	n := rapid.SampledFrom([]int{1, 2, 3, 10, 63, 64, 65, 130}).Draw(t, "grow")
	salt := ContentHash(rapid.IntRange(0, 2).Draw(t, "salt")) + 1
	for range n {
		c = append(c, salt)
	}
	m.chains = append(m.chains, c)
	return c
}

// name is what publisher id calls block i of a chain.
func (m *machine) name(t *rapid.T, id PublisherID, chain []BlockHash, i int) EngineHash {
	n := EngineHash(chain[i]) * 3
	if m.many {
		switch rapid.IntRange(0, 19).Draw(t, "naming") {
		case 0, 1, 2:
			n += 1 // a second name
		case 3, 4:
			n += EngineHash(id+2) << 32 // a private one
		case 5:
			n = EngineHash(rapid.IntRange(0, 3).Draw(t, "id")) // a reused one, and 0
		}
	}
	return n
}

// kind draws mostly the device tier and the first group.
func (m *machine) kind(t *rapid.T) (Tier, uint8) {
	if rapid.IntRange(0, 2).Draw(t, "plain") > 0 {
		return TierDevice, 0
	}
	tier := rapid.SampledFrom([]Tier{TierHost, TierHost, TierDevice, TierExternal}).Draw(t, "tier")
	return tier, uint8(rapid.SampledFrom([]int{0, 0, 0, 7}).Draw(t, "group"))
}

func (m *machine) run(t *rapid.T) (id PublisherID, chain []BlockHash, contents []ContentHash, from, to int) {
	id = PublisherID(rapid.IntRange(0, machinePublishers-1).Draw(t, "publisher"))
	contents = m.chain(t)
	chain = AppendChain(nil, machineRoot, contents)
	from = rapid.IntRange(0, len(chain)-1).Draw(t, "at")
	if rapid.Bool().Draw(t, "from the start") {
		from = 0
	}
	to = rapid.IntRange(from+1, len(chain)).Draw(t, "to")
	return id, chain, contents, from, to
}

func (m *machine) store(t *rapid.T) {
	id, chain, contents, from, to := m.run(t)
	s := Stored{Root: machineRoot, Contents: contents[from:to]}
	s.Tier, s.Group = m.kind(t)
	if from > 0 {
		s.HasParent, s.Parent = true, m.name(t, id, chain, from-1)
	}
	for i := from; i < to; i++ {
		s.Names = append(s.Names, m.name(t, id, chain, i))
	}
	if rapid.IntRange(0, 7).Draw(t, "update") == 0 {
		s.Contents = nil
	}
	got, want := m.writers[id].Store(s), m.model.pubs[id].store(s)
	m.model.pubs[id].forget(m.remember)
	if got != want {
		t.Fatalf("store: %d unplaced, want %d", got, want)
	}
	m.twice(id, func(w *Writer) { w.Store(s) })
}

func (m *machine) removed(t *rapid.T) {
	id, chain, _, from, to := m.run(t)
	var names []EngineHash
	for i := from; i < to; i++ {
		names = append(names, m.name(t, id, chain, i))
	}
	if rapid.Bool().Draw(t, "leaf first") {
		slices.Reverse(names)
	}
	if len(names) > 3 && rapid.Bool().Draw(t, "few") {
		names = names[:3]
	}
	tier, group := m.kind(t)
	got, want := m.writers[id].Remove(names, tier, group), m.model.pubs[id].remove(names, tier, group, m.remember)
	if got != want {
		t.Fatalf("remove: %d unknown, want %d", got, want)
	}
	m.twice(id, func(w *Writer) { w.Remove(names, tier, group) })
}

func (m *machine) twice(id PublisherID, do func(*Writer)) {
	if m.also != nil {
		m.also(id, do)
	}
}

func (m *machine) clear(t *rapid.T) {
	id := PublisherID(rapid.IntRange(0, machinePublishers-1).Draw(t, "publisher"))
	if rapid.Bool().Draw(t, "reopen") {
		m.writers[id].Close()
		delete(m.model.pubs, id)
		last := true
		for _, p := range m.model.pubs {
			last = last && p.Endpoint != EndpointID(id/2)
		}
		if last {
			delete(m.model.expected, EndpointID(id/2))
		}
		m.open(t, id)
		if m.reopened != nil {
			m.reopened(id)
		}
		return
	}
	m.writers[id].Clear()
	m.twice(id, (*Writer).Clear)
	m.model.pubs[id].clear()
}

func (m *machine) predict(t *rapid.T) {
	chain := AppendChain(nil, machineRoot, m.chain(t))
	chain = chain[:rapid.IntRange(1, len(chain)).Draw(t, "length")]
	e := EndpointID(rapid.IntRange(0, machinePublishers/2).Draw(t, "endpoint"))
	m.request++
	if !m.ix.Predict(e, m.request, chain, m.now) {
		t.Fatalf("endpoint %d has no publisher", e)
	}
	m.model.expected[e] = append(m.model.expected[e], modelPrediction{m.request, chain, m.now.Add(machineTTL)})
}

func (m *machine) unpredict(t *rapid.T) {
	e := EndpointID(rapid.IntRange(0, machinePublishers/2).Draw(t, "endpoint"))
	live := m.model.expected[e]
	if len(live) == 0 {
		t.Skip()
	}
	i := rapid.IntRange(0, len(live)-1).Draw(t, "prediction")
	p := live[i]
	m.model.expected[e] = slices.Delete(live, i, i+1)
	if to := EndpointID(rapid.IntRange(0, machinePublishers/2).Draw(t, "to")); to != e {
		if !m.ix.Move(p.request, e, to, m.now) {
			t.Fatalf("move %d: not found", p.request)
		}
		p.until = m.now.Add(machineTTL)
		m.model.expected[to] = append(m.model.expected[to], p)
		return
	}
	if !m.ix.Drop(e, p.request) {
		t.Fatalf("drop %d: not found", p.request)
	}
}

// pass lets every prediction end.
func (m *machine) pass(*rapid.T) {
	m.now = m.now.Add(machineTTL)
	for e := range m.model.expected {
		delete(m.model.expected, e)
	}
	for e := range EndpointID(machinePublishers) {
		if x := m.ix.endpoint(e); x != nil {
			m.ix.world.RLock()
			m.ix.expire(x, m.now)
			m.ix.world.RUnlock()
			x.mu.Unlock()
		}
	}
}

func (m *machine) check(t *rapid.T) {
	for _, contents := range m.chains[max(0, len(m.chains)-8):] {
		chain := AppendChain(nil, machineRoot, contents)
		m.compare(t, chain)
		m.compare(t, append(chain, 12345))
	}
	m.sizes(t)
	if err := m.ix.audit(); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) compare(t *rapid.T, chain []BlockHash) {
	want := m.model.match(chain, m.now)
	got := map[PublisherID]Match{}
	for _, r := range m.ix.Match(nil, chain, m.now, nil) {
		if _, twice := got[r.ID]; twice {
			t.Fatalf("publisher %d twice", r.ID)
		}
		got[r.ID] = r
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("match of %d blocks (-want +got):\n%s", len(chain), d)
	}
}

func (m *machine) sizes(t *rapid.T) {
	s := m.ix.Stats()
	anyone := map[BlockHash]bool{}
	pairs := 0
	for i, p := range s.Publishers {
		if int(p.ID) != i {
			t.Fatalf("publisher %d at place %d", p.ID, i)
		}
		mp := m.model.pubs[p.ID]
		var want [NumTiers]int
		var hashes []BlockHash
		for b, on := range mp.tiers() {
			hashes = append(hashes, b)
			anyone[b] = true
			for tier, held := range on {
				if held {
					want[tier]++
				}
			}
		}
		pairs += len(hashes)
		if p.Held != len(hashes) || p.Tiers != want || p.Names != len(mp.known) || p.Orphans != len(mp.orphans) || p.Spares != len(mp.spares) {
			t.Fatalf("publisher %d: stats %+v, want held %d tiers %v names %d orphans %d spares %d", p.ID, p, len(hashes), want, len(mp.known), len(mp.orphans), len(mp.spares))
		}
		got := m.ix.AppendHeld(nil, p.ID)
		slices.Sort(got)
		slices.Sort(hashes)
		if !slices.Equal(got, hashes) {
			t.Fatalf("publisher %d: holds %x, want %x", p.ID, got, hashes)
		}
	}
	if s.Blocks != len(anyone) || s.Held != pairs {
		t.Fatalf("%d blocks %d pairs, want %d and %d", s.Blocks, s.Held, len(anyone), pairs)
	}
}

func TestIndex_IsTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		t.Repeat(map[string]func(*rapid.T){
			"store": m.store, "store more": m.store, "remove": m.removed, "clear": m.clear,
			"predict": m.predict, "unpredict": m.unpredict, "pass": m.pass, "": m.check,
		})
	})
}

// audit checks the invariants that doc.go states.
func (ix *Index) audit() error {
	ix.world.Lock()
	defer ix.world.Unlock()
	seen := map[uint64]uint32{}
	names := map[EngineHash]uint32{}
	pairs := 0
	segments := 0
	var err error
	fail := func(format string, args ...any) {
		if err == nil {
			err = fmt.Errorf(format, args...)
		}
	}
	ix.eachSegment(func(id uint32, h *head) {
		segments++
		s := span(h[hSpan])
		hashes, slots := ix.hashes(s), ix.names(s)
		if got, _ := ix.find(BlockHash(hashes[0])); got != id {
			fail("segment %d: the map has %d for its first block", id, got)
		}
		if h[hLast] != hashes[s.len()-1] {
			fail("segment %d: last block is not the last", id)
		}
		var live, named uint64
		ix.each(h, func(k key, e entry) {
			live |= *e.held
			if k.kind() != kindHint {
				live |= *e.second
			}
			if k.kind() == kindBase {
				named |= *e.second
			}
			for m := *e.held; m != 0; m &= m - 1 {
				pairs++
			}
		})
		for i := range s.len() {
			ref := makeRef(id, i)
			if other := seen[hashes[i]]; other != 0 {
				fail("block %x is at %d and %d", hashes[i], other, ref)
			}
			seen[hashes[i]] = ref
			if (slots[i] != 0) != (named>>i&1 == 1) {
				fail("segment %d block %d: name %x, announced %v", id, i, slots[i], named>>i&1 == 1)
			}
			if n := EngineHash(slots[i]); n != 0 {
				if other := names[n]; other != 0 {
					fail("name %x denotes %d and %d", n, other, ref)
				}
				names[n] = ref
				hash := hashName(n)
				var c cursor
				for {
					r := ix.shared.shards[hash%nameShards].find(tagOf(hash), &c)
					if r == ref {
						break
					}
					if r == 0 {
						fail("name %x of %d is not in the table", n, ref)
						break
					}
				}
			}
		}
		if live>>(s.len()-1) != 1 {
			fail("segment %d: %d blocks, live %b", id, s.len(), live)
		}
	})
	entries := 0
	for i := range ix.shared.shards {
		for _, s := range ix.shared.shards[i].slots {
			if s&^passed != 0 {
				entries++
			}
		}
	}
	if entries != len(names) {
		fail("%d entries for %d names", entries, len(names))
	}
	if n := ix.segs.Size(); n != segments {
		fail("%d segments, the map has %d", segments, n)
	}
	if n := int(ix.held.Load()); n != pairs {
		fail("%d mask bits, the count is %d", pairs, n)
	}
	return err
}
