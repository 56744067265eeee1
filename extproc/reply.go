package extproc

import (
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/warmpath/warmpath/routing"
)

// All replies are built in this file, and here alone. The rules it keeps:
//
//   - Header values go into raw_value; Envoy ignores value and would set the
//     header empty.
//   - Headers are overwritten, never appended to.
//   - content-length is never set, because no reply changes a body: Envoy does
//     not check it then, and a wrong one lets one client's bytes become
//     another's request on the upstream connection.
//   - Every reply of the request direction removes or overwrites what is in
//     guarded.

// maxChunk is the size of the pieces in which a body is handed back in mode
// FULL_DUPLEX_STREAMED; Envoy wants them below 64 KiB.
const maxChunk = 62000

// destination is a decision as the proxy is told.
type destination struct {
	// first is the chosen endpoint, all the list with its fallbacks.
	first, all string
}

func destinationOf(t routing.Target) destination {
	d := destination{first: t.Endpoints[0].Address}
	if len(t.Endpoints) == 1 {
		d.all = d.first
		return d
	}
	var b strings.Builder
	for i, e := range t.Endpoints {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(e.Address)
	}
	d.all = b.String()
	return d
}

// setHeader overwrites a header.
func setHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// strip removes the guarded headers and forged.
func strip(forged []string) *extprocv3.HeaderMutation {
	m := &extprocv3.HeaderMutation{RemoveHeaders: guarded}
	if len(forged) > 0 {
		m.RemoveHeaders = append(append([]string(nil), guarded...), forged...)
	}
	return m
}

// steer strips and then sends the request to d. Envoy removes before it sets.
func steer(d destination, forged []string) *extprocv3.HeaderMutation {
	m := strip(forged)
	m.SetHeaders = []*corev3.HeaderValueOption{setHeader(headerDestination, d.all), setHeader(headerTargetPod, d.first)}
	return m
}

// steerMetadata is the same as [steer] for clusters that read it from dynamic
// metadata.
func steerMetadata(d destination) *structpb.Struct {
	lb := &structpb.Struct{Fields: map[string]*structpb.Value{headerDestination: structpb.NewStringValue(d.all)}}
	return &structpb.Struct{Fields: map[string]*structpb.Value{namespaceLB: structpb.NewStructValue(lb)}}
}

func requestHeaders(m *extprocv3.HeaderMutation) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{HeaderMutation: m}},
	}}
}

func requestBody(m *extprocv3.HeaderMutation) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
		RequestBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{HeaderMutation: m}},
	}}
}

// chunk is a piece of a body in mode FULL_DUPLEX_STREAMED.
func chunk(body []byte, last bool) *extprocv3.BodyResponse {
	return &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
		Mutation: &extprocv3.BodyMutation_StreamedResponse{
			StreamedResponse: &extprocv3.StreamedBodyResponse{Body: body, EndOfStream: last},
		},
	}}}
}

func requestChunk(body []byte, last bool) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: chunk(body, last)}}
}

// requestChunks appends the pieces of body to dst, at least one if last, which
// says that nothing follows the body.
func requestChunks(dst []*extprocv3.ProcessingResponse, body []byte, last bool) []*extprocv3.ProcessingResponse {
	for len(body) > maxChunk {
		dst = append(dst, requestChunk(body[:maxChunk:maxChunk], false))
		body = body[maxChunk:]
	}
	if len(body) > 0 || last {
		dst = append(dst, requestChunk(body, last))
	}
	return dst
}

func requestTrailers() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{
		RequestTrailers: &extprocv3.TrailersResponse{},
	}}
}

// outcome is what a client is told about its answer.
type outcome struct {
	strategy, reason string
	// endpoint is the one that answered.
	endpoint string
	// matched is the number of prompt tokens it was expected to hold, -1 if
	// another endpoint answered than the one this was predicted for.
	matched int
}

func (o outcome) mutation() *extprocv3.HeaderMutation {
	m := &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{
		setHeader(headerEndpoint, o.endpoint),
		setHeader(headerUsedStrategy, o.strategy),
		setHeader(headerReason, o.reason),
	}}
	if o.matched < 0 {
		m.RemoveHeaders = []string{headerMatchedTokens}
	} else {
		m.SetHeaders = append(m.SetHeaders, setHeader(headerMatchedTokens, strconv.Itoa(o.matched)))
	}
	return m
}

func responseHeaders(m *extprocv3.HeaderMutation, override *modev3.ProcessingMode) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{
		Response: &extprocv3.ProcessingResponse_ResponseHeaders{
			ResponseHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{HeaderMutation: m}},
		},
		ModeOverride: override,
	}
}

// keepOpen asks Envoy for nothing more of the answer, except to keep the gRPC
// stream open until the HTTP stream ends: trailers are awaited, and an answer
// that has none ends the stream when it ends. body is what to send of the
// answer's body. An override replaces both body modes, so the request's is
// repeated.
func keepOpen(request, body modev3.ProcessingMode_BodySendMode) *modev3.ProcessingMode {
	return &modev3.ProcessingMode{
		RequestBodyMode:     request,
		ResponseBodyMode:    body,
		ResponseTrailerMode: modev3.ProcessingMode_SEND,
	}
}

func responseBody() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
		ResponseBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{}},
	}}
}

func responseChunk(body []byte, last bool) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: chunk(body, last)}}
}

func responseTrailers() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{
		ResponseTrailers: &extprocv3.TrailersResponse{},
	}}
}

// refuse answers the client in place of an engine. Envoy shows the name of the
// reason as the response code details.
func refuse(e *routing.Error, withReason bool) *extprocv3.ProcessingResponse {
	m := &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{setHeader("content-type", "application/json")}}
	if withReason {
		m.SetHeaders = append(m.SetHeaders, setHeader(headerReason, e.Reason.String()))
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(statusOf(e.Reason))},
			Headers: m,
			Body:    encodeError(e),
			Details: e.Reason.String(),
		},
	}}
}
