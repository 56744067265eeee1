package sim

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The twin is told everything at once, whatever happens to events.
func TestTwin_Informed(t *testing.T) {
	w := generate(t, "shared-prefix", 300, 1)
	s := Scenario{Strategy: twin, Endpoints: 3, Speed: 0.5}
	want := simulate(t, s, w, 1)
	s.Lag, s.Loss = 3*time.Second, 0.3
	if d := cmp.Diff(want, simulate(t, s, w, 1)); d != "" {
		t.Errorf("late events change what it does: %s", d)
	}
	s.Strategy = tested
	if late := simulate(t, s, w, 1); late.MeanTTFT < want.MeanTTFT {
		t.Errorf("late events do not cost %s anything: %v s, its twin %v s", tested, late.MeanTTFT, want.MeanTTFT)
	}
}

// When the twin decides, its backlogs and rates are those of the engines.
func TestTwin_Exact(t *testing.T) {
	w := generate(t, "rag", 120, 1)
	s := Scenario{Strategy: twin, Endpoints: 3, Speed: 40, Slow: 0.4, Replicas: 2}.WithDefaults()
	r, err := newRun(s, newTraffic(w), 1)
	if err != nil {
		t.Fatal(err)
	}
	r.left = len(r.order)
	r.agenda.add(r.arrivals[0], arrive, 0)
	for range 300 { // all have arrived, most wait
		e := r.agenda.next()
		r.now = e.at
		if err := r.happen(e); err != nil {
			t.Fatal(err)
		}
	}
	p := r.choosers[1].(*product)
	p.inform(r.time())
	busy := 0
	for i := range r.endpoints {
		l, e := &r.links[i*r.Replicas+1], &r.endpoints[i]
		want, _ := e.prompts(r.now)
		if got := l.state.Backlog(r.time()); got != want {
			t.Errorf("endpoint %d: a backlog of %v, want %v", i, got, want)
		}
		if want > time.Second {
			busy++
		}
		load := l.state.Load()
		if got, want := 1e3/load.PrefillRate, e.core.Config().Profile.PerPrefillToken; got < want*0.999 || got > want*1.001 {
			t.Errorf("endpoint %d: %v ms a token, want %v", i, got, want)
		}
		if st := e.core.Stats(); int(load.Waiting) != st.Waiting || int(load.Running) != st.Running {
			t.Errorf("endpoint %d: %v waiting and %v running, want %d and %d", i, load.Waiting, load.Running, st.Waiting, st.Running)
		}
	}
	if busy == 0 {
		t.Error("nobody waits; the test shows nothing")
	}
}
