package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fast makes a step take about 50 µs.
const fast = 0.01

// fixture is a running server.
type fixture struct {
	*Server
	t      *testing.T
	client *http.Client
	stop   context.CancelFunc
	ended  chan error
}

// start runs a server that ends with the test.
func start(t *testing.T, cfg Config) *fixture {
	t.Helper()
	if cfg.TimeScale == 0 {
		cfg.TimeScale = fast
	}
	s, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	f := &fixture{Server: s, t: t, client: &http.Client{Transport: &http.Transport{}}, stop: stop, ended: make(chan error, 1)}
	go func() { f.ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		f.client.CloseIdleConnections()
		if err := <-f.ended; err != nil {
			t.Errorf("run: %v", err)
		}
		f.ended <- nil
	})
	select {
	case <-s.Ready():
	case err := <-f.ended:
		f.ended <- nil
		t.Fatal(err)
	}
	return f
}

// send sends one request and returns status and body; any goroutine may.
func (f *fixture) send(method, path, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(f.t.Context(), method, "http://"+f.Addr()+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// do sends one request that must be answered.
func (f *fixture) do(method, path, body string) (int, string) {
	f.t.Helper()
	status, answer, err := f.send(method, path, body)
	if err != nil {
		f.t.Fatal(err)
	}
	return status, answer
}

// ok sends a request that must succeed and decodes the answer into v.
func (f *fixture) ok(method, path, body string, v any) {
	f.t.Helper()
	status, answer := f.do(method, path, body)
	if status != http.StatusOK {
		f.t.Fatalf("%s %s: %d %s", method, path, status, answer)
	}
	if err := json.Unmarshal([]byte(answer), v); err != nil {
		f.t.Fatalf("%s %s: %v in %s", method, path, err, answer)
	}
}

func (f *fixture) complete(body string) reply {
	f.t.Helper()
	var r reply
	f.ok("POST", "/v1/completions", body, &r)
	return r
}

func (f *fixture) chat(body string) reply {
	f.t.Helper()
	var r reply
	f.ok("POST", "/v1/chat/completions", body, &r)
	return r
}

func (f *fixture) truth() poolTruth {
	f.t.Helper()
	var p poolTruth
	f.ok("GET", "/debug/pool", "", &p)
	return p
}

// sse reads the data of server-sent events.
func sse(t *testing.T, body io.Reader) []string {
	t.Helper()
	var out []string
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			out = append(out, data)
		} else if lines.Text() != "" {
			t.Fatalf("line %q is not data", lines.Text())
		}
	}
	return out
}

const longPrompt = "The scheduler admits a request when all of its blocks would fit, and otherwise lets it wait for them."

func TestCompletionCountsCachedTokens(t *testing.T) {
	f := start(t, Config{LoRAs: []string{"ad"}})
	body := `{"prompt":"` + longPrompt + `","max_tokens":5,"return_token_ids":true}`
	first := f.complete(body)
	u := first.Usage
	if u.CompletionTokens != 5 || u.PromptTokensDetails.CachedTokens != 0 || u.TotalTokens != u.PromptTokens+5 {
		t.Errorf("usage %+v", u)
	}
	if len(first.Choices) != 1 || *first.Choices[0].FinishReason != finishLength || len(first.Choices[0].TokenIDs) != 5 {
		t.Errorf("choices %+v", first.Choices)
	}
	second := f.complete(body)
	if want := (u.PromptTokens - 1) / 16 * 16; want == 0 || second.Usage.PromptTokensDetails.CachedTokens != want {
		t.Errorf("%d tokens cached the second time, want %d", second.Usage.PromptTokensDetails.CachedTokens, want)
	}
	if *first.Choices[0].Text != *second.Choices[0].Text {
		t.Errorf("the answers differ: %q and %q", *first.Choices[0].Text, *second.Choices[0].Text)
	}
	for _, other := range []string{`,"model":"ad"`, `,"cache_salt":"s"`} {
		r := f.complete(body[:len(body)-1] + other + "}")
		if r.Usage.PromptTokensDetails.CachedTokens != 0 {
			t.Errorf("%s: hit %d tokens of another chain", other, r.Usage.PromptTokensDetails.CachedTokens)
		}
	}
}

func (f *fixture) stream(path, body string) []string {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), "POST", "http://"+f.Addr()+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/event-stream") {
		f.t.Fatalf("content type %q", got)
	}
	return sse(f.t, resp.Body)
}

func TestStreamsSayWhatResponsesSay(t *testing.T) {
	f := start(t, Config{})
	chat := `"messages":[{"role":"user","content":"` + longPrompt + `"}]`
	tests := []struct {
		name, path, body string
		usage            bool
	}{
		{"completion", "/v1/completions", `"prompt":"` + longPrompt + `"`, false},
		{"completion with usage", "/v1/completions", `"prompt":"` + longPrompt + `"`, true},
		{"chat", "/v1/chat/completions", chat, false},
		{"chat with usage", "/v1/chat/completions", chat, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			isChat := strings.Contains(tt.path, "chat")
			var whole reply
			f.ok("POST", tt.path, "{"+tt.body+`,"max_tokens":7}`, &whole)
			options := ""
			if tt.usage {
				options = `,"stream_options":{"include_usage":true}`
			}
			data := f.stream(tt.path, "{"+tt.body+`,"max_tokens":7,"stream":true`+options+"}")
			if data[len(data)-1] != "[DONE]" {
				t.Fatalf("the stream ends with %q", data[len(data)-1])
			}
			var text strings.Builder
			var last reply
			tokens := 0
			for _, d := range data[:len(data)-1] {
				last = reply{}
				if err := json.Unmarshal([]byte(d), &last); err != nil {
					t.Fatal(err)
				}
				if len(last.Choices) == 0 {
					continue
				}
				c := last.Choices[0]
				tokens++
				if !isChat {
					text.WriteString(*c.Text)
					continue
				}
				if first := tokens == 1; first != (c.Delta.Role == "assistant") {
					t.Errorf("chunk %d has the role %q", tokens, c.Delta.Role)
				}
				text.WriteString(*c.Delta.Content)
			}
			want := *whole.Choices[0].content()
			if text.String() != want {
				t.Errorf("streamed %q, want %q", text.String(), want)
			}
			if isChat {
				tokens-- // the chunk with the role
			}
			if tokens != 7 {
				t.Errorf("%d chunks with a token, want 7", tokens)
			}
			if tt.usage != (last.Usage != nil) {
				t.Fatalf("usage %+v in the last chunk", last.Usage)
			}
			if tt.usage && (last.Usage.CompletionTokens != 7 || last.Usage.PromptTokens != whole.Usage.PromptTokens) {
				t.Errorf("usage %+v, want as in %+v", last.Usage, whole.Usage)
			}
		})
	}
}

// content returns the text of a whole choice.
func (c choice) content() *string {
	if c.Message != nil {
		return c.Message.Content
	}
	return c.Text
}

// The second turn finds the blocks of the first turn's prompt and answer.
func TestNextTurnHitsTheAnswer(t *testing.T) {
	f := start(t, Config{Engine: engine.Config{BlockSize: 4}})
	ask := func(messages []map[string]string, max int) reply {
		body, err := json.Marshal(map[string]any{"messages": messages, "max_tokens": max, "ignore_eos": true})
		if err != nil {
			t.Fatal(err)
		}
		return f.chat(string(body))
	}
	messages := []map[string]string{{"role": "user", "content": longPrompt}}
	first := ask(messages, 30)
	messages = append(messages,
		map[string]string{"role": "assistant", "content": *first.Choices[0].Message.Content},
		map[string]string{"role": "user", "content": "And then?"})
	second := ask(messages, 1)
	// The last token of the answer was sampled and never computed.
	want := (first.Usage.TotalTokens - 1) / 4 * 4
	if got := second.Usage.PromptTokensDetails.CachedTokens; got != want {
		t.Errorf("%d tokens cached, want %d of %d", got, want, first.Usage.TotalTokens)
	}
}

func TestAnswersEndByThemselves(t *testing.T) {
	f := start(t, Config{})
	r := f.chat(`{"messages":[{"role":"user","content":"x"}]}`)
	n := r.Usage.CompletionTokens
	if *r.Choices[0].FinishReason != finishStop || n < 32 || n > 255 {
		t.Errorf("%d tokens, finish reason %q", n, *r.Choices[0].FinishReason)
	}
	r = f.chat(`{"messages":[{"role":"user","content":"x"}],"max_completion_tokens":300,"ignore_eos":true}`)
	if r.Usage.CompletionTokens != 300 || *r.Choices[0].FinishReason != finishLength {
		t.Errorf("ignoring the end: %d tokens, %q", r.Usage.CompletionTokens, *r.Choices[0].FinishReason)
	}
	r = f.chat(`{"messages":[{"role":"user","content":"x"}],"min_tokens":280}`)
	if r.Usage.CompletionTokens != 280 {
		t.Errorf("at least 280 tokens asked, %d given", r.Usage.CompletionTokens)
	}
	if r := f.complete(`{"prompt":"x"}`); r.Usage.CompletionTokens != defaultCompletionTokens {
		t.Errorf("a completion has %d tokens by default", r.Usage.CompletionTokens)
	}
}

// A client that leaves frees its blocks.
func TestClientAbort(t *testing.T) {
	f := start(t, Config{TimeScale: 1})
	ctx, leave := context.WithCancel(t.Context())
	body := `{"prompt":"` + longPrompt + `","max_tokens":10000,"ignore_eos":true,"stream":true}`
	req, err := http.NewRequestWithContext(ctx, "POST", "http://"+f.Addr()+"/v1/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := bufio.NewReader(resp.Body).ReadBytes('\n'); err != nil {
		t.Fatal(err)
	}
	if s := f.driver.state.Load(); s.Running != 1 || s.BlocksInUse == 0 {
		t.Fatalf("stats %+v before the abort", s)
	}
	leave()
	// Each request for the truth waits for a step's end; 10000 tokens would
	// take longer than the test may.
	for f.truth().Running > 0 {
		if t.Context().Err() != nil {
			t.Fatal("the sequence still runs")
		}
	}
	if s := f.driver.state.Load(); s.BlocksInUse != 0 || s.Waiting != 0 {
		t.Errorf("stats %+v after the abort", s)
	}
	if _, m := f.do("GET", "/metrics", ""); !strings.Contains(m, `finished_reason="abort",model_name="fake-model"} 1`) {
		t.Error("the abort is not counted")
	}
}

// Run cuts off what is in flight and says so in the stream.
func TestShutdownEndsStreams(t *testing.T) {
	f := start(t, Config{TimeScale: 1})
	body := `{"prompt":"x","max_tokens":10000,"ignore_eos":true,"stream":true}`
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+f.Addr()+"/v1/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	if _, err := r.ReadBytes('\n'); err != nil {
		t.Fatal(err)
	}
	f.stop()
	rest, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(rest, []byte(errStopped.Error())) || !bytes.HasSuffix(rest, []byte("data: [DONE]\n\n")) {
		t.Errorf("the stream ends with %.200q", rest[max(0, len(rest)-200):])
	}
}

func TestLongRequestsWaitAndImpossibleOnesAreRefused(t *testing.T) {
	f := start(t, Config{Engine: engine.Config{Blocks: 8, BlockSize: 4, MaxModelLen: 64}})
	status, answer := f.do("POST", "/v1/completions", `{"prompt":[`+strings.Repeat("7,", 29)+`7],"max_tokens":30}`)
	if status != http.StatusBadRequest || !strings.Contains(answer, "does not fit in the KV cache") {
		t.Errorf("%d %s", status, answer)
	}
	var group errgroup.Group
	for range 4 { // 6 blocks each
		group.Go(func() error {
			body := `{"prompt":[` + strings.Repeat("7,", 19) + `7],"max_tokens":5}`
			status, answer, err := f.send("POST", "/v1/completions", body)
			if err == nil && (status != http.StatusOK || !strings.Contains(answer, `"completion_tokens":5`)) {
				err = fmt.Errorf("%d %s", status, answer)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}
