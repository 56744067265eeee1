package zmtp

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

// ErrNotBuilt is returned by every function of a binary built with -tags
// nozmq.
var ErrNotBuilt = errors.New("zmtp: this binary was built without ZMQ (-tags nozmq); build it without that tag to receive KV events")

// ErrTooLarge is returned by Recv when the peer announced a message over the
// limit. The connection is closed then.
var ErrTooLarge = errors.New("zmtp: message is larger than the limit")

// ErrNoPeer is returned by [Router.Send] when no connected peer has the
// identity.
var ErrNoPeer = errors.New("zmtp: no peer has this identity")

// DefaultMaxMessage is the limit in bytes for one message, all frames
// together, where no [MaxMessage] is given. The largest real batch, one prompt
// of a million tokens stored and as many blocks evicted, takes about 6 MiB.
const DefaultMaxMessage = 16 << 20

// maxFrames bounds the frames of one message: KV events have three, replay
// answers four.
const maxFrames = 64

// Option changes a socket's default.
type Option func(*options)

type options struct{ maxMessage int }

// MaxMessage limits the bytes of one received message, all frames together.
// Values below 1 mean the default.
func MaxMessage(n int) Option { return func(o *options) { o.maxMessage = n } }

func newOptions(opts []Option) options {
	o := options{}
	for _, f := range opts {
		f(&o)
	}
	if o.maxMessage < 1 {
		o.maxMessage = DefaultMaxMessage
	}
	return o
}

// hostPort returns the TCP address of a ZMQ endpoint. A listening endpoint may
// name the wildcard host "*".
func hostPort(endpoint string, listen bool) (string, error) {
	rest, ok := strings.CutPrefix(endpoint, "tcp://")
	if !ok {
		return "", fmt.Errorf("zmtp: endpoint %q is not tcp; use tcp://HOST:PORT", endpoint)
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return "", fmt.Errorf("zmtp: endpoint %q: %w; use tcp://HOST:PORT", endpoint, err)
	}
	if host == "*" && listen {
		host = ""
	}
	if (host == "" || host == "*") && !listen || port == "" {
		return "", fmt.Errorf("zmtp: endpoint %q lacks a host or a port; use tcp://HOST:PORT", endpoint)
	}
	return net.JoinHostPort(host, port), nil
}
