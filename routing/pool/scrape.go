package pool

import (
	"context"
	"math/rand/v2"
	"net/url"
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

// metricsURL returns where the endpoint's metrics are, nil if they are not to
// be read.
func (p *Pool) metricsURL(s Spec) *url.URL {
	text := s.Metrics
	if text == "" && p.cfg.Load.Path != "" {
		text = "http://" + s.Address + p.cfg.Load.Path
	}
	if text == "" || p.cfg.Load.Interval == 0 {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil // of a source that does not validate
	}
	return u
}

// maxBackOff bounds how rarely an endpoint without readable metrics is asked.
const maxBackOff = 16

// tick is the grid of times at which endpoints are asked: to wake up costs as
// much as to ask, so several are asked at a time. It bounds how long requests
// that come in just then wait.
const tick = 10 * time.Millisecond

// together returns how long to wait at now so that d has passed on the grid, at
// most d where that is longer than a tick.
func together(now time.Time, d time.Duration) time.Duration {
	if past := time.Duration(now.Add(d).UnixNano()) % tick; d > past {
		return d - past
	}
	return d
}

// busyShare is how many times as often as an idle endpoint a busy one is asked.
const busyShare = 4

// follow reads one member's metrics until ctx ends: a busy engine four times
// in the configured interval, an idle one once and as soon as it gets a request,
// one that tells nothing ever more rarely. What was read stays published and
// ages; whoever uses it asks [Load.Fresh].
func (p *Pool) follow(ctx context.Context, m *member, u *url.URL, first time.Duration, random *rand.Rand) {
	timer := time.NewTimer(first)
	defer timer.Stop()
	r := p.newReader(u)
	defer r.close()
	known, last := false, time.Time{}
	failures, told := 0, true
	same := p.answersReads(m.spec)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.readSoon:
			if wait := p.cfg.Load.Interval/busyShare - time.Since(last); wait > 0 {
				timer.Reset(wait)
				continue
			}
		}
		last = time.Now()
		l, fault, err := r.read(ctx, m.state)
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
			r.meter.Forget()
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
				interval /= busyShare
			}
		}
		timer.Reset(together(time.Now(), interval-interval/10+time.Duration(random.Int64N(int64(interval)/10+1))))
	}
}
