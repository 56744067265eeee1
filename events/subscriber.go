package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// liveQueue is how many live batches may wait to be looked at. Behind it the
// receiver blocks, TCP fills up, and the engine's own queue takes what comes.
const liveQueue = 256

// messageOverhead is charged for a held message besides its payload.
const messageOverhead = 128

// subscriber follows one publisher. Everything but status belongs to the
// goroutine of run.
type subscriber struct {
	cfg       Config
	transport Transport
	slots     chan struct{}
	log       *slog.Logger
	m         *metrics
	rand      *rand.Rand
	publisher pool.Publisher
	writer    *kvindex.Writer
	settled   func()
	series    series

	seq     *Sequence
	applier applier
	last    []byte // payload of the last batch applied
	trust   kvindex.Trust

	held      []message
	heldBytes int

	replay *replayer
	// deadline is when the running replay has failed or is over, or, without
	// one, when the failed one is repeated; zero while a replay waits for its
	// turn, and when none is wanted.
	deadline  time.Time
	answered  bool
	patience  time.Time // when to give up; zero if nothing is awaited
	probeAt   time.Time
	pauses    *backoff.ExponentialBackOff
	reconnect bool

	mu     sync.Mutex
	status Status // guarded by mu
}

// message is a live batch.
type message struct {
	seq     uint64
	payload []byte
	at      time.Time
}

func newPauses(cfg Config) *backoff.ExponentialBackOff {
	// The jitter comes from the subscriber's own source.
	return &backoff.ExponentialBackOff{InitialInterval: cfg.BackoffMin, Multiplier: 2, MaxInterval: cfg.BackoffMax}
}

// jitter returns d changed by up to the share of it.
func (s *subscriber) jitter(d time.Duration, share float64) time.Duration {
	return d + time.Duration(float64(d)*share*(2*s.rand.Float64()-1))
}

// run follows the publisher until ctx ends.
func (s *subscriber) run(ctx context.Context) {
	redials := newPauses(s.cfg)
	down := time.Now()
	gaveUp := false
	for ctx.Err() == nil {
		stream, err := s.dial(ctx)
		if err == nil {
			up := time.Now()
			err = s.session(ctx, stream)
			down, gaveUp = time.Now(), false
			if down.Sub(up) > s.cfg.BackoffMax {
				redials.Reset()
			}
		}
		if ctx.Err() != nil {
			return
		}
		s.failed(err)
		wait := s.jitter(redials.NextBackOff(), 0.5)
		if !gaveUp {
			if left := s.cfg.GiveUp - time.Since(down); left <= 0 {
				gaveUp = true
				s.do(ctx, s.seq.GiveUp(), message{})
				s.publish()
			} else {
				wait = min(wait, left)
			}
		}
		pause(ctx, wait)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (s *subscriber) dial(ctx context.Context) (Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ReplayTimeout)
	defer cancel()
	return s.transport.DialLive(ctx, s.publisher.Events)
}

// failed notes why there is no connection, and logs it if that is news.
func (s *subscriber) failed(err error) {
	s.settled()
	s.mu.Lock()
	news := s.status.Error == ""
	s.status.Error = err.Error()
	s.mu.Unlock()
	if news {
		s.log.Warn("no event stream; trying again", "events", s.publisher.Events, "err", err)
	}
}

// session follows one live connection to its end.
func (s *subscriber) session(ctx context.Context, stream Stream) error {
	s.m.connects.Inc()
	s.mu.Lock()
	s.status.Error = ""
	s.mu.Unlock()
	s.log.Info("event stream connected", "events", s.publisher.Events)

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	live := make(chan message, liveQueue)
	broken := make(chan error, 1)
	wg.Go(func() { broken <- s.receive(ctx, stream, live) })
	defer func() {
		cancel()
		_ = stream.Close()
		wg.Wait()
		s.stopReplay()
		s.deadline, s.patience = time.Time{}, time.Time{}
		s.drop()
		s.do(ctx, s.seq.Disconnected(), message{})
		s.publish()
	}()

	s.reconnect = false
	s.pauses.Reset()
	s.do(ctx, s.seq.Connected(), message{})
	s.heardNow()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !s.reconnect {
		s.publish()
		timer.Reset(time.Until(s.nextDue()))
		var replayed <-chan replayMessage
		if s.replay != nil {
			replayed = s.replay.c
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case m := <-live:
			s.onLive(ctx, m)
		case m := <-replayed:
			s.onReplay(ctx, m)
		case err := <-broken:
			// What was received before the end counts.
			for len(live) > 0 {
				s.onLive(ctx, <-live)
			}
			return err
		case <-timer.C:
			s.onDue(ctx, time.Now())
		}
	}
	return errors.New("the live connection leads to another process than the one that answers")
}

// receive reads live messages until the connection ends.
func (s *subscriber) receive(ctx context.Context, stream Stream, to chan<- message) error {
	for {
		frames, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		seq, payload, ok := liveFrame(frames)
		if !ok || seq == endMarker {
			s.m.frames[frameMalformed].Inc()
			continue
		}
		select {
		case to <- message{seq, payload, time.Now()}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *subscriber) onLive(ctx context.Context, m message) {
	next, ok := s.seq.Next()
	st := s.seq.Live(m.seq)
	s.heardNow()
	if gap := st.Ask || st.Reset; gap && ok && m.seq > next {
		s.m.missed.Add(float64(m.seq - next))
		s.mu.Lock()
		s.status.Missed += m.seq - next
		s.mu.Unlock()
		s.log.Warn("batches are missing in the event stream", "expected", next, "got", m.seq, "replay", st.Ask)
	}
	s.do(ctx, st, m)
}

func (s *subscriber) onReplay(ctx context.Context, m replayMessage) {
	now := time.Now()
	switch m.kind {
	case replayBegun:
		s.deadline = now.Add(s.cfg.ReplayTimeout)
		if s.patience.IsZero() {
			s.patience = now.Add(s.cfg.GiveUp)
		}
	case replayGarbage:
		s.m.frames[frameMalformed].Inc()
	case replayBatch:
		s.answered = true
		s.deadline = now.Add(s.cfg.Quiet)
		next, _ := s.seq.Next()
		same := m.seq+1 == next && bytes.Equal(m.payload, s.last)
		st := s.seq.Replayed(m.seq, same)
		if st.Frame == Apply {
			s.patience = now.Add(s.cfg.GiveUp)
		}
		s.do(ctx, st, message{seq: m.seq, payload: m.payload})
	case replayMarker:
		s.m.replays[replayMarked].Inc()
		s.endReplay(ctx, s.seq.ReplayEnd(true))
	case replayBroken:
		s.log.Debug("replay broke off", "replay", s.publisher.Replay, "err", m.err)
		s.replayOver(ctx, s.answered)
	}
}

// replayOver ends a replay that brought no end marker.
func (s *subscriber) replayOver(ctx context.Context, answered bool) {
	if answered {
		s.m.replays[replayQuiet].Inc()
		s.endReplay(ctx, s.seq.ReplayEnd(false))
		return
	}
	s.m.replays[replayFailed].Inc()
	s.endReplay(ctx, s.seq.ReplayFailed())
	if s.awaiting() {
		s.settled()
		s.deadline = time.Now().Add(s.jitter(s.pauses.NextBackOff(), 0.5))
	}
}

// endReplay closes the replay's connection before the step may open another.
func (s *subscriber) endReplay(ctx context.Context, st Step) {
	s.stopReplay()
	s.do(ctx, st, message{})
	if !s.awaiting() {
		s.patience = time.Time{}
		s.pauses.Reset()
		s.heardNow()
	}
}

func (s *subscriber) awaiting() bool {
	p := s.seq.Phase()
	return p == Replaying || p == Gap || p == Verifying
}

func (s *subscriber) stopReplay() {
	if s.replay != nil {
		s.replay.stop()
		s.replay = nil
	}
	s.deadline = time.Time{}
}

// nextDue is when onDue must be called.
func (s *subscriber) nextDue() time.Time {
	switch {
	case !s.awaiting():
		return s.probeAt
	case s.deadline.IsZero():
		return s.probeAt // a replay waits for its turn
	case s.deadline.Before(s.patience):
		return s.deadline
	}
	return s.patience
}

func (s *subscriber) onDue(ctx context.Context, now time.Time) {
	switch {
	case !s.awaiting():
		if now.Before(s.probeAt) {
			return
		}
		s.heardNow()
		s.do(ctx, s.seq.Probe(), message{})
	case s.deadline.IsZero():
		s.heardNow()
	case !s.patience.After(now):
		s.m.replays[replayGivenUp].Inc()
		s.log.Warn("replay does not answer; the publisher is incomplete until its cache is cleared or a replay succeeds", "replay", s.publisher.Replay)
		s.endReplay(ctx, s.seq.GiveUp())
		s.settled()
	case now.Before(s.deadline):
	case s.replay != nil:
		s.replayOver(ctx, s.answered)
	default:
		s.deadline = time.Time{}
		s.do(ctx, s.seq.AskAgain(), message{})
	}
}

// heardNow puts off the next probe.
func (s *subscriber) heardNow() {
	wait := 24 * time.Hour // never, for a publisher that cannot be asked
	switch {
	case s.publisher.Replay == "":
	case !s.seq.Joined():
		wait = s.cfg.Confirm
	case s.cfg.Probe > 0:
		wait = s.jitter(s.cfg.Probe, 0.2)
	}
	s.probeAt = time.Now().Add(wait)
}

// do carries out a step about live batch m.
func (s *subscriber) do(ctx context.Context, st Step, m message) {
	if st.Reset {
		s.m.resets.Inc()
		s.log.Info("publisher's state dropped", "phase", s.seq.Phase().String())
		s.applier.forget()
		s.last = nil
	}
	switch {
	case m.payload == nil:
	case st.Frame == Apply:
		s.apply(m)
	case st.Frame == Hold:
		s.hold(m)
	default:
		s.m.frames[frameDuplicate].Inc()
	}
	if st.Ask {
		s.stopReplay()
		s.answered = false
		s.replay = startReplay(ctx, s.transport, s.slots, s.publisher.Replay, st.From)
	}
	if st.Reconnect {
		s.reconnect = true
	}
	if st.Drain {
		s.drain(ctx)
	}
}

func (s *subscriber) drain(ctx context.Context) {
	for len(s.held) > 0 {
		m := s.held[0]
		st := s.seq.Held(m.seq)
		if st.Frame == Hold {
			st.Frame = Discard
			s.do(ctx, st, message{})
			return
		}
		s.held = s.held[1:]
		s.heldBytes -= len(m.payload) + messageOverhead
		s.do(ctx, st, m)
	}
	s.held = nil
}

func (s *subscriber) hold(m message) {
	n := len(m.payload) + messageOverhead
	if s.heldBytes+n > s.cfg.MaxHeldBytes {
		s.m.frames[frameDropped].Inc() // a gap, found when what is held is looked at
		return
	}
	s.held = append(s.held, m)
	s.heldBytes += n
}

func (s *subscriber) drop() { s.held, s.heldBytes = nil, 0 }

// apply applies a batch; at is zero for a replayed one.
func (s *subscriber) apply(m message) {
	var n tally
	out, batch := s.applier.apply(m.payload, &n)
	s.last = m.payload
	s.m.count(&n)
	if out.cleared {
		s.seq.Cleared()
	}
	if out.missed {
		s.seq.Damaged()
	}
	if out.tainted {
		s.writer.Clear()
	}
	if !m.at.IsZero() && batch.Time > 0 {
		s.m.lag.Observe(max(0, float64(time.Now().UnixMicro())/1e6-batch.Time))
	}
	now := time.Now()
	s.series.sequence.Set(float64(m.seq))
	s.series.lastEvent.Set(float64(now.Unix()))
	s.mu.Lock()
	s.status.Sequence, s.status.Sequenced, s.status.LastEvent = m.seq, true, now
	s.mu.Unlock()
}

// publish makes known what the last input changed.
func (s *subscriber) publish() {
	phase, trust := s.seq.Phase(), s.seq.Trust()
	if s.applier.blind {
		trust = min(trust, kvindex.TrustIncomplete)
	}
	if phase == Live || phase == Stale {
		s.settled()
	}
	if trust != s.trust {
		s.writer.SetTrust(trust)
		s.series.trust.Set(float64(trust))
		s.log.Info("publisher's trust changed", "from", s.trust.String(), "to", trust.String(), "phase", phase.String())
	}
	s.mu.Lock()
	if trust != s.trust || s.status.Since.IsZero() {
		s.status.Since = time.Now()
	}
	s.status.Phase, s.status.Trust, s.status.Blind = phase.String(), trust.String(), s.applier.blind
	s.mu.Unlock()
	s.trust = trust
}
