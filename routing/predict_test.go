package routing

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// predictions is an index that remembers whole chains for ever.
type predictions struct {
	*kvindex.Index
	chains map[string][]kvindex.BlockHash // by endpoint/request
	blocks map[kvindex.EndpointID]int
	open   map[kvindex.EndpointID]kvindex.Publisher
}

func newPredictions(t *testing.T) *predictions {
	ix, err := kvindex.New(kvindex.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return &predictions{ix, map[string][]kvindex.BlockHash{}, map[kvindex.EndpointID]int{}, map[kvindex.EndpointID]kvindex.Publisher{}}
}

func predicted(e kvindex.EndpointID, request uint64) string { return fmt.Sprintf("%d/%d", e, request) }

func (p *predictions) Open(pub kvindex.Publisher) (*kvindex.Writer, error) {
	w, err := p.Index.Open(pub)
	if err == nil {
		p.open[pub.Endpoint] = pub
	}
	return w, err
}

func (p *predictions) Approximate(e kvindex.EndpointID, blocks int) { p.blocks[e] = blocks }

func (p *predictions) Predict(e kvindex.EndpointID, request uint64, chain []kvindex.BlockHash, _ time.Time) bool {
	if _, ok := p.open[e]; ok {
		p.chains[predicted(e, request)] = append([]kvindex.BlockHash(nil), chain...)
	}
	return p.chains[predicted(e, request)] != nil
}

func (p *predictions) Move(request uint64, from, to kvindex.EndpointID, now time.Time) bool {
	chain := p.chains[predicted(from, request)]
	return p.Drop(from, request) && p.Predict(to, request, chain, now)
}

func (p *predictions) Drop(e kvindex.EndpointID, request uint64) bool {
	_, ok := p.chains[predicted(e, request)]
	delete(p.chains, predicted(e, request))
	return ok
}

func (p *predictions) Match(dst []kvindex.Match, chain []kvindex.BlockHash, _ time.Time, _ func(kvindex.Publisher) bool) []kvindex.Match {
	best := map[kvindex.EndpointID]int{}
	for key, held := range p.chains {
		var e kvindex.EndpointID
		var request uint64
		_, _ = fmt.Sscanf(key, "%d/%d", &e, &request)
		best[e] = max(best[e], common(held, chain))
	}
	for e, n := range best {
		if n > 0 {
			dst = append(dst, kvindex.Match{Publisher: p.open[e], Predicted: uint32(n)})
		}
	}
	return dst
}

// Endpoints without events are routed by what was sent there.
func TestApproximate_RoutesByWhatWasSent(t *testing.T) {
	specs := engines(3)
	for i := range specs {
		specs[i].Events = ""
	}
	r := fleet(t, specs...)
	ix := newPredictions(t)
	r.index, r.predictor = ix, ix
	r.approximate = &approximate{index: ix, writers: map[kvindex.EndpointID]*kvindex.Writer{}}
	es := r.pool.Snapshot().Endpoints
	es[2].State.SetLoad(&pool.Load{Has: pool.FieldCapacity, Capacity: 3200, BlockSize: 16})
	prompt := tokens(0, 4096)
	c, target := choose(t, r, ids("m", prompt))
	home := target.Endpoints[0]
	if target.Reason != ReasonCold {
		t.Errorf("the first request is routed by %v, want cold", target.Reason)
	}
	c.Answered(200, now)
	c.Finish()
	if diff := cmp.Diff(map[kvindex.EndpointID]int{0: 6250, 1: 6250, 2: 200}, ix.blocks); diff != "" {
		t.Errorf("blocks kept (-want +got):\n%s", diff)
	}
	for range 5 {
		c, target := choose(t, r, ids("m", prompt))
		if target.Endpoints[0] != home || target.Reason != ReasonPrefix || target.MatchedTokens != 0 {
			t.Errorf("went to %s by %v with %d tokens matched; want %s by prefix, and nothing claimed as held", target.Endpoints[0].Name, target.Reason, target.MatchedTokens, home.Name)
		}
		c.Finish()
	}
	d := r.Decisions(nil)[0]
	if v := d.Candidates[0]; v.Source != sourceApproximate || v.ExpectedTokens != 4080 || v.MatchedTokens != 0 {
		t.Errorf("the explanation says %+v", v)
	}
}

func TestPredict_FollowsTheRequest(t *testing.T) {
	specs := engines(3)
	for i := range specs {
		specs[i].Events = ""
	}
	tests := []struct {
		name string
		act  func(c *Context, target Target)
		want func(target Target) int // endpoint that is predicted to hold; -1: none
	}{
		{"answered", func(c *Context, _ Target) { c.Answered(200, now) }, func(t Target) int { return int(t.Endpoints[0].ID) }},
		{"retried elsewhere", func(c *Context, t Target) { c.Served(t.Endpoints[1]); c.Answered(200, now) }, func(t Target) int { return int(t.Endpoints[1].ID) }},
		{"failed", func(c *Context, _ Target) { c.Answered(503, now) }, func(Target) int { return -1 }},
		{"refused by the engine", func(c *Context, _ Target) { c.Answered(400, now) }, func(Target) int { return -1 }},
		{"ended unanswered", func(c *Context, _ Target) { c.Unanswered(now) }, func(Target) int { return -1 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := fleet(t, specs...)
			ix := newPredictions(t)
			r.index, r.predictor = ix, ix
			r.approximate = &approximate{index: ix, writers: map[kvindex.EndpointID]*kvindex.Writer{}}
			c, target := choose(t, r, ids("m", tokens(0, 400)))
			tt.act(c, target)
			c.Finish()
			want := map[string]int{}
			if e := tt.want(target); e >= 0 {
				want[predicted(kvindex.EndpointID(e), maxChains)] = 24
			}
			got := map[string]int{}
			for k, chain := range ix.chains {
				got[k] = len(chain)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("blocks predicted by endpoint/request (-want +got):\n%s", diff)
			}
		})
	}
	// What a request left where there are events is theirs to say.
	r := fleet(t, engines(1)...)
	ix := newPredictions(t)
	r.index, r.predictor = ix, ix
	e := r.pool.Snapshot().Endpoints[0]
	if _, err := ix.Open(e.Publishers[0].Publisher); err != nil {
		t.Fatal(err)
	}
	e.State.ObserveBlockSize(16)
	c, _ := choose(t, r, ids("m", tokens(0, 400)))
	if len(ix.chains) != 1 {
		t.Errorf("%d predictions of a request in flight, want 1", len(ix.chains))
	}
	c.Answered(200, now)
	c.Finish()
	if len(ix.chains) != 0 {
		t.Errorf("%d predictions after the request ended, want none", len(ix.chains))
	}

	// A request that ended before it was decided leaves nothing.
	r = fleet(t, specs...)
	ix = newPredictions(t)
	r.index, r.predictor = ix, ix
	r.approximate = &approximate{index: ix, writers: map[kvindex.EndpointID]*kvindex.Writer{}}
	c = NewContext(t.Context(), ids("m", tokens(0, 400)))
	c.Finish()
	r.Route(c)
	if len(ix.chains) != 0 {
		t.Errorf("%d predictions of a request that had ended", len(ix.chains))
	}
}

// In a pool where some endpoints have events and some have none, guesses take
// no id that an event stream may need.
func TestApproximate_LeavesPublishersTheirIDs(t *testing.T) {
	specs := engines(3)
	specs[0].Events, specs[2].Events = "", ""
	r := fleet(t, specs...)
	ix, err := kvindex.New(kvindex.Config{})
	if err != nil {
		t.Fatal(err)
	}
	a := &approximate{index: ix, writers: map[kvindex.EndpointID]*kvindex.Writer{}}
	snap := r.pool.Snapshot()
	a.follow(snap, now)
	if len(a.writers) != 2 {
		t.Errorf("%d endpoints without events have a writer, want 2", len(a.writers))
	}
	for _, e := range snap.Endpoints {
		for _, p := range e.Publishers {
			w, err := ix.Open(p.Publisher)
			if err != nil {
				t.Fatalf("the event stream of %s: %v", e.Name, err)
			}
			w.Close()
		}
	}
	for _, w := range a.writers {
		w.Close()
	}
}

// While Run follows the pool, a decision does no work for endpoints that come
// and go.
func TestApproximate_IsFollowedByRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		specs := engines(1)
		specs[0].Events = ""
		r := fleet(t, specs...)
		ix := newPredictions(t)
		r.approximate = &approximate{index: ix, writers: map[kvindex.EndpointID]*kvindex.Writer{}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		if len(r.approximate.writers) != 1 || !r.approximate.attended.Load() {
			t.Errorf("%d writers; want that of the endpoint, opened by Run", len(r.approximate.writers))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
