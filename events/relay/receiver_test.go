package relay

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
)

func TestIdentity_CheckNamesWhatIsWrong(t *testing.T) {
	id := Identity{Endpoint: "10.0.0.1:8000", Rank: 1, Model: "m", Seed: testHasher.Fingerprint()}
	change := func(f func(*pb.Identity)) *pb.Identity {
		w := id.wire(1)
		f(w)
		return w
	}
	for _, tt := range []struct {
		name string
		id   Identity
		got  *pb.Identity
		want string // "" is no error
	}{
		{"the same", id, id.wire(7), ""},
		{"nobody", id, nil, "who it is"},
		{"another seed", id, change(func(w *pb.Identity) { w.SeedFingerprint++ }), "index.seed_file"},
		{"the peer's seed is random", id, change(func(w *pb.Identity) { w.SeedFingerprint = 0 }), "index.seed_file"},
		{"ours is random", Identity{Endpoint: "10.0.0.1:8000", Rank: 1, Model: "m"}, id.wire(1), "index.seed_file"},
		{"both are random", Identity{Endpoint: "10.0.0.1:8000", Rank: 1, Model: "m"}, change(func(w *pb.Identity) { w.SeedFingerprint = 0 }), "index.seed_file"},
		{"no scheme", id, change(func(w *pb.Identity) { w.HashScheme = "" }), "scheme is empty"},
		{"another scheme", id, change(func(w *pb.Identity) { w.HashScheme = "x" }), `scheme "x"`},
		{"another endpoint", id, change(func(w *pb.Identity) { w.Endpoint = "10.0.0.2:8000" }), "10.0.0.2:8000"},
		{"another rank", id, change(func(w *pb.Identity) { w.Rank = 0 }), "rank 0"},
		{"another model", id, change(func(w *pb.Identity) { w.Model = "n" }), `"n"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.id.check(tt.got)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
			if err != nil && !refused(err) {
				t.Errorf("%v is taken for something that passes", err)
			}
		})
	}
}

func TestHasher_FingerprintsDiffer(t *testing.T) {
	seen := map[uint64]bool{}
	for seed := range uint64(1000) {
		h := kvindex.NewHasher(seed)
		seen[h.Fingerprint()] = true
		seen[h.Tenant("")] = true
		seen[h.Tenant("a")] = true
	}
	if len(seen) != 3000 || seen[0] {
		t.Errorf("%d distinct digests of 3000, zero among them: %t", len(seen), seen[0])
	}
}

// fed is a receiver that has an empty snapshot.
func fed(t *testing.T) (*receiver, side) {
	t.Helper()
	s := newSide(t)
	r := testReceiver(s)
	if err := r.snapshotBegin(&pb.SnapshotBegin{Cursor: &pb.Cursor{Incarnation: 1}, Trust: pb.Trust_TRUST_EXACT}); err != nil {
		t.Fatal(err)
	}
	if err := r.snapshotEnd(&pb.SnapshotEnd{}); err != nil {
		t.Fatal(err)
	}
	return r, s
}

func sharedScope(id uint32) *pb.Scope {
	return &pb.Scope{Id: id, Root: uint64(testHasher.Root(kvindex.Scope{Model: "m", BlockSize: 16})), BlockSize: 16}
}

func addition(seq uint64, scope *pb.Scope, contents ...uint64) *pb.Delta {
	return &pb.Delta{Sequence: seq, Trust: pb.Trust_TRUST_EXACT, Change: &pb.Delta_Added{Added: &pb.Added{
		Scopes: []*pb.Scope{scope}, Runs: []*pb.Run{{Parent: scope.Root, Scope: scope.Id, Contents: contents, Places: []*pb.Place{{Tier: pb.Tier_TIER_DEVICE}}}},
	}}}
}

// What does not fit together is refused, and nothing of it stays.
func TestReceiver_RefusesWhatCannotBe(t *testing.T) {
	tenant := tenantName(testHasher, "s")
	salted := uint64(testHasher.Root(kvindex.Scope{Model: "m", Salt: "s", BlockSize: 16}))
	for _, tt := range []struct {
		name  string
		delta *pb.Delta
		gap   bool
	}{
		{name: "a tenant's chain told as everybody's", delta: addition(1, &pb.Scope{Id: 1, Root: salted, BlockSize: 16}, 5)},
		{name: "everybody's chain told as a tenant's", delta: addition(1, &pb.Scope{Id: 1, Root: sharedScope(1).Root, Tenant: tenant, BlockSize: 16}, 5)},
		{name: "no block size", delta: addition(1, &pb.Scope{Id: 1, Root: 5}, 5)},
		{name: "an undeclared scope", delta: &pb.Delta{Sequence: 1, Change: &pb.Delta_Added{Added: &pb.Added{Runs: []*pb.Run{{Scope: 9, Contents: []uint64{1}}}}}}},
		{name: "an unknown tier", delta: &pb.Delta{Sequence: 1, Change: &pb.Delta_Evicted{Evicted: &pb.Evicted{Removals: []*pb.Removal{{Place: &pb.Place{Tier: 77}}}}}}},
		{name: "a group out of range", delta: &pb.Delta{Sequence: 1, Change: &pb.Delta_Added{Added: &pb.Added{Groups: []uint32{256}}}}},
		{name: "an unknown parent", gap: true, delta: &pb.Delta{Sequence: 1, Change: &pb.Delta_Added{Added: &pb.Added{
			Scopes: []*pb.Scope{sharedScope(1)}, Runs: []*pb.Run{{Parent: 77, Scope: 1, Contents: []uint64{1}, Places: []*pb.Place{{Tier: pb.Tier_TIER_DEVICE}}}},
		}}}},
		{name: "a missing change", gap: true, delta: addition(2, sharedScope(1), 5)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, s := fed(t)
			err := r.delta(1, tt.delta)
			if err == nil || errors.Is(err, errGap) != tt.gap {
				t.Fatalf("error %v", err)
			}
			if held := s.held(); len(held) > 0 {
				t.Errorf("%d blocks held", len(held))
			}
		})
	}
}

// Changes that come twice, or out of order, or of an incarnation that is no
// more, are applied once and in order or not at all.
func TestReceiver_ReorderedAndRepeatedChanges(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		r, s := fed(t)
		var deltas []*pb.Delta
		scope := sharedScope(1)
		at := kvindex.BlockHash(scope.Root)
		for i := range 20 {
			c := uint64(i + 1)
			d := addition(uint64(i+1), scope, c)
			if i > 0 {
				d.GetAdded().Runs[0].Parent = uint64(at)
			}
			at = kvindex.Mix(at, kvindex.ContentHash(c))
			deltas = append(deltas, d)
		}
		want := 0
		for want < len(deltas) {
			i := rng.IntN(len(deltas))
			err := r.delta(1, deltas[i])
			switch {
			case i == want:
				want++
				fallthrough
			case i < want:
				if err != nil {
					t.Fatalf("change %d while %d was awaited: %v", i, want, err)
				}
			case !errors.Is(err, errGap):
				t.Fatalf("change %d while %d was awaited: %v", i, want, err)
			}
			if err := r.delta(2, deltas[min(want, len(deltas)-1)]); !errors.Is(err, errGap) {
				t.Fatalf("a change of another incarnation: %v", err)
			}
			if n := len(s.held()); n != want {
				t.Fatalf("%d blocks held after %d changes", n, want)
			}
		}
	}
}

// A snapshot that lacks something is not taken for whole.
func TestReceiver_SnapshotThatIsNotWhole(t *testing.T) {
	r, _ := fed(t)
	if err := r.snapshotBegin(&pb.SnapshotBegin{Cursor: &pb.Cursor{Incarnation: 2}}); err != nil {
		t.Fatal(err)
	}
	if err := r.delta(2, addition(1, sharedScope(1), 1)); err == nil {
		t.Error("a change was taken within a snapshot")
	}
	if err := r.snapshotEnd(&pb.SnapshotEnd{Blocks: 1}); err == nil {
		t.Error("a snapshot without its only block was taken for whole")
	}
}

// Whatever tenants do, no request of one matches a block of another: the
// router's index is asked for every chain under every tenant's root.
func TestRelay_TenantsDoNotSeeEachOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := &engine{side: newSide(t)}
		e.feed = testFeed(testConfig(), e.side)
		defer e.feed.Close()
		router := &follower{side: newSide(t)}
		router.r = testReceiver(router.side)
		// held is the truth: blocks by scope, in the engine's own words.
		held := map[kvindex.Scope]map[kvindex.BlockHash]bool{}
		for range rapid.IntRange(1, 20).Draw(t, "stores") {
			c := e.draw(t)
			n := rapid.IntRange(1, len(c.contents)).Draw(t, "blocks")
			root := testHasher.Root(c.scope)
			e.feed.Root(root, c.scope)
			e.w.Store(kvindex.Stored{Root: root, Names: c.names()[:n], Contents: c.contents[:n]})
			if held[c.scope] == nil {
				held[c.scope] = map[kvindex.BlockHash]bool{}
			}
			for _, b := range c.blocks()[:n] {
				held[c.scope][b] = true
			}
		}
		e.sync()
		router.follow(t, e.feed, 0)
		for _, c := range e.chains {
			for _, salt := range []string{"", "s1", "s2", "s3"} {
				scope := c.scope
				scope.Salt = salt
				chain := kvindex.AppendChain(nil, testHasher.Root(scope), c.contents)
				want := 0
				for want < len(chain) && held[scope][chain[want]] {
					want++
				}
				got := 0
				for _, m := range router.index.Match(nil, chain, time.Time{}, nil) {
					got = int(m.Device)
				}
				if got != want {
					t.Fatalf("tenant %q matches %d blocks of %v, of which it has %d", salt, got, c.scope, want)
				}
			}
		}
	})
}
