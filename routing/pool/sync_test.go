package pool

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// syncRun runs a pool of two sources, of which b does not say what it lacks, in
// a bubble where time passes at once.
func syncRun(t *testing.T, timeout time.Duration, test func(p *Pool, a, b told)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Load.Interval, cfg.SyncTimeout = 0, timeout
		a := told{name: "a", tell: make(chan []Change), sync: make(chan struct{}), unlisted: []string{"this: why", "that"}}
		b := told{name: "b", tell: make(chan []Change), sync: make(chan struct{})}
		p := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &http.Client{Transport: offline{}}, rand.New(rand.NewPCG(1, 1)), a, b)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		synctest.Wait()
		test(p, a, b)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// list has a source list an endpoint.
func (s told) list(name, address string) {
	s.tell <- []Change{{name, []Listing{{Spec: Spec{Name: name, Address: address, Models: []string{"m"}}}}}}
	<-s.tell
}

// after lets time pass.
func after(d time.Duration) {
	<-time.After(d) // in a bubble
	synctest.Wait()
}

func wantSync(t *testing.T, p *Pool, when string, synced, probed bool, unlisted ...string) {
	t.Helper()
	if got := closedNow(p.Synced()); got != synced {
		t.Errorf("%s: synced %v", when, got)
	}
	if got := closedNow(p.Probed()); got != probed {
		t.Errorf("%s: probed %v", when, got)
	}
	if diff := cmp.Diff(SyncState{Unlisted: unlisted, GivenUp: probed && !synced}, p.SyncState()); diff != "" {
		t.Errorf("%s: -want +got:\n%s", when, diff)
	}
	left := map[string]bool{}
	for _, u := range unlisted {
		name, _, _ := strings.Cut(u, ":")
		left[name] = true
	}
	if got := testutil.ToFloat64(p.metrics.unlisted); int(got) != len(left) {
		t.Errorf("%s: warmpath_pool_unlisted_sources is %v, want %d", when, got, len(left))
	}
}

// A source that lists nothing holds back what others list for the timeout, and
// joins when it does list.
func TestPool_SyncTimeout(t *testing.T) {
	syncRun(t, 30*time.Second, func(p *Pool, a, b told) {
		b.list("e", "10.0.0.1:1")
		close(b.sync)
		after(29 * time.Second)
		wantSync(t, p, "before the timeout", false, false, "a: this: why", "a: that")
		after(time.Second)
		wantSync(t, p, "after it", false, true, "a: this: why", "a: that")
		if e := p.Snapshot().ByAddress("10.0.0.1:1"); e == nil || e.Health != HealthFailed {
			t.Errorf("probed, and the endpoint is %+v", e)
		}
		a.list("f", "10.0.0.2:1")
		close(a.sync)
		after(10 * time.Second)
		wantSync(t, p, "when it has listed after all", true, true)
		if s := p.Snapshot(); len(s.Endpoints) != 2 || s.ByAddress("10.0.0.2:1").Health != HealthFailed {
			t.Errorf("the pool is\n%s", view(s))
		}
	})
}

// With no endpoint at all there is nothing to go on with: the first that comes
// is, once it was probed, whatever source it is of.
func TestPool_SyncTimeout_WithoutEndpoints(t *testing.T) {
	syncRun(t, 30*time.Second, func(p *Pool, a, b told) {
		after(time.Hour)
		wantSync(t, p, "without any endpoint", false, false, "a: this: why", "a: that", "b")
		a.list("e", "10.0.0.1:1")
		close(b.sync)
		synctest.Wait()
		if closedNow(p.Probed()) {
			t.Error("ready before the first endpoint was probed")
		}
		after(10 * time.Second)
		wantSync(t, p, "with an endpoint", false, true, "a: this: why", "a: that")
		a.list("f", "10.0.0.2:1")
		close(a.sync)
		after(10 * time.Second)
		wantSync(t, p, "in the end", true, true)
	})
	syncRun(t, 30*time.Second, func(p *Pool, a, b told) {
		after(time.Hour)
		close(b.sync)
		after(time.Hour)
		wantSync(t, p, "with a source that has none", false, false, "a: this: why", "a: that")
		close(a.sync)
		after(time.Second)
		wantSync(t, p, "with two that have none", true, true)
	})
}

// What has been listed in time is not affected, nor is a wait without bound.
func TestPool_SyncTimeout_InTimeOrNever(t *testing.T) {
	syncRun(t, 30*time.Second, func(p *Pool, a, b told) {
		close(a.sync)
		close(b.sync)
		after(time.Second)
		wantSync(t, p, "without any endpoint", true, true)
		after(time.Minute)
		a.list("e", "10.0.0.1:1")
		after(time.Minute)
		wantSync(t, p, "later", true, true)
	})
	syncRun(t, 0, func(p *Pool, a, b told) {
		b.list("e", "10.0.0.1:1")
		close(b.sync)
		after(time.Hour)
		wantSync(t, p, "without a bound", false, false, "a: this: why", "a: that")
		close(a.sync)
		after(10 * time.Second)
		wantSync(t, p, "in the end", true, true)
	})
}

// Endpoints of the configuration are known from the start.
func TestPool_SyncTimeout_StaticEndpoints(t *testing.T) {
	syncRun(t, 30*time.Second, func(p *Pool, _, b told) {
		p.Set([]Spec{{Name: "s", Address: "10.0.0.3:1", Models: []string{"m"}}})
		after(31 * time.Second)
		wantSync(t, p, "with an endpoint of the configuration", false, true, "a: this: why", "a: that", "b")
		close(b.sync)
		after(time.Second)
		wantSync(t, p, "with one of two sources", false, true, "a: this: why", "a: that")
	})
}

func TestConfig_SyncTimeout(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Static.Endpoints = []Spec{{Name: "e", Address: "10.0.0.1:1"}}
	cfg.SyncTimeout = -time.Second
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "sync_timeout: -1s") {
		t.Errorf("error %v", err)
	}
}

// A kind that the API server does not know holds back its own endpoints alone,
// and is named with the reason.
func TestKubernetes_MissingCRD(t *testing.T) {
	a := newAPIServer(t)
	a.unknown = "inferencepools"
	a.put(pod("a", "10.0.0.1"))
	a.put(inferencePoolObject("llama", map[string]any{"app": "vllm"}, 9000))
	p := discovering(t, a, func(c *KubernetesConfig) {
		c.PodSelector, c.InferencePools, c.Namespaces = "app=vllm", []string{"llama"}, []string{"ns"}
	})
	sees(t, p, "ns/a:8000 10.0.0.1:8000")
	poll(t, func() bool {
		s := p.SyncState()
		return len(s.Unlisted) == 1 && strings.HasPrefix(s.Unlisted[0], "kubernetes: inferencepools (metadata.name=llama) in namespace ns: ") && strings.Contains(s.Unlisted[0], "no such kind")
	})
	if closedNow(p.Synced()) {
		t.Error("synced without the InferencePools")
	}
	a.set(func() { a.unknown = "" })
	<-p.Synced()
	sees(t, p, "ns/a:8000 10.0.0.1:8000", "ns/a:9000 10.0.0.1:9000")
	if s := p.SyncState(); len(s.Unlisted) != 0 {
		t.Errorf("unlisted %q", s.Unlisted)
	}
}

// An API server that is away is counted, logged and told, however client-go goes
// about it.
func TestKubernetes_Away(t *testing.T) {
	a := newAPIServer(t)
	a.put(pod("a", "10.0.0.1"))
	address := a.srv.Listener.Addr().String()
	a.srv.Close()
	var text lockedBuffer
	p := discoveringWith(t, a, slog.New(slog.NewTextHandler(&text, nil)), func(c *KubernetesConfig) { c.PodSelector = "app=vllm" })
	counted := p.sources[0].(*Kubernetes).metrics.errors[resourcePods]
	poll(t, func() bool {
		s := p.SyncState()
		return len(s.Unlisted) == 1 && strings.HasPrefix(s.Unlisted[0], "kubernetes: pods (app=vllm) in namespace ns: ") && strings.Contains(s.Unlisted[0], "refused") &&
			testutil.ToFloat64(counted) > 0 && strings.Contains(text.String(), "the cluster cannot be asked")
	})
	back, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("somebody else has the port now: %v", err)
	}
	again := &http.Server{Handler: a}
	defer again.Close()
	go func() { _ = again.Serve(back) }()
	<-p.Synced()
	sees(t, p, "ns/a:8000 10.0.0.1:8000")
}

// A file that cannot be taken says why, until one can.
func TestFile_Unlisted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.yaml")
	fileRun(t, path, func(p *Pool, tick func(), _ *bytes.Buffer) {
		want := func(text string) {
			t.Helper()
			tick()
			tick()
			if s := p.SyncState(); len(s.Unlisted) != 1 || !strings.HasPrefix(s.Unlisted[0], "file: ") || !strings.Contains(s.Unlisted[0], text) {
				t.Errorf("unlisted %q, want %q", s.Unlisted, text)
			}
		}
		want("no such file")
		write(t, path, "endpoints: [{name: a}]")
		want("address")
		write(t, path, oneInFile)
		tick()
		tick()
		if s := p.SyncState(); len(s.Unlisted) != 0 {
			t.Errorf("unlisted %q", s.Unlisted)
		}
		// What is wrong later takes nothing back.
		write(t, path, "endpoints: [")
		tick()
		tick()
		if s := p.SyncState(); len(s.Unlisted) != 0 {
			t.Errorf("unlisted %q", s.Unlisted)
		}
	})
}
