package pool

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"
)

// maxMetricsBody bounds what is read of an engine's metrics. vLLM with many
// histograms has some 100 kB.
const maxMetricsBody = 4 << 20

// loadFault is why a read told nothing, a metric label.
type loadFault string

const (
	faultUnreachable    loadFault = "unreachable"
	faultStatus         loadFault = "status"
	faultTooLarge       loadFault = "too_large"
	faultUnknownMetrics loadFault = "unknown_metrics"
)

// metricsURL returns where the endpoint's metrics are, empty if they are not
// to be read.
func (p *Pool) metricsURL(s Spec) string {
	switch {
	case p.cfg.Load.Interval == 0:
		return ""
	case s.Metrics != "":
		return s.Metrics
	case p.cfg.Load.Path == "":
		return ""
	}
	return "http://" + s.Address + p.cfg.Load.Path
}

// maxBackOff bounds how rarely an endpoint without readable metrics is asked.
const maxBackOff = 16

// follow reads one member's metrics until ctx ends: a busy engine four times
// in the configured interval, an idle one once, one that tells nothing ever
// more rarely. What was read stays published and ages; whoever uses it asks
// [Load.Fresh].
func (p *Pool) follow(ctx context.Context, m *member, url string, first time.Duration, random *rand.Rand) {
	timer := time.NewTimer(first)
	defer timer.Stop()
	meter := Meter{names: p.names, staleAfter: p.cfg.Load.StaleAfter}
	known := false
	failures, told := 0, true
	same := p.answersReads(m.spec)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		l, fault, err := p.read(ctx, url, &meter, m.state)
		if ctx.Err() != nil {
			return
		}
		interval := p.cfg.Load.Interval
		if err != nil {
			p.metrics.loadFailures[fault].Inc()
			if known && fault == faultUnreachable && same {
				// The engine answered a moment ago and now does not: it hangs or is
				// gone, which this notices sooner than the next health probe of a
				// busy engine.
				m.state.Observe(time.Now(), OutcomeFailure)
			}
			if told {
				p.log.Warn("an engine's load cannot be read; strategies that need it do without", "endpoint", m.spec.Name, "err", err)
			}
			meter.Forget()
			known, told = false, false
			failures = min(failures+1, maxBackOff)
			interval *= time.Duration(failures)
		} else {
			p.metrics.loadReads.Inc()
			if !told {
				p.log.Info("an engine's load can be read again", "endpoint", m.spec.Name)
			}
			failures, told, known = 0, true, true
			if l.InFlight > 0 || l.Running+l.Waiting > 0 {
				interval /= 4
			}
		}
		timer.Reset(interval - interval/10 + time.Duration(random.Int64N(int64(interval)/10+1)))
	}
}

// read reads url and sets what it says as the load of state.
func (p *Pool) read(ctx context.Context, url string, m *Meter, state *State) (*Load, loadFault, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Load.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, faultUnreachable, err
	}
	// To inflate costs more than to read it uncompressed from a neighbour.
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, faultUnreachable, err
	}
	defer resp.Body.Close()
	b := p.buffers.Get().(*bytes.Buffer)
	defer p.buffers.Put(b)
	b.Reset()
	if _, err := b.ReadFrom(io.LimitReader(resp.Body, maxMetricsBody+1)); err != nil {
		return nil, faultUnreachable, fmt.Errorf("GET %s: %w", url, err)
	}
	switch {
	case resp.StatusCode != http.StatusOK:
		return nil, faultStatus, fmt.Errorf("GET %s: status %d", url, resp.StatusCode)
	case b.Len() > maxMetricsBody:
		return nil, faultTooLarge, fmt.Errorf("GET %s: more than %d bytes", url, maxMetricsBody)
	}
	l, err := m.Read(time.Now(), b.Bytes(), state)
	if err != nil {
		return nil, faultUnknownMetrics, fmt.Errorf("GET %s: %w; set pool.load.path or the endpoint's metrics to where the engine exports them", url, err)
	}
	return l, "", nil
}
