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

	"github.com/warmpath/warmpath/kvindex"
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
	lane *lane
	ids  *idBuffer
	err  error
}

// idBuffer is pooled memory for the ids of one answer.
type idBuffer struct {
	ids    []kvindex.TokenID
	reader answerReader
}

// maxPooledIDs is the largest id buffer that is kept: 4 MiB.
const maxPooledIDs = 1 << 20

func (t *Client) putIDs(b *idBuffer) {
	if b != nil && cap(b.ids) <= maxPooledIDs {
		t.ids.Put(b)
	}
}

// race asks the lanes, beginning with one after the other, until one answers,
// the prompt is refused or ctx ends. A lane that fails is followed by the
// next; one that takes longer than most do is joined by the next, if hedge
// says so and the share of such requests allows it. The caller gives the
// answer's ids back.
func (t *Client) race(ctx context.Context, lanes []*lane, p *payload, hedge bool) (*idBuffer, *lane, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	results := make(chan answer, len(lanes))
	defer func() {
		cancel()
		wg.Wait()
		for len(results) > 0 { // answers that came too late
			t.putIDs((<-results).ids)
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
			wg.Go(func() { results <- t.attempt(ctx, l, p) })
			return true
		}
		return false
	}
	if !launch() {
		return nil, nil, last
	}
	t.asked.Add(1)
	var late <-chan time.Time
	if d := t.latency.p95(p.size); hedge && d > 0 && next < len(lanes) {
		timer := time.NewTimer(max(d, time.Millisecond))
		defer timer.Stop()
		late = timer.C
	}
	for {
		select {
		case a := <-results:
			pending--
			if a.err == nil {
				return a.ids, a.lane, nil
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
func (t *Client) attempt(ctx context.Context, l *lane, p *payload) answer {
	start := t.now()
	ids, err := t.post(ctx, l, p)
	took := t.now().Sub(start)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return answer{lane: l, err: err} // another lane won, or the request ended
	}
	t.metrics.ended(took, err)
	refused := (*refusal)(nil)
	switch {
	case err == nil:
		t.latency.observe(p.size, took)
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
	return answer{lane: l, ids: ids, err: err}
}

// disconnected tells whether a request failed as it does at a server that
// stops or has not started. One that is slow is not bothered further.
func disconnected(err error) bool {
	failed := (*url.Error)(nil)
	return errors.As(err, &failed) && !failed.Timeout()
}

// post makes one request and reads its answer.
func (t *Client) post(ctx context.Context, l *lane, p *payload) (*idBuffer, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Attempt)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.base+p.path, nil)
	if err != nil {
		return nil, err
	}
	req.Body, req.ContentLength = p.reader(), int64(p.size)
	req.GetBody = func() (io.ReadCloser, error) { return p.reader(), nil }
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
		return nil, fmt.Errorf("POST %s%s: status %d: %w", l.base, p.path, resp.StatusCode, errNotServed)
	default:
		drain(resp.Body)
		return nil, fmt.Errorf("POST %s%s: status %d", l.base, p.path, resp.StatusCode)
	}
	b := t.ids.Get().(*idBuffer)
	b.ids, err = b.reader.read(resp.Body, t.cfg.MaxResponseBytes, b.ids[:0])
	if err != nil {
		t.putIDs(b)
		return nil, fmt.Errorf("POST %s%s: %w", l.base, p.path, err)
	}
	return b, nil
}

// drain reads what an error says, so that the connection can be used again.
func drain(r io.Reader) { _, _ = io.CopyN(io.Discard, r, 16<<10) }
