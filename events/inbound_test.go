//go:build !nozmq

package events

import (
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// dialOut is an engine that connects: a PUB socket behind a connection that is
// made from its side.
type dialOut struct {
	t *testing.T
	c net.Conn
}

// connectOut makes the connection, up to the subscription. The frames are
// written by hand: our own PUB socket only listens.
func connectOut(t *testing.T, endpoint string) *dialOut {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(endpoint, "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	greeting := make([]byte, 64)
	greeting[0], greeting[9], greeting[10] = 0xff, 0x7f, 3
	copy(greeting[12:], "NULL")
	ready := "\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB"
	if _, err := c.Write(append(greeting, ready...)); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 64+2)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	// The rest of its READY, and the subscription to everything.
	if _, err := io.ReadFull(c, make([]byte, int(head[65])+3)); err != nil {
		t.Fatal(err)
	}
	return &dialOut{t, c}
}

func (d *dialOut) publish(topic string, seq uint64, events ...any) {
	d.t.Helper()
	var out []byte
	frames := [][]byte{[]byte(topic), binary.BigEndian.AppendUint64(nil, seq), encode(d.t, a{1.5, events, 0})}
	for i, f := range frames {
		flags := byte(3) // long, more
		if i == len(frames)-1 {
			flags = 2
		}
		out = binary.BigEndian.AppendUint64(append(out, flags), uint64(len(f)))
		out = append(out, f...)
	}
	if _, err := d.c.Write(out); err != nil {
		d.t.Error(err)
	}
}

// listening returns a free endpoint.
func listening(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "tcp://" + l.Addr().String()
}

func TestInbound_EnginesThatConnectAreToldApartByTopic(t *testing.T) {
	cfg := quick()
	cfg.Listen = listening(t)
	r := startRouter(t, cfg, pool.Spec{Name: "e", Address: "127.0.0.1:1", Models: []string{"m"}, Topic: "kv@e@m"})
	for len(r.manager.Status()) == 0 { // it listens before it follows anybody
		runtime.Gosched()
	}
	other, e := connectOut(t, cfg.Listen), connectOut(t, cfg.Listen)
	other.publish("kv@other@m", 0, block(0), block(1), block(2))
	e.publish("kv@e@m", 0, block(0))
	r.await(t, 1, kvindex.TrustExact) // its first batch told the topic and counts
	e.publish("kv@e@m", 1, block(1))
	r.await(t, 2, kvindex.TrustExact)

	// The engine connects again before the old connection is known to be dead.
	again := connectOut(t, cfg.Listen)
	again.publish("kv@e@m", 0, block(0))
	r.await(t, 1, kvindex.TrustExact)
	_ = again.c.Close()
	r.await(t, 0, kvindex.TrustIncomplete)
}

func TestInbound_NeedsListen(t *testing.T) {
	_, err := ZMQ(quick()).DialLive(t.Context(), pool.TopicScheme+"x")
	if err == nil || !strings.Contains(err.Error(), "events.listen is empty") {
		t.Errorf("error %v", err)
	}
	cfg := quick()
	cfg.Listen = "ipc://x"
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "listen:") {
		t.Errorf("error %v", err)
	}
}
