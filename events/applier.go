package events

import (
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Applier applies the payloads of one publisher to its Writer without a
// subscription, in the order given: what a simulator or a replay needs of this
// package. Gaps, restarts and trust are the caller's. Not safe for concurrent
// use.
type Applier struct{ applier applier }

// NewApplier returns the applier of a publisher of a base model, whose block
// sizes are recorded in state.
func NewApplier(hasher kvindex.Hasher, model string, state *pool.State, w *kvindex.Writer) *Applier {
	return &Applier{applier{hasher: hasher, model: model, state: state, to: w}}
}

// Apply decodes a payload and applies its events. It reports whether all of
// them could be.
func (a *Applier) Apply(payload []byte) bool {
	var n tally
	out, _ := a.applier.apply(payload, &n)
	return !out.missed && !out.tainted
}
