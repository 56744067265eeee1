package extproc

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

// Memory is as long as was asked for, and what is kept for reuse is never for
// bodies much shorter than itself.
func TestMemories_Classes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.IntRange(0, 3*largestKept/2), rapid.IntRange(0, 64<<10)).Draw(t, "n")
		var l memories
		m := l.get(n)
		if len(m.body) != n {
			t.Fatalf("%d bytes for a body of %d", len(m.body), n)
		}
		if n <= largestKept {
			if class(cap(m.body)) != class(n) {
				t.Fatalf("memory of %d bytes for a body of %d would be kept for others", cap(m.body), n)
			}
			if c := class(n); n > smallestClass<<(2*c) || c > 0 && n <= smallestClass<<(2*(c-1)) {
				t.Fatalf("%d bytes are in class %d", n, c)
			}
		}
		l.put(m)
	})
}

// fakeStream brings messages, and nothing after them.
type fakeStream struct {
	grpc.ServerStream
	ctx      context.Context
	messages []mem.BufferSlice
}

func (f *fakeStream) Context() context.Context { return f.ctx }

func (f *fakeStream) RecvMsg(m any) error {
	if len(f.messages) == 0 {
		return io.EOF
	}
	m.(*frame).data, f.messages = f.messages[0], f.messages[1:]
	return nil
}

// The memory of a request goes on to the next one when it is decided, not
// before, and not at all while its strategy may still read the prompt.
func TestHandle_Recycles(t *testing.T) {
	p := newPool(t, 1)
	body := bytes.Repeat([]byte(" "), 5000)
	copy(body, `{"model":"demo","prompt":[1,2,3]}`)
	messages := wire(requestMessages(t, body, "/v1/completions"))
	for _, async := range []bool{false, true} {
		var lent []kvindex.TokenID
		cfg := DefaultConfig()
		cfg.DecisionTimeout = time.Millisecond
		server := &Server{cfg: cfg, metrics: newMetrics(prometheus.NewRegistry()), router: routerFunc(func(c *routing.Context) {
			lent = c.Request.Prompt.Tokens
			if !async {
				toFirst(p).Route(c)
			}
		})}
		server.snapshots = p
		x := &mailbox{memories: &server.memories}
		s := stream{cfg: &server.cfg, snapshots: p, metrics: server.metrics, ctx: t.Context()}
		g := &fakeStream{ctx: t.Context(), messages: messages[:2]}
		for range 2 {
			if _, ok := server.handle(g, &s, x, 0); !ok {
				t.Fatal("the stream has ended")
			}
		}
		if x.memory != nil {
			t.Errorf("async %v: the stream keeps the memory", async)
		}
		next := server.memories.get(len(body))
		reused := cap(next.ids) > 0 && len(lent) > 0 && &next.ids[:1][0] == &lent[0]
		if !poison && reused == async { // the race detector makes pools forget
			t.Errorf("async %v: used again: %v", async, reused)
		}
		if async && lent[0] != 1 {
			t.Errorf("the prompt of an undecided request was overwritten: %v", lent)
		}
	}
}

// Large bodies take turns, in order; small ones do not wait.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMetrics(prometheus.NewRegistry())
		turns := newTurns(1<<20, time.Second, m)
		first := turns.next(t.Context(), 5<<20) // more than there is: all of it
		if first.waited != 0 {
			t.Errorf("the first waited for %s", first.waited)
		}
		if small := turns.next(t.Context(), streamWindow); small.waited != 0 || small.end != nil {
			t.Errorf("a body that fits the window took a turn: %+v", small)
		}
		got := make(chan turn)
		go func() { got <- turns.next(t.Context(), 1<<20) }()
		<-time.After(10 * time.Millisecond)
		first.done()
		first.done() // does nothing
		second := <-got
		if second.waited != 10*time.Millisecond {
			t.Errorf("the second waited for %s, want 10ms", second.waited)
		}
		// A turn that is not ended ends by itself.
		if third := turns.next(t.Context(), 1<<20); third.waited != turnTime {
			t.Errorf("the third waited for %s, want %s", third.waited, turnTime)
		} else {
			third.done()
		}
		second.done()
		// Nobody waits for longer than the bound, and not when the request ends.
		hold := turns.next(t.Context(), 1<<20)
		defer hold.done()
		turns.wait = turnTime / 2
		late := turns.next(t.Context(), 1<<20)
		if late.waited != turns.wait || late.end != nil {
			t.Errorf("%+v, want to go on without a turn after %s", late, turns.wait)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if gone := turns.next(ended, 1<<20); gone.waited != 0 || gone.end != nil {
			t.Errorf("a request that had ended waited: %+v", gone)
		}
		for w, want := range map[wait]float64{turnAtOnce: 2, turnWaited: 2, turnSkipped: 2} {
			if n := testutil.ToFloat64(m.turns[w]); n != want {
				t.Errorf("%s: %v, want %v", waitNames[w], n, want)
			}
		}
	})
}
