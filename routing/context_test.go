package routing

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warmpath/warmpath/routing/pool"
)

func endpoint(name string) *pool.Endpoint {
	return &pool.Endpoint{Spec: pool.Spec{Name: name}, State: &pool.State{}}
}

// reserved returns a target on e whose reservation is made.
func reserved(e *pool.Endpoint, work int64) Target {
	e.State.Reserve(work)
	return Target{Endpoints: []*pool.Endpoint{e}, work: work}
}

func wantInFlight(t *testing.T, e *pool.Endpoint, requests, tokens int64) {
	t.Helper()
	if r, p := e.State.InFlight(), e.State.PrefillTokens(); r != requests || p != tokens {
		t.Errorf("%s has %d requests and %d prefill tokens in flight, want %d and %d", e.Name, r, p, requests, tokens)
	}
}

func TestContext_FirstResolutionWins(t *testing.T) {
	a, b := endpoint("a"), endpoint("b")
	c := NewContext(t.Context(), Request{})
	if c.HasRouted() {
		t.Error("a pending promise has routed")
	}
	if !c.SetTarget(reserved(a, 10)) {
		t.Fatal("the first SetTarget lost")
	}
	if c.SetTarget(reserved(b, 20)) {
		t.Error("a second SetTarget won")
	}
	if c.SetError(&Error{Reason: ReasonTimeout}) {
		t.Error("SetError won after SetTarget")
	}
	if !c.HasRouted() {
		t.Error("HasRouted is false after SetTarget")
	}
	target, err := c.Target(t.Context())
	if err != nil || target.Endpoints[0] != a {
		t.Fatalf("Target = %v, %v; want endpoint a", target, err)
	}
	wantInFlight(t, a, 1, 10)
	wantInFlight(t, b, 0, 0)
	c.Finish()
	c.Finish()
	wantInFlight(t, a, 0, 0)
	if c.HasRouted() {
		t.Error("a finished promise has routed")
	}
}

func TestContext_LateResolverReleases(t *testing.T) {
	a := endpoint("a")
	c := NewContext(t.Context(), Request{})
	c.Finish()
	if c.SetTarget(reserved(a, 7)) {
		t.Error("SetTarget won after Finish")
	}
	wantInFlight(t, a, 0, 0)
	if _, err := c.Target(t.Context()); err == nil || err.Reason != ReasonCanceled {
		t.Errorf("Target after Finish: %v, want %v", err, ReasonCanceled)
	}
}

func TestContext_FinishReleasesATargetNobodyCameFor(t *testing.T) {
	a := endpoint("a")
	c := NewContext(t.Context(), Request{})
	c.SetTarget(reserved(a, 7))
	c.Finish()
	wantInFlight(t, a, 0, 0)
}

func TestContext_ServedMovesTheReservation(t *testing.T) {
	a, b := endpoint("a"), endpoint("b")
	c := NewContext(t.Context(), Request{})
	c.SetTarget(reserved(a, 7))
	if _, err := c.Target(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Served(a) || c.Served(nil) {
		t.Error("Served moved a reservation that was in its place")
	}
	if !c.Served(b) {
		t.Error("Served did not move the reservation")
	}
	wantInFlight(t, a, 0, 0)
	wantInFlight(t, b, 1, 7)
	c.PrefillDone()
	c.PrefillDone()
	wantInFlight(t, b, 1, 0)
	c.Finish()
	wantInFlight(t, b, 0, 0)
}

func TestContext_TargetWaits(t *testing.T) {
	tests := []struct {
		name string
		act  func(c *Context, cancelWait, cancelRequest context.CancelFunc)
		want Reason
	}{
		{"error", func(c *Context, _, _ context.CancelFunc) { c.SetError(&Error{Reason: ReasonNoEndpoint}) }, ReasonNoEndpoint},
		{"deadline", func(_ *Context, cancelWait, _ context.CancelFunc) { cancelWait() }, ReasonTimeout},
		{"request gone", func(_ *Context, _, cancelRequest context.CancelFunc) { cancelRequest() }, ReasonCanceled},
		{"finished", func(c *Context, _, _ context.CancelFunc) { c.Finish() }, ReasonCanceled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancelRequest := context.WithCancel(t.Context())
			defer cancelRequest()
			wait, cancelWait := context.WithTimeout(t.Context(), time.Minute)
			defer cancelWait()
			c := NewContext(ctx, Request{})
			got := make(chan *Error)
			go func() {
				_, err := c.Target(wait)
				got <- err
			}()
			tt.act(c, cancelWait, cancelRequest)
			if err := <-got; err == nil || err.Reason != tt.want {
				t.Errorf("Target: %v, want %v", err, tt.want)
			}
		})
	}
}

// Whatever order resolvers and the end of the request come in, one resolver at
// most wins and nothing stays reserved.
func TestContext_ConcurrentEndsReleaseExactlyOnce(t *testing.T) {
	for range 300 {
		a, b := endpoint("a"), endpoint("b")
		c := NewContext(t.Context(), Request{})
		var wins atomic.Int32
		var wg sync.WaitGroup
		for _, e := range []*pool.Endpoint{a, b, a, b} {
			wg.Go(func() {
				if c.SetTarget(reserved(e, 3)) {
					wins.Add(1)
				}
			})
		}
		wg.Go(func() {
			if c.SetError(&Error{Reason: ReasonTimeout}) {
				wins.Add(1)
			}
		})
		wg.Go(func() {
			_, _ = c.Target(t.Context())
			c.Finish()
		})
		wg.Wait()
		if wins.Load() != 1 {
			t.Fatalf("%d resolvers won, want 1", wins.Load())
		}
		wantInFlight(t, a, 0, 0)
		wantInFlight(t, b, 0, 0)
	}
}
