//go:build nozmq

package zmtp

import "context"

// Sub is a SUB socket; this build has none.
type Sub struct{}

// DialSub returns [ErrNotBuilt].
func DialSub(context.Context, string, string, ...Option) (*Sub, error) { return nil, ErrNotBuilt }

// Recv returns [ErrNotBuilt].
func (*Sub) Recv() ([][]byte, error) { return nil, ErrNotBuilt }

// Close does nothing.
func (*Sub) Close() error { return nil }

// Inbound is a listening SUB socket; this build has none.
type Inbound struct{}

// ListenSub returns [ErrNotBuilt].
func ListenSub(context.Context, string, ...Option) (*Inbound, error) { return nil, ErrNotBuilt }

// Endpoint returns "".
func (*Inbound) Endpoint() string { return "" }

// Accept returns [ErrNotBuilt].
func (*Inbound) Accept() (*Sub, error) { return nil, ErrNotBuilt }

// Close does nothing.
func (*Inbound) Close() error { return nil }

// Dealer is a DEALER socket; this build has none.
type Dealer struct{}

// DialDealer returns [ErrNotBuilt].
func DialDealer(context.Context, string, ...Option) (*Dealer, error) { return nil, ErrNotBuilt }

// Send returns [ErrNotBuilt].
func (*Dealer) Send(...[]byte) error { return ErrNotBuilt }

// Recv returns [ErrNotBuilt].
func (*Dealer) Recv() ([][]byte, error) { return nil, ErrNotBuilt }

// Close does nothing.
func (*Dealer) Close() error { return nil }

// Pub is a PUB socket; this build has none.
type Pub struct{}

// ListenPub returns [ErrNotBuilt].
func ListenPub(context.Context, string, ...Option) (*Pub, error) { return nil, ErrNotBuilt }

// Endpoint returns "".
func (*Pub) Endpoint() string { return "" }

// Send returns [ErrNotBuilt].
func (*Pub) Send(...[]byte) error { return ErrNotBuilt }

// Dropped returns 0.
func (*Pub) Dropped() uint64 { return 0 }

// Subscribers returns 0.
func (*Pub) Subscribers() int { return 0 }

// WaitSubscribers returns [ErrNotBuilt].
func (*Pub) WaitSubscribers(context.Context, int) error { return ErrNotBuilt }

// Close does nothing.
func (*Pub) Close() error { return nil }

// Router is a ROUTER socket; this build has none.
type Router struct{}

// ListenRouter returns [ErrNotBuilt].
func ListenRouter(context.Context, string, ...Option) (*Router, error) { return nil, ErrNotBuilt }

// Endpoint returns "".
func (*Router) Endpoint() string { return "" }

// Recv returns [ErrNotBuilt].
func (*Router) Recv() ([][]byte, error) { return nil, ErrNotBuilt }

// Send returns [ErrNotBuilt].
func (*Router) Send(...[]byte) error { return ErrNotBuilt }

// Close does nothing.
func (*Router) Close() error { return nil }
