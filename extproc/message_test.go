package extproc

import (
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"
)

// fataler is what *testing.T and *rapid.T have in common.
type fataler interface {
	Helper()
	Fatal(...any)
}

// receive hands a message to s as it comes over the wire, and overwrites the
// wire's memory after it.
func receive(t fataler, s *stream, req *extprocv3.ProcessingRequest) bool {
	t.Helper()
	raw, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	x := mailbox{memories: new(memories), received: frame{mem.BufferSlice{mem.SliceBuffer(raw)}}}
	if err := x.open(); err != nil {
		t.Fatal(err)
	}
	decide := s.receive(&x.message, time.Unix(0, 0))
	x.close()
	for i := range raw {
		raw[i] = 0xAA
	}
	return decide
}

// replies takes what s has to send and decodes it.
func replies(t fataler, s *stream) []*extprocv3.ProcessingResponse {
	t.Helper()
	var all []*extprocv3.ProcessingResponse
	for _, data := range s.take() {
		r := &extprocv3.ProcessingResponse{}
		if err := proto.Unmarshal(data.Materialize(), r); err != nil {
			t.Fatal(err)
		}
		data.Free()
		all = append(all, r)
	}
	return all
}

// headersOfText reads lines of name: value.
func headersOfText(input string) []header {
	var all []header
	for _, kv := range headerMap(input).Headers {
		all = append(all, header{[]byte(kv.Key), kv.RawValue})
	}
	return all
}

// messageOf is the model of [message.decode]: the same through the generated
// API.
func messageOf(req *extprocv3.ProcessingRequest) message {
	m := message{observed: req.GetObservabilityMode(), kind: kindUnknown}
	if c := req.GetProtocolConfig(); c != nil {
		m.modesKnown, m.requestMode, m.responseMode = true, c.GetRequestBodyMode(), c.GetResponseBodyMode()
	}
	headers := func(k kind, h *extprocv3.HttpHeaders) {
		m.kind, m.eos = k, h.GetEndOfStream()
		for _, kv := range h.GetHeaders().GetHeaders() {
			value := kv.GetRawValue()
			if len(value) == 0 {
				value = []byte(kv.GetValue())
			}
			m.headers = append(m.headers, header{[]byte(kv.GetKey()), value})
		}
	}
	body := func(k kind, b *extprocv3.HttpBody) {
		m.kind, m.body, m.eos = k, b.GetBody(), b.GetEndOfStream()
	}
	switch r := req.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		headers(kindRequestHeaders, r.RequestHeaders)
		m.subset = subsetOf(req.GetMetadataContext())
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		headers(kindResponseHeaders, r.ResponseHeaders)
		m.served = []byte(req.GetMetadataContext().GetFilterMetadata()[namespaceLB].GetFields()[keyServed].GetStringValue())
		m.upstream = []byte(req.GetAttributes()[attributeNamespace].GetFields()[attributeUpstream].GetStringValue())
	case *extprocv3.ProcessingRequest_RequestBody:
		body(kindRequestBody, r.RequestBody)
	case *extprocv3.ProcessingRequest_ResponseBody:
		body(kindResponseBody, r.ResponseBody)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		m.kind = kindRequestTrailers
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		m.kind = kindResponseTrailers
	}
	return m
}

func subsetOf(m *corev3.Metadata) []string {
	v, ok := m.GetFilterMetadata()[namespaceSubset].GetFields()[keySubset]
	if !ok {
		return nil
	}
	allowed := []string{}
	add := func(s string) {
		if s = strings.TrimSpace(s); s != "" {
			allowed = append(allowed, s)
		}
	}
	switch v := v.GetKind().(type) {
	case *structpb.Value_ListValue:
		for _, e := range v.ListValue.GetValues() {
			add(e.GetStringValue())
		}
	case *structpb.Value_StringValue:
		for s := range strings.SplitSeq(v.StringValue, ",") {
			add(s)
		}
	}
	return allowed
}

// checkDecode compares decode with the generated API.
func checkDecode(t interface {
	Helper()
	Fatalf(string, ...any)
}, raw []byte,
) {
	t.Helper()
	before := string(raw)
	m := message{headers: []header{{[]byte("of"), []byte("before")}}, body: []byte("before"), eos: true}
	got := m.decode(raw)
	if string(raw) != before {
		t.Fatalf("the encoding was written to")
	}
	var req extprocv3.ProcessingRequest
	want := proto.Unmarshal(raw, &req)
	if (got == nil) != (want == nil) {
		t.Fatalf("error %v, the generated API has %v, of %x", got, want, raw)
	}
	if want != nil {
		return
	}
	opts := cmp.Options{cmp.AllowUnexported(message{}, header{}), cmpopts.EquateEmpty()}
	model := messageOf(&req)
	if d := cmp.Diff(model, m, opts); d != "" {
		t.Fatalf("%x (-generated +raw):\n%s", raw, d)
	}
	if (model.subset == nil) != (m.subset == nil) {
		t.Fatalf("%x: subset %#v, the generated API has %#v", raw, m.subset, model.subset)
	}
}

// sampleMessages are well formed messages with all that is read, and more.
func sampleMessages() []*extprocv3.ProcessingRequest {
	fields := func(kv ...string) *structpb.Struct {
		s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for i := 0; i < len(kv); i += 2 {
			s.Fields[kv[i]] = structpb.NewStringValue(kv[i+1])
		}
		return s
	}
	list := structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{
		structpb.NewStringValue("10.0.0.1:8000"), structpb.NewNumberValue(3), structpb.NewStringValue(" 10.0.0.2:8000 "),
	}})
	headers := headersOf(false, ":method", "POST", ":path", "/v1/completions", "Content-Type", "application/json")
	headers.MetadataContext = &corev3.Metadata{
		FilterMetadata: map[string]*structpb.Struct{
			namespaceSubset: {Fields: map[string]*structpb.Value{keySubset: list, "x": structpb.NewStructValue(fields("a", "b"))}},
			"other":         fields("a", "b"),
		},
		TypedFilterMetadata: map[string]*anypb.Any{"t": {TypeUrl: "type.googleapis.com/x", Value: []byte{1, 2}}},
	}
	old := headersOf(true)
	old.GetRequestHeaders().Headers.Headers = []*corev3.HeaderValue{{Key: ":path", Value: "/old"}, {}}
	answer := &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{
			Headers: headerMap(":status: 200\ncontent-type: text/event-stream"), EndOfStream: true,
		}},
		Attributes: map[string]*structpb.Struct{attributeNamespace: fields(attributeUpstream, "10.0.0.1:8000")},
	}
	served := proto.Clone(answer).(*extprocv3.ProcessingRequest)
	served.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{namespaceLB: fields(keyServed, "10.0.0.2:8000")}}
	return []*extprocv3.ProcessingRequest{
		{},
		headers, old, get(), bodyOf([]byte(`{"model":"demo"}`)), bodyOf(nil), answer, served,
		{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{Trailers: headerMap("a: b")}}},
		{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: []byte("x")}}},
		{Request: &extprocv3.ProcessingRequest_ResponseTrailers{}, ObservabilityMode: true},
		{ProtocolConfig: &extprocv3.ProtocolConfiguration{
			RequestBodyMode: modev3.ProcessingMode_FULL_DUPLEX_STREAMED, ResponseBodyMode: -1, SendBodyWithoutWaitingForHeaderResponse: true,
		}},
	}
}

// anyEncoding draws an encoding that is like a message: samples one after the
// other, which is their merger, with fields cut out, repeated, wrapped or
// changed at any depth.
func anyEncoding(t *rapid.T, samples [][]byte) []byte {
	var raw []byte
	for range rapid.IntRange(1, 3).Draw(t, "messages") {
		raw = append(raw, rapid.SampledFrom(samples).Draw(t, "sample")...)
	}
	return mutate(t, raw, 0)
}

func mutate(t *rapid.T, raw []byte, depth int) []byte {
	var out []byte
	f := fields{rest: raw}
	for f.next() {
		times := 1
		switch rapid.IntRange(0, 19).Draw(t, "what") {
		case 0:
			times = 0
		case 1:
			times = 2
		case 2: // another field of the same value
			f.num = protowire.Number(rapid.IntRange(0, 16).Draw(t, "number"))
		case 3: // an unknown field before it
			out = protowire.AppendTag(out, 1000, protowire.StartGroupType)
			out = protowire.AppendVarint(protowire.AppendTag(out, 1, protowire.VarintType), 1)
			out = protowire.AppendTag(out, 1000, protowire.EndGroupType)
		case 4: // another type
			out = protowire.AppendFixed64(protowire.AppendTag(out, f.num, protowire.Fixed64Type), 5)
		}
		value := f.bytes
		if f.typ == protowire.BytesType && depth < 8 && len(value) > 0 && rapid.Bool().Draw(t, "inside") {
			if inner := mutate(t, value, depth+1); inner != nil {
				value = inner
			}
		}
		for range times {
			switch f.typ {
			case protowire.BytesType:
				out = protowire.AppendBytes(protowire.AppendTag(out, f.num, f.typ), value)
			case protowire.VarintType:
				out = protowire.AppendVarint(protowire.AppendTag(out, f.num, f.typ), f.number)
			}
		}
	}
	if f.malformed && depth > 0 {
		return nil
	}
	if rapid.IntRange(0, 30).Draw(t, "break") == 0 && len(out) > 0 {
		out[rapid.IntRange(0, len(out)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
	}
	return out
}

func encodedSamples(t testing.TB) [][]byte {
	var all [][]byte
	for _, m := range sampleMessages() {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, raw)
	}
	return all
}

// What the codec reads is what the generated API reads, of anything.
func TestMessage_DecodesAsTheGeneratedAPI(t *testing.T) {
	samples := encodedSamples(t)
	for _, raw := range samples {
		checkDecode(t, raw)
	}
	rapid.Check(t, func(t *rapid.T) { checkDecode(t, anyEncoding(t, samples)) })
}

func FuzzMessage(f *testing.F) {
	samples := encodedSamples(f)
	for _, raw := range samples {
		f.Add(raw)
		f.Add(append(raw[:len(raw):len(raw)], samples[1]...))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { checkDecode(t, raw) })
}

// A message that comes in pieces reads as one in one piece, and a request's
// body outlives the memory that it came in.
func TestMailbox_Borrows(t *testing.T) {
	raw, err := proto.Marshal(bodyOf([]byte(strings.Repeat("body ", 100))))
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{0, 1, 7, len(raw) - 1} {
		wire := append([]byte(nil), raw...)
		data := mem.BufferSlice{mem.SliceBuffer(wire)}
		if cut > 0 {
			data = mem.BufferSlice{mem.SliceBuffer(wire[:cut]), mem.SliceBuffer(wire[cut:])}
		}
		x := mailbox{memories: new(memories), received: frame{data}}
		if err := x.open(); err != nil {
			t.Fatal(err)
		}
		body := x.message.body
		x.close()
		clear(wire)
		if string(body) != strings.Repeat("body ", 100) {
			t.Errorf("cut at %d: the body is %q", cut, body)
		}
	}
}
