package tokenizer

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeServer is a tokenizer that answers with fixed bytes and keeps the last body.
type fakeServer struct {
	*httptest.Server
	asked atomic.Int32
	last  atomic.Pointer[string]
}

func newServer(t *testing.T, status int, answer string) *fakeServer {
	s := &fakeServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		text := r.URL.Path + " " + r.Header.Get("Content-Type") + " " + string(body)
		s.last.Store(&text)
		s.asked.Add(1)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(s.Close)
	return s
}

func newClient(t *testing.T, change func(*Config)) *Client {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Budget, cfg.Attempt = 30*time.Second, 20*time.Second
	change(&cfg)
	hc := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(hc.CloseIdleConnections)
	c, err := New(cfg, hc, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const testBlock = 2

// ask tokenizes as a router does, and returns what a full answer of ids gives.
func ask(t *testing.T, c *Client, r *routing.Request, serving []*pool.Endpoint) (routing.Tokens, *routing.Error) {
	t.Helper()
	got, err := c.Tokenize(t.Context(), &routing.TokenQuery{Request: r, Serving: serving, Hasher: kvindex.NewHasher(1), BlockSizes: []int{testBlock}}, nil)
	if err != nil {
		return routing.Tokens{}, err
	}
	if len(got) != 1 {
		t.Fatalf("%d groups of tokens, want 1", len(got))
	}
	return got[0], nil
}

// full is what a tokenizer that answers ids gives.
func full(ids ...kvindex.TokenID) routing.Tokens {
	return routing.Tokens{Source: routing.TokensRemote, Count: len(ids), Blocks: []routing.TokenBlocks{{Size: testBlock, Contents: kvindex.NewHasher(1).AppendContents(nil, ids, testBlock)}}}
}

func text(s string) *routing.Request {
	return &routing.Request{Model: "m", Prompt: routing.Prompt{Kind: routing.PromptText, Text: s}}
}

func TestTokenize_AsksTheServingEngines(t *testing.T) {
	s := newServer(t, 200, `{"count":3,"max_model_len":4096,"tokens":[1,22, 2147483647],"token_strs":null}`)
	c := newClient(t, func(*Config) {})
	serving := []*pool.Endpoint{{Spec: pool.Spec{Address: strings.TrimPrefix(s.URL, "http://")}}}
	got, err := ask(t, c, text(`say "hi"`), serving)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(full(1, 22, 2147483647), got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
	if want := `/tokenize application/json {"model":"m","prompt":"say \"hi\""}`; *s.last.Load() != want {
		t.Errorf("the server was asked %s, want %s", *s.last.Load(), want)
	}
}

func TestTokenize_FailsOver(t *testing.T) {
	bad := newServer(t, 500, "")
	lies := newServer(t, 200, `{"count":5,"tokens":[1,2]}`)
	good := newServer(t, 200, `{"count":2,"tokens":[1,2]}`)
	c := newClient(t, func(cfg *Config) { cfg.Endpoints = []string{bad.URL, lies.URL + "/", good.URL} })
	for range 3 { // every server is first once
		got, err := ask(t, c, text("x"), nil)
		if err != nil || got.Count != 2 {
			t.Fatalf("Tokenize = %v, %v; want two tokens", got, err)
		}
	}
	if bad.asked.Load() == 0 || lies.asked.Load() == 0 || good.asked.Load() != 3 {
		t.Errorf("asked %d, %d, %d times; want the good one three times and the others too", bad.asked.Load(), lies.asked.Load(), good.asked.Load())
	}
}

func TestTokenize_Reasons(t *testing.T) {
	hang := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	t.Cleanup(slow.Close)
	t.Cleanup(func() { close(hang) })
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	refuses := newServer(t, 400, `{"error":{}}`)
	never := newServer(t, 200, `{"count":1,"tokens":[1]}`)
	huge := newServer(t, 200, `{"count":1,"tokens":[1],"x":"`+strings.Repeat("x", 4096)+`"}`)
	tests := []struct {
		name   string
		change func(*Config)
		want   routing.Reason
	}{
		{"nobody to ask", func(*Config) {}, routing.ReasonTokenizerDown},
		{"connection refused", func(c *Config) { c.Endpoints = []string{gone.URL} }, routing.ReasonTokenizerDown},
		{"hangs", func(c *Config) { c.Endpoints = []string{slow.URL}; c.Budget = 20 * time.Millisecond }, routing.ReasonTokenizerTimeout},
		{"one attempt hangs", func(c *Config) { c.Endpoints = []string{slow.URL}; c.Attempt = 20 * time.Millisecond }, routing.ReasonTokenizerTimeout},
		{"refused, and not asked elsewhere", func(c *Config) { c.Endpoints = []string{never.URL, refuses.URL} }, routing.ReasonTokenizerRefused},
		{"too large", func(c *Config) { c.Endpoints = []string{huge.URL}; c.MaxResponseBytes = 1024 }, routing.ReasonTokenizerDown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newClient(t, tt.change)
			if _, err := ask(t, c, text("x"), nil); err == nil || err.Reason != tt.want {
				t.Errorf("Tokenize: %v, want %v", err, tt.want)
			}
		})
	}
	if n := never.asked.Load(); n != 0 {
		t.Errorf("a prompt that one server refused was sent to another %d times", n)
	}
}

func TestAppendBody_ForwardsWhatShapesThePrompt(t *testing.T) {
	no, yes := false, true
	options := []routing.PromptOption{
		{Name: "response_format", Value: []byte(`{"type":"text"}`)},
		{Name: "chat_template", Value: []byte(`"{{x}}"`)},
		{Name: "tool_choice", Value: []byte(`"required"`)},
	}
	tests := []struct {
		name string
		req  routing.Request
		want string
	}{
		{"options", routing.Request{Prompt: routing.Prompt{Kind: routing.PromptChat, Messages: []byte(`[]`), Options: options}}, `{"messages":[],"chat_template":"{{x}}"}`},
		{"chat", routing.Request{Model: "m", Prompt: routing.Prompt{Kind: routing.PromptChat, Messages: []byte(`[{"role":"user"}]`)}}, `{"model":"m","messages":[{"role":"user"}]}`},
		{"everything", routing.Request{Model: `q"`, Prompt: routing.Prompt{
			Kind: routing.PromptChat, Messages: []byte(`[]`), Tools: []byte(`[1]`), TemplateKwargs: []byte(`{"a":1}`),
			AddGenerationPrompt: &no, ContinueFinalMessage: &yes, AddSpecialTokens: &yes, Salt: "secret",
		}}, `{"model":"q\"","messages":[],"tools":[1],"chat_template_kwargs":{"a":1},"add_generation_prompt":false,"continue_final_message":true,"add_special_tokens":true}`},
		{"text without special tokens", routing.Request{Prompt: routing.Prompt{Kind: routing.PromptText, Text: "a\nb", AddSpecialTokens: &no}}, `{"prompt":"a\nb","add_special_tokens":false}`},
		{"text as it was sent", routing.Request{Prompt: routing.Prompt{Kind: routing.PromptText, Text: "ä", TextJSON: []byte(`"\u00e4"`)}}, `{"prompt":"\u00e4"}`},
		{"longer than the memory for what is between", routing.Request{Model: strings.Repeat("m", 500), Prompt: routing.Prompt{
			Kind: routing.PromptChat, Messages: []byte(`[0]`), Tools: []byte(`[1]`), Options: options,
		}}, `{"model":"` + strings.Repeat("m", 500) + `","messages":[0],"tools":[1],"chat_template":"{{x}}"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newPayload("/tokenize", apiVLLM, tt.req.Model, &tt.req.Prompt)
			copied := newPayload("/tokenize", apiVLLM, tt.req.Model, &tt.req.Prompt)
			copied.own(&sync.Pool{New: func() any { return new([]byte) }})
			for name, src := range map[string]io.Reader{
				"whole": l.reader(), "byte by byte": iotest.OneByteReader(l.reader()), "copied": copied.reader(),
			} {
				got, err := io.ReadAll(src)
				if err != nil || string(got) != tt.want {
					t.Errorf("%s: %v\ngot  %s\nwant %s", name, err, got, tt.want)
				}
				if !json.Valid(got) {
					t.Errorf("%s: not JSON", name)
				}
				if len(got) != l.size || len(got) != copied.size {
					t.Errorf("%s: %d bytes, announced as %d and %d", name, len(got), l.size, copied.size)
				}
			}
		})
	}
}

// A payload that has ended is not read any more: what it borrows may belong to
// another request by then. The race detector sees who does not wait.
func TestPayload_EndsItsReaders(t *testing.T) {
	messages := bytes.Repeat([]byte("0"), 1<<16)
	l := newPayload("/tokenize", apiVLLM, "m", &routing.Prompt{Kind: routing.PromptChat, Messages: messages})
	var readers sync.WaitGroup
	begun := make(chan struct{}, 4)
	for range cap(begun) {
		r := l.reader()
		readers.Go(func() {
			var all []byte
			buf := make([]byte, 7)
			n, err := r.Read(buf)
			begun <- struct{}{}
			for ; err == nil; n, err = r.Read(buf) {
				all = append(all, buf[:n]...)
			}
			if bytes.IndexByte(all, 'x') >= 0 {
				t.Error("read what was written after the end")
			}
			if err != io.EOF && err != errEnded {
				t.Error(err)
			}
		})
	}
	for range cap(begun) {
		<-begun
	}
	l.end()
	for i := range messages {
		messages[i] = 'x'
	}
	readers.Wait()
	if _, err := l.reader().Read(make([]byte, 1)); err != errEnded {
		t.Errorf("a reader made after the end: %v, want %v", err, errEnded)
	}
}

// What a server cannot be told of is not asked, and what it is told of is not
// taken for the same prompt without it.
func TestTokenize_Options(t *testing.T) {
	chat := `{"model":"m","messages":[{"role":"user","content":"hi"}]`
	tests := []struct {
		api, name, value string
		// want is what the server is asked; "": it is not.
		want string
	}{
		{apiVLLM, "chat_template", `"t"`, chat + `,"chat_template":"t"}`},
		{apiVLLM, "media_io_kwargs", `{"a":1}`, chat + `,"media_io_kwargs":{"a":1}}`},
		{apiVLLM, "mm_processor_kwargs", `{"a":1}`, chat + `,"mm_processor_kwargs":{"a":1}}`},
		{apiVLLM, "response_format", `{"type":"json_object"}`, chat + `}`},
		{apiVLLM, "tool_choice", `"required"`, chat + `}`},
		{apiVLLM, "tool_choice", `{"type":"function"}`, chat + `}`},
		{apiVLLM, "tool_choice", `"none"`, ""},
		{apiVLLM, "tool_choice", `"n\u006fne"`, ""},
		{apiVLLM, "reasoning_effort", `"low"`, ""},
		{apiVLLM, "documents", `[]`, ""},
		{apiVLLM, "truncate_prompt_tokens", `9`, ""},
		{apiVLLM, "not known here", `1`, ""},
		{apiRender, "reasoning_effort", `"low"`, chat + `,"reasoning_effort":"low"}`},
		{apiRender, "documents", `[]`, chat + `,"documents":[]}`},
		{apiRender, "response_format", `{}`, chat + `,"response_format":{}}`},
		{apiRender, "tool_choice", `"none"`, chat + `,"tool_choice":"none"}`},
		{apiRender, "chat_template", `"t"`, chat + `,"chat_template":"t"}`},
		{apiRender, "truncate_prompt_tokens", `9`, ""},
		{apiSGLang, "chat_template", `"t"`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.api+" "+tt.name+" "+tt.value, func(t *testing.T) {
			body := `{"count":3,"tokens":[1,2,3]}`
			if tt.api == apiRender {
				body = `{"token_ids":[1,2,3]}`
			}
			s := newServer(t, 200, body)
			c := newClient(t, func(cfg *Config) { cfg.API, cfg.Endpoints = tt.api, []string{s.URL} })
			p := routing.Prompt{
				Kind: routing.PromptChat, Messages: []byte(`[{"role":"user","content":"hi"}]`),
				Options: []routing.PromptOption{{Name: tt.name, Value: []byte(tt.value)}},
			}
			got, err := ask(t, c, &routing.Request{Model: "m", Prompt: p}, nil)
			if tt.want == "" {
				if err == nil || err.Reason != routing.ReasonPromptOptions || err.Param != tt.name || s.asked.Load() != 0 {
					t.Errorf("%v, %v, asked %d times; want %v for %s, nobody asked", got, err, s.asked.Load(), routing.ReasonPromptOptions, tt.name)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if asked := *s.last.Load(); !strings.HasSuffix(asked, " application/json "+tt.want) {
				t.Errorf("the server was asked %s, want %s", asked, tt.want)
			}
		})
	}
}

// Options are a part of the name under which a prompt is remembered.
func TestOutline_Options(t *testing.T) {
	named := func(options ...routing.PromptOption) key {
		var o outline
		p := routing.Prompt{Kind: routing.PromptChat, Messages: []byte(`[{"role":"user","content":"hi"}]`), Options: options}
		if !o.read(&p, 1) {
			t.Fatal("no outline")
		}
		return o.end()
	}
	a := routing.PromptOption{Name: "chat_template", Value: []byte(`"a"`)}
	b := routing.PromptOption{Name: "chat_template", Value: []byte(`"b"`)}
	c := routing.PromptOption{Name: "documents", Value: []byte(`"a"`)}
	seen := map[key]bool{}
	for _, k := range []key{named(), named(a), named(b), named(c), named(a, c)} {
		if seen[k] {
			t.Error("two prompts with different options have one name")
		}
		seen[k] = true
	}
	if !seen[named(a, c)] {
		t.Error("the same prompt has two names")
	}
}

func TestConfig_Validate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the default is not valid: %v", err)
	}
	bad := Config{Endpoints: []string{"h:80", "http://h/tokenize", "http://ok"}, HedgeShare: 2, CacheBytes: 5, MaxUnseenTokens: -1, LearnQueue: -1, LearnBytes: -1}
	want := strings.TrimSpace(`
endpoints[0]: "h:80" is not an http URL; use for example http://10.0.0.7:8000
endpoints[1]: "http://h/tokenize" has a path or a query; give the server's base URL, /tokenize is added
api: "" is unknown; use one of vllm, vllm-render, sglang
budget: 0s is not positive; use for example 500ms, or disabled: true
attempt: 0s is not positive; use for example 300ms
hedge_share: 2 is not a share; use 0 to 1
concurrency: 0 is out of range; use 1 to 65536
max_response_bytes: 0 is too small for any answer; use 1024 or more
breaker_failures: 0 is not positive; use for example 5
breaker_rest: 0s is not positive; use for example 1s
cache_bytes: 5 is too small; use 1048576 or more, or 0 for no cache
max_unseen_tokens: -1 is negative; use 0 to wait for the tokenizer unless the whole prompt is known
learn_workers: 0 is out of range; use 1 to 256
learn_queue: -1 is out of range; use 0 to 1048576
learn_bytes: -1 is negative; use for example 67108864
examine_interval: 0s is not positive; use for example 30s`)
	if err := bad.Validate(); err == nil || err.Error() != want {
		t.Errorf("Validate:\n%v\nwant\n%s", err, want)
	}
}
