package extproc

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

func ptr[T any](v T) *T { return &v }

func TestParseJSON(t *testing.T) {
	chat := func(messages string) routing.Prompt {
		return routing.Prompt{Kind: routing.PromptChat, Messages: []byte(messages)}
	}
	for _, tc := range []struct {
		name, body string
		kind       api
		cut        bool
		want       document
		fault      string
	}{
		{name: "model only", kind: apiModel, body: ` {"model":"m", "input":[1,{"model":"n"}]} `, want: document{model: "m"}},
		{name: "escaped", kind: apiModel, body: `{"mod\u0065l":"a\"\u00e9\ud83d\ude00"}`, want: document{model: "a\"é😀"}},
		{name: "the last one counts", kind: apiModel, body: `{"model":"a","model":"b"}`, want: document{model: "b"}},
		{name: "a later null counts too", kind: apiModel, body: `{"model":"a","model":null}`, fault: "model: the request names no model"},
		{
			name: "text", kind: apiCompletion, body: `{"model":"m","prompt":"a\nb","add_special_tokens":false,"cache_salt":"s"}`,
			want: document{model: "m", prompt: routing.Prompt{Kind: routing.PromptText, Text: "a\nb", TextJSON: []byte(`"a\nb"`), AddSpecialTokens: ptr(false), Salt: "s"}},
		},
		{
			name: "one text in an array", kind: apiCompletion, body: `{"model":"m","prompt":["ab"]}`,
			want: document{model: "m", prompt: routing.Prompt{Kind: routing.PromptText, Text: "ab", TextJSON: []byte(`"ab"`)}},
		},
		{
			name: "tokens", kind: apiCompletion, body: `{"model":"m","prompt":[0, 1 ,4294967295]}`,
			want: document{model: "m", prompt: routing.Prompt{Kind: routing.PromptTokens, Tokens: []kvindex.TokenID{0, 1, 4294967295}}},
		},
		{
			name: "one token list in an array", kind: apiCompletion, body: `{"model":"m","prompt":[ [7,8] ]}`,
			want: document{model: "m", prompt: routing.Prompt{Kind: routing.PromptTokens, Tokens: []kvindex.TokenID{7, 8}}},
		},
		{name: "streamed", kind: apiModel, body: `{"model":"m","stream":true}`, want: document{model: "m", stream: true}},
		{name: "the last stream counts", kind: apiChat, body: `{"model":"m","stream":true,"stream":false}`, want: document{model: "m"}},
		{name: "stream of another type", kind: apiCompletion, body: `{"model":"m","stream":1,"prompt":null}`, want: document{model: "m"}},
		{name: "several texts", kind: apiCompletion, body: `{"model":"m","prompt":["a","b"]}`, want: document{model: "m"}},
		{name: "several token lists", kind: apiCompletion, body: `{"model":"m","prompt":[[1],[2]]}`, want: document{model: "m"}},
		{name: "empty array", kind: apiCompletion, body: `{"model":"m","prompt":[]}`, want: document{model: "m"}},
		{name: "empty list in an array", kind: apiCompletion, body: `{"model":"m","prompt":[[]]}`, want: document{model: "m"}},
		{name: "no prompt", kind: apiCompletion, body: `{"model":"m","prompt":null,"cache_salt":"s"}`, want: document{model: "m"}},
		{
			name: "chat", kind: apiChat,
			body: `{"messages": [{"role":"user","content":"hi"}],"tools":[1],"chat_template_kwargs":{"a":true},` +
				`"add_generation_prompt":true,"continue_final_message":false,"prompt":1,"model":"m","cache_salt":"x"}`,
			want: document{model: "m", prompt: routing.Prompt{
				Kind: routing.PromptChat, Messages: []byte(`[{"role":"user","content":"hi"}]`), Tools: []byte(`[1]`),
				TemplateKwargs: []byte(`{"a":true}`), AddGenerationPrompt: ptr(true), ContinueFinalMessage: ptr(false), Salt: "x",
			}},
		},
		{
			name: "chat, nulls", kind: apiChat,
			body: `{"model":"m","messages":[],"tools":null,"chat_template_kwargs":null,"add_generation_prompt":null,"cache_salt":null}`,
			want: document{model: "m", prompt: chat(`[]`)},
		},
		{
			name: "text parts", kind: apiChat, body: `{"model":"m","messages":[{"content":[{"type":"text","text":"a"},"b"]}]}`,
			want: document{model: "m", prompt: chat(`[{"content":[{"type":"text","text":"a"},"b"]}]`)},
		},
		{
			name: "an image", kind: apiChat, body: `{"model":"m","messages":[{"content":[{"type":"image_url"},{"type":"text"}]},{"content":"x"}]}`,
			want: document{model: "m", prompt: routing.Prompt{
				Kind: routing.PromptChat, Messages: []byte(`[{"content":[{"type":"image_url"},{"type":"text"}]},{"content":"x"}]`), Multimodal: true,
			}},
		},
		{
			name: "a part of no type", kind: apiChat, body: `{"model":"m","messages":[{"content":[{"text":"a"}]}]}`,
			want: document{model: "m", prompt: routing.Prompt{Kind: routing.PromptChat, Messages: []byte(`[{"content":[{"text":"a"}]}]`), Multimodal: true}},
		},
		{
			name: "content elsewhere", kind: apiChat, body: `{"model":"m","messages":[{"x":{"content":[{"type":"image_url"}]}}, 3]}`,
			want: document{model: "m", prompt: chat(`[{"x":{"content":[{"type":"image_url"}]}}, 3]`)},
		},
		{name: "cut in the prompt", kind: apiCompletion, cut: true, body: `{"model":"m","prompt":"ab`, want: document{model: "m"}},
		{name: "cut in the model", kind: apiCompletion, cut: true, body: `{"prompt":"ab","model":"m`},
		{name: "cut behind the messages", kind: apiChat, cut: true, body: `{"model":"m","messages":[],"too`, want: document{model: "m"}},
		{name: "not cut, though it could be", kind: apiCompletion, cut: true, body: `{"model":"m","prompt":"ab"}`, want: document{
			model: "m", prompt: routing.Prompt{Kind: routing.PromptText, Text: "ab", TextJSON: []byte(`"ab"`)},
		}},
		{name: "cut before anything", kind: apiCompletion, cut: true, body: `{`},
		{name: "whole, though it could be cut", kind: apiCompletion, cut: true, body: `{"a":1}`, fault: "model: the request names no model"},

		{name: "empty", kind: apiChat, body: "", fault: "the request body is empty; send a JSON object"},
		{name: "blank", kind: apiChat, body: " \n", fault: "the request body is empty; send a JSON object"},
		{name: "array", kind: apiChat, body: "[1]", fault: "the request body must be a JSON object, not an array"},
		{name: "text", kind: apiChat, body: "model=x", fault: "the request body is not valid JSON: expected a value at byte 0"},
		{name: "two objects", kind: apiModel, body: `{"model":"m"}{}`, fault: "not valid JSON: more text after the JSON object at byte 13"},
		{name: "unclosed", kind: apiModel, body: `{"model":"m"`, fault: "not valid JSON: unexpected end of the text at byte 12"},
		{name: "no model", kind: apiChat, body: `{}`, fault: "model: the request names no model; set the member model"},
		{name: "empty model", kind: apiChat, body: `{"model":""}`, fault: "model: model is an empty string"},
		{name: "model of a wrong type", kind: apiChat, body: `{"model":["m"]}`, fault: "model: model must be a string, not an array"},
		{name: "messages of a wrong type", kind: apiChat, body: `{"model":"m","messages":"hi"}`, fault: "messages: messages must be an array of messages, not a string"},
		{name: "prompt of a wrong type", kind: apiCompletion, body: `{"model":"m","prompt":{"a":1}}`, fault: "prompt: prompt must be a string, an array of strings"},
		{name: "token of a wrong type", kind: apiCompletion, body: `{"model":"m","prompt":[1,"a"]}`, fault: `prompt: prompt: element 1 is "a", which is not a token id`},
		{name: "token too large", kind: apiCompletion, body: `{"model":"m","prompt":[4294967296]}`, fault: `prompt: prompt: element 0 is 4294967296, which is not a token id`},
		{name: "fraction", kind: apiCompletion, body: `{"model":"m","prompt":[[1.5]]}`, fault: `prompt: prompt: element 0 is 1.5`},
		{name: "negative", kind: apiCompletion, body: `{"model":"m","prompt":[-1]}`, fault: `prompt: prompt: element 0 is -1`},
		{name: "long wrong token", kind: apiCompletion, body: `{"model":"m","prompt":[1,"` + strings.Repeat("a", 99) + `"]}`, fault: `prompt: prompt: element 1 is a string`},
		{name: "control character", kind: apiModel, body: "{\"model\":\"abcdefghij\nk\"}", fault: "control character in a string at byte 20"},
		{name: "nested too deep", kind: apiModel, body: `{"model":"m","x":` + strings.Repeat("[", 100_000), fault: "more than 512 nested values"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseJSON(tc.kind, []byte(tc.body), nil, tc.cut)
			if tc.fault != "" {
				if err == nil {
					t.Fatalf("no error, but %+v", got)
				}
				text := err.Message
				if err.Param != "" {
					text = err.Param + ": " + text
				}
				if err.Reason != routing.ReasonBadRequest || !strings.Contains(text, tc.fault) {
					t.Fatalf("error %s: %q, want one with %q", err.Reason, text, tc.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got, cmp.AllowUnexported(document{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseJSON_Options(t *testing.T) {
	opt := func(nameValue ...string) []routing.PromptOption {
		var options []routing.PromptOption
		for i := 0; i < len(nameValue); i += 2 {
			options = append(options, routing.PromptOption{Name: nameValue[i], Value: []byte(nameValue[i+1])})
		}
		return options
	}
	const chat, completion = `{"model":"m","messages":[],`, `{"model":"m","prompt":"p",`
	for _, tc := range []struct {
		name, body string
		kind       api
		want       []routing.PromptOption
	}{
		{"template", chat + `"chat_template":"{{x}}"}`, apiChat, opt("chat_template", `"{{x}}"`)},
		{
			"documents and effort", chat + `"documents":[{"text":"a"}],"reasoning_effort":"low"}`, apiChat,
			opt("documents", `[{"text":"a"}]`, "reasoning_effort", `"low"`),
		},
		{
			"media", chat + `"media_io_kwargs":{"a":1},"mm_processor_kwargs":{"b":2}}`, apiChat,
			opt("media_io_kwargs", `{"a":1}`, "mm_processor_kwargs", `{"b":2}`),
		},
		{"format", chat + `"response_format":{"type":"json_object"}}`, apiChat, opt("response_format", `{"type":"json_object"}`)},
		{"escaped name", chat + `"reasoning_\u0065ffort":"low"}`, apiChat, opt("reasoning_effort", `"low"`)},
		{"cut chat", chat + `"truncate_prompt_tokens":-1}`, apiChat, opt("truncate_prompt_tokens", `-1`)},
		{"cut text", completion + `"truncate_prompt_tokens":10}`, apiCompletion, opt("truncate_prompt_tokens", `10`)},
		{"cut ids", `{"truncate_prompt_tokens":10,"model":"m","prompt":[1,2]}`, apiCompletion, opt("truncate_prompt_tokens", `10`)},
		{"second prompt", completion + `"prompt_embeds":"AAAA"}`, apiCompletion, opt("prompt_embeds", `"AAAA"`)},
		{"suffix", completion + `"suffix":"s"}`, apiCompletion, opt("suffix", `"s"`)},
		{"no suffix", completion + `"suffix":""}`, apiCompletion, nil},
		{"tool choice", `{"model":"m","tool_choice":"none","messages":[],"tools":[{}]}`, apiChat, opt("tool_choice", `"none"`)},
		{"tool choice without tools", chat + `"tool_choice":"none"}`, apiChat, nil},
		{"tool choice, tools null", chat + `"tool_choice":"none","tools":null}`, apiChat, nil},
		{"the default tool choice", chat + `"tool_choice":"auto","tools":[{}]}`, apiChat, nil},
		{"nulls", chat + `"chat_template":null,"documents":null,"reasoning_effort":null,"truncate_prompt_tokens":null}`, apiChat, nil},
		{"the last one counts", chat + `"reasoning_effort":"low","documents":[1],"reasoning_effort":"high"}`, apiChat, opt("documents", `[1]`, "reasoning_effort", `"high"`)},
		{"a later null counts too", chat + `"reasoning_effort":"low","reasoning_effort":null}`, apiChat, nil},
		{"no part of the prompt", chat + `"echo":true,"suffix":"s","prompt_embeds":"A","stop":["a"],"temperature":1,"truncation_side":"left"}`, apiChat, nil},
		{"no options of completions", completion + `"reasoning_effort":"low","chat_template":"t","response_format":{"type":"text"},"echo":true}`, apiCompletion, nil},
		{"no prompt, no options", `{"model":"m","prompt_embeds":"A"}`, apiCompletion, nil},
		{"another API", `{"model":"m","truncate_prompt_tokens":1}`, apiModel, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseJSON(tc.kind, []byte(tc.body), nil, false)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got.prompt.Options); d != "" {
				t.Error(d)
			}
		})
	}
}

// members decodes an object the slow way.
func members(body []byte) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	err := json.Unmarshal(body, &m)
	return m, err
}

// checkAgainstModel compares parseJSON of a completion with encoding/json.
func checkAgainstModel(t rapid.TB, body []byte) {
	t.Helper()
	got, err := parseJSON(apiCompletion, body, nil, false)
	m, bad := members(body)
	if strings.Count(string(body), "[")+strings.Count(string(body), "{") > maxDepth {
		return // may nest too deep for us
	}
	if bad != nil || m == nil {
		if err == nil {
			t.Fatalf("%q: accepted, but it is not an object: %v", body, bad)
		}
		return
	}
	var model, prompt any
	_ = json.Unmarshal(m["model"], &model)
	_ = json.Unmarshal(m["prompt"], &prompt)
	name, ok := model.(string)
	if (!ok || name == "") != (err != nil && err.Param == "model") && (err == nil || err.Param != "prompt") {
		t.Fatalf("%q: the model is %v, the error %v", body, model, err)
	}
	if err != nil {
		if err.Param == "" {
			t.Fatalf("%q: refused, but it is valid: %v", body, err)
		}
		return
	}
	// gjson and encoding/json replace broken UTF-8 differently.
	same := func(a, b string) bool { return a == b || strings.ContainsRune(b, '\uFFFD') }
	if !same(got.model, name) {
		t.Fatalf("%q: model %q, want %q", body, got.model, name)
	}
	switch p := prompt.(type) {
	case string:
		if got.prompt.Kind != routing.PromptText || !same(got.prompt.Text, p) {
			t.Fatalf("%q: prompt %+v, want %q", body, got.prompt, p)
		}
	case nil:
		if got.prompt.Kind != routing.PromptNone {
			t.Fatalf("%q: prompt %+v, want none", body, got.prompt)
		}
	case []any:
		if len(p) > 0 {
			if _, number := p[0].(float64); number && fmt.Sprint(got.prompt.Tokens) != fmt.Sprint(tokensOf(p)) {
				t.Fatalf("%q: tokens %v, want %v", body, got.prompt.Tokens, p)
			}
		}
	default:
		t.Fatalf("%q: a prompt of type %T was accepted", body, p)
	}
}

func tokensOf(list []any) []uint32 {
	var ids []uint32
	for _, v := range list {
		f, _ := v.(float64)
		ids = append(ids, uint32(f))
	}
	return ids
}

// TestParseJSON_AgainstModel writes objects with repeated members, odd spaces
// and escapes.
func TestParseJSON_AgainstModel(t *testing.T) {
	space := rapid.SampledFrom([]string{"", "", " ", "\n\t ", "\r\n"})
	key := rapid.SampledFrom([]string{`"model"`, `"mod\u0065l"`, `"prompt"`, `"x"`, `""`, `"a\\"`})
	text := rapid.Custom(func(t *rapid.T) string {
		b, err := json.Marshal(rapid.String().Draw(t, "s"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	})
	leaf := rapid.OneOf(text, rapid.SampledFrom([]string{
		"0", "-0", "12", "1.5e-3", "1E+2", "true", "false", "null", "[]", "{}", "[1,2]", "[[3]]", `["a"]`, `{"model":"inner"}`, `"\u00e9\ud83d\ude00\/"`,
		"01", "1.", ".5", "+1", "tru", `"\x"`, `"\u12g4"`, "'a'", "[1,]", "{,}", `{"a"}`, "\"\x01\"",
	}))
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		gap := func() { b.WriteString(space.Draw(t, "gap")) }
		gap()
		b.WriteByte('{')
		n := rapid.IntRange(0, 5).Draw(t, "members")
		for i := range n {
			if i > 0 {
				gap()
				b.WriteByte(',')
			}
			gap()
			b.WriteString(key.Draw(t, "key"))
			gap()
			b.WriteByte(':')
			gap()
			b.WriteString(leaf.Draw(t, "value"))
		}
		gap()
		b.WriteByte('}')
		gap()
		checkAgainstModel(t, []byte(b.String()))
	})
}

func FuzzParseJSON(f *testing.F) {
	for _, s := range []string{
		`{"model":"m","prompt":"p"}`, `{"model":"m","prompt":[1,2]}`, `{"model":"m","prompt":[[1,2]]}`, `{"model":"m","messages":[{"content":[{"type":"text"}]}]}`,
		`{"model":"\ud83d\ude00","prompt":"\\\"\b"}`, `[`, `{"a":1e`, `nul`, "{\"model\":\"abcdefg\x00\"}", `{"model":"m"}}`, `{"prompt":["a",1],"model":"m"}`,
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, body []byte, cut bool) {
		before := string(body)
		for _, kind := range []api{apiModel, apiCompletion, apiChat} {
			d, err := parseJSON(kind, body, nil, cut)
			if err != nil && (d.model != "" || d.prompt.Kind != routing.PromptNone) {
				t.Errorf("an error together with %+v", d)
			}
			if err == nil && d.prompt.Kind == routing.PromptChat && !json.Valid(d.prompt.Messages) {
				t.Errorf("messages are not JSON: %q", d.prompt.Messages)
			}
		}
		if string(body) != before {
			t.Error("the body was changed")
		}
		checkAgainstModel(t, body)
	})
}
