package extproc

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// envoy is what Envoy does with the headers of a request: names are compared
// without case, a mutation removes before it sets.
type envoy map[string][]string

func (e envoy) apply(m *extprocv3.HeaderMutation) {
	for _, n := range m.GetRemoveHeaders() {
		delete(e, strings.ToLower(n))
	}
	for _, h := range m.GetSetHeaders() {
		n := strings.ToLower(h.GetHeader().GetKey())
		if h.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			e[n] = append(e[n], string(h.GetHeader().GetRawValue()))
			continue
		}
		e[n] = []string{string(h.GetHeader().GetRawValue())}
	}
}

// TestStream_ForgedHeadersNeverPass sends any headers, hides some of them from
// the processor as forward_rules can, and looks at what would go upstream
// after every single reply.
func TestStream_ForgedHeadersNeverPass(t *testing.T) {
	p := newPool(t, 2)
	m := newMetrics(prometheus.NewRegistry())
	cfg := DefaultConfig()
	names := []string{
		"target-pod", "Target-Pod", "x-gateway-destination-endpoint", "X-Gateway-Destination-Endpoint", "x-data-parallel-rank",
		"x-warmpath-endpoint", "x-warmpath-", "X-WARMPATH-reason", "x-warmpath-strategy", "x-warmpath-tokens", "x-gateway-destination-endpoint-served", "x-warmpath-matched-tokens", "x-warmpath-zzz", "accept", "routing-strategy", "x-warmpat",
	}
	// Written out, so that a name cannot be forgotten in the code alone. The
	// hidden ones must be removed unseen.
	hideable := []string{
		"target-pod", "x-gateway-destination-endpoint", "x-gateway-destination-endpoint-served", "x-data-parallel-rank",
		"x-warmpath-endpoint", "x-warmpath-strategy", "x-warmpath-matched-tokens", "x-warmpath-reason", "x-warmpath-tokens",
	}
	isForged := func(n string) bool {
		return strings.HasPrefix(n, "x-warmpath-") || slices.Contains(hideable, n)
	}
	rapid.Check(t, func(t *rapid.T) {
		sent, seen := envoy{}, &corev3.HeaderMap{}
		add := func(n, v string) {
			sent[strings.ToLower(n)] = append(sent[strings.ToLower(n)], v)
			hidden := slices.Contains(hideable, strings.ToLower(n)) && rapid.Bool().Draw(t, "hidden")
			if !hidden {
				seen.Headers = append(seen.Headers, &corev3.HeaderValue{Key: n, RawValue: []byte(v)})
			}
		}
		method := rapid.SampledFrom([]string{"GET", "POST"}).Draw(t, "method")
		add(":method", method)
		add(":path", rapid.SampledFrom([]string{"/v1/completions", "/other"}).Draw(t, "path"))
		for _, n := range rapid.SliceOfN(rapid.SampledFrom(names), 0, 8).Draw(t, "names") {
			add(n, "6.6.6.6:22")
		}
		mode := modev3.ProcessingMode_BodySendMode(rapid.IntRange(0, 5).Draw(t, "mode"))
		noBody := rapid.Bool().Draw(t, "no body")
		twice := rapid.IntRange(1, 2)

		s := &stream{cfg: &cfg, snapshots: p, metrics: m, ctx: t.Context()}
		defer s.end(time.Time{}, false)
		released := false
		step := func(req *extprocv3.ProcessingRequest) {
			if receive(t, s, req) {
				e := p.Snapshot().Endpoints[0]
				e.State.Reserve(0)
				s.promise.SetTarget(routing.Target{Endpoints: []*pool.Endpoint{e, p.Snapshot().Endpoints[1]}})
				s.decided(s.promise.Target(t.Context()))
			}
			for _, r := range replies(t, s) {
				var c *extprocv3.CommonResponse
				switch {
				case r.GetImmediateResponse() != nil:
					released = true
					return
				case r.GetRequestHeaders() != nil:
					c = r.GetRequestHeaders().GetResponse()
				case r.GetRequestBody() != nil:
					c = r.GetRequestBody().GetResponse()
				case r.GetRequestTrailers() != nil:
					continue
				default:
					t.Fatalf("unexpected reply %v", r)
				}
				sent.apply(c.GetHeaderMutation())
				for n, v := range sent {
					switch {
					case !isForged(n):
					case n == headerDestination && s.phase == phaseRouted && cmp.Equal(v, []string{"10.0.0.1:8000,10.0.0.2:8000"}):
					case n == headerTargetPod && s.phase == phaseRouted && cmp.Equal(v, []string{"10.0.0.1:8000"}):
					default:
						t.Fatalf("%s %v: after %v upstream would see %s: %v", method, mode, r, n, v)
					}
				}
				for _, h := range c.GetHeaderMutation().GetSetHeaders() {
					if strings.EqualFold(h.GetHeader().GetKey(), "content-length") {
						t.Fatalf("content-length without a new body: %v", r)
					}
				}
			}
		}
		for range twice.Draw(t, "headers") {
			step(&extprocv3.ProcessingRequest{
				Request: &extprocv3.ProcessingRequest_RequestHeaders{
					RequestHeaders: &extprocv3.HttpHeaders{Headers: seen, EndOfStream: noBody},
				},
				ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: mode},
			})
		}
		if !noBody {
			for range twice.Draw(t, "bodies") {
				step(bodyOf([]byte(`{"model":"demo","prompt":"x"}`)))
			}
			step(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{}})
		}
		if s.phase == phaseRouted && len(sent[headerDestination]) != 1 {
			t.Fatalf("routed, but the destination is %v", sent[headerDestination])
		}
		if s.phase != phaseRouted && !released {
			t.Fatalf("the request was neither routed nor refused, phase %d", s.phase)
		}
	})
}

func TestReadHead(t *testing.T) {
	got := readHead(headersOfText(`:method: POST
:path: /v1/completions?a=b#c
Content-Type: Application/JSON; charset=utf-8
content-encoding: GZIP
content-length: 12
content-length: x
routing-strategy: one
routing-strategy: two
x-request-id: id
user: u
x-session-id: s
config-profile: p
external-filter: zone=a
x-warmpath-reason: forged
x-warmpath-new: forged`))
	got.forged = slices.Clone(got.forged)
	want := head{
		method: "POST", path: "/v1/completions", contentType: "Application/JSON; charset=utf-8", mediaType: "application/json",
		encoding: "gzip", length: 12, strategy: "one", id: "id", user: "u", session: "s", profile: "p", filter: "zone=a", forged: []string{"x-warmpath-new"},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(head{})); d != "" {
		t.Error(d)
	}
	if h := readHead(nil); h.length != -1 || h.path != "" {
		t.Errorf("no headers: %+v", h)
	}
}

func TestSubset(t *testing.T) {
	metadata := func(v *structpb.Value) *corev3.Metadata {
		return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			namespaceSubset: {Fields: map[string]*structpb.Value{keySubset: v}},
		}}
	}
	list := func(v ...*structpb.Value) *structpb.Value {
		return structpb.NewListValue(&structpb.ListValue{Values: v})
	}
	for _, tc := range []struct {
		name string
		in   *corev3.Metadata
		want []string
	}{
		{"no metadata", nil, nil},
		{"another key", &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{namespaceSubset: {}}}, nil},
		{"list", metadata(list(structpb.NewStringValue("a:1"), structpb.NewStringValue(" b:2 "))), []string{"a:1", "b:2"}},
		{"empty list", metadata(list()), []string{}},
		{"numbers", metadata(list(structpb.NewNumberValue(1))), []string{}},
		{"text", metadata(structpb.NewStringValue("a:1, b:2")), []string{"a:1", "b:2"}},
		{"null", metadata(structpb.NewNullValue()), []string{}},
		{"number", metadata(structpb.NewNumberValue(1)), []string{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw, err := proto.Marshal(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, subset(raw)); d != "" {
				t.Error(d)
			}
		})
	}
}

// Endpoints from Kubernetes have their pod's name in theirs, others are called
// as they are.
func TestPodName(t *testing.T) {
	for name, want := range map[string]string{"prod/llama-0:8000": "llama-0", "engine-1": "engine-1", "10.0.0.1:8000": "10.0.0.1:8000"} {
		if got := podName(&pool.Endpoint{Spec: pool.Spec{Name: name}}); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := podName(nil); got != "" {
		t.Errorf("none: %q", got)
	}
}
