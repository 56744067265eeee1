package tokenizer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// Client asks remote tokenizers. It is safe for concurrent use.
type Client struct {
	cfg     Config
	client  *http.Client
	log     *slog.Logger
	metrics *metrics
	// turn spreads requests over the servers.
	turn atomic.Uint64
	// down is set while no server answers, so that a change is logged once.
	down atomic.Bool
}

// New returns a client that sends its requests through client.
func New(cfg Config, client *http.Client, log *slog.Logger, reg prometheus.Registerer) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, client: client, log: log.With("component", "tokenizer"), metrics: newMetrics(reg)}, nil
}

// refusal is a server's verdict that the prompt itself is at fault: no other
// server would accept it.
type refusal struct{ status int }

func (e *refusal) Error() string {
	return fmt.Sprintf("the prompt was refused with status %d", e.status)
}

// Tokenize returns the token ids of r's prompt. Servers are asked in turn
// until one answers, the budget is used up or ctx ends.
func (t *Client) Tokenize(ctx context.Context, r *routing.Request, serving []*pool.Endpoint) ([]kvindex.TokenID, *routing.Error) {
	body := appendBody(make([]byte, 0, 256+len(r.Prompt.Text)+len(r.Prompt.Messages)+len(r.Prompt.Tools)), r)
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Budget)
	defer cancel()
	n := len(t.cfg.Endpoints)
	if n == 0 {
		n = len(serving)
	}
	first := int(t.turn.Add(1) % uint64(max(n, 1)))
	last := errors.New("there is no tokenizer to ask")
	for i := range n {
		tokens, err := t.ask(ctx, t.base((first+i)%n, serving), body)
		if err == nil {
			if t.down.CompareAndSwap(true, false) {
				t.log.Info("a tokenizer answers again")
			}
			return tokens, nil
		}
		last = err
		if refused := (*refusal)(nil); errors.As(err, &refused) {
			return nil, &routing.Error{Reason: routing.ReasonTokenizerRefused, Message: err.Error()}
		}
		if ctx.Err() != nil {
			break
		}
	}
	reason := routing.ReasonTokenizerDown
	if ctx.Err() != nil || errors.Is(last, context.DeadlineExceeded) {
		reason = routing.ReasonTokenizerTimeout
	}
	if t.down.CompareAndSwap(false, true) {
		t.log.Warn("no tokenizer answers; prompts are routed by load until one does", "err", last)
	}
	return nil, &routing.Error{Reason: reason, Message: last.Error()}
}

func (t *Client) base(i int, serving []*pool.Endpoint) string {
	if len(t.cfg.Endpoints) > 0 {
		return strings.TrimSuffix(t.cfg.Endpoints[i], "/")
	}
	return "http://" + serving[i].Address
}

// ask makes one attempt at one server.
func (t *Client) ask(ctx context.Context, base string, body []byte) (tokens []kvindex.TokenID, err error) {
	start := time.Now()
	defer func() { t.metrics.asked(time.Since(start), err) }()
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Attempt)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/tokenize", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := t.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := readAll(resp, t.cfg.MaxResponseBytes)
	switch {
	case err != nil:
		return nil, fmt.Errorf("POST %s/tokenize: %w", base, err)
	case resp.StatusCode == http.StatusBadRequest, resp.StatusCode == http.StatusUnprocessableEntity:
		return nil, &refusal{resp.StatusCode}
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("POST %s/tokenize: status %d", base, resp.StatusCode)
	}
	tokens, err = parseAnswer(answer)
	if err != nil {
		return nil, fmt.Errorf("POST %s/tokenize: %w", base, err)
	}
	return tokens, nil
}

// readAll reads an answer whole, up to limit bytes.
func readAll(resp *http.Response, limit int64) ([]byte, error) {
	var buf bytes.Buffer
	if n := resp.ContentLength; n > 0 && n <= limit {
		buf.Grow(int(n) + bytes.MinRead)
	}
	n, err := buf.ReadFrom(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("the answer is larger than max_response_bytes %d", limit)
	}
	return buf.Bytes(), nil
}
