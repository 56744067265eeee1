package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"
)

func testAdmin(ready func() []condition, state func() any) *admin {
	reg := prometheus.NewRegistry()
	promauto.With(reg).NewCounter(prometheus.CounterOpts{Name: "warmpath_test_total", Help: "h"}).Add(7)
	return newAdmin(adminSources{
		Gatherer: reg, Ready: ready, State: state,
		Pages: []adminPage{{Path: "debug/extra", About: "something more", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "extra")
		})}},
	}, slog.New(slog.DiscardHandler))
}

func TestAdmin_Pages(t *testing.T) {
	conditions := []condition{{Name: "pool", Ready: true, Detail: "3 of 3"}}
	var state any = map[string]int{"blocks": 5}
	a := testAdmin(func() []condition { return conditions }, func() any { return state })
	get := func(method, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		a.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		return w
	}
	for _, tt := range []struct {
		method, path string
		status       int
		contentType  string
		body         string // part of it
	}{
		{"GET", "/metrics", 200, "text/plain", "warmpath_test_total 7"},
		{"GET", "/healthz", 200, "text/plain", "ok\n"},
		{"GET", "/debug/state", 200, "application/json", `"blocks": 5`},
		{"GET", "/debug/extra", 200, "text/plain", "extra"},
		{"GET", "/debug/pprof/", 200, "text/html", "goroutine"},
		{"GET", "/debug/pprof/heap?debug=1", 200, "text/plain", "heap profile"},
		{"GET", "/debug/pprof/cmdline", 200, "text/plain", "warmpath"},
		{"GET", "/nothing", 404, "text/plain", ""},
		{"POST", "/healthz", 405, "text/plain", ""},
	} {
		w := get(tt.method, tt.path)
		if w.Code != tt.status || !strings.HasPrefix(w.Header().Get("Content-Type"), tt.contentType) || !strings.Contains(w.Body.String(), tt.body) {
			t.Errorf("%s %s: %d %s, want %d %s and %q in\n%.300s", tt.method, tt.path, w.Code, w.Header().Get("Content-Type"), tt.status, tt.contentType, tt.body, w.Body)
		}
	}

	index := get("GET", "/").Body.String()
	for _, page := range []string{"/metrics", "/healthz", "/readyz", "/debug/state", "/debug/pprof/", "/debug/extra"} {
		if !strings.Contains(index, page+" ") {
			t.Errorf("the index does not list %s:\n%s", page, index)
		}
		if w := get("GET", page); w.Code != http.StatusOK {
			t.Errorf("%s is listed and answers %d", page, w.Code)
		}
	}

	state = func() {}
	if w := get("GET", "/debug/state"); w.Code != http.StatusInternalServerError {
		t.Errorf("a state that cannot be encoded gives %d", w.Code)
	}
}

func TestAdmin_Readyz(t *testing.T) {
	for _, tt := range []struct {
		name       string
		conditions []condition
		status     int
		ready      bool
	}{
		{"all hold", []condition{{Name: "pool", Ready: true}, {Name: "events", Ready: true}}, 200, true},
		{"one does not", []condition{{Name: "pool", Ready: true}, {Name: "events", Detail: "2 of 3 replayed"}}, 503, false},
		{"the first does not", []condition{{Name: "pool"}, {Name: "events", Ready: true}}, 503, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			testAdmin(func() []condition { return tt.conditions }, func() any { return nil }).
				ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/readyz", nil))
			var got struct {
				Ready      bool
				Conditions []condition
			}
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if w.Code != tt.status || got.Ready != tt.ready {
				t.Errorf("status %d, ready %t, want %d, %t", w.Code, got.Ready, tt.status, tt.ready)
			}
			if diff := cmp.Diff(tt.conditions, got.Conditions); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAdmin_Run(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	a := testAdmin(func() []condition { return nil }, func() any {
		close(entered)
		<-release
		return "late"
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, ln) }()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

	// A request that runs when the end comes is answered.
	answer := make(chan string, 1)
	go func() {
		resp, err := client.Get("http://" + ln.Addr().String() + "/debug/state")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		answer <- string(b)
	}()
	<-entered
	cancel()
	close(release)
	if got := <-answer; got != "\"late\"\n" {
		t.Errorf("answered %q", got)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}

	// A listener that fails is an error.
	if err := a.Run(t.Context(), ln); err == nil || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("Run on a closed listener: %v", err)
	}
}

// With an API server that is away, the endpoints that are known are served after
// pool.sync_timeout; readiness says what is missing, and why.
func TestReadyz_WithoutTheCluster(t *testing.T) {
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	defer engine.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: \"http://127.0.0.1:1\"}}]\ncontexts: [{name: c, context: {cluster: c, namespace: llm}}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := parse("w.yaml", fmt.Appendf(nil, `{extproc: {listen: "127.0.0.1:0"}, admin: {listen: "127.0.0.1:0"},
pool: {sync_timeout: 300ms, static: {endpoints: [{name: e, address: %q, models: [m]}]}, kubernetes: {kubeconfig: %q, pod_selector: app=vllm}}}`,
		strings.TrimPrefix(engine.URL, "http://"), kubeconfig), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: transport()}
	defer client.CloseIdleConnections()
	r, err := build(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), client)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	g, failed := errgroup.WithContext(ctx)
	g.Go(func() error { return r.pool.Run(failed) })
	g.Go(func() error { return r.follow(failed) })
	get := func() (int, string) {
		w := httptest.NewRecorder()
		r.admin.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/readyz", nil))
		return w.Code, w.Body.String()
	}
	if code, text := get(); code != http.StatusServiceUnavailable || !strings.Contains(text, "waiting for: kubernetes") {
		t.Errorf("at the start: %d %s", code, text)
	}
	<-r.pool.Probed()
	<-r.events.Ready()
	for !strings.Contains(strings.Join(r.pool.SyncState().Unlisted, ""), "refused") {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("nothing says why")
		}
	}
	code, text := get()
	if code != http.StatusOK || !strings.Contains(text, "done without: kubernetes: pods (app=vllm) in namespace llm: ") || !strings.Contains(text, "refused") {
		t.Errorf("after the timeout: %d %s", code, text)
	}
	w := httptest.NewRecorder()
	r.admin.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/debug/state", nil))
	if !strings.Contains(w.Body.String(), `"unlisted": [`) {
		t.Errorf("the state is %s", w.Body)
	}
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
