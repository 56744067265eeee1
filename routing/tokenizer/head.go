package tokenizer

import (
	"unicode"
	"unicode/utf8"
)

// headBytes is how much of a continuation's beginning is kept, to tell how
// much text two continuations share.
const headBytes = 96

// head is the beginning of a continuation.
type head struct {
	text []byte
	// space is the length of the white space before text.
	space int
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
