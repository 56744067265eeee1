package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/kvindex"
)

// epoch is when virtual time begins.
var epoch = time.Unix(1_700_000_000, 0)

// run is one scenario with one seed. Nothing in it is concurrent.
type run struct {
	Scenario
	*traffic
	seed uint64
	// random decides what happens to the fleet: losses and the like. Routers
	// have their own.
	random *rand.Rand

	agenda    agenda
	now       time.Duration
	arrivals  []time.Duration
	order     []int
	endpoints []endpoint
	links     []link // endpoint-major: links[e*Replicas+replica]
	choosers  []chooser
	// state of requests, by their index in the workload
	requests []request
	left     int // requests that have not ended
	next     int // the place in order of the next arrival
	crashes  int
	regrets  []int // by bin, see regret
	buf      []byte
}

// request is what becomes of a request of the workload.
type request struct {
	arrived time.Duration
	// endpoint and replica are where it is, and who sent it there.
	endpoint, replica int32
	// matched is how many of its tokens the router took to be cached.
	matched int32
	cached  int32
	first   time.Duration
	done    time.Duration
	state   status
	// work is what it had to compute where it was sent, in seconds, known with
	// detail only.
	work float64
}

type status uint8

const (
	pending status = iota
	sent
	answered
	ended
	refused
)

// chooser places requests on endpoints. Those of the product wrap a
// [routing.Router].
type chooser interface {
	// choose returns where request i goes, and how many of its tokens are taken
	// to be cached there. It is counted as sent.
	choose(now time.Time, i int) (endpoint, matched int, err error)
	// started and finished tell that request i has its first and last token;
	// failed that its endpoint crashed and it will be sent again.
	started(now time.Time, i int)
	finished(now time.Time, i int)
	failed(now time.Time, i int)
	// absent tells which endpoints crashed and are not back.
	absent(now time.Time, down []bool)
}

// errAllDown is returned by choosers that have nowhere to send a request.
var errAllDown = errors.New("every endpoint is down: they crash sooner than they come back; use a longer restart, or more endpoints")

func (r *run) time() time.Time { return epoch.Add(r.now) }

// newRun prepares a run. The scenario is valid and has its defaults.
func newRun(s Scenario, t *traffic, seed uint64) (*run, error) {
	r := &run{
		Scenario: s, traffic: t, seed: seed, random: rand.New(rand.NewPCG(seed, 0xbb67ae8584caa73b)),
		endpoints: make([]endpoint, s.Endpoints), requests: make([]request, len(t.Requests)),
	}
	if r.Strategy == twin {
		r.Lag, r.Loss = 0, 0
	}
	if s.Warmup > 0 && s.Warmup >= len(t.Requests) {
		return nil, fmt.Errorf("warmup: %d leaves nothing to measure of %d requests; use fewer", s.Warmup, len(t.Requests))
	}
	r.arrivals, r.order = t.Arrivals(s.Speed, seed)
	for i := range r.endpoints {
		core, err := r.newCore(i)
		if err != nil {
			return nil, fmt.Errorf("endpoint %d: %w", i, err)
		}
		r.endpoints[i].core = core
	}
	r.links = make([]link, s.Endpoints*s.Replicas)
	for replica := range s.Replicas {
		c, err := r.newChooser(replica)
		if err != nil {
			return nil, err
		}
		r.choosers = append(r.choosers, c)
	}
	return r, nil
}

// play runs until every request has ended, or ctx has.
func (r *run) play(ctx context.Context) error {
	r.left = len(r.order)
	if r.left > 0 {
		r.agenda.add(r.arrivals[0], arrive, 0)
	}
	for i := range r.links {
		if r.links[i].meter != nil {
			r.agenda.add(time.Duration(r.random.Int64N(int64(busyInterval))), read, i)
		}
	}
	if r.Restart > 0 {
		r.agenda.add(r.Restart, crash, 0)
	}
	for n := 0; r.left > 0; n++ {
		if n&0xfff == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		e := r.agenda.next()
		r.now = e.at
		if err := r.happen(e); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) happen(e event) error {
	n := int(e.n)
	switch e.kind {
	case arrive:
		if n+1 < len(r.order) {
			r.agenda.add(r.arrivals[n+1], arrive, n+1)
		}
		r.next = n + 1
		i := r.order[n]
		r.requests[i].arrived = r.now
		r.requests[i].replica = int32(n % r.Replicas)
		return r.send(i)
	case step:
		r.endStep(n)
	case deliver:
		r.links[n].deliver(r.now)
	case notice:
		r.links[n].trust(kvindex.TrustRecovering)
	case read:
		r.readMetrics(n)
	case crash:
		return r.crash(n)
	case comeback:
		return r.comeback(n)
	}
	return nil
}

// send routes request i and hands it to an engine.
func (r *run) send(i int) error {
	q := &r.requests[i]
	at, matched, err := r.choosers[q.replica].choose(r.time(), i)
	if err != nil {
		return fmt.Errorf("request %d: %w", i, err)
	}
	q.endpoint, q.matched, q.state = int32(at), int32(matched), sent
	e := &r.endpoints[at]
	w, p := &r.Requests[i], &r.prompts[i]
	req := engine.Request{OutputTokens: w.OutputTokens, Adapter: w.Adapter}
	if r.Wire {
		req.Prompt = AppendPrompt(make([]kvindex.TokenID, 0, w.InputTokens+w.OutputTokens), w)
	} else {
		req.PromptTokens, req.Names = w.InputTokens, p.names
	}
	if r.Detail {
		r.regret(i, at, req)
	}
	// From its arrival: a request that was sent before has waited since.
	if _, err := e.core.Submit(epoch.Add(q.arrived), req); err != nil {
		q.state = refused
		e.backlog -= q.work
		r.left--
		r.choosers[q.replica].finished(r.time(), i)
		return nil
	}
	e.requests = append(e.requests, int32(i))
	r.beginStep(at)
	return nil
}

// beginStep begins a step of an endpoint that has none in flight.
func (r *run) beginStep(at int) {
	e := &r.endpoints[at]
	if e.down || e.core.InFlight() {
		return
	}
	if length, ok := e.core.Begin(r.time()); ok {
		e.due = r.now + length
		r.agenda.add(e.due, step, at)
	}
}

func (r *run) endStep(at int) {
	e := &r.endpoints[at]
	if !e.core.InFlight() || e.due != r.now {
		return // of an engine that crashed
	}
	now := r.time()
	result := e.core.End(now)
	e.computed += result.PrefillTokens
	if len(result.Events) > 0 {
		r.publish(at, result.Events)
	}
	e.answered += len(result.Started)
	for _, id := range result.Started {
		i := int(e.requests[id-1])
		q := &r.requests[i]
		q.first, q.state = r.now, answered
		e.backlog -= q.work
		r.choosers[q.replica].started(now, i)
	}
	for k := range result.Finished {
		f := &result.Finished[k]
		i := int(e.requests[f.ID-1])
		q := &r.requests[i]
		q.done, q.state, q.cached = r.now, ended, int32(f.CachedTokens)
		e.ends(f)
		r.choosers[q.replica].finished(now, i)
		r.left--
	}
	r.beginStep(at)
}

// crash ends an endpoint and sends its requests again. They get their first
// token anew: what had been answered is lost.
func (r *run) crash(at int) error {
	if r.now > r.arrivals[len(r.arrivals)-1] {
		return nil // or an answer longer than the time between crashes never ends
	}
	r.agenda.add(r.now+r.Restart, crash, (at+1)%r.Endpoints)
	e := &r.endpoints[at]
	if e.down || r.Endpoints == 1 {
		return nil
	}
	r.crashes++
	e.down = true
	core, err := r.newCore(at)
	if err != nil {
		return err
	}
	e.core, e.requests, e.due = core, nil, 0
	e.backlog = 0
	e.ended, e.answered, e.queued, e.prefill, e.decode, e.steps, e.between = 0, 0, 0, 0, 0, 0, 0
	r.agenda.add(r.now+downtime, comeback, at)
	r.tellAbsent(at)
	for i := range r.requests {
		q := &r.requests[i]
		if int(q.endpoint) != at || (q.state != sent && q.state != answered) {
			continue
		}
		r.choosers[q.replica].failed(r.time(), i)
		if err := r.send(i); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) comeback(at int) error {
	r.endpoints[at].down = false
	r.tellAbsent(at)
	return nil
}

func (r *run) tellAbsent(at int) {
	down := make([]bool, r.Endpoints)
	for i := range down {
		down[i] = r.endpoints[i].down
	}
	for replica := range r.Replicas {
		l := &r.links[at*r.Replicas+replica]
		if down[at] {
			l.close()
		}
	}
	for _, c := range r.choosers {
		c.absent(r.time(), down)
	}
}
