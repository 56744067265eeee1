package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// Peers are the other routers of the fleet, which a starting one asks for what
// they know.
type Peers interface {
	// Ask asks for publishers, and gives take each answer as it comes. It returns
	// when all are had, nobody is left to be asked, or ctx has ended.
	Ask(ctx context.Context, wanted []Subject, take func(of Subject, known Saved))
}

// WithPeers has publishers go on where another router stands if they start
// within a time of the first one that others are asked for. They wait for its
// answer, and for no longer than that time. One Ask runs at a time.
func WithPeers(p Peers, within time.Duration) Option {
	return func(m *Manager) { m.peers, m.askFor = p, within }
}

// asks is what goes on between a manager and other routers.
type asks struct {
	// during ends when no other router is asked any more; nil before the first
	// publisher that they are asked for. Written by Run alone, before the
	// goroutine that one counts begins.
	during context.Context
	stop   context.CancelFunc
	one    sync.WaitGroup
	// next are those that the next Ask is for, running tells whether there is
	// one now, late whether it is said that somebody came too late; guarded by
	// the manager's mu.
	next    []wanted
	running bool
	late    bool
}

// wanted is a publisher that others are to be asked for. The channel has room for
// the answer, and is closed when there will be none.
type wanted struct {
	Subject
	answer chan *Saved
}

// end ends what is asked, and waits for it.
func (a *asks) end() {
	if a.during != nil {
		a.stop()
		a.one.Wait()
	}
}

// ask begins to ask other routers for those publishers of fresh that they may
// know and whose engines can prove it, and returns where the answers come: one
// at most for each, and then the end of the channel.
func (m *Manager) ask(ctx context.Context, fresh []Subject) map[kvindex.PublisherID]<-chan *Saved {
	if m.peers == nil {
		return nil
	}
	var next []wanted
	for _, of := range fresh {
		if of.Publisher.Replay != "" && of.Publisher.Relay == "" {
			next = append(next, wanted{of, make(chan *Saved, 1)})
		}
	}
	if len(next) == 0 {
		return nil
	}
	if m.asks.during == nil {
		m.asks.during, m.asks.stop = context.WithTimeout(ctx, m.askFor)
	}
	if m.asks.during.Err() != nil {
		m.unasked(ctx, len(next), 0)
		return nil
	}
	coming := map[kvindex.PublisherID]<-chan *Saved{}
	for _, w := range next {
		coming[w.Publisher.ID] = w.answer
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// One that was stopped before its turn came and is there again waits once.
	m.asks.next = slices.DeleteFunc(m.asks.next, func(w wanted) bool { return coming[w.Publisher.ID] != nil })
	m.asks.next = append(m.asks.next, next...)
	m.warm.Asked += len(next)
	m.warm.Asking += len(next)
	if !m.asks.running {
		m.asks.running = true
		m.asks.one.Go(func() { m.askAll(ctx) })
	}
	return coming
}

// askAll asks for all that are to be asked for, and for those together that come
// meanwhile: each Ask is a call to every router, which tells few at once.
func (m *Manager) askAll(ctx context.Context) {
	for {
		m.mu.Lock()
		now := m.asks.next
		m.asks.next, m.asks.running = nil, len(now) > 0
		m.mu.Unlock()
		if len(now) == 0 {
			return
		}
		if m.asks.during.Err() != nil {
			m.unasked(ctx, len(now), len(now))
		} else {
			subjects, answers := make([]Subject, len(now)), map[kvindex.PublisherID]chan *Saved{}
			for i, w := range now {
				subjects[i], answers[w.Publisher.ID] = w.Subject, w.answer
			}
			m.peers.Ask(m.asks.during, subjects, func(of Subject, known Saved) {
				select {
				case answers[of.Publisher.ID] <- &known:
				default: // it has one
				}
			})
		}
		for _, w := range now {
			close(w.answer)
		}
	}
}

// unasked counts publishers whose turn came when the time was over. counted of
// them are in WarmStart.Asked.
func (m *Manager) unasked(ctx context.Context, n, counted int) {
	if ctx.Err() != nil {
		return
	}
	m.metrics.unasked.Add(float64(n))
	m.mu.Lock()
	m.warm.Unasked += n
	m.warm.Asked -= counted
	first := !m.asks.late
	m.asks.late = true
	m.mu.Unlock()
	if first {
		m.log.Info("the time for asking other routers is over; for event streams that come now they are not asked", "within", m.askFor, "streams", n)
	}
}

// question asks a publisher's goroutine for what it knows.
type question struct {
	of     Subject
	answer chan<- *Saved // has room for it; nil: not all is known
}

// answer answers between two batches, so that what is told is the state of one
// sequence.
func (s *subscriber) answer(q question) {
	if s.seq.Phase() == Replaying {
		q.answer <- nil // what there is so far is true, and so little that it is better asked of the engine
		return
	}
	saved, ok := s.save(q.of)
	if !ok {
		q.answer <- nil
		return
	}
	q.answer <- &saved
}

// maxQuestion bounds how long a publisher's goroutine may be busy with
// something else.
const maxQuestion = 2 * time.Second

// Why [Manager.Snapshot] has nothing to tell, for people.
var (
	errFollowed   = errors.New("it is not followed here")
	errOtherModel = errors.New("its base model is another one here")
	errRelayed    = errors.New("its relay feeds it, and tells all to whoever asks it")
	errNoReplay   = errors.New("it has no replay endpoint, so that nothing could be proven")
	errConnecting = errors.New("its engine is not reached at the moment")
	errHistory    = errors.New("its history is not complete, or more than can be told")
)

// Snapshot returns what is known of a publisher at this moment, as of one batch
// of its engine, for another router to go on from. The error says why there is
// nothing to tell.
func (m *Manager) Snapshot(ctx context.Context, address string, rank int, model string) (Saved, error) {
	r := m.find(address, rank)
	switch {
	case r == nil:
		return Saved{}, errFollowed
	case r.Model != model:
		return Saved{}, fmt.Errorf("%w: %q", errOtherModel, r.Model)
	case r.Publisher.Relay != "" && r.sub.source() == SourceRelay:
		return Saved{}, errRelayed
	case r.Publisher.Replay == "":
		return Saved{}, errNoReplay
	case r.sub.connecting():
		return Saved{}, errConnecting
	}
	ctx, cancel := context.WithTimeout(ctx, maxQuestion)
	defer cancel()
	answer := make(chan *Saved, 1)
	select {
	case r.sub.questions <- question{r.Subject, answer}:
	case <-r.done:
		return Saved{}, errFollowed
	case <-ctx.Done():
		return Saved{}, errConnecting
	}
	// Whoever takes a question answers it at once.
	if saved := <-answer; saved != nil {
		return *saved, nil
	}
	return Saved{}, errHistory
}

// find returns the publisher of an address and rank that is followed, nil if
// there is none.
func (m *Manager) find(address string, rank int) *running {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.running {
		if r.Address == address && r.Publisher.Rank == rank {
			return r
		}
	}
	return nil
}

// connecting tells whether there is no live connection.
func (s *subscriber) connecting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status.Phase == Connecting.String()
}
