package events

import (
	"context"
	"sync"
)

// replayQueue is how many replayed batches may wait to be applied. Reading
// ahead matters: engines drop what a slow reader leaves in their send queue.
const replayQueue = 4096

// replayKind is what a replay tells.
type replayKind uint8

const (
	// replayBegun: it is this replay's turn.
	replayBegun replayKind = iota
	replayBatch
	replayMarker
	replayBroken
	replayGarbage
)

type replayMessage struct {
	kind    replayKind
	seq     uint64
	payload []byte
	err     error
	// rest is where the messages after replayBegun come.
	rest chan replayMessage
}

// replayer is one request on its own connection.
type replayer struct {
	// c is changed by who receives from it. The long queue is made only for
	// the replays that run, a thousand of which may wait for their turn.
	c      chan replayMessage
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// startReplay asks endpoint for everything from seq on. slots bounds the
// replays of the process.
func startReplay(ctx context.Context, t Transport, slots chan struct{}, endpoint string, seq uint64) *replayer {
	ctx, cancel := context.WithCancel(ctx)
	r := &replayer{c: make(chan replayMessage, 1), cancel: cancel}
	turn := r.c
	r.wg.Go(func() { runReplay(ctx, turn, t, slots, endpoint, seq) })
	return r
}

// stop ends the replay and waits until it has. What it has read is dropped.
func (r *replayer) stop() {
	r.cancel()
	r.wg.Wait()
}

func runReplay(ctx context.Context, turn chan<- replayMessage, t Transport, slots chan struct{}, endpoint string, seq uint64) {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return
	}
	rest := make(chan replayMessage, replayQueue)
	if !tell(ctx, turn, replayMessage{kind: replayBegun, rest: rest}) {
		return
	}
	s, err := t.DialReplay(ctx, endpoint, ReplayRequest(seq))
	if err != nil {
		tell(ctx, rest, replayMessage{kind: replayBroken, err: err})
		return
	}
	// Whoever waits in Recv is woken by Close, and Close is called once.
	closed := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer func() {
		if closed() {
			_ = s.Close()
		}
	}()
	for {
		frames, err := s.Recv()
		if err != nil {
			tell(ctx, rest, replayMessage{kind: replayBroken, err: err})
			return
		}
		m := replayMessage{kind: replayBatch}
		var ok bool
		switch m.seq, m.payload, ok = ReplayBatch(frames); {
		case !ok:
			m.kind = replayGarbage
		case m.seq == EndMarker:
			m.kind = replayMarker
		}
		if !tell(ctx, rest, m) || m.kind == replayMarker {
			return
		}
	}
}

func tell(ctx context.Context, to chan<- replayMessage, m replayMessage) bool {
	select {
	case to <- m:
		return true
	case <-ctx.Done():
		return false
	}
}
