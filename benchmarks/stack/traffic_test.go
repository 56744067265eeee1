package stack_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/stack"
)

// MiB is 2^20 bytes.
const MiB = 1 << 20

// slow makes the engines take 110 ms for a token, whatever their load: an
// answer of n tokens runs for n times that, with little work for the machine.
func slow(c *stack.Config) {
	c.EngineArgs = append(c.EngineArgs, "--time-scale", "20", "--blocks", "20000")
}

// faultless requires that Envoy has found nothing of us that it had to ignore.
func faultless(t *testing.T, s *stack.Stack) {
	t.Helper()
	bad := []string{"spurious_msgs_received", "rejected_header_mutations", "clear_route_cache_ignored"}
	seen := 0
	r := do(t, http.MethodGet, s.EnvoyAdmin+"/stats?filter=ext_proc", nil)
	for line := range strings.Lines(string(r.body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		for _, b := range bad {
			if strings.HasSuffix(name, b) {
				seen++
				if value != "0" {
					t.Errorf("%s is %s, want 0", name, value)
				}
			}
		}
	}
	if seen < len(bad) {
		t.Errorf("%d of Envoy's statistics found, want %d:\n%s", seen, len(bad), r.body)
	}
}

// manyClients returns a client that keeps no connection.
func manyClients(t *testing.T) *http.Client {
	transport := &http.Transport{DisableKeepAlives: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// answer is one streamed answer, read as it comes.
type answer struct {
	abort context.CancelFunc
	// begun is closed when the first token has come, or none will.
	begun chan struct{}
	// ended is closed when the answer is over; what follows is valid then.
	ended  chan struct{}
	tokens int
	// whole: the last event was the one that ends an answer.
	whole    bool
	err      error
	endpoint string
}

// stream asks for an answer of a number of tokens.
func stream(ctx context.Context, client *http.Client, url string, tokens int) *answer {
	ctx, abort := context.WithCancel(ctx)
	a := &answer{abort: abort, begun: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer abort()
		defer close(a.ended)
		once := sync.OnceFunc(func() { close(a.begun) })
		defer once()
		a.err = a.read(ctx, client, url, tokens, once)
	}()
	return a
}

func (a *answer) read(ctx context.Context, client *http.Client, url string, tokens int, begun func()) error {
	body := fmt.Sprintf(`{"model":"demo","prompt":[1,2,3,4],"max_tokens":%d,"ignore_eos":true,"stream":true}`, tokens)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Routing-Strategy", "least-request")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	a.endpoint = resp.Header.Get("x-warmpath-endpoint")
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case !ok:
		case data == "[DONE]":
			a.whole = true
		case strings.Contains(data, `"error"`):
			return errors.New(data)
		default:
			a.tokens++
			begun()
		}
	}
	return lines.Err()
}

// streams begins n answers and returns when each has its first token.
func streams(t *testing.T, s *stack.Stack, n, tokens int) []*answer {
	t.Helper()
	client, ctx := manyClients(t), bounded(t)
	all := make([]*answer, n)
	for i := range all {
		all[i] = stream(ctx, client, s.URL, tokens)
	}
	for i, a := range all {
		<-a.begun
		select {
		case <-a.ended:
			if a.err != nil {
				t.Fatalf("stream %d: %v", i, a.err)
			}
		default:
		}
	}
	return all
}

func running(all []*answer) (n int) {
	for _, a := range all {
		select {
		case <-a.ended:
		default:
			n++
		}
	}
	return n
}

// unbroken requires that every answer comes to its proper end.
func unbroken(t *testing.T, all []*answer, tokens int) {
	t.Helper()
	broken := 0
	for i, a := range all {
		<-a.ended
		if a.err != nil || !a.whole || a.tokens != tokens {
			if broken++; broken <= 3 {
				t.Errorf("answer %d of %d has %d of %d tokens, its end: %v, error: %v", i, len(all), a.tokens, tokens, a.whole, a.err)
			}
		}
	}
	if broken > 0 {
		t.Errorf("%d of %d answers are broken", broken, len(all))
	}
}

// inFlight returns how many requests the router counts as running.
func inFlight(t *testing.T, s *stack.Stack) (n int64) {
	t.Helper()
	st, err := s.State(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range st.Endpoints {
		n += e.InFlight
	}
	return n
}

// openAIError requires an error in the shape of the OpenAI API.
func openAIError(t *testing.T, r reply, status int, code string) {
	t.Helper()
	var body struct {
		Error struct {
			Message, Type, Code string
			Param               *string
		} `json:"error"`
	}
	if err := json.Unmarshal(r.body, &body); err != nil {
		t.Fatalf("status %d with %q, which is no JSON: %v", r.status, r.body, err)
	}
	if e := body.Error; r.status != status || e.Code != code || e.Type != "invalid_request_error" || e.Message == "" {
		t.Errorf("status %d, %s; want %d and an error of code %q", r.status, r.body, status, code)
	}
	if got := r.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("the error's content type is %q", got)
	}
}

// large returns a request whose prompt is short and which has size bytes.
func large(t *testing.T, size int) []byte {
	t.Helper()
	const head, tail = `{"model":"demo","prompt":[1,2,3],"max_tokens":1,"user":"`, `"}`
	b := bytes.Repeat([]byte("x"), size)
	copy(b, head)
	copy(b[size-len(tail):], tail)
	return b
}

func TestTraffic(t *testing.T) {
	const limit = 17 * MiB
	s := start(t, func(c *stack.Config) {
		slow(c)
		c.RouterArgs = append(c.RouterArgs, fmt.Sprintf("--extproc.max_body_bytes=%d", limit))
	})
	// It runs beside all that follows.
	const longTokens = 140
	begin := time.Now()
	long := streams(t, s, 1, longTokens)

	t.Run("upgrade", func(t *testing.T) {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			// Without a body: Envoy takes what follows an upgrade for its protocol.
			r := do(t, method, s.URL+"/v1/realtime", nil, "Connection", "Upgrade", "Upgrade", "websocket",
				"Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
			openAIError(t, r, http.StatusForbidden, "upgrade_failed")
		}
	})
	t.Run("expect continue", func(t *testing.T) { expectContinue(t, s) })
	t.Run("body of 16 MiB", func(t *testing.T) {
		if r := do(t, http.MethodPost, s.URL+"/v1/completions", large(t, 16*MiB)); r.status != http.StatusOK || r.endpoint() == "" {
			t.Errorf("status %d from %q: %.200s", r.status, r.endpoint(), r.body)
		}
	})
	t.Run("body above the limit", func(t *testing.T) {
		body := large(t, limit+1)
		openAIError(t, do(t, http.MethodPost, s.URL+"/v1/completions", body), http.StatusRequestEntityTooLarge, "body_too_large")
		// Without a length it is Envoy that finds out.
		openAIError(t, chunked(t, s, body), http.StatusRequestEntityTooLarge, "body_too_large")
	})
	t.Run("300 streams of which 100 are aborted", func(t *testing.T) {
		const tokens = 40
		before := inFlight(t, s)
		all := streams(t, s, 300, tokens)
		reads := func(want int64) func() bool { return func() bool { return inFlight(t, s)-before == want } }
		if n := inFlight(t, s) - before; n != 300 {
			t.Errorf("%d in flight with 300 streams running", n)
		}
		for _, a := range all[:100] {
			a.abort()
		}
		eventually(t, "200 are in flight after 100 aborts", reads(200))
		if n := running(all); n != 200 {
			t.Errorf("%d streams still run at that moment, want 200", n)
		}
		unbroken(t, all[100:], tokens)
		eventually(t, "none is in flight at the end", reads(0))
		for _, a := range all[:100] {
			if <-a.ended; !errors.Is(a.err, context.Canceled) {
				t.Fatalf("an aborted stream ended with %v", a.err)
			}
		}
	})
	t.Run("15 s answer", func(t *testing.T) {
		unbroken(t, long, longTokens)
		if took := time.Since(begin); took < 15*time.Second {
			t.Errorf("the answer took only %s", took)
		}
		eventually(t, "nothing is in flight", func() bool { return inFlight(t, s) == 0 })
	})
	faultless(t, s)
}

// expectContinue sends a body only after it has been asked for.
func expectContinue(t *testing.T, s *stack.Stack) {
	asked := false
	ctx := httptrace.WithClientTrace(bounded(t), &httptrace.ClientTrace{Got100Continue: func() { asked = true }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/completions", bytes.NewReader(large(t, 1000)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Expect", "100-continue")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: time.Minute}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("x-warmpath-endpoint") == "" || !asked {
		t.Errorf("status %d from %q, asked to continue: %v", resp.StatusCode, resp.Header.Get("x-warmpath-endpoint"), asked)
	}
}

// hang holds every request that reaches an engine, or lets them go on.
func hang(t *testing.T, s *stack.Stack, yes bool) {
	t.Helper()
	for _, e := range s.Engines {
		if err := e.Fault(bounded(t), map[string]any{"hang": yes}); err != nil {
			t.Fatal(err)
		}
	}
}

// Envoy's default limits would cut this at 1,024.
func TestManyConcurrentStreams(t *testing.T) {
	const n = 2000
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Max < 5*n {
		t.Skipf("%d open files are allowed to a process; this test needs %d", files.Max, 5*n)
	}
	// The Go runtime has raised its own limit and hands the old one to its
	// children, unless the limit is set explicitly.
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	// A hanging engine answers no /health either.
	s := start(t, func(c *stack.Config) { c.RouterArgs = append(c.RouterArgs, "--pool.health.path=/debug/pool") })
	client, ctx := manyClients(t), bounded(t)
	hang(t, s, true)
	failed := make(chan error, n)
	for range n {
		go func() { failed <- one(ctx, client, s.URL) }()
	}
	eventually(t, "2,000 requests run", func() bool {
		select {
		case err := <-failed:
			t.Fatalf("a request has ended: %v", err)
		default:
		}
		return inFlight(t, s) == n
	})
	if got := metric(t, s, "warmpath_extproc_streams", nil); got < n {
		t.Errorf("%v streams are open, want %d", got, n)
	}
	hang(t, s, false)
	for range n {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "nothing is in flight", func() bool { return inFlight(t, s) == 0 })
	faultless(t, s)
}

// one sends a small request and requires that warmpath has routed it.
func one(ctx context.Context, client *http.Client, url string) error {
	r, err := post(ctx, client, url+"/v1/completions", completion(ids(1, 4), 1), "Routing-Strategy", "least-request")
	if err == nil && (r.status != http.StatusOK || r.endpoint() == "") {
		err = fmt.Errorf("status %d from %q: %s", r.status, r.endpoint(), r.body)
	}
	return err
}

// post sends JSON and reads the whole answer.
func post(ctx context.Context, client *http.Client, url string, body []byte, header ...string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, b}, err
}

func TestDrainBreaksNoStream(t *testing.T) { drained(t, func(*stack.Config) {}) }

// drained stops a router gently while answers run.
func drained(t *testing.T, change func(*stack.Config)) {
	s := start(t, func(c *stack.Config) {
		slow(c)
		c.RouterArgs = append(c.RouterArgs, "--extproc.drain_timeout=200ms")
		change(c)
	})
	outlived(t, s, func() {
		if err := s.Router.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-s.Router.Done()
		if err := s.Router.Err(); err != nil {
			t.Errorf("the drained router ended with %v", err)
		}
	})
}

func TestKilledRouterBreaksNoStream(t *testing.T) {
	killedWith(t, func(*stack.Config) {})
}

// killedWith kills the router while answers run, and sends requests after it.
func killedWith(t *testing.T, change func(*stack.Config)) {
	s := start(t, func(c *stack.Config) { slow(c); change(c) })
	outlived(t, s, s.Router.Kill)
	for i := range 5 { // and the next ones go on without it
		if r := complete(t, s, ids(uint64(i), 4)); r.endpoint() != "" {
			t.Error("a router that is dead is said to have routed a request")
		}
	}
}

// outlived requires that 200 running answers come to their ends after the
// router's.
func outlived(t *testing.T, s *stack.Stack, stop func()) {
	t.Helper()
	const n, tokens = 200, 25
	all := streams(t, s, n, tokens)
	if got := inFlight(t, s); got != n {
		t.Errorf("%d in flight, want %d", got, n)
	}
	stop()
	left := running(all)
	t.Logf("%d streams ran on when the router had ended", left)
	if left == 0 {
		t.Error("every stream ended before the router did: nothing is shown")
	}
	unbroken(t, all, tokens)
	faultless(t, s)
}

func TestLargeBodyIsRetriedOnTheNextEndpoint(t *testing.T) {
	retriedOnNext(t, func(*stack.Config) {})
}

// retriedOnNext kills the first of two engines and sends bodies of 16 MiB until
// one went to the dead engine first. All of them must be answered.
func retriedOnNext(t *testing.T, change func(*stack.Config)) {
	s := start(t, func(c *stack.Config) {
		c.Engines, c.Health = 2, 2*time.Second // late to notice
		change(c)
	})
	body := large(t, 16*MiB)
	for range 10 {
		s.Engines[0].Kill()
		for range 4 { // one in two is sent to the dead engine, until that is known to be dead
			r := do(t, http.MethodPost, s.URL+"/v1/completions", body, "routing-strategy", "random")
			if r.status != http.StatusOK || r.endpoint() != s.Engines[1].HTTP {
				t.Fatalf("status %d from %q: %.200s", r.status, r.endpoint(), r.body)
			}
			if metric(t, s, "warmpath_extproc_retried_total", nil) > 0 {
				faultless(t, s)
				return
			}
		}
		if err := s.RestartEngine(0); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the restarted engine is used again", func() bool {
			return complete(t, s, ids(1, 4), "routing-strategy", "random").endpoint() == s.Engines[0].HTTP
		})
	}
	t.Error("40 random choices of two never took the dead endpoint")
}
