package extproc

import (
	"context"
	"testing"
	"time"

	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// anyMessage draws a message that may come at any time, in any order.
func anyMessage(t *rapid.T) *extprocv3.ProcessingRequest {
	req := &extprocv3.ProcessingRequest{}
	if rapid.Bool().Draw(t, "config") {
		req.ProtocolConfig = &extprocv3.ProtocolConfiguration{
			RequestBodyMode:  modev3.ProcessingMode_BodySendMode(rapid.IntRange(0, 6).Draw(t, "request mode")),
			ResponseBodyMode: modev3.ProcessingMode_BodySendMode(rapid.IntRange(0, 6).Draw(t, "response mode")),
		}
	}
	eos := rapid.Bool().Draw(t, "eos")
	headers := &extprocv3.HttpHeaders{EndOfStream: eos, Headers: headerMap(rapid.SampledFrom([]string{
		":method: POST\n:path: /v1/completions",
		":method: POST\n:path: /v1/completions\ncontent-length: 999",
		":method: GET\n:path: /v1/models",
		":status: 200\ncontent-type: application/json",
	}).Draw(t, "headers"))}
	body := &extprocv3.HttpBody{EndOfStream: eos, Body: []byte(rapid.SampledFrom([]string{
		"", `{"model":"demo"}`, `{"model":`, `"demo"}`, `{`, string(make([]byte, 60)),
	}).Draw(t, "body"))}
	switch rapid.IntRange(0, 8).Draw(t, "kind") {
	case 0, 1:
		req.Request = &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: headers}
	case 2, 3:
		req.Request = &extprocv3.ProcessingRequest_RequestBody{RequestBody: body}
	case 4:
		req.Request = &extprocv3.ProcessingRequest_RequestTrailers{}
	case 5:
		req.Request = &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: headers}
	case 6:
		req.Request = &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: body}
	case 7:
		req.Request = &extprocv3.ProcessingRequest_ResponseTrailers{}
	}
	return req
}

// pairs tells whether a reply of type r may answer a message.
func pairs(req *extprocv3.ProcessingRequest, r *extprocv3.ProcessingResponse) bool {
	var ok bool
	switch req.Request.(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		_, ok = r.Response.(*extprocv3.ProcessingResponse_RequestHeaders)
	case *extprocv3.ProcessingRequest_RequestBody:
		_, ok = r.Response.(*extprocv3.ProcessingResponse_RequestBody)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		_, ok = r.Response.(*extprocv3.ProcessingResponse_RequestTrailers)
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		_, ok = r.Response.(*extprocv3.ProcessingResponse_ResponseHeaders)
	case *extprocv3.ProcessingRequest_ResponseBody:
		_, ok = r.Response.(*extprocv3.ProcessingResponse_ResponseBody)
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		_, ok = r.Response.(*extprocv3.ProcessingResponse_ResponseTrailers)
	}
	return ok
}

// TestStream_AnyOrderOfMessages plays messages in any order against a router
// that does anything. Whatever happens: nothing panics, a message is answered
// by its own kind of reply or by a refusal, nothing follows a refusal, what is
// reserved is released once, and a request is counted at most once.
func TestStream_AnyOrderOfMessages(t *testing.T) {
	p := newPool(t, 2)
	endpoints := p.Snapshot().Endpoints
	rapid.Check(t, func(t *rapid.T) {
		reg := prometheus.NewRegistry()
		m := newMetrics(reg)
		cfg := DefaultConfig()
		cfg.MaxBodyBytes = 100
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := &stream{cfg: &cfg, snapshots: p, metrics: m, ctx: ctx, sampled: rapid.Bool().Draw(t, "sampled")}
		refused := false
		for range rapid.IntRange(0, 8).Draw(t, "messages") {
			req := anyMessage(t)
			wasDuplex := s.duplex() || req.GetProtocolConfig().GetRequestBodyMode() == modev3.ProcessingMode_FULL_DUPLEX_STREAMED
			if receive(t, s, req) {
				switch rapid.IntRange(0, 3).Draw(t, "decision") {
				case 0:
					s.promise.SetError(&routing.Error{Reason: routing.ReasonNoEndpoint})
				case 1:
					cancel()
				default:
					endpoints[0].State.Reserve(0)
					s.promise.SetTarget(routing.Target{Endpoints: endpoints})
				}
				s.decided(s.promise.Target(t.Context()))
			}
			replies := replies(t, s)
			if refused && len(replies) > 0 {
				t.Fatalf("after a refusal: %v", replies)
			}
			if len(replies) > 1 && !wasDuplex {
				t.Fatalf("%d replies to %v", len(replies), req)
			}
			for i, r := range replies {
				switch {
				case r.GetImmediateResponse() != nil:
					refused = true
				case wasDuplex && len(replies) > 1 && i < len(replies)-1: // the withheld ones
				case !pairs(req, r):
					t.Fatalf("%v answered by %v", req, r)
				}
			}
		}
		s.end(time.Time{}, false)
		s.end(time.Time{}, false)
		for i, e := range endpoints {
			if n := e.State.InFlight(); n != 0 {
				t.Fatalf("endpoint %d: %d in flight after the end", i, n)
			}
		}
		counted := 0.0
		for _, r := range routing.Reasons() {
			counted += testutil.ToFloat64(m.requests[r])
		}
		if counted > 1 {
			t.Fatalf("one request was counted %v times", counted)
		}
	})
}

var _ Snapshots = (*pool.Pool)(nil)
