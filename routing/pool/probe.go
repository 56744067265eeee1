package pool

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

// maxModelsBody bounds what is read of an engine's model list.
const maxModelsBody = 1 << 20

// watch probes one member until ctx ends.
func (p *Pool) watch(ctx context.Context, m *member, first time.Duration, random *rand.Rand) {
	timer := time.NewTimer(first)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := p.probe(ctx, m)
		if ctx.Err() != nil {
			return
		}
		p.record(m, err)
		interval := p.cfg.Health.Interval
		timer.Reset(interval - interval/20 + time.Duration(random.Int64N(int64(interval)/10+1)))
	}
}

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
		p.metrics.probeFailures.Inc()
	}
	if m.health != health {
		if err != nil {
			p.log.Warn("endpoint does not answer its health probe; it gets no requests until it does", "endpoint", m.spec.Name, "address", m.spec.Address, "err", err)
		} else {
			p.log.Info("endpoint is ready", "endpoint", m.spec.Name, "address", m.spec.Address)
		}
		m.health = health
		p.publish()
	}
	if m.initial {
		p.probedOne(m)
	}
}

// probe asks an endpoint whether it is healthy and, as long as its models are
// unknown, which ones it serves.
func (p *Pool) probe(ctx context.Context, m *member) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Health.Timeout)
	defer cancel()
	if err := p.get(ctx, "http://"+m.spec.Address+p.cfg.Health.Path, nil); err != nil {
		return err
	}
	p.mu.Lock()
	learned := m.learned
	p.mu.Unlock()
	if learned {
		return nil
	}
	var list struct {
		Data []struct {
			ID     string  `json:"id"`
			Parent *string `json:"parent"`
		} `json:"data"`
	}
	if err := p.get(ctx, "http://"+m.spec.Address+"/v1/models", &list); err != nil {
		return err
	}
	var models, adapters []string
	for _, d := range list.Data {
		if d.Parent != nil && *d.Parent != "" {
			adapters = append(adapters, d.ID)
		} else if d.ID != "" {
			models = append(models, d.ID)
		}
	}
	if len(models) == 0 {
		return fmt.Errorf("GET http://%s/v1/models: no base model in the list; name the endpoint's models in the configuration", m.spec.Address)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m.models, m.adapts, m.learned = models, slices.Compact(adapters), true
	p.publish()
	return nil
}

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
		return fmt.Errorf("GET %s: status %d", url, resp.StatusCode)
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
