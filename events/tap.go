package events

import (
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Subject is all that a subscription depends on. When any of it changes, the
// state of the old one is of no use.
type Subject struct {
	Publisher pool.Publisher
	// Endpoint is the endpoint's name, Address its ip:port, Model the id of its
	// base model.
	Endpoint, Address, Model string
	// State is the endpoint's.
	State *pool.State
}

// Point is a place in a publisher's history.
type Point struct {
	// Generation is raised whenever the state was dropped because it is, or may
	// be, another process that speaks.
	Generation uint64
	// Sequence is that of the last batch applied, if Sequenced.
	Sequence  uint64
	Sequenced bool
	Trust     kvindex.Trust
}

// Tap is told what becomes of one publisher, by the goroutine that owns its
// Writer, which does nothing else meanwhile.
type Tap interface {
	// Root tells of a scope and its root before the first block behind it is
	// stored, and again whenever a chain begins there.
	Root(root kvindex.BlockHash, s kvindex.Scope)
	// Sync says that the Writer's state is that of a point. Several batches may
	// have been applied since the last call.
	Sync(at Point)
	// Close says that the publisher is no longer followed. What its Writer held
	// is dropped afterwards, which is nothing that the engine did.
	Close()
}

// Taps opens the Tap of a publisher, whose Writer is empty.
type Taps interface {
	Open(of Subject, w *kvindex.Writer) Tap
}

// Option changes a [Manager] that is being made.
type Option func(*Manager)

// WithTaps has every publisher that is followed tapped.
func WithTaps(t Taps) Option { return func(m *Manager) { m.taps = t } }

// WithRelays has publishers that have a relay fed by it.
func WithRelays(r Relays) Option { return func(m *Manager) { m.relays = r } }
