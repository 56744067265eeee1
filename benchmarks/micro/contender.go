package micro

import (
	"fmt"
	"math/bits"
	"time"

	"github.com/puzpuzpuz/xsync/v3"

	"github.com/warmpath/warmpath/benchmarks/indexops"
	"github.com/warmpath/warmpath/kvindex"
)

// depths is an answer: the leading blocks that each pod holds.
type depths [indexops.Pods]uint16

// event is one op in the form that an index takes, made outside the clock.
type event struct {
	pod int
	kvindex.Stored
}

// root stands before every chain of a run.
var root = kvindex.NewHasher(1).Root(kvindex.Scope{Model: "micro", BlockSize: indexops.BlockTokens})

// contender is an index under test. apply runs inside the clock, and so does
// match; answer converts what the last match found outside of it.
type contender interface {
	apply(stores, removes []event)
	match(chain []kvindex.BlockHash)
	answer() depths
}

// warmpath is the index of this repository.
type warmpath struct {
	ix      *kvindex.Index
	writers [indexops.Pods]*kvindex.Writer
	now     time.Time
	found   []kvindex.Match
}

func newWarmpath(bool) (contender, error) {
	ix, err := kvindex.New(kvindex.Config{MaxBlocks: 16 << 20})
	if err != nil {
		return nil, err
	}
	w := &warmpath{ix: ix, now: time.Unix(0, 0)}
	for pod := range w.writers {
		if w.writers[pod], err = ix.Open(kvindex.Publisher{ID: kvindex.PublisherID(pod), Endpoint: kvindex.EndpointID(pod)}); err != nil {
			return nil, fmt.Errorf("open pod %d: %w", pod, err)
		}
	}
	return w, nil
}

func (w *warmpath) apply(stores, removes []event) {
	for i := range removes {
		w.writers[removes[i].pod].Remove(removes[i].Names, kvindex.TierDevice, 0)
	}
	for i := range stores {
		w.writers[stores[i].pod].Store(stores[i].Stored)
	}
}

func (w *warmpath) match(chain []kvindex.BlockHash) {
	w.found = w.ix.Match(w.found[:0], chain, w.now, nil)
}

func (w *warmpath) answer() (d depths) {
	for _, m := range w.found {
		d[m.ID] = uint16(m.Device)
	}
	return d
}

// naive is the plain exact index that one would write first: a concurrent map
// from chain hash to the set of pods that hold the block, and one from engine
// hash to chain hash for parents and removals. 64 pods fit a word.
type naive struct {
	holders *xsync.MapOf[kvindex.BlockHash, uint64]
	blocks  *xsync.MapOf[kvindex.EngineHash, kvindex.BlockHash]
	// private: a name belongs to one pod and goes with that pod's copy.
	private bool
	found   depths
}

func newNaive(private bool) (contender, error) {
	return &naive{
		private: private,
		holders: xsync.NewMapOf[kvindex.BlockHash, uint64](),
		blocks:  xsync.NewMapOf[kvindex.EngineHash, kvindex.BlockHash](),
	}, nil
}

func (n *naive) apply(stores, removes []event) {
	for i := range removes {
		n.remove(&removes[i])
	}
	for i := range stores {
		n.store(&stores[i])
	}
}

func (n *naive) store(e *event) {
	at := e.Root
	if e.HasParent {
		p, ok := n.blocks.Load(e.Parent)
		if !ok {
			return
		}
		at = p
	}
	bit := uint64(1) << e.pod
	for i, name := range e.Names {
		at = kvindex.Mix(at, e.Contents[i])
		n.blocks.Store(name, at)
		n.holders.Compute(at, func(set uint64, _ bool) (uint64, bool) { return set | bit, false })
	}
}

func (n *naive) remove(e *event) {
	bit := uint64(1) << e.pod
	for _, name := range e.Names {
		b, ok := n.blocks.Load(name)
		if !ok {
			continue
		}
		_, stays := n.holders.Compute(b, func(set uint64, _ bool) (uint64, bool) { return set &^ bit, set == bit })
		if !stays || n.private {
			n.blocks.Delete(name)
		}
	}
}

func (n *naive) match(chain []kvindex.BlockHash) {
	n.found = depths{}
	alive := ^uint64(0)
	for i, b := range chain {
		set, _ := n.holders.Load(b)
		for gone := alive &^ set; gone != 0; gone &= gone - 1 {
			n.found[bits.TrailingZeros64(gone)] = uint16(i)
		}
		if alive &= set; alive == 0 {
			return
		}
	}
	for ; alive != 0; alive &= alive - 1 {
		n.found[bits.TrailingZeros64(alive)] = uint16(len(chain))
	}
}

func (n *naive) answer() depths { return n.found }
