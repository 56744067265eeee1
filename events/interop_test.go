//go:build !nozmq

package events

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// python is a publisher made of the libraries that the engines use.
type python struct {
	in   io.WriteCloser
	out  *bufio.Reader
	spec pool.Spec
}

func startPython(t *testing.T) *python {
	t.Helper()
	program := os.Getenv("WARMPATH_TEST_PYTHON")
	if program == "" {
		t.Skip("WARMPATH_TEST_PYTHON names no Python with pyzmq and msgspec; make test installs one")
	}
	cmd := exec.CommandContext(t.Context(), program, "testdata/interop/publisher.py")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // the end of its input ends it
		_ = cmd.Wait()
	})
	p := &python{in: in, out: bufio.NewReader(out)}
	var live, replay int
	if _, err := fmt.Fscanln(p.out, &live, &replay); err != nil {
		t.Fatalf("%s: no ports: %v", program, err)
	}
	p.spec = pool.Spec{
		Name: "e", Address: "127.0.0.1:1", Models: []string{"m"},
		Events: fmt.Sprintf("tcp://127.0.0.1:%d", live), Replay: fmt.Sprintf("tcp://127.0.0.1:%d", replay),
	}
	return p
}

// tell has a command carried out.
func (p *python) tell(t *testing.T, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		t.Fatal(err)
	}
	if line, err := p.out.ReadString('\n'); line != "ok\n" {
		t.Fatalf("answer %q, error %v", line, err)
	}
}

// An engine whose endpoint is no wildcard connects to the router. The replay
// socket brings what was published before its subscription was in force.
func TestInterop_EngineThatConnects(t *testing.T) {
	p := startPython(t)
	cfg := quick()
	cfg.Listen = listening(t)
	spec := p.spec
	spec.Events, spec.Topic = "", "topic"
	r := startRouter(t, cfg, spec)
	r.first = 1
	for len(r.manager.Status()) == 0 {
		runtime.Gosched()
	}
	p.tell(t, "publish map 3")
	p.tell(t, "connect %s", cfg.Listen)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range tick.C { // until libzmq has read the subscription
		p.tell(t, "publish map 5")
		if st := r.manager.Status(); st[0].Sequenced {
			break
		}
	}
	r.await(t, 5, kvindex.TrustExact)
	p.tell(t, "remove map 5")
	r.await(t, 4, kvindex.TrustExact)
}

// libzmq's handshake, subscriptions and framing, and msgspec's encodings.
func TestInterop_LibzmqAndMsgspec(t *testing.T) {
	for _, format := range []string{"array", "map", "bytes"} {
		t.Run(format, func(t *testing.T) {
			p := startPython(t)
			p.tell(t, "publish %s 6", format) // only in the replay
			r := startRouter(t, quick(), p.spec)
			r.first = 1
			r.await(t, 6, kvindex.TrustExact)
			p.tell(t, "remove %s 5", format)
			r.await(t, 4, kvindex.TrustExact)
			p.tell(t, "hide 2")
			p.tell(t, "clear %s", format)
			p.tell(t, "publish %s 3", format)
			p.tell(t, "publish %s 9", format)
			r.await(t, 9, kvindex.TrustExact)
			p.tell(t, "clear %s", format)
			r.await(t, 0, kvindex.TrustExact)
		})
	}
}
