package routing

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/warmpath/warmpath/routing/pool"
)

// Target is where a request goes.
type Target struct {
	// Endpoints are the chosen endpoint and the ones to try after it, best
	// first, at least one. The slice is owned by the target.
	Endpoints []*pool.Endpoint
	// Strategy is the name of the strategy that decided.
	Strategy string
	Reason   Reason
	// PromptTokens is the prompt's length, 0 if it was not tokenized;
	// MatchedTokens how many of them, from the start, the chosen endpoint held.
	// PromptTokens is an estimate where Tokens.Unseen is not 0.
	PromptTokens, MatchedTokens int
	// Tokens says where the prompt's tokens came from.
	Tokens TokenView

	// work is the prefill work reserved on the endpoint, in tokens.
	work int64
	place
}

// place is what a target holds on its endpoint besides the work.
type place struct {
	// context is the prompt's length in tokens, estimated if it is not known.
	context int64
	// queued is how long the prefill is expected to take, until when.
	queued time.Duration
	until  time.Time
	// expected is how many cached tokens were predicted.
	expected int
	// observe, which may be nil, is told about outcomes.
	observe func(*pool.Endpoint, time.Time, pool.Outcome)
	prediction
	// recent knows the decision by its turn until its request ends.
	recent *recent
	turn   uint64
	// freed, which may be nil, is told that an endpoint counts one request less.
	// It must not block.
	freed func()
}

// release takes back what t holds on e. What is left of its prefill work
// drains by itself.
func (t *Target) release(e *pool.Endpoint, work int64) {
	e.State.Release(work)
	e.State.Return(t.turn)
	e.State.AddContext(-t.context)
	if t.freed != nil {
		t.freed()
	}
}

// end releases what t holds on e, because its request has ended. What it left
// in the cache of an endpoint with events is from now on what they say; of
// others only the prediction tells.
func (t *Target) end(e *pool.Endpoint, work int64) {
	t.release(e, work)
	if t.recent != nil {
		t.recent.end(t.turn)
	}
	if len(e.Publishers) > 0 {
		t.drop(e)
	}
}

// resolution is a final or done state of a Context.
type resolution struct {
	target Target
	err    *Error
	done   bool
}

// Context is the promise of a decision: one value per request, resolved
// exactly once by [Context.SetTarget] or [Context.SetError], awaited by
// [Context.Target], ended by [Context.Finish]. It carries the request's
// context, which ends with the request; it is the one type of this project
// that keeps a context in a struct, because it is the request.
//
// SetTarget, SetError, Target and HasRouted may be called by any goroutine.
// Served, Answered, Unanswered, Cached, PrefillDone and Finish belong to the one that owns the request.
type Context struct {
	context.Context
	Request Request

	// state is nil while the decision is pending. A swap of it is the only
	// step from pending to target or error, and from any of them to done.
	state    atomic.Pointer[resolution]
	resolved chan struct{}
	// finished is what state points to after done.
	finished resolution

	// until is written before Route returns.
	until time.Time

	// Written by the owner of the request only.
	target *Target
	held   *pool.Endpoint
	work   int64
}

// NewContext returns the pending promise of a request that lives as long as
// ctx.
func NewContext(ctx context.Context, r Request) *Context {
	return &Context{Context: ctx, Request: r, resolved: make(chan struct{}), finished: resolution{done: true}}
}

// SetTarget resolves the promise with a target whose reservation on its first
// endpoint the caller has made (see [Reserve]). It reports whether it was the
// first to resolve; if not, the reservation has been released again.
func (c *Context) SetTarget(t Target) bool {
	if c.state.CompareAndSwap(nil, &resolution{target: t}) {
		close(c.resolved)
		return true
	}
	t.end(t.Endpoints[0], t.work)
	t.drop(t.Endpoints[0])
	return false
}

// SetError resolves the promise with an error and reports whether it was the
// first to resolve.
func (c *Context) SetError(err *Error) bool {
	if c.state.CompareAndSwap(nil, &resolution{err: err}) {
		close(c.resolved)
		return true
	}
	return false
}

// Until returns when a strategy that lets the request wait resolves the promise
// at the latest; the zero time if Route has resolved it. It is known when Route
// returns: who awaits the promise grants that time on top of its own.
func (c *Context) Until() time.Time { return c.until }

// HasRouted tells, without blocking, whether the promise holds a target.
func (c *Context) HasRouted() bool {
	r := c.state.Load()
	return r != nil && !r.done && r.err == nil
}

// Target waits for the decision until ctx ends. A promise that was finished
// before it was resolved, and a ctx that ends first, give an error of
// [ReasonCanceled] or [ReasonTimeout].
func (c *Context) Target(ctx context.Context) (Target, *Error) {
	select {
	case <-c.resolved:
	default:
		select {
		case <-c.resolved:
		case <-c.Context.Done():
			return Target{}, &Error{Reason: ReasonCanceled, Message: "the request ended before it was routed"}
		case <-ctx.Done():
			return Target{}, &Error{Reason: ReasonTimeout, Message: "no routing decision within the deadline"}
		}
	}
	r := c.state.Load()
	switch {
	case r.done:
		return Target{}, &Error{Reason: ReasonCanceled, Message: "the request ended before it was routed"}
	case r.err != nil:
		return Target{}, r.err
	}
	c.target, c.held, c.work = &r.target, r.target.Endpoints[0], r.target.work
	return r.target, nil
}

// Served tells the promise which endpoint really answered. If that is not the
// one the reservation is on, because Envoy retried on another, the
// reservation moves. It reports whether it moved.
func (c *Context) Served(e *pool.Endpoint) bool {
	if c.held == nil || e == nil || e == c.held || e.State == c.held.State {
		return false
	}
	c.target.release(c.held, c.work)
	e.State.Reserve(c.work)
	e.State.Send(c.target.turn, c.work)
	e.State.AddContext(c.target.context)
	c.target.move(c.held, e, c.Request.Arrived)
	c.held = e
	return true
}

// Answered tells the promise the HTTP status of the answer, after
// [Context.Served]: endpoints that the proxy passed over or that answered
// badly cool down, and of an answer that is not streamed the prefill is over.
func (c *Context) Answered(status int, now time.Time) {
	if c.held == nil {
		return
	}
	for i, e := range c.target.Endpoints {
		if e.State == c.held.State {
			break
		}
		// Of a list that the proxy left altogether only the first endpoint is
		// known to have been tried.
		if i == 0 || slices.ContainsFunc(c.target.Endpoints, func(e *pool.Endpoint) bool { return e.State == c.held.State }) {
			c.observe(e, now, pool.OutcomeFailure)
		}
	}
	outcome := pool.OutcomeOf(status)
	c.observe(c.held, now, outcome)
	if outcome != pool.OutcomeSuccess || status >= 400 {
		c.target.drop(c.held) // nothing was computed
	}
	if !c.Request.Stream && c.held.State == c.target.Endpoints[0].State {
		c.held.State.Dequeue(now, c.target.until, c.target.queued)
		c.target.queued = 0
	}
}

// Unanswered tells the promise that the request ended before any answer, and
// that it had been waiting since it arrived. A client may have lost patience,
// or the endpoint hangs: several in a row cool it down.
func (c *Context) Unanswered(now time.Time) {
	if c.held == nil {
		return
	}
	c.target.drop(c.held)
	if now.Sub(c.Request.Arrived) >= patience {
		c.observe(c.held, now, pool.OutcomeFault)
	}
}

// patience is how long a request may wait before its end without an answer
// counts against its endpoint.
const patience = time.Second

// Cached tells the promise how many cached tokens the engine reports for the
// request. Endpoints whose reports fall short of the prediction are believed
// less.
func (c *Context) Cached(tokens int) {
	if c.held != nil && c.held.State == c.target.Endpoints[0].State {
		c.held.State.ObserveCached(c.target.expected, tokens)
	}
}

func (c *Context) observe(e *pool.Endpoint, now time.Time, o pool.Outcome) {
	if c.target.observe != nil {
		c.target.observe(e, now, o)
		return
	}
	e.State.Observe(now, o)
}

// PrefillDone takes the request's prefill work off its endpoint: the first
// token has been answered.
func (c *Context) PrefillDone() {
	if c.held == nil || c.work == 0 {
		return
	}
	c.held.State.PrefillDone(c.work)
	c.work = 0
}

// Finish ends the request, whatever ended it, and releases what is reserved.
// Only its first call does anything.
func (c *Context) Finish() {
	old := c.state.Swap(&c.finished)
	switch {
	case old == nil:
		close(c.resolved)
	case old.done || old.err != nil:
	case c.held != nil:
		c.target.end(c.held, c.work)
	default: // resolved, but nobody came for the target
		old.target.end(old.target.Endpoints[0], old.target.work)
	}
}
