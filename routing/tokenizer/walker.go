package tokenizer

import (
	"bytes"

	"github.com/zeebo/xxh3"
)

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
