//go:build !nozmq

package zmtp

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/go-zeromq/zmq4"
	"github.com/go-zeromq/zmq4/security/null"
)

const (
	// handshakeTimeout bounds the greeting and the READY exchange.
	handshakeTimeout = 5 * time.Second
	// sendTimeout bounds one blocked send: a peer that takes nothing for so
	// long is gone.
	sendTimeout = 30 * time.Second
	// maxHandshakeFrame bounds a READY command; libzmq's has about 50 bytes.
	maxHandshakeFrame = 8 << 10
	// allocStep is allocated at once at most for a frame whose bytes have not
	// arrived yet.
	allocStep = 1 << 20

	greetingSize = 64

	flagMore    = 0x1
	flagLong    = 0x2
	flagCommand = 0x4
)

// keepAlive finds a peer whose node vanished without a FIN within half a
// minute: the engines send no ZMTP heartbeat, and an idle engine sends nothing.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
}

// Sizes of buffers.
const (
	dataBuffer    = 16 << 10
	requestBuffer = 512
)

// wire is one ZMTP connection after its handshake. One goroutine may receive
// while others send.
type wire struct {
	net        net.Conn
	zmtp       *zmq4.Conn
	r          *bufio.Reader
	maxMessage int
	// identity is what the peer called itself, often empty.
	identity string

	// mu is held for a whole message: frames of two messages must not mix.
	mu sync.Mutex
	w  *bufio.Writer
}

// handshake makes a wire of a TCP connection, or closes it.
func handshake(ctx context.Context, c net.Conn, typ zmq4.SocketType, server bool, o options) (*wire, error) {
	deadline := time.Now().Add(handshakeTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	if err := c.SetDeadline(deadline); err != nil {
		stop()
		return nil, errors.Join(err, c.Close())
	}
	// Batches go from PUB to SUB and from ROUTER to DEALER; the other way go
	// subscriptions and requests of a few bytes.
	in, out := dataBuffer, requestBuffer
	if typ == zmq4.Pub || typ == zmq4.Router {
		in, out = out, in
	}
	g := &guard{Conn: c, r: bufio.NewReaderSize(c, in)}
	zc, err := open(g, typ, server)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, errors.Join(fmt.Errorf("zmtp: handshake with %s: %w", c.RemoteAddr(), err), ignoreClosed(c.Close()))
	}
	w := &wire{net: c, zmtp: zc, r: g.r, maxMessage: o.maxMessage, identity: zc.Peer.Meta["Identity"]}
	w.w = bufio.NewWriterSize(c, out)
	g.w = w.w
	return w, nil
}

// open runs the library's handshake. Metadata that lies about its lengths
// makes the library index out of range.
func open(c net.Conn, typ zmq4.SocketType, server bool) (zc *zmq4.Conn, err error) {
	defer func() {
		if p := recover(); p != nil {
			zc, err = nil, fmt.Errorf("malformed metadata: %v", p)
		}
	}()
	return zmq4.Open(c, null.Security(), typ, nil, server, nil)
}

// guard is the connection as the library sees it. While the handshake lasts it
// bounds the frames that may be announced; afterwards the library only writes,
// into the buffer.
type guard struct {
	net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
	seen int
}

func (g *guard) Read(p []byte) (int, error) {
	// The library reads the greeting, then a frame's header by itself, so that
	// a header is always at the start of what is read.
	if g.seen >= greetingSize {
		if g.seen > greetingSize {
			return g.count(g.r.Read(p))
		}
		if err := g.checkReady(); err != nil {
			return 0, err
		}
	} else if rest := greetingSize - g.seen; len(p) > rest {
		p = p[:rest]
	}
	return g.count(g.r.Read(p))
}

func (g *guard) count(n int, err error) (int, error) {
	g.seen += n
	return n, err
}

// checkReady looks at the header of the only frame that a NULL handshake has.
func (g *guard) checkReady() error {
	flags, err := g.r.Peek(1)
	if err != nil {
		return err
	}
	if flags[0]&flagMore != 0 {
		return errors.New("READY has more than one frame")
	}
	if flags[0]&flagLong == 0 {
		return nil
	}
	head, err := g.r.Peek(9)
	if err != nil {
		return err
	}
	if n := binary.BigEndian.Uint64(head[1:]); n > maxHandshakeFrame {
		return fmt.Errorf("READY of %d bytes: %w", n, ErrTooLarge)
	}
	return nil
}

func (g *guard) Write(p []byte) (int, error) {
	if g.w == nil {
		return g.Conn.Write(p)
	}
	return g.w.Write(p)
}

// recv returns the next message; its frames are the caller's. It answers
// pings by itself.
func (w *wire) recv() ([][]byte, error) {
	for {
		var (
			frames  [][]byte
			budget  = w.maxMessage
			command bool
		)
		for more := true; more; {
			flags, size, err := w.header()
			if err != nil {
				return nil, err
			}
			if size > uint64(budget) || len(frames) == maxFrames {
				_ = w.net.Close() // nothing after this can be understood
				return nil, fmt.Errorf("%w: frame %d announces %d bytes, %d frames and %d bytes are allowed", ErrTooLarge, len(frames), size, maxFrames, w.maxMessage)
			}
			frame, err := w.body(int(size))
			if err != nil {
				return nil, err
			}
			if frames == nil {
				frames = make([][]byte, 0, 4)
			}
			frames = append(frames, frame)
			budget -= int(size)
			more = flags&flagMore != 0
			command = command || flags&flagCommand != 0
		}
		if !command {
			return frames, nil
		}
		if err := w.command(frames[0]); err != nil {
			return nil, err
		}
	}
}

func (w *wire) header() (flags byte, size uint64, err error) {
	if flags, err = w.r.ReadByte(); err != nil {
		return 0, 0, err
	}
	if flags&flagLong == 0 {
		n, err := w.r.ReadByte()
		return flags, uint64(n), unexpected(err)
	}
	head, err := w.r.Peek(8)
	if err != nil {
		return 0, 0, unexpected(err)
	}
	size = binary.BigEndian.Uint64(head)
	_, err = w.r.Discard(8)
	return flags, size, err
}

// body reads a frame of n bytes, without trusting n before they arrive.
func (w *wire) body(n int) ([]byte, error) {
	buf := make([]byte, min(n, allocStep))
	for read := 0; ; {
		m, err := io.ReadFull(w.r, buf[read:])
		if err != nil {
			return nil, unexpected(err)
		}
		if read += m; read == n {
			return buf, nil
		}
		grown := make([]byte, min(n, 4*len(buf)))
		copy(grown, buf)
		buf = grown
	}
}

// command answers a PING with its context (ZMTP 3.1, RFC 37) and ignores every
// other command.
func (w *wire) command(body []byte) error {
	const ping = "\x04PING"
	if len(body) < len(ping)+2 || string(body[:len(ping)]) != ping {
		return nil
	}
	return w.write(func() error { return w.zmtp.SendCmd(zmq4.CmdPong, body[len(ping)+2:]) }, true)
}

// send writes a message. With flush false it may stay in the buffer until a
// later send.
func (w *wire) send(frames [][]byte, flush bool) error {
	return w.write(func() error { return w.zmtp.SendMsg(zmq4.NewMsgFrom(frames...)) }, flush)
}

func (w *wire) write(put func() error, flush bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.net.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	err := put()
	if err == nil && flush {
		err = w.w.Flush()
	}
	if err != nil {
		_ = w.net.Close() // half a message may be out
	}
	return err
}

func (w *wire) close() error { return ignoreClosed(w.net.Close()) }

// ignoreClosed makes closing twice harmless.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// unexpected makes the end of a stream inside a message distinct from its end
// between two.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
