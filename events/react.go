package events

import (
	"context"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

func (s *subscriber) onLive(ctx context.Context, m message) {
	next, ok := s.seq.Next()
	st := s.seq.Live(m.seq)
	s.heardAt = m.at
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
		s.replay.c = m.rest
		s.deadline = now.Add(s.cfg.ReplayTimeout)
		if s.patience.IsZero() {
			s.patience = now.Add(s.cfg.GiveUp)
		}
	case replayGarbage:
		s.m.frames[frameMalformed].Inc()
	case replayBatch:
		s.answered, s.heardAt = true, now
		s.deadline = now.Add(s.cfg.Quiet)
		next, _ := s.seq.Next()
		same := m.seq+1 == next && s.same(m.payload)
		st := s.seq.Replayed(m.seq, same)
		if st.Frame == Apply {
			s.patience = now.Add(s.cfg.GiveUp)
		}
		s.do(ctx, st, message{seq: m.seq, payload: m.payload})
	case replayMarker:
		s.heardAt = now
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
		s.last, s.generation = nil, s.generation+1
		clear(s.roots)
		s.proven(false)
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
	// A whole history does not help where the index has no place for what it
	// tells. It is exact again when the blocks that wait for their parent are
	// placed or removed.
	if s.writer.Lacks() {
		trust = min(trust, kvindex.TrustIncomplete)
	}
	if phase == Live || phase == Stale {
		s.settled()
	}
	s.setTrust(trust, phase, time.Now())
	s.mu.Lock()
	s.status.Blind = s.applier.blind
	s.mu.Unlock()
	if s.tap != nil {
		at := Point{Generation: s.generation, Trust: trust}
		if next, ok := s.seq.Next(); ok && next > 0 {
			at.Sequence, at.Sequenced = next-1, true
		}
		s.tap.Sync(at)
	}
}

// setTrust makes known where the publisher stands.
func (s *subscriber) setTrust(trust kvindex.Trust, phase Phase, now time.Time) {
	changed := trust != s.trust
	if changed {
		s.writer.SetTrust(trust)
		s.series.trust.Set(float64(trust))
		s.log.Info("publisher's trust changed", "from", s.trust.String(), "to", trust.String(), "phase", phase.String())
	}
	s.mu.Lock()
	if changed || s.status.Since.IsZero() {
		s.status.Since = now
	}
	s.status.Phase, s.status.Trust = phase.String(), trust.String()
	s.mu.Unlock()
	s.trust = trust
}
