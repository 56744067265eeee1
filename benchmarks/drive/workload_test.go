package drive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/tokenizer"
)

func TestWorkload_Bodies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := workload{
			Seed: rapid.Uint64().Draw(t, "seed"),
			Body: rapid.IntRange(minBody, 4<<10).Draw(t, "body"),
			Kind: rapid.SampledFrom([]promptKind{promptSeen, promptUnseen, promptIDs}).Draw(t, "kind"),
		}
		n, groups := w.prompts()
		bodies := w.bodies()
		if len(bodies) != n {
			t.Fatalf("%d bodies, want %d", len(bodies), n)
		}
		shared := w.sharedTokens()
		for i, b := range bodies {
			if len(b) != w.Body || !json.Valid(b) {
				t.Fatalf("body %d has %d bytes, want %d, valid: %v\n%s", i, len(b), w.Body, json.Valid(b), b)
			}
			tokens := w.tokens(b)
			prefix := shared[i%groups]
			if len(prefix) < blockSize || len(prefix) >= len(tokens) || !slices.Equal(tokens[:len(prefix)], prefix) {
				t.Fatalf("body %d: %d tokens do not begin with the %d of its group", i, len(tokens), len(prefix))
			}
			for _, id := range tokens {
				if id >= vocabulary {
					t.Fatalf("token %d is not below %d", id, vocabulary)
				}
			}
		}
	})
}

// The prompts of a lane whose texts are unseen have the tokens of the others.
func TestSource_UnseenTextsHaveKnownTokens(t *testing.T) {
	w := workload{Seed: 1, Body: 1024, Kind: promptUnseen}
	s := source{kind: w.Kind, bodies: w.bodies()}
	before := bytes.Clone(s.bodies[0])
	seen := map[string]bool{}
	for i := range uint64(1000) {
		b := s.body(i)
		if seen[string(b)] || len(b) != w.Body || !json.Valid(b) {
			t.Fatalf("request %d: a text that was sent before, or that is no JSON of %d bytes:\n%s", i, w.Body, b)
		}
		seen[string(b)] = true
		if want := w.tokens(s.bodies[i%uint64(len(s.bodies))]); !slices.Equal(w.tokens(b), want) {
			t.Fatalf("request %d: other tokens than those of its prompt", i)
		}
	}
	if !bytes.Equal(before, s.bodies[0]) {
		t.Error("a prompt was changed")
	}
}

func TestStub_AnswersTheRealClient(t *testing.T) {
	st := &stub{}
	l, err := startLocal(st, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.stop()
	cfg := tokenizer.DefaultConfig()
	cfg.Endpoints = []string{"http://" + l.addresses[0]}
	cfg.Budget, cfg.Attempt = requestTimeout, requestTimeout
	hc := &http.Client{Transport: &http.Transport{}}
	defer hc.CloseIdleConnections()
	c, err := tokenizer.New(cfg, hc, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	w := workload{Seed: 1, Body: 4096, Kind: promptSeen}
	for _, body := range w.bodies()[:3] {
		var chat struct{ Messages json.RawMessage }
		if err := json.Unmarshal(body, &chat); err != nil {
			t.Fatal(err)
		}
		hasher := kvindex.NewHasher(1)
		got, rerr := c.Tokenize(t.Context(), &routing.TokenQuery{
			Request: &routing.Request{Model: model, Prompt: routing.Prompt{Kind: routing.PromptChat, Messages: chat.Messages}},
			Hasher:  hasher, BlockSizes: []int{blockSize},
		}, nil)
		if rerr != nil {
			t.Fatal(rerr)
		}
		want := w.tokens(body)
		if len(got) != 1 || got[0].Count != len(want) || len(got[0].Blocks) != 1 {
			t.Fatalf("tokens: %+v, want one answer of %d", got, len(want))
		}
		if diff := cmp.Diff(hasher.AppendContents(nil, want, blockSize), got[0].Blocks[0].Contents); diff != "" {
			t.Errorf("blocks (-want +got):\n%s", diff)
		}
	}
	if n := st.asked.Load(); n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
}

func TestHold_WhatTheIndexThenMatches(t *testing.T) {
	const endpoints = 40
	for _, kind := range []promptKind{promptSeen, promptIDs} {
		w := workload{Seed: 7, Body: 2048, Kind: kind}
		index, err := kvindex.New(kvindex.Config{})
		if err != nil {
			t.Fatal(err)
		}
		var all []kvindex.Publisher
		for i := range endpoints {
			all = append(all, kvindex.Publisher{ID: kvindex.PublisherID(i), Endpoint: kvindex.EndpointID(i), Incarnation: 1})
		}
		hasher := kvindex.NewHasher(w.Seed)
		if err := w.hold(index, hasher, all); err != nil {
			t.Fatal(err)
		}
		root := hasher.Root(kvindex.Scope{Model: model, BlockSize: blockSize})
		_, groups := w.prompts()
		for i, b := range w.bodies() {
			chain := kvindex.AppendChain(nil, root, hasher.AppendContents(nil, w.tokens(b), blockSize))
			full := uint32(len(w.sharedTokens()[i%groups]) / blockSize)
			var whole, half int
			for _, m := range index.Match(nil, chain, time.Time{}, nil) {
				switch m.Confirmed {
				case full:
					whole++
				case (full + 1) / 2:
					half++
				default:
					t.Errorf("prompt %d: endpoint %d holds %d blocks, want %d or half", i, m.Endpoint, m.Confirmed, full)
				}
				if m.Trust != kvindex.TrustExact {
					t.Errorf("trust %v", m.Trust)
				}
			}
			if whole != 3 || half != endpoints/10 {
				t.Errorf("prompt %d: %d endpoints hold all and %d half, want 3 and %d", i, whole, half, endpoints/10)
			}
		}
	}
}

// scripted is a server that answers as the test says.
type scripted struct {
	extprocv3.UnimplementedExternalProcessorServer
	reply func(*extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse
}

func (s *scripted) Process(g extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		req, err := g.Recv()
		if err != nil {
			return nil
		}
		if err := g.Send(s.reply(req)); err != nil {
			return err
		}
	}
}

// nullReply gives the replies of the null server, one a call.
func nullReply(req *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	one := &oneMessage{in: req}
	_ = (&nullServer{destination: "10.64.0.1:8000"}).Process(one)
	return one.out
}

// oneMessage is a stream of one message.
type oneMessage struct {
	grpc.ServerStream
	in  *extprocv3.ProcessingRequest
	out *extprocv3.ProcessingResponse
}

func (o *oneMessage) Recv() (*extprocv3.ProcessingRequest, error) {
	in := o.in
	if in == nil {
		return nil, errors.New("no more")
	}
	o.in = nil
	return in, nil
}

func (o *oneMessage) Send(r *extprocv3.ProcessingResponse) error { o.out = r; return nil }

// driveOne makes one request of a server that replies as given.
func driveOne(t *testing.T, chunks int, reasons []string, reply func(*extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse) (*bare, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	extprocv3.RegisterExternalProcessorServer(g, &scripted{reply: reply})
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	w := workload{Seed: 1, Body: 1024, Kind: promptSeen}
	c, err := newBare(l.Addr().String(), w, source{kind: w.Kind, bodies: w.bodies(), reasons: reasons}, chunks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.close()
		g.Stop()
		<-served
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = c.do(ctx, 0)
	return c, err
}

func TestBare_SendsChunksOnlyToThoseWhoAsk(t *testing.T) {
	for _, tt := range []struct {
		mode *modev3.ProcessingMode
		want uint64
	}{
		{nil, 0},
		{&modev3.ProcessingMode{ResponseTrailerMode: modev3.ProcessingMode_SEND}, 0},
		{&modev3.ProcessingMode{ResponseBodyMode: modev3.ProcessingMode_STREAMED}, 7},
	} {
		c, err := driveOne(t, 7, nil, func(req *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
			if req.GetResponseBody() != nil {
				return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}}
			}
			r := nullReply(req)
			if req.GetResponseHeaders() != nil {
				r.ModeOverride = tt.mode
			}
			return r
		})
		if err != nil || c.chunked.Load() != tt.want || c.sent.Load() != messagesPerRequest+tt.want {
			t.Errorf("mode %v: %v, %d chunks in %d messages; want %d in %d", tt.mode, err, c.chunked.Load(), c.sent.Load(), tt.want, messagesPerRequest+tt.want)
		}
	}
}

func TestBare_NamesWhatIsWrong(t *testing.T) {
	refusal := &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{Status: &typev3.HttpStatus{Code: 404}, Body: []byte("no such model")},
	}}
	for _, tt := range []struct {
		name    string
		reasons []string
		reply   func(*extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse
		want    string
	}{
		{"refused", nil, func(*extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse { return refusal }, "refused with status 404: no such model"},
		{"no destination", nil, func(req *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
			if req.GetRequestBody() != nil {
				return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}}
			}
			return nullReply(req)
		}, "sets no " + headerDestination},
		{"another reason", []string{"prefix"}, nullReply, `reason is "", and not one of ["prefix"]`},
	} {
		if _, err := driveOne(t, 0, tt.reasons, tt.reply); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.want)
		}
	}
}

func TestRequestHeaders_AreEighteen(t *testing.T) {
	if n := len(requestHeaders("/v1/completions", 1).GetRequestHeaders().GetHeaders().GetHeaders()); n != 18 {
		t.Errorf("%d headers, want 18", n)
	}
}

func TestBootstrap_IsYAML(t *testing.T) {
	text, err := writeBootstrap([]gateway{
		{Name: "direct-2ep", Engines: []string{"127.0.0.1:1", "127.0.0.1:2"}},
		{Name: "random-1ep", Router: "127.0.0.1:3", Engines: []string{"127.0.0.1:1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Static struct {
			Listeners []struct{ Name string }
			Clusters  []struct{ Name string }
		} `yaml:"static_resources"`
	}
	if err := yaml.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range got.Static.Listeners {
		names = append(names, l.Name)
	}
	for _, c := range got.Static.Clusters {
		names = append(names, c.Name)
	}
	if diff := cmp.Diff([]string{"direct-2ep", "random-1ep", "engines-direct-2ep", "router-random-1ep", "engines-random-1ep"}, names); diff != "" {
		t.Errorf("listeners and clusters (-want +got):\n%s", diff)
	}
}
