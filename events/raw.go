package events

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/vmihailenco/msgpack/v5/msgpcode"

	"github.com/warmpath/warmpath/kvindex"
)

// placeholderToken stands for a token that is no number. The text is mixed
// into the block's content, so that the block never equals one of numbers.
const placeholderToken kvindex.TokenID = math.MaxUint32

func isMap(c byte) bool {
	return msgpcode.IsFixedMap(c) || c == msgpcode.Map16 || c == msgpcode.Map32
}

func isArray(c byte) bool {
	return msgpcode.IsFixedArray(c) || c == msgpcode.Array16 || c == msgpcode.Array32
}

func isText(c byte) bool {
	return msgpcode.IsString(c) || msgpcode.IsBin(c)
}

func isInt(c byte) bool {
	return msgpcode.IsFixedNum(c) || c >= msgpcode.Uint8 && c <= msgpcode.Int64
}

// integer reads the integer at p as its 64-bit two's complement pattern.
// negative tells a value below zero from one of 2^63 and more.
func integer(raw []byte, p int) (v uint64, negative bool, next int, err error) {
	if p >= len(raw) {
		return 0, false, p, io.ErrUnexpectedEOF
	}
	c := raw[p]
	if msgpcode.IsFixedNum(c) {
		return uint64(int64(int8(c))), int8(c) < 0, p + 1, nil
	}
	if c < msgpcode.Uint8 || c > msgpcode.Int64 {
		return 0, false, p, fmt.Errorf("code %#x is no integer", c)
	}
	// cc, cd, ce, cf and d0, d1, d2, d3 have 1, 2, 4 and 8 bytes.
	size := 1 << (c & 3)
	p++
	if p+size > len(raw) {
		return 0, false, p, io.ErrUnexpectedEOF
	}
	b := raw[p : p+size]
	switch size {
	case 1:
		v = uint64(b[0])
	case 2:
		v = uint64(binary.BigEndian.Uint16(b))
	case 4:
		v = uint64(binary.BigEndian.Uint32(b))
	default:
		v = binary.BigEndian.Uint64(b)
	}
	if c >= msgpcode.Int8 {
		shift := 64 - 8*size
		s := int64(v<<shift) >> shift
		v, negative = uint64(s), s < 0
	}
	return v, negative, p + size, nil
}

// text reads the string or byte string at p as a view.
func text(raw []byte, p int) (b []byte, next int, err error) {
	if p >= len(raw) {
		return nil, p, io.ErrUnexpectedEOF
	}
	head, n := 0, uint64(0)
	switch c := raw[p]; {
	case msgpcode.IsFixedString(c):
		head, n = 1, uint64(c&msgpcode.FixedStrMask)
	case c == msgpcode.Str8 || c == msgpcode.Bin8:
		head, n = 2, bigEndian(raw, p+1, 1)
	case c == msgpcode.Str16 || c == msgpcode.Bin16:
		head, n = 3, bigEndian(raw, p+1, 2)
	case c == msgpcode.Str32 || c == msgpcode.Bin32:
		head, n = 5, bigEndian(raw, p+1, 4)
	default:
		return nil, p, fmt.Errorf("code %#x is no string", c)
	}
	p += head
	if p > len(raw) || n > uint64(len(raw)-p) {
		return nil, p, io.ErrUnexpectedEOF
	}
	return raw[p : p+int(n)], p + int(n), nil
}

// bigEndian reads the length of n bytes at p; what is cut off counts as more
// than there can be.
func bigEndian(raw []byte, p, n int) (v uint64) {
	if p+n > len(raw) {
		return math.MaxUint32
	}
	for _, b := range raw[p : p+n] {
		v = v<<8 | uint64(b)
	}
	return v
}

// hash reads a block hash at p: an integer, or a digest of which the last 8
// bytes count.
func hash(raw []byte, p int) (kvindex.EngineHash, int, error) {
	// Nearly all hashes are uint64 or int64.
	if p+9 <= len(raw) && (raw[p] == msgpcode.Uint64 || raw[p] == msgpcode.Int64) {
		return kvindex.EngineHash(binary.BigEndian.Uint64(raw[p+1:])), p + 9, nil
	}
	if p < len(raw) && isText(raw[p]) {
		b, next, err := text(raw, p)
		if err != nil {
			return 0, p, err
		}
		if len(b) < 8 {
			return 0, p, fmt.Errorf("hash of %d bytes", len(b))
		}
		return kvindex.EngineHash(binary.BigEndian.Uint64(b[len(b)-8:])), next, nil
	}
	v, _, next, err := integer(raw, p)
	return kvindex.EngineHash(v), next, err
}

// rareToken reads a token id that is not one of the usual encodings: any
// integer, SGLang's bigram [t, next], or a string. index is its place.
func (d *Decoder) rareToken(p, index int) (kvindex.TokenID, int, error) {
	if p >= len(d.raw) {
		return 0, p, io.ErrUnexpectedEOF
	}
	end := p
	switch c := d.raw[p]; {
	case c == msgpcode.FixedArrayLow|2:
		var err error
		if end, err = skip(d.raw, p); err != nil {
			return 0, p, err
		}
		p++
	case isText(c):
		b, next, err := text(d.raw, p)
		d.stringTokens = append(d.stringTokens, stringToken{index, b})
		return placeholderToken, next, err
	}
	v, negative, next, err := integer(d.raw, p)
	if err != nil {
		return 0, p, err
	}
	if negative || v > math.MaxUint32 {
		return 0, p, errors.New("token id is outside 0 to 2^32-1")
	}
	return kvindex.TokenID(v), max(next, end), nil
}

// skip returns the end of the value at p. It does not recurse, so that nesting
// costs no stack, and it never looks behind the payload.
func skip(raw []byte, p int) (int, error) {
	for pending := uint64(1); pending > 0; pending-- {
		if p >= len(raw) {
			return p, io.ErrUnexpectedEOF
		}
		c := raw[p]
		size, nested := uint64(1), uint64(0)
		switch {
		case msgpcode.IsFixedNum(c), c == msgpcode.Nil, c == msgpcode.False, c == msgpcode.True:
		case msgpcode.IsFixedMap(c):
			nested = 2 * uint64(c&msgpcode.FixedMapMask)
		case msgpcode.IsFixedArray(c):
			nested = uint64(c & msgpcode.FixedArrayMask)
		case msgpcode.IsFixedString(c):
			size = 1 + uint64(c&msgpcode.FixedStrMask)
		default:
			var err error
			if size, nested, err = sized(raw, p); err != nil {
				return p, err
			}
		}
		if size > uint64(len(raw)-p) || nested > uint64(len(raw)-p) {
			return p, io.ErrUnexpectedEOF
		}
		p += int(size)
		pending += nested
	}
	return p, nil
}

// sized returns the bytes of a value whose code is not a fix form, without the
// values nested in it, and their number.
func sized(raw []byte, p int) (size, nested uint64, err error) {
	switch c := raw[p]; c {
	case msgpcode.Uint8, msgpcode.Int8:
		return 2, 0, nil
	case msgpcode.Uint16, msgpcode.Int16, msgpcode.FixExt1:
		return 3, 0, nil
	case msgpcode.FixExt2:
		return 4, 0, nil
	case msgpcode.Uint32, msgpcode.Int32, msgpcode.Float:
		return 5, 0, nil
	case msgpcode.FixExt4:
		return 6, 0, nil
	case msgpcode.Uint64, msgpcode.Int64, msgpcode.Double:
		return 9, 0, nil
	case msgpcode.FixExt8:
		return 10, 0, nil
	case msgpcode.FixExt16:
		return 18, 0, nil
	case msgpcode.Str8, msgpcode.Bin8:
		return 2 + bigEndian(raw, p+1, 1), 0, nil
	case msgpcode.Str16, msgpcode.Bin16:
		return 3 + bigEndian(raw, p+1, 2), 0, nil
	case msgpcode.Str32, msgpcode.Bin32:
		return 5 + bigEndian(raw, p+1, 4), 0, nil
	case msgpcode.Ext8:
		return 3 + bigEndian(raw, p+1, 1), 0, nil
	case msgpcode.Ext16:
		return 4 + bigEndian(raw, p+1, 2), 0, nil
	case msgpcode.Ext32:
		return 6 + bigEndian(raw, p+1, 4), 0, nil
	case msgpcode.Array16:
		return 3, bigEndian(raw, p+1, 2), nil
	case msgpcode.Array32:
		return 5, bigEndian(raw, p+1, 4), nil
	case msgpcode.Map16:
		return 3, 2 * bigEndian(raw, p+1, 2), nil
	case msgpcode.Map32:
		return 5, 2 * bigEndian(raw, p+1, 4), nil
	default:
		return 0, 0, fmt.Errorf("code %#x is unused in msgpack", c)
	}
}
