package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// newRouter builds a whole router, none of whose parts run, and its admin
// server.
func newRouter(t *testing.T) (*router, *httptest.Server) {
	t.Helper()
	cfg, _, err := load(writeConfig(t, `
pool: {static: {endpoints: [
  {name: a, address: "10.0.0.1:8000", models: [m], labels: {tier: gold}},
  {name: b, address: "10.0.0.2:8000", models: [m]}]}}
`), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := build(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(r.admin)
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return r, s
}

func TestExplain_Command(t *testing.T) {
	r, s := newRouter(t)
	dir := t.TempDir()
	file := func(name, body string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ids := file("ids.json", `{"model":"m","prompt":[1,2,3]}`)
	chat := file("chat.json", `{"model":"m","messages":[{"role":"user","content":"the secret words"}]}`)
	for _, e := range r.pool.Snapshot().Endpoints[1:] {
		e.State.Reserve(0)
	}
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		stdout []string
		stderr []string
	}{
		{name: "a table and words", args: []string{"--header", "routing-strategy=least-request", ids}, stdout: []string{
			"model m, strategy least-request (by header), reason load", "ENDPOINT", "COST (requests)", "a         10.0.0.1:8000", "b         10.0.0.2:8000",
			"a (10.0.0.1:8000) was chosen by least-request out of 2 candidates", "b has 1 request in flight; its cost is 1 request.",
		}},
		{name: "the default strategy", args: []string{chat}, stdout: []string{"strategy prefix-cache (by default)", "prefill"}},
		{name: "who is left out", args: []string{"--header", "external-filter=tier=gold", chat}, stdout: []string{"left out: b (10.0.0.2:8000): its labels do not meet external-filter"}},
		{name: "a refusal", args: []string{"--header", "routing-strategy=pd", ids}, code: exitFault, stderr: []string{"would be refused with status 400, unknown_strategy", "not offered here"}},
		{name: "a body that is wrong", args: []string{file("x.json", "{")}, code: exitFault, stderr: []string{"refused with status 400, bad_request", "JSON"}},
		{name: "an unknown model", args: []string{file("y.json", `{"model":"n","prompt":"x"}`)}, code: exitFault, stderr: []string{"status 404, model_not_found"}},
		{name: "no file", code: exitUsage, stderr: []string{"name one FILE"}},
		{name: "a file that is not there", args: []string{filepath.Join(dir, "none")}, code: exitUsage, stderr: []string{"no such file"}},
		{name: "a bad header", args: []string{"--header", "x", ids}, code: exitUsage, stderr: []string{"NAME=VALUE"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := invoke(t, nil, append([]string{"explain", "--admin", s.URL}, tt.args...)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d; stderr: %s", code, tt.code, stderr)
			}
			for out, parts := range map[string][]string{stdout: tt.stdout, stderr: tt.stderr} {
				for _, part := range parts {
					if !strings.Contains(out, part) {
						t.Errorf("the output lacks %q:\n%s", part, out)
					}
				}
			}
			if strings.Contains(stdout, "secret") {
				t.Errorf("the prompt is shown:\n%s", stdout)
			}
		})
	}
	if code, _, stderr := invoke(t, nil, "explain", "--admin", "nope", ids); code != exitUsage || !strings.Contains(stderr, "not a URL") {
		t.Errorf("a bad --admin: exit code %d, %s", code, stderr)
	}
	code, stdout, _ := invoke(t, nil, "explain", "--admin", s.URL, "--json", ids)
	var d decisionView
	if err := json.Unmarshal([]byte(stdout), &d); code != exitOK || err != nil || len(d.Candidates) != 2 || d.Words == "" {
		t.Errorf("--json: exit code %d, %v, %s", code, err, stdout)
	}
	if n := len(r.routing.Decisions(nil)); n != 0 {
		t.Errorf("%d explanations are kept as decisions", n)
	}
}

func TestDecisions_OfOneRequest(t *testing.T) {
	r, s := newRouter(t)
	for i := range 3 {
		c := routing.NewContext(t.Context(), routing.Request{ID: fmt.Sprint(i), Model: "m", Arrived: time.Now()})
		r.routing.Route(c)
		c.Finish()
	}
	resp, err := http.Get(s.URL + "/debug/decisions?id=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var views []decisionView
	if err := json.NewDecoder(resp.Body).Decode(&views); err != nil || len(views) != 1 || views[0].RequestID != "1" {
		t.Errorf("%v: %+v", err, views)
	}
}

// The routing section and the static endpoints follow the file; an invalid
// file changes nothing.
func TestReloader_FollowsTheFile(t *testing.T) {
	const good = "pool: {static: {endpoints: [{name: a, address: \"10.0.0.1:8000\", models: [m]}]}}\n"
	file := writeConfig(t, good)
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	endpoints := filepath.Join(t.TempDir(), "endpoints.yaml")
	if err := os.WriteFile(endpoints, []byte("endpoints: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		src := source{file: file, content: []byte(good), parse: func(data []byte) (Config, error) {
			return parse(file, data, nil, []override{{"routing.fallbacks", "1"}})
		}}
		cfg, err := src.parse(src.content)
		if err != nil {
			t.Fatal(err)
		}
		parts, err := build(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient)
		if err != nil {
			t.Fatal(err)
		}
		var applied []routing.Config
		apply := func(c Config) error { applied = append(applied, c.Routing); return parts.reload(c) }
		var log strings.Builder
		r := newReloader(src, cfg, apply, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
		asked, done := make(chan os.Signal), make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { done <- r.Run(ctx, asked) }()
		step := func() {
			<-time.After(2 * reloadEvery) // of the bubble's time
			synctest.Wait()
		}
		step()
		if len(applied) != 0 {
			t.Errorf("an unchanged file was put into force %d times", len(applied))
		}
		write(good + "routing: {strategy: random, fallbacks: 7}\n")
		step()
		if len(applied) != 1 || applied[0].Strategy != "random" || applied[0].Fallbacks != 1 {
			t.Errorf("applied %+v, want random, and the flag's 1 before the file's 7", applied)
		}
		write(good + "routing: {strategy: fastest}\n")
		step()
		if len(applied) != 1 || !strings.Contains(log.String(), "old one stays in force") || !strings.Contains(log.String(), "fastest") {
			t.Errorf("an invalid file: applied %d times, log:\n%s", len(applied), log.String())
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		step()
		write(good + "routing: {strategy: throughput}\nlog: {level: debug}\n")
		step()
		if len(applied) != 2 || applied[1].Strategy != "throughput" || !strings.Contains(log.String(), "takes a restart") {
			t.Errorf("applied %d times, log:\n%s", len(applied), log.String())
		}
		write(strings.Replace(good, "]}}", ", {name: b, address: \"10.0.0.2:8000\", models: [m]}]}}", 1))
		step()
		if s := parts.pool.Snapshot(); len(s.Endpoints) != 2 || s.ByAddress("10.0.0.2:8000") == nil {
			t.Errorf("an endpoint that was added to the file is not in the pool, which has %d", len(s.Endpoints))
		}
		write(good)
		step()
		if n := len(parts.pool.Snapshot().Endpoints); n != 1 {
			t.Errorf("an endpoint that was removed from the file is still in the pool, which has %d", n)
		}
		applied = applied[:2]
		// A look may catch the file while it is written, cut where it is valid.
		write("pool: {static: {endpoints: []}, file: {path: " + endpoints + "}}\n")
		<-time.After(reloadEvery)
		synctest.Wait()
		write(good)
		step()
		if n := len(parts.pool.Snapshot().Endpoints); n != 1 || len(applied) != 2 {
			t.Errorf("a file caught while it was written: %d endpoints, applied %d times", n, len(applied))
		}
		write(good + "#" + strings.Repeat(" ", pool.MaxFile))
		step()
		if len(applied) != 2 || strings.Count(log.String(), "more than 16777216 bytes") != 1 {
			t.Errorf("a file that is too large: applied %d times, log:\n%s", len(applied), log.String())
		}
		write(good)
		step()
		applied = applied[:2]
		asked <- os.Interrupt
		synctest.Wait()
		if len(applied) != 3 {
			t.Errorf("a signal did not reload: applied %d times", len(applied))
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}
