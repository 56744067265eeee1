package events

import (
	"encoding/binary"
	"errors"

	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// The canonical encoding of what a block holds besides tokens: a list of items,
// each a tag and its fields, in the engine's order.
const (
	// extraMultimodal: the item's identifier (length as uvarint, bytes), and
	// the offset of its placeholder from the block's start as varint.
	extraMultimodal = 1
	// extraBytes: prompt-embedding digest (length as uvarint, bytes).
	extraBytes = 2
	// extraToken: a token that is a string: its place in the block as uvarint,
	// then length and bytes.
	extraToken = 3
	// extraOpaque: the msgpack encoding of something not understood, so that
	// the block equals no plain one (length as uvarint, bytes).
	extraOpaque = 4
)

// extras reads the extra keys of every block, one list a block: the adapter's
// name (on each block), multimodal items, the salt (first block of a chain)
// and prompt embeddings, in that order. Bare strings do not say what they are:
// the adapter's name is known; another one in a chain's first block is the
// salt if it is the last, as images have come as pairs since vLLM 0.18; any
// other is an image.
func (d *Decoder) extras() error {
	e := &d.event
	if d.extraKeys == 0 && d.mmKeys == 0 && len(d.stringTokens) == 0 {
		return nil
	}
	keys, mms := list{raw: d.raw}, list{raw: d.raw}
	if err := keys.open(d.extraKeys); err != nil {
		return err
	}
	if err := mms.open(d.mmKeys); err != nil {
		return err
	}
	tokens := d.stringTokens
	for i := range e.Hashes {
		if p, ok := keys.next(); ok {
			end, err := d.blockKeys(p, i == 0 && !e.HasParent)
			if err != nil {
				return err
			}
			keys.p = end
		}
		if p, ok := mms.next(); ok {
			end, err := skip(d.raw, p)
			if err != nil {
				return err
			}
			if d.raw[p] != msgpcode.Nil && d.raw[p] != msgpcode.FixedArrayLow {
				e.extra = appendText(append(e.extra, extraOpaque), d.raw[p:end])
			}
			mms.p = end
		}
		for len(tokens) > 0 && tokens[0].index < (i+1)*e.BlockSize {
			e.extra = append(e.extra, extraToken)
			e.extra = binary.AppendUvarint(e.extra, uint64(tokens[0].index-i*e.BlockSize))
			e.extra = appendText(e.extra, tokens[0].text)
			tokens = tokens[1:]
		}
		e.extraEnd = append(e.extraEnd, len(e.extra))
	}
	return nil
}

// list walks the elements of an array in the payload. next gives the position
// of an element; the caller sets p behind it.
type list struct {
	raw  []byte
	p    int
	left int
}

// open starts on the array at p; 0 or nil there is an empty one.
func (l *list) open(p int) error {
	if p == 0 {
		return nil
	}
	switch c := l.raw[p]; {
	case c == msgpcode.Nil:
	case msgpcode.IsFixedArray(c):
		l.p, l.left = p+1, int(c&msgpcode.FixedArrayMask)
	case isArray(c):
		size, n, err := sized(l.raw, p)
		if err != nil {
			return err
		}
		l.p, l.left = p+int(size), int(n)
	default:
		return errors.New("extra keys are no list")
	}
	return nil
}

func (l *list) next() (p int, ok bool) {
	if l.left == 0 || l.p >= len(l.raw) {
		return 0, false
	}
	l.left--
	return l.p, true
}

// blockKeys reads one block's entry at p and returns its end. root is true for
// the first block of a chain.
func (d *Decoder) blockKeys(p int, root bool) (end int, err error) {
	raw, e := d.raw, &d.event
	if raw[p] == msgpcode.Nil {
		return p + 1, nil
	}
	if end, err = skip(raw, p); err != nil {
		return p, err
	}
	items := list{raw: raw}
	if !isArray(raw[p]) {
		items.p, items.left = p, 1 // one key without its list
	} else if err := items.open(p); err != nil {
		return p, err
	}
	var bare []byte
	named := e.Lora == "" // the adapter's name has been passed; a salt may equal it
	for {
		at, ok := items.next()
		if !ok {
			break
		}
		if items.p, err = skip(raw, at); err != nil {
			return p, err
		}
		if !isText(raw[at]) {
			e.extra = appendItem(e.extra, raw[at:items.p])
			continue
		}
		b, _, err := text(raw, at)
		switch {
		case err != nil:
			return p, err
		case msgpcode.IsBin(raw[at]):
			e.extra = appendText(append(e.extra, extraBytes), b)
		case !named && string(b) == e.Lora:
			named = true
		default:
			if bare != nil {
				e.extra = appendMultimodal(e.extra, bare, 0)
			}
			bare = b
		}
	}
	switch {
	case bare == nil:
	case root:
		e.Salt = d.intern(bare)
	default:
		e.extra = appendMultimodal(e.extra, bare, 0)
	}
	return end, nil
}

// appendItem appends a multimodal item [identifier, offset], or whatever else
// it is.
func appendItem(dst, value []byte) []byte {
	if value[0] == msgpcode.FixedArrayLow|2 {
		if id, p, err := text(value, 1); err == nil {
			if off, _, _, err := integer(value, p); err == nil {
				return appendMultimodal(dst, id, int64(off))
			}
		}
	}
	return appendText(append(dst, extraOpaque), value)
}

func appendMultimodal(dst, id []byte, offset int64) []byte {
	return binary.AppendVarint(appendText(append(dst, extraMultimodal), id), offset)
}

func appendText(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}
