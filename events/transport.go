package events

import (
	"context"
	"strings"

	"github.com/warmpath/warmpath/events/zmtp"
	"github.com/warmpath/warmpath/routing/pool"
)

// Transport connects to the two sockets of a publisher. ctx bounds the
// dialing, not the life of what is returned.
type Transport interface {
	// DialLive subscribes to everything at a PUB socket.
	DialLive(ctx context.Context, endpoint string) (Stream, error)
	// DialReplay connects to a ROUTER socket and sends it the frames of a
	// request.
	DialReplay(ctx context.Context, endpoint string, request [][]byte) (Stream, error)
}

// Stream is a connection that only receives. Recv blocks and belongs to one
// goroutine; it returns an error when the peer is gone or after Close, which
// any goroutine may call. The frames are the caller's.
type Stream interface {
	Recv() (frames [][]byte, err error)
	Close() error
}

// ZMQ returns the transport over real sockets.
func ZMQ(cfg Config) Transport { return zmq{cfg.MaxFrameBytes} }

type zmq struct{ maxFrame int }

func (z zmq) DialLive(ctx context.Context, endpoint string) (Stream, error) {
	if strings.HasPrefix(endpoint, pool.TopicScheme) {
		return nil, errNotListening
	}
	s, err := zmtp.DialSub(ctx, endpoint, "", zmtp.MaxMessage(z.maxFrame))
	if err != nil {
		return nil, err // not s: a nil *zmtp.Sub is no nil Stream
	}
	return s, nil
}

func (z zmq) DialReplay(ctx context.Context, endpoint string, request [][]byte) (Stream, error) {
	d, err := zmtp.DialDealer(ctx, endpoint, zmtp.MaxMessage(z.maxFrame))
	if err != nil {
		return nil, err
	}
	if err := d.Send(request...); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}
