package fidelity

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/warmpath/warmpath/benchmarks/stack"
)

// send makes one streamed completion, which is due now, and reads it to its
// end.
func (p *player) send(ctx context.Context, due time.Time, i int) (a answer) {
	r := p.requests[i]
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/v1/completions", bytes.NewReader(p.bodies[i]))
	if err != nil {
		return answer{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	if r.Session != "" {
		req.Header.Set("X-Session-Id", r.Session)
	}
	a.late = time.Since(due)
	resp, err := p.client.Do(req)
	if err != nil {
		a.err = err
		return a
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<12))
		a.err = fmt.Errorf("status %d: %s", resp.StatusCode, text)
		return a
	}
	if resp.Header.Get("X-Warmpath-Endpoint") == "" {
		a.err = errors.New("the router has not decided: Envoy has routed it by itself")
		return a
	}
	tokens := 0
	a.err = a.read(resp.Body, due, &tokens)
	if a.err == nil && (a.prompt != r.InputTokens || tokens != r.OutputTokens) {
		a.err = fmt.Errorf("%d tokens of prompt and %d of answer, want %d and %d", a.prompt, tokens, r.InputTokens, r.OutputTokens)
	}
	return a
}

// usage is the part of a stream's last event that is read.
type usage struct {
	Usage *struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
		Details          struct {
			CachedTokens int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
}

// read reads server-sent events up to their end marker. Only the event with
// the usage is decoded: this shares the machine with what it measures.
func (a *answer) read(r io.Reader, due time.Time, tokens *int) error {
	ended, counted := false, false
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		switch {
		case !ok:
		case string(data) == "[DONE]":
			ended = true
		case bytes.HasPrefix(data, []byte(`{"error"`)):
			return fmt.Errorf("the engine: %s", data)
		case a.ttft == 0:
			a.ttft = time.Since(due)
		case bytes.Contains(data, []byte(`"usage":`)):
			var u usage
			if err := json.Unmarshal(data, &u); err != nil {
				return fmt.Errorf("event %q: %w", data, err)
			}
			if u.Usage != nil {
				counted = true
				a.prompt, a.cached, *tokens = u.Usage.PromptTokens, u.Usage.Details.CachedTokens, u.Usage.CompletionTokens
			}
		}
	}
	switch {
	case lines.Err() != nil:
		return lines.Err()
	case !ended:
		return errors.New("the stream ended without [DONE]")
	case !counted:
		return errors.New("the stream carried no usage")
	}
	return nil
}

// counters are what an engine's metrics endpoint counts.
type counters struct {
	// ended and answered count requests that ended and that got a first token;
	// queried and hit prompt tokens, all and those found in the cache.
	ended, answered, queried, hit float64
	// firstTokens is the sum of all times to first token, in seconds.
	firstTokens float64
}

func (c counters) plus(o counters) counters {
	return counters{c.ended + o.ended, c.answered + o.answered, c.queried + o.queried, c.hit + o.hit, c.firstTokens + o.firstTokens}
}

func (c counters) minus(o counters) counters {
	return counters{c.ended - o.ended, c.answered - o.answered, c.queried - o.queried, c.hit - o.hit, c.firstTokens - o.firstTokens}
}

// count reads every engine's metrics.
func count(ctx context.Context, s *stack.Stack) ([]counters, error) {
	var all []counters
	for _, e := range s.Engines {
		c, err := countersOf(ctx, "http://"+e.HTTP+"/metrics")
		if err != nil {
			return nil, fmt.Errorf("metrics of %s: %w", e.Name, err)
		}
		all = append(all, c)
	}
	return all, nil
}

func countersOf(ctx context.Context, url string) (counters, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return counters{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return counters{}, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return counters{}, err
	}
	counter := func(name string) (sum float64) {
		for _, m := range families[name].GetMetric() {
			sum += m.GetCounter().GetValue()
		}
		return sum
	}
	c := counters{
		ended: counter("vllm:request_success_total"), queried: counter("vllm:prefix_cache_queries_total"), hit: counter("vllm:prefix_cache_hits_total"),
	}
	for _, m := range families["vllm:time_to_first_token_seconds"].GetMetric() {
		c.answered += float64(m.GetHistogram().GetSampleCount())
		c.firstTokens += m.GetHistogram().GetSampleSum()
	}
	return c, nil
}
