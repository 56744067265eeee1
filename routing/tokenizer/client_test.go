package tokenizer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/zeebo/xxh3"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// chatServer is a tokenizer with a template of the memory's tests.
type chatServer struct {
	*httptest.Server
	// render may be changed while the server runs.
	render atomic.Pointer[template]
	// gate, if there is one, holds every request until it is closed.
	gate  atomic.Pointer[chan struct{}]
	asked atomic.Int32
	// down answers with an error; cut ends connections without an answer.
	down, cut atomic.Bool
}

func newChatServer(t *testing.T, name string) *chatServer {
	s := &chatServer{}
	render := templates[name]
	s.render.Store(&render)
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *chatServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	if s.cut.Load() {
		panic(http.ErrAbortHandler)
	}
	var q struct {
		Messages []chatMessage
		Prompt   string
		Tools    []any
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if gate := s.gate.Load(); gate != nil {
		select {
		case <-*gate:
		case <-r.Context().Done():
			return
		}
	}
	if s.down.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	text := q.Prompt
	if q.Messages != nil {
		text = (*s.render.Load())(q.Messages, len(q.Tools) > 0)
	}
	var ids []kvindex.TokenID
	for _, word := range splitters["words"](text) {
		ids = append(ids, kvindex.TokenID(xxh3.HashString(word)>>34))
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"count": len(ids), "tokens": ids})
}

// running returns a client that learns, until the test ends.
func running(t *testing.T, change func(*Config)) *Client {
	t.Helper()
	c := newClient(t, change)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

// wait polls until ok holds.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("it never came that %s", what)
		case <-tick.C:
		}
	}
}

// examined waits until a client knows the identities of n lanes. It asks
// about something, so that there are lanes.
func examined(t *testing.T, c *Client, serving []*pool.Endpoint, n int) {
	t.Helper()
	wait(t, "the tokenizers are examined", func() bool {
		_, _ = ask(t, c, text("hello"), serving)
		known := 0
		c.lanes.Range(func(_ laneKey, l *lane) bool {
			if l.identity.Load() != nil {
				known++
			}
			return true
		})
		return known == n
	})
}

const system = "You are a helpful assistant and you know all of it, and all of the rest of it, and more of all that there is. "

// talk takes turns of chat i with c, and returns where the tokens of the last
// prompt came from.
func talk(t *testing.T, c *Client, serving []*pool.Endpoint, i, turns int, last string) routing.Tokens {
	t.Helper()
	ms := []chatMessage{{Role: "system", Content: strings.Repeat(system, 3)}}
	var got routing.Tokens
	for turn := range turns {
		question := fmt.Sprintf("%d, %d: what about this one, and what about all of the rest of it?", i, turn)
		if turn == turns-1 {
			question += last
		}
		ms = append(ms, chatMessage{Role: "user", Content: question})
		before := testutil.ToFloat64(c.metrics.learned)
		var err *routing.Error
		r := &routing.Request{Model: "m", Prompt: *chatPrompt(ms, false)}
		if got, err = ask(t, c, r, serving); err != nil {
			t.Fatalf("chat %d, turn %d: %v", i, turn, err)
		}
		if turn < turns-1 && got.Source == routing.TokensL1 {
			wait(t, "a prompt is learned", func() bool { return testutil.ToFloat64(c.metrics.learned) > before })
		}
		ms = append(ms, chatMessage{Role: "assistant", Content: fmt.Sprintf("Well, %d and %d.", turn, i)})
	}
	return got
}

func TestTokenize_LearnsBehindTheDecision(t *testing.T) {
	s := newChatServer(t, "stable")
	c := running(t, func(cfg *Config) { cfg.Endpoints = []string{s.URL}; cfg.MaxUnseenTokens = 100 })
	examined(t, c, nil, 1)
	for i := range 4 {
		talk(t, c, nil, i, 4, "")
	}
	gate := make(chan struct{})
	s.gate.Store(&gate) // whoever waits for it now never returns
	t.Cleanup(func() { close(gate) })
	got := talk(t, c, nil, 3, 4, "") // its last prompt was tokenized behind its decision
	if got.Source != routing.TokensL0 && got.Source != routing.TokensL1 {
		t.Errorf("tokens came from %v, want l0 or l1", got.Source)
	}
	got = talk(t, c, nil, 99, 1, "")
	if got.Source != routing.TokensL1 || got.Unseen == 0 || len(got.Blocks[0].Contents) < 30 {
		t.Errorf("a first turn: %v, %d unseen, %d blocks; want l1, the system prompt's", got.Source, got.Unseen, len(got.Blocks[0].Contents))
	}
	if testutil.ToFloat64(c.metrics.overclaimed) > 0 {
		t.Error("blocks were claimed too much")
	}
}

func TestTokenize_WaitsForALongRest(t *testing.T) {
	s := newChatServer(t, "stable")
	c := running(t, func(cfg *Config) { cfg.Endpoints = []string{s.URL}; cfg.MaxUnseenTokens = 100 })
	examined(t, c, nil, 1)
	for i := range 4 {
		talk(t, c, nil, i, 2, "")
	}
	document := strings.Repeat(" and more of it", 200)
	if got := talk(t, c, nil, 10, 1, document); got.Source != routing.TokensRemote || got.Unseen != 0 {
		t.Errorf("a pasted document: %v, want %v", got.Source, routing.TokensRemote)
	}
	// Nobody answers: what is known of the beginning is used.
	s.down.Store(true)
	got := talk(t, c, nil, 11, 1, document+"!")
	if got.Source != routing.TokensL1 || got.Unseen < 200 || got.Fault != routing.ReasonTokenizerDown {
		t.Errorf("without a tokenizer: %v, %d unseen, fault %v; want l1 of the system prompt, and the reason", got.Source, got.Unseen, got.Fault)
	}
}

func TestTokenize_WaitsForUnstableTemplates(t *testing.T) {
	s := newChatServer(t, "system prompt and tools moved to the last user message")
	c := running(t, func(cfg *Config) { cfg.Endpoints = []string{s.URL} })
	examined(t, c, nil, 1)
	for i := range 6 {
		if got := talk(t, c, nil, i, 3, ""); got.Source != routing.TokensRemote {
			t.Errorf("chat %d: tokens came from %v, want %v", i, got.Source, routing.TokensRemote)
		}
	}
}

// Two templates of one model, in a rolling upgrade, are not mixed: each is
// looked up for the engines that have it.
func TestTokenize_KeepsTwoTemplatesApart(t *testing.T) {
	a, b, c := newChatServer(t, "stable"), newChatServer(t, "stable"), newChatServer(t, "contents stripped")
	var serving []*pool.Endpoint
	for i, s := range []*chatServer{a, b, c} {
		serving = append(serving, &pool.Endpoint{Spec: pool.Spec{Address: strings.TrimPrefix(s.URL, "http://")}, ID: kvindex.EndpointID(i)})
	}
	client := running(t, func(*Config) {})
	get := func() []routing.Tokens {
		got, err := client.Tokenize(t.Context(), &routing.TokenQuery{
			Request: &routing.Request{Model: "m", Prompt: *chatPrompt([]chatMessage{{Role: "user", Content: "which one?"}}, false)},
			Serving: serving, Hasher: kvindex.NewHasher(1), BlockSizes: []int{testBlock},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	var got []routing.Tokens
	wait(t, "the engines are told apart", func() bool {
		got = get()
		return len(got) == 2 && len(got[0].Endpoints)+len(got[1].Endpoints) == 3
	})
	if len(got[0].Endpoints) != 2 || len(got[1].Endpoints) != 1 || got[1].Endpoints[0] != serving[2] {
		t.Fatalf("groups of %d and %d endpoints, want the first two and the third", len(got[0].Endpoints), len(got[1].Endpoints))
	}
	if got[0].Count == got[1].Count {
		t.Errorf("both groups have %d tokens, but their templates differ", got[0].Count)
	}
	// The upgrade ends: a new look finds one template again.
	render := templates["contents stripped"]
	for _, s := range []*chatServer{a, b} {
		s.render.Store(&render)
	}
	client.lanes.Range(func(_ laneKey, l *lane) bool { l.examined.Store(1); return true })
	wait(t, "the change is seen", func() bool { got = get(); return len(got) == 1 && got[0].Endpoints == nil })
	if n := testutil.ToFloat64(client.metrics.changed); n != 2 {
		t.Errorf("%v changes were seen, want 2", n)
	}
}

// A server that was gone may be another one when it is back: it is examined
// before the interval is over. One that merely fails is not.
func TestTokenize_ExaminesAServerThatWasGone(t *testing.T) {
	s := newChatServer(t, "stable")
	c := running(t, func(cfg *Config) {
		cfg.Endpoints, cfg.BreakerFailures, cfg.ExamineInterval = []string{s.URL}, 100, time.Hour
	})
	examined(t, c, nil, 1)
	l := c.lane(s.URL, "m")
	fails := func() {
		t.Helper()
		if _, err := ask(t, c, text("one more"), nil); err == nil || err.Reason != routing.ReasonTokenizerDown {
			t.Fatalf("Tokenize: %v, want %v", err, routing.ReasonTokenizerDown)
		}
	}
	s.down.Store(true)
	before := l.examined.Load()
	fails()
	if l.examined.Load() != before {
		t.Error("a server that answered with an error is to be examined")
	}
	s.down.Store(false)
	s.cut.Store(true)
	fails()
	render := templates["contents stripped"]
	s.render.Store(&render)
	s.cut.Store(false)
	wait(t, "the change is seen", func() bool {
		_, _ = ask(t, c, text("hello"), nil)
		return testutil.ToFloat64(c.metrics.changed) == 1
	})
}

func TestTokenize_SharesOneRequest(t *testing.T) {
	s := newChatServer(t, "stable")
	c := running(t, func(cfg *Config) { cfg.Endpoints = []string{s.URL} })
	examined(t, c, nil, 1)
	gate := make(chan struct{})
	s.gate.Store(&gate)
	before := s.asked.Load()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got, err := ask(t, c, text("all at once"), nil); err != nil || got.Count != 3 {
				t.Errorf("%v, %v; want 3 tokens", got, err)
			}
		})
	}
	wait(t, "19 wait for the first", func() bool { return testutil.ToFloat64(c.metrics.shared) == 19 })
	close(gate)
	wg.Wait()
	if n := s.asked.Load() - before; n != 1 {
		t.Errorf("the tokenizer was asked %d times, want once", n)
	}
}

// A caller that gives up does not take the others with it.
func TestTokenize_TheFirstMayGiveUp(t *testing.T) {
	s := newChatServer(t, "stable")
	c := running(t, func(cfg *Config) { cfg.Endpoints = []string{s.URL} })
	examined(t, c, nil, 1)
	gate := make(chan struct{})
	s.gate.Store(&gate)
	ctx, cancel := context.WithCancel(t.Context())
	q := func() *routing.TokenQuery {
		return &routing.TokenQuery{Request: text("who waits"), Hasher: kvindex.NewHasher(1), BlockSizes: []int{testBlock}}
	}
	var wg sync.WaitGroup
	asked := s.asked.Load()
	wg.Go(func() {
		if _, err := c.Tokenize(ctx, q(), nil); err == nil || err.Reason != routing.ReasonTokenizerTimeout {
			t.Errorf("canceled: %v", err)
		}
	})
	wait(t, "the first has asked", func() bool { return s.asked.Load() > asked })
	wg.Go(func() {
		if got, err := c.Tokenize(t.Context(), q(), nil); err != nil || got[0].Count != 2 {
			t.Errorf("the second got %v, %v", got, err)
		}
	})
	wait(t, "the second waits", func() bool { return testutil.ToFloat64(c.metrics.shared) == 1 })
	cancel()
	wait(t, "the second has asked itself", func() bool { return s.asked.Load() > asked+1 })
	close(gate)
	wg.Wait()
}

func TestTokenize_HedgesTheSlow(t *testing.T) {
	fast, slow := newChatServer(t, "stable"), newChatServer(t, "stable")
	c := newClient(t, func(cfg *Config) { cfg.Endpoints = []string{fast.URL, slow.URL}; cfg.HedgeShare = 1 })
	for i := range 64 {
		if _, err := ask(t, c, text(fmt.Sprint("warm ", i)), nil); err != nil {
			t.Fatal(err)
		}
	}
	gate := make(chan struct{})
	slow.gate.Store(&gate) // it never answers
	t.Cleanup(func() { close(gate) })
	before := testutil.ToFloat64(c.metrics.hedges)
	for i := range 10 {
		if _, err := ask(t, c, text(fmt.Sprint("slow ", i)), nil); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	if n := testutil.ToFloat64(c.metrics.hedges) - before; n < 5 {
		t.Errorf("%v second requests, want one for each of the 5 that began at the slow server", n)
	}
}

// A dead server is left alone, tried again after its rest, and used again once
// it answers.
func TestTokenize_BreaksAndRecovers(t *testing.T) {
	dead, good := newChatServer(t, "stable"), newChatServer(t, "stable")
	c := newClient(t, func(cfg *Config) {
		cfg.Endpoints = []string{dead.URL, good.URL}
		cfg.HedgeShare = 0
		cfg.BreakerFailures = 3
	})
	now := time.Now()
	c.now = func() time.Time { return now }
	send := func(n int) {
		t.Helper()
		for i := range n {
			if _, err := ask(t, c, text(fmt.Sprint("x ", i)), nil); err != nil {
				t.Fatalf("request %d: %v", i, err)
			}
		}
	}
	dead.down.Store(true)
	send(100)
	if n := dead.asked.Load(); n != 3 {
		t.Errorf("a dead server was asked %d times, want 3", n)
	}
	now = now.Add(c.cfg.BreakerRest)
	send(20)
	if n := dead.asked.Load(); n != 4 {
		t.Errorf("after its rest it was asked %d times in all, want 4", n)
	}
	dead.down.Store(false)
	now = now.Add(2 * c.cfg.BreakerRest)
	send(40)
	if n := dead.asked.Load(); n < 20 {
		t.Errorf("once it answered it was asked %d times, want a half of 40 and 4", n)
	}
	good.down.Store(true)
	dead.down.Store(true)
	for i := range 10 {
		if _, err := ask(t, c, text(fmt.Sprint("down ", i)), nil); err == nil || err.Reason != routing.ReasonTokenizerDown {
			t.Fatalf("with all down: %v", err)
		}
	}
	good.down.Store(false)
	now = now.Add(time.Minute)
	send(1)
}

// A server that lacks the model is left out for that model only.
func TestTokenize_FindsAServerOfTheModel(t *testing.T) {
	var asked atomic.Int32
	none := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.NotFound(w, r)
	}))
	t.Cleanup(none.Close)
	good := newChatServer(t, "stable")
	c := newClient(t, func(cfg *Config) { cfg.Endpoints = []string{none.URL, good.URL} })
	for i := range 20 {
		if _, err := ask(t, c, text(fmt.Sprint("x ", i)), nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("a server without the model was asked %d times, want once", n)
	}
}

// Under load learning is dropped, and no decision waits for it.
func TestTokenize_DropsLearningFirst(t *testing.T) {
	s := newChatServer(t, "stable")
	c := running(t, func(cfg *Config) { cfg.Endpoints = []string{s.URL}; cfg.LearnQueue, cfg.LearnWorkers = 2, 1 })
	examined(t, c, nil, 1)
	for i := range 4 {
		talk(t, c, nil, i, 1, "")
	}
	gate := make(chan struct{})
	s.gate.Store(&gate)
	for i := range 20 {
		if got := talk(t, c, nil, 100+i, 1, ""); got.Source != routing.TokensL1 {
			t.Fatalf("decision %d: %v, want %v", i, got.Source, routing.TokensL1)
		}
	}
	if n := testutil.ToFloat64(c.metrics.droppedFull); n < 17 {
		t.Errorf("%v prompts were dropped, want all but those in the queue and at work", n)
	}
	close(gate)
	wait(t, "the queue is empty", func() bool { return len(c.jobs) == 0 && c.jobBytes.Load() == 0 })
}

func TestTokenize_FormsOfOtherAPIs(t *testing.T) {
	chats := routing.Request{Model: "m", Prompt: *chatPrompt([]chatMessage{{Role: "user", Content: "x"}}, false)}
	render := newServer(t, 200, `{"token_ids":[4,5,6],"features":null}`)
	c := newClient(t, func(cfg *Config) { cfg.Endpoints, cfg.API = []string{render.URL}, "vllm-render" })
	if got, err := ask(t, c, &chats, nil); err != nil || got.Count != 3 || !strings.HasPrefix(*render.last.Load(), "/v1/chat/completions/render ") {
		t.Errorf("render: %v, %v, asked %s", got, err, *render.last.Load())
	}
	sglang := newServer(t, 200, `{"tokens":[1,2],"count":2,"max_model_len":9e99}`)
	c = newClient(t, func(cfg *Config) { cfg.Endpoints, cfg.API = []string{sglang.URL}, "sglang" })
	if _, err := ask(t, c, &chats, nil); err == nil || err.Reason != routing.ReasonTokenizerForm {
		t.Errorf("a chat for SGLang: %v, want %v", err, routing.ReasonTokenizerForm)
	}
	if got, err := ask(t, c, text("x"), nil); err != nil || got.Count != 2 {
		t.Errorf("a text for SGLang: %v, %v", got, err)
	}
}

// BenchmarkFirstSight is the client's work for a chat of 100 KB seen for the
// first time: outline, look-ups, request, scan of 25,000 ids, hashes, and what
// is remembered. The server answers at once, from the same process.
func BenchmarkFirstSight(b *testing.B) {
	ids := make([]kvindex.TokenID, 25_000)
	for i := range ids {
		ids[i] = kvindex.TokenID(i * 7919 % 128_000)
	}
	answer, err := json.Marshal(map[string]any{"count": len(ids), "max_model_len": 131072, "tokens": ids, "token_strs": nil})
	if err != nil {
		b.Fatal(err)
	}
	respond := roundTripper(func(r *http.Request) (*http.Response, error) {
		buf := make([]byte, 4096)
		for {
			if _, err := r.Body.Read(buf); err != nil {
				break
			}
		}
		r.Body.Close()
		return &http.Response{StatusCode: 200, Body: &replay{data: answer}, Request: r}, nil
	})
	cfg := DefaultConfig()
	cfg.Endpoints = []string{"http://tokenizer"}
	c, err := New(cfg, &http.Client{Transport: respond}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	c.examine(b.Context(), c.lane("http://tokenizer", "m"))
	messages := []byte(`[{"role":"system","content":"` + strings.Repeat("You are helpful. ", 600) + `"},{"role":"user","content":"                    ` + strings.Repeat("What about it? ", 6000) + `"}]`)
	at := strings.Index(string(messages), "          ")
	r := routing.Request{Model: "m", Prompt: routing.Prompt{Kind: routing.PromptChat, Messages: messages}}
	q := &routing.TokenQuery{Request: &r, Hasher: kvindex.NewHasher(1), BlockSizes: []int{16}}
	var dst []routing.Tokens
	b.SetBytes(int64(len(messages)))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		copy(messages[at:], fmt.Sprintf("%020d", i)) // never seen before
		var rerr *routing.Error
		if dst, rerr = c.Tokenize(b.Context(), q, dst[:0]); rerr != nil || dst[0].Source == routing.TokensL0 {
			b.Fatal(rerr)
		}
	}
}

// BenchmarkSeen is the look-up of a chat of 100 KB that was seen before.
func BenchmarkSeen(b *testing.B) {
	c, q := seen(b)
	var dst []routing.Tokens
	b.SetBytes(int64(len(q.Request.Prompt.Messages)))
	b.ReportAllocs()
	for b.Loop() {
		var err *routing.Error
		if dst, err = c.Tokenize(b.Context(), q, dst[:0]); err != nil || dst[0].Source != routing.TokensL0 {
			b.Fatal(err, dst)
		}
	}
}

// seen returns a client that knows the prompt of a query.
func seen(tb testing.TB) (*Client, *routing.TokenQuery) {
	respond := roundTripper(func(r *http.Request) (*http.Response, error) {
		r.Body.Close()
		return &http.Response{StatusCode: 200, Body: &replay{data: []byte(`{"tokens":[1,2,3,4,5,6,7,8,9]}`)}, Request: r}, nil
	})
	cfg := DefaultConfig()
	cfg.Endpoints = []string{"http://tokenizer"}
	c, err := New(cfg, &http.Client{Transport: respond}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		tb.Fatal(err)
	}
	c.examine(tb.Context(), c.lane("http://tokenizer", "m"))
	r := routing.Request{Model: "m", Prompt: *chatPrompt([]chatMessage{{Role: "system", Content: strings.Repeat("You are helpful. ", 600)}, {Role: "user", Content: strings.Repeat("What about it? ", 6000)}}, false)}
	q := &routing.TokenQuery{Request: &r, Hasher: kvindex.NewHasher(1), BlockSizes: []int{2}}
	if _, err := c.Tokenize(tb.Context(), q, nil); err != nil {
		tb.Fatal(err)
	}
	return c, q
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// replay is a response body.
type replay struct {
	data []byte
	pos  int
}

func (r *replay) Read(dst []byte) (int, error) {
	n := copy(dst, r.data[r.pos:])
	if r.pos += n; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *replay) Close() error { return nil }
