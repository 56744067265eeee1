package relay

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
)

// feed is what a relay knows of one publisher: its exact held set, and the
// latest changes of it. The publisher's goroutine changes it through
// [events.Tap]; any number of others read it with next.
//
// Additions wait in pending for the window to end. Whatever must not overtake
// them flushes them first: an eviction, a snapshot, the end. A clear supersedes
// them.
type feed struct {
	identity Identity
	hasher   kvindex.Hasher
	window   time.Duration
	logBytes int
	writer   *kvindex.Writer
	m        *metrics

	// The publisher's goroutine alone uses these.
	journal kvindex.Journal
	notes   kvindex.Notes
	// roots are the scopes of chains that began since the last Sync.
	roots map[kvindex.BlockHash]kvindex.Scope

	mu sync.Mutex // guards all below
	// changed is closed and replaced whenever there is something new.
	changed chan struct{}
	tree    *tree
	at      events.Point
	begun   bool // at is known
	cursor  cursor
	// told is the point that the log comprises: at, once nothing is pending.
	told events.Point
	// scopes are those declared in this incarnation, by root; when there are
	// scopeLimit of them it ends.
	scopes     map[kvindex.BlockHash]*pb.Scope
	lastScope  uint32
	scopeLimit int
	// lost: a change could not be placed, or the index had no room for all that
	// is held, so that the set is not exact.
	lost bool

	pending *pb.Added
	// pendingBlocks are those added, pendingSize also counts those that only lead
	// to them.
	pendingBlocks, pendingSize int

	pendingEnd kvindex.BlockHash // the block that the last run ends with
	timer      *time.Timer

	// log has the changes after logFrom, the oldest first.
	log     []logged
	logFrom uint64
	logSize int
	closed  bool
	// done is closed with the feed.
	done chan struct{}
}

// logged is a change and its size on the wire.
type logged struct {
	delta *pb.Delta
	size  int
	// fresh: nobody has seen it yet, so that settle may still write to it.
	fresh bool
}

func newFeed(cfg Config, id Identity, hasher kvindex.Hasher, w *kvindex.Writer, m *metrics) *feed {
	f := &feed{
		identity: id, hasher: hasher, window: cfg.Window, logBytes: cfg.LogBytes, writer: w, m: m,
		roots: map[kvindex.BlockHash]kvindex.Scope{}, changed: make(chan struct{}), done: make(chan struct{}), tree: newTree(),
		scopes: map[kvindex.BlockHash]*pb.Scope{}, scopeLimit: maxScopes,
	}
	w.Follow(&f.journal)
	f.begin(uint64(time.Now().UnixNano()))
	return f
}

// begin starts an incarnation, with an empty log, not before the given one.
// Whoever follows the feed needs a snapshot then.
func (f *feed) begin(incarnation uint64) {
	f.cursor = cursor{max(incarnation, f.cursor.incarnation+1), 0}
	f.log, f.logFrom, f.logSize = nil, 0, 0
	f.pending, f.pendingBlocks, f.pendingSize = nil, 0, 0
}

// restart begins an incarnation with nothing in it: another process speaks.
func (f *feed) restart(now time.Time) {
	f.tree.clear()
	f.lost = false
	clear(f.scopes)
	f.begin(uint64(now.UnixNano()))
}

// renew begins an incarnation with the state as it is. Scopes that nothing is
// in any more are forgotten.
func (f *feed) renew(incarnation uint64) {
	needed := map[uint32]bool{}
	for _, g := range f.tree.ghosts.ring {
		needed[g.scope] = true
	}
	for root, s := range f.scopes {
		if _, ok := f.tree.index[root]; !ok && !needed[s.Id] {
			delete(f.scopes, root)
		}
	}
	f.scopeLimit = max(maxScopes, 2*len(f.scopes))
	f.begin(incarnation)
}

// raise begins an incarnation after one that somebody has heard of although it
// is later than ours: the clock went back. A closed feed stays as it is, which
// raise reports by false: the later one is its successor's.
func (f *feed) raise(above uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.cursor.incarnation > above:
	case f.closed:
		return false
	default:
		f.renew(above + 1)
		f.wake()
	}
	return true
}

// Root implements [events.Tap].
func (f *feed) Root(root kvindex.BlockHash, s kvindex.Scope) {
	if _, ok := f.roots[root]; !ok {
		f.roots[root] = s
	}
}

// Sync implements [events.Tap].
func (f *feed) Sync(at events.Point) {
	f.journal.Take(&f.notes)
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	n, before, last := &f.notes, f.cursor, f.told
	switch {
	case f.begun && at.Generation != f.at.Generation:
		f.restart(now)
	case n.Cleared:
		f.clear()
	case len(f.scopes) >= f.scopeLimit:
		f.renew(uint64(now.UnixNano()))
	}
	f.begun, f.at = true, at
	// Blocks that were dropped for want of room are among the changes, and the
	// engine may hold them still; the point may be from before that.
	f.lost = f.lost || f.writer.Evicted()
	// What is told before the end of this call is not yet the point's state.
	f.told.Trust = min(f.told.Trust, f.trusted())
	for _, g := range n.Groups {
		f.tree.groups = append(f.tree.groups, g)
		f.adding().Groups = append(f.adding().Groups, uint32(g))
	}
	f.apply(n.Changes)
	clear(f.roots)
	if f.pending != nil && (f.window == 0 || f.trusted() != last.Trust) {
		f.flush()
	}
	changed := f.cursor != before || f.trusted() != last.Trust
	if f.pending == nil {
		f.settle(changed)
	} else if f.timer == nil {
		f.timer = time.AfterFunc(f.window, f.due)
	}
	if f.cursor != before {
		f.wake()
	}
	f.m.held.WithLabelValues(f.identity.rankLabel()).Set(float64(f.tree.held))
}

// clear empties the state. What was pending is superseded, but for the scopes,
// which stay declared.
func (f *feed) clear() {
	f.tree.clear()
	f.lost = false
	old := f.pending
	f.pending, f.pendingBlocks, f.pendingSize = nil, 0, 0
	f.append(&pb.Delta{Change: &pb.Delta_Cleared{Cleared: &pb.Cleared{}}})
	if old != nil && len(old.Scopes) > 0 {
		f.adding().Scopes = old.Scopes
	}
}

// settle says that the log comprises everything: its last change, which was
// made just now, tells so, or else a change that tells nothing more.
func (f *feed) settle(tell bool) {
	f.told = f.at
	f.told.Trust = f.trusted()
	if !tell {
		return
	}
	if n := len(f.log); n > 0 && f.log[n-1].fresh {
		l := &f.log[n-1]
		f.logSize -= l.size
		f.stamp(l)
		f.logSize += l.size
	} else {
		f.append(&pb.Delta{})
	}
	f.log[len(f.log)-1].fresh = false
}

// due ends a window.
func (f *feed) due() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timer = nil
	if f.pending != nil {
		f.flush()
		f.settle(true)
		f.wake()
	}
}

// Close implements [events.Tap]: what is buffered is given out, and nothing
// after it.
func (f *feed) Close() {
	f.writer.Follow(nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil {
		f.timer.Stop()
	}
	if f.pending != nil {
		f.flush()
		f.settle(true)
	}
	if !f.closed {
		close(f.done)
	}
	f.closed = true
	f.wake()
}

// wake has the followers look; what they see does not change any more.
func (f *feed) wake() {
	if n := len(f.log); n > 0 {
		f.log[n-1].fresh = false
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// trusted is how far the tree can be believed.
func (f *feed) trusted() kvindex.Trust {
	if f.lost {
		return min(f.at.Trust, kvindex.TrustIncomplete)
	}
	return f.at.Trust
}

// apply takes the journal's changes into the tree, pending and the log.
func (f *feed) apply(changes []kvindex.Change) {
	var evicted *pb.Evicted
	removed := 0
	evict := func() {
		if removed > 0 {
			f.append(&pb.Delta{Change: &pb.Delta_Evicted{Evicted: evicted}})
			f.m.evicted.Add(float64(removed))
			evicted, removed = nil, 0
		}
	}
	for _, c := range changes {
		switch c.Kind {
		case kvindex.BlockGone:
			if i, ok := f.tree.index[c.Block]; ok && f.tree.drop(i, f.tree.bit(c.Tier, c.Group)) {
				if removed == 0 {
					f.flush() // what was added before is told before
					evicted = &pb.Evicted{}
				}
				remove(evicted, c)
				if removed++; removed == maxDelta {
					evict()
				}
			}
			continue
		case kvindex.BlockKept, kvindex.BlockLet:
			if i := f.tree.find(c.Block); i != 0 {
				f.tree.keep(i, c.Kind == kvindex.BlockKept)
			}
			continue
		}
		if s, ok := f.roots[c.Parent]; ok {
			f.begins(c.Parent, s)
		}
		i := f.tree.touch(c.Block, c.Parent)
		switch {
		case i == 0:
			f.lost = true
			f.m.lost.Inc()
		case c.Kind == kvindex.BlockKnown:
			f.tree.release(i) // if nothing is behind it, it is only remembered
		case f.tree.hold(i, f.tree.bit(c.Tier, c.Group)):
			evict()
			f.add(i, c)
		}
	}
	evict()
}

// remove adds a block to removals, in order.
func remove(e *pb.Evicted, c kvindex.Change) {
	if n := len(e.Removals); n > 0 {
		if p := e.Removals[n-1].Place; p.Tier == tierToWire(c.Tier) && p.Group == uint32(c.Group) {
			e.Removals[n-1].Blocks = append(e.Removals[n-1].Blocks, uint64(c.Block))
			return
		}
	}
	e.Removals = append(e.Removals, &pb.Removal{
		Place: &pb.Place{Tier: tierToWire(c.Tier), Group: uint32(c.Group)}, Blocks: []uint64{uint64(c.Block)},
	})
}

// adding returns the additions that wait.
func (f *feed) adding() *pb.Added {
	if f.pending == nil {
		f.pending, f.pendingEnd = &pb.Added{}, 0
	}
	return f.pending
}

// begins makes sure that a chain's root is in the tree and its scope declared.
func (f *feed) begins(root kvindex.BlockHash, s kvindex.Scope) {
	scope := f.scopes[root]
	if scope == nil {
		f.lastScope++
		scope = &pb.Scope{Id: f.lastScope, Root: uint64(root), Adapter: s.Adapter, BlockSize: uint32(s.BlockSize)}
		if s.Salt != "" {
			scope.Tenant = tenantName(f.hasher, s.Salt)
		}
		f.scopes[root] = scope
		f.adding().Scopes = append(f.adding().Scopes, scope)
	}
	f.tree.root(root, scope.Id)
}

// add tells of a block that is held at one more place.
func (f *feed) add(i int32, c kvindex.Change) {
	t := f.tree
	n := t.nodes[i]
	if p := n.parent; !t.isRoot(p) && t.nodes[p].held == 0 {
		for _, run := range t.lead(p) {
			a := f.adding()
			a.Runs = append(a.Runs, run)
			f.pendingEnd = 0
			f.grow(len(run.Contents))
		}
	}
	a := f.adding()
	last := len(a.Runs) - 1
	if parent := t.nodes[n.parent].hash; f.pendingEnd != parent || last < 0 || len(a.Runs[last].Contents) >= maxRun || a.Runs[last].Scope != n.scope ||
		a.Runs[last].Places[0].Tier != tierToWire(c.Tier) || a.Runs[last].Places[0].Group != uint32(c.Group) {
		a.Runs = append(a.Runs, &pb.Run{
			Parent: uint64(parent), Scope: n.scope, Places: []*pb.Place{{Tier: tierToWire(c.Tier), Group: uint32(c.Group)}},
		})
		last++
	}
	a.Runs[last].Contents = append(a.Runs[last].Contents, uint64(t.content(i)))
	f.pendingEnd = n.hash
	f.pendingBlocks++
	f.grow(1)
}

// grow counts blocks that wait, and gives out all that wait when it is much.
func (f *feed) grow(n int) {
	if f.pendingSize += n; f.pendingSize >= maxPending {
		f.flush()
	}
}

// flush gives out what waits.
func (f *feed) flush() {
	if f.pending == nil {
		return
	}
	f.m.added.Add(float64(f.pendingBlocks))
	a := f.pending
	f.pending, f.pendingBlocks, f.pendingSize = nil, 0, 0
	f.append(&pb.Delta{Change: &pb.Delta_Added{Added: a}})
}

// append adds a change to the log, and forgets the oldest beyond its bound.
func (f *feed) append(d *pb.Delta) {
	f.cursor.sequence++
	d.Sequence = f.cursor.sequence
	if n := len(f.log); n > 0 {
		f.log[n-1].fresh = false
	}
	l := logged{delta: d, fresh: true}
	f.stamp(&l)
	f.log = append(f.log, l)
	f.logSize += l.size
	n := 0
	for ; f.logSize > f.logBytes && n < len(f.log)-1; n++ {
		f.logSize -= f.log[n].size
		f.logFrom = f.log[n].delta.Sequence
		f.log[n] = logged{}
	}
	f.log = f.log[n:]
	f.m.deltas.Inc()
}

// stamp writes what is told with every change.
func (f *feed) stamp(l *logged) {
	l.delta.Trust = trustToWire(f.told.Trust)
	if f.told.Sequenced {
		l.delta.EngineSequence = new(f.told.Sequence)
	}
	l.size = proto.Size(l.delta) + logOverhead
}

// logOverhead is what a change takes in memory besides its size on the wire.
const logOverhead = 256

// view is what a follower of a feed that stands at a cursor should do.
type view struct {
	// deltas are what comes next. Empty where snapshot is set, or where there
	// is nothing new.
	deltas   []*pb.Delta
	snapshot *snapshot
	// head is where the feed stands, engine the last batch of the engine that
	// it comprises.
	head   cursor
	engine *uint64
	// closed: nothing comes after head.
	closed bool
	// changed is closed when there is something new.
	changed <-chan struct{}
}

// next returns what follows c, up to limit changes.
func (f *feed) next(c cursor, limit int) view {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := view{closed: f.closed, changed: f.changed}
	if c.incarnation != f.cursor.incarnation || c.sequence < f.logFrom || c.sequence > f.cursor.sequence {
		if f.pending != nil {
			f.flush()
			f.settle(true)
			f.wake()
		}
		v.snapshot = f.snapshot()
	} else if at := int(c.sequence - f.logFrom); at < len(f.log) {
		for _, l := range f.log[at:min(len(f.log), at+limit)] {
			v.deltas = append(v.deltas, l.delta)
		}
	}
	v.head = f.cursor
	if f.told.Sequenced {
		v.engine = new(f.told.Sequence)
	}
	return v
}

// head returns where the feed stands.
func (f *feed) head() cursor {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cursor
}

// snapshot is the state of a feed at a cursor.
type snapshot struct {
	begin *pb.SnapshotBegin
	parts []*pb.SnapshotPart
	end   *pb.SnapshotEnd
}

func (f *feed) snapshot() *snapshot {
	s := &snapshot{
		begin: &pb.SnapshotBegin{Cursor: f.cursor.wire(), Trust: trustToWire(f.told.Trust)},
		end:   &pb.SnapshotEnd{Blocks: uint64(f.tree.held)},
	}
	if f.told.Sequenced {
		s.begin.EngineSequence = new(f.told.Sequence)
	}
	for _, g := range f.tree.groups {
		s.begin.Groups = append(s.begin.Groups, uint32(g))
	}
	part, size := &pb.SnapshotPart{}, 0
	next := func(n int) {
		if size += n; size >= partBytes {
			s.parts = append(s.parts, part)
			part, size = &pb.SnapshotPart{}, 0
		}
	}
	for _, scope := range f.scopes {
		part.Scopes = append(part.Scopes, scope)
		next(64 + len(scope.Adapter))
	}
	for _, run := range f.tree.appendRuns(nil) {
		part.Runs = append(part.Runs, run)
		next(32 + 8*len(run.Contents))
	}
	s.parts = append(s.parts, part)
	f.m.snapshots.Inc()
	return s
}
