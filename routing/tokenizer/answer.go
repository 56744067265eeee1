package tokenizer

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/warmpath/warmpath/kvindex"
)

// maxTokenID is the largest id believed: engines keep ids as int32.
const maxTokenID = math.MaxInt32

// maxDepth bounds how deep the values of an answer may nest.
const maxDepth = 64

const (
	// answerBuffer is how much of an answer is read at a time, in bytes.
	answerBuffer = 32 << 10
	// idBatch is how many ids are handed on at a time.
	idBatch = 2048
	// mostExpected bounds what an announced number of tokens is worth in memory
	// before they have come.
	mostExpected = 1 << 22
)

// sink takes the ids of an answer.
type sink interface {
	// expect says how many ids will come, before the first of them, if the
	// answer tells.
	expect(n int)
	// take takes the next ids, in order; they are lent for the call.
	take(ids []kvindex.TokenID)
}

var (
	errTooLarge = errors.New("the answer is larger than max_response_bytes")
	errSyntax   = errors.New("the answer is not valid JSON")
	errNoTokens = errors.New("the answer is not a JSON object with an array of tokens")
)

// answerReader reads one answer of a tokenizer as it arrives:
//
//	{"count": N, "tokens": [ids], …}      vLLM and SGLang, /tokenize
//	{"token_ids": [ids], …}               vLLM, chat completions render
//	[{"token_ids": [ids], …}]             vLLM, completions render
//
// Everything else in it is checked for syntax (RFC 8259, except that strings
// need not be UTF-8) and skipped. The zero value with a buffer is ready.
type answerReader struct {
	src io.Reader
	// left is how many bytes may still be read.
	left int64
	buf  []byte
	// buf[pos:end] is read and not yet consumed.
	pos, end int
	err      error
	// batch are ids for to, after handed that it has.
	batch  []kvindex.TokenID
	handed int
	to     sink
}

// read consumes an answer of at most limit bytes and hands its ids to a sink,
// also those of an answer that turns out to be wrong later.
func (a *answerReader) read(src io.Reader, limit int64, to sink) error {
	if a.buf == nil {
		a.buf, a.batch = make([]byte, answerBuffer), make([]kvindex.TokenID, 0, idBatch)
	}
	a.src, a.left, a.pos, a.end, a.err = src, limit, 0, 0, nil
	a.batch, a.handed, a.to = a.batch[:0], 0, to
	err := a.answer()
	a.src, a.to = nil, nil
	if a.err != nil && a.err != io.EOF {
		return a.err // the reason why the syntax is wrong, too
	}
	return err
}

// hand passes the batch on.
func (a *answerReader) hand() {
	if len(a.batch) > 0 {
		a.to.take(a.batch)
		a.handed += len(a.batch)
		a.batch = a.batch[:0]
	}
}

func (a *answerReader) answer() error {
	c := a.nonSpace()
	list := c == '['
	if list {
		c = a.nonSpace()
	}
	if c != '{' {
		return errNoTokens
	}
	if err := a.object(); err != nil {
		return err
	}
	if list && a.nonSpace() != ']' {
		return errors.New("the answer is a list of several prompts")
	}
	if a.nonSpace(); a.err != io.EOF {
		return errSyntax
	}
	return nil
}

// object reads the members of the answer, whose opening bracket is consumed.
func (a *answerReader) object() error {
	found, count := false, int64(-1)
	var keyBuf [16]byte
	c := a.nonSpace()
	if c == '}' {
		return errNoTokens
	}
	for {
		if c != '"' {
			return errSyntax
		}
		key, ok := a.str(keyBuf[:0])
		if !ok || a.nonSpace() != ':' {
			return errSyntax
		}
		c = a.nonSpace()
		switch {
		case string(key) == "tokens" || string(key) == "token_ids":
			if found {
				return errors.New("the answer lists tokens twice")
			}
			if c != '[' {
				return errNoTokens
			}
			if count > 0 {
				a.to.expect(int(min(count, mostExpected)))
			}
			if err := a.ids(); err != nil {
				return err
			}
			a.hand()
			found = true
		case string(key) == "count" && c >= '0' && c <= '9':
			a.pos--
			if count, ok = a.count(); !ok {
				return errSyntax
			}
		default:
			if !a.skip(c, 0) {
				return errSyntax
			}
		}
		if c = a.nonSpace(); c == '}' {
			break
		}
		if c != ',' {
			return errSyntax
		}
		c = a.nonSpace()
	}
	switch {
	case !found:
		return errNoTokens
	case count >= 0 && count != int64(a.handed):
		return fmt.Errorf("the answer counts %d tokens and lists %d", count, a.handed)
	}
	return nil
}

// ids reads an array of integers whose opening bracket is consumed.
func (a *answerReader) ids() error {
	c := a.nonSpace()
	if c == ']' {
		return nil
	}
	for {
		if c < '0' || c > '9' {
			return fmt.Errorf("token %d is not a non-negative integer", a.handed+len(a.batch))
		}
		first, id := c, uint64(c-'0')
		for {
			if a.pos == a.end && !a.fill() {
				return errSyntax
			}
			if c = a.buf[a.pos]; c < '0' || c > '9' {
				break
			}
			a.pos++
			if id = id*10 + uint64(c-'0'); id > maxTokenID || first == '0' {
				return fmt.Errorf("token %d is out of range, or has a leading zero", a.handed+len(a.batch))
			}
		}
		if len(a.batch) == cap(a.batch) {
			a.hand()
		}
		a.batch = append(a.batch, kvindex.TokenID(id))
		// The usual "," and ", " without a call.
		if c == ',' && a.end-a.pos > 2 {
			a.pos++
			if c = a.buf[a.pos]; c == ' ' {
				a.pos++
				c = a.buf[a.pos]
			}
			if c >= '0' && c <= '9' {
				a.pos++
				continue
			}
			c = a.nonSpace()
			continue
		}
		switch a.nonSpace() {
		case ']':
			return nil
		case ',':
			c = a.nonSpace()
		default:
			return fmt.Errorf("token %d is not a non-negative integer", a.handed+len(a.batch)-1)
		}
	}
}

// count reads a non-negative integer; ok is false for any other number.
func (a *answerReader) count() (n int64, ok bool) {
	var digits [20]byte
	text := digits[:0]
	for {
		if a.pos == a.end && !a.fill() {
			return 0, false
		}
		c := a.buf[a.pos]
		if c < '0' || c > '9' {
			break
		}
		if len(text) == 18 {
			return 0, false
		}
		text = append(text, c)
		a.pos++
		n = n*10 + int64(c-'0')
	}
	switch a.buf[a.pos] {
	case '.', 'e', 'E':
		return 0, false
	}
	return n, len(text) == 1 || text[0] != '0'
}

// fill reads more and reports whether there is any. buf must be consumed.
func (a *answerReader) fill() bool {
	for a.err == nil {
		n, err := a.src.Read(a.buf)
		a.pos, a.end = 0, n
		a.left -= int64(n)
		a.err = err
		if a.left < 0 {
			a.end, a.err = 0, errTooLarge
		}
		if a.end > 0 {
			return true
		}
	}
	return false
}

// next consumes a byte; 0 at the end, which JSON has nowhere.
func (a *answerReader) next() byte {
	if a.pos == a.end && !a.fill() {
		return 0
	}
	a.pos++
	return a.buf[a.pos-1]
}

// nonSpace consumes white space and the byte after it.
func (a *answerReader) nonSpace() byte {
	for {
		switch c := a.next(); c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
}

// str consumes a string after its opening quote and appends its raw bytes to
// dst as far as they fit: a longer one is cut, and no key that matters is that
// long. A key in escapes is not recognized; no server writes one.
func (a *answerReader) str(dst []byte) ([]byte, bool) {
	for {
		c := a.next()
		switch {
		case c == '"':
			return dst, true
		case c < ' ':
			return dst, false
		case c == '\\':
			switch e := a.next(); e {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					if !isHex(a.next()) {
						return dst, false
					}
				}
			default:
				return dst, false
			}
		}
		if len(dst) < cap(dst) {
			dst = append(dst, c)
		}
	}
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

// skip consumes a value that begins with c and checks its syntax.
func (a *answerReader) skip(c byte, depth int) bool {
	switch {
	case c == '"':
		_, ok := a.str(nil)
		return ok
	case c == '{' || c == '[':
		return depth < maxDepth && a.skipAll(c, depth+1)
	case c == 't':
		return a.literal("rue")
	case c == 'f':
		return a.literal("alse")
	case c == 'n':
		return a.literal("ull")
	}
	return a.number(c)
}

// skipAll consumes an object or array after its opening bracket.
func (a *answerReader) skipAll(open byte, depth int) bool {
	closing := open + 2 // in ASCII
	c := a.nonSpace()
	if c == closing {
		return true
	}
	for {
		if open == '{' {
			if c != '"' {
				return false
			}
			if _, ok := a.str(nil); !ok || a.nonSpace() != ':' {
				return false
			}
			c = a.nonSpace()
		}
		if !a.skip(c, depth) {
			return false
		}
		switch a.nonSpace() {
		case closing:
			return true
		case ',':
			c = a.nonSpace()
		default:
			return false
		}
	}
}

func (a *answerReader) literal(rest string) bool {
	for i := range len(rest) {
		if a.next() != rest[i] {
			return false
		}
	}
	return true
}

// number consumes a number that begins with c.
func (a *answerReader) number(c byte) bool {
	if c == '-' {
		c = a.next()
	}
	switch {
	case c == '0':
	case c >= '1' && c <= '9':
		a.digits()
	default:
		return false
	}
	if a.peek() == '.' {
		a.pos++
		if a.digits() == 0 {
			return false
		}
	}
	if a.peek()|0x20 == 'e' {
		a.pos++
		if c := a.peek(); c == '+' || c == '-' {
			a.pos++
		}
		return a.digits() > 0
	}
	return true
}

func (a *answerReader) peek() byte {
	if a.pos == a.end && !a.fill() {
		return 0
	}
	return a.buf[a.pos]
}

func (a *answerReader) digits() (n int) {
	for c := a.peek(); c >= '0' && c <= '9'; c = a.peek() {
		a.pos++
		n++
	}
	return n
}
