package relay

import (
	"errors"
	"fmt"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
)

// receiver applies what a relay tells of one publisher to its Writer, in
// order, each change once. It does no I/O. What does not fit together makes it
// ask for a snapshot; it never guesses. Not safe for concurrent use.
type receiver struct {
	feed     events.Feed
	identity Identity
	hasher   kvindex.Hasher
	m        *routerMetrics

	// at is what is applied; zero: nothing is, and a snapshot must come.
	at cursor
	// loading: a snapshot has begun; blocks counts those that it brought.
	loading bool
	begun   *pb.SnapshotBegin
	blocks  uint64
	scopes  map[uint32]*scope
	trust   kvindex.Trust
	engine  *uint64

	// contents and removed are worked in.
	contents []kvindex.ContentHash
	removed  []kvindex.BlockHash
}

// scope is a declared scope.
type scope struct {
	root kvindex.BlockHash
	// skip: its blocks cannot be matched, because the endpoint has block sizes
	// enough.
	skip bool
}

// limitScopes bounds the scopes of one incarnation: a relay declares so many
// only if that many tenants have blocks.
const limitScopes = 1 << 20

func newReceiver(f events.Feed, id Identity, hasher kvindex.Hasher, m *routerMetrics) *receiver {
	return &receiver{feed: f, identity: id, hasher: hasher, m: m, scopes: map[uint32]*scope{}}
}

// forget drops the publisher's state.
func (r *receiver) forget() {
	r.feed.Writer.Clear()
	r.at, r.loading, r.engine = cursor{}, false, nil
	clear(r.scopes)
}

// whole tells whether the state is all that the relay told.
func (r *receiver) whole() bool { return !r.loading && r.at != (cursor{}) }

// errGap says that what came does not follow what is applied.
var errGap = errors.New("relay: a change is missing")

// snapshotBegin drops the state; what follows is the whole of it.
func (r *receiver) snapshotBegin(b *pb.SnapshotBegin) error {
	if b.GetCursor().GetIncarnation() == 0 {
		return errors.New("relay: a snapshot without an incarnation")
	}
	r.forget()
	r.loading, r.begun, r.blocks = true, b, 0
	return r.groups(b.Groups)
}

func (r *receiver) groups(groups []uint32) error {
	for _, g := range groups {
		if g > 255 {
			return fmt.Errorf("relay: cache group %d is out of range; 0 to 255 are known", g)
		}
		r.feed.Writer.Announce(uint8(g))
	}
	return nil
}

func (r *receiver) snapshotPart(p *pb.SnapshotPart) error {
	if !r.loading {
		return errors.New("relay: a part of a snapshot that has not begun")
	}
	if err := r.declare(p.Scopes); err != nil {
		return err
	}
	return r.runs(p.Runs)
}

func (r *receiver) snapshotEnd(e *pb.SnapshotEnd) error {
	if !r.loading {
		return errors.New("relay: the end of a snapshot that has not begun")
	}
	if r.blocks != e.Blocks {
		return fmt.Errorf("relay: the snapshot brought %d blocks of %d", r.blocks, e.Blocks)
	}
	r.loading, r.at = false, cursorFromWire(r.begun.Cursor)
	r.trust, r.engine = trustFromWire(r.begun.Trust), r.begun.EngineSequence
	r.begun = nil
	r.m.snapshots.Inc()
	return nil
}

// delta applies a change of an incarnation.
func (r *receiver) delta(incarnation uint64, d *pb.Delta) error {
	switch {
	case r.loading:
		return errors.New("relay: a change within a snapshot")
	case r.at.incarnation != incarnation || d.Sequence > r.at.sequence+1:
		r.m.deltas[deltaGap].Inc()
		return errGap
	case d.Sequence <= r.at.sequence:
		r.m.deltas[deltaDuplicate].Inc()
		return nil
	}
	if err := r.change(d); err != nil {
		return err
	}
	r.at.sequence = d.Sequence
	r.trust = trustFromWire(d.Trust)
	if d.EngineSequence != nil {
		r.engine = d.EngineSequence
	}
	r.m.deltas[deltaApplied].Inc()
	return nil
}

func (r *receiver) change(d *pb.Delta) error {
	switch c := d.Change.(type) {
	case *pb.Delta_Added:
		if err := r.groups(c.Added.Groups); err != nil {
			return err
		}
		if err := r.declare(c.Added.Scopes); err != nil {
			return err
		}
		return r.runs(c.Added.Runs)
	case *pb.Delta_Evicted:
		return r.evict(c.Evicted)
	case *pb.Delta_Cleared:
		r.feed.Writer.Clear()
	}
	return nil
}

// heartbeat takes the engine's progress where nothing else is new.
func (r *receiver) heartbeat(h *pb.Heartbeat) {
	if h.EngineSequence != nil && cursorFromWire(h.Cursor) == r.at {
		r.engine = h.EngineSequence
	}
}

// declare checks and keeps scopes. The root of the shared cache can be
// computed here and must be what is claimed; that of a tenant cannot, because
// its salt is not told, but must not be the shared one.
func (r *receiver) declare(scopes []*pb.Scope) error {
	for _, s := range scopes {
		size := int(s.BlockSize)
		if size < 1 || size > 1<<20 {
			return fmt.Errorf("relay: a scope with a block size of %d", size)
		}
		shared := r.hasher.Root(kvindex.Scope{Model: r.feed.Model, Adapter: s.Adapter, BlockSize: size})
		if (s.Tenant == "") != (uint64(shared) == s.Root) {
			return fmt.Errorf("relay: the root of scope %d is not that of its model, adapter, tenant and block size", s.Id)
		}
		if len(r.scopes) >= limitScopes {
			return errGap
		}
		r.scopes[s.Id] = &scope{root: kvindex.BlockHash(s.Root), skip: !r.feed.State.ObserveBlockSize(size)}
	}
	return nil
}

func (r *receiver) runs(runs []*pb.Run) error {
	for _, run := range runs {
		if err := r.run(run); err != nil {
			return err
		}
	}
	return nil
}

func (r *receiver) run(run *pb.Run) error {
	s := r.scopes[run.Scope]
	if s == nil {
		return fmt.Errorf("relay: scope %d was not declared", run.Scope)
	}
	if len(run.Places) > 0 {
		r.blocks += uint64(len(run.Contents))
	}
	if s.skip {
		r.m.skipped.Add(float64(len(run.Contents)))
		return nil
	}
	r.contents = r.contents[:0]
	for _, c := range run.Contents {
		r.contents = append(r.contents, kvindex.ContentHash(c))
	}
	stored := kvindex.Run{Parent: kvindex.BlockHash(run.Parent), Contents: r.contents, Passing: len(run.Places) == 0}
	stored.Root = stored.Parent == s.root
	for i := 0; ; i++ {
		if i < len(run.Places) {
			var err error
			if stored.Tier, err = tierFromWire(run.Places[i].GetTier()); err != nil {
				return fmt.Errorf("relay: %w", err)
			}
			if run.Places[i].Group > 255 {
				return fmt.Errorf("relay: cache group %d is out of range; 0 to 255 are known", run.Places[i].Group)
			}
			stored.Group = uint8(run.Places[i].Group)
		}
		if !r.feed.Writer.StoreRun(stored) && !r.feed.Writer.Evicted() {
			return errGap
		}
		if i+1 >= len(run.Places) {
			return nil
		}
	}
}

func (r *receiver) evict(e *pb.Evicted) error {
	for _, rm := range e.Removals {
		tier, err := tierFromWire(rm.Place.GetTier())
		if err != nil {
			return fmt.Errorf("relay: %w", err)
		}
		if rm.Place.GetGroup() > 255 {
			return fmt.Errorf("relay: cache group %d is out of range; 0 to 255 are known", rm.Place.GetGroup())
		}
		r.removed = r.removed[:0]
		for _, b := range rm.Blocks {
			r.removed = append(r.removed, kvindex.BlockHash(b))
		}
		// Blocks that are not held are of a scope that is skipped, or evicted.
		r.feed.Writer.RemoveBlocks(r.removed, tier, uint8(rm.Place.GetGroup()))
	}
	return nil
}

// report makes known where the publisher stands; err is why there is no
// connection.
func (r *receiver) report(err error) {
	st := events.FeedStatus{Phase: events.Live, Trust: r.trust, Err: err}
	switch {
	case err != nil && r.at == (cursor{}):
		st.Phase, st.Trust = events.Connecting, kvindex.TrustSilent
	case err != nil:
		st.Phase, st.Trust = events.Connecting, kvindex.TrustRecovering
	case r.loading || r.at == (cursor{}):
		st.Phase, st.Trust = events.Replaying, kvindex.TrustRecovering
	case st.Trust != kvindex.TrustExact:
		st.Phase = events.Stale
	case r.feed.Writer.Evicted():
		st.Phase, st.Trust = events.Stale, kvindex.TrustIncomplete
	}
	if r.engine != nil {
		st.Sequence, st.Sequenced = *r.engine, true
	}
	r.feed.Report(st)
}
