package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/engine/server"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/relay"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

func writeSeed(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "seed")
	if err := os.WriteFile(file, []byte("0000000000005eed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestRelay_SaysWhatItsConfigurationLacks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "w.yaml")
	text := "relay: {listen: \"\"}\npool: {static: {endpoints: [{name: e, address: \"127.0.0.1:8000\"}, {name: f, address: \"127.0.0.1:8001\"}]}}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	if code := dispatch(t.Context(), process{args: []string{"relay", "--config", file}, stdout: io.Discard, stderr: &stderr}); code != exitFault {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"pool.static.endpoints: 2", "index.seed_file: empty", "relay.listen: empty"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("no %q in:\n%s", want, stderr.String())
		}
	}
}

func TestConfig_RelaysNeedASeed(t *testing.T) {
	for text, want := range map[string]string{
		`{name: e, address: "127.0.0.1:8000", relay: "127.0.0.1:5560"}`: "index.seed_file: empty",
		`{name: e, address: "127.0.0.1:8000", relay: push}`:             "cachestate.listen: empty",
		`{name: e, address: "127.0.0.1:8000", relay: x}`:                "pool.static.endpoints[0].relay",
	} {
		_, err := parse("w.yaml", []byte("pool: {static: {endpoints: ["+text+"]}}\n"), nil, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", text, err, want)
		}
	}
}

func TestConfig_PeersNeedASeed(t *testing.T) {
	const rest = "pool: {static: {endpoints: [{name: e, address: \"127.0.0.1:8000\"}]}}\n"
	if _, err := parse("w.yaml", []byte("cachestate: {peers: [\"routers:9005\"]}\n"+rest), nil, nil); err == nil || !strings.Contains(err.Error(), "index.seed_file: empty, but cachestate.peers") {
		t.Errorf("without a seed: error %v", err)
	}
	cfg, err := parse("w.yaml", []byte("cachestate: {peers: [\"routers:9005\"]}\nindex: {seed_file: "+writeSeed(t)+"}\n"+rest), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ws := strings.Join(cfg.Warnings(), "\n"); !strings.Contains(ws, "cachestate.listen: empty") {
		t.Errorf("no warning of a router that tells nobody: %s", ws)
	}
}

func TestConfig_WarnsOfARelayForEverybody(t *testing.T) {
	cfg, err := parse("w.yaml", []byte("relay: {listen: \"0.0.0.0:5560\"}\npool: {static: {endpoints: [{name: e, address: \"127.0.0.1:8000\"}]}}\n"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ws := strings.Join(cfg.Warnings(), "\n"); !strings.Contains(ws, "relay.listen: ") || !strings.Contains(ws, "tokens_file") {
		t.Errorf("warnings:\n%s", ws)
	}
}

// The command itself: a fake engine, warmpath relay beside it, and a router
// that follows it; then it is stopped.
func TestRelay_Command(t *testing.T) {
	e, err := server.New(server.Config{
		Models: []string{"m"}, Events: "tcp://127.0.0.1:0", Replay: "tcp://127.0.0.1:0", TimeScale: 1e-5,
		Engine: engine.Config{Blocks: 64, BlockSize: 4, MaxSeqs: 4},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	started(t, e.Run)
	<-e.Ready()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	seed := writeSeed(t)
	file := filepath.Join(t.TempDir(), "relay.yaml")
	text := fmt.Sprintf("admin: {listen: \"127.0.0.1:0\"}\nindex: {seed_file: %s}\nrelay: {listen: %q, endpoint: \"10.0.0.7:8000\"}\npool: {static: {endpoints: [{name: e, address: %q, events: %q, replay: %q}]}}\n",
		seed, address, e.Addr(), e.EventsEndpoint(), e.ReplayEndpoint())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	started(t, func(ctx context.Context) error {
		var stderr bytes.Buffer
		if code := dispatch(ctx, process{args: []string{"relay", "--config", file}, stdout: io.Discard, stderr: &stderr}); code != exitOK {
			return fmt.Errorf("exit code %d:\n%s", code, stderr.String())
		}
		return nil
	})
	resp, err := http.Post("http://"+e.Addr()+"/v1/completions", "application/json", strings.NewReader(`{"model": "m", "prompt": [1,2,3,4,5,6,7,8,9], "max_tokens": 1}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()

	hasher := kvindex.NewHasher(0x5eed)
	log := slog.New(slog.DiscardHandler)
	src, err := relay.NewSource(relay.DefaultRouterConfig(), hasher, false, log, prometheus.NewRegistry(), rand.New(rand.NewPCG(1, 1)), relay.Network{})
	if err != nil {
		t.Fatal(err)
	}
	ix, err := kvindex.New(kvindex.Config{})
	if err != nil {
		t.Fatal(err)
	}
	p := pool.New(pool.DefaultConfig(), log, prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)))
	p.Set([]pool.Spec{{Name: "e", Address: "10.0.0.7:8000", Models: []string{"m"}, Relay: address}})
	m, err := events.New(events.DefaultConfig(), ix, hasher, events.ZMQ(events.DefaultConfig()), log, prometheus.NewRegistry(), rand.New(rand.NewPCG(1, 1)), events.WithRelays(src))
	if err != nil {
		t.Fatal(err)
	}
	started(t, func(ctx context.Context) error { return m.Run(ctx, p) })
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		st := m.Status()
		if len(st) == 1 && st[0].Trust == kvindex.TrustExact.String() && ix.Stats().Held == 2 {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("status %+v, %d blocks held", st, ix.Stats().Held)
		}
	}
}

// started runs f until the test ends.
func started(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
