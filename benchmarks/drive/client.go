package drive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
)

// requestTimeout bounds one request.
const requestTimeout = 30 * time.Second

// headerReason is the router's explanation of its decision.
const headerReason = "x-warmpath-reason"

// client sends the requests of one cell.
type client interface {
	// do makes request number i, from its begin to the end of its answer, and
	// returns how long the answer took to begin. It is safe for concurrent use.
	do(ctx context.Context, i uint64) (time.Duration, error)
	close()
}

// source gives a client its bodies.
type source struct {
	kind   promptKind
	bodies [][]byte
	// reasons are what answers may give as theirs, nil for any.
	reasons []string
}

// body returns the body of request i. Unless each is a new one, it must not be
// changed.
func (s *source) body(i uint64) []byte {
	b := s.bodies[i%uint64(len(s.bodies))]
	if s.kind == promptUnseen {
		b = append([]byte(nil), b...)
		mark(b, i)
	}
	return b
}

// check compares the reason of an answer with what the lane is about.
func (s *source) check(reason string) error {
	if s.reasons != nil && !slices.Contains(s.reasons, reason) {
		return fmt.Errorf("the decision's reason is %q, and not one of %q: it measures something else", reason, s.reasons)
	}
	return nil
}

// bare plays Envoy's part: it speaks the external processing protocol in mode
// BUFFERED, with the response's headers and without its body.
type bare struct {
	source
	conn    *grpc.ClientConn
	stub    extprocv3.ExternalProcessorClient
	headers *extprocv3.ProcessingRequest
	chunks  int
	// sent counts messages, chunked those of them with a piece of an answer.
	sent, chunked atomic.Uint64
}

func newBare(address string, w workload, s source, chunks int) (*bare, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &bare{
		source: s, conn: conn, stub: extprocv3.NewExternalProcessorClient(conn),
		headers: requestHeaders(w.path(), w.Body), chunks: chunks,
	}, nil
}

func (c *bare) close() { c.conn.Close() }

// requestHeaders is the first message of a request: 18 headers, as an OpenAI
// client's request has when it has come through Envoy's edge.
func requestHeaders(path string, length int) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: headerMap(
			":authority", "gateway.example.com",
			":path", path,
			":method", "POST",
			":scheme", "http",
			"accept", "application/json",
			"accept-encoding", "gzip, deflate",
			"content-type", "application/json",
			"user-agent", "OpenAI/Python 1.99.1",
			"x-stainless-lang", "python",
			"x-stainless-package-version", "1.99.1",
			"x-stainless-runtime", "CPython",
			"authorization", "Bearer sk-0123456789abcdef0123456789abcdef",
			"x-stainless-retry-count", "0",
			"content-length", strconv.Itoa(length),
			"x-forwarded-for", "10.1.2.3",
			"x-forwarded-proto", "http",
			"x-request-id", "6b0f3c54-6f0e-4d0b-9f5e-2f6f0f8a9b1c",
			"traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		)}},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{
			RequestBodyMode: modev3.ProcessingMode_BUFFERED, ResponseBodyMode: modev3.ProcessingMode_NONE,
		},
	}
}

func headerMap(kv ...string) *corev3.HeaderMap {
	m := &corev3.HeaderMap{}
	for i := 0; i < len(kv); i += 2 {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: kv[i], RawValue: []byte(kv[i+1])})
	}
	return m
}

// responseHeaders is the message that an endpoint's answer begins with.
func responseHeaders(endpoint string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{Headers: headerMap(
			":status", "200",
			"date", "Thu, 01 Jan 2026 00:00:00 GMT",
			"server", "uvicorn",
			"content-type", "text/event-stream; charset=utf-8",
			"x-request-id", "6b0f3c54-6f0e-4d0b-9f5e-2f6f0f8a9b1c",
			"transfer-encoding", "chunked",
		)}},
		Attributes: map[string]*structpb.Struct{"envoy.filters.http.ext_proc": {Fields: map[string]*structpb.Value{
			"upstream.address": structpb.NewStringValue(endpoint),
		}}},
	}
}

// sseChunk is one piece of a streamed answer.
const sseChunk = `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"` + model + `","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}` + "\n\n"

// do implements client.
func (c *bare) do(ctx context.Context, i uint64) (time.Duration, error) {
	body := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: c.body(i), EndOfStream: true},
	}}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	began := time.Now()
	st, err := c.stub.Process(ctx)
	if err != nil {
		return 0, err
	}
	reply, err := c.exchange(st, c.headers)
	if err != nil || reply.GetRequestHeaders() == nil {
		return 0, unexpected("request_headers", reply, err)
	}
	reply, err = c.exchange(st, body)
	if err != nil || reply.GetRequestBody() == nil {
		return 0, unexpected("request_body", reply, err)
	}
	list := value(reply.GetRequestBody().GetResponse().GetHeaderMutation(), headerDestination)
	endpoint, _, _ := strings.Cut(list, ",")
	if endpoint == "" {
		return 0, fmt.Errorf("the reply to request_body sets no %s", headerDestination)
	}
	reply, err = c.exchange(st, responseHeaders(endpoint))
	if err != nil || reply.GetResponseHeaders() == nil {
		return 0, unexpected("response_headers", reply, err)
	}
	took := time.Since(began)
	if err := c.check(value(reply.GetResponseHeaders().GetResponse().GetHeaderMutation(), headerReason)); err != nil {
		return 0, err
	}
	if err := c.answer(st, reply.GetModeOverride()); err != nil {
		return 0, err
	}
	if err := st.CloseSend(); err != nil {
		return 0, err
	}
	if reply, err = st.Recv(); !errors.Is(err, io.EOF) {
		return 0, unexpected("the end of the stream", reply, err)
	}
	return took, nil
}

// answer sends the pieces of the answer, if the server has asked for them.
func (c *bare) answer(st extprocv3.ExternalProcessor_ProcessClient, mode *modev3.ProcessingMode) error {
	if mode.GetResponseBodyMode() == modev3.ProcessingMode_NONE {
		return nil
	}
	for n := range c.chunks {
		c.chunked.Add(1)
		reply, err := c.exchange(st, &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{
			ResponseBody: &extprocv3.HttpBody{Body: []byte(sseChunk), EndOfStream: n == c.chunks-1},
		}})
		if err != nil || reply.GetResponseBody() == nil {
			return unexpected("response_body", reply, err)
		}
	}
	return nil
}

func (c *bare) exchange(st extprocv3.ExternalProcessor_ProcessClient, m *extprocv3.ProcessingRequest) (*extprocv3.ProcessingResponse, error) {
	c.sent.Add(1)
	if err := st.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return st.Recv() // has the status of a stream that ended early
}

func unexpected(what string, got *extprocv3.ProcessingResponse, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if im := got.GetImmediateResponse(); im != nil {
		return fmt.Errorf("%s: refused with status %d: %s", what, im.GetStatus().GetCode(), im.GetBody())
	}
	return fmt.Errorf("%s: replied with %T", what, got.GetResponse())
}

// value returns what a mutation sets a header to.
func value(m *extprocv3.HeaderMutation, name string) string {
	for _, h := range m.GetSetHeaders() {
		if h.GetHeader().GetKey() == name {
			return string(h.GetHeader().GetRawValue())
		}
	}
	return ""
}
