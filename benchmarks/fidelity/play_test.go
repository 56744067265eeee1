package fidelity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmpath/warmpath/benchmarks/sim"
	"github.com/warmpath/warmpath/kvindex"
)

// serve answers every request by handle until the test ends.
func serve(t *testing.T, c Config, handle http.HandlerFunc) *player {
	t.Helper()
	s := httptest.NewServer(handle)
	t.Cleanup(s.Close)
	p := newPlayer(c, "random", 1, s.URL)
	t.Cleanup(p.client.CloseIdleConnections)
	return p
}

// asked is the body of a request.
type asked struct {
	Prompt    []kvindex.TokenID `json:"prompt"`
	MaxTokens int               `json:"max_tokens"`
	IgnoreEOS bool              `json:"ignore_eos"`
	Stream    bool              `json:"stream"`
}

// respond answers as an engine behind a router does, with half of the prompt
// found in the cache.
func respond(w http.ResponseWriter, r *http.Request) asked {
	var q asked
	_ = json.NewDecoder(r.Body).Decode(&q)
	w.Header().Set("X-Warmpath-Endpoint", "10.0.0.1:8000")
	for range q.MaxTokens {
		_, _ = io.WriteString(w, "data: {\"choices\":[{\"text\":\"x\"}]}\n\n")
	}
	fmt.Fprintf(w, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"prompt_tokens_details\":{\"cached_tokens\":%d}}}\n\ndata: [DONE]\n\n",
		len(q.Prompt), q.MaxTokens, len(q.Prompt)/2)
	return q
}

// Requests have the tokens that the simulator has, and come in order and not
// before their times.
func TestPlayer_SendsTheWorkload(t *testing.T) {
	c := config(t, 40)
	var mu sync.Mutex
	var at []time.Time
	got := map[string]int{}
	p := serve(t, c, func(w http.ResponseWriter, r *http.Request) {
		now := time.Now()
		q := respond(w, r)
		mu.Lock()
		defer mu.Unlock()
		at = append(at, now)
		got[fmt.Sprint(q.Prompt, q.MaxTokens, q.IgnoreEOS, q.Stream, r.Header.Get("X-Session-Id"))]++
	})
	p.last = true // however slow the machine is
	var told []Progress
	p.tell = func(p Progress) { told = append(told, p) }
	began := time.Now()
	answers, err := p.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{}
	for i := range c.Workload.Requests {
		r := &c.Workload.Requests[i]
		want[fmt.Sprint(sim.AppendPrompt(nil, r), r.OutputTokens, true, true, r.Session)]++
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("requests (-want +got):\n%.2000s", d)
	}
	for i := range at {
		if early := p.times[i] - p.times[0] - at[i].Sub(began); early > 0 {
			t.Errorf("request %d came %v early", i, early)
		}
	}
	for _, a := range answers {
		if a.ttft <= 0 || a.late < 0 || a.cached != a.prompt/2 {
			t.Errorf("answer %+v", a)
		}
	}
	if last := told[len(told)-1]; !last.Ended || last.TooLate || last.Answered != 40 || last.Total != 40 {
		t.Errorf("the last that was told: %+v", last)
	}
}

// An open loop: requests do not wait for the answers to others.
func TestPlayer_DoesNotWaitForAnswers(t *testing.T) {
	c := config(t, 20)
	var all sync.WaitGroup
	all.Add(20)
	p := serve(t, c, func(w http.ResponseWriter, r *http.Request) {
		all.Done()
		all.Wait() // nobody is answered before all have asked
		respond(w, r)
	})
	p.last = true
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := p.run(ctx); err != nil {
		t.Error(err)
	}
}

func TestPlayer_NoticesLateness(t *testing.T) {
	c := config(t, 40)
	for _, last := range []bool{false, true} {
		p := serve(t, c, func(w http.ResponseWriter, r *http.Request) { respond(w, r) })
		p.progress.Scale, p.last = 1e-7, last // 2.5 ns are late
		answers, err := p.run(t.Context())
		if last && (err != nil || len(answers) != 40) {
			t.Errorf("at the largest scale: %d answers, %v", len(answers), err)
		}
		if !last && (!errors.Is(err, errLate) || !p.progress.TooLate) {
			t.Errorf("below the largest scale: %v", err)
		}
	}
}

func TestPlayer_FailuresEndIt(t *testing.T) {
	for _, tt := range []struct {
		name   string
		handle http.HandlerFunc
		want   string
	}{
		{"a status", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no room", http.StatusServiceUnavailable) }, "status 503: no room"},
		{"round the router", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "data: [DONE]\n\n") }, "the router has not decided"},
		{"an answer that is too short", func(w http.ResponseWriter, _ *http.Request) {
			respond(w, httptest.NewRequest("POST", "/", strings.NewReader(`{"prompt":[1,2],"max_tokens":3}`)))
		}, "2 tokens of prompt and 3 of answer, want 2248 and 8"},
	} {
		p := serve(t, config(t, 20), tt.handle)
		p.last = true // or a slow machine would end it for another reason
		if _, err := p.run(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), " of 20: ") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestPlayer_EndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := serve(t, config(t, 200), func(w http.ResponseWriter, r *http.Request) {
		cancel()
		respond(w, r)
	})
	p.last = true
	if _, err := p.run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

func TestAnswer_Read(t *testing.T) {
	const token, done = "data: {\"choices\":[{\"text\":\"x\"}]}\n\n", "data: [DONE]\n\n"
	const counted = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n"
	for _, tt := range []struct{ stream, want string }{
		{token + counted + done, ""},
		{token + counted, "without [DONE]"},
		{token + done, "no usage"},
		{token + "data: {\"error\":{\"message\":\"gone\"}}\n\n" + done, "gone"},
		{token + "data: {\"usage\":7}\n\n" + done, "cannot unmarshal"},
		{"", "without [DONE]"},
	} {
		var a answer
		tokens := 0
		err := a.read(strings.NewReader(tt.stream), time.Now(), &tokens)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.stream, err, tt.want)
		}
		if err == nil && (a.prompt != 9 || a.cached != 4 || tokens != 1 || a.ttft <= 0) {
			t.Errorf("%q: %+v, %d tokens", tt.stream, a, tokens)
		}
	}
}

func TestFigures(t *testing.T) {
	answers := []answer{
		{ttft: 10 * time.Millisecond, prompt: 100, cached: 60, late: time.Millisecond},
		{ttft: 30 * time.Millisecond, prompt: 300, cached: 40},
	}
	before := []counters{{ended: 5, answered: 5, queried: 50, hit: 3, firstTokens: 1}, {}}
	after := []counters{{ended: 5, answered: 5, queried: 50, hit: 3, firstTokens: 1}, {ended: 2, answered: 2, queried: 400, hit: 100, firstTokens: 0.03}}
	got, err := figures(answers, before, after)
	if err != nil {
		t.Fatal(err)
	}
	want := Real{
		Figures:    Figures{TokenHit: 0.25, MeanTTFT: 0.02, P90TTFT: 0.03, Requests: []int{2, 0}},
		EngineTTFT: 0.015, Late: 0.001, LateMax: 0.001,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	after[1].hit++
	if _, err := figures(answers, before, after); err == nil {
		t.Error("engines that count another token are believed")
	}
}
