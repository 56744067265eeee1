package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/kvindex"
)

func TestErrorsHaveVLLMsShape(t *testing.T) {
	f := start(t, Config{Models: []string{"m"}, Engine: engine.Config{MaxModelLen: 32}})
	tests := []struct {
		name, path, body string
		status           int
		typ, param, part string
	}{
		{"bad JSON", "/v1/completions", `{`, 400, "BadRequestError", "", "invalid JSON"},
		{"unknown model", "/v1/completions", `{"model":"x","prompt":"a"}`, 404, "NotFoundError", "model", "The model `x` does not exist."},
		{"unknown model in a chat", "/v1/chat/completions", `{"model":"x","messages":[{"role":"user","content":"a"}]}`, 404, "NotFoundError", "model", "The model `x` does not exist."},
		{"unknown model of a tokenizer", "/tokenize", `{"model":"x","prompt":"a"}`, 404, "NotFoundError", "model", "`x`"},
		{"no prompt", "/v1/completions", `{"model":"m"}`, 400, "BadRequestError", "prompt", "use a string or an array of token ids"},
		{"empty ids", "/v1/completions", `{"prompt":[]}`, 400, "BadRequestError", "prompt", "at least one token id"},
		{"negative id", "/v1/completions", `{"prompt":[-1]}`, 400, "BadRequestError", "prompt", "token ids are integers"},
		{"two prompts", "/v1/completions", `{"prompt":["a","b"]}`, 400, "BadRequestError", "prompt", "2 prompts: send one per request"},
		{"two id lists", "/v1/completions", `{"prompt":[[1],[2]]}`, 400, "BadRequestError", "prompt", "2 prompts"},
		{"prompt too long", "/v1/completions", `{"prompt":[` + strings.Repeat("1,", 31) + `1]}`, 400, "BadRequestError", "prompt", "maximum context length is 32 tokens"},
		{"output too long", "/v1/completions", `{"prompt":[1,2],"max_tokens":31}`, 400, "BadRequestError", "max_tokens", "you requested 31 output tokens"},
		{"no output", "/v1/completions", `{"prompt":[1],"max_tokens":0}`, 400, "BadRequestError", "max_tokens", "max_tokens: 0"},
		{"two choices", "/v1/completions", `{"prompt":[1],"n":2}`, 400, "BadRequestError", "n", "n: 2"},
		{"echo", "/v1/completions", `{"prompt":[1],"echo":true}`, 400, "BadRequestError", "echo", "not supported"},
		{"no messages", "/v1/chat/completions", `{}`, 400, "BadRequestError", "messages", "messages: empty"},
		{"template", "/tokenize", `{"messages":[{"role":"user","content":"a"}],"chat_template":"x"}`, 400, "BadRequestError", "chat_template", "leave it out"},
		{"negative fault", "/debug/faults", `{"fail_next":-1}`, 400, "BadRequestError", "fail_next", "fail_next: -1"},
		{"fault without events", "/debug/faults", `{"drop_next":1}`, 400, "BadRequestError", "drop_next", "no KV events"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, answer := f.do("POST", tt.path, tt.body)
			var got struct{ Error apiError }
			if err := json.Unmarshal([]byte(answer), &got); err != nil {
				t.Fatalf("%v in %s", err, answer)
			}
			e := got.Error
			param := ""
			if e.Param != nil {
				param = *e.Param
			}
			if status != tt.status || e.Code != tt.status || e.Type != tt.typ || param != tt.param ||
				!strings.Contains(e.Message, tt.part) {
				t.Errorf("%d %s", status, answer)
			}
		})
	}
	if status, _ := f.do("POST", "/v1/completions", ""); status != http.StatusUnsupportedMediaType {
		t.Errorf("no content type: %d", status)
	}
}

// /tokenize answers with the ids that the completions use.
func TestTokenizeIsWhatCompletionsUse(t *testing.T) {
	f := start(t, Config{LoRAs: []string{"ad"}})
	chat := `"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"Hi"}]}],` +
		`"tools":[{"type":"function","function":{"name":"f"}}]`
	tests := []struct {
		name, tokenize, path, complete string
		bos                            int
	}{
		{"text", `{"prompt":"Hello, world"}`, "/v1/completions", `{"prompt":"Hello, world"`, 1},
		{"text in an array", `{"prompt":"Hello"}`, "/v1/completions", `{"prompt":["Hello"]`, 1},
		{"text without BOS", `{"prompt":"Hello","add_special_tokens":false}`, "/v1/completions", `{"prompt":"Hello","add_special_tokens":false`, 0},
		{"chat", `{` + chat + `}`, "/v1/chat/completions", `{` + chat, 1},
		{"chat of an adapter", `{"model":"ad",` + chat + `}`, "/v1/chat/completions", `{"model":"ad",` + chat, 1},
		{"chat with two BOS", `{"add_special_tokens":true,` + chat + `}`, "/v1/chat/completions", `{"add_special_tokens":true,` + chat, 2},
		{
			"continued chat", `{"add_generation_prompt":false,"continue_final_message":true,` + chat + `}`,
			"/v1/chat/completions", `{"add_generation_prompt":false,"continue_final_message":true,` + chat, 1,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got struct {
				Count       int               `json:"count"`
				MaxModelLen int               `json:"max_model_len"`
				Tokens      []kvindex.TokenID `json:"tokens"`
			}
			f.ok("POST", "/tokenize", tt.tokenize, &got)
			var whole reply
			f.ok("POST", tt.path, tt.complete+`,"max_tokens":1,"return_token_ids":true}`, &whole)
			if diff := cmp.Diff(whole.Choices[0].PromptIDs, got.Tokens); diff != "" {
				t.Errorf("tokenize (-completion +tokenize):\n%s", diff)
			}
			if got.Count != len(got.Tokens) || got.MaxModelLen != engine.DefaultMaxModelLen || whole.Usage.PromptTokens != got.Count {
				t.Errorf("count %d, max_model_len %d", got.Count, got.MaxModelLen)
			}
			bos := 0
			for _, id := range got.Tokens {
				if id == engine.TokenBOS {
					bos++
				}
			}
			if bos != tt.bos {
				t.Errorf("%d BOS, want %d", bos, tt.bos)
			}
		})
	}
}

func TestModels(t *testing.T) {
	f := start(t, Config{Models: []string{"base", "alias"}, LoRAs: []string{"ad"}, Engine: engine.Config{MaxModelLen: 99}})
	var got struct{ Data []modelCard }
	f.ok("GET", "/v1/models", "", &got)
	type card struct {
		ID, Root, Parent string
		Len              int
	}
	var cards []card
	for _, c := range got.Data {
		flat := card{ID: c.ID, Root: c.Root}
		if c.Parent != nil {
			flat.Parent = *c.Parent
		}
		if c.MaxModelLen != nil {
			flat.Len = *c.MaxModelLen
		}
		cards = append(cards, flat)
	}
	want := []card{{"base", "base", "", 99}, {"alias", "base", "", 99}, {"ad", "/adapters/ad", "base", 0}}
	if diff := cmp.Diff(want, cards); diff != "" {
		t.Errorf("cards (-want +got):\n%s", diff)
	}
	for _, model := range []string{"base", "alias", "ad"} {
		if r := f.complete(`{"model":"` + model + `","prompt":"x","max_tokens":1}`); r.Model != model {
			t.Errorf("asked %q, answered %q", model, r.Model)
		}
	}
}

func TestMetricsHaveVLLMsNames(t *testing.T) {
	f := start(t, Config{Models: []string{"m"}, Engine: engine.Config{Blocks: 50}, Rank: 3})
	body := `{"prompt":[` + strings.Repeat("7,", 39) + `7],"max_tokens":5,"ignore_eos":true}`
	f.complete(body)
	f.complete(body)
	_, text := f.do("GET", "/metrics", "")
	labels := `{engine="3",model_name="m"}`
	for _, want := range []string{
		"vllm:num_requests_running" + labels + " 0",
		"vllm:num_requests_waiting" + labels + " 0",
		"vllm:kv_cache_usage_perc" + labels + " 0",
		"vllm:prefix_cache_queries_total" + labels + " 80",
		"vllm:prefix_cache_hits_total" + labels + " 32",
		"vllm:num_preemptions_total" + labels + " 0",
		"vllm:prompt_tokens_total" + labels + " 80",
		"vllm:generation_tokens_total" + labels + " 10",
		`vllm:request_success_total{engine="3",finished_reason="length",model_name="m"} 2`,
		"vllm:time_to_first_token_seconds_count" + labels + " 2",
		"vllm:inter_token_latency_seconds_count" + labels + " 8",
		"vllm:e2e_request_latency_seconds_count" + labels + " 2",
		"vllm:request_queue_time_seconds_count" + labels + " 2",
		"vllm:request_prefill_time_seconds_count" + labels + " 2",
		"vllm:request_decode_time_seconds_count" + labels + " 2",
		"vllm:request_inference_time_seconds_count" + labels + " 2",
		`vllm:cache_config_info{block_size="16",enable_prefix_caching="True",engine="3",num_gpu_blocks="50",prefix_caching_hash_algo="sha256_cbor"} 1`,
	} {
		if !slices.Contains(strings.Split(text, "\n"), want) {
			name := regexp.MustCompile(`^[a-z:0-9_]+`).FindString(want)
			t.Errorf("want %s\ngot  %s", want, regexp.MustCompile(`(?m)^`+name+`\{.*$`).FindString(text))
		}
	}
}

// vllm:lora_requests_info names the adapters in use.
func TestMetricsNameTheAdapters(t *testing.T) {
	f := start(t, Config{LoRAs: []string{"b", "a", "c"}, TimeScale: 1, Engine: engine.Config{MaxSeqs: 2}})
	info := func() string {
		_, text := f.do("GET", "/metrics", "")
		return regexp.MustCompile(`(?m)^vllm:lora_requests_info\{.*\}`).FindString(text)
	}
	if want := `vllm:lora_requests_info{max_lora="3",running_lora_adapters="",waiting_lora_adapters=""}`; info() != want {
		t.Errorf("idle: %s, want %s", info(), want)
	}
	var streams []*stream
	for _, adapter := range []string{"b", "a", "b"} {
		st, err := f.driver.submit(t.Context(), engine.Request{
			Prompt: make([]kvindex.TokenID, 9), OutputTokens: 10_000, Adapter: adapter,
		}, finishLength)
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, st)
	}
	f.truth() // a step has begun with all of them
	f.truth()
	if want := `vllm:lora_requests_info{max_lora="3",running_lora_adapters="a,b",waiting_lora_adapters="b"}`; info() != want {
		t.Errorf("busy: %s, want %s", info(), want)
	}
	for _, st := range streams {
		f.driver.abort(st)
	}
}

func TestFaultsOfRequests(t *testing.T) {
	f := start(t, Config{})
	var state Faults
	f.ok("POST", "/debug/faults", `{"fail_next":2}`, &state)
	if *state.FailNext != 2 || *state.Hang {
		t.Errorf("state %+v", state)
	}
	for i, want := range []int{503, 503, 200} {
		if status, _ := f.do("GET", "/health", ""); status != want {
			t.Errorf("request %d: %d, want %d", i, status, want)
		}
	}
	f.ok("POST", "/debug/faults", `{"hang":true}`, &state)
	ctx, leave := context.WithCancel(t.Context())
	answered := make(chan int, 2)
	for _, c := range []context.Context{ctx, t.Context()} {
		req, err := http.NewRequestWithContext(c, "GET", "http://"+f.Addr()+"/health", nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			resp, err := f.client.Do(req)
			if err != nil {
				answered <- 0
				return
			}
			_ = resp.Body.Close()
			answered <- resp.StatusCode
		}()
	}
	leave()
	if got := <-answered; got != 0 {
		t.Errorf("a hanging request was answered with %d", got)
	}
	f.ok("POST", "/debug/faults", `{"hang":false}`, &state)
	if got := <-answered; got != http.StatusOK || *state.Hang {
		t.Errorf("after the hang: %d, state %+v", got, state)
	}
}

func TestConfigValidateNamesEveryFault(t *testing.T) {
	_, err := New(Config{
		Models: []string{"a", "a"}, Replay: "ipc://x", EventFormat: "json", TimeScale: -1, BufferSteps: -1, Rank: -1,
		Engine: engine.Config{BlockSize: -4},
	}, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`"a": given twice`, `replay: "ipc://x": use tcp://`, `needs events`, `event format "json"`,
		"time scale: -1", "buffer steps: -1", "rank: -1", "block size: -4",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q:\n%v", want, err)
		}
	}
}

// FuzzPrompts feeds bodies to all that reads a prompt.
func FuzzPrompts(f *testing.F) {
	for _, body := range []string{
		`{"prompt":"a"}`, `{"prompt":[1,2]}`, `{"prompt":["a"]}`, `{"prompt":[[1]]}`, `{"prompt":[[]]}`, `{"prompt":null}`,
		`{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"tools":[]}`,
		`{"messages":[{"role":"user","content":null,"tool_calls":[{}]}]}`,
	} {
		f.Add([]byte(body))
	}
	tokenizer := engine.NewTokenizer()
	f.Fuzz(func(t *testing.T, body []byte) {
		var completion completionRequest
		if json.Unmarshal(body, &completion) == nil {
			if ids, err := completion.encode(tokenizer); err == nil && len(ids) == 0 && completion.AddSpecialTokens == nil {
				t.Error("no tokens and no error")
			}
		}
		var chat chatRequest
		if json.Unmarshal(body, &chat) == nil {
			if ids, err := chat.encode(tokenizer); err == nil && (len(ids) == 0 || ids[0] != engine.TokenBOS) {
				t.Errorf("a chat tokenizes to %v", ids)
			}
		}
	})
}
