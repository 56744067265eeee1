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
	var before, now sample
	var known bool
	failures, told := 0, true
	same := p.answersReads(m.spec)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		fault, err := p.read(ctx, url, &now)
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
			known, told = false, false
			failures = min(failures+1, maxBackOff)
			interval *= time.Duration(failures)
		} else {
			p.metrics.loadReads.Inc()
			if !told {
				p.log.Info("an engine's load can be read again", "endpoint", m.spec.Name)
			}
			failures, told = 0, true
			var last *sample
			if known {
				last = &before
			}
			l := newLoad(time.Now(), &now, last, m.state.Load(), m.state.InFlight())
			l.Until = l.At.Add(p.cfg.Load.StaleAfter)
			m.state.SetLoad(l)
			now.adapters = nil // they belong to l
			before, known = now, true
			if l.InFlight > 0 || l.Running+l.Waiting > 0 {
				interval /= 4
			}
		}
		timer.Reset(interval - interval/10 + time.Duration(random.Int64N(int64(interval)/10+1)))
	}
}

// read fills s from url.
func (p *Pool) read(ctx context.Context, url string, s *sample) (loadFault, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Load.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return faultUnreachable, err
	}
	// To inflate costs more than to read it uncompressed from a neighbour.
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := p.client.Do(req)
	if err != nil {
		return faultUnreachable, err
	}
	defer resp.Body.Close()
	b := p.buffers.Get().(*bytes.Buffer)
	defer p.buffers.Put(b)
	b.Reset()
	if _, err := b.ReadFrom(io.LimitReader(resp.Body, maxMetricsBody+1)); err != nil {
		return faultUnreachable, fmt.Errorf("GET %s: %w", url, err)
	}
	switch {
	case resp.StatusCode != http.StatusOK:
		return faultStatus, fmt.Errorf("GET %s: status %d", url, resp.StatusCode)
	case b.Len() > maxMetricsBody:
		return faultTooLarge, fmt.Errorf("GET %s: more than %d bytes", url, maxMetricsBody)
	}
	s.parse(b.Bytes(), p.names)
	if !s.known() {
		return faultUnknownMetrics, fmt.Errorf("GET %s: it has no load metric of vLLM, SGLang or TensorRT-LLM; set pool.load.path or the endpoint's metrics to where the engine exports them", url)
	}
	return "", nil
}
