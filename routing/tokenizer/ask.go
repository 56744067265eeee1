package tokenizer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// refusal is a server's verdict that the prompt itself is at fault: no other
// server would accept it.
type refusal struct{ status int }

func (e *refusal) Error() string {
	return fmt.Sprintf("the prompt was refused with status %d", e.status)
}

// errNotServed: the server does not know the model, or has no such path.
var errNotServed = errors.New("the server does not serve the model or the path")

// answer is how one attempt ended.
type answer struct {
	lane    *lane
	reading *reading
	err     error
}

// giveBack takes back the memory of an answer; r may be nil.
func (t *Client) giveBack(r *reading) {
	if r != nil {
		r.release()
		t.readings.Put(r)
	}
}

// race asks the lanes, beginning with one after the other, until one answers,
// the prompt is refused or ctx ends. A lane that fails is followed by the
// next; one that takes longer than most do is joined by the next, if hedge
// says so and the share of such requests allows it. The caller gives what was
// read back.
func (t *Client) race(ctx context.Context, lanes []*lane, q question, hedge bool) (*reading, *lane, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	results := make(chan answer, len(lanes))
	defer func() {
		cancel()
		wg.Wait()
		for len(results) > 0 { // answers that came too late
			t.giveBack((<-results).reading)
		}
	}()
	turn, next, pending := int(t.turn.Add(1)%uint64(max(len(lanes), 1))), 0, 0
	last := errors.New("there is no tokenizer to ask")
	launch := func() bool {
		for next < len(lanes) {
			l := lanes[(turn+next)%len(lanes)]
			next++
			now := t.now()
			if !l.serves(now) || !l.allow(now, &t.cfg) {
				continue
			}
			pending++
			wg.Go(func() { results <- t.attempt(ctx, l, q) })
			return true
		}
		return false
	}
	if !launch() {
		return nil, nil, last
	}
	t.asked.Add(1)
	var late <-chan time.Time
	if d := t.latency.p95(q.size); hedge && d > 0 && next < len(lanes) {
		timer := time.NewTimer(max(d, time.Millisecond))
		defer timer.Stop()
		late = timer.C
	}
	for {
		select {
		case a := <-results:
			pending--
			if a.err == nil {
				return a.reading, a.lane, nil
			}
			last = a.err
			if refused := (*refusal)(nil); errors.As(a.err, &refused) {
				return nil, nil, a.err
			}
			if !launch() && pending == 0 {
				return nil, nil, last
			}
		case <-late:
			late = nil
			if float64(t.hedged.Load()+1) <= t.cfg.HedgeShare*float64(t.asked.Load()) && launch() {
				t.hedged.Add(1)
				t.metrics.hedges.Inc()
			}
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// attempt sends one request to one lane and counts how it ended.
func (t *Client) attempt(ctx context.Context, l *lane, q question) answer {
	start := t.now()
	r, err := t.post(ctx, l, q)
	took := t.now().Sub(start)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return answer{lane: l, err: err} // another lane won, or the request ended
	}
	t.metrics.ended(took, err)
	refused := (*refusal)(nil)
	switch {
	case err == nil:
		t.latency.observe(q.size, took)
	case errors.As(err, &refused):
	case errors.Is(err, errNotServed):
		l.refuses.Store(start.Add(10 * t.cfg.BreakerRest).UnixNano())
	default:
		if disconnected(err) && l.identity.Load() != nil {
			l.examined.Store(0) // it may come back with another template
		}
		if l.report(false, start.Add(took), &t.cfg) {
			t.metrics.opened.Inc()
			t.log.Warn("a tokenizer is taken out of use", "server", l.base, "err", err)
		}
		return answer{lane: l, err: err}
	}
	if l.report(true, start.Add(took), &t.cfg) {
		t.log.Info("a tokenizer is in use again", "server", l.base)
	}
	return answer{lane: l, reading: r, err: err}
}

// disconnected tells whether a request failed as it does at a server that
// stops or has not started. One that is slow is not bothered further.
func disconnected(err error) bool {
	failed := (*url.Error)(nil)
	return errors.As(err, &failed) && !failed.Timeout()
}

// post makes one request and reads its answer.
func (t *Client) post(ctx context.Context, l *lane, q question) (*reading, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Attempt)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.base+q.path, nil)
	if err != nil {
		return nil, err
	}
	req.Body, req.ContentLength = q.reader(), int64(q.size)
	req.GetBody = func() (io.ReadCloser, error) { return q.reader(), nil }
	req.Header.Set("Content-Type", "application/json")
	resp, err := t.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge:
		drain(resp.Body)
		return nil, &refusal{resp.StatusCode}
	case http.StatusNotFound, http.StatusForbidden, http.StatusMethodNotAllowed:
		drain(resp.Body)
		return nil, fmt.Errorf("POST %s%s: status %d: %w", l.base, q.path, resp.StatusCode, errNotServed)
	default:
		drain(resp.Body)
		return nil, fmt.Errorf("POST %s%s: status %d", l.base, q.path, resp.StatusCode)
	}
	r := t.readings.Get().(*reading)
	r.begin(q)
	if err := r.reader.read(resp.Body, t.cfg.MaxResponseBytes, r); err != nil {
		t.giveBack(r)
		return nil, fmt.Errorf("POST %s%s: %w", l.base, q.path, err)
	}
	return r, nil
}

// drain reads what an error says, so that the connection can be used again.
func drain(r io.Reader) { _, _ = io.CopyN(io.Discard, r, 16<<10) }
