package kvindex

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/puzpuzpuz/xsync/v3"
)

// EndpointID names a routable endpoint. The pool assigns it; a successor may
// get the same id with another incarnation.
type EndpointID uint32

// Trust says how far a publisher's state can be believed. Its Writer sets it.
type Trust uint8

const (
	// TrustSilent: nothing was ever received from the publisher.
	TrustSilent Trust = iota
	// TrustRecovering: a replay or a snapshot is running.
	TrustRecovering
	// TrustIncomplete: events were lost, or cannot be proven not to have been.
	TrustIncomplete
	// TrustExact: a gap-free history since a clear or since sequence 0.
	TrustExact
)

// String returns the trust state's name as used in metrics and explanations.
func (t Trust) String() string {
	switch t {
	case TrustSilent:
		return "silent"
	case TrustRecovering:
		return "recovering"
	case TrustIncomplete:
		return "incomplete"
	case TrustExact:
		return "exact"
	}
	return "unknown"
}

// Publisher identifies who speaks through a Writer.
type Publisher struct {
	ID       PublisherID
	Endpoint EndpointID
	// Incarnation is the pool's; matches carry it so that a reused id never
	// inherits.
	Incarnation uint32
}

// Stored is one store of consecutive blocks. Index methods never keep its
// slices.
type Stored struct {
	// Root is the root of the chain's scope, used where HasParent is false.
	Root BlockHash
	// Parent is the engine's name of the block before the first one.
	Parent    EngineHash
	HasParent bool
	// Names are the engine's names of the blocks, in chain order.
	Names []EngineHash
	// Contents are the blocks' content hashes, one a name. Without contents the
	// event says that blocks known by name now also exist on Tier.
	Contents []ContentHash
	Tier     Tier
	Group    uint8
}

// Config bounds an Index.
type Config struct {
	// MaxBlocks bounds the held blocks of all publishers together, a block
	// once per tier and cache group; 0 means the default. Beyond it the coldest
	// segments are dropped and their publishers become incomplete.
	MaxBlocks int `yaml:"max_blocks"`
	// PredictionTTL is how long a predicted block is expected without being
	// confirmed; 0 means the default.
	PredictionTTL time.Duration `yaml:"prediction_ttl"`
}

// DefaultMaxBlocks is the bound where none is configured: enough for 64
// endpoints of a million tokens each at 16 tokens a block.
const DefaultMaxBlocks = 4 << 20

// DefaultPredictionTTL is longer than a prefill of a long context takes.
const DefaultPredictionTTL = 30 * time.Second

// maxMaxBlocks keeps the worst case, every block in a segment of its own and
// some remembered besides, within the address space.
const maxMaxBlocks = maxSegments - 2<<20

// Validate reports every fault of c.
func (c Config) Validate() error {
	var errs []error
	if c.MaxBlocks < 0 {
		errs = append(errs, fmt.Errorf("max_blocks: %d is negative; use 0 for the default of %d", c.MaxBlocks, DefaultMaxBlocks))
	}
	if c.MaxBlocks > maxMaxBlocks {
		errs = append(errs, fmt.Errorf("max_blocks: %d is above the largest possible %d", c.MaxBlocks, maxMaxBlocks))
	}
	if c.PredictionTTL < 0 {
		errs = append(errs, fmt.Errorf("prediction_ttl: %v is negative; use 0 for the default of %v", c.PredictionTTL, DefaultPredictionTTL))
	}
	return errors.Join(errs...)
}

// ErrPublisherOpen is returned by [Index.Open] for an id that already has a
// Writer.
var ErrPublisherOpen = errors.New("kvindex: publisher is open")

// Index tells which publishers hold how long a prefix of a chain. All methods
// are safe for concurrent use; each [Writer] belongs to one goroutine.
// [Index.Match] takes no lock.
type Index struct {
	slab slab
	// segs finds a segment by its first block's chain hash. A segment that it
	// has is alive: it leaves the map before its head says that it is gone.
	segs   *xsync.MapOf[BlockHash, uint32]
	shared sharedNames
	// cleared counts the generations ended. A match whose count did not change
	// saw no publisher cleared, closed or replaced.
	cleared atomic.Uint64
	// stored counts blocks stored, coarsely; the age of segments is a part of
	// it.
	stored atomic.Uint64
	held   atomic.Int64 // mask bits of all publishers
	max    int64
	ttl    time.Duration
	// remember is how many removed blocks a publisher may still name.
	remember int
	pool     *sync.Pool // of *scratch; apart, for the runtime keeps pools alive longer

	// world is held for reading by every call that writes to segments and for
	// writing where all of them must stand still: growth of a table, eviction,
	// statistics, a dump. Before mu.
	world sync.RWMutex
	// locks guard segments by id: everything in a head and its extents. One is
	// held at a time.
	locks [1024]paddedMutex

	// mu guards what follows.
	mu         sync.Mutex
	publishers map[PublisherID]*Writer
	endpoints  map[EndpointID]*expected
	records    records
}

// paddedMutex keeps neighbours off one cache line.
type paddedMutex struct {
	sync.Mutex
	_ [56]byte
}

// New returns an empty index.
func New(cfg Config) (*Index, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	ix := &Index{
		max: int64(cfg.MaxBlocks), ttl: cfg.PredictionTTL, remember: remembered,
		publishers: map[PublisherID]*Writer{}, endpoints: map[EndpointID]*expected{},
	}
	if ix.max == 0 {
		ix.max = DefaultMaxBlocks
	}
	if ix.ttl == 0 {
		ix.ttl = DefaultPredictionTTL
	}
	ix.pool = &sync.Pool{New: func() any { return &scratch{again: map[uint32]uint64{}} }}
	ix.slab.init()
	ix.shared.init()
	// Keys are hashes already. Memory is not returned here either, so the map
	// never stops writers to shrink.
	ix.segs = xsync.NewMapOfWithHasher[BlockHash, uint32](func(h BlockHash, _ uint64) uint64 { return uint64(h) }, xsync.WithGrowOnly())
	return ix, nil
}

// Open returns the Writer of a publisher, which starts empty and silent. The
// id is free again after [Writer.Close].
func (ix *Index) Open(p Publisher) (*Writer, error) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.publishers[p.ID] != nil {
		return nil, fmt.Errorf("%w: id %d", ErrPublisherOpen, p.ID)
	}
	w := &Writer{ix: ix, pub: p}
	w.slot, w.rec = ix.records.open(p)
	w.key = makeKey(w.slot, kindBase)
	ix.publishers[p.ID] = w
	ix.join(w)
	return w, nil
}

// closeSlot frees a cleared publisher's id and slot.
func (ix *Index) closeSlot(w *Writer) {
	ix.world.RLock()
	defer ix.world.RUnlock()
	ix.mu.Lock()
	defer ix.mu.Unlock()
	delete(ix.publishers, w.pub.ID)
	ix.leave(w)
	ix.records.free = append(ix.records.free, w.slot)
}

func (ix *Index) lock(id uint32) *sync.Mutex { return &ix.locks[id%uint32(len(ix.locks))].Mutex }

// age is the present epoch of segments: 1/64 of the bound stored is one step.
func (ix *Index) age() uint16 { return uint16(ix.stored.Load() * 64 / uint64(ix.max)) }

// find returns the segment that starts with a block and its version, 0 if
// there is none. It takes no lock.
func (ix *Index) find(first BlockHash) (id uint32, version uint64) {
	for {
		id, ok := ix.segs.Load(first)
		if !ok {
			return 0, 0
		}
		h := ix.slab.head(id)
		v := atomic.LoadUint64(&h[hVersion])
		n := ix.common(h, []BlockHash{first})
		if n > 0 && atomic.LoadUint64(&h[hVersion]) == v {
			return id, v
		}
	}
}

// mapped says whether a segment starts with a block.
func (ix *Index) mapped(first BlockHash) bool {
	_, ok := ix.segs.Load(first)
	return ok
}

// segment finds or makes the segment of a block. The caller holds the lock of
// the segment of the block before, unless it is a chain's first: a later block
// is made under no other, so it exists once. Of first blocks the map sees to
// that.
func (ix *Index) segment(first, before BlockHash, room int) (id uint32, version uint64) {
	for {
		if id, version = ix.find(first); id != 0 {
			return id, version
		}
		yield(gapAbsent)
		id, found := ix.segs.LoadOrCompute(first, func() uint32 {
			id := ix.newSegment(first, before, room)
			version = ix.slab.head(id)[hVersion] // before anybody else can change it
			return id
		})
		if !found {
			return id, version
		}
	}
}

// maintain does what a write asked for and could not do beside other writers.
// The caller holds no lock.
func (ix *Index) maintain() {
	if ix.shared.wanting.Load() {
		ix.world.Lock()
		ix.shared.grow()
		ix.world.Unlock()
	}
	if ix.held.Load() > ix.max {
		ix.evict()
	}
}
