package extproc

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// chatBody returns a chat of about n bytes, written as the OpenAI client for
// Python does.
func chatBody(t testing.TB, n int) []byte {
	t.Helper()
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	body := struct {
		Messages []message `json:"messages"`
		Model    string    `json:"model"`
		Stream   bool      `json:"stream"`
	}{Model: "demo", Stream: true}
	for size := 0; size < n; size += 500 {
		text := strings.Repeat("It was the \"best\" of times,\nit was the worst. ", 10)
		body.Messages = append(body.Messages, message{"user", fmt.Sprintf("%d %s", size, text[:min(450, n-size)])})
	}
	out, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A chat is read in place: of a body of any size only the model is copied.
func TestParseJSON_Allocations(t *testing.T) {
	for _, size := range []int{4 << 10, 1 << 20} {
		body := chatBody(t, size)
		n := testing.AllocsPerRun(20, func() {
			d, err := parseJSON(apiChat, body, nil, false)
			if err != nil || d.model != "demo" || d.prompt.Kind != routing.PromptChat {
				t.Fatalf("%+v, %v", d, err)
			}
		})
		if n != 1 {
			t.Errorf("%d bytes: %v allocations, want 1", size, n)
		}
	}
}

func BenchmarkParseJSON(b *testing.B) {
	for _, size := range []int{1 << 10, 4 << 10, 100 << 10, 1 << 20} {
		body := chatBody(b, size)
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := parseJSON(apiChat, body, nil, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// requestMessages are the messages of one POST as Envoy sends them: the
// headers that a client and Envoy set, the body, and the answer's headers.
func requestMessages(t testing.TB, body []byte, path string) [][]byte {
	t.Helper()
	headers := headersOf(false,
		":authority", "llm.example.com", ":path", path, ":method", "POST", ":scheme", "https",
		"accept", "application/json", "accept-encoding", "gzip, deflate", "authorization", "Bearer sk-0123456789abcdef0123456789abcdef",
		"content-type", "application/json", "content-length", fmt.Sprint(len(body)), "user-agent", "OpenAI/Python 1.99.1",
		"x-stainless-arch", "x64", "x-stainless-async", "false", "x-stainless-lang", "python", "x-stainless-os", "Linux",
		"x-stainless-package-version", "1.99.1", "x-forwarded-for", "10.1.2.3", "x-forwarded-proto", "https",
		"x-request-id", "0123456789abcdef0123456789abcdef")
	answer := &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{
			Headers: headerMap(":status: 200\ndate: Sat, 21 Nov 2026 10:54:17 GMT\nserver: uvicorn\ncontent-type: text/event-stream; charset=utf-8"),
		}},
		Attributes: map[string]*structpb.Struct{attributeNamespace: {Fields: map[string]*structpb.Value{
			attributeUpstream: structpb.NewStringValue("10.0.0.1:8000"),
		}}},
	}
	var raw [][]byte
	for _, m := range []*extprocv3.ProcessingRequest{headers, bodyOf(body), answer} {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw, b)
	}
	return raw
}

// wire is raw as gRPC hands it over, each message in one buffer that is not
// gRPC's to take back.
func wire(raw [][]byte) []mem.BufferSlice {
	var all []mem.BufferSlice
	for _, b := range raw {
		all = append(all, mem.BufferSlice{mem.SliceBuffer(b)})
	}
	return all
}

// request runs one request through the state machine and the codec, as the
// server does.
func request(t testing.TB, messages []mem.BufferSlice, cfg *Config, m *metrics, p *pool.Pool, router Router, x *mailbox) {
	s := stream{cfg: cfg, snapshots: p, metrics: m, ctx: context.Background()}
	now := time.Unix(1000, 0)
	for _, data := range messages {
		x.received.data = data
		if err := x.open(); err != nil {
			t.Fatal(err)
		}
		if s.receive(&x.message, now) {
			router.Route(s.promise)
			s.decided(s.promise.Target(s.promise))
		}
		x.close()
		if !s.refers() {
			x.recycle()
		}
		for _, r := range s.take() {
			r.Free()
		}
	}
	if s.phase != phaseAnswered {
		t.Fatalf("the request ended in phase %d", s.phase)
	}
	s.end(now, false)
}

// BenchmarkRequest is all that this package does for a request, and the codec,
// without the transport and the router.
func BenchmarkRequest(b *testing.B) {
	for _, size := range []int{1 << 10, 10 << 10, 100 << 10} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			cfg, m, p := DefaultConfig(), newMetrics(prometheus.NewRegistry()), newPool(b, 2)
			messages, x, route := wire(requestMessages(b, chatBody(b, size), "/v1/chat/completions")), &mailbox{memories: new(memories)}, toFirst(p)
			b.ReportAllocs()
			for b.Loop() {
				request(b, messages, &cfg, m, p, route, x)
			}
		})
	}
}
