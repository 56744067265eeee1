package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// namedRouters is a network in which one name leads to routers, as a test says.
type namedRouters struct {
	mu sync.Mutex
	// up are those that the name leads to, at where they listen; guarded by mu.
	up  map[string]string
	all map[string]string
	bad error
}

func (n *namedRouters) set(bad error, up ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bad = bad
	n.up = map[string]string{}
	for _, ip := range up {
		n.up[ip] = n.all[ip]
	}
}

func (n *namedRouters) network() Network {
	return Network{
		Lookup: func(_ context.Context, host string) ([]string, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if host != "routers.test" || n.bad != nil {
				return nil, errors.Join(n.bad, errors.New("no such host"))
			}
			var ips []string
			for ip := range n.up {
				ips = append(ips, ip)
			}
			return ips, nil
		},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			host, _, _ := net.SplitHostPort(address)
			return new(net.Dialer).DialContext(ctx, "tcp", n.all[host])
		},
	}
}

// Every router that a name leads to is reported to, those that come later too,
// and those that go no more; a name that leads nowhere for a while changes
// nothing.
func TestReport_EveryRouterOfAName(t *testing.T) {
	n := &namedRouters{all: map[string]string{}}
	fed := map[string]*followed{}
	for _, ip := range []string{"10.1.0.1", "10.1.0.2", "10.1.0.3"} {
		src := newTestSource(t, quickRouter(), testHasher, false)
		fed[ip] = follow(t, src, pool.RelayPush)
		ln := listenLocal(t)
		srv := NewServer(quickRouter(), src, View{}, slog.New(slog.DiscardHandler))
		run(t, func(ctx context.Context) error { return srv.Run(ctx, ln) })
		n.all[ip] = ln.Addr().String()
	}
	n.set(errors.New("the name server is away"))
	cfg := quickConfig()
	cfg.Listen, cfg.ReportTo = "", []string{"routers.test:9005"}
	startRelayOn(t, cfg, testHasher, n.network())
	n.set(nil, "10.1.0.1", "10.1.0.2")
	fed["10.1.0.1"].awaitExact(t)
	fed["10.1.0.2"].awaitExact(t)
	if st := fed["10.1.0.3"].status(); st.Trust == kvindex.TrustExact {
		t.Errorf("the third was reported to: %+v", st)
	}
	n.set(nil, "10.1.0.2", "10.1.0.3")
	fed["10.1.0.3"].awaitExact(t)
	fed["10.1.0.1"].await(t, "left", func(st events.FeedStatus) bool {
		return st.Err != nil && strings.Contains(st.Err.Error(), errNoReports.Error())
	})
	n.set(errors.New("the name server is away"))
	for _, ip := range []string{"10.1.0.2", "10.1.0.3"} {
		f := fed[ip]
		for range 10 { // heartbeats
			select {
			case <-f.seen:
			default:
			}
			<-f.seen
		}
		f.awaitExact(t)
	}
}

// A router that single look-ups do not lead to is still reported to, one that
// three in a row miss is not; and none is reported to at addresses of two kinds.
func TestRelay_FollowsWhatLookUpsMiss(t *testing.T) {
	r := &Relay{log: slog.New(slog.DiscardHandler)}
	ended, stop := context.WithCancel(t.Context())
	stop()
	routers := map[string]*reportee{}
	var wg sync.WaitGroup
	defer wg.Wait()
	const a, b, c, six, name = "10.1.0.1:9005", "10.1.0.2:9005", "10.1.0.3:9005", "[fd00::1]:9005", "routers.test:9005"
	for i, step := range []struct{ all, want []string }{
		{[]string{a, b}, []string{a, b}},
		{[]string{b}, []string{a, b}},
		{[]string{b, c}, []string{a, b, c}},
		{[]string{a, c}, []string{a, b, c}}, // a was missed twice
		{[]string{b, c}, []string{a, b, c}},
		{[]string{b, c}, []string{a, b, c}},
		{[]string{b, c}, []string{b, c}},
		{[]string{six}, []string{six}},
		{[]string{name}, []string{name}},
		{[]string{a, b}, []string{a, b}},
	} {
		r.follow(ended, &wg, &feed{}, name, routers, step.all)
		if got := slices.Sorted(maps.Keys(routers)); !slices.Equal(got, step.want) {
			t.Fatalf("look-up %d, of %v: %v, want %v", i, step.all, got, step.want)
		}
	}
	many := make([]string, maxRouters)
	for i := range many {
		many[i] = fmt.Sprintf("10.2.0.%d:9005", i)
	}
	if r.follow(ended, &wg, &feed{}, name, routers, many); len(routers) != maxRouters || routers[a] == nil {
		t.Errorf("%d routers, want %d, those that may be there still among them", len(routers), maxRouters)
	}
}

// That there are too many routers is said when that changes.
func TestRelay_BoundsRouters(t *testing.T) {
	var logged bytes.Buffer
	r := &Relay{log: slog.New(slog.NewTextHandler(&logged, nil))}
	cut := 0
	for i, step := range []struct{ n, said int }{{3, 0}, {maxRouters + 5, 1}, {maxRouters + 5, 1}, {maxRouters + 6, 2}, {maxRouters, 2}, {maxRouters + 6, 3}} {
		var got []string
		got, cut = r.bound(make([]string, step.n), "routers.test:9005", cut)
		if said := strings.Count(logged.String(), "more routers"); said != step.said || len(got) != min(step.n, maxRouters) {
			t.Errorf("look-up %d: %d routers, said %d times, want %d", i, len(got), said, step.said)
		}
	}
}

// A router is reported to once, whatever families its addresses are of and in
// whatever order they come, and a name without an address is no success.
func TestRelay_LookUp(t *testing.T) {
	for _, tt := range []struct {
		name string
		ips  []string
		want []string // nil: an error
	}{
		{"none", nil, nil},
		{"one", []string{"10.1.0.1"}, []string{"10.1.0.1:9005"}},
		{"one of both families", []string{"::1", "127.0.0.1"}, []string{"routers.test:9005"}},
		{"two", []string{"10.1.0.2", "10.1.0.1", "10.1.0.2"}, []string{"10.1.0.1:9005", "10.1.0.2:9005"}},
		{"two of both families", []string{"fd00::1", "10.1.0.1", "fd00::2", "10.1.0.2"}, []string{"[fd00::1]:9005", "[fd00::2]:9005"}},
	} {
		r, err := New(quickConfig(), testHasher, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), nil, Network{
			Lookup: func(context.Context, string) ([]string, error) { return tt.ips, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.lookUp(t.Context(), "routers.test:9005")
		if !slices.Equal(got, tt.want) || (err == nil) != (tt.want != nil) {
			t.Errorf("%s: %v, error %v; want %v", tt.name, got, err, tt.want)
		}
	}
}
