package extproc

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// fields walks over the fields of an encoded message (Protocol Buffers,
// Encoding). Field values are slices of it.
type fields struct {
	rest []byte
	num  protowire.Number
	typ  protowire.Type
	// bytes is the value of a field of type bytes, number that of a varint. The
	// values of the other types are skipped.
	bytes  []byte
	number uint64
	// malformed: the walk ended before the message did.
	malformed bool
}

// next goes to the next field and reports whether there is one.
func (f *fields) next() bool {
	if len(f.rest) == 0 || f.malformed {
		return false
	}
	tag, n := protowire.ConsumeVarint(f.rest)
	if n < 0 || tag>>3 < uint64(protowire.MinValidNumber) || tag>>3 > uint64(protowire.MaxValidNumber) {
		f.malformed = true
		return false
	}
	f.num, f.typ, f.rest = protowire.Number(tag>>3), protowire.Type(tag&7), f.rest[n:]
	switch f.typ {
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(f.rest)
	case protowire.VarintType:
		f.number, n = protowire.ConsumeVarint(f.rest)
	default:
		n = protowire.ConsumeFieldValue(f.num, f.typ, f.rest)
	}
	if n < 0 {
		f.malformed = true
		return false
	}
	f.rest = f.rest[n:]
	return true
}

// isBytes tells whether the field is number n with a value of type bytes. A
// known number with another type is an unknown field.
func (f *fields) isBytes(n protowire.Number) bool {
	return f.num == n && f.typ == protowire.BytesType
}

func (f *fields) isVarint(n protowire.Number) bool {
	return f.num == n && f.typ == protowire.VarintType
}

// shape says what of a field of type bytes can be wrong: text must be UTF-8, a
// message must be well formed.
type shape uint8

const (
	shapeAny shape = iota // nothing to check
	shapeText
	shapeFlat // a message without text or messages in it
	shapeHeaders
	shapeHeaderMap
	shapeHeader
	shapeTrailers
	shapeMetadata
	shapeStructEntry // of a map from text to Struct
	shapeAnyEntry    // of a map from text to Any
	shapeAnyMessage
	shapeStruct
	shapeValueEntry
	shapeValue
	shapeList
	numShapes
)

// shapes has the fields of each shape, by number.
var shapes = [numShapes][7]shape{
	shapeHeaders:     {1: shapeHeaderMap, 2: shapeStructEntry},
	shapeHeaderMap:   {1: shapeHeader},
	shapeHeader:      {1: shapeText, 2: shapeText},
	shapeTrailers:    {1: shapeHeaderMap},
	shapeMetadata:    {1: shapeStructEntry, 2: shapeAnyEntry},
	shapeStructEntry: {1: shapeText, 2: shapeStruct},
	shapeAnyEntry:    {1: shapeText, 2: shapeAnyMessage},
	shapeAnyMessage:  {1: shapeText},
	shapeStruct:      {1: shapeValueEntry},
	shapeValueEntry:  {1: shapeText, 2: shapeValue},
	shapeValue:       {3: shapeText, 5: shapeStruct, 6: shapeList},
	shapeList:        {1: shapeValue},
}

// wellFormed tells whether b, of shape s, is something that the generated API
// would take. depth is how many messages enclose it.
func wellFormed(b []byte, s shape, depth int) bool {
	switch s {
	case shapeAny:
		return true
	case shapeText:
		return utf8.Valid(b)
	}
	if depth >= protowire.DefaultRecursionLimit {
		return false
	}
	f := fields{rest: b}
	for f.next() {
		if f.typ != protowire.BytesType || int(f.num) >= len(shapes[s]) {
			continue
		}
		if inner := shapes[s][f.num]; inner != shapeAny && !wellFormed(f.bytes, inner, depth+1) {
			return false
		}
	}
	return !f.malformed
}

// join merges two encodings of one message: one after the other is an encoding
// of their merger. It writes to neither.
func join(a []byte, b []byte) []byte {
	if len(a) == 0 {
		return b
	}
	return append(a[:len(a):len(a)], b...)
}

// entry returns the value of a map's entry: field number num of the well
// formed message m is the map, its values are messages. Of entries with the
// same key the last one counts.
func entry(m []byte, num protowire.Number, key string) (value []byte, found bool) {
	f := fields{rest: m}
	for f.next() {
		if !f.isBytes(num) {
			continue
		}
		var k, v []byte
		e := fields{rest: f.bytes}
		for e.next() {
			switch {
			case e.isBytes(1):
				k = e.bytes
			case e.isBytes(2):
				v = join(v, e.bytes)
			}
		}
		if string(k) == key {
			value, found = v, true
		}
	}
	return value, found
}

// valueKind is which member of the oneof of google.protobuf.Value is set.
type valueKind uint8

const (
	valueOther valueKind = iota
	valueText
	valueList
)

// valueOf reads a well formed google.protobuf.Value: a text, or the encoding
// of a list. Of several members the last one counts; the same one in a row is
// merged.
func valueOf(m []byte) (valueKind, []byte) {
	var kind valueKind
	var content []byte
	f := fields{rest: m}
	for f.next() {
		switch {
		case f.isBytes(3):
			kind, content = valueText, f.bytes
		case f.isBytes(6) && kind == valueList:
			content = join(content, f.bytes)
		case f.isBytes(6):
			kind, content = valueList, f.bytes
		case f.isVarint(1), f.num == 2 && f.typ == protowire.Fixed64Type, f.isVarint(4), f.isBytes(5):
			kind, content = valueOther, nil
		}
	}
	return kind, content
}

// textOf returns the text of a well formed google.protobuf.Value, nil if it
// has none.
func textOf(m []byte) []byte {
	if kind, text := valueOf(m); kind == valueText {
		return text
	}
	return nil
}
