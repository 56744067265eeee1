//go:build !race

package routing

import (
	"context"
	"testing"

	"github.com/warmpath/warmpath/kvindex"
)

// allocsPerDecision is what one warm decision may allocate: the promise and
// its channel, the list of endpoints, the resolution; and what the index keeps
// of the prediction.
const allocsPerDecision = 4 + 2

func TestRoute_AllocatesNoMoreThanStated(t *testing.T) {
	w := newWorld(t, static(16), nil)
	prompt := tokens(0, 512)
	w.hold(3, kvindex.Scope{Model: "m"}, prompt)
	r := ids("m", prompt)
	got := testing.AllocsPerRun(200, func() {
		c := NewContext(context.Background(), r)
		w.router.Route(c)
		c.Finish()
	})
	if got > allocsPerDecision {
		t.Errorf("a decision allocates %v times, want %d at most", got, allocsPerDecision)
	}
}
