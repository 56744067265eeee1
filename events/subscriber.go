package events

import (
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
	tap       Tap // nil: nobody is told

	seq     *Sequence
	applier applier
	last    []byte // payload of the last batch applied
	// resuming is what was restored, until it is proven to be of the same process
	// or dropped; warmed is told which.
	resuming *Saved
	warmed   func(same bool)
	// heardAt is when the engine said anything last; zero: never.
	heardAt time.Time
	// questions is where others ask for what is known, while there is a connection.
	questions chan question
	// roots are those of the chains seen in this generation.
	roots map[kvindex.BlockHash]struct{}
	trust kvindex.Trust
	// generation counts how often the state was dropped.
	generation uint64

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
		case q := <-s.questions:
			s.answer(q)
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
		seq, payload, ok := LiveBatch(frames)
		if !ok || seq == EndMarker {
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
