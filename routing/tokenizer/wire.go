package tokenizer

import (
	"errors"
	"io"
	"slices"
	"strconv"
	"sync"
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

// payload is the body of a request for tokens, in pieces: what it says of the
// prompt is not copied, because it may be megabytes. It borrows the prompt
// until end is called, also for the HTTP transport, which may still want to
// read a body when its request has long been given up. Several attempts may
// send it at the same time.
type payload struct {
	path string
	// size is the length of all pieces, in bytes.
	size   int
	pieces [][]byte
	// few is memory for pieces, glue what is between the parts of the prompt.
	few  [8][]byte
	glue [256]byte
	// copied is the memory of a payload that borrows nothing.
	copied *[]byte

	// mu guards ended: end waits for those who read.
	mu    sync.RWMutex
	ended bool
}

// newPayload returns the request for p's tokens: the completion form for text,
// the chat form for messages.
func newPayload(path, api, model string, p *routing.Prompt) *payload {
	l := &payload{path: path}
	l.pieces = l.few[:0]
	b := builder{payload: l, glue: append(l.glue[:0], '{')}
	if model != "" {
		b.glue = appendQuoted(append(b.glue, `"model":`...), model)
	}
	switch {
	case p.Kind != routing.PromptText:
		b.field("messages", p.Messages)
		b.field("tools", p.Tools)
		b.field("chat_template_kwargs", p.TemplateKwargs)
		b.bool("add_generation_prompt", p.AddGenerationPrompt)
		b.bool("continue_final_message", p.ContinueFinalMessage)
	case p.TextJSON != nil:
		b.field("prompt", p.TextJSON)
	default:
		b.name("prompt")
		b.glue = appendQuoted(b.glue, p.Text)
	}
	b.bool("add_special_tokens", p.AddSpecialTokens)
	for i := range p.Options {
		if o := &p.Options[i]; tell(api, o) == forward {
			b.field(o.Name, o.Value)
		}
	}
	b.glue = append(b.glue, '}')
	b.cut()
	return l
}

// builder writes a payload. glue is what has been written since the last
// piece; as soon as its memory is full, it goes on in new memory, and the
// pieces keep the old one.
type builder struct {
	*payload
	glue []byte
}

// cut makes a piece of glue.
func (b *builder) cut() {
	b.piece(b.glue)
	b.glue = b.glue[len(b.glue):]
}

func (b *builder) piece(v []byte) {
	b.pieces = append(b.pieces, v)
	b.size += len(v)
}

func (b *builder) name(name string) {
	if len(b.pieces) > 0 || len(b.glue) > 1 {
		b.glue = append(b.glue, ',')
	}
	b.glue = append(b.glue, '"')
	b.glue = append(b.glue, name...)
	b.glue = append(b.glue, '"', ':')
}

func (b *builder) field(name string, value []byte) {
	if value != nil {
		b.name(name)
		b.cut()
		b.piece(value)
	}
}

func (b *builder) bool(name string, value *bool) {
	if value != nil {
		b.name(name)
		b.glue = strconv.AppendBool(b.glue, *value)
	}
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

// own has l borrow nothing: its pieces move into memory of its own, from a pool
// of such memory.
func (l *payload) own(pool *sync.Pool) {
	l.copied = pool.Get().(*[]byte)
	all := slices.Grow((*l.copied)[:0], l.size)
	for _, piece := range l.pieces {
		all = append(all, piece...)
	}
	*l.copied = all
	l.few = [len(l.few)][]byte{all}
	l.pieces = l.few[:1]
}

// maxPooled is the largest memory of a payload that is kept.
const maxPooled = 4 << 20

// disown ends l and gives the memory of own back.
func (l *payload) disown(pool *sync.Pool) {
	l.end()
	if cap(*l.copied) <= maxPooled {
		pool.Put(l.copied)
	}
}

// end has l refer to nothing any more: who still reads it gets an error. Only
// the first call does anything.
func (l *payload) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended, l.pieces, l.few = true, nil, [len(l.few)][]byte{}
}

// reader returns the body to send once.
func (l *payload) reader() io.ReadCloser { return &payloadReader{payload: l} }

type payloadReader struct {
	*payload
	// piece and pos are where to read on.
	piece, pos int
}

// errEnded is what late readers get.
var errEnded = errors.New("the request for tokens has ended")

// Read implements io.Reader.
func (r *payloadReader) Read(dst []byte) (n int, err error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.ended {
		return 0, errEnded
	}
	for r.piece < len(r.pieces) && n < len(dst) {
		m := copy(dst[n:], r.pieces[r.piece][r.pos:])
		n, r.pos = n+m, r.pos+m
		if r.pos == len(r.pieces[r.piece]) {
			r.piece, r.pos = r.piece+1, 0
		}
	}
	if r.piece == len(r.pieces) && n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Close implements io.Closer.
func (r *payloadReader) Close() error { return nil }
