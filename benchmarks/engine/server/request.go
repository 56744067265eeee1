package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"slices"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/kvindex"
)

// defaultCompletionTokens is OpenAI's default of max_tokens for completions;
// a chat's default is the rest of the context.
const defaultCompletionTokens = 16

// sampling are the fields that completions and chats share.
type sampling struct {
	Model         string `json:"model"`
	MaxTokens     *int   `json:"max_tokens"`
	MinTokens     int    `json:"min_tokens"`
	IgnoreEOS     bool   `json:"ignore_eos"`
	N             *int   `json:"n"`
	Stream        bool   `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	CacheSalt      string `json:"cache_salt"`
	ReturnTokenIDs bool   `json:"return_token_ids"`
}

// completionRequest is the body of /v1/completions.
type completionRequest struct {
	sampling
	Prompt           json.RawMessage `json:"prompt"`
	AddSpecialTokens *bool           `json:"add_special_tokens"` // nil: true
	Echo             bool            `json:"echo"`
}

// chatForm are the fields of a chat that shape its prompt.
type chatForm struct {
	Messages             []engine.Message `json:"messages"`
	Tools                json.RawMessage  `json:"tools"`
	ChatTemplate         *string          `json:"chat_template"`
	AddGenerationPrompt  *bool            `json:"add_generation_prompt"` // nil: true
	ContinueFinalMessage bool             `json:"continue_final_message"`
	AddSpecialTokens     bool             `json:"add_special_tokens"`
}

// chatRequest is the body of /v1/chat/completions.
type chatRequest struct {
	sampling
	chatForm
	MaxCompletionTokens *int `json:"max_completion_tokens"`
}

// encode renders and tokenizes a chat. Completions of a chat and /tokenize
// both call it.
func (c chatForm) encode(t *engine.Tokenizer) ([]kvindex.TokenID, error) {
	if c.ChatTemplate != nil {
		return nil, badRequest("chat_template", "chat_template: not trusted from a request: leave it out")
	}
	text, err := engine.Chat{
		Messages:             c.Messages,
		Tools:                c.Tools,
		AddGenerationPrompt:  c.AddGenerationPrompt == nil || *c.AddGenerationPrompt,
		ContinueFinalMessage: c.ContinueFinalMessage,
	}.Render()
	if err != nil {
		return nil, badRequest("messages", "%v", err)
	}
	return t.Encode(text, c.AddSpecialTokens), nil
}

// encode returns the prompt's token ids: those of a string, or an array of
// ids as it is. An array with one string or one array is that element.
func (c completionRequest) encode(t *engine.Tokenizer) ([]kvindex.TokenID, error) {
	raw := bytes.TrimSpace(c.Prompt)
	if len(raw) > 0 && raw[0] == '[' {
		var elements []json.RawMessage
		if err := json.Unmarshal(raw, &elements); err != nil {
			return nil, badRequest("prompt", "prompt: %v", err)
		}
		if len(elements) == 0 {
			return nil, badRequest("prompt", "prompt: empty array: at least one token id is needed")
		}
		switch first := elements[0][0]; {
		case first != '"' && first != '[':
			return decodeIDs(raw)
		case len(elements) > 1:
			return nil, badRequest("prompt", "prompt: %d prompts: send one per request", len(elements))
		}
		raw = elements[0]
		if raw[0] == '[' {
			return decodeIDs(raw)
		}
	}
	var text string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &text) != nil {
		return nil, badRequest("prompt", "prompt: %.20s: use a string or an array of token ids", raw)
	}
	return t.Encode(text, c.AddSpecialTokens == nil || *c.AddSpecialTokens), nil
}

func decodeIDs(raw []byte) ([]kvindex.TokenID, error) {
	var ids []kvindex.TokenID
	if err := json.Unmarshal(raw, &ids); err != nil {
		return nil, badRequest("prompt", "prompt: %v: token ids are integers from 0 to %d", err, uint32(math.MaxUint32))
	}
	if len(ids) == 0 {
		return nil, badRequest("prompt", "prompt: empty array: at least one token id is needed")
	}
	return ids, nil
}

// generation is a request ready for the engine.
type generation struct {
	request engine.Request
	model   string
	prompt  []kvindex.TokenID // shared with request.Prompt, read only
	// finish is the finish_reason it will end with.
	finish string
}

// plan turns a prompt and the sampling fields into a generation. maxTokens is
// nil for the rest of the context.
func (s *Server) plan(q sampling, prompt []kvindex.TokenID, maxTokens *int) (generation, error) {
	adapter, err := s.resolve(q.Model)
	if err != nil {
		return generation{}, err
	}
	limit := s.engine.MaxModelLen
	room := limit - len(prompt)
	switch {
	case q.N != nil && *q.N != 1:
		return generation{}, badRequest("n", "n: %d: only 1 is supported", *q.N)
	case maxTokens != nil && *maxTokens < 1:
		return generation{}, badRequest("max_tokens", "max_tokens: %d: must be at least 1", *maxTokens)
	case len(prompt) == 0:
		return generation{}, badRequest("prompt", "prompt: empty: at least one token is needed")
	case room < 1:
		return generation{}, badRequest("prompt",
			"This model's maximum context length is %d tokens. However, your request has %d input tokens. "+
				"Please reduce the length of the input messages.", limit, len(prompt))
	case maxTokens != nil && *maxTokens > room:
		return generation{}, badRequest("max_tokens",
			"This model's maximum context length is %d tokens. However, you requested %d output tokens and your "+
				"prompt contains %d input tokens.", limit, *maxTokens, len(prompt))
	case q.MinTokens > room || maxTokens != nil && q.MinTokens > *maxTokens:
		return generation{}, badRequest("min_tokens", "min_tokens: %d: more than max_tokens", q.MinTokens)
	}
	outputs, finish := room, finishLength
	if maxTokens != nil {
		outputs = *maxTokens
	}
	if natural := max(answerLength(prompt), q.MinTokens); !q.IgnoreEOS && natural <= outputs {
		outputs, finish = natural, finishStop
	}
	model := q.Model
	if model == "" {
		model = s.cfg.Models[0]
	}
	return generation{
		// The engine appends to its copy.
		request: engine.Request{
			Prompt:       slices.Clip(prompt),
			OutputTokens: outputs,
			Adapter:      adapter,
			Salt:         q.CacheSalt,
		},
		model:  model,
		prompt: prompt,
		finish: finish,
	}, nil
}

// resolve returns the adapter of a served name, "" for the base model. A
// request without a model means the base model, as in vLLM.
func (s *Server) resolve(model string) (adapter string, err error) {
	switch {
	case model == "" || slices.Contains(s.cfg.Models, model):
		return "", nil
	case slices.Contains(s.cfg.LoRAs, model):
		return model, nil
	}
	return "", modelNotFound(model)
}

// refused turns an error of the core into an answer.
func refused(err error) error {
	if errors.Is(err, engine.ErrTooLong) || errors.Is(err, engine.ErrNeverFits) {
		return badRequest("prompt", "%v", err)
	}
	return err
}

// answerLength is the length at which an answer ends by itself, 32 to 255
// tokens, a function of the prompt.
func answerLength(prompt []kvindex.TokenID) int {
	h := uint32(2166136261) // FNV-1a over the last ids
	for _, t := range prompt[max(0, len(prompt)-64):] {
		h = (h ^ uint32(t)) * 16777619
	}
	return 32 + int(h>>8)%224
}
