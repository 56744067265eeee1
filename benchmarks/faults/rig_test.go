package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/engine/server"
	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// fleetSeed is any: the truth is hashed with it as well.
const fleetSeed = 0x5eed

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eventConfig lets nothing wait longer than a test should.
func eventConfig() events.Config {
	cfg := events.DefaultConfig()
	cfg.BackoffMin, cfg.BackoffMax = 2*time.Millisecond, 20*time.Millisecond
	cfg.Confirm, cfg.Probe, cfg.Quiet = 10*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	cfg.ReplayTimeout = 2 * time.Second
	return cfg
}

// publisher is one fake engine in this process.
type publisher struct {
	*server.Server
	t      *testing.T
	name   string
	replay bool
	// relay is where its relay is, empty if it has none; mute: routers do not
	// know of its own stream.
	relay  string
	mute   bool
	client *http.Client
}

// startPublisher starts an engine with a small cache, so that blocks are
// evicted all the time, which ends with the test. A replay endpoint "none"
// means none.
func startPublisher(t *testing.T, cfg server.Config) *publisher {
	t.Helper()
	if cfg.Events == "" {
		cfg.Events = "tcp://127.0.0.1:0"
	}
	replay := cfg.Replay != "none"
	switch cfg.Replay {
	case "":
		cfg.Replay = "tcp://127.0.0.1:0"
	case "none":
		cfg.Replay = ""
	}
	cfg.Models, cfg.LoRAs = []string{"m"}, []string{"ad"}
	cfg.TimeScale = 1e-5
	cfg.Engine = engine.Config{Blocks: 48, BlockSize: 4, MaxSeqs: 4}
	s, err := server.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	e := &publisher{Server: s, t: t, name: "e", replay: replay, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}}
	t.Cleanup(func() {
		stop()
		e.client.CloseIdleConnections()
		if err := <-ended; err != nil {
			t.Errorf("engine: %v", err)
		}
	})
	select {
	case <-s.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return e
}

// load sends n requests, four at a time: prefixes that are shared, adapters,
// salts and decoding.
func (e *publisher) load(random *rand.Rand, n int) {
	type request struct {
		Model  string `json:"model"`
		Prompt []int  `json:"prompt"`
		Salt   string `json:"cache_salt,omitempty"`
		Max    int    `json:"max_tokens"`
		EOS    bool   `json:"ignore_eos"`
	}
	bodies := make(chan string, n)
	for range n {
		q := request{Model: "m", Max: 1 + random.IntN(9), EOS: true}
		switch random.IntN(8) {
		case 0:
			q.Model = "ad"
		case 1:
			q.Salt = "s"
		}
		family := random.IntN(6)
		for i := range 4 + random.IntN(40) {
			q.Prompt = append(q.Prompt, 1+family*100+i)
		}
		for range random.IntN(6) {
			q.Prompt = append(q.Prompt, 1000+random.IntN(1000))
		}
		b, err := json.Marshal(q)
		if err != nil {
			e.t.Error(err)
			return
		}
		bodies <- string(b)
	}
	close(bodies)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for b := range bodies {
				if status := e.post("/v1/completions", b); status != http.StatusOK && status != http.StatusServiceUnavailable {
					e.t.Errorf("%s: status %d", b, status)
				}
			}
		})
	}
	wg.Wait()
}

// clear empties the engine's cache, and has it say so with the next request.
func (e *publisher) clear() {
	e.t.Helper()
	e.post("/reset_prefix_cache", "")
	e.load(rand.New(rand.NewPCG(0, 0)), 1)
}

func (e *publisher) fault(q server.Faults) {
	e.t.Helper()
	if _, err := e.SetFaults(e.t.Context(), q); err != nil {
		e.t.Fatal(err)
	}
}

// pool returns what the engine holds.
func (e *publisher) pool() (p stack.EnginePool) {
	e.t.Helper()
	resp, err := e.client.Get("http://" + e.Addr() + "/debug/pool")
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
		e.t.Fatal(err)
	}
	return p
}

func reader(body string) io.Reader { return strings.NewReader(body) }

func statusOf(t *testing.T, resp *http.Response) int {
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}

// rig is the event side of a router: pool, manager and index.
type rig struct {
	t       *testing.T
	index   *kvindex.Index
	hasher  kvindex.Hasher
	pool    *pool.Pool
	manager *events.Manager
	engines int
	stop    func()
}

func newRig(t *testing.T, cfg events.Config, options ...events.Option) *rig {
	t.Helper()
	r := &rig{t: t, hasher: kvindex.NewHasher(fleetSeed)}
	var err error
	if r.index, err = kvindex.New(kvindex.Config{}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	r.pool = pool.New(pool.DefaultConfig(), log, prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 2)))
	r.manager, err = events.New(cfg, r.index, r.hasher, events.ZMQ(cfg), log, prometheus.NewRegistry(), rand.New(rand.NewPCG(3, 4)), options...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// engine starts an engine of this rig's pool.
func (r *rig) engine(cfg server.Config) *publisher {
	r.t.Helper()
	e := startPublisher(r.t, cfg)
	e.name = fmt.Sprintf("e%d", r.engines)
	r.engines++
	return e
}

func specs(engines ...*publisher) (out []pool.Spec) {
	for _, e := range engines {
		s := pool.Spec{Name: e.name, Address: e.Addr(), Models: []string{"m"}, Adapters: []string{"ad"}, Relay: e.relay}
		if !e.mute {
			s.Events, s.Replay = e.EventsEndpoint(), e.ReplayEndpoint()
		}
		out = append(out, s)
	}
	return out
}

// run starts the manager on the engines. When it ends nothing may be held.
func (r *rig) run(engines ...*publisher) {
	r.pool.Set(specs(engines...))
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	done := make(chan error, 1)
	go func() { done <- r.manager.Run(ctx, r.pool) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("manager: %v", err)
		}
		if s := r.index.Stats(); s.Held != 0 || len(s.Publishers) != 0 {
			r.t.Errorf("after the end the index still holds %+v", s)
		}
	})
	r.t.Cleanup(r.stop)
}

func (r *rig) status(e *publisher) events.Status {
	for _, st := range r.manager.Status() {
		if st.Endpoint == e.name {
			return st
		}
	}
	return events.Status{}
}

// truth translates a pool into chain hashes.
func (r *rig) truth(p stack.EnginePool) map[kvindex.BlockHash]bool {
	r.t.Helper()
	out, err := p.Chains(r.hasher, "m")
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// held returns what the index says that the engine holds.
func (r *rig) held(e *publisher) map[kvindex.BlockHash]bool {
	out := map[kvindex.BlockHash]bool{}
	for _, ep := range r.pool.Snapshot().Endpoints {
		if ep.Name == e.name {
			for _, h := range r.index.AppendHeld(nil, ep.Publishers[0].ID) {
				out[h] = true
			}
		}
	}
	return out
}

// difference counts blocks that the index has and the engine has not, those
// that it lacks, and those that it lacks because a copy was removed.
func (r *rig) difference(e *publisher, p stack.EnginePool) (over, under, copies int) {
	r.t.Helper()
	d := stack.Differ(r.held(e), r.truth(p))
	return d.Over, d.Under - d.UnderCopies, d.UnderCopies
}

// await polls until ok, which gets the pool of a moment at which the index
// has seen all of the engine's batches. Events are asynchronous; the limit
// only ends a hanging test.
func (r *rig) await(e *publisher, what string, ok func(events.Status, stack.EnginePool) bool) {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		p := e.pool()
		st := r.status(e)
		behind := p.NextSeq > 0 && (!st.Sequenced || int64(st.Sequence) != p.NextSeq-1)
		if p.Running == 0 && p.Waiting == 0 && !behind && ok(st, p) {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			over, under, copies := r.difference(e, p)
			r.t.Fatalf("not %s: status %+v, next sequence %d; over %d, under %d, copies removed %d", what, st, p.NextSeq, over, under, copies)
		}
	}
}

// awaitEqual waits until the index holds what the engine holds, with a trust.
func (r *rig) awaitEqual(e *publisher, trust kvindex.Trust) {
	r.t.Helper()
	var listed int
	r.await(e, "equal and "+trust.String(), func(st events.Status, p stack.EnginePool) bool {
		over, under, copies := r.difference(e, p)
		listed = copies
		return over == 0 && under == 0 && st.Trust == trust.String()
	})
	if listed > 0 {
		r.t.Logf("%s: %d blocks are not counted, of which one of two copies was removed", e.name, listed)
	}
}

// awaitLess waits until the publisher has the trust; the index may then lack
// blocks, but must not have too many, and must lack none if exact.
func (r *rig) awaitLess(e *publisher, trust kvindex.Trust) {
	r.t.Helper()
	r.await(e, trust.String(), func(st events.Status, _ stack.EnginePool) bool { return st.Trust == trust.String() })
	p := e.pool()
	over, under, _ := r.difference(e, p)
	if st := r.status(e); over > 0 || under > 0 && st.Trust == kvindex.TrustExact.String() {
		r.t.Errorf("%s: over %d, under %d; status %+v", e.name, over, under, st)
	}
}

// awaitEmpty waits until nothing is held by anybody.
func (r *rig) awaitEmpty() {
	r.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for {
		if s := r.index.Stats(); s.Held == 0 && len(s.Publishers) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatalf("still held: %+v", r.index.Stats())
		}
	}
}
