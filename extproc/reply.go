package extproc

import (
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/warmpath/warmpath/routing"
)

// All replies are built in this file, and here alone, as encodings of
// ProcessingResponse (Envoy API, envoy.service.ext_proc.v3). The rules it keeps:
//
//   - Header values go into raw_value; Envoy ignores value and would set the
//     header empty.
//   - Headers are overwritten, never appended to.
//   - content-length is never set, because no reply changes a body: Envoy does
//     not check it then, and a wrong one lets one client's bytes become
//     another's request on the upstream connection.
//   - Every reply of the request direction removes or overwrites what is in
//     guarded.

// The members of ProcessingResponse, by their field's number.
const (
	toRequestHeaders   protowire.Number = 1
	toResponseHeaders  protowire.Number = 2
	toRequestBody      protowire.Number = 3
	toResponseBody     protowire.Number = 4
	toRequestTrailers  protowire.Number = 5
	toResponseTrailers protowire.Number = 6
	toClient           protowire.Number = 7
	dynamicMetadata    protowire.Number = 8
	modeOverride       protowire.Number = 9
)

// maxChunk is the size of the pieces in which a body is handed back in mode
// FULL_DUPLEX_STREAMED; Envoy wants them below 64 KiB.
const maxChunk = 62000

// The replies that are always the same.
var (
	replyStrip            = static(encodeStrip(toRequestHeaders, nil))
	replyRequestBody      = static(encodeCommon(toRequestBody))
	replyResponseHeaders  = static(encodeCommon(toResponseHeaders))
	replyResponseBody     = static(encodeCommon(toResponseBody))
	replyRequestTrailers  = static(encodeEmpty(toRequestTrailers))
	replyResponseTrailers = static(encodeEmpty(toResponseTrailers))
)

// removeGuarded is the part of a HeaderMutation that removes what is in
// guarded.
var removeGuarded = func() []byte {
	var e encoder
	for _, name := range guarded {
		e.text(2, name)
	}
	return e.buf
}()

// static returns a reply that is sent any number of times: gRPC does not take
// back the memory of a SliceBuffer.
func static(b []byte) mem.BufferSlice { return mem.BufferSlice{mem.SliceBuffer(b)} }

// replySize is the room for a reply at first. Nearly all fit.
const replySize = 1024 + 1

// newReply returns an encoder whose memory comes from the pool of gRPC.
func newReply() (encoder, *[]byte) {
	b := mem.DefaultBufferPool().Get(replySize)
	return encoder{(*b)[:0]}, b
}

// finish makes a reply of what was encoded into the memory of [newReply]. gRPC
// puts it back when it is sent.
func finish(e encoder, from *[]byte) mem.Buffer {
	*from = e.buf
	return mem.NewBuffer(from, mem.DefaultBufferPool())
}

// destination is a decision as the proxy is told.
type destination struct {
	// first is the chosen endpoint, all the list with its fallbacks.
	first, all string
	// reroute has Envoy look for the request's route again.
	reroute bool
}

func destinationOf(t routing.Target) destination {
	d := destination{first: t.Endpoints[0].Address}
	if len(t.Endpoints) == 1 {
		d.all = d.first
		return d
	}
	size := 0
	for _, e := range t.Endpoints {
		size += len(e.Address) + 1
	}
	var b strings.Builder
	b.Grow(size)
	for i, e := range t.Endpoints {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(e.Address)
	}
	d.all = b.String()
	return d
}

// setHeader has a HeaderMutation overwrite a header.
func (e *encoder) setHeader(name, value string) {
	option := e.open(1)
	h := e.open(1)
	e.text(1, name)
	e.text(3, value)
	e.close(h)
	e.varint(3, uint64(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
	e.close(option)
}

// strip has a HeaderMutation remove the guarded headers and forged.
func (e *encoder) strip(forged []string) {
	e.buf = append(e.buf, removeGuarded...)
	for _, name := range forged {
		e.text(2, name)
	}
}

// mutation are the messages around a HeaderMutation that is being written:
// HeadersResponse or BodyResponse, CommonResponse, and the mutation itself.
type mutation [3]int

func (e *encoder) openMutation(to protowire.Number) mutation {
	return mutation{e.open(to), e.open(1), e.open(2)}
}

func (e *encoder) closeMutation(m mutation) {
	e.close(m[2])
	e.close(m[1])
	e.close(m[0])
}

// encodeEmpty returns a reply without content.
func encodeEmpty(to protowire.Number) []byte {
	var e encoder
	e.close(e.open(to))
	return e.buf
}

// encodeCommon returns a reply that changes nothing: HeadersResponse or
// BodyResponse with an empty CommonResponse.
func encodeCommon(to protowire.Number) []byte {
	var e encoder
	m := e.open(to)
	e.close(e.open(1))
	e.close(m)
	return e.buf
}

// encodeStrip returns a reply that removes the guarded headers and forged.
func encodeStrip(to protowire.Number, forged []string) []byte {
	var e encoder
	m := e.openMutation(to)
	e.strip(forged)
	e.closeMutation(m)
	return e.buf
}

// steer strips and then sends the request to d. Envoy removes before it sets.
// withMetadata says the same to clusters that read it from dynamic metadata.
func steer(to protowire.Number, d destination, forged []string, withMetadata bool) mem.Buffer {
	e, from := newReply()
	m := e.openMutation(to)
	e.setHeader(headerDestination, d.all)
	e.setHeader(headerTargetPod, d.first)
	e.strip(forged)
	if d.reroute {
		// Beside the mutation: without one in the same reply Envoy ignores it.
		e.close(m[2])
		e.varint(5, 1)
		e.close(m[1])
		e.close(m[0])
	} else {
		e.closeMutation(m)
	}
	if withMetadata {
		e.metadata(d)
	}
	return finish(e, from)
}

// steerTrailers is a reply to trailers that steers by metadata alone.
func steerTrailers(d destination) mem.Buffer {
	e, from := newReply()
	e.close(e.open(toRequestTrailers))
	e.metadata(d)
	return finish(e, from)
}

// metadata is the google.protobuf.Struct of the dynamic metadata: the
// namespace namespaceLB, a Struct, with the destination in it.
func (e *encoder) metadata(d destination) {
	all := e.open(dynamicMetadata)
	space := e.open(1)
	e.text(1, namespaceLB)
	value := e.open(2)
	lb := e.open(5)
	pair := e.open(1)
	e.text(1, headerDestination)
	list := e.open(2)
	e.text(3, d.all)
	for _, at := range [...]int{list, pair, lb, value, space, all} {
		e.close(at)
	}
}

// chunk is a piece of a body in mode FULL_DUPLEX_STREAMED. It keeps body.
func chunk(to protowire.Number, body []byte, last bool) mem.BufferSlice {
	// Around the body, from the inside out: StreamedBodyResponse, BodyMutation,
	// CommonResponse and BodyResponse.
	end := []byte(nil)
	if last {
		end = protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 1)
	}
	begin := make([]byte, 0, 32)
	sizes := [...]int{0, 0, 0, 0, len(body)}
	for i := len(sizes) - 2; i >= 0; i-- {
		sizes[i] = 1 + protowire.SizeBytes(sizes[i+1])
		if i == len(sizes)-2 {
			sizes[i] += len(end)
		}
	}
	for i, num := range [...]protowire.Number{to, 1, 3, 3, 1} {
		begin = protowire.AppendTag(begin, num, protowire.BytesType)
		begin = protowire.AppendVarint(begin, uint64(sizes[i]))
	}
	return mem.BufferSlice{mem.SliceBuffer(begin), mem.SliceBuffer(body), mem.SliceBuffer(end)}
}

// requestChunks appends the pieces of body to dst, at least one if last, which
// says that nothing follows the body.
func requestChunks(dst []mem.BufferSlice, body []byte, last bool) []mem.BufferSlice {
	for len(body) > maxChunk {
		dst = append(dst, chunk(toRequestBody, body[:maxChunk:maxChunk], false))
		body = body[maxChunk:]
	}
	if len(body) > 0 || last {
		dst = append(dst, chunk(toRequestBody, body, last))
	}
	return dst
}

// outcome is what a client is told about its answer.
type outcome struct {
	strategy, reason string
	// tokens is where the prompt's tokens came from.
	tokens string
	// endpoint is the one that answered.
	endpoint string
	// matched is the number of prompt tokens it was expected to hold, -1 if
	// another endpoint answered than the one this was predicted for.
	matched int
}

// override is a ProcessingMode to ask of Envoy.
type override struct {
	// asked: there is something to ask.
	asked bool
	// An override replaces both body modes, so the request's is repeated.
	requestBody, responseBody modev3.ProcessingMode_BodySendMode
}

// keepOpen asks Envoy for nothing more of the answer, except to keep the gRPC
// stream open until the HTTP stream ends: trailers are awaited, and an answer
// that has none ends the stream when it ends. body is what to send of the
// answer's body.
func keepOpen(request, body modev3.ProcessingMode_BodySendMode) override {
	return override{asked: true, requestBody: request, responseBody: body}
}

// responseHeaders says what the outcome was, in our headers and in AIBrix's,
// where they are not nil, and what the conformance suite is told, if that is not
// empty.
func responseHeaders(o *outcome, named *legacy, tested string, mode override) mem.Buffer {
	e, from := newReply()
	if o == nil && named == nil && tested == "" {
		m := e.open(toResponseHeaders)
		e.close(e.open(1))
		e.close(m)
	} else {
		m := e.openMutation(toResponseHeaders)
		if tested != "" {
			e.setHeader(headerTestServed, tested)
		}
		if named != nil {
			e.legacy(named)
		}
		if o != nil {
			e.outcome(o)
		}
		e.closeMutation(m)
	}
	if mode.asked {
		m := e.open(modeOverride)
		e.varint(3, uint64(mode.requestBody))
		e.varint(4, uint64(mode.responseBody))
		e.varint(6, uint64(modev3.ProcessingMode_SEND))
		e.close(m)
	}
	return finish(e, from)
}

func (e *encoder) outcome(o *outcome) {
	e.setHeader(headerEndpoint, o.endpoint)
	e.setHeader(headerUsedStrategy, o.strategy)
	e.setHeader(headerReason, o.reason)
	e.setHeader(headerTokens, o.tokens)
	if o.matched < 0 {
		e.text(2, headerMatchedTokens)
	} else {
		e.setHeader(headerMatchedTokens, strconv.Itoa(o.matched))
	}
}

// refuse answers the client in place of an engine. Envoy shows the name of the
// reason as the response code details.
func refuse(err *routing.Error, withReason bool) mem.Buffer {
	e, from := newReply()
	m := e.open(toClient)
	status := e.open(1)
	e.varint(1, uint64(statusOf(err.Reason)))
	e.close(status)
	headers := e.open(2)
	e.setHeader("content-type", "application/json")
	if withReason {
		e.setHeader(headerReason, err.Reason.String())
	}
	if err.RetryAfter > 0 {
		// RFC 9110, section 10.2.3: seconds, and not too early.
		e.setHeader("retry-after", strconv.Itoa(int((err.RetryAfter+time.Second-1)/time.Second)))
	}
	e.close(headers)
	e.text(3, string(encodeError(err)))
	e.text(5, err.Reason.String())
	e.close(m)
	return finish(e, from)
}
