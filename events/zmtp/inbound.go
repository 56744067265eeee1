//go:build !nozmq

package zmtp

import (
	"context"
	"net"
	"sync"

	"github.com/go-zeromq/zmq4"
)

// Inbound is a SUB socket that listens, for publishers that connect. Each of
// them is a [Sub] of its own.
type Inbound struct {
	l *listener
	c chan *Sub
}

// ListenSub binds endpoint and subscribes to everything at every publisher
// that connects; port 0 picks a free one. ctx bounds the binding, not the life
// of the socket.
func ListenSub(ctx context.Context, endpoint string, opts ...Option) (*Inbound, error) {
	l, err := listen(ctx, endpoint, zmq4.Sub, newOptions(opts))
	if err != nil {
		return nil, err
	}
	in := &Inbound{l: l, c: make(chan *Sub)}
	l.run(in.serve)
	return in, nil
}

// Endpoint returns the address that the socket listens on.
func (in *Inbound) Endpoint() string { return in.l.endpoint() }

// Accept returns the next publisher that has connected. It blocks until there
// is one; after Close it returns [net.ErrClosed].
func (in *Inbound) Accept() (*Sub, error) {
	select {
	case s := <-in.c:
		return s, nil
	case <-in.l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close drops the publishers, accepted or not, and frees the port.
func (in *Inbound) Close() error { return in.l.close() }

func (in *Inbound) serve(w *wire) {
	if w.send([][]byte{{1}}, true) != nil {
		return
	}
	gone := make(chan struct{})
	s := &Sub{w: w, closed: sync.OnceFunc(func() { close(gone) })}
	select {
	case in.c <- s:
	case <-in.l.ctx.Done():
		return
	}
	select {
	case <-gone:
	case <-in.l.ctx.Done():
	}
}
