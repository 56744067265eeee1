//go:build !nozmq

package zmtp

import (
	"context"
	"fmt"
	"net"

	"github.com/go-zeromq/zmq4"
)

// Sub is a SUB socket with one connection. Recv belongs to one goroutine;
// Close may be called by any, more than once.
type Sub struct {
	w *wire
	// closed, if not nil, is called by Close; any number of times.
	closed func()
}

// DialSub connects to a PUB socket and subscribes to the topics that start
// with topic; the empty topic means all. ctx bounds the dialing, not the life
// of the socket. Messages published before the subscription arrives are lost.
func DialSub(ctx context.Context, endpoint, topic string, opts ...Option) (*Sub, error) {
	w, err := dial(ctx, endpoint, zmq4.Sub, newOptions(opts))
	if err != nil {
		return nil, err
	}
	if err := w.send([][]byte{append([]byte{1}, topic...)}, true); err != nil {
		_ = w.close()
		return nil, fmt.Errorf("zmtp: subscribe at %s: %w", endpoint, err)
	}
	return &Sub{w: w}, nil
}

// Recv returns the next message, whose frames are the caller's. It blocks
// until there is one, the peer is gone or Close is called; after an error the
// socket is of no more use.
func (s *Sub) Recv() ([][]byte, error) { return s.w.recv() }

// Close ends the connection.
func (s *Sub) Close() error {
	if s.closed != nil {
		defer s.closed()
	}
	return s.w.close()
}

// Dealer is a DEALER socket with one connection. Recv belongs to one
// goroutine; Send and Close may be called by any.
type Dealer struct{ w *wire }

// DialDealer connects to a ROUTER socket. ctx bounds the dialing, not the life
// of the socket.
func DialDealer(ctx context.Context, endpoint string, opts ...Option) (*Dealer, error) {
	w, err := dial(ctx, endpoint, zmq4.Dealer, newOptions(opts))
	if err != nil {
		return nil, err
	}
	return &Dealer{w}, nil
}

// Send sends one message of the given frames. A peer that reads like a REP
// socket wants an empty first frame.
func (d *Dealer) Send(frames ...[]byte) error { return d.w.send(frames, true) }

// Recv is as [Sub.Recv].
func (d *Dealer) Recv() ([][]byte, error) { return d.w.recv() }

// Close ends the connection.
func (d *Dealer) Close() error { return d.w.close() }

func dial(ctx context.Context, endpoint string, typ zmq4.SocketType, o options) (*wire, error) {
	addr, err := hostPort(endpoint, false)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: handshakeTimeout, KeepAliveConfig: keepAlive()}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx) // net only says that it was cancelled
		}
		return nil, fmt.Errorf("zmtp: dial %s: %w", endpoint, err)
	}
	return handshake(ctx, c, typ, false, o)
}
