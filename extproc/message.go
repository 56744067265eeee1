package extproc

import (
	"bytes"
	"errors"
	"unicode/utf8"

	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/warmpath/warmpath/kvindex"
)

// message is what we need of a message from Envoy. Its slices borrow the
// encoding that it was read from.
type message struct {
	kind kind
	// observed: Envoy takes no reply.
	observed bool
	// modesKnown: the message tells the body modes.
	modesKnown                bool
	requestMode, responseMode modev3.ProcessingMode_BodySendMode
	// headers and eos are those of request_headers and response_headers, body
	// and eos those of request_body and response_body.
	headers []header
	body    []byte
	eos     bool
	// ids is memory for the token ids in the body of a request, which lasts as
	// long as the body; nil if there is none.
	ids *[]kvindex.TokenID
	// subset restricts the candidates of a request to these ip:port: nil if
	// nothing does, not nil but empty if it allows none. It borrows nothing.
	subset []string
	// served is the ip:port that answered as the proxy's metadata says, upstream
	// as the attribute upstream.address says; empty if they do not.
	served, upstream []byte
}

// header is one header field.
type header struct{ name, value []byte }

// errMalformed: a message that breaks its encoding.
var errMalformed = errors.New("the message is not a well formed ProcessingRequest")

// The kinds of messages by their field's number in ProcessingRequest.
var kindOfField = [...]kind{
	2: kindRequestHeaders, 3: kindResponseHeaders, 4: kindRequestBody, 5: kindResponseBody,
	6: kindRequestTrailers, 7: kindResponseTrailers,
}

// Other field numbers of ProcessingRequest.
const (
	fieldMetadata           protowire.Number = 8
	fieldAttributes         protowire.Number = 9
	fieldObservability      protowire.Number = 10
	fieldProtocolConfig     protowire.Number = 11
	fieldFlowControl        protowire.Number = 12
	fieldClientWindowUpdate protowire.Number = 13
)

// decode reads a ProcessingRequest (Envoy API, envoy.service.ext_proc.v3) as
// the generated API would: unknown fields are skipped, of a field that occurs
// twice the last one counts, messages that occur twice are merged, and what
// the generated API refuses is refused here.
func (m *message) decode(b []byte) error {
	*m = message{kind: kindUnknown, headers: m.headers[:0]}
	var metadata []byte
	ok := true
	f := fields{rest: b}
	for ok && f.next() {
		switch {
		case f.isVarint(fieldObservability):
			m.observed = f.number != 0
		case f.typ != protowire.BytesType:
		case f.num >= 2 && int(f.num) < len(kindOfField):
			ok = m.content(kindOfField[f.num], f.bytes)
		case f.num == fieldMetadata:
			metadata = join(metadata, f.bytes)
			ok = wellFormed(f.bytes, shapeMetadata, 1)
		case f.num == fieldAttributes:
			ok = wellFormed(f.bytes, shapeStructEntry, 1)
		case f.num == fieldProtocolConfig:
			ok = m.protocolConfig(f.bytes)
		case f.num == fieldFlowControl, f.num == fieldClientWindowUpdate:
			ok = wellFormed(f.bytes, shapeFlat, 1)
		}
	}
	if !ok || f.malformed {
		return errMalformed
	}
	switch m.kind {
	case kindRequestHeaders:
		m.subset = subset(metadata)
	case kindResponseHeaders:
		m.served = textIn(metadata, 1, namespaceLB, keyServed)
		m.upstream = textIn(b, fieldAttributes, attributeNamespace, attributeUpstream)
	}
	return nil
}

// content reads a member of the oneof request. A member takes the place of
// another one, and is merged with itself.
func (m *message) content(k kind, b []byte) bool {
	if m.kind != k {
		m.kind, m.headers, m.body, m.eos = k, m.headers[:0], nil, false
	}
	switch k {
	case kindRequestHeaders, kindResponseHeaders:
		return m.readHeaders(b)
	case kindRequestBody, kindResponseBody:
		f := fields{rest: b}
		for f.next() {
			switch {
			case f.isBytes(1):
				m.body = f.bytes
			case f.isVarint(2):
				m.eos = f.number != 0
			}
		}
		return !f.malformed
	}
	return wellFormed(b, shapeTrailers, 1)
}

func (m *message) readHeaders(b []byte) bool {
	f := fields{rest: b}
	for f.next() {
		switch {
		case f.isBytes(1):
			list := fields{rest: f.bytes}
			for list.next() {
				if list.isBytes(1) && !m.readHeader(list.bytes) {
					return false
				}
			}
			if list.malformed {
				return false
			}
		case f.isBytes(2):
			if !wellFormed(f.bytes, shapeStructEntry, 2) {
				return false
			}
		case f.isVarint(3):
			m.eos = f.number != 0
		}
	}
	return !f.malformed
}

// readHeader reads a header. Envoy sends the value as raw bytes, older
// versions as text.
func (m *message) readHeader(b []byte) bool {
	var name, text, raw []byte
	f := fields{rest: b}
	for f.next() {
		switch {
		case f.isBytes(1):
			name = f.bytes
		case f.isBytes(2):
			text = f.bytes
		case f.isBytes(3):
			raw = f.bytes
			continue
		default:
			continue
		}
		if !utf8.Valid(f.bytes) {
			return false
		}
	}
	if len(raw) == 0 {
		raw = text
	}
	m.headers = append(m.headers, header{name, raw})
	return !f.malformed
}

func (m *message) protocolConfig(b []byte) bool {
	m.modesKnown = true
	f := fields{rest: b}
	for f.next() {
		switch {
		case f.isVarint(1):
			m.requestMode = modev3.ProcessingMode_BodySendMode(f.number)
		case f.isVarint(2):
			m.responseMode = modev3.ProcessingMode_BodySendMode(f.number)
		}
	}
	return !f.malformed
}

// textIn returns the text at key of the google.protobuf.Struct at space of the
// map in field number num of m.
func textIn(m []byte, num protowire.Number, space, key string) []byte {
	s, _ := entry(m, num, space)
	v, _ := entry(s, 1, key)
	return textOf(v)
}

// subset returns the endpoints to which the metadata of a request, an encoding
// of envoy.config.core.v3.Metadata, restricts it: nil if it does not, and not
// nil but empty if it allows none. A key that is set to something unreadable
// allows none: the protocol says that a set key must be obeyed.
func subset(metadata []byte) []string {
	hint, _ := entry(metadata, 1, namespaceSubset)
	v, ok := entry(hint, 1, keySubset)
	if !ok {
		return nil
	}
	allowed := []string{}
	add := func(address []byte) {
		if a := bytes.TrimSpace(address); len(a) > 0 {
			allowed = append(allowed, string(a))
		}
	}
	switch kind, content := valueOf(v); kind {
	case valueList:
		f := fields{rest: content}
		for f.next() {
			if f.isBytes(1) {
				add(textOf(f.bytes))
			}
		}
	case valueText:
		for s := range bytes.SplitSeq(content, []byte{','}) {
			add(s)
		}
	}
	return allowed
}

// frame is a message as gRPC hands it to and takes it from its codec: encoded.
type frame struct {
	data mem.BufferSlice
}

// codec leaves frames to those who receive or send them, so that a message is
// neither turned into a tree of objects nor made from one. Messages of other
// services are left to the codec that it embeds.
type codec struct{ encoding.CodecV2 }

// Unmarshal implements the interface of gRPC. A frame gets a reference of its
// own.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	data.Ref()
	f.data = data
	return nil
}

// Marshal implements the interface of gRPC. The reference that a frame holds
// passes to gRPC.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	data := f.data
	f.data = nil
	return data, nil
}

// mailbox is the memory in which one stream receives and sends messages, one
// at a time.
type mailbox struct {
	received, sent frame
	message        message
	// memories lends the memory of what was received, which is nil where the
	// message borrows gRPC's.
	memories *memories
	memory   *memory
}

// open reads the message that has been received. It is valid until close,
// except for the body of a request, which is valid until the memory is given
// back: what is read of a request borrows it, for longer than gRPC's memory,
// which comes in frames with room for others, should be held.
func (x *mailbox) open() error {
	data := x.received.data
	if len(data) == 1 {
		if err := x.message.decode(data[0].ReadOnlyData()); err != nil {
			return err
		}
		if x.message.kind == kindRequestBody {
			x.memory = x.memories.get(len(x.message.body))
			copy(x.memory.body, x.message.body)
			x.message.body = x.memory.body
			x.message.ids = &x.memory.ids
		}
		return nil
	}
	x.memory = x.memories.get(data.Len())
	x.memory.fill(data)
	x.free()
	if err := x.message.decode(x.memory.body); err != nil {
		return err
	}
	if x.message.kind == kindRequestBody {
		x.message.ids = &x.memory.ids
	}
	return nil
}

// close gives back what the message borrows, except for the body of a request.
func (x *mailbox) close() {
	x.free()
	if x.message.kind != kindRequestBody {
		x.recycle()
	}
}

// free gives gRPC its memory back.
func (x *mailbox) free() {
	x.received.data.Free()
	x.received.data = nil
}

// recycle gives back the memory of a request's body, which nothing may refer
// to any more.
func (x *mailbox) recycle() {
	if x.memory != nil {
		x.memories.put(x.memory)
	}
	x.abandon()
}

// abandon leaves that memory to those who still refer to it.
func (x *mailbox) abandon() {
	x.memory, x.message.body, x.message.ids = nil, nil, nil
}
