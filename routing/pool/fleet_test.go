package pool

import (
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Endpoints of one model share a fleet, those of another have another, and
// models that are gone are not kept.
func TestPool_SharesAFleetByModel(t *testing.T) {
	p := New(Config{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), nil, rand.New(rand.NewPCG(1, 1)))
	at := func(i int) *fleet {
		t.Helper()
		return p.Snapshot().Endpoints[i].State.fleet.Load()
	}
	spec := func(i int, models ...string) Spec {
		return Spec{Name: fmt.Sprint("e", i), Address: fmt.Sprintf("10.0.0.%d:80", i), Models: models}
	}
	p.Set([]Spec{spec(1, "m"), spec(2, "m", "other"), spec(3, "other"), spec(4)})
	if at(0) == nil || at(0) != at(1) || at(0) == at(2) || at(2) == nil {
		t.Errorf("fleets %p, %p and %p: want the first two to be the same, and another", at(0), at(1), at(2))
	}
	if at(3) != nil {
		t.Error("an endpoint of no known model has a fleet")
	}
	kept := at(0)
	for i := range 100 { // the second one changes its model, and the first stays
		p.Set([]Spec{spec(1, "m"), spec(2, fmt.Sprint("m", i))})
	}
	p.Set([]Spec{spec(1, "m"), spec(2, "m")})
	if at(0) != kept || at(1) != kept {
		t.Errorf("fleets %p and %p, want both to be %p as before", at(0), at(1), kept)
	}
	if n := len(p.fleets); n > 3 {
		t.Errorf("the fleets of %d models are kept, of two endpoints", n)
	}
}

func TestFleet_ForgetsStaysWithTime(t *testing.T) {
	var s fleet
	now := time.Unix(1000, 0)
	if got := s.stay(now, Work{}); got != 0 {
		t.Errorf("%v s before any request ended", got)
	}
	s.stay(now, Work{Seconds: 300, N: 100})
	if got := s.stay(now.Add(time.Second), Work{}); math.Abs(got-3) > 1e-9 {
		t.Errorf("%v s, want 3", got)
	}
	// Five time constants later what was weighs less than a hundredth.
	if got := s.stay(now.Add(5*time.Minute), Work{Seconds: 100, N: 100}); got < 1 || got > 1.02 {
		t.Errorf("%v s long after, want 1", got)
	}
}
