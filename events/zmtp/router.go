//go:build !nozmq

package zmtp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"

	"github.com/go-zeromq/zmq4"
)

// Router is a ROUTER socket that listens. Recv belongs to one goroutine; Send
// and Close may be called by any.
type Router struct {
	l  *listener
	in chan [][]byte

	mu    sync.Mutex
	peers map[string]*wire
	next  uint32
}

// ListenRouter binds endpoint; port 0 picks a free one. ctx bounds the
// binding, not the life of the socket.
func ListenRouter(ctx context.Context, endpoint string, opts ...Option) (*Router, error) {
	l, err := listen(ctx, endpoint, zmq4.Router, newOptions(opts))
	if err != nil {
		return nil, err
	}
	r := &Router{l: l, in: make(chan [][]byte, 16), peers: map[string]*wire{}}
	l.run(r.serve)
	return r, nil
}

// Endpoint returns the address that the socket listens on.
func (r *Router) Endpoint() string { return r.l.endpoint() }

// Recv returns the next message of any peer with the peer's identity before
// its frames. It blocks until there is one; after Close it returns
// [net.ErrClosed].
func (r *Router) Recv() ([][]byte, error) {
	select {
	case frames := <-r.in:
		return frames, nil
	case <-r.l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Send sends the frames after the first to the peer whose identity the first
// one is. It blocks while the peer is slow, and returns [ErrNoPeer] if there is
// no such peer.
func (r *Router) Send(frames ...[]byte) error {
	if len(frames) < 2 {
		return fmt.Errorf("zmtp: %d frames are too few; send the identity and at least one more", len(frames))
	}
	r.mu.Lock()
	w := r.peers[string(frames[0])]
	r.mu.Unlock()
	if w == nil {
		return ErrNoPeer
	}
	return w.send(frames[1:], true)
}

// Close drops the peers and frees the port.
func (r *Router) Close() error { return r.l.close() }

func (r *Router) serve(w *wire) {
	id, ok := r.admit(w)
	if !ok {
		return
	}
	defer func() {
		r.mu.Lock()
		delete(r.peers, id)
		r.mu.Unlock()
	}()
	for {
		frames, err := w.recv()
		if err != nil {
			return
		}
		select {
		case r.in <- append([][]byte{[]byte(id)}, frames...):
		case <-r.l.ctx.Done():
			return
		}
	}
}

// admit gives a nameless peer an identity that starts with a zero byte, as RFC
// 28 reserves them, and refuses a name that is taken.
func (r *Router) admit(w *wire) (id string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id = w.identity
	if id == "" {
		r.next++
		id = string(binary.BigEndian.AppendUint32([]byte{0}, r.next))
	}
	if r.peers[id] != nil {
		return "", false
	}
	r.peers[id] = w
	return id, true
}
