package extproc

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// streamWindow is how much of a message Envoy may send before it is asked
	// for: gRPC's least. Of a body that waits for its turn no more is held here,
	// the rest waits in Envoy, which has it in its buffer anyway. When a message
	// is asked for, gRPC widens the window at once to all of it.
	streamWindow = 64 << 10
	// connectionWindow bounds what is under way on one connection. It bounds no
	// memory, because data is acknowledged as it arrives.
	connectionWindow = 4 << 20
	// turnTime is how long a turn lasts at most, so that a client that is slow to
	// send its body, or a tokenizer that is slow to answer, keeps others waiting
	// for no longer than that. A proxy that buffers receives the body within the
	// turn: where many clients are slow, a larger bound
	// (extproc.concurrent_body_bytes) makes turns unlikely.
	turnTime = 50 * time.Millisecond
	// longestWait bounds the wait for a turn, as does a quarter of the time for a
	// decision. Who has waited for that long goes on without.
	longestWait = 100 * time.Millisecond
	// bytesPerProcessor is the default bound for each processor: bodies are read
	// by processors, and more of them at a time are not read faster.
	bytesPerProcessor = 1 << 20
)

// turns bounds the bytes of large bodies that are received and decided on at a
// time. Bodies that fit the window, or whose length is not known before they
// arrive, need no turn. The bound gives way to time: it flattens bursts, and
// is never the reason why a request fails. It is safe for concurrent use.
type turns struct {
	room    *semaphore.Weighted
	size    int64
	wait    time.Duration
	metrics *metrics
}

func newTurns(size int64, decision time.Duration, m *metrics) *turns {
	return &turns{room: semaphore.NewWeighted(size), size: size, wait: min(longestWait, decision/4), metrics: m}
}

// turn is the leave to receive one body. The zero value is that of a body that
// needs none.
type turn struct {
	end func()
	// waited is how long it took to get it.
	waited time.Duration
}

// done ends the turn, if it has not ended.
func (t *turn) done() {
	if t.end != nil {
		t.end()
		t.end = nil
	}
}

// next waits for the turn of a body of that many bytes.
func (t *turns) next(ctx context.Context, bytes int64) turn {
	if bytes <= streamWindow {
		return turn{}
	}
	n := min(bytes, t.size)
	var waited time.Duration
	outcome := turnAtOnce
	if !t.room.TryAcquire(n) {
		began := time.Now()
		limit, cancel := context.WithTimeout(ctx, t.wait)
		err := t.room.Acquire(limit, n)
		cancel()
		waited = time.Since(began)
		if err != nil {
			t.metrics.turns[turnSkipped].Inc()
			return turn{waited: waited}
		}
		outcome = turnWaited
	}
	t.metrics.turns[outcome].Inc()
	end := sync.OnceFunc(func() { t.room.Release(n) })
	timer := time.AfterFunc(turnTime, end)
	return turn{waited: waited, end: func() { timer.Stop(); end() }}
}
