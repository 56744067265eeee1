package discovery_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warmpath/warmpath/deploy/conformance/cluster"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// Pods appear, move, restart, lose labels and vanish, while their engines
// publish, requests are routed, and the API server and the way to it fail.
// Whenever it is quiet the router has what the cluster has, and when all is
// over nothing is left.
func TestStorm(t *testing.T) {
	const pods, actions = 200, 400
	c, namespace := cluster.Of(t, shared)
	w := newWorld(t, c, namespace, pods)
	r := newRig(t, c, namespace, nil, func(k *pool.KubernetesConfig) { k.PodSelector = labelSelected + "=engine" })
	random := rand.New(rand.NewPCG(9, 9))

	// One pod comes and goes, so that every connection that stays is open.
	if err := w.appear(t.Context(), w.slots[0], random); err != nil {
		t.Fatal(err)
	}
	r.awaitPool(w.expected())
	w.clear()
	r.awaitPool(nil)
	before := usage(t)

	lives := map[string]life{}
	for _, round := range []struct {
		name string
		run  func(storm func())
		// lists is how many lists the round takes at least and at most; -1: any.
		least, most int
	}{
		{"calm", func(storm func()) { storm() }, 0, 0},
		{"watches cut", func(storm func()) {
			cut := 0
			r.meanwhile(storm, func() { cut += r.proxy.Cut() })
			if cut == 0 {
				t.Error("no connection was cut")
			}
		}, 0, -1},
		{"slow answers", func(storm func()) {
			r.proxy.Delay(30 * time.Millisecond)
			defer r.proxy.Delay(0)
			storm()
		}, 0, -1},
		{"the way to the API server is down", func(storm func()) {
			r.proxy.Down()
			storm()
			r.proxy.Up()
		}, 0, -1},
		{"the API server restarts", func(storm func()) {
			storm()
			r.restart()
			storm()
		}, 0, -1},
		{"410 Gone", func(storm func()) {
			r.proxy.Down()
			storm()
			r.expire()
			r.proxy.Up()
		}, 1, -1},
		{"calm again", func(storm func()) { storm() }, 0, -1},
	} {
		began, lists := time.Now(), r.counter("warmpath_pool_kubernetes_lists_total")
		traffic := r.traffic(w, random.Uint64())
		round.run(func() { w.storm(random, actions) })
		want := w.expected()
		r.awaitPool(want)
		sent, decided := traffic()
		r.awaitIndex(w.engines)
		w.checkLives(r, lives)
		lists = r.counter("warmpath_pool_kubernetes_lists_total") - lists
		if int(lists) < round.least || round.most >= 0 && int(lists) > round.most {
			t.Errorf("%s: %v lists taken, want %d to %d", round.name, lists, round.least, round.most)
		}
		t.Logf("%s: %d endpoints, %d requests, %d decisions, %v lists, %.1f s", round.name, len(want), sent, decided, lists, time.Since(began).Seconds())
		if t.Failed() {
			return
		}
	}
	w.clear()
	r.awaitPool(nil)
	r.await("the index is empty", func() string {
		if s := r.index.Stats(); s.Held != 0 || len(s.Publishers) != 0 {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	w.client.CloseIdleConnections()
	r.await("nothing is left", func() string { return leaked(t, before) })
}

// clear takes every pod away.
func (w *world) clear() {
	for _, s := range w.slots {
		if s.there {
			if err := w.vanish(w.t.Context(), s); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

func (r *rig) restart() {
	r.t.Helper()
	r.cluster.StopAPIServer()
	if err := r.cluster.StartAPIServer(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) expire() {
	r.t.Helper()
	if err := r.cluster.Expire(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// meanwhile calls f again and again until what has run.
func (r *rig) meanwhile(what, f func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(300 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f()
			case <-done:
				return
			}
		}
	})
	what()
	close(done)
	wg.Wait()
}

// traffic has requests routed, and engines publish, until stop is called, which
// tells how many requests were sent and how many decisions made.
func (r *rig) traffic(w *world, seed uint64) (stop func() (sent, decided int)) {
	const workers = 3
	ctx, cancel := context.WithCancel(r.t.Context())
	var wg sync.WaitGroup
	var sent, decided atomic.Int64
	for i := range workers {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for ctx.Err() == nil {
				// One where the router sends it, and one to any engine, so that those
				// that get no requests publish, too.
				if r.routed(w.client, random) {
					decided.Add(1)
				}
				all := w.running()
				if len(all) == 0 {
					continue
				}
				// A request that is begun is finished: the index is compared after it.
				e := all[random.IntN(len(all))]
				if err := e.complete(context.WithoutCancel(ctx), prompt(random)); err != nil {
					r.t.Errorf("%s: %v", e.Addr(), err)
					return
				}
				sent.Add(1)
			}
		})
	}
	return func() (int, int) {
		cancel()
		wg.Wait()
		return int(sent.Load()), int(decided.Load())
	}
}

// routed has one request routed and sends it. It reports whether there was
// anywhere to send it to.
func (r *rig) routed(client *http.Client, random *rand.Rand) bool {
	told, tokens := r.source.told.Load(), prompt(random)
	strategies := [...]string{"prefix-cache", "least-request", "round-robin", "random"}
	ctx := routing.NewContext(context.Background(), routing.Request{
		Arrived: time.Now(), Path: "/v1/completions", Model: model, Strategy: strategies[random.IntN(len(strategies))],
		Prompt: routing.Prompt{Kind: routing.PromptTokens, Tokens: tokens},
	})
	defer ctx.Finish()
	r.router.Route(ctx)
	target, err := ctx.Target(context.Background())
	if err != nil {
		return false // there is none that is ready
	}
	for _, e := range target.Endpoints {
		if r.source.since(e, told) {
			r.t.Errorf("a request goes to %s at %s, which the router had been told not to use", e.Name, e.Address)
		}
	}
	// It may have ended a moment ago: then the request fails.
	if err := complete(context.Background(), client, target.Endpoints[0].Address, tokens); err == nil {
		ctx.Answered(http.StatusOK, time.Now())
	}
	return true
}

// life is one process behind an endpoint, as the router knows it.
type life struct {
	process, changes int
	incarnation      uint32
}

// checkLives demands that another process has another incarnation, and that
// changes that do not matter leave it as it is.
func (w *world) checkLives(r *rig, lives map[string]life) {
	w.t.Helper()
	now := map[string]uint32{}
	for _, e := range r.pool.Snapshot().Endpoints {
		now[e.Name] = e.Incarnation
	}
	for _, s := range w.slots {
		if s.engine == nil {
			continue
		}
		name := w.name(s)
		incarnation, ok := now[name]
		if !ok {
			delete(lives, name)
			continue
		}
		was, known := lives[name]
		switch {
		case !known:
		case was.process != s.process && was.incarnation == incarnation:
			w.t.Errorf("%s: another process has the same incarnation", name)
		case was.process == s.process && was.changes == s.changes && was.incarnation != incarnation:
			w.t.Errorf("%s: the same process has another incarnation", name)
		}
		lives[name] = life{s.process, s.changes, incarnation}
	}
}

// used is what the process uses.
type used struct{ goroutines, sockets int }

func usage(t *testing.T) used {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("no /proc/self/fd: %v", err)
	}
	u := used{goroutines: runtime.NumGoroutine()}
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			u.sockets++
		}
	}
	return u
}

// leaked says what there is more than before.
func leaked(t *testing.T, before used) string {
	now := usage(t)
	if now.goroutines <= before.goroutines && now.sockets <= before.sockets {
		return ""
	}
	var stacks strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
	return fmt.Sprintf("before %+v, now %+v\n%s", before, now, stacks.String())
}
