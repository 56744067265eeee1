package tokenizer

import (
	"errors"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/warmpath/warmpath/routing"
)

// path returns where a prompt is tokenized; ok is false if the servers have no
// form for it.
func path(api string, kind routing.PromptKind) (p string, ok bool) {
	switch {
	case kind != routing.PromptText && kind != routing.PromptChat:
		return "", false
	case api == apiRender && kind == routing.PromptText:
		return "/v1/completions/render", true
	case api == apiRender:
		return "/v1/chat/completions/render", true
	}
	return "/tokenize", api != apiSGLang || kind == routing.PromptText
}

// telling is what becomes of an option in a request for tokens.
type telling uint8

const (
	// cannot: the servers have no such option, and the engine's prompt may
	// depend on it. They are not asked.
	cannot telling = iota
	// leave: the servers have no such option, and need none.
	leave
	// forward: the servers have the same option as the engine.
	forward
)

// tell returns what to do with an option. vLLM's /tokenize has the template
// and the arguments for media; its render endpoints read a chat as the engine
// does. What truncation leaves may depend on the length of the answer, so it is
// forwarded to nobody.
func tell(api string, o *routing.PromptOption) telling {
	switch o.Name {
	case "chat_template", "media_io_kwargs", "mm_processor_kwargs":
		if api != apiSGLang {
			return forward
		}
	case "documents", "reasoning_effort":
		if api == apiRender {
			return forward
		}
	case "response_format":
		if api == apiRender {
			return forward
		}
		return leave
	case "tool_choice":
		switch {
		case api == apiRender:
			return forward
		case o.Value[0] == '{', string(o.Value) == `"required"`:
			return leave
		}
		// "none": vLLM's --exclude-tools-when-tool-choice-none takes the tools
		// out of the prompt.
	}
	return cannot
}

// untold returns the name of an option that the servers cannot be told of, ""
// if there is none.
func untold(api string, p *routing.Prompt) string {
	for i := range p.Options {
		if tell(api, &p.Options[i]) == cannot {
			return p.Options[i].Name
		}
	}
	return ""
}

// appendBody appends the request for p's tokens: the completion form for text,
// the chat form for messages.
func appendBody(dst []byte, api, model string, p *routing.Prompt) []byte {
	dst = append(dst, '{')
	if model != "" {
		dst = appendQuoted(append(dst, `"model":`...), model)
	}
	if p.Kind == routing.PromptText {
		dst = appendName(dst, "prompt")
		dst = appendQuoted(dst, p.Text)
	} else {
		dst = appendField(dst, "messages", p.Messages)
		dst = appendField(dst, "tools", p.Tools)
		dst = appendField(dst, "chat_template_kwargs", p.TemplateKwargs)
		dst = appendBool(dst, "add_generation_prompt", p.AddGenerationPrompt)
		dst = appendBool(dst, "continue_final_message", p.ContinueFinalMessage)
	}
	dst = appendBool(dst, "add_special_tokens", p.AddSpecialTokens)
	for i := range p.Options {
		if o := &p.Options[i]; tell(api, o) == forward {
			dst = appendField(dst, o.Name, o.Value)
		}
	}
	return append(dst, '}')
}

func appendName(dst []byte, name string) []byte {
	if dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	dst = append(dst, '"')
	dst = append(dst, name...)
	return append(dst, '"', ':')
}

func appendField(dst []byte, name string, value []byte) []byte {
	if value == nil {
		return dst
	}
	return append(appendName(dst, name), value...)
}

func appendBool(dst []byte, name string, value *bool) []byte {
	if value == nil {
		return dst
	}
	return strconv.AppendBool(appendName(dst, name), *value)
}

// appendQuoted appends s as a JSON string (RFC 8259, section 7). What is not
// UTF-8 becomes U+FFFD, as in the engines' own decoders.
func appendQuoted(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(append(dst, s[from:i]...), "\ufffd"...)
				from = i + 1
			}
			i += n
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[from:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		from = i
	}
	return append(append(dst, s[from:]...), '"')
}

// payload is a request body that several attempts may send at the same time.
// Its memory is used again when the last of them has closed it: the HTTP
// transport may still read a body after the request was given up.
type payload struct {
	pool *sync.Pool
	path string
	body []byte
	refs atomic.Int32
}

// maxPooled is the largest body whose memory is kept.
const maxPooled = 1 << 20

func newPayload(pool *sync.Pool, path, api, model string, p *routing.Prompt) *payload {
	l := pool.Get().(*payload)
	l.pool, l.path = pool, path
	l.refs.Store(1)
	need := 256 + len(model) + len(p.Text) + len(p.Messages) + len(p.Tools) + len(p.TemplateKwargs)
	for i := range p.Options {
		need += len(p.Options[i].Name) + len(p.Options[i].Value) + 4
	}
	if cap(l.body) < need {
		l.body = make([]byte, 0, need)
	}
	l.body = appendBody(l.body[:0], api, model, p)
	return l
}

// release gives up one reference; newPayload returns the first.
func (p *payload) release() {
	if p.refs.Add(-1) == 0 && cap(p.body) <= maxPooled {
		p.pool.Put(p)
	}
}

// reader returns the body to send once. The caller holds a reference.
func (p *payload) reader() io.ReadCloser {
	p.refs.Add(1)
	return &payloadReader{payload: p}
}

type payloadReader struct {
	// mu keeps a Close that comes in the middle of a Read from giving the
	// memory away.
	mu      sync.Mutex
	payload *payload
	pos     int
}

// Read implements io.Reader.
func (r *payloadReader) Read(dst []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.payload == nil {
		return 0, errors.New("read of a closed request body")
	}
	if r.pos == len(r.payload.body) {
		return 0, io.EOF
	}
	n := copy(dst, r.payload.body[r.pos:])
	r.pos += n
	return n, nil
}

// Close implements io.Closer.
func (r *payloadReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.payload != nil {
		r.payload.release()
		r.payload = nil
	}
	return nil
}
