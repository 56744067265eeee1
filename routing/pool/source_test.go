package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
)

// told is a source that says what it is told to.
type told struct {
	name string
	tell chan []Change
	// sync is closed to say that all is listed.
	sync     chan struct{}
	unlisted []string
}

func (s told) Name() string { return s.name }

func (s told) Unlisted() []string { return s.unlisted }

func (s told) Run(ctx context.Context, tell func([]Change), synced func()) error {
	sync := s.sync
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-s.tell:
			tell(c)
			s.tell <- nil
		case <-sync:
			synced()
			sync = nil
		}
	}
}

// still returns a pool that does not run.
func still(sources ...Source) *Pool {
	return New(DefaultConfig(), slog.New(slog.DiscardHandler), prometheus.NewRegistry(), nil, rand.New(rand.NewPCG(1, 1)), sources...)
}

// Against a dumb model: whatever sources list and take back, the pool has what
// the most believed claim of each name says, and an endpoint keeps its state
// exactly as long as it is the same process at the same place.
func TestPool_SourcesAgainstModel(t *testing.T) {
	type place struct {
		source int
		key    string
	}
	rapid.Check(t, func(t *rapid.T) {
		p := still(told{name: "a"}, told{name: "b"})
		model := map[place][]Listing{}
		states := map[string]*Endpoint{}
		incarnations := map[uint32]string{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			at := place{rapid.IntRange(0, 2).Draw(t, "source"), rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "key")}
			var listings []Listing
			for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"e", "f", "g"}), 0, 2, rapid.ID).Draw(t, "names") {
				listings = append(listings, Listing{
					Spec: Spec{
						Name: name, Address: rapid.SampledFrom([]string{"10.0.0.1:1", "10.0.0.2:1"}).Draw(t, "address"),
						Labels: map[string]string{"l": rapid.SampledFrom([]string{"1", "2"}).Draw(t, "label")},
					},
					Process:  rapid.SampledFrom([]string{"", "p"}).Draw(t, "process"),
					Withheld: rapid.SampledFrom([]string{"", "", "not ready"}).Draw(t, "withheld"),
					rank:     rapid.IntRange(0, 2).Draw(t, "rank"),
				})
			}
			model[at] = listings
			p.apply(at.source, []Change{{at.key, listings}})

			var claims []claim
			for at, ls := range model {
				for _, l := range ls {
					claims = append(claims, claim{at.source, at.key, l})
				}
			}
			slices.SortFunc(claims, func(a, b claim) int {
				switch {
				case a.source != b.source:
					return a.source - b.source
				case a.rank != b.rank:
					return a.rank - b.rank
				case (a.Withheld == "") != (b.Withheld == ""):
					return len(a.Withheld) - len(b.Withheld)
				case a.key < b.key:
					return -1
				}
				return 1
			})
			snap := p.Snapshot()
			seen := 0
			candidates := map[string]int{}
			for _, name := range []string{"e", "f", "g"} {
				i := slices.IndexFunc(claims, func(c claim) bool { return c.Name == name })
				j := slices.IndexFunc(snap.Endpoints, func(e *Endpoint) bool { return e.Name == name })
				if (i < 0) != (j < 0) {
					t.Fatalf("%s: listed %v, in the pool %v", name, i >= 0, j >= 0)
				}
				old := states[name]
				if i < 0 {
					delete(states, name)
					continue
				}
				seen++
				want, e := claims[i], snap.Endpoints[j]
				if e.Address != want.Address || e.Labels["l"] != want.Labels["l"] {
					t.Fatalf("%s is at %s with label %s, want %s and %s", name, e.Address, e.Labels["l"], want.Address, want.Labels["l"])
				}
				if want.Withheld != "" && e.Candidate() {
					t.Fatalf("%s is a candidate although it is withheld", name)
				}
				if e.Candidate() {
					candidates[e.Address]++
				}
				process := want.Process + " at " + want.Address
				same := old != nil && incarnations[old.Incarnation] == name+" "+process
				if old != nil && same != (e.State == old.State) {
					t.Fatalf("%s: same process %v, same state %v", name, same, e.State == old.State)
				}
				if !same && incarnations[e.Incarnation] != "" {
					t.Fatalf("%s has incarnation %d, which was used before", name, e.Incarnation)
				}
				incarnations[e.Incarnation] = name + " " + process
				states[name] = e
			}
			if seen != len(snap.Endpoints) {
				t.Fatalf("the pool has %d endpoints, %d are listed", len(snap.Endpoints), seen)
			}
			for a, n := range candidates {
				if n > 1 || !snap.ByAddress(a).Candidate() {
					t.Fatalf("%d candidates at %s, of which the snapshot finds %+v", n, a, snap.ByAddress(a))
				}
			}
			if len(p.at) > 2 || p.crowded < 0 {
				t.Fatalf("addresses %v, %d of them crowded", p.at, p.crowded)
			}
		}
	})
}

// What is ready according to a pod and not according to its Service gets no
// requests.
func TestPool_AnySourceMayWithhold(t *testing.T) {
	p := still(told{name: "a"})
	l := Listing{Spec: Spec{Name: "e", Address: "10.0.0.1:1"}}
	slice := l
	slice.rank, slice.Withheld = rankSlice, "not ready"
	p.apply(1, []Change{{"pod", []Listing{l}}})
	before := p.Snapshot().Endpoints[0]
	p.apply(1, []Change{{"slice", []Listing{slice}}})
	if e := p.Snapshot().Endpoints[0]; e.Candidate() || e.Withheld != "not ready" || e.State != before.State {
		t.Errorf("%+v is a candidate, or lost its state", e)
	}
	p.apply(1, []Change{{Key: "slice"}})
	if e := p.Snapshot().Endpoints[0]; !e.Candidate() || e.State != before.State {
		t.Errorf("%+v is no candidate, or lost its state", e)
	}
}

// A pool that rests publishes additions late, and what must get no requests at
// once. What did not change is not published.
func TestPool_Rests(t *testing.T) {
	p := still(told{name: "a"})
	p.begin = func(m *member) { m.stop = func() {} } // as if it ran
	one := Listing{Spec: Spec{Name: "a", Address: "10.0.0.1:1"}}
	p.apply(1, []Change{{"a", []Listing{one}}})
	snap := p.Snapshot()
	p.apply(1, []Change{{"a", []Listing{one}}})
	if p.Snapshot() != snap {
		t.Error("a change that changes nothing was published")
	}
	p.rested = time.Now().Add(time.Hour)
	p.apply(1, []Change{{"b", []Listing{{Spec: Spec{Name: "b", Address: "10.0.0.2:1"}}}}})
	if p.Snapshot() != snap || !p.dirty {
		t.Error("an addition was published while the pool should rest, or was lost")
	}
	one.Withheld = "not ready"
	p.apply(1, []Change{{"a", []Listing{one}}})
	if s := p.Snapshot(); len(s.Endpoints) != 2 || s.Endpoints[0].Candidate() {
		t.Errorf("an endpoint that is withheld is still a candidate while the pool rests:\n%s", view(s))
	}
	p.rested = time.Now().Add(time.Hour)
	p.apply(1, []Change{{Key: "a"}})
	if s := p.Snapshot(); len(s.Endpoints) != 1 {
		t.Errorf("an endpoint that is gone is still there while the pool rests:\n%s", view(s))
	}
}

// Readiness waits for every source, and for the first probe of what they list.
func TestPool_ProbedWaitsForSources(t *testing.T) {
	e := newEngine(t, `{"data":[{"id":"m"}]}`)
	s := told{name: "a", tell: make(chan []Change), sync: make(chan struct{})}
	cfg := DefaultConfig()
	cfg.Load.Interval = 0
	p := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)), s)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	s.tell <- []Change{{"e", []Listing{{Spec: Spec{Name: "e", Address: e.address()}}}}}
	<-s.tell
	await(t, p, func(s *Snapshot) bool { return s.Endpoints[0].Health == HealthReady })
	for _, c := range []<-chan struct{}{p.Synced(), p.Probed()} {
		select {
		case <-c:
			t.Error("ready before the source has listed everything")
		default:
		}
	}
	close(s.sync)
	<-p.Synced()
	<-p.Probed()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The models of an engine that a source names are not all it has: aliases and
// adapters are learned, and learned again.
func TestPool_LearnsWhatLabelsDoNotSay(t *testing.T) {
	e := newEngine(t, `{"data":[{"id":"base"},{"id":"alias"},{"id":"lora-a","parent":"base"}]}`)
	s := told{name: "a", tell: make(chan []Change), sync: make(chan struct{})}
	cfg := DefaultConfig()
	cfg.Load.Interval = 0
	cfg.Health.Interval, cfg.Health.Models = 10*time.Millisecond, 10*time.Millisecond
	p := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)), s)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	s.tell <- []Change{{"e", []Listing{{Spec: Spec{Name: "e", Address: e.address(), Models: []string{"alias"}}, LearnModels: true}}}}
	<-s.tell
	if m, ok := p.Snapshot().Model("alias"); !ok || m.Base != "alias" || len(m.Endpoints) != 1 {
		t.Errorf("the model of the label is %+v before the engine was asked", m)
	}
	snap := await(t, p, func(s *Snapshot) bool { return s.Complete() })
	if diff := cmp.Diff([]string{"alias", "base", "lora-a"}, snap.Models()); diff != "" {
		t.Errorf("models (-want +got):\n%s", diff)
	}
	if m, _ := snap.Model("base"); m.Base != "alias" {
		t.Errorf("the base model is %q; the label names it alias", m.Base)
	}
	was := snap.Endpoints[0].State
	e.models.Store(`{"data":[{"id":"alias"},{"id":"lora-b","parent":"alias"}]}`)
	snap = await(t, p, func(s *Snapshot) bool { _, ok := s.Model("lora-b"); return ok })
	if _, ok := snap.Model("lora-a"); ok || snap.Endpoints[0].State != was {
		t.Error("an adapter that was unloaded is still there, or the endpoint lost its state")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// One endpoint more or less of 1,000: the cost of a snapshot.
func BenchmarkPool_Change(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := still(told{name: "a"})
			var changes []Change
			for i := range n {
				changes = append(changes, Change{fmt.Sprint(i), []Listing{{Spec: Spec{Name: fmt.Sprint(i), Address: fmt.Sprintf("10.0.%d.%d:8000", i/250, i%250), Models: []string{"m"}}}}})
			}
			p.apply(1, changes)
			l := changes[n/2].Listings[0]
			for i := 0; b.Loop(); i++ {
				l.Withheld = []string{"", "not ready"}[i%2]
				p.apply(1, []Change{{changes[n/2].Key, []Listing{l}}})
			}
		})
	}
}

// answers is a transport where every path but those given is not found.
type answers map[string]string

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	body, ok := a[r.URL.Path]
	status := http.StatusOK
	if !ok {
		status = http.StatusNotFound
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}, Request: r}, nil
}

// An engine that says by a label that it publishes, and not where, is found at
// the usual ports, with a replay socket only if something listens there.
func TestPool_GuessesEventStreams(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	guess := []eventSource{{0, "tcp://127.0.0.1:5557", "tcp://" + ln.Addr().String()}, {1, "tcp://127.0.0.1:5558", "tcp://127.0.0.1:1"}}
	for _, tt := range []struct {
		name    string
		answers answers
		want    []Publisher
	}{
		{"it does not say", answers{}, []Publisher{{Rank: 0, Events: guess[0].events, Replay: guess[0].replay}, {Rank: 1, Events: guess[1].events}}},
		{"it says", answers{"/kv_event_sources": `{"0":{"endpoint":"tcp://*:6000"}}`}, []Publisher{{Events: "tcp://127.0.0.1:6000"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := still(told{name: "a"})
			p.client = &http.Client{Transport: tt.answers}
			p.apply(1, []Change{{"e", []Listing{{Spec: Spec{Name: "e", Address: "127.0.0.1:8000", Events: EventsAuto}, guess: guess}}}})
			p.find(t.Context(), p.members[0])
			got := p.Snapshot().Endpoints[0].Publishers
			for i := range got {
				got[i].Publisher = kvindex.Publisher{}
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(Publisher{}, "Publisher")); diff != "" {
				t.Errorf("publishers (-want +got):\n%s", diff)
			}
		})
	}
}

// An engine that tells of no events is asked ever more rarely, and soon again
// once it has failed, because another may have taken its place.
func TestPool_AsksMoreRarelyForEventStreams(t *testing.T) {
	p := still(told{name: "a"})
	p.client = &http.Client{Transport: answers{"/health": "", "/v1/models": `{"data":[{"id":"m"}]}`}}
	p.apply(1, []Change{{"e", []Listing{{Spec: Spec{Name: "e", Address: "127.0.0.1:8000", Events: EventsAuto}}}}})
	m := p.members[0]
	var pauses []time.Duration
	for range 9 {
		begin := time.Now()
		p.find(t.Context(), m)
		pauses = append(pauses, m.locateAt.Sub(begin).Round(time.Second))
	}
	if want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60}; !slices.EqualFunc(pauses, want, func(a, b time.Duration) bool { return a == b*time.Second }) {
		t.Errorf("it is asked again after %v, want %v seconds", pauses, want)
	}
	p.record(m, errors.New("gone"))
	if !m.locateAt.IsZero() {
		t.Error("an engine that failed is not asked anew")
	}
}
