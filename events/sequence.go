package events

import "github.com/warmpath/warmpath/kvindex"

// confirmAfter is the number of batches in one replay answer from which on its
// end is not believed: engines drop what does not fit the send queue of their
// ROUTER (1000 messages in vLLM up to 0.32 and SGLang), the tail included,
// and may still deliver the end marker. A short answer is never cut.
const confirmAfter = 256

// Sequence decides what a publisher's numbered batches mean: which to apply,
// which are missing, when the engine was restarted, and whether the history
// is complete. It does no I/O and reads no clock; its zero value is a
// publisher without a replay endpoint that was never connected. Not safe for
// concurrent use.
//
// A restart is recognised by content: a replay starts at the last batch
// applied, not behind it, and that batch must come back byte for byte the
// same (its time stamp is inside). Anything else is another process, and a new
// generation of the state. Sequence numbers prove nothing across connections.
// A process that is replaced between the live connection and the first replay
// on it is seen when the end of that connection is.
type Sequence struct {
	replay bool // a replay endpoint exists
	phase  Phase
	// started: a batch was applied, or the history is proven empty, in this
	// generation; next is then the sequence that continues it.
	started bool
	next    uint64
	// complete: nothing is missing since sequence 0 or since a clear.
	complete bool
	// heard: anything at all was received.
	heard bool
	// lastLive is the newest sequence of this live connection, if hasLive.
	lastLive uint64
	hasLive  bool
	// joined: the subscription is known to be in force, so that nothing
	// published since can be missing unseen. PUB does not confirm it: a live
	// batch does, or a second replay some time after the first.
	joined bool
	// wanted: history was given up because replay did not answer; it may be had
	// later.
	wanted bool

	ask request
	// deadEnd: a replay begun after a gap was seen ended without bringing
	// sequence next, which is therefore lost.
	deadEnd bool
}

// request is the replay that runs.
type request struct {
	from uint64
	// verify: the batch at from must come back unchanged, confirmed: it has.
	verify, confirmed bool
	// rebuild: state is to be forgotten when the answer begins.
	rebuild bool
	// probe: nothing is missing as far as is known.
	probe bool
	// gap: sequence next is known to exist.
	gap bool
	// got: anything was answered; fresh counts batches that were new.
	got   bool
	fresh uint64
}

// NewSequence returns the sequence of a publisher that has a replay endpoint,
// or has none.
func NewSequence(replay bool) *Sequence { return &Sequence{replay: replay} }

// Resume makes a sequence that was never connected stand where another one
// stood: everything before next was applied, and nothing is missing. The first
// replay proves whether the process is still the same. It needs a replay
// endpoint, and a next above 0.
func (s *Sequence) Resume(next uint64) {
	s.started, s.next, s.complete, s.heard = true, next, true, true
}

// Phase returns the phase.
func (s *Sequence) Phase() Phase { return s.phase }

// Next returns the sequence that continues the history; ok is false if none
// was applied since the last reset.
func (s *Sequence) Next() (next uint64, ok bool) { return s.next, s.started }

// Trust returns how far the state that was applied can be believed.
func (s *Sequence) Trust() kvindex.Trust {
	switch s.phase {
	case Live:
		if s.joined && !s.deadEnd {
			return kvindex.TrustExact
		}
	case Stale:
		if s.heard {
			return kvindex.TrustIncomplete
		}
		return kvindex.TrustSilent
	case Connecting:
		if !s.heard {
			return kvindex.TrustSilent
		}
		if !s.started {
			return kvindex.TrustIncomplete
		}
	}
	if s.asking() && s.ask.probe && s.complete && s.joined {
		// The connection never broke and nothing is known to be missing.
		return kvindex.TrustExact
	}
	return kvindex.TrustRecovering
}

// Joined tells whether the subscription is known to be in force. Until it is,
// a probe is due soon.
func (s *Sequence) Joined() bool { return s.joined }

// Connected says that the live connection is up.
func (s *Sequence) Connected() Step {
	s.hasLive, s.joined = false, false
	if !s.replay {
		s.settle()
		return Step{}
	}
	if s.started && s.next > 0 {
		return s.askLast(request{})
	}
	return s.askAll()
}

// Disconnected says that the live connection is gone. Batches held back are
// of no more use.
func (s *Sequence) Disconnected() Step {
	s.phase, s.ask, s.hasLive, s.deadEnd = Connecting, request{}, false, false
	if s.replay {
		return Step{}
	}
	return Step{Reset: s.forget()}
}

// Live says that a batch arrived on the live connection.
func (s *Sequence) Live(seq uint64) Step {
	s.heard = true
	if s.hasLive && seq <= s.lastLive {
		// One connection is one process, and its numbers only rise. Whatever
		// lies between is not to be trusted, the same number again excepted.
		return Step{Reconnect: seq < s.lastLive}
	}
	s.lastLive, s.hasLive, s.joined = seq, true, true
	switch s.phase {
	case Live, Stale:
		return s.arrive(seq)
	case Connecting:
		return Step{}
	}
	return Step{Frame: Hold}
}

// Held says that a batch held back is looked at again.
func (s *Sequence) Held(seq uint64) Step {
	if s.phase != Live && s.phase != Stale {
		return Step{Frame: Hold}
	}
	return s.arrive(seq)
}

// arrive places a batch while none is awaited.
func (s *Sequence) arrive(seq uint64) Step {
	switch {
	case !s.started:
		return s.begin(seq)
	case seq < s.next:
		return Step{} // a replay brought it
	case seq == s.next:
		return s.apply()
	case s.replay && !s.deadEnd:
		st := s.askLast(request{gap: true})
		st.Frame = Hold
		return st
	}
	reset := s.forget()
	st := s.begin(seq)
	st.Reset = reset
	return st
}

// Replayed says that a replay answer brought a batch. same tells whether it is
// byte for byte the last one applied; it is asked only for that sequence.
func (s *Sequence) Replayed(seq uint64, same bool) Step {
	if !s.asking() {
		return Step{}
	}
	s.heard = true
	a := &s.ask
	a.got = true
	if seq < a.from {
		return Step{} // never asked for
	}
	var reset bool
	if a.verify && !a.confirmed {
		switch {
		case seq == a.from && same:
			a.confirmed = true
			return Step{}
		case seq == a.from:
			return s.restarted()
		}
		// The last batch has left the engine's buffer, so that nothing proves
		// that this is the same process; nor is anything before seq to be had.
		reset = s.forget()
		a.verify = false
	}
	if a.rebuild {
		reset, a.rebuild = s.forget(), false
	}
	switch {
	case !s.started:
		a.fresh++
		st := s.begin(seq)
		st.Reset = reset
		return st
	case seq < s.next:
		return Step{}
	case seq == s.next:
		a.fresh++
		return s.apply()
	case a.fresh > 0:
		// The engine dropped from inside its answer. It may still have it.
		return s.askLast(request{gap: true})
	}
	// A second answer has the same hole: the batches are lost.
	reset = s.forget()
	a.fresh++
	st := s.begin(seq)
	st.Reset = reset
	return st
}

// ReplayEnd says that a replay answer is over: with the end marker, or because
// nothing more came.
func (s *Sequence) ReplayEnd(marker bool) Step {
	if !s.asking() {
		return Step{}
	}
	a := s.ask
	switch {
	case !marker && !a.got:
		return s.ReplayFailed()
	case a.verify && !a.confirmed:
		// The batch that was applied last is not there: the numbers of another
		// process are lower, or its buffer is empty.
		return s.restarted()
	case !a.got:
		// Asked from 0 and nothing there: an empty history, which is complete.
		reset := a.rebuild && s.forget()
		s.joined = s.joined || a.probe
		s.heard, s.started, s.next, s.complete, s.wanted = true, true, 0, true, false
		return s.finish(Step{Reset: reset})
	case a.rebuild:
		// Nothing but what was never asked for.
		return s.ReplayFailed()
	case (a.fresh >= confirmAfter || !marker && a.fresh > 0) && !s.reached():
		return s.askLast(request{gap: a.gap})
	}
	s.wanted = false
	s.joined = s.joined || a.probe
	s.deadEnd = a.gap && a.fresh == 0
	return s.finish(Step{})
}

// ReplayFailed says that a replay could not be asked for or brought nothing
// within its time. The caller repeats it with [Sequence.AskAgain] until it
// loses patience and calls [Sequence.GiveUp]. A probe that fails is over: the
// live connection still stands, and with it the process behind it.
func (s *Sequence) ReplayFailed() Step {
	if s.asking() && s.ask.probe {
		return s.finish(Step{})
	}
	return Step{}
}

// AskAgain repeats the replay that failed, from where the history stands.
func (s *Sequence) AskAgain() Step {
	switch {
	case !s.asking():
		return Step{}
	case s.ask.verify:
		return s.askLast(request{gap: s.ask.gap})
	}
	if s.started && s.next > 0 && !s.ask.rebuild {
		return s.askLast(request{gap: s.ask.gap})
	}
	rebuild := s.ask.rebuild
	st := s.askAll()
	s.ask.rebuild = rebuild
	return st
}

// GiveUp says that the replay failed for too long, or that the engine could
// not be reached for too long: what was applied may describe a process that is
// no more.
func (s *Sequence) GiveUp() Step {
	switch {
	case s.phase == Connecting:
		return Step{Reset: s.forget()}
	case !s.asking():
		return Step{}
	}
	if s.ask.rebuild {
		return s.finish(Step{}) // what came live since is as good as before
	}
	reset := s.forget()
	s.wanted = true
	return s.finish(Step{Reset: reset})
}

// Probe asks for the last batch again although nothing is missing, or for the
// history that was given up. It is for publishers that have been quiet.
func (s *Sequence) Probe() Step {
	switch {
	case !s.replay || s.phase != Live && s.phase != Stale:
		return Step{}
	case s.wanted:
		st := s.askAll()
		s.ask.rebuild = true
		return st
	case s.started && s.next > 0:
		return s.askLast(request{probe: true})
	}
	st := s.askAll()
	s.ask.probe = true
	return st
}

// Cleared says that the batch just applied emptied the engine's cache:
// whatever was missed before is of no more importance.
func (s *Sequence) Cleared() {
	s.complete, s.wanted = true, false
	s.relabel()
}

// Damaged says that the batch just applied could not be understood fully.
func (s *Sequence) Damaged() {
	s.complete = false
	s.relabel()
}

// reached tells whether the history goes up to what is held back, which then
// proves or disproves that its end is not missing.
func (s *Sequence) reached() bool { return s.hasLive && s.lastLive+1 >= s.next }

func (s *Sequence) asking() bool {
	return s.phase == Replaying || s.phase == Gap || s.phase == Verifying
}

// forget ends a generation; it tells whether there was one.
func (s *Sequence) forget() bool {
	had := s.started
	s.started, s.next, s.complete, s.deadEnd = false, 0, false, false
	return had
}

// begin takes seq as the first batch of a generation.
func (s *Sequence) begin(seq uint64) Step {
	s.started, s.next, s.complete = true, seq, seq == 0
	return s.apply()
}

func (s *Sequence) apply() Step {
	s.next++
	s.deadEnd = false
	s.relabel()
	return Step{Frame: Apply}
}

// restarted begins the generation of another process. A live connection that
// was in force before leads to the old one.
func (s *Sequence) restarted() Step {
	reset := s.forget()
	if s.joined {
		return Step{Reset: reset, Reconnect: true}
	}
	st := s.askAll()
	st.Reset = reset
	return st
}

func (s *Sequence) askAll() Step {
	s.ask, s.phase, s.deadEnd = request{}, Replaying, false
	return Step{Ask: true}
}

// askLast asks from the last batch applied, as a says why. There is one.
func (s *Sequence) askLast(a request) Step {
	a.from, a.verify = s.next-1, true
	s.ask, s.deadEnd = a, false
	s.phase = Verifying
	if a.gap {
		s.phase = Gap
	}
	return Step{Ask: true, From: a.from}
}

// finish ends a replay: what was held back may be looked at.
func (s *Sequence) finish(st Step) Step {
	s.ask = request{}
	s.settle()
	st.Drain = true
	return st
}

func (s *Sequence) settle() {
	s.phase = Stale
	s.relabel()
}

func (s *Sequence) relabel() {
	switch {
	case s.phase != Live && s.phase != Stale:
	case s.complete:
		s.phase = Live
	default:
		s.phase = Stale
	}
}
