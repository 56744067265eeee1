package pool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// maxModelsBody bounds what is read of an engine's model list.
const maxModelsBody = 1 << 20

// watch probes one member until ctx ends. One that has requests in flight is
// asked four times in the interval whether it is there, by a read of its
// metrics or, where they tell nothing, by a probe: an engine that hangs must be
// noticed before many requests wait for it.
func (p *Pool) watch(ctx context.Context, m *member, first time.Duration, random *rand.Rand) {
	timer := time.NewTimer(first)
	defer timer.Stop()
	probe := p.newProber(m.spec)
	defer probe.close()
	readable := p.answersReads(m.spec)
	var last time.Time
	for spared := 0; ; {
		interval := p.cfg.Health.Interval
		select {
		case <-ctx.Done():
			return
		case <-m.state.wake:
			select {
			case m.readSoon <- struct{}{}:
			default:
			}
			if p.wasRead(m, readable, time.Now()) {
				continue
			}
			if wait := interval/busyShare - time.Since(last); wait > 0 {
				timer.Reset(wait)
				continue
			}
		case <-timer.C:
		}
		if spared < maxSpared && m.state.InFlight() == 0 && p.wasRead(m, readable, time.Now()) {
			spared++
		} else {
			spared, last = 0, time.Now()
			err := p.probe(ctx, m, probe)
			if ctx.Err() != nil {
				return
			}
			p.record(m, err)
			if m.state.InFlight() > 0 && !p.wasRead(m, readable, time.Now()) {
				interval /= busyShare
			}
		}
		timer.Reset(together(time.Now(), interval-interval/20+time.Duration(random.Int64N(int64(interval)/10+1))))
	}
}

// maxSpared is how many probes in a row an idle endpoint is spared because it
// answers reads of its metrics: with a thousand endpoints most of what an idle
// router does is to probe.
const maxSpared = 3

// answersReads tells whether a read of the endpoint's metrics is answered by
// the server that answers its health probe.
func (p *Pool) answersReads(s Spec) bool {
	u := p.metricsURL(s)
	return u != nil && u.Scheme == "http" && u.Host == s.Address
}

// wasRead tells whether the endpoint is ready and answered a read of its metrics
// a moment ago. readable: the server that answers them is that of its health.
func (p *Pool) wasRead(m *member, readable bool, now time.Time) bool {
	if !readable {
		return false
	}
	p.mu.Lock()
	ready := m.health == HealthReady && m.learned
	p.mu.Unlock()
	l := m.state.Load()
	return ready && l != nil && now.Sub(l.At) < 2*p.cfg.Load.Interval
}

// prober asks for an endpoint's health.
type prober struct {
	pool    *Pool
	url     *url.URL
	asker   *asker // nil: through the client
	request []byte
	body    bytes.Buffer
}

func (p *Pool) newProber(s Spec) *prober {
	path, query, _ := strings.Cut(p.cfg.Health.Path, "?")
	u := &url.URL{Scheme: "http", Host: s.Address, Path: path, RawQuery: query}
	return &prober{pool: p, url: u, asker: p.asker(u), request: getRequest(u)}
}

func (b *prober) close() { b.asker.close() }

// healthy returns nil if the endpoint answers with status 200 in time.
func (b *prober) healthy(ctx context.Context) error {
	b.body.Reset()
	var status int
	var err error
	if timeout := b.pool.cfg.Health.Timeout; b.asker != nil {
		status, err = b.asker.get(ctx, b.request, timeout, &b.body, maxHealthBody)
	} else {
		status, err = b.pool.fetch(ctx, b.url, timeout, &b.body, maxHealthBody)
	}
	switch {
	case err != nil:
		return fmt.Errorf("GET %s: %w", b.url, err)
	case status != http.StatusOK:
		return statusError{b.url.String(), status}
	}
	return nil
}

// maxHealthBody bounds what is read of an answer to a health probe.
const maxHealthBody = 64 << 10

// record publishes what a probe said, if it changed anything.
func (p *Pool) record(m *member, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.gone {
		return
	}
	health := HealthReady
	if err != nil {
		health = HealthFailed
		m.located = m.spec.Events != EventsAuto          // it may come back with other ports,
		m.learnAt, m.locateAt = time.Time{}, time.Time{} // or other models
		m.unlocated = min(m.unlocated, 1)
		p.metrics.probeFailures.Inc()
	}
	if m.health != health {
		if err != nil {
			p.log.Log(context.Background(), probeLevel(m), "endpoint does not answer its health probe; it gets no requests until it does", "endpoint", m.spec.Name, "address", m.spec.Address, "err", err)
		} else {
			p.log.Info("endpoint is ready", "endpoint", m.spec.Name, "address", m.spec.Address)
		}
		m.health, m.endpoint = health, nil
		p.changed(false)
	}
	if m.initial {
		p.probedOne(m)
	}
}

// probe asks an endpoint whether it is healthy and, as long as its models are
// unknown, which ones it serves.
func (p *Pool) probe(ctx context.Context, m *member, b *prober) error {
	if err := b.healthy(ctx); err != nil {
		return err
	}
	now := time.Now()
	p.mu.Lock()
	learned, named, locate := m.learned, len(m.models) > 0, !m.located && !now.Before(m.locateAt)
	ask := !learned || m.asksAgain(p.cfg.Health) && !now.Before(m.learnAt)
	p.mu.Unlock()
	if !locate && !ask {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Health.Timeout)
	defer cancel()
	if locate {
		p.find(ctx, m)
	}
	if !ask {
		return nil
	}
	err := p.learn(ctx, m)
	if err != nil && (learned || named) {
		p.log.Debug("the engine does not list its models; asking again", "endpoint", m.spec.Name, "err", err)
		return nil // it was healthy a moment ago, and what is known of it serves
	}
	return err
}

// asksAgain tells whether the engine may have other models or adapters later.
func (m *member) asksAgain(cfg HealthConfig) bool {
	return cfg.Models > 0 && (m.listing.LearnModels || len(m.listing.Models) == 0)
}

// learn asks an engine for its models, vLLM's and SGLang's /v1/models, in which
// LoRA adapters have the base model as their parent.
func (p *Pool) learn(ctx context.Context, m *member) error {
	var list struct {
		Data []struct {
			ID     string  `json:"id"`
			Parent *string `json:"parent"`
		} `json:"data"`
	}
	if err := p.get(ctx, "http://"+m.spec.Address+"/v1/models", &list); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.gone {
		return nil
	}
	models, adapters := slices.Clone(m.listing.Models), slices.Clone(m.listing.Adapters)
	for _, d := range list.Data {
		names := &models
		if d.Parent != nil && *d.Parent != "" {
			names = &adapters
		}
		if d.ID != "" && !slices.Contains(models, d.ID) && !slices.Contains(adapters, d.ID) {
			*names = append(*names, d.ID)
		}
	}
	if len(models) == 0 {
		return fmt.Errorf("GET http://%s/v1/models: no base model in the list; name the endpoint's models in the configuration", m.spec.Address)
	}
	m.learnAt = time.Now().Add(p.cfg.Health.Models)
	if m.learned && slices.Equal(m.models, models) && slices.Equal(m.adapts, adapters) {
		return nil
	}
	m.models, m.adapts, m.learned, m.endpoint = models, adapters, true, nil
	p.changed(false)
	return nil
}

// askAgain bounds how rarely an engine that does not tell of event streams is
// asked for them.
const askAgain = time.Minute

// find learns where the engine publishes its events. An engine that does not
// say so is routed to all the same.
func (p *Pool) find(ctx context.Context, m *member) {
	sources, err := p.learnSources(ctx, m.spec.Address)
	if errors.Is(err, errNoSources) && len(m.guess) > 0 {
		sources, err = p.checkGuess(ctx, m.guess), nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.gone || ctx.Err() != nil {
		return
	}
	if err != nil {
		if m.unlocated == 0 {
			p.log.Warn("event streams are not known; asking again", "endpoint", m.spec.Name, "address", m.spec.Address, "err", err)
		}
		m.locateAt = time.Now().Add(min(askAgain, p.cfg.Health.Interval<<min(m.unlocated, 16)))
		m.unlocated++
		return
	}
	m.located, m.unlocated = true, 0
	if !slices.Equal(sources, m.sources) {
		p.log.Info("event streams found", "endpoint", m.spec.Name, "ranks", len(sources))
		p.locate(m, sources)
		p.changed(false)
	}
}

// checkGuess leaves out of a guess the replay sockets at which nobody listens:
// to wait for an answer that never comes would distrust the engine for nothing.
func (p *Pool) checkGuess(ctx context.Context, guess []eventSource) []eventSource {
	out := slices.Clone(guess)
	for i := range out {
		host := strings.TrimPrefix(out[i].replay, "tcp://")
		if host == "" {
			continue
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", host)
		if err != nil {
			out[i].replay = ""
			continue
		}
		_ = c.Close()
	}
	return out
}

// probeLevel is how loud a failed probe is: an endpoint that is withheld, such
// as a pod that is starting, is expected to fail them.
func probeLevel(m *member) slog.Level {
	if m.listing.Withheld != "" {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// statusError is an answer other than 200.
type statusError struct {
	url  string
	code int
}

func (e statusError) Error() string { return fmt.Sprintf("GET %s: status %d", e.url, e.code) }

// get requests url and decodes a 200 into into, if that is not nil.
func (p *Pool) get(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, maxModelsBody)
	if resp.StatusCode != http.StatusOK {
		_, _ = io.Copy(io.Discard, body) // the connection can be used again only if the body was read
		return statusError{url, resp.StatusCode}
	}
	if into == nil {
		_, err = io.Copy(io.Discard, body)
		return err
	}
	if err := json.NewDecoder(body).Decode(into); err != nil {
		return fmt.Errorf("GET %s: %w", url, err)
	}
	return nil
}
