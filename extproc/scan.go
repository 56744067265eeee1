package extproc

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unsafe"

	"github.com/tidwall/gjson"

	"github.com/warmpath/warmpath/kvindex"
)

// maxDepth bounds how deep the values of a body may nest. Engines stop far
// earlier; without a bound a body of brackets would exhaust the stack.
const maxDepth = 512

// scanner walks a JSON text once, in place, and checks its syntax (RFC 8259)
// on the way. It does not check that strings are UTF-8.
//
// Its methods stop at the first fault, which is kept in err; all methods after
// that do nothing.
type scanner struct {
	src []byte
	pos int
	err *syntaxError
	// ids is memory for the next array of token ids, nil if there is none.
	ids *[]kvindex.TokenID
}

// syntaxError is why a text is not JSON.
type syntaxError struct {
	offset int
	msg    string
	// truncated: the text ended where more was expected.
	truncated bool
}

func (e *syntaxError) Error() string { return fmt.Sprintf("%s at byte %d", e.msg, e.offset) }

func (s *scanner) fail(msg string) {
	if s.err != nil {
		return
	}
	if s.pos >= len(s.src) {
		s.err = &syntaxError{offset: len(s.src), msg: "unexpected end of the text", truncated: true}
		return
	}
	s.err = &syntaxError{offset: s.pos, msg: msg}
}

// peek returns the next byte, 0 at the end or after a fault.
func (s *scanner) peek() byte {
	if s.err != nil || s.pos >= len(s.src) {
		return 0
	}
	return s.src[s.pos]
}

func (s *scanner) space() {
	for s.pos < len(s.src) {
		switch s.src[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// open consumes the bracket that begins an object or array and reports
// whether a first member or element follows.
func (s *scanner) open(closing byte) bool {
	s.pos++
	s.space()
	if s.peek() == closing {
		s.pos++
		return false
	}
	return s.err == nil
}

// more consumes what follows a member or element and reports whether another
// one does.
func (s *scanner) more(closing byte) bool {
	s.space()
	switch s.peek() {
	case ',':
		s.pos++
		s.space()
		return true
	case closing:
		s.pos++
		return false
	}
	s.fail(`expected "," or "` + string(closing) + `"`)
	return false
}

// key consumes a member's name and the colon, and returns the raw name
// without its quotes.
func (s *scanner) key() []byte {
	if s.peek() != '"' {
		s.fail("expected a string as the name of a member")
		return nil
	}
	start := s.pos
	s.str()
	raw := s.src[start:s.pos]
	s.space()
	if s.peek() != ':' {
		s.fail(`expected ":"`)
		return nil
	}
	s.pos++
	s.space()
	for _, c := range raw {
		if c == '\\' {
			return []byte(unquote(raw))
		}
	}
	return raw[1 : len(raw)-1]
}

// value consumes one value of any type and returns its text. depth is the
// number of values that enclose it.
func (s *scanner) value(depth int) []byte {
	start := s.pos
	switch c := s.peek(); c {
	case '{', '[':
		s.nested(c+2, depth)
	case '"':
		s.str()
	case 't':
		s.literal("true")
	case 'f':
		s.literal("false")
	case 'n':
		s.literal("null")
	default:
		s.number()
	}
	if s.err != nil {
		return nil
	}
	return s.src[start:s.pos]
}

// nested consumes an object or an array. Both ASCII closing brackets stand two
// after the opening ones.
func (s *scanner) nested(closing byte, depth int) {
	if depth >= maxDepth {
		s.err = &syntaxError{offset: s.pos, msg: fmt.Sprintf("more than %d nested values", maxDepth)}
		return
	}
	for ok := s.open(closing); ok && s.err == nil; ok = s.more(closing) {
		if closing == '}' {
			s.key()
		}
		s.value(depth + 1)
	}
}

func (s *scanner) literal(word string) {
	for i := range len(word) {
		if s.peek() != word[i] {
			s.fail("invalid literal")
			return
		}
		s.pos++
	}
}

// Words with one bit pattern in every byte, to look at eight bytes at once.
const (
	everyByte = 0x0101010101010101
	highBits  = 0x8080808080808080
)

// stops sets the high bit of each byte of w that is a quote, a backslash or a
// control character. Only the lowest set bit is exact. The second bit turned
// over puts the quote right behind the control characters.
func stops(w uint64) uint64 {
	low, escape := w^0x02*everyByte, w^'\\'*everyByte
	return ((low-0x21*everyByte)&^low | (escape-everyByte)&^escape) & highBits
}

// str consumes a string, whose opening quote is next.
func (s *scanner) str() {
	s.pos++
	for {
		for rest := s.src[s.pos:]; len(rest) >= 16; rest = rest[16:] {
			a, b := stops(binary.LittleEndian.Uint64(rest)), stops(binary.LittleEndian.Uint64(rest[8:]))
			if a|b != 0 {
				break
			}
			s.pos += 16
		}
		for s.pos+8 <= len(s.src) {
			if stop := stops(binary.LittleEndian.Uint64(s.src[s.pos:])); stop != 0 {
				s.pos += bits.TrailingZeros64(stop) / 8
				break
			}
			s.pos += 8
		}
		switch c := s.peek(); {
		case s.pos >= len(s.src) || s.err != nil:
			s.fail("")
			return
		case c == '"':
			s.pos++
			return
		case c == '\\':
			s.escape()
		case c < ' ':
			s.fail("control character in a string")
			return
		default:
			s.pos++
		}
	}
}

func (s *scanner) escape() {
	s.pos++
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.pos++
	case 'u':
		s.pos++
		for range 4 {
			c := s.peek()
			if lower := c | 0x20; (c < '0' || c > '9') && (lower < 'a' || lower > 'f') {
				s.fail("invalid unicode escape")
				return
			}
			s.pos++
		}
	default:
		s.fail("invalid escape in a string")
	}
}

func (s *scanner) number() {
	if s.peek() == '-' {
		s.pos++
	}
	switch c := s.peek(); {
	case c == '0':
		s.pos++
	case c >= '1' && c <= '9':
		s.digits()
	default:
		s.fail("expected a value")
		return
	}
	if s.peek() == '.' {
		s.pos++
		s.digits()
	}
	if s.peek()|0x20 == 'e' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		s.digits()
	}
}

// digits consumes one digit or more.
func (s *scanner) digits() {
	start := s.pos
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.pos++
	}
	if s.pos == start {
		s.fail("expected a digit")
	}
}

// unquote returns the value of a JSON string given with its quotes. It borrows
// raw where that holds no escape, and allocates else.
func unquote(raw []byte) string {
	return gjson.Parse(unsafe.String(unsafe.SliceData(raw), len(raw))).Str
}
