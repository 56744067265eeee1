package routing

import (
	"math"
	"testing"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

func TestWaits_FollowsWhatRequestsWait(t *testing.T) {
	w := waits{at: now}
	w.add(now, 100) // at one instant only the first counts, and it has no weight
	if w.seconds != 0 {
		t.Errorf("a wait at the same instant counts: %v", w.seconds)
	}
	w.add(now.Add(waitsWindow), 10)
	if want := 10 * (1 - math.Exp(-1)); math.Abs(w.seconds-want) > 1e-9 {
		t.Errorf("after one time constant %v, want %v", w.seconds, want)
	}
	w.add(now.Add(-time.Hour), 1000) // a clock that went back changes nothing
	w.add(now.Add(time.Hour), 3)
	if math.Abs(w.seconds-3) > 1e-9 {
		t.Errorf("after an hour of nothing else %v, want 3", w.seconds)
	}
}

// Where everybody waits, work that a holder saves counts for more than a
// shorter queue elsewhere; where nobody does, it does not.
func TestRoute_PressureKeepsPromptsWhereTheyAreCached(t *testing.T) {
	for _, everywhere := range []bool{false, true} {
		w := newWorld(t, static(2), nil)
		prompt := tokens(0, 200) // 2 s of prefill
		w.hold(0, kvindex.Scope{Model: "m"}, prompt[:96])
		holder, other := w.pool.Snapshot().Endpoints[0].State, w.pool.Snapshot().Endpoints[1].State
		holder.Enqueue(now, 4*time.Second)
		if everywhere {
			holder.Enqueue(now, 20*time.Second)
			other.Enqueue(now, 20*time.Second)
		}
		if everywhere { // somebody has to have waited
			req := ids("m", tokens(10_000, 8))
			req.Arrived = now.Add(-time.Millisecond)
			if c, _, err := w.route(req); err == nil {
				c.Finish()
			}
		}
		req := ids("m", prompt)
		req.Arrived = now
		_, target, err := w.route(req)
		if err != nil {
			t.Fatal(err)
		}
		want := map[bool]string{false: "e1", true: "e0"}[everywhere]
		if got := target.Endpoints[0].Name; got != want {
			t.Errorf("queues everywhere %v: went to %s, want %s", everywhere, got, want)
		}
	}
}
