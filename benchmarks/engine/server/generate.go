package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/kvindex"
)

// The finish reasons of a choice; abort occurs only as a metric label.
const (
	finishStop   = "stop"
	finishLength = "length"
	finishAbort  = "abort"
)

type usage struct {
	PromptTokens        int           `json:"prompt_tokens"`
	TotalTokens         int           `json:"total_tokens"`
	CompletionTokens    int           `json:"completion_tokens"`
	PromptTokensDetails promptDetails `json:"prompt_tokens_details"`
}

type promptDetails struct {
	CachedTokens int `json:"cached_tokens"`
}

func usageOf(f engine.Finished) *usage {
	return &usage{
		PromptTokens:        f.PromptTokens,
		CompletionTokens:    f.OutputTokens,
		TotalTokens:         f.PromptTokens + f.OutputTokens,
		PromptTokensDetails: promptDetails{CachedTokens: f.CachedTokens},
	}
}

// reply is a response or, streamed, one chunk of it.
type reply struct {
	ID      string   `json:"id"`
	Object  string   `json:"object"`
	Created int64    `json:"created"`
	Model   string   `json:"model"`
	Choices []choice `json:"choices"`
	Usage   *usage   `json:"usage,omitempty"`
}

// choice has Text for completions, Message for chats and Delta for the chunks
// of a chat.
type choice struct {
	Index        int               `json:"index"`
	Text         *string           `json:"text,omitempty"`
	Message      *message          `json:"message,omitempty"`
	Delta        *message          `json:"delta,omitempty"`
	Logprobs     *struct{}         `json:"logprobs"`
	FinishReason *string           `json:"finish_reason"`
	StopReason   *string           `json:"stop_reason"`
	TokenIDs     []kvindex.TokenID `json:"token_ids,omitempty"`
	PromptIDs    []kvindex.TokenID `json:"prompt_token_ids,omitempty"`
}

type message struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

// endpoint is what differs between the two ways to ask for text.
type endpoint struct {
	prefix        string // of ids
	object, chunk string // "object" of a response and of a chunk
	chat          bool
}

func (e endpoint) choice(text string, whole bool) choice {
	switch {
	case !e.chat:
		return choice{Text: &text}
	case whole:
		return choice{Message: &message{Role: "assistant", Content: &text}}
	}
	return choice{Delta: &message{Content: &text}}
}

func (s *Server) completions(w http.ResponseWriter, r *http.Request) {
	var q completionRequest
	if err := readJSON(w, r, &q); err != nil {
		writeError(w, err)
		return
	}
	if q.Echo {
		writeError(w, badRequest("echo", "echo: true: not supported"))
		return
	}
	prompt, err := q.encode(s.tokenizer)
	if err != nil {
		writeError(w, err)
		return
	}
	maxTokens := q.MaxTokens
	if maxTokens == nil {
		n := max(1, min(defaultCompletionTokens, s.engine.MaxModelLen-len(prompt)))
		maxTokens = &n
	}
	g, err := s.plan(q.sampling, prompt, maxTokens)
	if err != nil {
		writeError(w, err)
		return
	}
	e := endpoint{prefix: "cmpl-", object: "text_completion", chunk: "text_completion"}
	s.generate(w, r, e, q.sampling, g)
}

func (s *Server) chatCompletions(w http.ResponseWriter, r *http.Request) {
	var q chatRequest
	if err := readJSON(w, r, &q); err != nil {
		writeError(w, err)
		return
	}
	prompt, err := q.encode(s.tokenizer)
	if err != nil {
		writeError(w, err)
		return
	}
	maxTokens := q.MaxTokens
	if q.MaxCompletionTokens != nil {
		maxTokens = q.MaxCompletionTokens
	}
	g, err := s.plan(q.sampling, prompt, maxTokens)
	if err != nil {
		writeError(w, err)
		return
	}
	e := endpoint{prefix: "chatcmpl-", object: "chat.completion", chunk: "chat.completion.chunk", chat: true}
	s.generate(w, r, e, q.sampling, g)
}

// generate runs a generation and answers with it.
func (s *Server) generate(w http.ResponseWriter, r *http.Request, e endpoint, q sampling, g generation) {
	st, err := s.driver.submit(r.Context(), g.request, g.finish)
	if err != nil {
		writeError(w, refused(err))
		return
	}
	id := r.Header.Get("X-Request-Id")
	if id == "" {
		id = fmt.Sprintf("%d-%d", s.started.UnixNano(), st.id)
	}
	head := reply{ID: e.prefix + id, Object: e.object, Created: time.Now().Unix(), Model: g.model}
	if q.Stream {
		head.Object = e.chunk
		s.streamReply(w, r, e, q, g, st, head)
		return
	}
	var ids []kvindex.TokenID
	f, err := s.collect(r.Context(), st, func(tokens []kvindex.TokenID) error {
		ids = append(ids, tokens...)
		return nil
	})
	if err != nil {
		writeError(w, err)
		return
	}
	c := e.choice(s.text(ids), true)
	c.FinishReason = &g.finish
	if q.ReturnTokenIDs {
		c.TokenIDs, c.PromptIDs = ids, g.prompt
	}
	head.Choices = []choice{c}
	head.Usage = usageOf(f)
	writeJSON(w, http.StatusOK, head)
}

// streamReply answers with server-sent events, one chunk per token.
func (s *Server) streamReply(
	w http.ResponseWriter, r *http.Request, e endpoint, q sampling, g generation, st *stream, head reply,
) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	flusher := http.NewResponseController(w)
	send := func(choices []choice, u *usage) error {
		chunk := head
		chunk.Choices, chunk.Usage = choices, u
		body, err := json.Marshal(chunk)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "data: %s\n\n", body)
		return err
	}
	left := g.request.OutputTokens
	first := true
	f, err := s.collect(r.Context(), st, func(tokens []kvindex.TokenID) error {
		if first && e.chat {
			empty := ""
			if err := send([]choice{{Delta: &message{Role: "assistant", Content: &empty}}}, nil); err != nil {
				return err
			}
		}
		for _, t := range tokens {
			left--
			c := e.choice(s.tokenizer.Text(t), false)
			if left == 0 {
				c.FinishReason = &g.finish
			}
			if q.ReturnTokenIDs {
				c.TokenIDs = []kvindex.TokenID{t}
				if first {
					c.PromptIDs = g.prompt
				}
			}
			first = false
			if err := send([]choice{c}, nil); err != nil {
				return err
			}
		}
		return flusher.Flush()
	})
	if err != nil {
		s.streamError(w, r, err)
		return
	}
	if q.StreamOptions.IncludeUsage && send([]choice{}, usageOf(f)) != nil {
		return
	}
	_, _ = fmt.Fprint(w, "data: [DONE]\n\n")
}

// streamError ends a stream that cannot go on: with an error event, as vLLM
// does, unless the client has left.
func (s *Server) streamError(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return
	}
	body, _ := json.Marshal(map[string]*apiError{"error": unavailable(err.Error())})
	_, _ = fmt.Fprintf(w, "data: %s\n\ndata: [DONE]\n\n", body)
}

// collect hands a sequence's tokens to each as they come, and returns the
// summary after the last. If the client leaves, or each fails, the sequence
// is aborted.
func (s *Server) collect(
	ctx context.Context, st *stream, each func([]kvindex.TokenID) error,
) (engine.Finished, error) {
	for {
		select {
		case <-st.wake:
		case <-ctx.Done():
			s.driver.abort(st)
			return engine.Finished{}, ctx.Err()
		case <-s.driver.stopped:
			return engine.Finished{}, errStopped
		}
		tokens, finished, lost := st.take()
		if lost {
			return engine.Finished{}, errStopped
		}
		if len(tokens) > 0 {
			if err := each(tokens); err != nil {
				s.driver.abort(st)
				return engine.Finished{}, err
			}
		}
		if finished != nil {
			return *finished, nil
		}
	}
}

// text returns the text of generated tokens.
func (s *Server) text(ids []kvindex.TokenID) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(s.tokenizer.Text(id))
	}
	return b.String()
}
