package extproc

import (
	"testing"
	"time"

	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/routing"
)

func checkReply(t *rapid.T, what string, want *extprocv3.ProcessingResponse, got mem.BufferSlice) {
	t.Helper()
	r := &extprocv3.ProcessingResponse{}
	if err := proto.Unmarshal(got.Materialize(), r); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !proto.Equal(want, r) || len(r.ProtoReflect().GetUnknown()) > 0 {
		t.Fatalf("%s (-generated +raw):\n%s", what, cmp.Diff(want, r, protocmp.Transform()))
	}
	got.Free()
}

// Every reply is what the generated API makes of the same facts.
func TestReplies_AsTheGeneratedAPI(t *testing.T) {
	name := rapid.StringMatching(`[a-z0-9:.,-]{0,40}`)
	long := rapid.Custom(func(t *rapid.T) string {
		return string(make([]byte, rapid.SampledFrom([]int{100, 127, 128, 16383, 16384, 70000}).Draw(t, "length")))
	})
	text := rapid.OneOf(name, name, name, long)
	modes := rapid.Int32Range(0, 6)
	rapid.Check(t, func(t *rapid.T) {
		d := destination{first: text.Draw(t, "first"), all: text.Draw(t, "all"), reroute: rapid.Bool().Draw(t, "reroute")}
		forged := rapid.SliceOfN(text, 0, 3).Draw(t, "forged")
		withMetadata := rapid.Bool().Draw(t, "metadata")
		dynamic := func(b mem.Buffer) mem.BufferSlice { return mem.BufferSlice{b} }
		generated := func(r *extprocv3.ProcessingResponse, withMetadata bool) *extprocv3.ProcessingResponse {
			if withMetadata {
				r.DynamicMetadata = genSteerMetadata(d)
			}
			return r
		}
		checkReply(t, "steer headers", generated(genInRequestHeaders(genSteering(d, forged)), withMetadata), dynamic(steer(toRequestHeaders, d, forged, withMetadata)))
		checkReply(t, "steer body", generated(genInRequestBody(genSteering(d, forged)), withMetadata), dynamic(steer(toRequestBody, d, forged, withMetadata)))
		checkReply(t, "steer trailers", generated(genRequestTrailers(), true), dynamic(steerTrailers(d)))
		checkReply(t, "strip", genRequestHeaders(genStrip(forged)), static(encodeStrip(toRequestHeaders, forged)))

		o := outcome{
			strategy: name.Draw(t, "strategy"), tokens: name.Draw(t, "tokens"), reason: name.Draw(t, "reason"), endpoint: text.Draw(t, "endpoint"),
			matched: rapid.IntRange(-1, 1<<40).Draw(t, "matched"),
		}
		request, body := modev3.ProcessingMode_BodySendMode(modes.Draw(t, "request")), modev3.ProcessingMode_BodySendMode(modes.Draw(t, "body"))
		checkReply(t, "outcome", genResponseHeaders(o.generated(), nil), dynamic(responseHeaders(&o, nil, "", override{})))
		checkReply(t, "override", genResponseHeaders(nil, genKeepOpen(request, body)), dynamic(responseHeaders(nil, nil, "", keepOpen(request, body))))
		checkReply(t, "outcome and override", genResponseHeaders(o.generated(), genKeepOpen(request, body)),
			dynamic(responseHeaders(&o, nil, "", keepOpen(request, body))))

		piece, last := []byte(text.Draw(t, "piece")), rapid.Bool().Draw(t, "last")
		want := genRequestChunks(nil, piece, last)
		got := requestChunks(nil, piece, last)
		if len(got) != len(want) {
			t.Fatalf("%d pieces of %d bytes, want %d", len(got), len(piece), len(want))
		}
		for i := range got {
			checkReply(t, "piece", want[i], got[i])
		}
		checkReply(t, "response piece", genResponseChunk(piece, last), chunk(toResponseBody, piece, last))

		err := &routing.Error{
			Reason: rapid.SampledFrom(routing.Reasons()).Draw(t, "reason"), Message: text.Draw(t, "message"), Param: name.Draw(t, "param"),
			RetryAfter: time.Duration(rapid.Int64Range(-1, 5000).Draw(t, "retry after")) * time.Millisecond,
		}
		withReason := rapid.Bool().Draw(t, "with reason")
		checkReply(t, "refusal", genRefuse(err, withReason), dynamic(refuse(err, withReason)))

		for what, r := range map[string]struct {
			want *extprocv3.ProcessingResponse
			got  mem.BufferSlice
		}{
			"strip nothing forged": {genRequestHeaders(genStrip(nil)), replyStrip},
			"request body":         {genRequestBody(nil), replyRequestBody},
			"response headers":     {genResponseHeaders(nil, nil), replyResponseHeaders},
			"response body":        {genResponseBody(), replyResponseBody},
			"request trailers":     {genRequestTrailers(), replyRequestTrailers},
			"response trailers":    {genResponseTrailers(), replyResponseTrailers},
		} {
			checkReply(t, what, r.want, r.got)
		}
	})
}
