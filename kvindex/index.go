package kvindex

import (
	"errors"
	"fmt"
	"sync"
	"time"
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

// Match is how much of a chain one publisher holds, in blocks from the
// chain's start without a gap.
type Match struct {
	Publisher
	Trust Trust
	// Device counts blocks held on the device tier, Confirmed those held on any
	// tier, Predicted those held or expected from requests in flight.
	Device, Confirmed, Predicted uint32
}

// Config bounds an Index.
type Config struct {
	// MaxBlocks bounds the held blocks of all publishers together; 0 means the
	// default.
	MaxBlocks int `yaml:"max_blocks"`
}

// DefaultMaxBlocks is the bound where none is configured: enough for 64
// endpoints of a million tokens each at 16 tokens a block.
const DefaultMaxBlocks = 4 << 20

// Validate reports every fault of c.
func (c Config) Validate() error {
	if c.MaxBlocks < 0 {
		return fmt.Errorf("max_blocks: %d is negative; use 0 for the default of %d", c.MaxBlocks, DefaultMaxBlocks)
	}
	return nil
}

// ErrPublisherOpen is returned by [Index.Open] for an id that already has a
// Writer.
var ErrPublisherOpen = errors.New("kvindex: publisher is open")

// Index tells which publishers hold how long a prefix of a chain. All methods
// are safe for concurrent use; each [Writer] belongs to one goroutine.
type Index struct {
	mu         sync.RWMutex
	holders    map[BlockHash][]*Writer
	publishers map[PublisherID]*Writer
}

// New returns an empty index.
func New(cfg Config) (*Index, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Index{holders: map[BlockHash][]*Writer{}, publishers: map[PublisherID]*Writer{}}, nil
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
	w.reset()
	ix.publishers[p.ID] = w
	return w, nil
}

// Match appends to dst one Match for every publisher that holds at least the
// first block of chain and that want accepts (nil accepts all), and returns
// the extended slice. It stops at the first block that nobody holds.
func (ix *Index) Match(dst []Match, chain []BlockHash, now time.Time, want func(Publisher) bool) []Match {
	if len(chain) == 0 {
		return dst
	}
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	for _, w := range ix.holders[chain[0]] {
		if want != nil && !want(w.pub) {
			continue
		}
		m := Match{Publisher: w.pub, Trust: w.trust}
		device := true
		for _, b := range chain {
			held := w.blocks[b]
			if !held.any() {
				break
			}
			m.Confirmed++
			if device = device && held.on(TierDevice); device {
				m.Device++
			}
		}
		m.Predicted = m.Confirmed
		dst = append(dst, m)
	}
	return dst
}
