package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/engine/server"
	"github.com/warmpath/warmpath/events"
)

// startEngine starts a fake engine that ends with the test.
func startEngine(t *testing.T, cfg server.Config) *server.Server {
	t.Helper()
	cfg.Models, cfg.TimeScale = []string{"m"}, 1e-5
	if cfg.Events == "" {
		cfg.Events, cfg.Replay = "tcp://127.0.0.1:0", "tcp://127.0.0.1:0"
	}
	if cfg.Engine.BlockSize == 0 {
		cfg.Engine.BlockSize = 16
	}
	s, err := server.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("engine: %v", err)
		}
	})
	select {
	case <-s.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return s
}

// before puts a server before an engine, which answers what handle does not.
func before(t *testing.T, e *server.Server, handle func(w http.ResponseWriter, r *http.Request, engine http.Handler) bool) string {
	t.Helper()
	engine := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: e.Addr()})
	engine.Transport = &http.Transport{DisableKeepAlives: true}
	engine.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !handle(w, r, engine) {
			engine.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// edited answers with what the engine says, after a change.
func edited(old, replacement string) func(http.ResponseWriter, *http.Request, http.Handler) bool {
	pattern := regexp.MustCompile(old)
	return func(w http.ResponseWriter, r *http.Request, engine http.Handler) bool {
		if r.URL.Path != "/v1/completions" {
			return false
		}
		rec := httptest.NewRecorder()
		engine.ServeHTTP(rec, r)
		b, _ := io.ReadAll(rec.Body)
		_, _ = w.Write(pattern.ReplaceAll(b, []byte(replacement)))
		return true
	}
}

func endpointYAML(name, address string, e *server.Server) string {
	return fmt.Sprintf("{name: %s, address: %q, models: [m], events: %q, replay: %q}", name, address, e.EventsEndpoint(), e.ReplayEndpoint())
}

// examine runs the doctor and returns what it found, each as "LEVEL check
// about: text → mend".
func examine(t *testing.T, config string, args ...string) (code int, found []string) {
	t.Helper()
	code, stdout, stderr := invoke(t, nil, append([]string{"doctor", "--json", "--wait", "2s", "--config", writeConfig(t, config)}, args...)...)
	var out struct {
		Findings []finding `json:"findings"`
	}
	if err := json.Unmarshal([]byte(stdout), &out); err != nil {
		t.Fatalf("exit code %d, %v: %s%s", code, err, stdout, stderr)
	}
	for _, f := range out.Findings {
		found = append(found, fmt.Sprintf("%s %s %s: %s → %s", f.Level, f.Check, f.About, f.Text, f.Mend))
	}
	return code, found
}

// What other routers told is judged only once they had the time to, and by
// whether there are any.
func TestDoctor_WarmStart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		warm  events.WarmStart
		wait  time.Duration
		peers float64
		want  []level
		text  string
	}{
		{"nothing to ask for", events.WarmStart{}, time.Minute, 0, []level{levelOK}, ""},
		{"taken", events.WarmStart{Asked: 3, FromPeers: 1, Asking: 1}, time.Minute, 2, []level{levelOK}, "taken"},
		{"nothing told", events.WarmStart{Asked: 3}, time.Minute, 1, []level{levelWarn}, "no other router told"},
		{"still asked", events.WarmStart{Asked: 3, Asking: 1}, time.Second, 1, []level{levelSkip}, "still being asked"},
		{"alone", events.WarmStart{Asked: 3}, time.Minute, 0, []level{levelSkip}, "no other router than the one here"},
		{"found late", events.WarmStart{Asked: 3, FromPeers: 3, Unasked: 2}, time.Minute, 1, []level{levelWarn, levelOK}, "2 event streams were found so late"},
		{"found late by the wait", events.WarmStart{Asked: 3, FromPeers: 3, Unasked: 2}, time.Second, 1, []level{levelSkip, levelOK}, "2 event streams were found so late"},
	} {
		d := &doctor{cfg: DefaultConfig(), wait: tt.wait}
		d.checkWarmStart(tt.warm, "taken", tt.peers)
		var got []level
		for _, f := range d.findings {
			got = append(got, f.Level)
		}
		if !slices.Equal(got, tt.want) || !strings.Contains(d.findings[0].Text, tt.text) {
			t.Errorf("%s: %+v, want %v with %q", tt.name, d.findings, tt.want, tt.text)
		}
	}
}

// A fleet's only router is not blamed for having nobody to ask, and a peer that
// is slow delays the doctor no longer than it waits for anything.
func TestDoctor_PeersInTime(t *testing.T) {
	e := startEngine(t, server.Config{})
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hangs := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, call grpc.ServerStream) error {
		<-call.Context().Done()
		return call.Context().Err()
	}))
	started(t, func(ctx context.Context) error {
		defer context.AfterFunc(ctx, hangs.Stop)()
		return hangs.Serve(silent)
	})
	own := freeAddress(t)
	for _, tt := range []struct{ name, peer, want string }{
		{"alone", own, "^skip warm start : there is no other router"},
		{"a silent one", silent.Addr().String(), "^warn warm start : no other router told.* 0 of them still"},
	} {
		code, found := examine(t, fmt.Sprintf("index: {seed_file: %s}\ncachestate: {listen: %q, peers: [%q], timeout: 20s}\npool: {static: {endpoints: [%s]}}\n",
			writeSeed(t), own, tt.peer, endpointYAML("a", e.Addr(), e)), "--passive")
		if code != exitOK || !slices.ContainsFunc(found, regexp.MustCompile(tt.want).MatchString) {
			t.Errorf("%s: exit code %d, want %s in\n%s", tt.name, code, tt.want, strings.Join(found, "\n"))
		}
	}
}

func TestDoctor_FindsPlantedFaults(t *testing.T) {
	static := func(endpoints ...string) string {
		return "pool: {health: {interval: 50ms, timeout: 5s}, load: {interval: 50ms}, static: {endpoints: [" + strings.Join(endpoints, ", ") + "]}}\n"
	}
	nothing := func(http.ResponseWriter, *http.Request, http.Handler) bool { return false }
	for _, tt := range []struct {
		name string
		// config returns the configuration of a deployment with a fault.
		config func(t *testing.T, e *server.Server) string
		args   []string
		code   int
		// patient: nothing is waited for in vain.
		patient bool
		// want are patterns of findings, never of what must not be found.
		want, never []string
	}{
		{
			name: "none", config: func(_ *testing.T, e *server.Server) string { return static(endpointYAML("a", e.Addr(), e)) },
			want: []string{
				"^ok configuration", "^ok model m: 1 endpoint", "^ok events a: .* history is complete", "^ok metrics a", "^ok tokenizer a: [0-9]+ tokens",
				"^ok prediction a: [0-9]+ of [0-9]+ tokens predicted", "^ok block size m: 16 tokens", "^skip envoy",
			},
			never: []string{"^FAIL", "^warn"},
		},
		{
			name: "passive", args: []string{"--passive"}, config: func(_ *testing.T, e *server.Server) string { return static(endpointYAML("a", e.Addr(), e)) },
			want: []string{"^skip prediction"}, never: []string{"^FAIL", "tokenizer"},
		},
		{
			name: "a dead engine", code: exitFault, config: func(_ *testing.T, e *server.Server) string {
				return static(endpointYAML("a", e.Addr(), e), `{name: b, address: "127.0.0.1:1", models: [m]}`, `{name: c, address: "127.0.0.1:2", models: [other]}`)
			},
			want: []string{"^FAIL endpoint b: does not answer its health probe: .*refused → curl -i http://127.0.0.1:1/health", "^FAIL model other: no endpoint", "^ok model m: 1 endpoint"},
		},
		{
			name: "no replay socket", config: func(_ *testing.T, e *server.Server) string {
				return static(fmt.Sprintf("{name: a, address: %q, models: [m], events: %q}", e.Addr(), e.EventsEndpoint()))
			},
			want: []string{"^warn configuration .*replay", "^warn replay a: .* → start vLLM with --kv-events-config", "^ok prediction"}, never: []string{"^FAIL"},
		},
		{
			name: "warnings are strict", patient: true, code: exitFault, args: []string{"--strict"}, config: func(_ *testing.T, e *server.Server) string {
				return static(fmt.Sprintf("{name: a, address: %q, models: [m], events: %q}", e.Addr(), e.EventsEndpoint()))
			},
			want: []string{"^warn replay"}, never: []string{"^FAIL"},
		},
		{
			name: "events where nobody listens", code: exitFault, config: func(_ *testing.T, e *server.Server) string {
				return static(fmt.Sprintf("{name: a, address: %q, models: [m], events: \"tcp://127.0.0.1:1\"}", e.Addr()))
			},
			want: []string{"^FAIL events a: tcp://127.0.0.1:1 cannot be followed: .*refused", "^FAIL event flow a: no event came"},
		},
		{
			name: "a replay socket where nobody listens", code: exitFault, config: func(_ *testing.T, e *server.Server) string {
				return static(fmt.Sprintf("{name: a, address: %q, models: [m], events: %q, replay: \"tcp://127.0.0.1:1\"}", e.Addr(), e.EventsEndpoint()))
			},
			want: []string{"^warn events a: .*the replay socket tcp://127.0.0.1:1 has not answered.* → nc -vz 127.0.0.1 1", "^FAIL event flow a: its events are held back until its replay socket tcp://127.0.0.1:1 answers"},
		},
		{
			name: "no events", config: func(_ *testing.T, e *server.Server) string {
				return static(fmt.Sprintf("{name: a, address: %q, models: [m]}", e.Addr()))
			},
			want: []string{"^warn events a: it publishes no KV events"}, never: []string{"^FAIL", "prediction a"},
		},
		{
			name: "the events of another engine", code: exitFault, config: func(t *testing.T, e *server.Server) string {
				return static(endpointYAML("a", e.Addr(), startEngine(t, server.Config{})))
			},
			want: []string{"^FAIL event flow a: no event came within 2s.* → warmpath events tcp://127"},
		},
		{
			name: "no metrics", code: exitFault, config: func(t *testing.T, e *server.Server) string {
				return static(endpointYAML("a", before(t, e, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
					if r.URL.Path != "/metrics" {
						return false
					}
					http.NotFound(w, r)
					return true
				}), e))
			},
			want: []string{`^FAIL metrics a: .*/metrics has no load metrics .*\(status 404\) → curl -s http`}, never: []string{"FAIL [^m]"},
		},
		{
			name: "no tokenizer", code: exitFault, config: func(_ *testing.T, e *server.Server) string {
				return "tokenizer: {endpoints: [\"http://127.0.0.1:1\"]}\n" + static(endpointYAML("a", e.Addr(), e))
			},
			want: []string{"^FAIL tokenizer a: prompts are not tokenized .* → curl -i http://127.0.0.1:1/tokenize"},
		},
		{
			name: "the tokenizer of another model", code: exitFault, config: func(t *testing.T, e *server.Server) string {
				other := before(t, e, func(w http.ResponseWriter, r *http.Request, engine http.Handler) bool {
					b, _ := io.ReadAll(r.Body)
					b = bytes.ReplaceAll(b, []byte(`"prompt":"`), []byte(`"prompt":"x `))
					r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
					engine.ServeHTTP(w, r)
					return true
				})
				return "tokenizer: {endpoints: [\"http://" + other + "\"]}\n" + static(endpointYAML("a", e.Addr(), e))
			},
			want: []string{"^FAIL event flow a: its events come, but nothing of the prompt .* different tokens"},
		},
		{
			name: "an engine that fails", patient: true, code: exitFault, config: func(t *testing.T, e *server.Server) string {
				return static(endpointYAML("a", before(t, e, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
					if r.URL.Path != "/v1/completions" {
						return false
					}
					http.Error(w, "out of memory", http.StatusInternalServerError)
					return true
				}), e))
			},
			want: []string{"^FAIL request a: a completion fails: .*status 500: out of memory"},
		},
		{
			name: "a cache that is not what the events say", patient: true, code: exitFault, config: func(t *testing.T, e *server.Server) string {
				return static(endpointYAML("a", before(t, e, edited(`"cached_tokens":\d+`, `"cached_tokens":0`)), e))
			},
			want: []string{"^FAIL prediction a: [1-9][0-9]* of [0-9]+ tokens were predicted to be cached, 0 were"},
		},
		{
			name: "events that say too little", config: func(t *testing.T, e *server.Server) string {
				return static(endpointYAML("a", before(t, e, edited(`"cached_tokens":\d+`, `"cached_tokens":99999`)), e))
			},
			want: []string{"^warn prediction a: .* part of the events is lost"}, never: []string{"^FAIL"},
		},
		{
			name: "an engine that does not tell what was cached", config: func(t *testing.T, e *server.Server) string {
				return static(endpointYAML("a", before(t, e, edited(`,"prompt_tokens_details":\{[^}]*\}`, ``)), e))
			},
			want: []string{"^warn prediction a: .*does not say how many were → start vLLM with --enable-prompt-tokens-details"}, never: []string{"^FAIL"},
		},
		{
			name: "two block sizes", config: func(t *testing.T, e *server.Server) string {
				b := startEngine(t, server.Config{Engine: engine.Config{BlockSize: 32}})
				return static(endpointYAML("a", e.Addr(), e), endpointYAML("b", b.Addr(), b))
			},
			want: []string{`^warn block size m: .*16 \(a\), 32 \(b\) → start all engines of a model with the same --block-size`}, never: []string{"^FAIL"},
		},
		{
			name: "the metrics of another engine", config: func(t *testing.T, e *server.Server) string {
				b := startEngine(t, server.Config{Engine: engine.Config{BlockSize: 32}})
				return static(strings.Replace(endpointYAML("a", e.Addr(), e), "}", ", metrics: \"http://"+b.Addr()+"/metrics\"}", 1))
			},
			want: []string{`^warn block size a: its metrics say 32 tokens, its events \[16\]`},
		},
		{
			name: "a sample", args: []string{"--sample", "1"}, config: func(t *testing.T, e *server.Server) string {
				b := startEngine(t, server.Config{})
				return static(endpointYAML("a", e.Addr(), e), endpointYAML("b", before(t, b, nothing), b))
			},
			want: []string{"^ok prediction a", "^skip prediction m: 1 engine more"}, never: []string{"prediction b"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, server.Config{})
			args := tt.args
			if tt.patient || tt.code == exitOK {
				args = append([]string{"--wait", "20s"}, args...) // that a busy machine may need
			}
			code, found := examine(t, tt.config(t, e), args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			wantFindings(t, found, tt.want, tt.never)
		})
	}
}

func wantFindings(t *testing.T, found, want, never []string) {
	t.Helper()
	any := func(pattern string) bool {
		re := regexp.MustCompile(pattern)
		for _, f := range found {
			if re.MatchString(f) {
				return true
			}
		}
		return false
	}
	bad := false
	for _, pattern := range want {
		if !any(pattern) {
			t.Errorf("nothing found matches %q", pattern)
			bad = true
		}
	}
	for _, pattern := range never {
		if any(pattern) {
			t.Errorf("something found matches %q", pattern)
			bad = true
		}
	}
	if bad {
		t.Logf("found:\n%s", strings.Join(found, "\n"))
	}
}

// fakeCluster is as much of an API server as the doctor asks for: reviews of
// permissions, and no pods.
func fakeCluster(t *testing.T, allowed func(resource, verb string) bool) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
			var review struct {
				Spec struct {
					Attributes struct{ Namespace, Verb, Resource string } `json:"resourceAttributes"`
				} `json:"spec"`
			}
			_ = json.NewDecoder(r.Body).Decode(&review)
			a := review.Spec.Attributes
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","status":{"allowed":%v}}`, a.Namespace == "llm" && allowed(a.Resource, a.Verb))
		case r.URL.Query().Get("watch") != "":
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":422,"reason":"Invalid"}`)
		case strings.HasSuffix(r.URL.Path, "/pods"):
			fmt.Fprint(w, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}`)
		default:
			fmt.Fprint(w, `{"kind":"InferencePoolList","apiVersion":"inference.networking.k8s.io/v1","metadata":{"resourceVersion":"1"},"items":[]}`)
		}
	}))
	t.Cleanup(s.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c, namespace: llm}}]\n", s.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDoctor_Cluster(t *testing.T) {
	config := func(kubeconfig string) string {
		return fmt.Sprintf("pool: {kubernetes: {kubeconfig: %q, pod_selector: app=vllm, inference_pools: [llama]}}", kubeconfig)
	}
	all := func(string, string) bool { return true }
	code, found := examine(t, config(fakeCluster(t, all)))
	if code != exitFault {
		t.Errorf("exit code %d without endpoints", code)
	}
	wantFindings(t, found, []string{
		"^ok cluster pods: may get, list, watch pods in namespace llm", "^ok cluster inferencepools",
		"^FAIL cluster llama: there is no such InferencePool, or it lists nothing → kubectl get inferencepool -A",
		"^FAIL endpoints : there are none → kubectl get pods -l 'app=vllm' -o wide",
	}, nil)

	code, found = examine(t, config(fakeCluster(t, func(resource, verb string) bool { return resource != "pods" || verb == "get" })))
	if code != exitFault {
		t.Errorf("exit code %d without permissions", code)
	}
	wantFindings(t, found, []string{
		"^FAIL cluster pods: must not list, watch; .* → kubectl create role warmpath-pods --verb=get,list,watch --resource=pods -n llm && kubectl create rolebinding warmpath-pods --role=warmpath-pods .* -n llm",
		"^ok cluster inferencepools",
	}, nil)

	gone := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(gone, []byte("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: \"http://127.0.0.1:1\"}}]\ncontexts: [{name: c, context: {cluster: c, namespace: llm}}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, found = examine(t, config(gone))
	wantFindings(t, found, []string{"^FAIL cluster pods: the API server does not say .*refused", "^FAIL endpoints : not listed within 2s: kubernetes: pods .app=vllm. in namespace llm: .*refused; routers start without it after 30s.* → warmpath doctor --verbose"}, nil)
	if code != exitFault {
		t.Errorf("exit code %d without an API server", code)
	}
	// What is known is looked at all the same.
	_, found = examine(t, fmt.Sprintf("pool: {sync_timeout: 0s, static: {endpoints: [{name: s, address: \"127.0.0.1:1\"}]}, kubernetes: {kubeconfig: %q, pod_selector: app=vllm}}", gone))
	wantFindings(t, found, []string{"^FAIL endpoints : not listed within 2s: .*routers wait for it", "^FAIL endpoint s: "}, nil)

	_, found = examine(t, "pool: {kubernetes: {pod_selector: app=vllm}}")
	wantFindings(t, found, []string{"^FAIL cluster : pool.kubernetes.kubeconfig: empty, and this is no pod of a cluster"}, nil)
}

// dumpOf returns what Envoy's /config_dump says of the bootstrap that goes
// with cfg, changed by edits, each an old and a new text.
func dumpOf(t *testing.T, cfg Config, edits ...string) []byte {
	t.Helper()
	b, err := envoyBootstrap(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	static := doc["static_resources"].(map[string]any)
	typed := func(list string, typ string) []any {
		var out []any
		for _, r := range static[list].([]any) {
			m := r.(map[string]any)
			m["@type"] = typ
			out = append(out, map[string]any{"resource": m})
		}
		return out
	}
	dump, err := json.Marshal(map[string]any{"configs": []any{
		map[string]any{"static_listeners": typed("listeners", "type.googleapis.com/envoy.config.listener.v3.Listener")},
		map[string]any{"static_clusters": typed("clusters", "type.googleapis.com/envoy.config.cluster.v3.Cluster")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(edits); i += 2 {
		if !bytes.Contains(dump, []byte(edits[i])) {
			t.Fatalf("the bootstrap does not contain %s", edits[i])
		}
		dump = bytes.ReplaceAll(dump, []byte(edits[i]), []byte(edits[i+1]))
	}
	return dump
}

func TestDoctor_Envoy(t *testing.T) {
	cfg, _, err := load(writeConfig(t, valid), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		edits []string
		want  string // pattern of the only finding; empty: none
	}{
		{"our own bootstrap", nil, ""},
		{"message timeout", []string{`"message_timeout":"3s"`, `"message_timeout":"1s"`}, "FAIL ext_proc warmpath: message_timeout is 1s, and the router may take 2s .*set message_timeout to 3s"},
		{"default message timeout", []string{`"message_timeout":"3s",`, ``}, "FAIL ext_proc warmpath: message_timeout is 200ms"},
		{"fails closed", []string{`"failure_mode_allow":true,`, ``}, "warn ext_proc warmpath: failure_mode_allow is off"},
		{"no bodies", []string{`"request_body_mode":"BUFFERED"`, `"request_body_mode":"NONE"`}, "FAIL ext_proc warmpath: the router sees no request bodies"},
		{"streamed bodies", []string{`"request_body_mode":"BUFFERED"`, `"request_body_mode":"STREAMED"`}, "FAIL ext_proc warmpath: request_body_mode is STREAMED"},
		{"no answers", []string{`"response_header_mode":"SEND"`, `"response_header_mode":"SKIP"`}, "warn ext_proc warmpath: the router sees no answers"},
		{"no end of answers", []string{`"allow_mode_override":true`, `"allow_mode_override":false`, `"response_trailer_mode":"SEND"`, `"response_trailer_mode":"SKIP"`}, "warn ext_proc warmpath: the router does not learn when an answer ends"},
		{"route timeout", []string{`"timeout":"0s"}`, `"timeout":"60s"}`}, "FAIL route to engines: its timeout is 1m0s"},
		{"default route timeout", []string{`,"timeout":"0s"}`, `}`}, "FAIL route to engines: its timeout is 15s"},
		{"route idle timeout", []string{`"timeout":"0s"}`, `"timeout":"0s","idle_timeout":"30s"}`}, "FAIL route to engines: its idle_timeout is 30s"},
		{"stream idle timeout", []string{`"stream_idle_timeout":"3600s"`, `"stream_idle_timeout":"10s"`}, "FAIL listener llm: stream_idle_timeout is 10s"},
		{"request timeout", []string{`"stream_idle_timeout":"3600s"`, `"stream_idle_timeout":"0s","request_timeout":"5s"`}, "warn listener llm: request_timeout is 5s"},
		{"stream duration", []string{`"stream_idle_timeout":"3600s"`, `"common_http_protocol_options":{"max_stream_duration":"30s"}`}, "FAIL listener llm: max_stream_duration is 30s"},
		{"buffer", []string{`"per_connection_buffer_limit_bytes":33554432`, `"per_connection_buffer_limit_bytes":1048576`}, "warn listener llm: request bodies above 1 MiB are answered with 413.* to 33554432"},
		{"default circuit breakers", []string{`"max_retries":100000`, `"priority":"HIGH"`}, "warn cluster engines: it takes 1024 requests"},
		{"no chooser", []string{`override_host.v3.OverrideHost`, `round_robin.v3.RoundRobin`}, "FAIL clusters: no cluster takes its endpoint from x-gateway-destination-endpoint"},
		{"no processor", []string{`ext_proc.v3.ExternalProcessor`, `router.v3.Router`}, "FAIL : it has no external processor"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, err := envoyFindings(dumpOf(t, cfg, tt.edits...), cfg)
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for _, f := range found {
				lines = append(lines, fmt.Sprintf("%s %s: %s → %s", f.Level, f.About, f.Text, f.Mend))
			}
			got := strings.Join(lines, "\n")
			if tt.want == "" && got != "" || tt.want != "" && (len(found) != 1 || !regexp.MustCompile("^"+tt.want).MatchString(got)) {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
	if _, err := envoyFindings([]byte("no"), cfg); err == nil {
		t.Error("a configuration that is not JSON is accepted")
	}
}

// What a real Envoy says of itself is understood.
func TestDoctor_RealEnvoy(t *testing.T) {
	binary := testEnvoy(t)
	cfg := mustParse(t, valid)
	addrs := freeAddresses(t, 3)
	cfg.ExtProc.Listen, cfg.Envoy.Listen, cfg.Envoy.Admin = addrs[0], addrs[1], addrs[2]
	startEnvoy(t, binary, cfg)
	examined := func(cfg Config) []string {
		d := &doctor{cfg: cfg, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, envoy: "http://" + cfg.Envoy.Admin, wait: 10 * time.Second}
		d.checkEnvoy(t.Context())
		var found []string
		for _, f := range d.findings {
			found = append(found, fmt.Sprintf("%s %s: %s", f.Level, f.About, f.Text))
		}
		slices.Sort(found)
		return found
	}
	if diff := cmp.Diff([]string{"ok : limits and timeouts are large enough"}, examined(cfg)); diff != "" {
		t.Errorf("found in our own bootstrap (-want +got):\n%s", diff)
	}
	cfg.ExtProc.DecisionTimeout, cfg.ExtProc.MaxBodyBytes = 10*time.Second, 64<<20
	if diff := cmp.Diff([]string{
		"FAIL ext_proc warmpath: message_timeout is 3s, and the router may take 10s to decide: requests get 504, or pass it by",
		"warn listener llm: request bodies above 32 MiB are answered with 413, before the router's own limit of 64 MiB",
	}, examined(cfg)); diff != "" {
		t.Errorf("found for a router that takes longer and more (-want +got):\n%s", diff)
	}
}

// The doctor asks Envoy's admin server, and prints a table and what mends.
func TestDoctor_PrintsATable(t *testing.T) {
	e := startEngine(t, server.Config{})
	config := writeConfig(t, "pool: {static: {endpoints: ["+endpointYAML("a", e.Addr(), e)+"]}}\n")
	cfg, _, err := load(config, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	dump := dumpOf(t, cfg, `"message_timeout":"3s"`, `"message_timeout":"1s"`)
	envoy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/config_dump" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(dump)
	}))
	defer envoy.Close()
	code, stdout, stderr := invoke(t, nil, "doctor", "--config", config, "--passive", "--envoy", envoy.URL)
	if code != exitFault {
		t.Errorf("exit code %d, want %d", code, exitFault)
	}
	wantParts(t, "stdout", stdout, []string{
		"ok    configuration                     valid\n", "FAIL  envoy          ext_proc warmpath  message_timeout is 1s", "\n                                        → set message_timeout to 3s", "0 warnings, 1 failed",
	})
	wantParts(t, "stderr", stderr, []string{"… waiting for the endpoints to be listed and probed", "… reading the configuration of Envoy"})
	envoy.Close()
	if code, stdout, _ := invoke(t, nil, "doctor", "--config", config, "--passive", "--envoy", envoy.URL); code != exitFault || !strings.Contains(stdout, "its configuration cannot be read") {
		t.Errorf("an Envoy that is away: exit code %d, %s", code, stdout)
	}
	if code, _, stderr := invoke(t, nil, "doctor", "--config", config, "--wait", "0s"); code != exitUsage || !strings.Contains(stderr, "--wait must be above 0") {
		t.Errorf("--wait 0s: exit code %d, %s", code, stderr)
	}
}
