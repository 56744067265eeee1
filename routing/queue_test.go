package routing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
)

// queueWorld is a router whose queue has these bounds, over n endpoints.
func queueWorld(tb rapid.TB, n int, bounds QueueConfig) *world {
	w := newWorld(tb, static(n), nil)
	cfg := DefaultConfig()
	cfg.Strategy, cfg.Queue = "queue", bounds
	if err := w.router.Reload(cfg); err != nil {
		tb.Fatal(err)
	}
	return w
}

// dispatch does what the loop does when it is woken at now.
func (w *world) dispatch(now time.Time) {
	for {
		w.router.dispatch(now)
		select {
		case <-w.router.queue.wake:
		default:
			return
		}
	}
}

// guest is a request in a test of the line, and who let it in.
type guest struct {
	*waiter
	id int
}

// The line is compared with what may be said of any fair line: nobody is
// served twice while another, of the same model, waits all the time.
func TestLine_IsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 6
		var l line
		var all []guest // those that wait, in the order of arrival
		lastServed := map[string]int{}
		arrived := map[*waiter]int{}
		step, ids := 0, 0
		drop := func(w *waiter) { all = slices.DeleteFunc(all, func(g guest) bool { return g.waiter == w }) }
		count := func(model, user string) (n int) {
			for _, g := range all {
				if g.model == model && (user == "*" || g.user() == user) {
					n++
				}
			}
			return n
		}
		begin := time.Unix(1000, 0)
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				step++
				ids++
				model := rapid.SampledFrom([]string{"m", "n"}).Draw(t, "model")
				user := rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "user")
				w := &waiter{
					promise: NewContext(context.Background(), Request{User: user}), model: model,
					deadline: begin.Add(time.Duration(rapid.IntRange(0, 50).Draw(t, "deadline")) * time.Second),
				}
				waiting, own := count(model, "*"), count(model, user)
				left := l.push(w, limit)
				switch {
				case waiting < limit:
					if left != nil {
						t.Fatalf("somebody had to leave a line of %d of %d", waiting, limit)
					}
				case left == nil:
					t.Fatalf("a line of %d took another", waiting)
				case left == w:
					for _, u := range []string{"", "a", "b", "c"} {
						if n := count(model, u); n > own+1 {
							t.Fatalf("a user with %d was refused while one with %d stayed", own, n)
						}
					}
					return
				default:
					if n := count(model, left.user()); n <= own+1 {
						t.Fatalf("one of the %d of a user left for one with %d", n, own)
					}
					drop(left)
				}
				all = append(all, guest{w, ids})
				arrived[w] = step
			},
			"serve": func(t *rapid.T) {
				model := rapid.SampledFrom([]string{"m", "n"}).Draw(t, "room")
				room := rapid.IntRange(1, 3).Draw(t, "n")
				full := count(model, "*")
				served := 0
				l.serve(func(m string) bool { return m == model && served < room }, func(w *waiter) bool {
					step++
					served++
					if w.model != model {
						t.Fatalf("a request for %s was served in place of one for %s", w.model, model)
					}
					for _, g := range all {
						if g.model != model || g.waiter == w {
							continue
						}
						if g.user() == w.user() && arrived[g.waiter] < arrived[w] {
							t.Fatal("a request was served before an older one of its user")
						}
						if last, ok := lastServed[model+"/"+w.user()]; ok && g.user() != w.user() &&
							arrived[g.waiter] < last && lastServed[model+"/"+g.user()] < last {
							t.Fatalf("%q was served twice while %q waited", w.user(), g.user())
						}
					}
					lastServed[model+"/"+w.user()] = step
					drop(w)
					return true
				})
				if served != min(room, full) {
					t.Fatalf("%d of %d were served with room for %d", served, full, room)
				}
			},
			"remove": func(t *rapid.T) {
				if len(all) == 0 {
					t.Skip("nobody waits")
				}
				w := rapid.SampledFrom(all).Draw(t, "who").waiter
				if !l.remove(w) || l.remove(w) {
					t.Fatal("a request that waits can be removed once")
				}
				drop(w)
			},
			"expire": func(t *rapid.T) {
				now := begin.Add(time.Duration(rapid.IntRange(0, 50).Draw(t, "now")) * time.Second)
				late := l.expire(now)
				for _, g := range slices.Clone(all) {
					if due := !g.deadline.After(now); due != slices.Contains(late, g.waiter) {
						t.Fatalf("deadline %s at %s: expired %v", g.deadline, now, !due)
					} else if due {
						drop(g.waiter)
					}
				}
			},
			"": func(t *rapid.T) {
				if l.n != len(all) {
					t.Fatalf("the line says %d wait, and %d do", l.n, len(all))
				}
				for _, m := range l.models {
					if m.n != count(m.name, "*") || m.n > limit || m.n == 0 {
						t.Fatalf("the line says %d wait for %s, and %d do", m.n, m.name, count(m.name, "*"))
					}
					for _, u := range m.users {
						if len(u.waiting) == 0 {
							t.Fatalf("%q is kept without a request", u.name)
						}
					}
				}
			},
		})
	})
}

// A head that cannot be served keeps its place and holds nobody else up.
func TestLine_PassesOverWhoCannotBeServed(t *testing.T) {
	var l line
	var order []string
	for _, user := range []string{"picky", "a", "b"} {
		for range 2 {
			l.push(&waiter{promise: NewContext(t.Context(), Request{User: user}), model: "m"}, 10)
		}
	}
	picky := false
	serve := func(n int) {
		l.serve(func(string) bool { return n > 0 }, func(w *waiter) bool {
			if w.user() == "picky" && !picky {
				return false
			}
			n--
			order = append(order, w.user())
			return true
		})
	}
	serve(3)
	picky = true
	serve(9)
	if want := []string{"a", "b", "a", "picky", "b", "picky"}; !slices.Equal(order, want) {
		t.Errorf("served in the order %q, want %q", order, want)
	}
}

// Whatever happens, an endpoint runs no more than it may, no room is left while
// somebody waits for it, and nothing stays behind.
func TestQueue_NeverAboveTheLimitAndNothingLeaks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 2
		bounds := QueueConfig{MaxInFlight: limit, MaxWaiting: 8, Deadline: 10 * time.Second}
		n := rapid.IntRange(1, 3).Draw(t, "endpoints")
		w := queueWorld(t, n, bounds)
		now := time.Unix(1000, 0)
		type request struct {
			*Context
			abort context.CancelFunc
		}
		var open []request
		state := func(c request) string {
			switch r := c.state.Load(); {
			case r == nil:
				return "waiting"
			case r.err != nil:
				return r.err.Reason.String()
			}
			return "routed"
		}
		end := func(i int) {
			open[i].Finish()
			open[i].abort()
			open = slices.Delete(open, i, i+1)
		}
		t.Repeat(map[string]func(*rapid.T){
			"arrive": func(t *rapid.T) {
				ctx, abort := context.WithCancel(context.Background())
				c := NewContext(ctx, Request{
					Model: rapid.SampledFrom([]string{"m", "alias", ""}).Draw(t, "model"),
					User:  rapid.SampledFrom([]string{"a", "b"}).Draw(t, "user"), Arrived: now,
				})
				w.router.Route(c)
				if got := state(request{c, abort}); got == "waiting" && c.Until() != now.Add(bounds.Deadline) {
					t.Fatalf("a request waits until %s", c.Until())
				} else if got == "routed" && !c.Until().IsZero() {
					t.Fatal("a request that does not wait says how long")
				}
				open = append(open, request{c, abort})
			},
			"end": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip("nothing runs")
				}
				end(rapid.IntRange(0, len(open)-1).Draw(t, "which"))
			},
			"pass": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 6000).Draw(t, "ms")) * time.Millisecond)
			},
			"": func(t *rapid.T) {
				w.dispatch(now)
				full := true
				for _, e := range w.pool.Snapshot().Endpoints {
					if e.State.InFlight() > limit {
						t.Fatalf("%s runs %d, limit %d", e.Name, e.State.InFlight(), limit)
					}
					full = full && e.State.InFlight() == limit
				}
				for _, c := range open {
					switch got := state(c); {
					case got == "waiting" && !full:
						t.Fatal("a request waits while an endpoint has room")
					case got == "waiting" && !c.Until().After(now):
						t.Fatalf("a request waits after its deadline %s at %s", c.Until(), now)
					case got != "waiting" && got != "routed" && got != "queue_full" && got != "queue_timeout":
						t.Fatalf("a request ended with %s", got)
					}
				}
			},
		})
		for len(open) > 0 {
			end(0)
		}
		now = now.Add(time.Hour)
		w.dispatch(now)
		for _, e := range w.pool.Snapshot().Endpoints {
			if e.State.InFlight() != 0 || e.State.PrefillTokens() != 0 {
				t.Fatalf("%s has %d requests in flight at the end", e.Name, e.State.InFlight())
			}
		}
		if w.router.queue.line.n != 0 {
			t.Fatalf("%d requests wait at the end", w.router.queue.line.n)
		}
	})
}

// inQueue runs test with the loop running, in a time of its own.
func inQueue(t *testing.T, bounds QueueConfig, test func(*testing.T, *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := queueWorld(t, 1, bounds)
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- w.router.Run(ctx) }()
		defer func() {
			stop()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		}()
		test(t, w)
	})
}

// send routes a request of a user and returns its promise.
func send(w *world, ctx context.Context, user string) *Context {
	c := NewContext(ctx, Request{Model: "m", User: user, Arrived: time.Now()})
	w.router.Route(c)
	return c
}

func TestQueue_ResolvesAsRoomComes(t *testing.T) {
	inQueue(t, QueueConfig{MaxInFlight: 1, MaxWaiting: 10, Deadline: time.Minute}, func(t *testing.T, w *world) {
		running := send(w, t.Context(), "a")
		if !running.HasRouted() {
			t.Fatal("an idle endpoint lets a request wait")
		}
		var waiting []*Context
		for _, user := range []string{"a", "a", "a", "b"} {
			waiting = append(waiting, send(w, t.Context(), user))
		}
		// b has waited the shortest, and its turn comes after one of a's.
		for _, i := range []int{0, 3, 1, 2} {
			synctest.Wait()
			if waiting[i].HasRouted() {
				t.Fatalf("request %d is routed before there is room", i)
			}
			running.Finish()
			running = waiting[i]
			target, err := running.Target(t.Context())
			if err != nil || target.Reason != ReasonQueued || target.Strategy != "queue" {
				t.Fatalf("request %d: %v, %v", i, target, err)
			}
		}
		running.Finish()
		wantInFlight(t, w.pool.Snapshot().Endpoints[0], 0, 0)
	})
}

func TestQueue_RefusesAtTheDeadline(t *testing.T) {
	inQueue(t, QueueConfig{MaxInFlight: 1, MaxWaiting: 10, Deadline: 3 * time.Second}, func(t *testing.T, w *world) {
		running := send(w, t.Context(), "a")
		begin := time.Now()
		late := send(w, t.Context(), "b")
		_, err := late.Target(t.Context())
		if err == nil || err.Reason != ReasonQueueTimeout || err.RetryAfter < time.Second {
			t.Fatalf("got %+v, want %s and when to try again", err, ReasonQueueTimeout)
		}
		if waited := time.Since(begin); waited != 3*time.Second {
			t.Errorf("it waited %s, want 3s", waited)
		}
		running.Finish()
		late.Finish()
		wantInFlight(t, w.pool.Snapshot().Endpoints[0], 0, 0)
	})
}

func TestQueue_AnAbortLeavesNothing(t *testing.T) {
	inQueue(t, QueueConfig{MaxInFlight: 1, MaxWaiting: 1, Deadline: time.Minute}, func(t *testing.T, w *world) {
		running := send(w, t.Context(), "a")
		ctx, abort := context.WithCancel(t.Context())
		gone := send(w, ctx, "b")
		if full := send(w, t.Context(), "b"); full.HasRouted() {
			t.Fatal("a full line took another")
		} else if _, err := full.Target(t.Context()); err == nil || err.Reason != ReasonQueueFull || err.RetryAfter == 0 {
			t.Fatalf("got %+v, want %s and when to try again", err, ReasonQueueFull)
		}
		abort()
		synctest.Wait()
		if _, err := gone.Target(t.Context()); err == nil || err.Reason != ReasonCanceled {
			t.Errorf("the aborted request ended with %v", err)
		}
		gone.Finish()
		next := send(w, t.Context(), "b") // its place is free
		running.Finish()
		if _, err := next.Target(t.Context()); err != nil {
			t.Errorf("the next one: %v", err)
		}
		next.Finish()
		wantInFlight(t, w.pool.Snapshot().Endpoints[0], 0, 0)
	})
}

// Requests that lose their last endpoint, or whose queue is switched off, do
// not wait for their deadline.
func TestQueue_FollowsTheConfiguration(t *testing.T) {
	inQueue(t, QueueConfig{MaxInFlight: 1, MaxWaiting: 10, Deadline: time.Minute}, func(t *testing.T, w *world) {
		running := send(w, t.Context(), "a")
		waiting := send(w, t.Context(), "a")
		cfg := DefaultConfig()
		cfg.Queue.MaxInFlight = 2
		if err := w.router.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if _, err := waiting.Target(t.Context()); err != nil || time.Since(begin) > recheck {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
		running.Finish()
		waiting.Finish()
		wantInFlight(t, w.pool.Snapshot().Endpoints[0], 0, 0)
	})
}

// countingTokenizer tokenizes one way and counts how often it is asked.
type countingTokenizer struct {
	ids   []kvindex.TokenID
	asked int
}

func (c *countingTokenizer) Tokenize(_ context.Context, q *TokenQuery, dst []Tokens) ([]Tokens, *Error) {
	c.asked++
	// What was lent before is used again, as by a tokenizer that keeps memory.
	known := Tokens{Source: TokensRemote, Count: len(c.ids)}
	if len(dst) < cap(dst) {
		known.Blocks = dst[:1][0].Blocks[:0]
	}
	for i, size := range q.BlockSizes {
		var memory []kvindex.ContentHash
		if i < cap(known.Blocks) {
			memory = known.Blocks[: i+1 : cap(known.Blocks)][i].Contents[:0]
		}
		known.Blocks = append(known.Blocks, TokenBlocks{Size: size, Contents: q.Hasher.AppendContents(memory, c.ids, size)})
	}
	return append(dst, known), nil
}

// The queue places requests by the strategy it is told, among the endpoints
// with room, and those that waited by what is cached then, without asking the
// tokenizer again.
func TestQueue_PlacesByAnotherStrategy(t *testing.T) {
	for _, placer := range []string{"prefix-cache", "prefix-cache:3,least-request"} {
		tokenizer := &countingTokenizer{ids: tokens(0, 41)}
		w := newWorld(t, static(2), tokenizer)
		cfg := DefaultConfig()
		cfg.Strategy = "queue"
		cfg.Queue.Strategy, cfg.Queue.MaxInFlight = placer, 1
		if err := w.router.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		prompt := func() *Context {
			c := NewContext(t.Context(), Request{Model: "m", Arrived: now, Prompt: Prompt{Kind: PromptText, Text: "x"}})
			w.router.Route(c)
			return c
		}
		want := func(c *Context, at, matched int, reason Reason) {
			t.Helper()
			got, err := c.Target(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got.Endpoints[0].Name != fmt.Sprintf("e%d", at) || got.MatchedTokens != matched || got.Reason != reason || got.Strategy != "queue" {
				t.Errorf("%s: %s with %d tokens, %s by %s, want e%d with %d, %s", placer, got.Endpoints[0].Name, got.MatchedTokens, got.Reason, got.Strategy, at, matched, reason)
			}
		}
		w.hold(0, kvindex.Scope{Model: "m"}, tokens(500, 8)) // both tell their block size
		w.hold(1, kvindex.Scope{Model: "m"}, tokens(0, 40))
		home := prompt()
		found := ReasonPrefix
		if placer != "prefix-cache" {
			found = ReasonBlend
		}
		want(home, 1, 40, found)
		other := prompt()
		want(other, 0, 0, ReasonSpill)
		waiting := prompt()
		tokenizer.ids = tokens(900, 41)
		unlike := prompt() // whose tokens must not become those of who waits
		if waiting.HasRouted() || unlike.HasRouted() {
			t.Fatalf("%s: routed without room", placer)
		}
		asked := tokenizer.asked
		home.Finish()
		other.Finish()
		w.dispatch(now.Add(time.Second))
		want(waiting, 1, 40, ReasonQueued)
		want(unlike, 0, 0, ReasonQueued)
		if tokenizer.asked != asked {
			t.Errorf("%s: the tokenizer was asked %d times for those that waited", placer, tokenizer.asked-asked)
		}
		waiting.Finish()
		unlike.Finish()
		for _, e := range w.pool.Snapshot().Endpoints {
			wantInFlight(t, e, 0, 0)
		}
	}
}

func TestQueueConfig_Faults(t *testing.T) {
	errs := QueueConfig{MaxInFlight: -1, MaxWaiting: 1 << 20, Deadline: -time.Second}.validate()
	if got := fmt.Sprint(errs); len(errs) != 3 {
		t.Errorf("%d faults, want 3: %s", len(errs), got)
	}
	for strategy, want := range map[string]string{
		"queue": "queue.strategy: queue cannot place its own requests; use another strategy, for example prefix-cache",
		"nope":  "queue.strategy: \"nope\" is not a strategy",
	} {
		c := DefaultQueueConfig()
		if c.Strategy = strategy; !strings.HasPrefix(fmt.Sprint(errors.Join(c.validate()...)), want) {
			t.Errorf("%s: %v, want %s", strategy, c.validate(), want)
		}
	}
	if errs := DefaultQueueConfig().validate(); len(errs) > 0 {
		t.Errorf("the default has faults: %v", errs)
	}
	if w := (QueueConfig{Deadline: time.Second}).Wait(); w != 0 {
		t.Errorf("a queue that lets nothing wait takes %s", w)
	}
}
