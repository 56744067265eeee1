package pool

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// piped is an engine at the other end of pipes, so that its clock and the
// pool's can be a test's.
type piped struct {
	hangs   atomic.Bool
	metrics string
	asked   chan string // the paths of requests; nil: nobody wants to know
}

func (e *piped) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		for in := bufio.NewReader(far); ; {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if e.asked != nil {
				e.asked <- req.URL.Path
			}
			for e.hangs.Load() {
				<-time.After(time.Millisecond) // of the bubble: an engine that is stopped
			}
			body, status := e.metrics, 200
			if req.URL.Path != "/metrics" {
				body = ""
			} else if body == "" {
				status = 404
			}
			if _, err := fmt.Fprintf(far, "HTTP/1.1 %d Status\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body); err != nil {
				return
			}
		}
	}()
	return near, nil
}

// An engine that hangs is left within a second of the first request that finds
// out, whatever it was doing before, and without any setting; and it comes back.
func TestPool_LeavesAnEngineThatHangsWithinASecond(t *testing.T) {
	const busy = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n"
	for _, tt := range []struct {
		name, metrics string
		before        bool // a request was in flight when it began to hang
	}{
		{"busy", busy, true},
		{"idle", strings.ReplaceAll(busy, "1", "0"), false},
		{"busy, without metrics", "", true},
		{"idle, without metrics", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for phase := range 7 {
				synctest.Test(t, func(t *testing.T) {
					leavesAndComesBack(t, tt.metrics, tt.before, time.Duration(phase)*171*time.Millisecond)
				})
			}
		})
	}
}

func leavesAndComesBack(t *testing.T, metrics string, before bool, phase time.Duration) {
	e := &piped{metrics: metrics}
	cfg := DefaultConfig()
	cfg.Static.Endpoints = []Spec{{Name: "a", Address: "10.0.0.1:80", Models: []string{"m"}}}
	client := &http.Client{Transport: &http.Transport{DialContext: e.dial}}
	p := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), client, rand.New(rand.NewPCG(1, uint64(phase))))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	state := p.Snapshot().Endpoints[0].State
	left := func() bool {
		e := p.Snapshot().Endpoints[0]
		return !e.Candidate() || e.Cooling(time.Now())
	}
	<-time.After(5*time.Second + phase)
	if left() {
		t.Fatal("an engine that answers is left")
	}
	if before {
		state.Reserve(0)
		<-time.After(3*time.Second + phase)
	}
	e.hangs.Store(true)
	if !before {
		<-time.After(phase / 4) // not as long as the next read or probe takes to find out by itself
		state.Reserve(0)
	}
	since := time.Now()
	for !left() {
		if <-time.After(time.Millisecond); time.Since(since) > 10*time.Second {
			t.Fatal("it was never left")
		}
	}
	if took := time.Since(since); took > time.Second {
		t.Errorf("phase %v: it was left after %v, want a second at most", phase, took)
	}
	<-time.After(phase)
	e.hangs.Store(false)
	since = time.Now()
	for left() {
		if <-time.After(time.Millisecond); time.Since(since) > 5*time.Second {
			t.Fatal("it never came back")
		}
	}
	state.Release(0)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	client.CloseIdleConnections()
}

// The first request has an idle engine's metrics read at once; more of them do
// not have it read more often than a busy one is.
func TestPool_ReadsAtOnceWhatGetsItsFirstRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &piped{metrics: "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n", asked: make(chan string, 1000)}
		cfg := DefaultConfig()
		cfg.Static.Endpoints = []Spec{{Name: "a", Address: "10.0.0.1:80", Models: []string{"m"}}}
		p := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &http.Client{Transport: &http.Transport{DialContext: e.dial}}, rand.New(rand.NewPCG(1, 1)))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		state := p.Snapshot().Endpoints[0].State
		reads := func() (n int) {
			synctest.Wait()
			for len(e.asked) > 0 {
				if <-e.asked == "/metrics" {
					n++
				}
			}
			return n
		}
		<-time.After(10 * time.Second)
		if n := reads(); n < 9 || n > 12 {
			t.Errorf("%d reads of an idle engine in 10 s, want one a second", n)
		}
		for state.Load().At.Add(600 * time.Millisecond).After(time.Now()) {
			<-time.After(time.Millisecond)
		}
		reads()
		state.Reserve(0)
		if n := reads(); n != 1 {
			t.Errorf("%d reads when a request came, want 1", n)
		}
		for range 1000 { // short ones: each finds it idle
			state.Release(0)
			state.Reserve(0)
			<-time.After(time.Millisecond)
		}
		if n := reads(); n < 3 || n > 6 {
			t.Errorf("%d reads in a second of many requests, want 4 or 5", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
