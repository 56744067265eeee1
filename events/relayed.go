package events

import (
	"context"
	"sync"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// Relays feeds publishers from relays beside their engines.
type Relays interface {
	// Follow feeds f from its relay, again after every interruption, until ctx
	// ends or the relay has to be given up. Then the state is dropped, and the
	// error says why.
	Follow(ctx context.Context, f Feed) error
	// Await returns once Follow would find the relay, or ctx has ended.
	Await(ctx context.Context, f Feed)
}

// Feed is a publisher as a relay feeds it. All of it belongs to the goroutine
// that called [Relays.Follow].
type Feed struct {
	Subject
	Writer *kvindex.Writer
	// Fallback: the publisher can be fed from the engine's own stream.
	Fallback bool
	// Report says where the publisher stands.
	Report func(FeedStatus)
}

// FeedStatus is where a publisher stands that a relay feeds.
type FeedStatus struct {
	Phase Phase
	Trust kvindex.Trust
	// Sequence is that of the last batch of the engine that is comprised, if
	// Sequenced.
	Sequence  uint64
	Sequenced bool
	// Err is why there is no connection; nil if there is one.
	Err error
}

// Sources of a publisher's state, as [Status] has them.
const (
	SourceEngine = "engine"
	SourceRelay  = "relay"
)

// feed keeps a publisher fed by one source at a time until ctx ends: by its
// relay, if it has one, and by the engine's own stream while that relay cannot
// be had. What one source told is dropped before the other one tells anything,
// because nothing proves that both speak of the same process.
func (m *Manager) feed(ctx context.Context, s *subscriber, of Subject) {
	own := of.Publisher.Events != ""
	if of.Publisher.Relay == "" || m.relays == nil {
		if own {
			s.run(ctx)
		}
		return
	}
	f := Feed{Subject: of, Writer: s.writer, Fallback: own, Report: s.report}
	for ctx.Err() == nil {
		s.setSource(SourceRelay)
		err := m.relays.Follow(ctx, f)
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("the relay is given up for now", "relay", of.Publisher.Relay, "fallback", own, "err", err)
		s.m.switches.Inc()
		s.settled()
		s.startOver()
		s.setSource(SourceEngine)
		engine, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			m.relays.Await(engine, f)
			stop()
		})
		if own {
			s.run(engine)
		}
		<-engine.Done()
		wg.Wait()
		if ctx.Err() != nil {
			return
		}
		s.log.Info("the relay is back; the publisher's state is dropped and filled from it", "relay", of.Publisher.Relay)
		s.m.switches.Inc()
		s.startOver()
	}
}

// source tells who feeds the publisher.
func (s *subscriber) source() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status.Source
}

// setSource notes who feeds the publisher.
func (s *subscriber) setSource(name string) {
	s.mu.Lock()
	s.status.Source, s.status.Error = name, ""
	s.mu.Unlock()
}

// startOver forgets everything about the publisher.
func (s *subscriber) startOver() {
	s.applier.forget()
	s.seq = NewSequence(s.publisher.Replay != "")
	s.last, s.generation = nil, s.generation+1
	clear(s.roots)
	s.drop()
	s.mu.Lock()
	s.status.Sequence, s.status.Sequenced = 0, false
	s.mu.Unlock()
	s.publish()
}

// report is [Feed.Report].
func (s *subscriber) report(f FeedStatus) {
	now := time.Now()
	if f.Err != nil || f.Phase == Live || f.Phase == Stale {
		s.settled()
	}
	s.setTrust(f.Trust, f.Phase, now)
	if f.Sequenced {
		s.series.sequence.Set(float64(f.Sequence))
		s.series.lastEvent.Set(float64(now.Unix()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Sequenced {
		s.status.Sequence, s.status.Sequenced, s.status.LastEvent = f.Sequence, true, now
	}
	was := s.status.Error
	if s.status.Error = ""; f.Err != nil {
		if s.status.Error = f.Err.Error(); was == "" {
			s.log.Warn("no relay; trying again", "relay", s.publisher.Relay, "err", f.Err)
		}
	}
}
