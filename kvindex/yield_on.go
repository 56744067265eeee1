//go:build kvyield

package kvindex

import "sync/atomic"

// gap names a yield point.
type gap uint8

const (
	gapFound   gap = iota // a segment was found and is not yet read or locked
	gapAbsent             // a segment was not found and is not yet made
	gapSpan               // it was read where a segment's blocks are, the blocks not yet
	gapList               // a segment's list of entries was read, the entries not yet
	gapMask               // a mask was read and its segment not yet validated
	gapWalk               // a match goes from one segment to the next
	gapCleared            // masks are zero and the generation is still the old one
	gapMoved              // around the replacement of an extent, before the new version
	gapNamed              // a name was inserted and not yet checked to be alone
)

// onYield is called at every gap; tests set it before they start.
var onYield atomic.Pointer[func(gap)]

func yield(g gap) {
	if f := onYield.Load(); f != nil {
		(*f)(g)
	}
}
