package extproc

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// newRouter returns a real router for prompts of token ids.
func newRouter(t testing.TB, p *pool.Pool) *routing.Router {
	t.Helper()
	index, err := kvindex.New(kvindex.Config{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := routing.DefaultConfig()
	cfg.Strategy = "prefix-cache"
	for _, e := range p.Snapshot().Endpoints {
		e.State.ObserveBlockSize(16)
	}
	r, err := routing.New(cfg, p, index, nil, kvindex.NewHasher(1), slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The headers of a streamed answer come before its first token, those of
// another after its last: prefill work is over when a token has been seen.
func TestStream_PrefillIsOverAtATokenOfTheAnswer(t *testing.T) {
	for _, tc := range []struct {
		name, member, status string
		eos                  bool
		atHeaders, atBody    int64
	}{
		{name: "streamed", member: `"stream":true,`, status: "200", atHeaders: 100, atBody: 0},
		{name: "not streamed", status: "200", atHeaders: 0, atBody: 0},
		{name: "refused by the engine", member: `"stream":true,`, status: "400", atHeaders: 0, atBody: 0},
		{name: "no answer", member: `"stream":true,`, status: "200", eos: true, atHeaders: 0, atBody: 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPool(t, 1)
			cfg := DefaultConfig()
			s := &stream{cfg: &cfg, snapshots: p, metrics: newMetrics(prometheus.NewRegistry()), ctx: t.Context()}
			receive(t, s, post())
			ids := string(idsBody(100))[len(`{`):]
			if !receive(t, s, bodyOf([]byte("{"+tc.member+ids))) {
				t.Fatalf("no decision is wanted; replies %v", replies(t, s))
			}
			s.promise.Request.Arrived = time.Unix(1000, 0)
			newRouter(t, p).Route(s.promise)
			s.decided(s.promise.Target(context.Background()))
			state := p.Snapshot().Endpoints[0].State
			expect := func(when string, want int64) {
				t.Helper()
				if got := state.PrefillTokens(); got != want {
					t.Errorf("%s: %d prefill tokens, want %d", when, got, want)
				}
			}
			expect("routed", 100)
			if s.promise.Request.Prompt.Tokens != nil || s.body != nil {
				t.Error("the prompt is kept while the answer runs")
			}
			receive(t, s, &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
				ResponseHeaders: &extprocv3.HttpHeaders{Headers: headerMap(":status: " + tc.status), EndOfStream: tc.eos},
			}})
			expect("at the headers of the answer", tc.atHeaders)
			piece := func(b string) {
				receive(t, s, &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{
					ResponseBody: &extprocv3.HttpBody{Body: []byte(b)},
				}})
			}
			piece("")
			expect("at an empty piece of the body", tc.atHeaders)
			piece("data: 1\n")
			expect("at the first piece of the body", tc.atBody)
			s.end(time.Unix(1001, 0), false)
			expect("at the end", 0)
			if n := state.InFlight(); n != 0 {
				t.Errorf("in flight at the end: %d", n)
			}
		})
	}
}

// What becomes of requests decides whether their endpoint cools down.
func TestStream_EndpointsCoolDown(t *testing.T) {
	const patient = 2 * time.Second // longer than routing bears with an endpoint that does not answer
	for _, tc := range []struct {
		name     string
		status   string // of the answer, empty: none
		requests int
		ours     bool
		want     bool
	}{
		{name: "an answer", status: "200", requests: 5},
		{name: "a gateway's fault", status: "503", requests: 1, want: true},
		{name: "a client's fault", status: "400", requests: 5},
		{name: "no answers", requests: 5, want: true},
		{name: "no answers, because the router drains", requests: 5, ours: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPool(t, 1)
			cfg := DefaultConfig()
			now := time.Unix(1000, 0)
			for range tc.requests {
				s := &stream{cfg: &cfg, snapshots: p, metrics: newMetrics(prometheus.NewRegistry()), ctx: t.Context()}
				s.receive(&message{kind: kindRequestHeaders, eos: true}, now)
				toFirst(p)(s.promise)
				s.decided(s.promise.Target(context.Background()))
				if tc.status != "" {
					s.receive(&message{kind: kindResponseHeaders, headers: headersOfText(":status: " + tc.status)}, now)
				}
				s.end(now.Add(patient), tc.ours)
			}
			at := now
			if tc.status == "" {
				at = at.Add(patient)
			}
			if got := p.Snapshot().Endpoints[0].Cooling(at.Add(time.Millisecond)); got != tc.want {
				t.Errorf("cooling down: %v, want %v", got, tc.want)
			}
		})
	}
}

func TestRefuse_RetryAfter(t *testing.T) {
	for after, want := range map[time.Duration]string{
		0: "", -time.Second: "", time.Millisecond: "1", time.Second: "1", 1001 * time.Millisecond: "2", time.Minute: "60",
	} {
		cfg := DefaultConfig()
		s := &stream{cfg: &cfg, metrics: newMetrics(prometheus.NewRegistry())}
		s.refuse(&routing.Error{Reason: routing.ReasonNoEndpoint, RetryAfter: after})
		got := ""
		for _, h := range replies(t, s)[0].GetImmediateResponse().GetHeaders().GetSetHeaders() {
			if h.GetHeader().GetKey() == "retry-after" {
				got = string(h.GetHeader().GetRawValue())
			}
		}
		if got != want {
			t.Errorf("retry after %s: header %q, want %q", after, got, want)
		}
	}
}
