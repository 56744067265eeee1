package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"sync"

	"github.com/warmpath/warmpath/events"
)

// recorded is the engine of a capture: a transport whose live messages are
// played one by one, and whose replay buffer has what was replayed in the
// recording and what was played so far.
type recorded struct {
	live chan events.Frames

	mu     sync.Mutex
	buffer []events.Frames // replay messages, ascending, without end marker
	marker bool            // the recording has an end marker
	replay bool            // the recording has replay messages at all
}

func newRecorded() *recorded { return &recorded{live: make(chan events.Frames)} }

// replayed adds a message of the recording's replay.
func (s *recorded) replayed(frames events.Frames) {
	s.replay = true
	if seq, _, ok := events.ReplayBatch(frames); ok && seq == events.EndMarker {
		s.marker = true
		return
	}
	s.remember(frames)
}

// answers tells whether the recorded engine had a replay endpoint.
func (s *recorded) answers() bool { return s.replay }

// history returns the replay messages at the start.
func (s *recorded) history() []events.Frames {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buffer
}

// remember puts a replay message into the buffer. A sequence that falls is
// another process with an empty buffer, one that was there changes nothing.
func (s *recorded) remember(frames events.Frames) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seq, payload, ok := events.ReplayBatch(frames)
	if !ok {
		return
	}
	at, found := slices.BinarySearchFunc(s.buffer, seq, func(f events.Frames, seq uint64) int {
		old, _, _ := events.ReplayBatch(f)
		return cmp.Compare(old, seq)
	})
	if found {
		if _, old, _ := events.ReplayBatch(s.buffer[at]); bytes.Equal(old, payload) {
			return
		}
	}
	if at < len(s.buffer) {
		s.buffer = nil
	}
	s.buffer = append(s.buffer[:len(s.buffer):len(s.buffer)], frames)
}

// play sends one live message and returns when the subscriber has taken it.
func (s *recorded) play(ctx context.Context, frames events.Frames) error {
	if seq, payload, ok := events.LiveBatch(frames); ok {
		s.remember(events.Frames{nil, frames[0], binary.BigEndian.AppendUint64(nil, seq), payload})
	}
	select {
	case s.live <- frames:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// DialLive implements [events.Transport].
func (s *recorded) DialLive(context.Context, string) (events.Stream, error) {
	return &played{from: s.live, closed: make(chan struct{})}, nil
}

// DialReplay implements [events.Transport].
func (s *recorded) DialReplay(_ context.Context, _ string, request [][]byte) (events.Stream, error) {
	from := binary.BigEndian.Uint64(request[1])
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := make(chan events.Frames, len(s.buffer)+1)
	for _, f := range s.buffer {
		if seq, _, _ := events.ReplayBatch(f); seq >= from {
			answer <- f
		}
	}
	if s.marker {
		answer <- events.Frames{nil, nil, binary.BigEndian.AppendUint64(nil, events.EndMarker), nil}
	}
	return &played{from: answer, closed: make(chan struct{})}, nil
}

// played is a stream of recorded messages.
type played struct {
	from   <-chan events.Frames
	closed chan struct{}
	once   sync.Once
}

// Recv implements [events.Stream].
func (p *played) Recv() ([][]byte, error) {
	select {
	case f := <-p.from:
		return f, nil
	case <-p.closed:
		return nil, io.EOF
	}
}

// Close implements [events.Stream].
func (p *played) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}
