package server

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/kvindex"
)

// errStopped says that the engine was shut down.
var errStopped = errors.New("engine is shutting down")

// maxLag is how far the driver may fall behind its schedule and still catch
// up by shorter waits. Beyond that the time is lost.
const maxLag = 50 * time.Millisecond

// driver runs a core on the real clock. Its goroutine, run, is the only one
// that touches the core.
type driver struct {
	core    *engine.Core
	scale   float64
	publish func([]engine.Event, time.Time)
	metrics *metrics

	calls    chan func() // run at any time
	boundary chan func() // run between two steps
	stopped  chan struct{}
	streams  map[engine.SequenceID]*stream

	// state is written by run after every change, and read by scrapes.
	state atomic.Pointer[coreState]
}

// coreState is what scrapes read of the core.
type coreState struct {
	engine.Stats
	runningAdapters, waitingAdapters []string
	at                               time.Time
}

func newDriver(core *engine.Core, scale float64, m *metrics, publish func([]engine.Event, time.Time)) *driver {
	d := &driver{
		core:     core,
		scale:    scale,
		publish:  publish,
		metrics:  m,
		calls:    make(chan func()),
		boundary: make(chan func()),
		stopped:  make(chan struct{}),
		streams:  make(map[engine.SequenceID]*stream),
	}
	d.snapshot()
	return d
}

// stream carries the tokens of one sequence from the driver to its handler.
type stream struct {
	id      engine.SequenceID
	reason  string // to finish, for the metrics
	arrived time.Time
	last    time.Time     // the latest emission; only the driver uses it
	wake    chan struct{} // capacity 1

	mu       sync.Mutex // guards what follows
	tokens   []kvindex.TokenID
	finished *engine.Finished
	lost     bool // the engine was restarted
}

// take returns the tokens since the last call, and the summary if there will
// be no more. lost says that the sequence has gone with its engine.
func (s *stream) take() (tokens []kvindex.TokenID, finished *engine.Finished, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tokens = s.tokens
	s.tokens = nil
	return tokens, s.finished, s.lost
}

func (s *stream) lose() {
	s.mu.Lock()
	s.lost = true
	s.mu.Unlock()
	s.notify()
}

func (s *stream) put(token kvindex.TokenID) {
	s.mu.Lock()
	s.tokens = append(s.tokens, token)
	s.mu.Unlock()
	s.notify()
}

func (s *stream) finish(f engine.Finished) {
	s.mu.Lock()
	s.finished = &f
	s.mu.Unlock()
	s.notify()
}

func (s *stream) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run steps the core until ctx ends.
func (d *driver) run(ctx context.Context) {
	defer close(d.stopped)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var due time.Time
	for {
		now := time.Now()
		length, ok := d.core.Begin(now)
		d.snapshot()
		if !ok {
			due = time.Time{} // what comes next is not behind schedule
			select {
			case f := <-d.calls:
				f()
			case f := <-d.boundary:
				f()
			case <-ctx.Done():
				return
			}
			continue
		}
		if now.Sub(due) > maxLag {
			due = now
		}
		due = due.Add(time.Duration(float64(length) * d.scale))
		timer.Reset(time.Until(due))
		deferred, ok := d.wait(ctx, timer)
		if !ok {
			return
		}
		now = time.Now()
		d.deliver(now, d.core.End(now))
		for _, f := range deferred {
			f()
		}
	}
}

// wait serves calls until the step's time has passed, and returns those that
// must wait for the boundary. It reports false if ctx ended first.
func (d *driver) wait(ctx context.Context, timer *time.Timer) (deferred []func(), ok bool) {
	for {
		select {
		case f := <-d.calls:
			f()
			d.snapshot()
		case f := <-d.boundary:
			deferred = append(deferred, f)
		case <-timer.C:
			return deferred, true
		case <-ctx.Done():
			return nil, false
		}
	}
}

func (d *driver) deliver(now time.Time, r engine.StepResult) {
	if len(r.Events) > 0 {
		d.publish(r.Events, now)
	}
	for _, e := range r.Emitted {
		s := d.streams[e.ID]
		if s.last.IsZero() {
			d.metrics.timeToFirstToken.Observe(now.Sub(s.arrived).Seconds())
		} else {
			d.metrics.interTokenLatency.Observe(now.Sub(s.last).Seconds())
		}
		s.last = now
		s.put(e.Token)
	}
	// Ended requests are counted before they stop running: who adds both up, as
	// routers do, must not miss one for good.
	for i := range r.Finished {
		f := &r.Finished[i]
		d.metrics.ended(f, d.streams[f.ID].reason)
	}
	d.snapshot()
	for _, f := range r.Finished {
		s := d.streams[f.ID]
		delete(d.streams, f.ID)
		s.finish(f)
	}
}

// replace puts a new core in the place of the old one, whose sequences are
// lost. It runs between two steps.
func (d *driver) replace(core *engine.Core) {
	for _, s := range d.streams {
		s.lose()
	}
	clear(d.streams)
	d.core = core
	d.snapshot()
}

func (d *driver) snapshot() {
	s := &coreState{Stats: d.core.Stats(), at: time.Now()}
	s.runningAdapters, s.waitingAdapters = d.core.Adapters()
	d.state.Store(s)
}

// call runs f on the driver's goroutine, through the channel that says when,
// and waits for its end.
func (d *driver) call(ctx context.Context, when chan<- func(), f func()) error {
	done := make(chan struct{})
	select {
	case when <- func() { defer close(done); f() }:
	case <-d.stopped:
		return errStopped
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-d.stopped:
		// A call that waits for the boundary is lost with the step.
		return errStopped
	}
}

// submit starts a sequence, which will finish for a reason.
func (d *driver) submit(ctx context.Context, r engine.Request, reason string) (*stream, error) {
	s := &stream{reason: reason, wake: make(chan struct{}, 1)}
	var refused error
	err := d.call(ctx, d.calls, func() {
		s.arrived = time.Now()
		s.id, refused = d.core.Submit(s.arrived, r)
		if refused == nil {
			d.streams[s.id] = s
		}
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// abort ends a sequence whose client has gone.
func (d *driver) abort(s *stream) {
	// The client's context has ended; only the engine's end may cut this off.
	_ = d.call(context.Background(), d.calls, func() {
		if d.core.Abort(s.id) {
			delete(d.streams, s.id)
			d.metrics.success.WithLabelValues(finishAbort).Inc()
		}
	})
}
