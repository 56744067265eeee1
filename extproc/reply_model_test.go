package extproc

import (
	"fmt"
	"math"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/warmpath/warmpath/routing"
)

// The model of reply.go: the same replies, built with the generated API.

// genSetHeader overwrites a header.
func genSetHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// genStrip removes the guarded headers and forged.
func genStrip(forged []string) *extprocv3.HeaderMutation {
	m := &extprocv3.HeaderMutation{RemoveHeaders: guarded}
	if len(forged) > 0 {
		m.RemoveHeaders = append(append([]string(nil), guarded...), forged...)
	}
	return m
}

// genSteer strips and then sends the request to d. Envoy removes before it sets.
func genSteer(d destination, forged []string) *extprocv3.HeaderMutation {
	m := genStrip(forged)
	m.SetHeaders = []*corev3.HeaderValueOption{genSetHeader(headerDestination, d.all), genSetHeader(headerTargetPod, d.first)}
	return m
}

// genSteerMetadata is the same as [genSteer] for clusters that read it from dynamic
// metadata.
func genSteerMetadata(d destination) *structpb.Struct {
	lb := &structpb.Struct{Fields: map[string]*structpb.Value{headerDestination: structpb.NewStringValue(d.all)}}
	return &structpb.Struct{Fields: map[string]*structpb.Value{namespaceLB: structpb.NewStructValue(lb)}}
}

func genRequestHeaders(m *extprocv3.HeaderMutation) *extprocv3.ProcessingResponse {
	return genInRequestHeaders(&extprocv3.CommonResponse{HeaderMutation: m})
}

func genRequestBody(m *extprocv3.HeaderMutation) *extprocv3.ProcessingResponse {
	return genInRequestBody(&extprocv3.CommonResponse{HeaderMutation: m})
}

// genSteering is what [genSteer] is sent in: with d's route cleared or not.
func genSteering(d destination, forged []string) *extprocv3.CommonResponse {
	return &extprocv3.CommonResponse{HeaderMutation: genSteer(d, forged), ClearRouteCache: d.reroute}
}

func genInRequestHeaders(c *extprocv3.CommonResponse) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extprocv3.HeadersResponse{Response: c},
	}}
}

func genInRequestBody(c *extprocv3.CommonResponse) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
		RequestBody: &extprocv3.BodyResponse{Response: c},
	}}
}

// genChunk is a piece of a body in mode FULL_DUPLEX_STREAMED.
func genChunk(body []byte, last bool) *extprocv3.BodyResponse {
	return &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
		Mutation: &extprocv3.BodyMutation_StreamedResponse{
			StreamedResponse: &extprocv3.StreamedBodyResponse{Body: body, EndOfStream: last},
		},
	}}}
}

func genRequestChunk(body []byte, last bool) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: genChunk(body, last)}}
}

// genRequestChunks appends the pieces of body to dst, at least one if last, which
// says that nothing follows the body.
func genRequestChunks(dst []*extprocv3.ProcessingResponse, body []byte, last bool) []*extprocv3.ProcessingResponse {
	for len(body) > maxChunk {
		dst = append(dst, genRequestChunk(body[:maxChunk:maxChunk], false))
		body = body[maxChunk:]
	}
	if len(body) > 0 || last {
		dst = append(dst, genRequestChunk(body, last))
	}
	return dst
}

func genRequestTrailers() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{
		RequestTrailers: &extprocv3.TrailersResponse{},
	}}
}

func (o outcome) generated() *extprocv3.HeaderMutation {
	m := &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{
		genSetHeader(headerEndpoint, o.endpoint),
		genSetHeader(headerUsedStrategy, o.strategy),
		genSetHeader(headerReason, o.reason),
		genSetHeader(headerTokens, o.tokens),
	}}
	if o.matched < 0 {
		m.RemoveHeaders = []string{headerMatchedTokens}
	} else {
		m.SetHeaders = append(m.SetHeaders, genSetHeader(headerMatchedTokens, strconv.Itoa(o.matched)))
	}
	return m
}

func genResponseHeaders(m *extprocv3.HeaderMutation, override *modev3.ProcessingMode) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{
		Response: &extprocv3.ProcessingResponse_ResponseHeaders{
			ResponseHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{HeaderMutation: m}},
		},
		ModeOverride: override,
	}
}

// genKeepOpen asks Envoy for nothing more of the answer, except to keep the gRPC
// stream open until the HTTP stream ends: trailers are awaited, and an answer
// that has none ends the stream when it ends. body is what to send of the
// answer's body. An override replaces both body modes, so the request's is
// repeated.
func genKeepOpen(request, body modev3.ProcessingMode_BodySendMode) *modev3.ProcessingMode {
	return &modev3.ProcessingMode{
		RequestBodyMode:     request,
		ResponseBodyMode:    body,
		ResponseTrailerMode: modev3.ProcessingMode_SEND,
	}
}

func genResponseBody() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
		ResponseBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{}},
	}}
}

func genResponseChunk(body []byte, last bool) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: genChunk(body, last)}}
}

func genResponseTrailers() *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{
		ResponseTrailers: &extprocv3.TrailersResponse{},
	}}
}

// genRefuse answers the client in place of an engine. Envoy shows the name of the
// reason as the response code details.
func genRefuse(e *routing.Error, withReason bool) *extprocv3.ProcessingResponse {
	m := &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{genSetHeader("content-type", "application/json")}}
	if withReason {
		m.SetHeaders = append(m.SetHeaders, genSetHeader(headerReason, e.Reason.String()))
	}
	if e.RetryAfter > 0 {
		m.SetHeaders = append(m.SetHeaders, genSetHeader("retry-after", fmt.Sprint(math.Ceil(e.RetryAfter.Seconds()))))
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
