package relay

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

var testHasher = kvindex.NewHasher(0x5eed)

// never is a window that ends only when a test ends it.
const never = time.Hour

// fataler is a test, of testing or of rapid.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// side is one index with one publisher.
type side struct {
	index *kvindex.Index
	w     *kvindex.Writer
}

func newSide(t fataler) side {
	t.Helper()
	ix, err := kvindex.New(kvindex.Config{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := ix.Open(kvindex.Publisher{ID: 1, Endpoint: 1})
	if err != nil {
		t.Fatal(err)
	}
	return side{ix, w}
}

func (s side) held() []kvindex.HeldBlock {
	held := s.index.AppendHeldBlocks(nil, 1)
	slices.SortFunc(held, func(a, b kvindex.HeldBlock) int { return cmp.Compare(a.Hash, b.Hash) })
	return held
}

func testConfig() Config {
	cfg := DefaultConfig()
	cfg.Window, cfg.LogBytes = never, 64<<10
	return cfg
}

func testFeed(cfg Config, s side) *feed {
	id := Identity{Endpoint: "10.0.0.1:8000", Model: "m", Seed: testHasher.Fingerprint()}
	return newFeed(cfg, id, testHasher, s.w, newMetrics(prometheus.NewRegistry()))
}

func testReceiver(s side) *receiver {
	f := events.Feed{
		Subject: events.Subject{Publisher: pool.Publisher{Publisher: s.w.Publisher()}, Endpoint: "e", Address: "10.0.0.1:8000", Model: "m", State: new(pool.State)},
		Writer:  s.w, Report: func(events.FeedStatus) {},
	}
	return newReceiver(f, Identity{}, testHasher, newRouterMetrics(prometheus.NewRegistry()))
}

// engine makes up what an engine stores and removes.
type engine struct {
	side
	feed   *feed
	point  events.Point
	chains []chain
}

// chain is a prompt that the engine has seen.
type chain struct {
	scope    kvindex.Scope
	contents []kvindex.ContentHash
}

func (c chain) blocks() []kvindex.BlockHash {
	return kvindex.AppendChain(nil, testHasher.Root(c.scope), c.contents)
}

// names are the engine's own for the blocks of a chain.
func (c chain) names() (names []kvindex.EngineHash) {
	for _, b := range c.blocks() {
		names = append(names, kvindex.EngineHash(b)*3)
	}
	return names
}

func (e *engine) draw(t *rapid.T) chain {
	if len(e.chains) > 0 && rapid.IntRange(0, 9).Draw(t, "old") > 1 {
		return rapid.SampledFrom(e.chains).Draw(t, "chain")
	}
	c := chain{scope: kvindex.Scope{
		Model: "m", BlockSize: 16, Adapter: rapid.SampledFrom([]string{"", "", "ad"}).Draw(t, "adapter"), Salt: rapid.SampledFrom([]string{"", "", "s1", "s2"}).Draw(t, "salt"),
	}}
	if len(e.chains) > 0 {
		from := rapid.SampledFrom(e.chains).Draw(t, "from")
		c = chain{from.scope, slices.Clone(from.contents[:rapid.IntRange(0, len(from.contents)).Draw(t, "cut")])}
	}
	for range rapid.SampledFrom([]int{1, 2, 5, 70, 140}).Draw(t, "grow") {
		c.contents = append(c.contents, kvindex.ContentHash(rapid.Uint64Range(1, 3).Draw(t, "content")))
	}
	e.chains = append(e.chains, c)
	return c
}

func (e *engine) place(t *rapid.T) (kvindex.Tier, uint8) {
	if rapid.IntRange(0, 3).Draw(t, "plain") > 0 {
		return kvindex.TierDevice, 0
	}
	return rapid.SampledFrom([]kvindex.Tier{kvindex.TierDevice, kvindex.TierHost, kvindex.TierExternal}).Draw(t, "tier"), rapid.SampledFrom([]uint8{0, 0, 7}).Draw(t, "group")
}

func (e *engine) store(t *rapid.T) {
	c := e.draw(t)
	from := 0
	if rapid.Bool().Draw(t, "later") {
		from = rapid.IntRange(0, len(c.contents)-1).Draw(t, "at")
	}
	to := rapid.IntRange(from+1, len(c.contents)).Draw(t, "to")
	names := c.names()
	s := kvindex.Stored{Root: testHasher.Root(c.scope), Names: names[from:to], Contents: c.contents[from:to]}
	s.Tier, s.Group = e.place(t)
	if from > 0 {
		s.HasParent, s.Parent = true, names[from-1]
	} else {
		e.feed.Root(s.Root, c.scope)
	}
	if rapid.IntRange(0, 7).Draw(t, "update") == 0 {
		s.Contents = nil
	}
	e.w.Store(s)
}

func (e *engine) remove(t *rapid.T) {
	c := e.draw(t)
	from := rapid.IntRange(0, len(c.contents)-1).Draw(t, "at")
	names := c.names()[from:rapid.IntRange(from+1, len(c.contents)).Draw(t, "to")]
	slices.Reverse(names)
	tier, group := e.place(t)
	e.w.Remove(names, tier, group)
}

func (e *engine) sync() {
	e.point.Sequence++
	e.point.Sequenced = true
	e.feed.Sync(e.point)
}

// follower reads a feed and applies it, as a router does.
type follower struct {
	side
	r *receiver
}

// follow takes up to n changes; all of them if n is 0.
func (fo *follower) follow(t fataler, f *feed, n int) {
	t.Helper()
	for {
		limit := atOnce
		if n > 0 {
			limit = n
		}
		v := f.next(fo.r.at, limit)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%v at %+v", err, fo.r.at)
			}
		}
		if v.snapshot != nil {
			for _, m := range v.snapshot.responses() {
				must(fo.r.response(overTheWire(t, m)))
			}
		}
		for _, d := range v.deltas {
			m := overTheWire(t, &pb.SubscribeResponse{Message: &pb.SubscribeResponse_Delta{Delta: d}})
			must(fo.r.response(m))
			must(fo.r.response(m)) // twice is once
		}
		if v.snapshot == nil && len(v.deltas) == 0 {
			fo.r.heartbeat(&pb.Heartbeat{Cursor: v.head.wire(), EngineSequence: v.engine})
			return
		}
		if n > 0 {
			return
		}
	}
}

func overTheWire[M proto.Message](t fataler, m M) M {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out.(M)
}

// Whatever an engine does, and whenever routers look: one that has followed to
// the end, with gaps and duplicates on the way, holds what the relay's own index
// holds, and one that knows nothing holds it after one snapshot.
func TestFeed_FollowersHoldTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := &engine{side: newSide(t)}
		cfg := testConfig()
		cfg.LogBytes = rapid.SampledFrom([]int{64 << 10, 1 << 10}).Draw(t, "log")
		if rapid.Bool().Draw(t, "no window") {
			cfg.Window = 0
		}
		e.feed = testFeed(cfg, e.side)
		defer e.feed.Close()
		steady := &follower{side: newSide(t)}
		steady.r = testReceiver(steady.side)
		check := func(t *rapid.T) {
			e.sync()
			e.feed.due()
			late := &follower{side: newSide(t)}
			late.r = testReceiver(late.side)
			want := e.held()
			for name, fo := range map[string]*follower{"steady": steady, "late": late} {
				fo.follow(t, e.feed, 0)
				if d := gocmp.Diff(want, fo.held()); d != "" {
					t.Fatalf("%s router (-relay +router):\n%s", name, d)
				}
				if fo.r.engine == nil || *fo.r.engine != e.point.Sequence {
					t.Fatalf("%s router is not at batch %d of the engine", name, e.point.Sequence)
				}
			}
			if e.feed.lost {
				t.Fatal("a block could not be placed")
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"store": e.store, "store more": e.store, "remove": e.remove,
			"sync":   func(*rapid.T) { e.sync() },
			"window": func(*rapid.T) { e.feed.due() },
			"look":   func(t *rapid.T) { steady.follow(t, e.feed, rapid.IntRange(1, 3).Draw(t, "changes")) },
			"clear":  func(*rapid.T) { e.w.Clear() },
			"restart": func(*rapid.T) {
				e.w.Clear()
				e.point = events.Point{Generation: e.point.Generation + 1}
				e.sync()
			},
			"clock": func(*rapid.T) { e.feed.raise(e.feed.head().incarnation + 5) },
			"check": check,
		})
		check(t)
	})
}

// Trust is told with the state that it belongs to, never before.
func TestFeed_TrustIsNotToldAheadOfEvictions(t *testing.T) {
	e := &engine{side: newSide(t)}
	e.feed = testFeed(testConfig(), e.side)
	defer e.feed.Close()
	c := chain{kvindex.Scope{Model: "m", BlockSize: 16}, []kvindex.ContentHash{1, 2, 3}}
	root := testHasher.Root(c.scope)
	e.feed.Root(root, c.scope)
	e.w.Store(kvindex.Stored{Root: root, Names: c.names(), Contents: c.contents})
	e.point.Trust = kvindex.TrustIncomplete
	e.sync()
	e.w.Remove(c.names()[2:], kvindex.TierDevice, 0)
	e.w.Store(kvindex.Stored{HasParent: true, Parent: c.names()[1], Names: c.names()[2:], Contents: c.contents[2:]})
	e.w.Remove(c.names()[2:], kvindex.TierDevice, 0)
	e.point.Trust = kvindex.TrustExact
	before := e.feed.head()
	e.sync()
	v := e.feed.next(before, 100)
	var got []string
	for _, d := range v.deltas {
		got = append(got, fmt.Sprintf("%T %s", d.Change, d.Trust))
	}
	want := []string{
		"*cachestatepb.Delta_Evicted TRUST_INCOMPLETE", "*cachestatepb.Delta_Added TRUST_INCOMPLETE", "*cachestatepb.Delta_Evicted TRUST_EXACT",
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A relay whose index had no room for all that the engine holds is not exact,
// whatever the point says, until the engine clears its cache.
func TestFeed_NoRoomIsIncomplete(t *testing.T) {
	const room = 1024
	ix, err := kvindex.New(kvindex.Config{MaxBlocks: room})
	if err != nil {
		t.Fatal(err)
	}
	w, err := ix.Open(kvindex.Publisher{ID: 1, Endpoint: 1})
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{side: side{ix, w}, point: events.Point{Trust: kvindex.TrustExact}}
	e.feed = testFeed(testConfig(), e.side)
	defer e.feed.Close()
	fo := &follower{side: newSide(t)}
	fo.r = testReceiver(fo.side)
	expect := func(when string, want kvindex.Trust) {
		t.Helper()
		e.sync()
		e.feed.due()
		fo.follow(t, e.feed, 0)
		if fo.r.trust != want {
			t.Errorf("%s: the router has %v, want %v", when, fo.r.trust, want)
		}
	}
	expect("empty", kvindex.TrustExact)
	for i := range 3 * room / 64 {
		c := chain{scope: kvindex.Scope{Model: "m", BlockSize: 16}}
		for j := range 64 {
			c.contents = append(c.contents, kvindex.ContentHash(i*64+j+1))
		}
		root := testHasher.Root(c.scope)
		e.feed.Root(root, c.scope)
		w.Store(kvindex.Stored{Root: root, Names: c.names(), Contents: c.contents})
	}
	if !w.Evicted() {
		t.Fatal("nothing was evicted: the test tests nothing")
	}
	expect("no room", kvindex.TrustIncomplete)
	w.Clear()
	expect("cleared", kvindex.TrustExact)
}

// A block of which the engine has another copy can be told of as a parent,
// however much has left the tree since its removal.
func TestFeed_BehindAParentWithACopy(t *testing.T) {
	e := &engine{side: newSide(t)}
	e.feed = testFeed(testConfig(), e.side)
	defer e.feed.Close()
	scope := kvindex.Scope{Model: "m", BlockSize: 16}
	root := testHasher.Root(scope)
	c := chain{scope, []kvindex.ContentHash{1, 2, 3}}
	e.feed.Root(root, scope)
	first := kvindex.Stored{Root: root, Names: c.names()[:2], Contents: c.contents[:2]}
	e.w.Store(first)
	e.w.Store(first)
	e.w.Remove(first.Names, kvindex.TierDevice, 0)
	e.sync()
	for i := range ghostMemory + 1 {
		other := chain{scope, []kvindex.ContentHash{kvindex.ContentHash(100 + i)}}
		e.feed.Root(root, scope)
		e.w.Store(kvindex.Stored{Root: root, Names: other.names(), Contents: other.contents})
		e.w.Remove(other.names(), kvindex.TierDevice, 0)
		e.sync()
	}
	e.w.Store(kvindex.Stored{HasParent: true, Parent: c.names()[1], Names: c.names()[2:], Contents: c.contents[2:]})
	e.sync()
	late := &follower{side: newSide(t)}
	late.r = testReceiver(late.side)
	late.follow(t, e.feed, 0)
	if held := late.held(); len(held) != 1 || held[0].Hash != c.blocks()[2] || e.feed.lost {
		t.Errorf("the router holds %v; lost: %t", held, e.feed.lost)
	}
	e.w.Remove(c.names(), kvindex.TierDevice, 0) // the copies, and what was behind them
	e.sync()
	if n := len(e.feed.tree.index); n != 0 {
		t.Errorf("%d nodes are left in the tree", n)
	}
}

// Blocks that only lead to others are told in messages of a bounded size,
// however many there are and however often.
func TestFeed_LongLeadsAreSplit(t *testing.T) {
	e := &engine{side: newSide(t), point: events.Point{Trust: kvindex.TrustExact}}
	cfg := testConfig()
	cfg.LogBytes = 64 << 20
	e.feed = testFeed(cfg, e.side)
	defer e.feed.Close()
	fo := &follower{side: newSide(t)}
	fo.r = testReceiver(fo.side)
	const long, branches = 20_000, 40
	c := chain{scope: kvindex.Scope{Model: "m", BlockSize: 16}}
	for i := range long {
		c.contents = append(c.contents, kvindex.ContentHash(i+1))
	}
	names := c.names()
	root := testHasher.Root(c.scope)
	e.feed.Root(root, c.scope)
	e.w.Store(kvindex.Stored{Root: root, Names: names, Contents: c.contents})
	e.w.Remove(names[:long-1], kvindex.TierDevice, 0) // the last block keeps them in the tree
	e.sync()
	e.feed.due()
	fo.follow(t, e.feed, 0)
	at := e.feed.head()
	for i := range branches {
		e.w.Store(kvindex.Stored{HasParent: true, Parent: names[long-2], Names: []kvindex.EngineHash{kvindex.EngineHash(i + 1)}, Contents: []kvindex.ContentHash{kvindex.ContentHash(long + i + 1)}})
	}
	e.sync()
	e.feed.due()
	blocks := 0
	for _, d := range e.feed.next(at, 1<<20).deltas {
		if n := proto.Size(d); n > 1<<20 {
			t.Errorf("change %d is %d bytes long", d.Sequence, n)
		}
		for _, r := range d.GetAdded().GetRuns() {
			blocks += len(r.Contents)
		}
	}
	if blocks < branches*(long-2) {
		t.Errorf("%d blocks were told of, which are too few to test this", blocks)
	}
	fo.follow(t, e.feed, 0)
	if d := gocmp.Diff(e.held(), fo.held()); d != "" || len(fo.held()) != branches+1 {
		t.Errorf("%d blocks (-relay +router):\n%s", len(fo.held()), d)
	}
}

// Without a window, too, what was added is told with the batch that brought it.
func TestFeed_NoWindowTellsTheBatch(t *testing.T) {
	e := &engine{side: newSide(t), point: events.Point{Trust: kvindex.TrustExact, Sequence: 41}}
	cfg := testConfig()
	cfg.Window = 0
	e.feed = testFeed(cfg, e.side)
	defer e.feed.Close()
	e.sync()
	at := e.feed.head()
	c := chain{kvindex.Scope{Model: "m", BlockSize: 16}, []kvindex.ContentHash{1, 2, 3}}
	root := testHasher.Root(c.scope)
	e.feed.Root(root, c.scope)
	e.w.Store(kvindex.Stored{Root: root, Names: c.names(), Contents: c.contents})
	e.sync()
	got := e.feed.next(at, 10).deltas
	if len(got) != 1 || got[0].GetAdded() == nil || got[0].GetEngineSequence() != 43 {
		t.Errorf("told: %v; want what was added, of batch 43", got)
	}
}
