package events

import (
	"context"
	"errors"
	"fmt"
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

// WithPeers has publishers that start within a time of Run's beginning go on
// where another router stands. They wait for its answer, and for no longer than
// that time.
func WithPeers(p Peers, within time.Duration) Option {
	return func(m *Manager) { m.peers, m.askFor = p, within }
}

// ask begins to ask other routers for those publishers of fresh that they may
// know and whose engines can prove it, and returns where the answers come: one
// at most for each, and then the end of the channel.
func (m *Manager) ask(fresh []Subject) map[kvindex.PublisherID]<-chan *Saved {
	if m.asking == nil || m.asking.Err() != nil {
		return nil
	}
	var wanted []Subject
	coming, answers := map[kvindex.PublisherID]<-chan *Saved{}, map[kvindex.PublisherID]chan *Saved{}
	for _, of := range fresh {
		if of.Publisher.Replay != "" && of.Publisher.Relay == "" {
			wanted = append(wanted, of)
			c := make(chan *Saved, 1)
			coming[of.Publisher.ID], answers[of.Publisher.ID] = c, c
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	m.mu.Lock()
	m.warm.Asked += len(wanted)
	m.warm.Asking += len(wanted)
	m.mu.Unlock()
	m.asks.Go(func() {
		m.peers.Ask(m.asking, wanted, func(of Subject, known Saved) {
			select {
			case answers[of.Publisher.ID] <- &known:
			default: // it has one
			}
		})
		for _, c := range answers {
			close(c)
		}
	})
	return coming
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
