package stack_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/stack"
)

// queued lets engines run two requests at a time, and the others wait.
func queued(deadline time.Duration) func(*stack.Config) {
	return func(c *stack.Config) {
		// A hanging engine answers no /health.
		c.RouterArgs = append(c.RouterArgs, "--pool.health.path=/debug/pool",
			"--routing.queue.max_in_flight=2", "--routing.queue.deadline="+deadline.String())
		c.EngineArgs = append(c.EngineArgs, "--time-scale", "5")
		c.Extra += "routing: {strategy: queue}\n"
	}
}

// most returns the most requests that any engine, or the router for it, counts.
func most(t *testing.T, s *stack.Stack) (n int) {
	t.Helper()
	st, err := s.State(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range st.Endpoints {
		n = max(n, int(e.InFlight))
	}
	for _, e := range s.Engines {
		p, err := e.Pool(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		n = max(n, p.Running+p.Waiting)
	}
	return n
}

func TestQueueHoldsRequestsUntilThereIsRoom(t *testing.T) {
	const n = 30
	s := start(t, queued(time.Minute))
	waiting := func() float64 { return metric(t, s, "warmpath_routing_queue_waiting", nil) }
	eventually(t, "nothing runs before", func() bool { return inFlight(t, s) == 0 })
	client := manyClients(t)
	hang(t, s, true)
	ended := make(chan error, n)
	ctx, abort := context.WithCancel(bounded(t))
	defer abort()
	for i := range n + 4 {
		if i < n {
			go func() { ended <- queuedRequest(bounded(t), client, s.URL, strconv.Itoa(i%5)) }()
			continue
		}
		if i == n { // the last ones are in line, and leave
			eventually(t, "the others wait", func() bool { return waiting() == n-6 })
		}
		go func() { _ = queuedRequest(ctx, client, s.URL, "gone") }()
	}
	eventually(t, "all others wait", func() bool { return waiting() == n+4-6 && inFlight(t, s) == 6 })
	abort()
	eventually(t, "the aborted ones have left", func() bool { return waiting() == n-6 })
	if got := inFlight(t, s); got != 6 {
		t.Errorf("%d run after an abort of those that waited, want 6", got)
	}
	hang(t, s, false)
	peak := 0
	for left := n; left > 0; {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
			left--
		default:
			if peak = max(peak, most(t, s)); peak > 2 {
				t.Fatalf("an engine ran %d requests, limit 2", peak)
			}
		}
	}
	if peak != 2 {
		t.Errorf("an engine ran at most %d requests: room for 2 was not used, or nobody looked", peak)
	}
	eventually(t, "nothing is left", func() bool { return inFlight(t, s) == 0 && waiting() == 0 })
	faultless(t, s)
}

// queuedRequest sends a request of a user and requires that warmpath has routed
// it.
func queuedRequest(ctx context.Context, client *http.Client, url, user string) error {
	r, err := post(ctx, client, url+"/v1/completions", []byte(`{"model":"demo","prompt":[1,2,3],"max_tokens":5,"ignore_eos":true}`), "User", user)
	if err == nil && (r.status != http.StatusOK || r.endpoint() == "") {
		err = fmt.Errorf("status %d from %q: %s", r.status, r.endpoint(), r.body)
	}
	return err
}

func TestQueueRefusesAtItsDeadline(t *testing.T) {
	s := start(t, queued(300*time.Millisecond))
	client := manyClients(t)
	hang(t, s, true)
	ended := make(chan error, 6)
	for range 6 {
		go func() { ended <- queuedRequest(bounded(t), client, s.URL, "first") }()
	}
	eventually(t, "every engine is full", func() bool { return inFlight(t, s) == 6 })
	for range 5 {
		begin := time.Now()
		r := do(t, http.MethodPost, s.URL+"/v1/completions", completion(ids(1, 4), 1))
		if again, err := strconv.Atoi(r.header.Get("Retry-After")); r.status != http.StatusTooManyRequests || err != nil || again < 1 || r.reason() != "queue_timeout" {
			t.Fatalf("status %d by %q, Retry-After %q: %s", r.status, r.reason(), r.header.Get("Retry-After"), r.body)
		}
		if waited := time.Since(begin); waited < 300*time.Millisecond {
			t.Errorf("it was refused after %s", waited)
		}
	}
	hang(t, s, false)
	for range 6 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if r := complete(t, s, ids(1, 4)); r.endpoint() == "" {
		t.Error("with room again, nothing is routed")
	}
	eventually(t, "nothing is left", func() bool { return inFlight(t, s) == 0 })
	faultless(t, s)
}
