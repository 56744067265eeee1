package tokenizer

import (
	"bytes"
	"encoding/binary"
	"slices"
	"unicode"
	"unicode/utf8"

	"github.com/zeebo/xxh3"

	"github.com/warmpath/warmpath/routing"
)

// key names a text: 128 bits, under a seed that only this process knows, so
// that nobody can choose two texts with one key.
type key struct{ hi, lo uint64 }

// in returns the key's name in a namespace.
func (k key) in(ns key) key { return key{k.hi ^ ns.hi, k.lo ^ ns.lo} }

// derive returns the key of a further thing that belongs to k.
func (k key) derive(n uint64, seed uint64) key {
	var b [24]byte
	binary.LittleEndian.PutUint64(b[0:], k.hi)
	binary.LittleEndian.PutUint64(b[8:], k.lo)
	binary.LittleEndian.PutUint64(b[16:], n)
	h := xxh3.Hash128Seed(b[:], seed)
	return key{h.Hi, h.Lo}
}

func hash(b []byte, seed uint64) key {
	h := xxh3.Hash128Seed(b, seed)
	return key{h.Hi, h.Lo}
}

// then returns the key of k's text followed by a segment.
func (k key) then(segment []byte, seed uint64) key {
	return k.join(hash(segment, seed), len(segment), seed)
}

func (k key) thenString(segment string, seed uint64) key {
	h := xxh3.HashString128Seed(segment, seed)
	return k.join(key{h.Hi, h.Lo}, len(segment), seed)
}

func (k key) join(s key, n int, seed uint64) key {
	var b [40]byte
	binary.LittleEndian.PutUint64(b[0:], k.hi)
	binary.LittleEndian.PutUint64(b[8:], k.lo)
	binary.LittleEndian.PutUint64(b[16:], s.hi)
	binary.LittleEndian.PutUint64(b[24:], s.lo)
	binary.LittleEndian.PutUint64(b[32:], uint64(n))
	return hash(b[:], seed)
}

// headBytes is how much of a continuation's beginning is kept, to tell how
// much text two continuations share.
const headBytes = 96

// head is the beginning of a continuation.
type head struct {
	text []byte
	// space is the length of the white space before text.
	space int
}

// segment is one message of a chat, or one chunk of a text.
type segment struct {
	// end names the prompt up to and including this segment.
	end key
	// bytes is how much of the request that is.
	bytes int
	// shape is what the chat template can branch on without reading the
	// content: the role, the members, the kinds of their values.
	shape uint64
	// shapes is the set of shapes up to here, without their number and order.
	shapes uint64
}

// outline is what the caches see of a prompt: its options and a chain of
// segments. It holds no text but heads.
type outline struct {
	kind routing.PromptKind
	seed uint64
	// start names the options alone: everything that shapes the prompt besides
	// its segments. options is the part of them that a template can branch on.
	start   key
	options uint64
	segs    []segment
	// bytes is the size of the prompt in the request.
	bytes int
	// last is the head of the last message, if nothing of that message but its
	// role and content can appear in the prompt.
	last   head
	hasTip bool
	// lastWords counts words in the beginning of the last message's content.
	lastWords int
	// heads are those of the text after each boundary, for texts only, filled
	// in by own.
	heads []head

	lastBuf  [headBytes]byte
	distinct []uint64
}

// read makes o the outline of p and reports whether there is one.
func (o *outline) read(p *routing.Prompt, seed uint64) bool {
	o.kind, o.seed, o.segs, o.hasTip, o.heads = p.Kind, seed, o.segs[:0], false, o.heads[:0]
	o.distinct = o.distinct[:0]
	var flags [4]byte
	flags[0] = byte(p.Kind)
	for i, f := range [...]*bool{p.AddSpecialTokens, p.AddGenerationPrompt, p.ContinueFinalMessage} {
		if f != nil {
			flags[i+1] = 1
			if *f {
				flags[i+1] = 2
			}
		}
	}
	o.start = hash(flags[:], seed)
	for i := range p.Options {
		o.start = o.start.thenString(p.Options[i].Name, seed).then(p.Options[i].Value, seed)
	}
	o.options = o.start.lo
	switch p.Kind {
	case routing.PromptText:
		return o.readText(p.Text)
	case routing.PromptChat:
		o.start = o.start.then(p.Tools, seed).then(p.TemplateKwargs, seed)
		o.options ^= xxh3.HashSeed(p.TemplateKwargs, seed)
		if len(p.Tools) > 0 {
			o.options++
		}
		o.bytes = len(p.Tools)
		return o.readChat(p.Messages)
	}
	return false
}

// end names the whole prompt.
func (o *outline) end() key { return o.segs[len(o.segs)-1].end }

// Boundaries of a text lie firstBoundary bytes apart at first and farther with
// their distance from the start, so that a text has few of them and at most a
// fifth of it lies behind the last one.
const firstBoundary = 512

func nextBoundary(at int) int {
	return at + max(firstBoundary, at/5/firstBoundary*firstBoundary)
}

func (o *outline) readText(text string) bool {
	end, at := o.start, 0
	for {
		next := nextBoundary(at)
		if next >= len(text) {
			break
		}
		end = end.thenString(text[at:next], o.seed)
		at = next
		o.segs = append(o.segs, segment{end: end, bytes: at})
	}
	end = end.thenString(text[at:], o.seed)
	o.segs = append(o.segs, segment{end: end, bytes: len(text)})
	o.bytes = len(text)
	return true
}

// boundary returns the name and the position of boundary i of a text; 0 is its
// start.
func (o *outline) boundary(i int) (key, int) {
	if i == 0 {
		return o.start, 0
	}
	return o.segs[i-1].end, o.segs[i-1].bytes
}

// own copies what is needed later of the text that o was read from.
func (o *outline) own(p *routing.Prompt) {
	if p.Kind != routing.PromptText {
		return
	}
	o.heads = slices.Grow(o.heads, len(o.segs))[:len(o.segs)]
	for i := range o.segs {
		_, at := o.boundary(i)
		rest := p.Text[at:]
		n := min(len(rest), headBytes)
		o.heads[i] = head{text: append(o.heads[i].text[:0], rest[:n]...)}
	}
}

// readChat reads a JSON array of messages. It reports false for what is no
// such array; the tokenizer will say what it thinks of it.
func (o *outline) readChat(messages []byte) bool {
	w := walker{src: messages}
	end := o.start
	var tip []byte
	if !w.open('[') {
		return false
	}
	for w.element(']') {
		from := w.pos
		var m message
		if !w.message(&m) {
			return false
		}
		raw := messages[from:w.pos]
		shape := m.shape ^ xxh3.HashSeed(m.role, o.seed)*3
		if bytes.Contains(raw, []byte("think>")) || bytes.Contains(raw, []byte("THINK]")) {
			// Templates cut the thinking out of past answers.
			shape ^= 0x5bd1e9955bd1e995
		}
		end = end.then(raw, o.seed)
		if !slices.Contains(o.distinct, shape) {
			o.distinct = append(o.distinct, shape)
		}
		var set uint64
		for _, s := range o.distinct {
			set += s * 0x9E3779B97F4A7C15
		}
		o.segs = append(o.segs, segment{end: end, bytes: o.bytes + w.pos, shape: shape, shapes: set})
		o.hasTip = m.members == 2 && m.role != nil && m.content != nil
		tip = m.content
	}
	o.last = decodeHead(o.lastBuf[:0], tip)
	o.lastWords = words(o.last.text)
	o.bytes += len(messages)
	return !w.bad && len(o.segs) > 0
}

// transition names how a prompt that ended at segment i goes on to become o:
// all that a chat template can branch on in it, less the text. What a template
// does to one such pair of prompts it does to another.
func (o *outline) transition(i int) uint64 {
	h := o.options
	if o.kind != routing.PromptChat {
		return h
	}
	mix := func(n uint64) { h = (h ^ n) * 0x9FB21C651E98DF25; h ^= h >> 32 }
	mix(o.segs[i].shapes)
	mix(o.segs[i].shape)
	for _, s := range o.segs[i+1:] {
		mix(s.shape)
	}
	return h
}

// message is what the walker tells of one.
type message struct {
	// role and content are raw JSON, content nil unless it is a string.
	role, content []byte
	members       int
	// shape covers the names of the members and the kinds of their values.
	shape uint64
}

// walker goes through valid JSON quickly. On invalid JSON it may find less or
// other values, and never panics.
type walker struct {
	src []byte
	pos int
	bad bool
}

func (w *walker) peek() byte {
	for w.pos < len(w.src) {
		switch c := w.src[w.pos]; c {
		case ' ', '\t', '\n', '\r':
			w.pos++
		default:
			return c
		}
	}
	return 0
}

func (w *walker) fail() bool {
	w.bad, w.pos = true, len(w.src)
	return false
}

func (w *walker) open(c byte) bool {
	if w.peek() != c {
		return w.fail()
	}
	w.pos++
	return true
}

// element goes to the next element or member, or past the closing bracket.
func (w *walker) element(closing byte) bool {
	switch c := w.peek(); {
	case c == closing:
		w.pos++
		return false
	case c == ',':
		w.pos++
		w.peek()
		return true
	case c == 0:
		return w.fail()
	}
	return true
}

// str consumes a string and returns it without its quotes.
func (w *walker) str() []byte {
	if w.peek() != '"' {
		w.fail()
		return nil
	}
	w.pos++
	from := w.pos
	for {
		n := bytes.IndexByte(w.src[w.pos:], '"')
		if n < 0 {
			w.fail()
			return nil
		}
		w.pos += n + 1
		escapes := 0
		for i := w.pos - 2; i >= from && w.src[i] == '\\'; i-- {
			escapes++
		}
		if escapes%2 == 0 {
			return w.src[from : w.pos-1]
		}
	}
}

// value consumes any value.
func (w *walker) value() {
	switch w.peek() {
	case '"':
		w.str()
	case '{', '[':
		depth := 0
		for w.pos < len(w.src) {
			switch w.src[w.pos] {
			case '"':
				w.str()
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			w.pos++
			if depth == 0 {
				return
			}
		}
		w.fail()
	case 0, ',', ':', '}', ']':
		w.fail()
	default:
		for w.pos < len(w.src) {
			switch w.src[w.pos] {
			case ',', '}', ']', ' ', '\t', '\n', '\r':
				return
			}
			w.pos++
		}
	}
}

// message consumes one message.
func (w *walker) message(m *message) bool {
	if !w.open('{') {
		return false
	}
	for w.element('}') {
		name := w.str()
		if w.peek() != ':' {
			return w.fail()
		}
		w.pos++
		kind := w.peek()
		from := w.pos
		w.value()
		if w.bad {
			return false
		}
		if kind != '"' && kind != '[' && kind != '{' && kind != 'n' {
			kind = 'v'
		}
		m.members++
		m.shape += xxh3.HashSeed(name, uint64(kind)) // order does not count
		switch string(name) {
		case "role":
			m.role = w.src[from:w.pos]
		case "content":
			m.content = nil
			if kind == '"' {
				m.content = w.src[from+1 : w.pos-1]
			}
		}
	}
	return !w.bad
}

// decodeHead appends the beginning of a JSON string, given without its quotes,
// to dst, without leading white space: some templates strip it.
func decodeHead(dst []byte, raw []byte) head {
	space, skipped := true, 0
	for i := 0; i < len(raw); {
		r, n := rune(raw[i]), 1
		switch {
		case raw[i] == '\\':
			r, n = decodeEscape(raw[i:])
		case raw[i] >= utf8.RuneSelf:
			r, n = utf8.DecodeRune(raw[i:])
		}
		i += n
		if space && isSpace(r) {
			skipped += n
			continue
		}
		space = false
		if len(dst)+utf8.RuneLen(max(r, 0)) > cap(dst) {
			return head{dst, skipped}
		}
		dst = utf8.AppendRune(dst, r)
	}
	return head{dst, skipped}
}

// words counts the words in a text; a character that is not ASCII counts as
// one.
func words(text []byte) (n int) {
	inside := false
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		text = text[size:]
		switch {
		case r >= utf8.RuneSelf:
			n++
		case isSpace(r):
			inside = false
		case !inside:
			inside = true
			n++
		}
	}
	return n
}

// isSpace tells what Python's str.strip removes, and a little more.
func isSpace(r rune) bool { return r <= ' ' || unicode.IsSpace(r) }

// decodeEscape decodes the escape at the start of raw.
func decodeEscape(raw []byte) (rune, int) {
	if len(raw) < 2 {
		return utf8.RuneError, 1
	}
	switch raw[1] {
	case 'n':
		return '\n', 2
	case 't':
		return '\t', 2
	case 'r':
		return '\r', 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'u':
		r, ok := hex4(raw)
		if !ok {
			return utf8.RuneError, 2
		}
		if r >= 0xD800 && r < 0xDC00 {
			if low, ok := hex4(raw[6:]); ok && low >= 0xDC00 && low < 0xE000 {
				return (r-0xD800)<<10 + (low - 0xDC00) + 0x10000, 12
			}
		}
		if r >= 0xD800 && r < 0xE000 {
			r = utf8.RuneError
		}
		return r, 6
	}
	return rune(raw[1]), 2
}

// hex4 decodes \uXXXX.
func hex4(raw []byte) (rune, bool) {
	if len(raw) < 6 || raw[0] != '\\' || raw[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range raw[2:6] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 + rune(c-'0')
		case isHex(c):
			r = r<<4 + rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}
