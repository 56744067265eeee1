package extproc

import "google.golang.org/protobuf/encoding/protowire"

// encoder appends the encoding of a message to buf (Protocol Buffers,
// Encoding). Field numbers are below 16, so that a tag is one byte.
type encoder struct{ buf []byte }

func (e *encoder) tag(num protowire.Number, typ protowire.Type) {
	e.buf = append(e.buf, byte(num)<<3|byte(typ))
}

func (e *encoder) varint(num protowire.Number, v uint64) {
	e.tag(num, protowire.VarintType)
	e.buf = protowire.AppendVarint(e.buf, v)
}

func (e *encoder) text(num protowire.Number, v string) {
	e.tag(num, protowire.BytesType)
	e.buf = protowire.AppendString(e.buf, v)
}

// open begins a message in a field and returns where its content begins, for
// [encoder.close].
func (e *encoder) open(num protowire.Number) int {
	e.tag(num, protowire.BytesType)
	e.buf = append(e.buf, 0)
	return len(e.buf)
}

// close ends a message: a length of more than one byte moves its content.
func (e *encoder) close(at int) {
	n := len(e.buf) - at
	if extra := protowire.SizeVarint(uint64(n)) - 1; extra > 0 {
		for range extra {
			e.buf = append(e.buf, 0)
		}
		copy(e.buf[at+extra:], e.buf[at:at+n])
	}
	protowire.AppendVarint(e.buf[at-1:at-1], uint64(n))
}
