//go:build !nozmq

package zmtp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/go-zeromq/zmq4"
)

// acceptPause keeps a listener that is out of file descriptors from spinning.
const acceptPause = 50 * time.Millisecond

// listener accepts connections for a socket and owns their goroutines.
type listener struct {
	l    net.Listener
	typ  zmq4.SocketType
	opts options
	// serve runs for each connection until that is gone.
	serve func(*wire)

	wg     sync.WaitGroup
	ctx    context.Context // ends with Close; handshakes and serve run under it
	cancel context.CancelFunc

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once closed
}

// listen binds at once, so that the address is known; run starts accepting.
func listen(ctx context.Context, endpoint string, typ zmq4.SocketType, o options) (*listener, error) {
	addr, err := hostPort(endpoint, true)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{KeepAliveConfig: keepAlive()}
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("zmtp: listen at %s: %w", endpoint, err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return &listener{l: l, typ: typ, opts: o, ctx: ctx, cancel: cancel, conns: map[net.Conn]struct{}{}}, nil
}

func (l *listener) run(serve func(*wire)) {
	l.serve = serve
	l.wg.Go(l.accept)
}

func (l *listener) accept() {
	for {
		c, err := l.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-l.ctx.Done():
				return
			case <-time.After(acceptPause):
				continue
			}
		}
		if !l.add(c) {
			_ = c.Close()
			return
		}
		l.wg.Go(func() {
			defer l.remove(c)
			// A peer that does not speak ZMTP is its own problem.
			if w, err := handshake(l.ctx, c, l.typ, true, l.opts); err == nil {
				l.serve(w)
			}
		})
	}
}

func (l *listener) add(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *listener) remove(c net.Conn) {
	_ = c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

func (l *listener) endpoint() string { return "tcp://" + l.l.Addr().String() }

// close releases the port, drops the connections and waits for their
// goroutines.
func (l *listener) close() error {
	l.cancel()
	err := ignoreClosed(l.l.Close())
	l.mu.Lock()
	for c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
	l.mu.Unlock()
	l.wg.Wait()
	return err
}
