package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"
)

// asking returns an asker of a server, and the request for its root.
func asking(t *testing.T, address string) (*asker, []byte) {
	t.Helper()
	p := &Pool{client: &http.Client{Transport: &http.Transport{}}}
	u := &url.URL{Scheme: "http", Host: address, Path: "/"}
	a := p.asker(u)
	t.Cleanup(a.close)
	return a, getRequest(u)
}

// Whatever shape an answer has, it is what net/http's client makes of it, and a
// connection is kept exactly if the server lets it.
func TestAsker_AgreesWithNetHTTP(t *testing.T) {
	var connections atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Has("hint") {
			w.WriteHeader(http.StatusEarlyHints)
		}
		if q.Has("close") {
			w.Header().Set("Connection", "close")
		}
		if q.Get("status") == "503" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		for part := range strings.SplitSeq(q.Get("body"), ",") {
			_, _ = io.WriteString(w, part)
			if q.Has("chunked") {
				w.(http.Flusher).Flush()
			}
		}
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	for _, query := range []string{
		"body=a", "body=", "body=a,b,c&chunked", "hint&body=a", "status=503&body=no", "close&body=a,b", "close&chunked&body=a",
		"body=" + strings.Repeat("x", 9000), "chunked&body=" + strings.Repeat("y", 9000) + ",z",
	} {
		u, err := url.Parse(s.URL + "/?" + query)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.Get(u.String())
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		a, _ := asking(t, u.Host)
		began := connections.Load()
		for range 3 {
			var body bytes.Buffer
			status, err := a.get(t.Context(), getRequest(u), 10*time.Second, &body, 1<<20)
			if err != nil || status != resp.StatusCode || !bytes.Equal(body.Bytes(), want) {
				t.Errorf("%.40s: %d, %d bytes, %v; want %d and %d bytes", query, status, body.Len(), err, resp.StatusCode, len(want))
			}
		}
		wantConnections := int64(1)
		if strings.Contains(query, "close") {
			wantConnections = 3
		}
		if got := connections.Load() - began; got != wantConnections {
			t.Errorf("%.40s: %d connections, want %d", query, got, wantConnections)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// A server that has closed a kept connection is asked again over another, one
// that does so in the middle of its answer is not.
func TestAsker_AsksAgainOnlyIfNothingWasAnswered(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const whole, half = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"
	accepted := 0
	done := make(chan struct{})
	go func() { // what each connection answers before it is closed
		defer close(done)
		for _, answers := range [][]string{{whole}, {whole, half}, {whole}} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted++
			for _, answer := range answers {
				if _, err := c.Read(make([]byte, 4096)); err != nil {
					break
				}
				_, _ = io.WriteString(c, answer)
			}
			c.Close()
		}
	}()
	a, request := asking(t, l.Addr().String())
	for i, want := range []bool{true, true, false, true} {
		if i == 1 {
			// Until it is closed at the other end.
			if _, err := a.in.Peek(1); !errors.Is(err, io.EOF) {
				t.Fatalf("the connection is open: %v", err)
			}
			a.in.Reset(a.conn)
		}
		var body bytes.Buffer
		if _, err := a.get(t.Context(), request, 10*time.Second, &body, 100); (err == nil) != want {
			t.Errorf("request %d: error %v, want success: %v", i, err, want)
		}
	}
	l.Close()
	<-done
	if accepted != 3 {
		t.Errorf("%d connections, want 3", accepted)
	}
	if _, err := a.get(t.Context(), request, time.Second, new(bytes.Buffer), 100); err == nil {
		t.Error("a server that is gone answered")
	}
}

func TestAsker_GivesUp(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "long" {
			_, _ = w.Write(make([]byte, 5000))
			return
		}
		<-release
	}))
	defer s.Close()
	defer close(release)
	a, request := asking(t, s.Listener.Addr().String())
	if _, err := a.get(t.Context(), request, 20*time.Millisecond, new(bytes.Buffer), 100); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a server that hangs: %v, want the deadline", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := a.get(ctx, request, time.Hour, new(bytes.Buffer), 100); err == nil {
		t.Error("the end of the context ended nothing")
	}
	u := &url.URL{Scheme: "http", Host: a.address, Path: "/", RawQuery: "long"}
	var body bytes.Buffer
	if _, err := a.get(t.Context(), getRequest(u), 10*time.Second, &body, 100); err != nil || body.Len() != 101 {
		t.Errorf("%d bytes of an answer that is too long, %v; want 101", body.Len(), err)
	}
	if a.conn != nil {
		t.Error("a connection with the rest of an answer on it was kept")
	}
}

// Only plain HTTP without a proxy is asked without the client.
func TestAsker_LeavesTheRestToTheClient(t *testing.T) {
	plain := &http.Client{Transport: &http.Transport{}}
	for text, want := range map[string]bool{"http://10.0.0.1:80/metrics": true, "https://10.0.0.1/metrics": false, "http://user:secret@10.0.0.1/metrics": false} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := (&Pool{client: plain}).asker(u) != nil; got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
		if (&Pool{client: http.DefaultClient}).asker(u) != nil {
			t.Errorf("%s: past the proxies of the environment", text)
		}
	}
}

// metricsServer answers with the metrics of text, one a line.
type metricsServer struct {
	text     atomic.Value
	restrict func(names []string, line string) bool
	// full and some count the requests for all metrics and for some.
	full, some atomic.Int64
	status     atomic.Int32 // of requests for some; 0: 200
	down       atomic.Int32 // the status of every request; 0: it is up; -1: none
}

func (s *metricsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if down := int(s.down.Load()); down < 0 {
		panic(http.ErrAbortHandler) // closes the connection
	} else if down > 0 {
		w.WriteHeader(down)
		return
	}
	names := r.URL.Query()["name[]"]
	if len(names) == 0 {
		s.full.Add(1)
	} else if s.some.Add(1); s.status.Load() != 0 {
		w.WriteHeader(int(s.status.Load()))
		return
	}
	for line := range strings.Lines(s.text.Load().(string)) {
		if len(names) == 0 || s.restrict(names, line) {
			_, _ = io.WriteString(w, line)
		}
	}
}

// Names are asked for where that leaves out nothing, and what is read is the
// same wherever they are.
func TestReader_AsksForNamesWhereThatLeavesOutNothing(t *testing.T) {
	const text = "vllm:num_requests_running 2\nvllm:num_requests_waiting 1\nvllm:prompt_tokens_total 70\nother 1\ngpu_busy_time_ratio 0.5\n"
	asked := func(names []string, line string) bool {
		for _, n := range names {
			if strings.HasPrefix(line, n+" ") || strings.HasPrefix(line, n+"{") {
				return true
			}
		}
		return false
	}
	tests := []struct {
		name       string
		restrict   func([]string, string) bool
		status     int32
		full, some int64 // of ten reads
	}{
		{"it knows the parameter", asked, 0, 1, 9},
		{"it does not know it", func([]string, string) bool { return true }, 0, 1, 9},
		{"it then leaves out all", func([]string, string) bool { return false }, 0, 10, maxTries},
		{"it then leaves out some", func(n []string, l string) bool { return asked(n, l) && !strings.HasPrefix(l, "vllm:prompt") }, 0, 10, maxTries},
		{"it takes it for a mistake", asked, http.StatusBadRequest, 10, maxTries},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &metricsServer{restrict: tt.restrict}
			s.text.Store(text)
			s.status.Store(tt.status)
			server := httptest.NewServer(s)
			defer server.Close()
			p := New(DefaultConfig(), slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &http.Client{Transport: &http.Transport{}}, nil)
			u, err := url.Parse(server.URL + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			r := p.newReader(u)
			defer r.close()
			state := &State{}
			for i := range 10 {
				s.text.Store(strings.Replace(text, "70", fmt.Sprint(70+i), 1))
				l, fault, err := r.read(t.Context(), state)
				if err != nil {
					t.Fatalf("read %d: %s: %v", i, fault, err)
				}
				if l.Running != 2 || l.Waiting != 1 || l.Computed != float64(70+i) || l.Busy != 0.5 {
					t.Errorf("read %d: %+v", i, l)
				}
			}
			if full, some := s.full.Load(), s.some.Load(); full != tt.full || some != tt.some {
				t.Errorf("%d reads of all metrics and %d of some, want %d and %d", full, some, tt.full, tt.some)
			}
		})
	}
}

// Failures that pass are no sign that names are asked for in vain: after each
// all metrics are read once, then some again.
func TestReader_AsksForNamesAfterFailures(t *testing.T) {
	for _, down := range []int32{-1, http.StatusServiceUnavailable} {
		t.Run(fmt.Sprint(down), func(t *testing.T) {
			s := &metricsServer{restrict: func(names []string, line string) bool {
				return slices.Contains(names, line[:strings.IndexByte(line, ' ')])
			}}
			s.text.Store("vllm:num_requests_running 2\nvllm:num_requests_waiting 1\n")
			server := httptest.NewServer(s)
			defer server.Close()
			p := New(DefaultConfig(), slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &http.Client{Transport: &http.Transport{}}, nil)
			u, err := url.Parse(server.URL + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			r := p.newReader(u)
			defer r.close()
			state := &State{}
			for i := range int64(2 * maxTries) {
				s.down.Store(0)
				for range 3 {
					if l, fault, err := r.read(t.Context(), state); err != nil || l.Running != 2 {
						t.Fatalf("read %+v, %s, %v", l, fault, err)
					}
				}
				if full, some := s.full.Load(), s.some.Load(); full != i+1 || some != 2*(i+1) {
					t.Fatalf("after %d failures: %d reads of all metrics and %d of some, want %d and %d", i, full, some, i+1, 2*(i+1))
				}
				s.down.Store(down)
				if _, _, err := r.read(t.Context(), state); err == nil {
					t.Fatal("read of an engine that is down")
				}
				r.meter.Forget() // as whoever follows it does
			}
		})
	}
}

// An engine that is replaced by one of another kind is read at once.
func TestReader_NoticesAnotherEngine(t *testing.T) {
	s := &metricsServer{restrict: func(names []string, line string) bool {
		for _, n := range names {
			if strings.HasPrefix(line, n+" ") {
				return true
			}
		}
		return false
	}}
	s.text.Store("vllm:num_requests_running 2\nvllm:num_requests_waiting 1\n")
	server := httptest.NewServer(s)
	defer server.Close()
	p := New(DefaultConfig(), slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &http.Client{Transport: &http.Transport{}}, nil)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := p.newReader(u)
	defer r.close()
	state := &State{}
	for i := range 6 {
		if i == 3 {
			s.text.Store("sglang:num_running_reqs 4\nsglang:num_queue_reqs 0\n")
		}
		l, fault, err := r.read(t.Context(), state)
		if want := map[bool]float64{true: 2, false: 4}[i < 3]; err != nil || l.Running != want {
			t.Fatalf("read %d: %+v, %s, %v; want %v running", i, l, fault, err, want)
		}
	}
	if some := s.some.Load(); some != 2+1+2 {
		t.Errorf("%d reads of some metrics, want 5", some)
	}
}

// Against the dumb way to do it: byte by byte.
func TestParse_FindsTheEndsOfNamesAndLabels(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		line := []byte(rapid.StringOf(rapid.SampledFrom([]rune("ab{}\"\\ \t,="))).Draw(rt, "line"))
		name := len(line)
		for i, c := range line {
			if c == '{' || c == ' ' || c == '\t' {
				name = i
				break
			}
		}
		if got := nameEnd(line); got != name {
			rt.Errorf("the name of %q ends at %d, want %d", line, got, name)
		}
		labels := append([]byte("{"), line...)
		end, quoted := -1, false
		for i := 1; i < len(labels) && end < 0; i++ {
			switch {
			case quoted && labels[i] == '\\':
				i++
			case labels[i] == '"':
				quoted = !quoted
			case !quoted && labels[i] == '}':
				end = i
			}
		}
		if got := labelsEnd(labels); got != end {
			rt.Errorf("the labels of %q end at %d, want %d", labels, got, end)
		}
	})
}

func TestTogether(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		now := time.Unix(0, rapid.Int64Range(0, 1<<60).Draw(rt, "now"))
		d := time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(rt, "d"))
		got := together(now, d)
		if got > d || got < d-tick || got < 0 {
			rt.Errorf("%v became %v", d, got)
		}
		if d > tick && now.Add(got).UnixNano()%int64(tick) != 0 {
			rt.Errorf("%v after %v is not on the grid", got, now.UnixNano())
		}
	})
}
