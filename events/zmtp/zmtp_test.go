//go:build !nozmq

package zmtp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within is generous: it only ends tests that would hang.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func closed(t *testing.T, c io.Closer) {
	t.Helper()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

func newPub(t *testing.T) *Pub {
	t.Helper()
	p, err := ListenPub(within(t), "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed(t, p)
	return p
}

func newSub(t *testing.T, endpoint, topic string, opts ...Option) *Sub {
	t.Helper()
	s, err := DialSub(within(t), endpoint, topic, opts...)
	if err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	return s
}

func TestPubSub_DeliversInOrderByTopic(t *testing.T) {
	p := newPub(t)
	all, some := newSub(t, p.Endpoint(), ""), newSub(t, p.Endpoint(), "kv@b")
	if err := p.WaitSubscribers(within(t), 2); err != nil {
		t.Fatal(err)
	}
	const n = 500
	long := bytes.Repeat([]byte{7}, 3*allocStep) // longer than a frame's first allocation
	for i := range n {
		seq := binary.BigEndian.AppendUint64(nil, uint64(i))
		payload := []byte("x")
		if i == n/2 {
			payload = long
		}
		if err := p.Send([]byte([...]string{"kv@a", "kv@bc"}[i%2]), seq, payload); err != nil {
			t.Fatal(err)
		}
	}
	read := func(s *Sub, first, step int) {
		t.Helper()
		for i := first; i < n; i += step {
			f, err := s.Recv()
			if err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			want := []byte("x")
			if i == n/2 {
				want = long
			}
			if len(f) != 3 || binary.BigEndian.Uint64(f[1]) != uint64(i) || !bytes.Equal(f[2], want) {
				t.Fatalf("message %d: got %d frames, seq %x, %d payload bytes", i, len(f), f[1], len(f[2]))
			}
		}
	}
	read(all, 0, 1)
	read(some, 1, 2)
	if d := p.Dropped(); d != 0 {
		t.Errorf("dropped %d messages of subscribers with room", d)
	}
}

func TestPub_UnsubscribedPeerGetsNothing(t *testing.T) {
	p := newPub(t)
	s := newSub(t, p.Endpoint(), "a")
	if err := p.WaitSubscribers(within(t), 1); err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{"b", "", "a1"} {
		if err := p.Send([]byte(topic), []byte("payload")); err != nil {
			t.Fatal(err)
		}
	}
	f, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]byte{[]byte("a1"), []byte("payload")}, f); diff != "" {
		t.Errorf("first message (-want +got):\n%s", diff)
	}
}

func TestRouterDealer_KeepsFramesAndIdentity(t *testing.T) {
	r, err := ListenRouter(within(t), "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed(t, r)
	var dealers []*Dealer
	for range 2 {
		d, err := DialDealer(within(t), r.Endpoint())
		if err != nil {
			t.Fatal(err)
		}
		closed(t, d)
		dealers = append(dealers, d)
	}
	ids := map[string]bool{}
	for i, d := range dealers {
		if err := d.Send(nil, []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		req, err := r.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([][]byte{{}, {byte(i)}}, req[1:]); diff != "" {
			t.Fatalf("request of dealer %d (-want +got):\n%s", i, diff)
		}
		ids[string(req[0])] = true
		for j := range 3 {
			if err := r.Send(req[0], nil, []byte("topic"), []byte{byte(i), byte(j)}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(ids) != 2 {
		t.Errorf("%d identities for 2 dealers", len(ids))
	}
	for i, d := range dealers {
		for j := range 3 {
			got, err := d.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([][]byte{{}, []byte("topic"), {byte(i), byte(j)}, {}}, got); diff != "" {
				t.Errorf("answer %d of dealer %d (-want +got):\n%s", j, i, diff)
			}
		}
	}
	if err := r.Send([]byte("nobody"), nil); !errors.Is(err, ErrNoPeer) {
		t.Errorf("send to an unknown identity: error %v, want ErrNoPeer", err)
	}
}

func TestRecv_EndsWhenThePeerCloses(t *testing.T) {
	p := newPub(t)
	s := newSub(t, p.Endpoint(), "")
	if err := p.WaitSubscribers(within(t), 1); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := s.Recv(); done <- err }()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, io.EOF) && !isReset(err) {
		t.Errorf("error %v, want the end of the stream", err)
	}
	if _, err := DialSub(within(t), p.Endpoint(), ""); err == nil {
		t.Error("the port of a closed socket still accepts")
	}
}

func isReset(err error) bool { return err != nil && strings.Contains(err.Error(), "reset") }

func TestClose_EndsBlockedRecv(t *testing.T) {
	p := newPub(t)
	s := newSub(t, p.Endpoint(), "")
	r, err := ListenRouter(within(t), "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { _, err := s.Recv(); done <- err }()
	go func() { _, err := r.Recv(); done <- err }()
	if err := errors.Join(s.Close(), r.Close(), s.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v, want net.ErrClosed", err)
		}
	}
}

// A message over the limit must be refused from its header: the peer that
// announces it never has to send it.
func TestRecv_RefusesWhatExceedsTheLimit(t *testing.T) {
	header := func(flags byte, n uint64) []byte {
		return binary.BigEndian.AppendUint64([]byte{flags | flagLong}, n)
	}
	for _, tt := range []struct {
		name string
		wire []byte
	}{
		{"one frame", header(0, 1001)},
		{"length over int64", header(0, 1<<63+5)},
		{"frames together", append(append(header(flagMore, 600), make([]byte, 600)...), header(0, 401)...)},
		{"too many frames", bytes.Repeat([]byte{flagMore, 0}, maxFrames+1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			endpoint := rawPub(t, func(c net.Conn) {
				_, _ = c.Write(tt.wire)
				_, _ = io.Copy(io.Discard, c)
			})
			s := newSub(t, endpoint, "", MaxMessage(1000))
			if _, err := s.Recv(); !errors.Is(err, ErrTooLarge) {
				t.Errorf("error %v, want ErrTooLarge", err)
			}
		})
	}
}

func TestRecv_AnswersPingAndSkipsCommands(t *testing.T) {
	pong := make(chan []byte, 1)
	endpoint := rawPub(t, func(c net.Conn) {
		_, _ = c.Write([]byte("\x04\x07\x04PINGxx" + "\x04\x04\x03FOO" + "\x04\x0a\x04PING\x00\x01ctx"))
		_, _ = c.Write([]byte{0, 2, 'h', 'i'})
		buf := make([]byte, len("\x00\x01\x01")+len("\x04\x05\x04PONG")+len("\x04\x08\x04PONGctx"))
		_, _ = io.ReadFull(c, buf)
		pong <- buf
		_, _ = io.Copy(io.Discard, c)
	})
	s := newSub(t, endpoint, "")
	f, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]byte{[]byte("hi")}, f); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	// A subscription to everything is the message 01.
	if diff := cmp.Diff("\x00\x01\x01"+"\x04\x05\x04PONG"+"\x04\x08\x04PONGctx", string(<-pong)); diff != "" {
		t.Errorf("subscription and pongs (-want +got):\n%s", diff)
	}
}

func TestRecv_TruncatedMessageIsNotAnEnd(t *testing.T) {
	endpoint := rawPub(t, func(c net.Conn) { _, _ = c.Write([]byte{0, 9, 'h', 'i'}) })
	s := newSub(t, endpoint, "")
	if f, err := s.Recv(); !errors.Is(err, io.ErrUnexpectedEOF) && !isReset(err) {
		t.Errorf("got %q, error %v, want io.ErrUnexpectedEOF", f, err)
	}
}

func TestDial_RefusesBadHandshakes(t *testing.T) {
	greeting := validGreeting()
	for _, tt := range []struct {
		name string
		wire []byte
	}{
		{"not ZMTP", bytes.Repeat([]byte("HTTP/1.1 400 Bad Request\r\n"), 4)},
		{"metadata shorter than it says", append(greeting[:], "\x04\x0b\x05READY\x04abcd"...)},
		{"key longer than the command", append(greeting[:], "\x04\x0b\x05READY\xffabcd"...)},
		{"huge READY", append(greeting[:], 6, 0, 0, 1, 0, 0, 0, 0, 0)},
		{"READY of many frames", append(greeting[:], 5, 1, 0)},
		{"unknown socket type", append(greeting[:], "\x04\x1b\x05READY\x0bSocket-Type\x00\x00\x00\x05WHATS"...)},
		{"wrong socket type", append(greeting[:], "\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"...)},
		{"closed at once", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			endpoint := rawServer(t, func(c net.Conn) { _, _ = c.Write(tt.wire) })
			s, err := DialSub(within(t), endpoint, "")
			if err == nil {
				_ = s.Close()
				t.Fatal("no error")
			}
		})
	}
}

func TestDial_StopsWithItsContext(t *testing.T) {
	why := errors.New("no longer wanted")
	for _, connected := range []bool{false, true} {
		ctx, cancel := context.WithCancelCause(t.Context())
		hold := make(chan struct{})
		endpoint := rawServer(t, func(net.Conn) {
			cancel(why)
			<-hold
		})
		if !connected {
			cancel(why)
		}
		if _, err := DialDealer(ctx, endpoint); !errors.Is(err, why) {
			t.Errorf("connected %t: error %v, want the context's cause", connected, err)
		}
		close(hold)
		cancel(nil)
	}
}

func TestEndpoint_FaultsAreNamed(t *testing.T) {
	for _, e := range []string{"", "ipc:///tmp/x", "tcp://", "tcp://host", "tcp://:5557", "tcp://*:5557", "127.0.0.1:5557"} {
		if _, err := DialSub(t.Context(), e, ""); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", e)) {
			t.Errorf("dial %q: error %v does not name the endpoint", e, err)
		}
	}
	if got, err := hostPort("tcp://*:5557", true); err != nil || got != ":5557" {
		t.Errorf("listen at tcp://*:5557: %q, %v", got, err)
	}
}

func TestListen_PeerWithoutZMTPDoesNoHarm(t *testing.T) {
	p := newPub(t)
	c, err := net.Dial("tcp", strings.TrimPrefix(p.Endpoint(), "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 8)); err != nil {
		t.Fatal(err)
	}
	s := newSub(t, p.Endpoint(), "")
	if err := p.WaitSubscribers(within(t), 1); err != nil {
		t.Fatal(err)
	}
	if err := p.Send([]byte("t"), []byte("p")); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Recv(); err != nil || len(f) != 2 {
		t.Errorf("got %q, %v", f, err)
	}
}

func validGreeting() (g [greetingSize]byte) {
	g[0], g[9], g[10] = 0xff, 0x7f, 3
	copy(g[12:], "NULL")
	return g
}

// rawPub is a PUB socket up to the end of the handshake, and then whatever f
// does.
func rawPub(t *testing.T, f func(net.Conn)) (endpoint string) {
	return rawServer(t, func(c net.Conn) {
		g := validGreeting()
		_, _ = c.Write(append(g[:], "\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB"...))
		head := make([]byte, greetingSize+2)
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, c, int64(head[greetingSize+1])); err != nil {
			return
		}
		f(c)
	})
}

// rawServer runs f on the first connection that it accepts.
func rawServer(t *testing.T, f func(net.Conn)) (endpoint string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		f(c)
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return "tcp://" + l.Addr().String()
}
