package tokenizer

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/puzpuzpuz/xsync/v3"

	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// Client knows the tokens of prompts: from what it remembers, or by asking
// remote tokenizers. It is safe for concurrent use. It remembers and learns
// only while [Client.Run] runs; without it every prompt waits for a tokenizer.
type Client struct {
	cfg     Config
	client  *http.Client
	log     *slog.Logger
	metrics *metrics
	// memory is nil if nothing is to be remembered.
	memory *memory
	// seed is that of all keys. It is this process's secret: what is
	// remembered under a key counts for every prompt with that key.
	seed uint64
	now  func() time.Time

	lanes      *xsync.MapOf[laneKey, *lane]
	servers    *xsync.MapOf[string, *server]
	identities *xsync.MapOf[key, *identity]
	fleets     *xsync.MapOf[string, *fleet]
	// version counts changes of lanes' identities.
	version atomic.Uint64

	flightMu sync.Mutex
	flights  map[key]*flight

	// slots has room for the requests in flight.
	slots   chan struct{}
	latency latencies
	// turn spreads requests over the servers; asked and hedged bound the share
	// of second requests.
	turn, asked, hedged atomic.Uint64
	// down is set while no server answers, so that a change is logged once.
	down atomic.Bool

	jobs     chan *job
	jobBytes atomic.Int64
	exams    chan *lane

	// copies has memory for payloads that own it.
	queries, copies, readings sync.Pool
}

type laneKey struct{ base, model string }

// New returns a client that sends its requests through client.
func New(cfg Config, client *http.Client, log *slog.Logger, reg prometheus.Registerer) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	t := &Client{
		cfg: cfg, client: client, log: log.With("component", "tokenizer"),
		seed: rand.Uint64(), now: time.Now,
		lanes: xsync.NewMapOf[laneKey, *lane](), servers: xsync.NewMapOf[string, *server](),
		identities: xsync.NewMapOf[key, *identity](), fleets: xsync.NewMapOf[string, *fleet](),
		flights: map[key]*flight{}, slots: make(chan struct{}, cfg.Concurrency),
		jobs: make(chan *job, cfg.LearnQueue), exams: make(chan *lane, 64),
	}
	if cfg.CacheBytes > 0 {
		t.memory = newMemory(uint64(cfg.CacheBytes))
	}
	t.metrics = newMetrics(reg, t)
	t.queries.New = func() any { return &query{} }
	t.copies.New = func() any { return new([]byte) }
	t.readings.New = func() any { return &reading{} }
	return t, nil
}

// query is the memory of one call.
type query struct {
	*routing.TokenQuery
	outline outline
	// known: outline is that of the prompt.
	known bool
	claim claim
}

// Tokenize implements [routing.Tokenizer]. It waits for a tokenizer unless the
// prompt, or its beginning up to a short rest, is remembered, and for the
// configured budget at most.
func (t *Client) Tokenize(ctx context.Context, tq *routing.TokenQuery, dst []routing.Tokens) ([]routing.Tokens, *routing.Error) {
	if name := untold(t.cfg.API, &tq.Request.Prompt); name != "" {
		t.metrics.answered(routing.TokensNone)
		return dst, &routing.Error{
			Reason: routing.ReasonPromptOptions, Message: "tokenizer.api " + t.cfg.API + " has no " + name + ", which may change the prompt", Param: name,
		}
	}
	q := t.queries.Get().(*query)
	q.TokenQuery = tq
	defer func() { q.TokenQuery = nil; t.queries.Put(q) }()
	q.known = t.memory != nil && q.outline.read(&tq.Request.Prompt, t.seed)
	deadline := t.now().Add(t.cfg.Budget)
	var failed *routing.Error
	for _, g := range t.groups(tq) {
		// The element after the last may have memory of an earlier call.
		n := len(dst)
		if n < cap(dst) {
			dst = dst[:n+1]
		} else {
			dst = append(dst, routing.Tokens{})
		}
		dst[n] = routing.Tokens{Blocks: dst[n].Blocks[:0], Endpoints: g.endpoints}
		if err := t.tokens(ctx, q, g, deadline, &dst[n]); err != nil {
			dst, failed = dst[:n], err
			continue
		}
		t.metrics.answered(dst[n].Source)
	}
	if len(dst) > 0 {
		return dst, nil
	}
	t.metrics.answered(routing.TokensNone)
	if failed == nil {
		failed = &routing.Error{Reason: routing.ReasonTokenizerDown, Message: "there is no tokenizer to ask"}
	}
	return dst, failed
}

// tokens fills in what is known of the tokens that one group of servers has
// for the prompt. If a tokenizer was asked in vain, that is the beginning that
// is remembered, or an error.
func (t *Client) tokens(ctx context.Context, q *query, g *group, deadline time.Time, dst *routing.Tokens) *routing.Error {
	q.claim.tokens = 0
	p := &q.Request.Prompt
	if q.known && g.identity != nil {
		if known := t.memory.exact(g.identity.ns, &q.outline, q.BlockSizes); known != nil {
			dst.Source, dst.Count = routing.TokensL0, known.count
			dst.Blocks = append(dst.Blocks, known.blocks...)
			return nil
		}
		t.memory.prefix(g.identity.ns, &q.outline, p.Text, q.BlockSizes, &q.claim)
		if q.claim.tokens > 0 {
			if unseen := g.identity.estimate(q.outline.bytes - q.claim.bytes); unseen <= t.cfg.MaxUnseenTokens {
				t.learn(q, g)
				q.useClaim(dst, unseen)
				return nil
			}
		}
	}
	known, err := t.remote(ctx, q, g, deadline)
	if err == nil {
		dst.Source, dst.Count = routing.TokensRemote, known.count
		dst.Blocks = append(dst.Blocks, known.blocks...)
		return nil
	}
	if q.claim.tokens == 0 {
		return err
	}
	q.useClaim(dst, g.identity.estimate(q.outline.bytes-q.claim.bytes))
	dst.Fault = err.Reason
	return nil
}

// useClaim answers with the remembered beginning.
func (q *query) useClaim(dst *routing.Tokens, unseen int) {
	dst.Source, dst.Unseen = routing.TokensL1, max(1, unseen)
	dst.Count = q.claim.tokens + dst.Unseen
	dst.Blocks = append(dst.Blocks, q.claim.blocks...)
}

// estimate is how many tokens a text may have.
func (id *identity) estimate(bytes int) int {
	per := math.Float64frombits(id.bytesPerToken.Load())
	if per == 0 {
		per = 4
	}
	return int(math.Ceil(float64(bytes) / per))
}

// measured counts a prompt in bytesPerToken.
func (id *identity) measured(bytes, tokens int) {
	if tokens == 0 || bytes == 0 {
		return
	}
	sample := float64(bytes) / float64(tokens)
	old := math.Float64frombits(id.bytesPerToken.Load())
	if old != 0 {
		sample = old + (sample-old)/16
	}
	id.bytesPerToken.Store(math.Float64bits(sample))
}

// flight is a request that several decisions wait for.
type flight struct {
	done chan struct{}
	// Valid after done. prompt is nil if the one who asked was canceled.
	prompt *prompt
	err    *routing.Error
}

// remote asks a tokenizer and waits. Decisions that ask for the same at the
// same time share one request.
func (t *Client) remote(ctx context.Context, q *query, g *group, deadline time.Time) (*prompt, *routing.Error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if !q.known || g.identity == nil {
		return t.fetch(ctx, q, g)
	}
	k := q.outline.end().in(g.identity.ns)
	for {
		t.flightMu.Lock()
		f := t.flights[k]
		if f == nil {
			f = &flight{done: make(chan struct{})}
			t.flights[k] = f
			t.flightMu.Unlock()
			f.prompt, f.err = t.fetch(ctx, q, g)
			if f.err != nil && ctx.Err() != nil {
				f.prompt, f.err = nil, nil // that was this caller's end, not the tokenizer's
			}
			t.flightMu.Lock()
			delete(t.flights, k)
			t.flightMu.Unlock()
			close(f.done)
			if f.prompt == nil && f.err == nil {
				return nil, timedOut(ctx)
			}
			return f.prompt, f.err
		}
		t.flightMu.Unlock()
		t.metrics.shared.Inc()
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, timedOut(ctx)
		}
		switch {
		case f.err != nil:
			return nil, f.err
		case f.prompt != nil && covers(f.prompt.blocks, q.BlockSizes):
			return f.prompt, nil
		case f.prompt != nil:
			return t.fetch(ctx, q, g)
		}
	}
}

func timedOut(ctx context.Context) *routing.Error {
	return &routing.Error{Reason: routing.ReasonTokenizerTimeout, Message: "no tokenizer answered in time: " + context.Cause(ctx).Error()}
}

// fetch asks a tokenizer and learns from its answer.
func (t *Client) fetch(ctx context.Context, q *query, g *group) (*prompt, *routing.Error) {
	where, ok := path(t.cfg.API, q.Request.Prompt.Kind)
	if !ok {
		return nil, &routing.Error{Reason: routing.ReasonTokenizerForm, Message: "tokenizer.api " + t.cfg.API + " has no form for this prompt"}
	}
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-ctx.Done():
		return nil, timedOut(ctx)
	}
	p := &q.Request.Prompt
	ask := question{payload: newPayload(where, t.cfg.API, q.Request.Model, p), hasher: q.Hasher, sizes: q.BlockSizes}
	defer ask.end()
	if q.known && g.identity != nil {
		ask.earlier = t.memory.earlier(g.identity.ns, &q.outline, p.Text)
	}
	r, l, err := t.race(ctx, g.lanes, ask, true)
	if err != nil {
		return nil, t.fault(ctx, err)
	}
	defer t.giveBack(r)
	t.answers()
	a := r.answered()
	if id := l.identity.Load(); q.known && id != nil {
		q.outline.own(p)
		t.record(l, id, g, &q.outline, p.Text, &a, q.claim.made())
	}
	return a.prompt, nil
}

// made returns what was claimed, if anything was.
func (c *claim) made() []routing.TokenBlocks {
	if c.tokens == 0 {
		return nil
	}
	return c.blocks
}

// record learns an answer of l, whose identity is id. The claim was made for
// g's.
func (t *Client) record(l *lane, id *identity, g *group, o *outline, text string, a *answered, made []routing.TokenBlocks) {
	if id != g.identity {
		made = nil
	}
	learned := t.memory.record(id.ns, o, text, a, made)
	id.measured(o.bytes, a.count)
	t.metrics.learned.Inc()
	if learned.refuted {
		t.metrics.refuted.Inc()
		t.log.Info("a chat template did not keep a prefix that it had kept before", "server", l.base, "model", l.model)
	}
	if learned.overclaimed > 0 {
		t.metrics.overclaimed.Add(float64(learned.overclaimed))
		t.log.Warn("more of a prompt was believed to be known than its tokens show", "server", l.base, "model", l.model, "blocks", learned.overclaimed)
		l.examined.Store(0) // its template may have changed
	}
}

// fault turns an error of race into a decision's reason, and logs when the
// last tokenizer stops answering.
func (t *Client) fault(ctx context.Context, err error) *routing.Error {
	if refused := (*refusal)(nil); errors.As(err, &refused) {
		return &routing.Error{Reason: routing.ReasonTokenizerRefused, Message: err.Error()}
	}
	reason := routing.ReasonTokenizerDown
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		reason = routing.ReasonTokenizerTimeout
	}
	if !errors.Is(ctx.Err(), context.Canceled) && t.down.CompareAndSwap(false, true) {
		t.log.Warn("no tokenizer answers; prompts are routed by what is remembered of them, or by load, until one does", "err", err)
	}
	return &routing.Error{Reason: reason, Message: err.Error()}
}

// answers notes that a tokenizer answered.
func (t *Client) answers() {
	if t.down.Load() && t.down.CompareAndSwap(true, false) {
		t.log.Info("a tokenizer answers again")
	}
}

// base returns the URL of a serving engine.
func base(e *pool.Endpoint) string { return "http://" + e.Address }

func trimmed(base string) string { return strings.TrimSuffix(base, "/") }
