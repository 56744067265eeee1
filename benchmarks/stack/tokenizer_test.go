package stack_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/stack"
)

// sickTokenizer is enginesim's /tokenize, and misbehaves when told to. It can
// be stopped and started again at its address.
type sickTokenizer struct {
	address string
	asked   atomic.Int64
	// ill is how it misbehaves; nil: it is well.
	ill    atomic.Pointer[func(http.ResponseWriter, *http.Request, []byte)]
	tok    *engine.Tokenizer
	server *http.Server
	done   chan struct{}
}

func newSickTokenizer(t *testing.T) *sickTokenizer {
	s := &sickTokenizer{tok: engine.NewTokenizer(), address: "127.0.0.1:0"}
	s.start(t)
	t.Cleanup(s.stop)
	return s
}

func (s *sickTokenizer) start(t *testing.T) {
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	s.address, s.server, s.done = l.Addr().String(), &http.Server{Handler: s}, make(chan struct{})
	go func() { defer close(s.done); _ = s.server.Serve(l) }()
}

// stop cuts all connections.
func (s *sickTokenizer) stop() {
	_ = s.server.Close()
	<-s.done
}

func (s *sickTokenizer) behave(ill func(http.ResponseWriter, *http.Request, []byte)) {
	if ill == nil {
		s.ill.Store(nil)
		return
	}
	s.ill.Store(&ill)
}

func (s *sickTokenizer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	var q struct {
		Messages []engine.Message
		Prompt   string
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ids := s.tok.Encode(q.Prompt, true)
	if q.Messages != nil {
		text, err := engine.Chat{Messages: q.Messages, AddGenerationPrompt: true}.Render()
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		ids = s.tok.Encode(text, false)
	}
	answer, err := json.Marshal(map[string]any{"count": len(ids), "max_model_len": 4096, "tokens": ids, "token_strs": nil})
	if err != nil {
		panic(err)
	}
	if ill := s.ill.Load(); ill != nil {
		(*ill)(w, r, answer)
		return
	}
	_, _ = w.Write(answer)
}

// sickStack is a stack whose only tokenizer is a sick one.
func sickStack(t *testing.T, s *sickTokenizer) *stack.Stack {
	return start(t, func(cfg *stack.Config) {
		cfg.Extra += fmt.Sprintf("tokenizer: {endpoints: [\"http://%s\"], budget: 150ms, attempt: 100ms, breaker_rest: 50ms}\n", s.address)
	})
}

// send sends one chat through Envoy.
func send(t *testing.T, s *stack.Stack, messages []chat) reply {
	t.Helper()
	body, err := json.Marshal(map[string]any{"model": "demo", "messages": messages, "max_tokens": 4})
	if err != nil {
		t.Fatal(err)
	}
	r := do(t, http.MethodPost, s.URL+"/v1/chat/completions", body)
	if r.status != http.StatusOK {
		t.Errorf("status %d: %s", r.status, r.body)
	}
	return r
}

// Whatever the tokenizer does, no request fails, the reason is said, and when
// the tokenizer is well again its answers are used again.
func TestNoTokenizerFailsARequest(t *testing.T) {
	var flaps atomic.Int64
	hang := func(_ http.ResponseWriter, r *http.Request, _ []byte) { <-r.Context().Done() }
	status := func(code int) func(http.ResponseWriter, *http.Request, []byte) {
		return func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(code) }
	}
	says := func(change func(answer string) string) func(http.ResponseWriter, *http.Request, []byte) {
		return func(w http.ResponseWriter, _ *http.Request, answer []byte) { fmt.Fprint(w, change(string(answer))) }
	}
	tests := []struct {
		name   string
		ill    func(http.ResponseWriter, *http.Request, []byte)
		reason string // that some request must show
	}{
		{"hangs", hang, "tokenizer_timeout"},
		{"is down", status(503), "tokenizer_unavailable"},
		{"refuses everything", status(400), "tokenizer_refused"},
		{"has no such path", status(404), "tokenizer_unavailable"},
		{"miscounts", says(func(a string) string { return strings.Replace(a, `"count":`, `"count":1`, 1) }), "tokenizer_unavailable"},
		{"breaks off", says(func(a string) string { return a[:len(a)/2] }), "tokenizer_unavailable"},
		{"answers ids out of range", says(func(a string) string { return strings.Replace(a, `"tokens":[`, `"tokens":[4294967296,`, 1) }), "tokenizer_unavailable"},
		{"answers what is no JSON", says(func(string) string { return "<html>busy</html>" }), "tokenizer_unavailable"},
		{"cuts the connection", func(http.ResponseWriter, *http.Request, []byte) { panic(http.ErrAbortHandler) }, "tokenizer_unavailable"},
		{"flaps", func(w http.ResponseWriter, _ *http.Request, answer []byte) {
			if flaps.Add(1)%2 == 0 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			_, _ = w.Write(answer)
		}, "tokenizer_unavailable"},
	}
	tok := newSickTokenizer(t)
	s := sickStack(t, tok)
	r := rand.New(rand.NewPCG(3, 3))
	warm := []chat{{"system", words(r, 200)}, {"user", words(r, 20)}}
	well := func(t *testing.T) {
		t.Helper()
		// A chat that nobody has seen is known to be cold only from its tokens.
		eventually(t, "the tokenizer is asked again", func() bool { return send(t, s, []chat{{"user", words(r, 50)}}).reason() == "cold" })
		eventually(t, "a warm chat is found again", func() bool { return send(t, s, warm).reason() == "prefix" })
	}
	send(t, s, warm)
	quiet(t, s)
	well(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tok.behave(tt.ill)
			var mu sync.Mutex
			reasons := map[string]int{}
			var wg sync.WaitGroup
			for i := range 4 {
				own := rand.New(rand.NewPCG(uint64(i), 8))
				wg.Go(func() {
					for range 6 {
						got := send(t, s, []chat{{"system", warm[0].Content}, {"user", words(own, 30)}, {"assistant", words(own, 9)}, {"user", fmt.Sprint(words(own, 12), tt.name)}})
						mu.Lock()
						reasons[got.reason()]++
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			if reasons[tt.reason] == 0 {
				t.Errorf("the reasons were %v, want some %s", reasons, tt.reason)
			}
			tok.behave(nil)
			well(t)
		})
	}
}

// A tokenizer that restarts under load costs affinity and nothing else.
func TestTokenizerRestartsUnderLoad(t *testing.T) {
	tok := newSickTokenizer(t)
	s := sickStack(t, tok)
	// Slow, so that the restarts meet requests.
	tok.behave(func(w http.ResponseWriter, r *http.Request, answer []byte) {
		select {
		case <-time.After(20 * time.Millisecond):
			_, _ = w.Write(answer)
		case <-r.Context().Done():
		}
	})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var sent atomic.Int64
	for i := range 4 {
		own := rand.New(rand.NewPCG(uint64(i), 6))
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				send(t, s, []chat{{"user", words(own, 80)}})
				sent.Add(1)
			}
		})
	}
	for range 4 {
		from, asked := sent.Load(), tok.asked.Load()
		eventually(t, "requests have been sent", func() bool { return sent.Load() > from+20 && tok.asked.Load() > asked })
		tok.stop()
		from = sent.Load()
		eventually(t, "requests have been sent without a tokenizer", func() bool { return sent.Load() > from+20 })
		tok.start(t)
	}
	close(stop)
	wg.Wait()
	warm := []chat{{"user", words(rand.New(rand.NewPCG(1, 1)), 200)}}
	send(t, s, warm)
	quiet(t, s)
	eventually(t, "a warm chat is found", func() bool { return send(t, s, warm).reason() == "prefix" })
}
