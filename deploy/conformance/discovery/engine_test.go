package discovery_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"testing"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/engine/server"
	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/kvindex"
)

// fakeEngine is an engine in this process, at an address of its own.
type fakeEngine struct {
	*server.Server
	client *http.Client
	ctx    context.Context // ends when the engine is to end
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // valid once ended is closed
}

// startEngine starts an engine that listens at address, ip:port; port 0 lets
// the system choose. Its cache is small, so that blocks are evicted all the
// time.
func startEngine(address string, client *http.Client) (*fakeEngine, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	s, err := server.New(server.Config{
		Listen: address, Events: "tcp://" + host + ":0", Replay: "tcp://" + host + ":0",
		Models: []string{model}, TimeScale: 1e-5, Engine: engine.Config{Blocks: 32, BlockSize: 4, MaxSeqs: 4},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &fakeEngine{Server: s, client: client, ctx: ctx, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(e.ended)
		e.err = s.Run(ctx)
	}()
	select {
	case <-s.Ready():
		return e, nil
	case <-e.ended:
		cancel()
		return nil, e.err
	}
}

// stop ends the engine as a crash does, and waits.
func (e *fakeEngine) stop(t *testing.T) {
	e.cancel()
	<-e.ended
	if e.err != nil {
		t.Errorf("engine: %v", e.err)
	}
}

// ip returns where the engine listens.
func (e *fakeEngine) ip() string {
	host, _, _ := net.SplitHostPort(e.Addr())
	return host
}

func (e *fakeEngine) port() int {
	_, port, _ := net.SplitHostPort(e.Addr())
	n, _ := strconv.Atoi(port)
	return n
}

// complete sends one request. The failure of an engine that is ending is none.
func (e *fakeEngine) complete(ctx context.Context, prompt []kvindex.TokenID) error {
	err := complete(ctx, e.client, e.Addr(), prompt)
	if e.ctx.Err() != nil || ctx.Err() != nil {
		return nil
	}
	return err
}

func complete(ctx context.Context, client *http.Client, address string, prompt []kvindex.TokenID) error {
	body, err := json.Marshal(map[string]any{"model": model, "prompt": prompt, "max_tokens": 3, "ignore_eos": true})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	// A connection kept from a process that was at this address before is dead,
	// which may show only now: net/http then tries again with a new one, as with
	// every request that may be repeated. This key says so, and is not sent.
	req.Header["Idempotency-Key"] = nil
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("POST %s: status %d", req.URL, resp.StatusCode)
	}
	return nil
}

// pool returns what the engine holds.
func (e *fakeEngine) pool(ctx context.Context) (p stack.EnginePool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.Addr()+"/debug/pool", nil)
	if err != nil {
		return p, err
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	return p, json.NewDecoder(resp.Body).Decode(&p)
}

// prompt makes token ids of one of a few families, which share beginnings.
func prompt(random *rand.Rand) []kvindex.TokenID {
	family := random.Uint32N(6)
	var out []kvindex.TokenID
	for i := range 4 + random.Uint32N(40) {
		out = append(out, kvindex.TokenID(1+family*100+i))
	}
	for range random.IntN(6) {
		out = append(out, kvindex.TokenID(1000+random.Uint32N(1000)))
	}
	return out
}
