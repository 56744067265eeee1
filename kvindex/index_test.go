package kvindex

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func FuzzIndex_IsTheModel(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		m := newMachine(t)
		t.Repeat(map[string]func(*rapid.T){
			"store": m.store, "store more": m.store, "remove": m.removed, "clear": m.clear,
			"predict": m.predict, "unpredict": m.unpredict, "pass": m.pass, "": m.check,
		})
	}))
}

// prompt is a chain with the names that one engine gives its blocks.
type prompt struct {
	contents []ContentHash
	chain    []BlockHash
	names    []EngineHash
}

func newPrompt(seed uint64, n int) prompt {
	rng := rand.New(rand.NewPCG(seed, seed))
	var p prompt
	for range n {
		p.contents = append(p.contents, ContentHash(rng.Uint64()))
		p.names = append(p.names, EngineHash(rng.Uint64()))
	}
	p.chain = AppendChain(nil, machineRoot, p.contents)
	return p
}

// stored is the event that tells of blocks [from,to).
func (p prompt) stored(from, to int) Stored {
	s := Stored{Root: machineRoot, Names: p.names[from:to], Contents: p.contents[from:to]}
	if from > 0 {
		s.HasParent, s.Parent = true, p.names[from-1]
	}
	return s
}

func open(t *testing.T, ix *Index, id PublisherID) *Writer {
	t.Helper()
	w, err := ix.Open(Publisher{ID: id, Endpoint: EndpointID(id)})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func newIndex(t *testing.T, cfg Config) *Index {
	t.Helper()
	ix, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return ix
}

func device(ix *Index, chain []BlockHash, id PublisherID) int {
	for _, m := range ix.Match(nil, chain, time.Unix(0, 0), nil) {
		if m.ID == id {
			return int(m.Device)
		}
	}
	return 0
}

func TestMatch_AllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	ix, _, chain := filled(t, 300, 64, 512)
	dst := make([]Match, 0, 300)
	want := func(p Publisher) bool { return p.ID%2 == 0 }
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"all", func() { dst = ix.Match(dst[:0], chain, time.Unix(0, 0), nil) }},
		{"filtered", func() { dst = ix.Match(dst[:0], chain, time.Unix(0, 0), want) }},
		{"nothing held", func() { dst = ix.Match(dst[:0], chain[1:], time.Unix(0, 0), nil) }},
	} {
		if n := testing.AllocsPerRun(100, c.f); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

func TestMatch_RichSegmentsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	ix, ws, chain := filled(t, 50, 64, 200)
	ws[1].Store(Stored{Names: []EngineHash{EngineHash(hashName(100_001))}, Tier: TierHost})
	if !ix.Predict(3, 1, chain, time.Unix(0, 0)) {
		t.Fatal("not predicted")
	}
	dst := make([]Match, 0, 50)
	if n := testing.AllocsPerRun(100, func() { dst = ix.Match(dst[:0], chain, time.Unix(0, 1), nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestHasher_AllocatesNothing(t *testing.T) {
	h := NewHasher(7)
	tokens := make([]TokenID, 512*16)
	contents, chain := make([]ContentHash, 0, 512), make([]BlockHash, 0, 512)
	if n := testing.AllocsPerRun(100, func() {
		contents = h.AppendContents(contents[:0], tokens, 16)
		chain = AppendChain(chain[:0], machineRoot, contents)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestWriter_SteadyStoreAndRemoveAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	ix, ws, _ := filled(t, 2, 64, 64)
	p := newPrompt(3, 40)
	s := p.stored(0, 40)
	for range 50 {
		ws[0].Store(s)
		ws[0].Remove(s.Names, TierDevice, 0)
	}
	if n := testing.AllocsPerRun(200, func() {
		ws[0].Store(s)
		ws[0].Remove(s.Names, TierDevice, 0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := ix.audit(); err != nil {
		t.Error(err)
	}
}

func TestMatch_UpTo4096Endpoints(t *testing.T) {
	for _, n := range []int{1, 2, 65, 255, 256, 4096} {
		ix, ws, chain := filled(t, n, 70, 130)
		got := map[PublisherID]uint32{}
		for _, m := range ix.Match(nil, chain, time.Unix(0, 0), nil) {
			got[m.ID] = m.Device
		}
		for id := range n {
			want := uint32(70)
			if id == 0 {
				want = 130
			}
			if got[PublisherID(id)] != want {
				t.Fatalf("%d endpoints: publisher %d has %d blocks, want %d", n, id, got[PublisherID(id)], want)
			}
		}
		ws[n/2].Clear()
		if got := device(ix, chain, PublisherID(n/2)); got != 0 {
			t.Fatalf("%d endpoints: %d blocks after a clear", n, got)
		}
	}
}

// A shared name speaks only for publishers that announced it.
func TestRemove_NameThatThePublisherNeverAnnounced(t *testing.T) {
	ix := newIndex(t, Config{})
	p := newPrompt(1, 10)
	a, b := open(t, ix, 1), open(t, ix, 2)
	a.Store(p.stored(0, 10))
	other := p
	other.names = newPrompt(2, 10).names
	b.Store(other.stored(0, 10))
	if got := b.Remove(p.names, TierDevice, 0); got != 10 {
		t.Errorf("%d unknown, want 10", got)
	}
	if got := b.Store(Stored{HasParent: true, Parent: p.names[9], Names: []EngineHash{5}, Contents: []ContentHash{5}}); got != 1 {
		t.Errorf("%d unplaced behind a parent that only another publisher announced, want 1", got)
	}
	for id := range PublisherID(2) {
		if got := device(ix, p.chain, id+1); got != 10 {
			t.Errorf("publisher %d holds %d blocks, want 10", id+1, got)
		}
	}
}

// An engine may remove a parent and store its child in one batch.
func TestStore_ChildOfAParentJustRemoved(t *testing.T) {
	ix := newIndex(t, Config{})
	p := newPrompt(1, 10)
	w := open(t, ix, 1)
	w.Store(p.stored(0, 5))
	w.Remove(p.names[4:5], TierDevice, 0)
	if got := w.Store(p.stored(5, 10)); got != 0 {
		t.Errorf("%d unplaced, want 0", got)
	}
	if got := device(ix, p.chain, 1); got != 4 {
		t.Errorf("%d blocks, want the 4 before the hole", got)
	}
	w.Store(p.stored(4, 5))
	if got := device(ix, p.chain, 1); got != 10 {
		t.Errorf("%d blocks after the hole healed, want 10", got)
	}
}

// A block that was parked behind one parent and then behind another belongs to
// the latter only, whichever arrives first.
func TestStore_OrphanParkedAnew(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	before, after, kid := newPrompt(1, 1), newPrompt(2, 1), newPrompt(3, 1)
	for _, p := range []prompt{before, after} {
		w.Store(Stored{HasParent: true, Parent: p.names[0], Names: kid.names, Contents: kid.contents})
	}
	for _, c := range []struct {
		prompt
		want int
	}{{before, 1}, {after, 2}} {
		w.Store(c.stored(0, 1))
		if got := device(ix, AppendChain(c.chain, c.chain[0], kid.contents), 1); got != c.want {
			t.Errorf("%d blocks, want %d", got, c.want)
		}
	}
}

func TestRemove_NamesAreForgottenInTime(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	for seed := range uint64(50) {
		p := newPrompt(seed, 100)
		w.Store(p.stored(0, 100))
		slices.Reverse(p.names)
		w.Remove(p.names, TierDevice, 0)
	}
	if s := ix.Stats(); s.Publishers[0].Names > 2*remembered || s.Held != 0 || s.Segments > 2*remembered {
		t.Errorf("after everything was removed: %+v", s)
	}
}

// An engine with two copies of a block that removes one goes on naming it as a
// parent, however much else it has removed since.
func TestStore_BehindAParentRemovedAWhileAgo(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	parent, other, kid := newPrompt(1, 5), newPrompt(2, 900), newPrompt(3, 3)
	w.Store(parent.stored(0, 5))
	w.Remove(parent.names[4:], TierDevice, 0)
	w.Store(other.stored(0, len(other.names)))
	for i := range other.names {
		w.Remove(other.names[len(other.names)-1-i:len(other.names)-i], TierDevice, 0)
	}
	w.Store(Stored{HasParent: true, Parent: parent.names[4], Names: kid.names, Contents: kid.contents})
	if s := ix.Stats(); s.Held != 4+3 || s.Publishers[0].Orphans != 0 {
		t.Errorf("%d blocks held and %d waiting, want 7 and 0", s.Held, s.Publishers[0].Orphans)
	}
}

func TestStore_TooManyOrphansMakeThePublisherIncomplete(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	w.SetTrust(TrustExact)
	p := newPrompt(1, maxOrphans+2)
	w.Store(p.stored(1, maxOrphans+1))
	if s := ix.Stats().Publishers[0]; s.Orphans != maxOrphans || s.Trust != TrustExact {
		t.Fatalf("%d orphans, trust %v", s.Orphans, s.Trust)
	}
	w.Store(Stored{HasParent: true, Parent: 1, Names: []EngineHash{2}, Contents: []ContentHash{2}})
	if s := ix.Stats().Publishers[0]; s.Orphans != maxOrphans || s.Dropped != 1 || s.Trust != TrustIncomplete {
		t.Fatalf("%d orphans, %d dropped, trust %v", s.Orphans, s.Dropped, s.Trust)
	}
	w.Store(p.stored(0, 1))
	if got := device(ix, p.chain, 1); got != maxOrphans+1 {
		t.Errorf("%d blocks once the parent came, want %d", got, maxOrphans+1)
	}
}

// Beyond the bound the coldest go, never more is answered than is held, and
// who lost something says so.
func TestStore_BoundEvictsTheColdest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const bound = 2000
		ix, err := New(Config{MaxBlocks: bound})
		if err != nil {
			t.Fatal(err)
		}
		private := rapid.Bool().Draw(t, "private names")
		var ws []*Writer
		for id := range PublisherID(3) {
			w, err := ix.Open(Publisher{ID: id, Endpoint: EndpointID(id)})
			if err != nil {
				t.Fatal(err)
			}
			w.SetTrust(TrustExact)
			ws = append(ws, w)
		}
		var prompts []prompt
		var stored [3]int
		for i := range rapid.IntRange(20, 60).Draw(t, "prompts") {
			p := newPrompt(uint64(i), rapid.IntRange(1, 200).Draw(t, "blocks"))
			prompts = append(prompts, p)
			for id := range rapid.IntRange(1, 3).Draw(t, "holders") {
				s := p.stored(0, len(p.chain))
				if private {
					s.Names = slices.Clone(s.Names)
					for j := range s.Names {
						s.Names[j] += EngineHash(id)
					}
				}
				ws[id].Store(s)
				stored[id] += len(p.chain)
			}
			ix.Predict(0, uint64(i), p.chain, time.Unix(int64(i), 0))
			if err := ix.audit(); err != nil {
				t.Fatal(err)
			}
			if got := int(ix.held.Load()); got > bound {
				t.Fatalf("%d held, bound %d", got, bound)
			}
			if got := device(ix, p.chain, 0); got != len(p.chain) {
				t.Fatalf("the newest prompt has %d of %d blocks", got, len(p.chain))
			}
		}
		s := ix.Stats()
		for id, p := range s.Publishers {
			if lost := p.Held < stored[id]; lost != (p.Trust == TrustIncomplete) {
				t.Fatalf("publisher %d holds %d of %d and is %v", id, p.Held, stored[id], p.Trust)
			}
			if p.Held != ws[id].pairs {
				t.Fatalf("publisher %d holds %d, counts %d", id, p.Held, ws[id].pairs)
			}
		}
		// Names of what was evicted mean nothing any more.
		last := len(ws) - 1
		held := map[BlockHash]bool{}
		for _, b := range ix.AppendHeld(nil, PublisherID(last)) {
			held[b] = true
		}
		for _, p := range prompts {
			want := 0
			for _, b := range p.chain {
				if !held[b] {
					want++
				}
			}
			names := slices.Clone(p.names)
			for i := range names {
				if private {
					names[i] += EngineHash(last)
				}
			}
			if got := ws[last].Remove(names, TierDevice, 0); got != want {
				t.Fatalf("%d unknown names of a prompt, want %d", got, want)
			}
		}
		if err := ix.audit(); err != nil {
			t.Fatal(err)
		}
		for _, w := range ws { // what is left can still be removed and cleared
			w.Clear()
		}
		for id := range EndpointID(3) {
			ix.Approximate(id, 1)
		}
		ix.Predict(0, 0, prompts[0].chain[:1], time.Unix(1e6, 0))
		ix.Drop(0, 0)
		if err := ix.audit(); err != nil {
			t.Fatal(err)
		}
		if s := ix.Stats(); s.Held != 0 || s.Blocks != 0 {
			t.Fatalf("after clears: %+v", s)
		}
	})
}

func TestApproximate_KeepsTheLatest(t *testing.T) {
	ix := newIndex(t, Config{PredictionTTL: time.Second})
	open(t, ix, 1)
	ix.Approximate(1, 250)
	var ps []prompt
	for i := range 5 {
		p := newPrompt(uint64(i), 100)
		ps = append(ps, p)
		if !ix.Predict(1, uint64(i), p.chain, time.Unix(int64(i), 0)) {
			t.Fatal("not predicted")
		}
	}
	for i, p := range ps {
		want := uint32(0)
		if i >= 3 {
			want = 100
		}
		got := uint32(0)
		for _, m := range ix.Match(nil, p.chain, time.Unix(1e6, 0), nil) {
			got = m.Predicted
			if m.Confirmed != 0 || m.Device != 0 {
				t.Errorf("prompt %d: a prediction counts as held: %+v", i, m)
			}
		}
		if got != want {
			t.Errorf("prompt %d: %d blocks expected, want %d", i, got, want)
		}
	}
}

func TestPredict_EndsByItself(t *testing.T) {
	ix := newIndex(t, Config{PredictionTTL: time.Second})
	open(t, ix, 1)
	p := newPrompt(1, 70)
	now := time.Unix(100, 0)
	ix.Predict(1, 1, p.chain, now)
	for _, c := range []struct {
		after time.Duration
		want  int
	}{{0, 1}, {time.Second - 1, 1}, {time.Second, 0}} {
		if got := len(ix.Match(nil, p.chain, now.Add(c.after), nil)); got != c.want {
			t.Errorf("after %v: %d matches, want %d", c.after, got, c.want)
		}
	}
	if ix.Predict(2, 1, p.chain, now) {
		t.Error("predicted for an endpoint without a publisher")
	}
}

func TestAppendHeldBlocks_TellsWhatASnapshotNeeds(t *testing.T) {
	ix := newIndex(t, Config{})
	p := newPrompt(1, 130)
	w := open(t, ix, 1)
	ix.Predict(1, 1, p.chain, time.Unix(0, 0)) // makes the segments first
	w.Store(p.stored(0, 130))
	w.Store(Stored{Names: p.names[:2], Tier: TierHost})
	got := ix.AppendHeldBlocks(nil, 1)
	want := map[BlockHash]HeldBlock{}
	for i, b := range p.chain {
		h := HeldBlock{Hash: b, Parent: machineRoot, Tiers: 1 << TierDevice}
		if i > 0 {
			h.Parent = p.chain[i-1]
		}
		if i < 2 {
			h.Tiers |= 1 << TierHost
		}
		want[b] = h
	}
	index := map[BlockHash]HeldBlock{}
	for _, h := range got {
		index[h.Hash] = h
		if i := slices.Index(p.chain, h.Hash); i < 0 || h.Content() != p.contents[i] {
			t.Fatalf("block %d: content %x", i, h.Content())
		}
	}
	if d := cmp.Diff(want, index); d != "" || len(got) != 130 {
		t.Errorf("%d blocks (-want +got):\n%s", len(got), d)
	}
}

func TestOpen_RefusesAnOpenID(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	if _, err := ix.Open(Publisher{ID: 1}); err == nil {
		t.Error("opened twice")
	}
	w.Close()
	open(t, ix, 1)
}

func TestConfig_ValidateNamesEveryFault(t *testing.T) {
	err := Config{MaxBlocks: -1, PredictionTTL: -time.Second}.Validate()
	if err == nil || !strings.Contains(err.Error(), "max_blocks: -1") || !strings.Contains(err.Error(), "prediction_ttl: -1s") {
		t.Errorf("got %v", err)
	}
	if err := (Config{MaxBlocks: maxMaxBlocks + 1}).Validate(); err == nil {
		t.Error("accepted more blocks than there are addresses")
	}
}

func TestHead_IsACacheLine(t *testing.T) {
	if n := len(head{}) * 8; n != 64 {
		t.Errorf("%d bytes", n)
	}
	for class := range numClasses - 1 {
		n := listCap(class)
		if words := n + (n+1)/2 + n; words > unitWords<<class {
			t.Errorf("class %d: %d entries take %d words of %d", class, n, words, unitWords<<class)
		}
	}
}

// On the device tier engines announce again what they hold; offload tiers
// announce every copy (LMCache and vLLM's OffloadingConnector repeat hashes
// that chunks share).
func TestRemove_CopiesByTier(t *testing.T) {
	for _, c := range []struct {
		name  string
		tier  Tier
		times int
		// left are the blocks held after each of three removals, suppressed the
		// removals absorbed.
		left       [3]uint32
		suppressed uint64
	}{
		{"device once", TierDevice, 1, [3]uint32{0, 0, 0}, 0},
		{"device twice", TierDevice, 2, [3]uint32{0, 0, 0}, 0},
		{"host once", TierHost, 1, [3]uint32{0, 0, 0}, 0},
		{"host twice", TierHost, 2, [3]uint32{1, 0, 0}, 1},
		{"external three times", TierExternal, 3, [3]uint32{1, 1, 0}, 2},
		{"disk more often than is counted", TierDisk, 1000, [3]uint32{1, 1, 1}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			ix := newIndex(t, Config{})
			w := open(t, ix, 1)
			p := newPrompt(1, 1)
			s := p.stored(0, 1)
			s.Tier = c.tier
			for range c.times {
				w.Store(s)
			}
			for i, want := range c.left {
				w.Remove(p.names, c.tier, 0)
				got := uint32(0)
				for _, m := range ix.Match(nil, p.chain, time.Unix(0, 0), nil) {
					got = m.Confirmed
				}
				if got != want {
					t.Errorf("%d blocks after %d removals, want %d", got, i+1, want)
				}
			}
			if got := ix.Stats().Publishers[0].Suppressed; got != c.suppressed {
				t.Errorf("%d suppressed, want %d", got, c.suppressed)
			}
		})
	}
}
