package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/extproc"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// checkEndpoints looks at which endpoints there are and whether they answer.
func (d *doctor) checkEndpoints(r *router) {
	snap := r.pool.Snapshot()
	if len(snap.Endpoints) == 0 {
		d.add(levelFail, "endpoints", "", d.listCommand(), "there are none")
		return
	}
	for _, e := range snap.Endpoints {
		switch e.Health {
		case pool.HealthWithheld:
			mend := ""
			if p := podOf(e); p != "" {
				mend = "kubectl describe " + p
			}
			d.add(levelWarn, "endpoint", e.Name, mend, "gets no requests: %s", e.Withheld)
		case pool.HealthFailed, pool.HealthUnknown:
			url := "http://" + e.Address + d.cfg.Pool.Health.Path
			mend := "curl -i " + url
			if p := podOf(e); p != "" {
				mend += " from where the router runs; kubectl logs " + p
			}
			d.add(levelFail, "endpoint", e.Name, mend, "does not answer its health probe: %s", d.failureOf(url))
		}
	}
	for _, name := range snap.Models() {
		m, _ := snap.Model(name)
		text := fmt.Sprintf("%s to choose from", count(len(m.Endpoints), "endpoint"))
		if m.Adapter != "" {
			text += ", adapter of " + m.Base
		}
		if len(m.Endpoints) == 0 {
			d.add(levelFail, "model", name, "", "no endpoint that serves it is ready")
		} else {
			d.add(levelOK, "model", name, "", "%s", text)
		}
	}
}

// failureOf returns why url does not answer with 200.
func (d *doctor) failureOf(url string) string {
	ctx, cancel := context.WithTimeout(context.Background(), min(d.wait, 3*time.Second))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return err.Error()
	}
	_ = resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return "it did not in time, and does now"
	}
	return fmt.Sprintf("status %d", resp.StatusCode)
}

const eventsFlag = `start vLLM with --kv-events-config '{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"}'`

// checkEvents looks at the connections to the event streams.
func (d *doctor) checkEvents(r *router) {
	status := map[string][]events.Status{}
	for _, s := range r.events.Status() {
		status[s.Endpoint] = append(status[s.Endpoint], s)
	}
	for _, e := range r.pool.Snapshot().Endpoints {
		switch {
		case e.Topic != "", e.Relay == pool.RelayPush && e.Events == "":
			d.add(levelSkip, "events", e.Name, "curl http://"+d.cfg.Admin.Listen+"/debug/state", "it connects to the router; its state is at /debug/state there")
			continue
		case len(e.Publishers) == 0 && e.Health != pool.HealthFailed:
			d.add(levelWarn, "events", e.Name, eventsFlag, "it publishes no KV events, or does not say where, so its cache is guessed from what is sent to it")
			continue
		}
		for _, s := range status[e.Name] {
			rank, stream := "", s.Events
			if len(e.Publishers) > 1 {
				rank = fmt.Sprintf("rank %d: ", s.Rank)
			}
			relayed := s.Source == events.SourceRelay
			if relayed || stream == "" {
				stream = "its relay " + s.Relay
			}
			switch {
			case s.Error != "":
				d.add(levelFail, "events", e.Name, eventsFlag, "%s%s cannot be followed: %s", rank, stream, s.Error)
			case s.Replay == "" && !relayed && s.Events != "":
				d.add(levelWarn, "replay", e.Name, eventsFlag, "%s%s has no replay socket: what is lost cannot be had again", rank, s.Events)
			case s.Trust == kvindex.TrustExact.String():
				d.add(levelOK, "events", e.Name, "", "%s%s is followed, and its history is complete", rank, stream)
			case relayed || s.Replay == "":
				d.add(levelWarn, "events", e.Name, "curl http://"+d.cfg.Admin.Listen+"/debug/state", "%s%s is followed, but its history is %s (%s)", rank, stream, s.Trust, s.Phase)
			default:
				d.add(levelWarn, "events", e.Name, "nc -vz "+strings.Replace(strings.TrimPrefix(s.Replay, "tcp://"), ":", " ", 1), "%s%s is followed, but its history is %s (%s): the replay socket %s has not answered, or has not got everything", rank, stream, s.Trust, s.Phase, s.Replay)
			}
		}
	}
}

// checkMetrics looks at whether the engines' load can be read.
func (d *doctor) checkMetrics(ctx context.Context, r *router) {
	if d.cfg.Pool.Load.Interval == 0 {
		d.add(levelSkip, "metrics", "", "", "pool.load.interval is 0s: not read")
		return
	}
	ready := func() []*pool.Endpoint {
		return slices.DeleteFunc(slices.Clone(r.pool.Snapshot().Endpoints), func(e *pool.Endpoint) bool { return e.Health != pool.HealthReady })
	}
	d.until(ctx, d.wait, func() bool {
		return !slices.ContainsFunc(ready(), func(e *pool.Endpoint) bool { return e.State.Load() == nil })
	})
	for _, e := range ready() {
		url := e.Metrics
		if url == "" {
			url = "http://" + e.Address + d.cfg.Pool.Load.Path
		}
		switch l := e.State.Load(); {
		case l == nil:
			d.add(levelFail, "metrics", e.Name, "curl -s "+url+" | grep num_requests; set pool.load.path, or the pod's warmpath.dev/metrics-port", "%s has no load metrics of vLLM, SGLang or TensorRT-LLM (%s)", url, d.failureOf(url))
		case l.Fresh(time.Now()) == 0:
			d.add(levelFail, "metrics", e.Name, "curl -s "+url, "they are too old: %s", d.failureOf(url))
		default:
			d.add(levelOK, "metrics", e.Name, "", "%s", url)
		}
	}
}

// checkRequests sends completions to some engines of every base model and
// compares what follows with what the parts expect.
func (d *doctor) checkRequests(ctx context.Context, r *router) {
	if d.sample == 0 {
		d.add(levelSkip, "prediction", "", "", "no requests are sent to the engines")
		return
	}
	byBase := map[string][]*pool.Endpoint{}
	for _, e := range r.pool.Snapshot().Endpoints {
		if e.Health == pool.HealthReady && len(e.Models) > 0 {
			byBase[e.Models[0]] = append(byBase[e.Models[0]], e)
		}
	}
	for _, base := range slices.Sorted(maps.Keys(byBase)) {
		endpoints := byBase[base]
		for _, e := range endpoints[:min(d.sample, len(endpoints))] {
			d.step("sending completions to %s", e.Name)
			d.checkPrediction(ctx, r, e)
		}
		if n := len(endpoints) - d.sample; n > 0 {
			d.add(levelSkip, "prediction", base, "warmpath doctor --sample "+strconv.Itoa(len(endpoints))+" …", "%s more of this model got no requests", count(n, "engine"))
		}
	}
}

// promptWords are enough for a few tens of blocks.
const promptWords = 600

// attempts is how many prompts are tried: what an engine without a replay
// socket published before the subscription was in force is lost.
const attempts = 3

// unseen returns the body of a completion whose prompt nobody has sent before.
func unseen(model string) []byte {
	words := make([]string, promptWords)
	for i := range words {
		words[i] = strconv.FormatUint(uint64(rand.Uint32N(100_000)), 36)
	}
	body, _ := json.Marshal(map[string]any{"model": model, "prompt": strings.Join(words, " "), "max_tokens": 1, "temperature": 0}) // of such a value it cannot fail
	return body
}

// checkPrediction sends a prompt that nobody has seen to an engine, and sends
// it again when its events should have come: what the index then predicts is
// what the engine should report as cached.
func (d *doctor) checkPrediction(ctx context.Context, r *router, e *pool.Endpoint) {
	var body []byte
	var seen routing.CandidateView
	var said routing.Decision
	var refused *routing.Error
	came := false
	for n := 0; n < attempts && !came; n++ {
		body = unseen(e.Models[0])
		if _, err := d.complete(ctx, e, body); err != nil {
			d.add(levelFail, "request", e.Name, "", "a completion fails: %v", err)
			return
		}
		came = d.until(ctx, d.wait/attempts, func() bool {
			if len(e.State.BlockSizes()) == 0 {
				return false // prompts are cut into blocks once an event has told of what size
			}
			if said, refused = d.explain(ctx, r, body); refused != nil {
				return false
			}
			for _, c := range said.Candidates {
				if c.Name == e.Name {
					seen = c
				}
			}
			return seen.MatchedTokens > 0 || len(e.Publishers) == 0 && said.PromptTokens > 0
		})
	}
	switch {
	case refused != nil:
		d.add(levelFail, "tokenizer", e.Name, "", "the router would refuse the request: %s", refused.Message)
		return
	case d.cfg.Tokenizer.Disabled:
		d.add(levelSkip, "tokenizer", e.Name, "", "tokenizer.disabled is true")
		return
	case len(e.State.BlockSizes()) == 0:
		d.blind(r, e)
		return
	case said.PromptTokens == 0:
		at := "http://" + e.Address
		if len(d.cfg.Tokenizer.Endpoints) > 0 {
			at = d.cfg.Tokenizer.Endpoints[0]
		}
		d.add(levelFail, "tokenizer", e.Name, fmt.Sprintf(`curl -i %s/tokenize -H 'content-type: application/json' -d '{"model": %q, "prompt": "hello"}'`, at, e.Models[0]),
			"prompts are not tokenized (%s); is tokenizer.api right, and tokenizer.budget (%s) long enough?", said.Reason, d.cfg.Tokenizer.Budget)
		return
	}
	d.add(levelOK, "tokenizer", e.Name, "", "%d tokens, within %s", said.PromptTokens, d.cfg.Tokenizer.Budget)
	if len(e.Publishers) == 0 {
		return
	}
	if !came {
		d.blind(r, e)
		return
	}
	cached, err := d.complete(ctx, e, body)
	d.compare(e, said.PromptTokens, seen.MatchedTokens, cached, err)
}

// explain asks the router's parts what they would decide for a completion.
func (d *doctor) explain(ctx context.Context, r *router, body []byte) (routing.Decision, *routing.Error) {
	headers := http.Header{"Content-Type": {"application/json"}, "Routing-Strategy": {"prefix-cache"}}
	req, refused := extproc.ReadRequest(http.MethodPost, "/v1/completions", headers, body, d.cfg.ExtProc.MaxBodyBytes, time.Now())
	if refused != nil {
		return routing.Decision{}, refused
	}
	return r.routing.Explain(ctx, req)
}

// blind says why nothing of a prompt that an engine has just computed is
// matched.
func (d *doctor) blind(r *router, e *pool.Endpoint) {
	for _, s := range r.events.Status() {
		switch {
		case s.Endpoint != e.Name || s.Error != "":
		case s.Replay != "" && s.Trust != kvindex.TrustExact.String():
			d.add(levelFail, "event flow", e.Name, "nc -vz "+strings.Replace(strings.TrimPrefix(s.Replay, "tcp://"), ":", " ", 1)+"; set replay to where the engine's replay_endpoint is, or to nothing",
				"its events are held back until its replay socket %s answers (%s)", s.Replay, s.Phase)
			return
		case !s.LastEvent.IsZero():
			d.add(levelFail, "event flow", e.Name, "warmpath events "+s.Events, "its events come, but nothing of the prompt that it has just computed is matched: the tokenizer and the engine see different tokens, or its events are not understood")
			return
		}
	}
	endpoint := "tcp://HOST:PORT"
	if len(e.Publishers) > 0 {
		endpoint = e.Publishers[0].Events
	}
	d.add(levelFail, "event flow", e.Name, "warmpath events "+endpoint+"; "+eventsFlag+", and do not switch prefix caching off", "no event came within %s of %d completions", d.wait, attempts)
}

// compare holds what was predicted to be cached against what the engine says.
func (d *doctor) compare(e *pool.Endpoint, prompt, predicted int, cached *int, err error) {
	block := 1
	for _, n := range e.State.BlockSizes() {
		block = max(block, n)
	}
	switch {
	case err != nil:
		d.add(levelFail, "request", e.Name, "", "the second completion fails: %v", err)
	case cached == nil:
		d.add(levelWarn, "prediction", e.Name, "start vLLM with --enable-prompt-tokens-details, SGLang with --enable-cache-report", "%d of %d tokens are predicted to be cached, and the engine does not say how many were", predicted, prompt)
	case predicted > *cached+block: // an engine computes the last block of a prompt that it holds whole
		d.add(levelFail, "prediction", e.Name, "warmpath explain and warmpath events, for a report", "%d of %d tokens were predicted to be cached, %d were: something evicts or renames blocks and does not say so", predicted, prompt, *cached)
	case *cached > predicted+2*block:
		d.add(levelWarn, "prediction", e.Name, "warmpath events, and see if batches are missing", "%d of %d tokens were predicted to be cached, %d were: part of the events is lost or not understood", predicted, prompt, *cached)
	default:
		d.add(levelOK, "prediction", e.Name, "", "%d of %d tokens predicted to be cached, %d were", predicted, prompt, *cached)
	}
}

// complete sends a completion to an engine. cached is what it says was cached,
// nil if it says nothing.
func (d *doctor) complete(ctx context.Context, e *pool.Endpoint, body []byte) (cached *int, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	url := "http://" + e.Address + "/v1/completions"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("POST %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("POST %s: status %d: %.200s", url, resp.StatusCode, b)
	}
	var answer struct {
		Usage struct {
			Details *struct {
				Cached *int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		} `json:"usage"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("POST %s: %w", url, err)
	}
	if answer.Usage.Details == nil {
		return nil, nil
	}
	return answer.Usage.Details.Cached, nil
}

// checkBlockSizes looks for engines of one model that cut prompts differently,
// and for events that do not fit the engine's metrics.
func (d *doctor) checkBlockSizes(r *router) {
	byBase := map[string]map[int][]string{}
	for _, e := range r.pool.Snapshot().Endpoints {
		sizes := e.State.BlockSizes()
		if len(e.Models) == 0 || len(e.Publishers) == 0 || len(sizes) == 0 {
			continue
		}
		if l := e.State.Load(); l != nil && l.BlockSize > 0 && !slices.Contains(sizes, l.BlockSize) {
			d.add(levelWarn, "block size", e.Name, "curl -s http://"+e.Address+"/metrics | grep block_size", "its metrics say %d tokens, its events %v: is the metrics URL that of another engine?", l.BlockSize, sizes)
		}
		base := byBase[e.Models[0]]
		if base == nil {
			base = map[int][]string{}
			byBase[e.Models[0]] = base
		}
		for _, n := range sizes {
			base[n] = append(base[n], e.Name)
		}
	}
	for _, model := range slices.Sorted(maps.Keys(byBase)) {
		sizes := slices.Sorted(maps.Keys(byBase[model]))
		if len(sizes) == 1 {
			d.add(levelOK, "block size", model, "", "%d tokens", sizes[0])
			continue
		}
		var parts []string
		for _, n := range sizes {
			parts = append(parts, fmt.Sprintf("%d (%s)", n, strings.Join(byBase[model][n][:1], "")))
		}
		d.add(levelWarn, "block size", model, "start all engines of a model with the same --block-size", "its engines use several, which makes every prompt be hashed for each: %s", strings.Join(parts, ", "))
	}
}
