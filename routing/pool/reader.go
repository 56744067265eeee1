package pool

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// reader reads the metrics of one endpoint. Where the server knows how to leave
// out what is not asked for, it asks for what is read only: the Prometheus
// client for Python, which vLLM exports its metrics with, has the parameter
// name[] for that (prometheus/client_python documentation, "Restricted
// registry"). It saves the engine more than the router: its answer is made in
// Python, between two steps of its API server. Whether a server knows, and
// still tells all that it told in full, is tried.
type reader struct {
	pool  *Pool
	url   *url.URL
	asker *asker // nil: through the client
	meter Meter
	// full and some are the requests; some is nil unless names are asked for.
	full, some []byte
	someURL    *url.URL
	// tries counts how often names were asked for in vain where a full answer
	// followed.
	tries int
}

// maxTries is how often an engine is tried that leaves out too much: one that
// was being restarted deserves another.
const maxTries = 3

func (p *Pool) newReader(u *url.URL) *reader {
	r := &reader{pool: p, url: u, asker: p.asker(u), full: getRequest(u)}
	r.meter = Meter{names: p.names, staleAfter: p.cfg.Load.StaleAfter}
	if !p.cfg.Load.Filter || u.RawQuery != "" {
		r.tries = maxTries
	}
	return r
}

func (r *reader) close() { r.asker.close() }

// read sets the load that the endpoint's metrics tell as that of state.
func (r *reader) read(ctx context.Context, state *State) (*Load, loadFault, error) {
	b := r.pool.buffers.Get().(*bytes.Buffer)
	defer r.pool.buffers.Put(b)
	before := r.meter.before
	known := r.meter.known
	if !known {
		// After a failure another engine may answer: only a full answer says what
		// one for some names must have.
		r.some = nil
	} else if r.some == nil && r.tries < maxTries {
		r.ask(family(r.pool.names, before.prefix))
	}
	inVain := false
	if r.some != nil {
		fault, err := r.get(ctx, b, r.someURL, r.some)
		switch {
		case fault == faultUnreachable || ctx.Err() != nil:
			return nil, fault, err
		case err == nil:
			if s := r.meter.peek(b.Bytes()); s.covers(&before) {
				return r.apply(s, state)
			}
		}
		// It was restarted as something else, or leaves out too much.
		r.some, inVain = nil, true
	}
	if fault, err := r.get(ctx, b, r.url, r.full); err != nil {
		return nil, fault, err
	}
	l, fault, err := r.apply(r.meter.peek(b.Bytes()), state)
	if err == nil && inVain {
		r.tries++ // it was the names: all metrics are answered
	}
	return l, fault, err
}

func (r *reader) apply(s *sample, state *State) (*Load, loadFault, error) {
	l, err := r.meter.take(time.Now(), s, state)
	if err != nil {
		return nil, faultUnknownMetrics, fmt.Errorf("GET %s: %w; set pool.load.path or the endpoint's metrics to where the engine exports them", r.url, err)
	}
	return l, "", nil
}

// get reads an answer with status 200 into b.
func (r *reader) get(ctx context.Context, b *bytes.Buffer, u *url.URL, request []byte) (loadFault, error) {
	b.Reset()
	var status int
	var err error
	if r.asker != nil {
		status, err = r.asker.get(ctx, request, r.pool.cfg.Load.Timeout, b, maxMetricsBody)
	} else {
		status, err = r.pool.fetch(ctx, u, r.pool.cfg.Load.Timeout, b, maxMetricsBody)
	}
	switch {
	case err != nil:
		return faultUnreachable, fmt.Errorf("GET %s: %w", r.url, err)
	case status != http.StatusOK:
		return faultStatus, fmt.Errorf("GET %s: status %d", r.url, status)
	case b.Len() > maxMetricsBody:
		return faultTooLarge, fmt.Errorf("GET %s: more than %d bytes", r.url, maxMetricsBody)
	}
	return "", nil
}

// ask prepares the request for some names.
func (r *reader) ask(names []string) {
	u := *r.url
	u.RawQuery = url.Values{"name[]": names}.Encode()
	r.someURL, r.some = &u, getRequest(&u)
}

// family returns the names that an engine may export that exports names of a
// prefix, and those of no engine.
func family(names map[string]metric, prefix string) []string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if p := namePrefix(n); p == prefix || p == "" {
			out = append(out, n)
		}
	}
	return out
}

// namePrefix returns what the names of one engine's metrics begin with.
func namePrefix[T string | []byte](name T) string {
	for _, p := range [...]string{"vllm:", "sglang:", "trtllm_"} {
		if len(name) >= len(p) && string(name[:len(p)]) == p {
			return p
		}
	}
	return ""
}
