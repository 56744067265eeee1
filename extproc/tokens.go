package extproc

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/warmpath/warmpath/kvindex"
)

// tokens consumes an array of token ids and returns them. Of anything else,
// also of one id that is none, it consumes nothing and returns nil: then the
// slower methods say what is wrong with it, if anything is.
//
// Long prompts are tens of thousands of ids, so this is one pass over them,
// with eight bytes at a time.
func (s *scanner) tokens() []kvindex.TokenID {
	if s.peek() != '[' {
		return nil
	}
	end := bytes.IndexByte(s.src[s.pos:], ']')
	if end < 0 {
		return nil
	}
	list := s.src[s.pos+1 : s.pos+end+1] // with the bracket at its end
	ids := s.room(bytes.Count(list, []byte{','}) + 1)
	for p := 0; ; {
		for isSpace(list[p]) {
			p++
		}
		id, n := number(list[p:])
		if n == 0 {
			return nil
		}
		ids = append(ids, id)
		p += n
		for isSpace(list[p]) {
			p++
		}
		switch list[p] {
		case ',':
			p++
		case ']':
			s.pos += end + 1
			return ids
		default:
			return nil
		}
	}
}

// room returns memory for n ids.
func (s *scanner) room(n int) []kvindex.TokenID {
	if s.ids == nil {
		return make([]kvindex.TokenID, 0, n)
	}
	if cap(*s.ids) < n {
		*s.ids = make([]kvindex.TokenID, 0, n+n/8)
	}
	return (*s.ids)[:0]
}

func isSpace(c byte) bool { return c <= ' ' && (c == ' ' || c == '\n' || c == '\r' || c == '\t') }

// number reads the token id that b begins with and returns its length in
// bytes, 0 if there is none. Something that is not a digit must follow in b.
func number(b []byte) (kvindex.TokenID, int) {
	if len(b) < 8 {
		return shortNumber(b)
	}
	// In digits each byte is the value of a digit; the lowest byte that is not
	// one has its highest bit set in stop.
	digits := binary.LittleEndian.Uint64(b) ^ '0'*everyByte
	stop := (digits + (0x80-10)*everyByte | digits) & highBits
	n := bits.TrailingZeros64(stop) / 8
	if n == 8 || n == 0 {
		return shortNumber(b)
	}
	if n > 1 && b[0] == '0' {
		return 0, 0
	}
	// The digits move up, zeros lead. Then neighbours are put together: digits
	// to pairs, pairs to fours, fours to the number.
	digits <<= (8 - n) * 8
	digits = digits*10 + digits>>8
	const pair = 0x000000FF000000FF
	v := (digits&pair*(100+1000000<<32) + digits>>16&pair*(1+10000<<32)) >> 32
	return kvindex.TokenID(v), n
}

// shortNumber is number, byte by byte.
func shortNumber(b []byte) (kvindex.TokenID, int) {
	n := 0
	for n < len(b) && b[n] >= '0' && b[n] <= '9' {
		n++
	}
	id, ok := tokenID(b[:n])
	if !ok || n > 1 && b[0] == '0' {
		return 0, 0
	}
	return id, n
}
