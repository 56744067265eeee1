package events

import (
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// target is the part of [kvindex.Writer] that events change.
type target interface {
	Store(kvindex.Stored) (unplaced int)
	Remove(names []kvindex.EngineHash, t kvindex.Tier, g uint8) (unknown int)
	Clear()
}

// tally counts what became of the events of one or more batches.
type tally struct {
	events  [numEventTypes]uint64
	skipped [numCauses]uint64
	// blocks that were stored, removed, stored without a known parent, and
	// removed without being held
	stored, removed, unplaced, unknown uint64
	bytes, frames                      uint64
}

// outcome is what a batch means for the trust in the publisher's state.
type outcome struct {
	// cleared: the batch emptied the cache.
	cleared bool
	// missed: something was stored that is not in the index.
	missed bool
	// tainted: something may have been removed that is still in the index.
	tainted bool
}

// applier turns one publisher's events into calls on its Writer. It holds
// what events do not repeat: the kinds of cache groups and the block sizes of
// chains. Not safe for concurrent use.
type applier struct {
	hasher kvindex.Hasher
	model  string
	state  *pool.State
	to     target
	// root is told where a chain begins; nil: nobody is.
	root func(kvindex.BlockHash, kvindex.Scope)

	dec      Decoder
	contents []kvindex.ContentHash
	// other marks cache groups whose blocks are no prefixes. It outlives a
	// clear: the groups are those of the model.
	other [256]bool
	// sizes are the block sizes of chains, 0 where none has begun.
	sizes [kvindex.NumTiers][256]int
	// blind: events cannot tell salted or image blocks from plain ones.
	blind bool
}

// apply applies a payload. n is counted up.
func (a *applier) apply(payload []byte, n *tally) (outcome, Batch) {
	var out outcome
	n.frames++
	n.bytes += uint64(len(payload))
	if a.dec.Reset(payload) != nil {
		n.skipped[Malformed]++
		return outcome{missed: true, tainted: true}, a.dec.Batch()
	}
	for {
		e, ok := a.dec.Next()
		if !ok {
			break
		}
		a.event(e, n, &out)
	}
	if a.dec.Err() != nil {
		n.skipped[Malformed]++
		out.missed, out.tainted = true, true
	}
	return out, a.dec.Batch()
}

func (a *applier) event(e *Event, n *tally, out *outcome) {
	n.events[e.Type]++
	cause := e.Skipped
	if cause == Applied || cause == OtherKind {
		cause = a.refuse(e)
	}
	if cause != Applied {
		n.skipped[cause]++
		if cause.Fault() {
			out.missed = true
			out.tainted = out.tainted || e.Type != Stored
		}
		return
	}
	switch e.Type {
	case Stored:
		a.store(e, n)
	case Removed:
		u := a.to.Remove(e.Hashes, e.Tier, e.Group)
		n.removed += uint64(len(e.Hashes) - u)
		n.unknown += uint64(u)
	case Cleared:
		a.to.Clear()
		*out = outcome{cleared: true}
	}
}

// refuse tells why an understood event does not concern the index.
func (a *applier) refuse(e *Event) Cause {
	switch e.Type {
	case Cleared:
		return Applied
	case Stored:
		if e.Kind != "" {
			a.other[e.Group] = !prefixKind(e.Kind)
		}
	}
	if a.other[e.Group] {
		return OtherKind
	}
	if e.Type != Stored || len(e.Tokens) == 0 {
		return Applied
	}
	return a.refuseSize(e)
}

// refuseSize keeps a chain to one block size. A larger one that begins at a
// root takes over: what came first was then the partial block of a short
// prompt.
func (a *applier) refuseSize(e *Event) Cause {
	size := &a.sizes[e.Tier][e.Group]
	if *size == e.BlockSize {
		return Applied
	}
	if *size != 0 && (e.HasParent || e.BlockSize < *size) || !a.state.ObserveBlockSize(e.BlockSize) {
		return BlockSizeRefused
	}
	*size = e.BlockSize
	return Applied
}

func (a *applier) store(e *Event, n *tally) {
	s := kvindex.Stored{
		Parent: e.Parent, HasParent: e.HasParent, Names: e.Hashes, Tier: e.Tier, Group: e.Group,
	}
	if len(e.Tokens) > 0 {
		a.blind = a.blind || e.Blind
		s.Contents = a.blockContents(e)
		if !e.HasParent {
			scope := kvindex.Scope{Model: a.model, Adapter: e.Lora, Salt: e.Salt, BlockSize: e.BlockSize}
			s.Root = a.hasher.Root(scope)
			if a.root != nil {
				a.root(s.Root, scope)
			}
		}
	}
	u := a.to.Store(s)
	n.stored += uint64(len(e.Hashes) - u)
	n.unplaced += uint64(u)
}

func (a *applier) blockContents(e *Event) []kvindex.ContentHash {
	if len(e.extra) == 0 {
		a.contents = a.hasher.AppendContents(a.contents[:0], e.Tokens, e.BlockSize)
		return a.contents
	}
	a.contents = a.contents[:0]
	for i := range e.Hashes {
		tokens := e.Tokens[i*e.BlockSize : (i+1)*e.BlockSize]
		a.contents = append(a.contents, a.hasher.ContentExtra(tokens, e.Extra(i)))
	}
	return a.contents
}

// forget drops what was learned of a process that is no more.
func (a *applier) forget() {
	a.to.Clear()
	a.other = [256]bool{}
	a.sizes = [kvindex.NumTiers][256]int{}
	a.blind = false
}
