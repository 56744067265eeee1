package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"

	"github.com/warmpath/warmpath/events/zmtp"
)

// eventFaults are the faults of the event sockets. The publisher's lock guards
// them.
type eventFaults struct {
	// Numbers of batches or messages that the fault is still to strike.
	drop, lose, duplicate, reorder, unknown, garbage int

	loseShare float64
	random    *rand.Rand // decides with loseShare

	// stalled batches wait until resume is closed, which is nil when nothing
	// is stalled.
	stalled []batch
	resume  chan struct{}
	// late are batches held back to come after the next one.
	late []batch

	// slowJoin is how many batches a new subscription misses, missing how many
	// the newest is still to miss, peers how many there were.
	slowJoin, missing, peers int

	replayHoleAfter, replayHole int
	replayNoMarker              bool
}

// take reports whether a fault strikes, and counts it.
func take(n *int) bool {
	if *n == 0 {
		return false
	}
	*n--
	return true
}

// send sends one live message as the faults have it. The caller holds mu.
func (p *publisher) send(b batch) {
	f := &p.faults
	for take(&f.garbage) {
		// Neither has a sequence and a payload.
		p.frames([]byte("garbage"))
		p.frames(p.topic, []byte{1, 2, 3}, b.payload)
	}
	if n := p.pub.Subscribers(); n != f.peers {
		if n > f.peers {
			f.missing = f.slowJoin
		}
		f.peers = n
	}
	switch {
	case take(&f.missing), take(&f.lose), f.loseShare > 0 && f.random.Float64() < f.loseShare:
		p.logger.Info("live message lost by fault", slog.Uint64("seq", b.seq))
		return
	case take(&f.reorder):
		f.late = append(f.late, b)
		return
	}
	p.live(b)
	if take(&f.duplicate) {
		p.live(b)
	}
	for _, b := range f.late {
		p.live(b)
	}
	f.late = nil
}

func (p *publisher) live(b batch) { p.frames(p.topic, seqFrame(b.seq), b.payload) }

func (p *publisher) frames(frames ...[]byte) {
	if err := p.pub.Send(frames...); err != nil {
		p.logger.Warn("kv event message not sent", slog.Any("error", err))
	}
}

// waitStalled returns when replays may be answered.
func (p *publisher) waitStalled() {
	p.mu.Lock()
	resume := p.faults.resume
	p.mu.Unlock()
	if resume == nil {
		return
	}
	select {
	case <-resume:
	case <-p.closed:
	}
}

// setFaults changes the faults that q names.
func (p *publisher) setFaults(q Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := &p.faults
	for _, n := range f.counts(&q) {
		if *n.wanted != nil {
			*n.value = **n.wanted
		}
	}
	if q.LoseShare != nil {
		var seed uint64
		if q.LoseSeed != nil {
			seed = *q.LoseSeed
		}
		f.loseShare, f.random = *q.LoseShare, rand.New(rand.NewPCG(seed, 0))
	}
	if q.BufferSteps != nil {
		p.limit = *q.BufferSteps
		p.trim()
	}
	if q.ReplayNoMarker != nil {
		f.replayNoMarker = *q.ReplayNoMarker
	}
	switch {
	case q.Stall == nil:
	case *q.Stall && f.resume == nil:
		f.resume = make(chan struct{})
	case !*q.Stall && f.resume != nil:
		for _, b := range f.stalled {
			p.send(b)
		}
		close(f.resume)
		f.stalled, f.resume = nil, nil
	}
}

// counted is a fault that is a number.
type counted struct {
	name   string
	value  *int
	wanted **int
}

// counts pairs the faults that are numbers with the fields of q.
func (f *eventFaults) counts(q *Faults) []counted {
	return []counted{
		{"drop_next", &f.drop, &q.DropNext},
		{"lose_next", &f.lose, &q.LoseNext},
		{"duplicate_next", &f.duplicate, &q.DuplicateNext},
		{"reorder_next", &f.reorder, &q.ReorderNext},
		{"unknown_next", &f.unknown, &q.UnknownNext},
		{"garbage_next", &f.garbage, &q.GarbageNext},
		{"slow_joiner", &f.slowJoin, &q.SlowJoiner},
		{"replay_hole", &f.replayHole, &q.ReplayHole},
		{"replay_hole_after", &f.replayHoleAfter, &q.ReplayHoleAfter},
	}
}

// addFaults writes the faults in force to q.
func (p *publisher) addFaults(q *Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.faults
	for _, n := range f.counts(q) {
		value := *n.value
		*n.wanted = &value
	}
	share, stall, limit, noMarker := f.loseShare, f.resume != nil, p.limit, f.replayNoMarker
	q.LoseShare, q.Stall, q.BufferSteps, q.ReplayNoMarker = &share, &stall, &limit, &noMarker
}

// restart closes the sockets and opens them again at the same ports. fresh
// forgets the numbers and the buffer, as another process would.
func (p *publisher) restart(ctx context.Context, fresh bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fresh {
		p.next, p.ring = 0, nil
	}
	p.faults.late, p.faults.stalled, p.faults.peers = nil, nil, 0
	pub, replay := p.pub.Endpoint(), ""
	if p.router != nil {
		replay = p.router.Endpoint()
	}
	p.closeSockets()
	reopened, err := zmtp.ListenPub(ctx, pub)
	if err != nil {
		return fmt.Errorf("events %s: %w", pub, err)
	}
	p.pub = reopened
	if replay == "" {
		return nil
	}
	router, err := zmtp.ListenRouter(ctx, replay)
	if err != nil {
		return fmt.Errorf("replay %s: %w", replay, err)
	}
	p.router = router
	return nil
}

// withUnknownEvent puts an event of a type that no engine has before those of
// a batch, which is [ts, events, rank] with a float64 time stamp.
func withUnknownEvent(payload []byte) []byte {
	const at = 1 + 9 // behind the array's head and the time stamp
	n, rest := 0, payload[at:]
	switch c := rest[0]; {
	case c&0xf0 == 0x90:
		n, rest = int(c&0x0f), rest[1:]
	case c == 0xdc:
		n, rest = int(binary.BigEndian.Uint16(rest[1:])), rest[3:]
	default:
		n, rest = int(binary.BigEndian.Uint32(rest[1:])), rest[5:]
	}
	out := append([]byte(nil), payload[:at]...)
	out = append(out, 0xdd)
	out = binary.BigEndian.AppendUint32(out, uint32(n+1))
	out = append(out, "\x82\xa4type\xacBlockPinned!\xa5later\x93\x01\xc0\x81\xa1k\xc3"...)
	return append(out, rest...)
}
