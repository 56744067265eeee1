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

// Endpoints of one model share their stays, those of another have others, and
// models that are gone are not kept.
func TestPool_SharesStaysByModel(t *testing.T) {
	p := New(Config{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), nil, rand.New(rand.NewPCG(1, 1)))
	at := func(i int) *stays {
		t.Helper()
		return p.Snapshot().Endpoints[i].State.stays.Load()
	}
	spec := func(i int, models ...string) Spec {
		return Spec{Name: fmt.Sprint("e", i), Address: fmt.Sprintf("10.0.0.%d:80", i), Models: models}
	}
	p.Set([]Spec{spec(1, "m"), spec(2, "m", "other"), spec(3, "other"), spec(4)})
	if at(0) == nil || at(0) != at(1) || at(0) == at(2) || at(2) == nil {
		t.Errorf("stays %p, %p and %p: want the first two to be the same, and another", at(0), at(1), at(2))
	}
	if at(3) != nil {
		t.Error("an endpoint of no known model shares its stays")
	}
	for i := range 100 {
		p.Set([]Spec{spec(1, fmt.Sprint("m", i))})
	}
	if n := len(p.stays); n > 3 {
		t.Errorf("the stays of %d models are kept, of one endpoint", n)
	}
}

func TestStays_ForgetWithTime(t *testing.T) {
	var s stays
	now := time.Unix(1000, 0)
	if got := s.add(now, Work{}); got != 0 {
		t.Errorf("%v s before any request ended", got)
	}
	s.add(now, Work{Seconds: 300, N: 100})
	if got := s.add(now.Add(time.Second), Work{}); math.Abs(got-3) > 1e-9 {
		t.Errorf("%v s, want 3", got)
	}
	// Five time constants later what was weighs less than a hundredth.
	if got := s.add(now.Add(5*time.Minute), Work{Seconds: 100, N: 100}); got < 1 || got > 1.02 {
		t.Errorf("%v s long after, want 1", got)
	}
}
