//go:build !nozmq

package zmtp

import (
	"context"
	"strings"
	"sync"

	"github.com/go-zeromq/zmq4"
)

// pubQueue bounds the messages that wait for one slow subscriber; it is the
// high-water mark that vLLM gives its PUB socket by default.
const pubQueue = 100_000

// Pub is a PUB socket that listens. All methods are safe for concurrent use.
type Pub struct {
	l *listener

	mu    sync.Mutex
	peers map[*subscriber]struct{}
	// changed is closed and replaced whenever a subscription comes or goes.
	changed chan struct{}
}

// subscriber is one connection. Its fields are guarded by Pub.mu.
type subscriber struct {
	topics  map[string]int
	queue   [][][]byte
	waiting chan struct{} // one token: there is something in queue
	dropped uint64
}

// ListenPub binds endpoint; port 0 picks a free one. ctx bounds the binding,
// not the life of the socket.
func ListenPub(ctx context.Context, endpoint string, opts ...Option) (*Pub, error) {
	l, err := listen(ctx, endpoint, zmq4.Pub, newOptions(opts))
	if err != nil {
		return nil, err
	}
	p := &Pub{l: l, peers: map[*subscriber]struct{}{}, changed: make(chan struct{})}
	l.run(p.serve)
	return p, nil
}

// Endpoint returns the address that the socket listens on.
func (p *Pub) Endpoint() string { return p.l.endpoint() }

// Send queues a message, whose first frame is the topic, for every subscriber
// of that topic. It never blocks; a subscriber with a full queue loses the
// message. The frames must not be changed afterwards.
func (p *Pub) Send(frames ...[]byte) error {
	if len(frames) == 0 {
		frames = [][]byte{nil}
	}
	topic := string(frames[0])
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.peers {
		if !s.wants(topic) {
			continue
		}
		if len(s.queue) == pubQueue {
			s.dropped++
			continue
		}
		s.queue = append(s.queue, frames)
		select {
		case s.waiting <- struct{}{}:
		default:
		}
	}
	return nil
}

// Dropped returns how many messages the present subscribers have lost to full
// queues.
func (p *Pub) Dropped() (n uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.peers {
		n += s.dropped
	}
	return n
}

// Subscribers returns how many connected peers have a subscription.
func (p *Pub) Subscribers() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.subscribed()
}

func (p *Pub) subscribed() (n int) {
	for s := range p.peers {
		if len(s.topics) > 0 {
			n++
		}
	}
	return n
}

// WaitSubscribers returns when at least n connected peers have a subscription,
// or with ctx's error.
func (p *Pub) WaitSubscribers(ctx context.Context, n int) error {
	for {
		p.mu.Lock()
		have := p.subscribed()
		changed := p.changed
		p.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// Close drops the subscribers, with what waits for them, and frees the port.
func (p *Pub) Close() error { return p.l.close() }

func (p *Pub) serve(w *wire) {
	s := &subscriber{topics: map[string]int{}, waiting: make(chan struct{}, 1)}
	p.mu.Lock()
	p.peers[s] = struct{}{}
	p.mu.Unlock()

	gone := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { p.drain(w, s, gone) })
	p.follow(w, s)
	close(gone)
	_ = w.close()
	wg.Wait()

	p.mu.Lock()
	delete(p.peers, s)
	p.signal()
	p.mu.Unlock()
}

// drain writes what is queued for s.
func (p *Pub) drain(w *wire, s *subscriber, gone <-chan struct{}) {
	for {
		select {
		case <-gone:
			return
		case <-s.waiting:
		}
		p.mu.Lock()
		batch := s.queue
		s.queue = nil
		p.mu.Unlock()
		for i, frames := range batch {
			if w.send(frames, i == len(batch)-1) != nil {
				return
			}
		}
	}
}

// follow reads subscriptions until the peer is gone: a message whose first
// byte is 1 subscribes to the rest, 0 takes that back (RFC 29).
func (p *Pub) follow(w *wire, s *subscriber) {
	for {
		frames, err := w.recv()
		if err != nil {
			return
		}
		f := frames[0]
		if len(frames) != 1 || len(f) == 0 || f[0] > 1 {
			continue
		}
		topic := string(f[1:])
		p.mu.Lock()
		switch n := s.topics[topic]; {
		case f[0] == 1:
			s.topics[topic] = n + 1
		case n > 1:
			s.topics[topic] = n - 1
		default:
			delete(s.topics, topic)
		}
		p.signal()
		p.mu.Unlock()
	}
}

func (p *Pub) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (s *subscriber) wants(topic string) bool {
	for prefix := range s.topics {
		if strings.HasPrefix(topic, prefix) {
			return true
		}
	}
	return false
}
