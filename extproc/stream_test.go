package extproc

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// newPool returns a pool of n endpoints, 10.0.0.1:8000 and on.
func newPool(t testing.TB, n int) *pool.Pool {
	t.Helper()
	cfg := pool.DefaultConfig()
	for i := range n {
		cfg.Static.Endpoints = append(cfg.Static.Endpoints, pool.Spec{
			Name: fmt.Sprintf("e%d", i+1), Address: fmt.Sprintf("10.0.0.%d:8000", i+1), Models: []string{"demo"},
		})
	}
	return pool.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)))
}

// script is a router that does as a transcript says.
type script struct {
	pool    *pool.Pool
	log     *strings.Builder
	target  []string
	reason  routing.Reason
	matched int
	prompt  int
	err     *routing.Error
	pending bool
}

func (r *script) resolve(c *routing.Context) {
	if r.err != nil {
		fmt.Fprintf(r.log, "# resolved first: %v\n", c.SetError(r.err))
		return
	}
	t := routing.Target{Strategy: "scripted", Reason: r.reason, MatchedTokens: r.matched, PromptTokens: r.prompt}
	for _, a := range r.target {
		t.Endpoints = append(t.Endpoints, r.pool.Snapshot().ByAddress(a))
	}
	t.Endpoints[0].State.Reserve(0)
	fmt.Fprintf(r.log, "# resolved first: %v\n", c.SetTarget(t))
}

// transcript plays the part of the server for the state machine.
type transcript struct {
	t      *testing.T
	router script
	cfg    Config
	reg    *prometheus.Registry
	stream *stream
	cancel context.CancelFunc
	modes  *extprocv3.ProtocolConfiguration
	log    strings.Builder
}

func newTranscript(t *testing.T) *transcript {
	tr := &transcript{t: t, cfg: DefaultConfig(), reg: prometheus.NewRegistry()}
	tr.router = script{pool: newPool(t, 3), log: &tr.log, target: []string{"10.0.0.1:8000"}, reason: routing.ReasonLoad}
	return tr
}

// open begins a request.
func (tr *transcript) open(m *metrics) {
	if tr.cancel != nil {
		tr.cancel()
	}
	ctx, cancel := context.WithCancel(context.Background())
	tr.cancel = cancel
	tr.stream = &stream{cfg: &tr.cfg, snapshots: tr.router.pool, metrics: m, ctx: ctx}
}

// step hands over one message and prints what comes back.
func (tr *transcript) step(req *extprocv3.ProcessingRequest) {
	req.ProtocolConfig, tr.modes = tr.modes, nil
	if receive(tr.t, tr.stream, req) {
		fmt.Fprintf(&tr.log, "route%s\n", describe(&tr.stream.promise.Request))
		if tr.router.pending {
			return
		}
		tr.router.resolve(tr.stream.promise)
		tr.await(context.Background())
	}
	tr.print()
}

// await hands over the decision, or what is there instead of one when ctx ends.
func (tr *transcript) await(ctx context.Context) {
	tr.stream.decided(tr.stream.promise.Target(ctx))
	tr.print()
}

func (tr *transcript) print() {
	for _, r := range replies(tr.t, tr.stream) {
		printReply(&tr.log, r)
	}
}

func describe(r *routing.Request) string {
	var b strings.Builder
	for _, f := range []struct{ name, value string }{
		{"path", r.Path},
		{"model", r.Model},
		{"strategy", r.Strategy},
		{"profile", r.Profile},
		{"filter", r.Filter},
		{"id", r.ID},
		{"user", r.User},
		{"session", r.Session},
		{"text", r.Prompt.Text},
		{"messages", string(r.Prompt.Messages)},
	} {
		if f.value != "" {
			fmt.Fprintf(&b, " %s=%s", f.name, f.value)
		}
	}
	if r.Prompt.Tokens != nil {
		fmt.Fprintf(&b, " tokens=%v", r.Prompt.Tokens)
	}
	if r.Subset != nil {
		fmt.Fprintf(&b, " subset=%v", r.Subset)
	}
	if r.Stream {
		b.WriteString(" stream")
	}
	if r.BodyBytes > 0 {
		fmt.Fprintf(&b, " bytes=%d", r.BodyBytes)
	}
	return b.String()
}

// printReply prints everything that a reply says.
func printReply(b *strings.Builder, r *extprocv3.ProcessingResponse) {
	switch m := r.Response.(type) {
	case *extprocv3.ProcessingResponse_RequestHeaders:
		b.WriteString("request_headers\n")
		printCommon(b, m.RequestHeaders.GetResponse())
	case *extprocv3.ProcessingResponse_RequestBody:
		b.WriteString("request_body\n")
		printCommon(b, m.RequestBody.GetResponse())
	case *extprocv3.ProcessingResponse_RequestTrailers:
		b.WriteString("request_trailers\n")
		printMutation(b, m.RequestTrailers.GetHeaderMutation())
	case *extprocv3.ProcessingResponse_ResponseHeaders:
		b.WriteString("response_headers\n")
		printCommon(b, m.ResponseHeaders.GetResponse())
	case *extprocv3.ProcessingResponse_ResponseBody:
		b.WriteString("response_body\n")
		printCommon(b, m.ResponseBody.GetResponse())
	case *extprocv3.ProcessingResponse_ResponseTrailers:
		b.WriteString("response_trailers\n")
		printMutation(b, m.ResponseTrailers.GetHeaderMutation())
	case *extprocv3.ProcessingResponse_ImmediateResponse:
		i := m.ImmediateResponse
		fmt.Fprintf(b, "immediate_response %d %s\n", i.GetStatus().GetCode(), i.GetDetails())
		printMutation(b, i.GetHeaders())
		fmt.Fprintf(b, "  body %s\n", i.GetBody())
	default:
		fmt.Fprintf(b, "unexpected reply %v\n", r)
	}
	for space, v := range r.GetDynamicMetadata().GetFields() {
		for key, v := range v.GetStructValue().GetFields() {
			fmt.Fprintf(b, "  metadata %s %s = %s\n", space, key, v.GetStringValue())
		}
	}
	if o := r.GetModeOverride(); o != nil {
		fmt.Fprintf(b, "  override request_body=%s response_body=%s request_trailers=%s response_trailers=%s\n",
			o.RequestBodyMode, o.ResponseBodyMode, o.RequestTrailerMode, o.ResponseTrailerMode)
	}
}

func printCommon(b *strings.Builder, c *extprocv3.CommonResponse) {
	if c.GetStatus() != extprocv3.CommonResponse_CONTINUE || c.GetTrailers() != nil {
		fmt.Fprintf(b, "  unexpected %v\n", c)
	}
	if c.GetClearRouteCache() {
		b.WriteString("  clear route cache\n")
	}
	printMutation(b, c.GetHeaderMutation())
	if m := c.GetBodyMutation(); m != nil {
		s := m.GetStreamedResponse()
		if s == nil {
			fmt.Fprintf(b, "  unexpected %v\n", m)
			return
		}
		body := string(s.GetBody())
		if len(body) > 80 {
			body = fmt.Sprintf("%s… (%d bytes)", body[:20], len(body))
		}
		fmt.Fprintf(b, "  streamed %q end_of_stream=%v\n", body, s.GetEndOfStream())
	}
}

func printMutation(b *strings.Builder, m *extprocv3.HeaderMutation) {
	if len(m.GetRemoveHeaders()) > 0 {
		names := strings.Join(m.GetRemoveHeaders(), " ")
		names = strings.Replace(names, strings.Join(guarded, " "), "(guarded)", 1)
		fmt.Fprintf(b, "  remove %s\n", names)
	}
	for _, h := range m.GetSetHeaders() {
		if h.GetHeader().GetValue() != "" || h.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			fmt.Fprintf(b, "  unexpected %v\n", h)
		}
		fmt.Fprintf(b, "  set %s: %s\n", h.GetHeader().GetKey(), h.GetHeader().GetRawValue())
	}
}

// headerMap reads lines of name: value.
func headerMap(input string) *corev3.HeaderMap {
	m := &corev3.HeaderMap{}
	for line := range strings.Lines(input) {
		name, value, _ := strings.Cut(strings.TrimSpace(line)[1:], ":")
		m.Headers = append(m.Headers, &corev3.HeaderValue{
			Key: strings.TrimSpace(line)[:1] + name, RawValue: []byte(strings.TrimSpace(value)),
		})
	}
	return m
}

func bodyMode(t *testing.T, name string) modev3.ProcessingMode_BodySendMode {
	v, ok := modev3.ProcessingMode_BodySendMode_value[name]
	if !ok {
		t.Fatalf("no body mode %s", name)
	}
	return modev3.ProcessingMode_BodySendMode(v)
}

func arg(d *datadriven.TestData, key, otherwise string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key {
			return strings.Join(a.Vals, ",")
		}
	}
	return otherwise
}

// TestStream_Transcripts plays testdata/streams: commands are messages from
// Envoy or events of the router, the expected text is every reply in full.
//
//	new [request=MODE] [response=MODE] [sampled] [quiet] [conformance] [clear] [max_body=N]
//	                                     begin a request; without a request
//	                                     mode Envoy does not tell its modes
//	router target=A,B reason=R matched=N prompt=N | error=R | pending
//	request_headers [eos] [subset=A,B|none] …
//	response_headers [upstream=A] [served=A] …
//	decide                               the pending decision is made
//	late                                 its deadline passes
//	end | abort                          the stream ends
func TestStream_Transcripts(t *testing.T) {
	datadriven.Walk(t, "testdata/streams", func(t *testing.T, path string) {
		tr := newTranscript(t)
		m := newMetrics(tr.reg)
		tr.open(m)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			tr.log.Reset()
			tr.command(t, m, d)
			return tr.log.String()
		})
		tr.cancel()
	})
}

func (tr *transcript) command(t *testing.T, m *metrics, d *datadriven.TestData) {
	eos := d.HasArg("eos")
	switch d.Cmd {
	case "new":
		tr.open(m)
		if d.HasArg("request") {
			tr.modes = &extprocv3.ProtocolConfiguration{
				RequestBodyMode:  bodyMode(t, arg(d, "request", "NONE")),
				ResponseBodyMode: bodyMode(t, arg(d, "response", "NONE")),
			}
		}
		if n := arg(d, "max_body", ""); n != "" {
			tr.cfg.MaxBodyBytes, _ = strconv.Atoi(n)
		}
		tr.cfg.ResponseHeaders = !d.HasArg("quiet")
		tr.cfg.Conformance = d.HasArg("conformance")
		tr.cfg.AIBrixHeaders = d.HasArg("aibrix")
		tr.cfg.ClearRouteCache = d.HasArg("clear")
		tr.stream.sampled = d.HasArg("sampled")
	case "router":
		tr.script(t, d)
	case "decide":
		if tr.router.resolve(tr.stream.promise); tr.stream.phase == phaseDeciding {
			tr.await(context.Background())
		}
	case "late":
		late, cancel := context.WithCancel(context.Background())
		cancel()
		tr.await(late)
	case "end":
		tr.stream.end(time.Unix(0, 0), false)
		tr.stream.end(time.Unix(0, 0), false)
	case "abort":
		tr.cancel()
		if tr.stream.phase == phaseDeciding {
			tr.await(context.Background())
		}
		tr.stream.end(time.Unix(0, 0), false)
	case "inflight":
		for _, e := range tr.router.pool.Snapshot().Endpoints {
			fmt.Fprintf(&tr.log, "%s %d\n", e.Name, e.State.InFlight())
		}
	case "counts":
		tr.counts()
	case "request_headers", "response_headers":
		tr.step(headersMessage(d, eos))
	case "request_body", "response_body":
		body := []byte(strings.TrimSuffix(d.Input, "\n"))
		if n, err := strconv.Atoi(arg(d, "zeros", "")); err == nil {
			body = []byte(strings.Repeat("0", n))
		}
		b := &extprocv3.HttpBody{Body: body, EndOfStream: eos}
		if d.Cmd == "request_body" {
			tr.step(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: b}})
		} else {
			tr.step(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: b}})
		}
	case "request_trailers":
		tr.step(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{}})
	case "response_trailers":
		tr.step(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{}})
	case "unknown":
		tr.step(&extprocv3.ProcessingRequest{})
	case "empty": // a message whose content is missing
		tr.step(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{}})
	case "observed":
		tr.step(&extprocv3.ProcessingRequest{
			Request: &extprocv3.ProcessingRequest_RequestHeaders{}, ObservabilityMode: true,
		})
	default:
		t.Fatalf("no command %s", d.Cmd)
	}
	if tr.log.Len() == 0 {
		tr.log.WriteString("(nothing)\n")
	}
}

func (tr *transcript) script(t *testing.T, d *datadriven.TestData) {
	tr.router.pending = d.HasArg("pending")
	tr.router.err, tr.router.target = nil, strings.Split(arg(d, "target", "10.0.0.1:8000"), ",")
	tr.router.matched, _ = strconv.Atoi(arg(d, "matched", "0"))
	tr.router.prompt, _ = strconv.Atoi(arg(d, "prompt", "0"))
	byName := func(name string) routing.Reason {
		for _, r := range routing.Reasons() {
			if r.String() == name {
				return r
			}
		}
		t.Fatalf("no reason %s", name)
		return 0
	}
	tr.router.reason = byName(arg(d, "reason", "load"))
	if name := arg(d, "error", ""); name != "" {
		tr.router.err = &routing.Error{Reason: byName(name), Message: "as scripted", Param: arg(d, "param", "")}
	}
}

func headersMessage(d *datadriven.TestData, eos bool) *extprocv3.ProcessingRequest {
	h := &extprocv3.HttpHeaders{Headers: headerMap(d.Input), EndOfStream: eos}
	req := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: h}}
	if d.Cmd == "response_headers" {
		req.Request = &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: h}
	}
	text := func(key, value string) *structpb.Struct {
		return &structpb.Struct{Fields: map[string]*structpb.Value{key: structpb.NewStringValue(value)}}
	}
	if v := arg(d, "upstream", ""); v != "" {
		req.Attributes = map[string]*structpb.Struct{attributeNamespace: text(attributeUpstream, v)}
	}
	if v := arg(d, "served", ""); v != "" {
		req.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{namespaceLB: text(keyServed, v)}}
	}
	if d.HasArg("subset") {
		list := &structpb.ListValue{}
		if v := arg(d, "subset", ""); v != "none" {
			for _, a := range strings.Split(v, ",") {
				list.Values = append(list.Values, structpb.NewStringValue(a))
			}
		}
		req.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			namespaceSubset: {Fields: map[string]*structpb.Value{keySubset: structpb.NewListValue(list)}},
		}}
	}
	return req
}

// counts prints every counter that is not zero.
func (tr *transcript) counts() {
	families, err := tr.reg.Gather()
	if err != nil {
		tr.t.Fatal(err)
	}
	var lines []string
	for _, f := range families {
		if f.GetType() != dto.MetricType_COUNTER {
			continue
		}
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetValue())
			}
			if v := m.GetCounter().GetValue(); v > 0 {
				lines = append(lines, fmt.Sprintf("%s{%s} %v", f.GetName(), strings.Join(labels, ","), v))
			}
		}
	}
	slices.Sort(lines)
	for _, l := range lines {
		fmt.Fprintln(&tr.log, l)
	}
}
