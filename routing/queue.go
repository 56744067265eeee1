package routing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/warmpath/warmpath/routing/pool"
)

// QueueConfig bounds the strategy queue.
type QueueConfig struct {
	// Strategy places the requests: a name or a weighted blend, not queue itself;
	// empty: least-request.
	Strategy string `yaml:"strategy" help:"strategy queue: strategy, or weighted blend, that places its requests on the endpoints with room"`
	// MaxInFlight is how many requests of this router an endpoint may run at a
	// time before requests wait. 0: nothing ever waits.
	MaxInFlight int `yaml:"max_in_flight" help:"strategy queue: requests of this router that an endpoint may run before others wait; 0: none ever waits"`
	// MaxWaiting is how many requests may wait for one model.
	MaxWaiting int `yaml:"max_waiting" help:"strategy queue: requests that may wait for one model; more get 429"`
	// Deadline is how long a request may wait.
	Deadline time.Duration `yaml:"deadline" help:"strategy queue: how long a request may wait before it gets 429; Envoy's message_timeout must be longer by extproc.decision_timeout"`
}

// DefaultQueueConfig returns the section where nothing is set.
func DefaultQueueConfig() QueueConfig {
	return QueueConfig{Strategy: queuePlacer, MaxWaiting: 1024, Deadline: 30 * time.Second}
}

// Wait returns how long a decision may take because of the queue.
func (c QueueConfig) Wait() time.Duration {
	if c.MaxInFlight == 0 {
		return 0
	}
	return c.Deadline
}

// queuePlacer is the strategy that places requests where none is configured.
const queuePlacer = "least-request"

// placer returns the strategy that places requests.
func (c QueueConfig) placer(table map[string]*strategy) (*strategy, error) {
	s, err := lookUp(table, cmp.Or(c.Strategy, queuePlacer))
	if err == nil && s.queues {
		return nil, errors.New("queue cannot place its own requests; use another strategy, for example prefix-cache")
	}
	return s, err
}

func (c QueueConfig) validate() []error {
	var errs []error
	if _, err := c.placer(strategyTable()); err != nil {
		errs = append(errs, fmt.Errorf("queue.strategy: %w", err))
	}
	if c.MaxInFlight < 0 || c.MaxInFlight > 1<<20 {
		errs = append(errs, fmt.Errorf("queue.max_in_flight: %d is out of range; use 1 to %d, or 0 for no limit", c.MaxInFlight, 1<<20))
	}
	if c.MaxWaiting < 1 || c.MaxWaiting > 1<<16 {
		errs = append(errs, fmt.Errorf("queue.max_waiting: %d is out of range; use 1 to %d", c.MaxWaiting, 1<<16))
	}
	if c.Deadline <= 0 || c.Deadline > time.Hour {
		errs = append(errs, fmt.Errorf("queue.deadline: %s is out of range; use more than 0s, up to 1h", c.Deadline))
	}
	return errs
}

// errQueueOff says why the strategy cannot be configured as it is.
var errQueueOff = errors.New("queue without routing.queue.max_in_flight lets no request wait; set it to how many requests an endpoint may run at a time")

// strategyQueue is another strategy, routing.queue.strategy, among the endpoints
// that have room. If none has, the request waits in line and its promise is
// resolved as endpoints get room: see [Router.Run]. It is placed with the load
// and the caches of that moment, but tokenized when it arrives.
//
// Formula: that of the other strategy, of endpoints with fewer requests in
// flight than routing.queue.max_in_flight. The limit is this router's own: requests of other strategies count against
// it and are not held back by it, and Envoy's retries may go to an endpoint that
// had room when the list was made.
func strategyQueue() strategy {
	return strategy{
		name: "queue", doc: "what `routing.queue.strategy` chooses, the fewest requests in flight by default, of the endpoints with room; waits for room, by turns over users, if none has any",
		formula: "that of `routing.queue.strategy`", unit: UnitRequests, needs: "own accounting, `routing.queue.max_in_flight`", missing: "as in `routing.queue.strategy`",
		cost: costInFlight, reason: ReasonLoad, queues: true,
	}
}

// queued is the strategy queue whose requests s places.
func (s *strategy) queued() *strategy {
	q := *s
	q.name, q.queues = "queue", true
	// Candidates without room are left out before any is weighed.
	q.alone = false
	q.seconds = nil
	return &q
}

// knownTokens is what was known of a prompt's tokens when its request came: who
// waits is not tokenized again, least of all under the router's lock.
type knownTokens struct {
	tokens []Tokens
	// reason is why there are none, [ReasonNone] if there are some.
	reason Reason
}

// keep copies what a decision has found out about the tokens.
func (sc *scratch) keep(p *prospect) knownTokens {
	switch {
	case !p.matches:
		return knownTokens{reason: ReasonNoPrompt}
	case p.tokens.Source == TokensNone:
		return knownTokens{reason: p.reason}
	}
	all := slices.Clone(sc.tokens)
	for i := range all {
		all[i].Blocks = slices.Clone(all[i].Blocks)
		for j := range all[i].Blocks {
			all[i].Blocks[j].Contents = slices.Clone(all[i].Blocks[j].Contents)
		}
	}
	return knownTokens{tokens: all}
}

// queue is the requests that wait, and what wakes the loop that serves them.
type queue struct {
	// line is guarded by the router's lock.
	line line
	// pace is the mean time that those who were served have waited, lately. The
	// router's lock guards it.
	pace time.Duration
	// waiting is line.n, for those who do not hold the lock.
	waiting atomic.Int64
	// wake has a value when the loop must look again.
	wake chan struct{}
	// release is released, made a value once.
	release func()

	length prometheus.Gauge
	waits  prometheus.Histogram
}

func newQueue(reg prometheus.Registerer) *queue {
	f := promauto.With(reg)
	q := &queue{
		wake: make(chan struct{}, 1),
		length: f.NewGauge(prometheus.GaugeOpts{
			Name: "warmpath_routing_queue_waiting",
			Help: "Requests that wait for an endpoint with room.",
		}),
		waits: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "warmpath_routing_queue_wait_seconds",
			Help:    "How long requests waited that got an endpoint after waiting.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
		}),
	}
	q.release = q.released
	return q
}

// released is called whenever a request stops being counted on an endpoint.
func (q *queue) released() {
	if q.waiting.Load() > 0 {
		q.nudge()
	}
}

func (q *queue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// changed publishes the length of the line. The router's lock is held.
func (q *queue) changed() {
	q.waiting.Store(int64(q.line.n))
	q.length.Set(float64(q.line.n))
}

// refused returns the error of a request that leaves the line unserved. The
// router's lock is held.
func (q *queue) refused(reason Reason, format string, args ...any) *Error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, args...), RetryAfter: max(time.Second, q.pace)}
}

// paceWeight is the weight of the newest wait in the mean.
const paceWeight = 8

func (q *queue) served(waited time.Duration) {
	// Who arrived while the time was taken has waited for less than nothing.
	waited = max(0, waited)
	q.pace += (waited - q.pace) / paceWeight
	q.waits.Observe(waited.Seconds())
}

// withRoom keeps the candidates that may take one more request. The router's
// lock is held, so that none of them gets one in between.
func (sc *scratch) withRoom(limit int) bool {
	sc.unindex() // others move up
	sc.candidates = slices.DeleteFunc(sc.candidates, func(c Candidate) bool { return !hasRoom(c.Endpoint, limit) })
	return len(sc.candidates) > 0
}

func hasRoom(e *pool.Endpoint, limit int) bool {
	return limit == 0 || e.State.InFlight() < int64(limit)
}

// routeQueued resolves c at once, if there is room and nobody waits, or puts
// it in line.
func (r *Router) routeQueued(st *settings, c *Context, sc *scratch, p *prospect) {
	cfg := st.cfg.Queue
	w := &waiter{promise: c, model: r.lineOf(c.Request.Model), deadline: c.Request.Arrived.Add(cfg.Deadline)}
	sc.longest()
	held := sc.reported > 0
	r.mu.Lock()
	if !r.queue.line.waits(w.model) && sc.withRoom(cfg.MaxInFlight) {
		if sc.longest(); held && sc.reported == 0 {
			p.reason = ReasonSpill // who holds it has no room
		}
		t, turn := r.choose(st, &c.Request, sc, p)
		r.mu.Unlock()
		r.resolve(c, sc, &t, turn, p)
		return
	}
	w.known = sc.keep(p)
	// Before it is in line: nobody else writes it, and whoever resolves the
	// promise from there on does so after this.
	c.until = w.deadline
	w.leave = context.AfterFunc(c.Context, func() { r.leave(w) })
	left := r.queue.line.push(w, cfg.MaxWaiting)
	var full *Error
	if left != nil {
		full = r.queue.refused(ReasonQueueFull, "%d requests for the model wait already, which is the limit (routing.queue.max_waiting)", cfg.MaxWaiting)
	}
	r.queue.changed()
	r.mu.Unlock()
	if left != nil {
		left.leave()
		r.fail(left.promise, full)
	}
	// There may be room for this one that those before it may not use, and the
	// loop must know its deadline.
	r.queue.nudge()
}

// lineOf returns the name of the line for requests for a model. Models that no
// endpoint lists yet share one: their names come from clients.
func (r *Router) lineOf(model string) string {
	if _, ok := r.pool.Snapshot().Model(model); ok {
		return model
	}
	return ""
}

// leave takes out a request that has ended.
func (r *Router) leave(w *waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue.line.remove(w)
	r.queue.changed()
}

// recheck is how often the line is looked at without a reason: that endpoints
// may be tried again after a failure is told by nobody.
const recheck = time.Second

// Run resolves the promises of requests that wait in line, as endpoints get
// room or deadlines pass, and keeps guesses for endpoints as they come and go,
// until ctx ends. Requests that wait then are left to their deadlines. It
// returns nil.
func (r *Router) Run(ctx context.Context) error {
	timer := time.NewTimer(recheck)
	defer timer.Stop()
	if r.approximate != nil {
		r.approximate.attended.Store(true)
		defer r.approximate.attended.Store(false)
	}
	for {
		snap := r.pool.Snapshot()
		superseded := snap.Superseded()
		now := time.Now()
		next := r.dispatch(now)
		if r.approximate != nil {
			r.approximate.follow(snap, now)
			next = cmp.Or(min(next, approximateEvery), approximateEvery)
		}
		if next > 0 {
			timer.Reset(next)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.queue.wake:
		case <-superseded:
		case <-timer.C:
		}
	}
}

// outcome is what becomes of a request that has waited.
type outcome struct {
	promise *Context
	p       prospect
	target  Target
	err     *Error
}

// dispatch serves the line at now and returns in what time it must be looked at
// again, 0 if nobody waits.
func (r *Router) dispatch(now time.Time) time.Duration {
	sc := r.scratch.Get().(*scratch)
	defer r.put(sc)
	st := r.settings.Load()
	var done []outcome
	next := time.Duration(0)

	r.mu.Lock()
	for _, w := range r.queue.line.expire(now) {
		w.leave()
		done = append(done, outcome{promise: w.promise, err: r.queue.refused(ReasonQueueTimeout,
			"no endpoint had room for the request within %s (routing.queue.deadline)", w.deadline.Sub(w.promise.Request.Arrived))})
	}
	r.queue.line.serve(
		func(model string) bool { return r.anyRoom(model, st.cfg.Queue.MaxInFlight) },
		func(w *waiter) bool {
			o, ok := r.tryQueued(st, w, sc, now)
			if ok {
				w.leave()
				done = append(done, o)
			}
			return ok
		},
	)
	r.queue.changed()
	if r.queue.line.n > 0 {
		next = min(recheck, max(time.Millisecond, r.queue.line.earliest.Sub(now)))
	}
	r.mu.Unlock()

	for i := range done {
		if o := &done[i]; o.err != nil {
			r.fail(o.promise, o.err)
		} else if o.promise.SetTarget(o.target) {
			r.metrics.decided(o.p.metricName(), o.target)
		}
	}
	return next
}

// anyRoom tells whether an endpoint that serves the model has room, or none
// does serve it, which its requests must be told.
func (r *Router) anyRoom(model string, limit int) bool {
	endpoints := r.pool.Snapshot().Endpoints
	if m, ok := r.pool.Snapshot().Model(model); ok {
		endpoints = m.Endpoints
	}
	candidates := 0
	for _, e := range endpoints {
		if e.Candidate() {
			if hasRoom(e, limit) {
				return true
			}
			candidates++
		}
	}
	return candidates == 0
}

// tryQueued places one request that waits, if there is room for it now. The
// router's lock is held.
func (r *Router) tryQueued(st *settings, w *waiter, sc *scratch, now time.Time) (outcome, bool) {
	if w.promise.state.Load() != nil { // it has ended, and is about to leave
		return outcome{promise: w.promise, err: &Error{Reason: ReasonCanceled}}, true
	}
	// The decision is made now, with the load and the health of now. The
	// promise's own request belongs to who waits for it.
	req := w.promise.Request
	req.Arrived = now
	tokens := sc.tokens
	sc.known = &w.known
	defer func() { sc.known, sc.tokens = nil, tokens }()
	p, err := r.prospect(w.promise, st, &req, sc, nil)
	if err != nil {
		return outcome{promise: w.promise, err: err}, true
	}
	if p.queues && !sc.withRoom(st.cfg.Queue.MaxInFlight) {
		return outcome{}, false
	}
	t, turn := r.choose(st, &req, sc, &p)
	r.predict(sc, &t, turn)
	t.Reason = ReasonQueued
	r.queue.served(now.Sub(w.promise.Request.Arrived))
	return outcome{promise: w.promise, p: p, target: t}, true
}
