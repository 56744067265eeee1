package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/engine/server"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
)

func TestWarmFile(t *testing.T) {
	var logged bytes.Buffer
	f := &warmFile{path: filepath.Join(t.TempDir(), "snapshot"), seed: 7, log: slog.New(slog.NewTextHandler(&logged, nil))}
	now := time.Unix(1000, 0)
	if got := f.read(now); got != nil {
		t.Errorf("%d publishers in no file", len(got))
	}
	want := []events.Saved{{Address: "10.0.0.1:8000", Model: "m", Next: 5, Last: [32]byte{1}, OtherGroups: []uint8{3}, Roots: []kvindex.BlockHash{9}, State: kvindex.Export{
		Groups: []uint8{0}, Blocks: []kvindex.ExportedBlock{{Block: 1, Parent: 9, Root: true, Name: 4, Named: true, Held: 1}},
	}}}
	want[0].Sizes[0] = map[uint8]int{0: 16}
	if err := f.write(now, want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, f.read(now.Add(time.Minute)), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("(-written +read):\n%s", d)
	}
	if err := f.write(now.Add(time.Hour), nil); err != nil {
		t.Fatal(err)
	}
	if got := f.read(now.Add(time.Minute)); len(got) != 1 {
		t.Errorf("a router that knew nothing left a file of %d publishers, want the one from before", len(got))
	}
	if c := warmCondition(f, false, events.WarmStart{Restored: 1}); c.Ready || !strings.Contains(c.Detail, "1m0s ago") {
		t.Errorf("%+v: ready before anything is proven, or without its age", c)
	}
	if c := warmCondition(f, false, events.WarmStart{Restored: 1, Reset: 1}); !c.Ready || strings.Contains(c.Detail, "other routers") {
		t.Errorf("%+v: not ready, or of routers that nobody asked", c)
	}
	if c := warmCondition(nil, true, events.WarmStart{Asked: 5, Asking: 2, FromPeers: 3, Restored: 3, Resumed: 3}); c.Ready ||
		!strings.Contains(c.Detail, "asked for 5 event streams, 2 of them still, and 3 taken") {
		t.Errorf("%+v: ready while others are asked, or without how far that is", c)
	}
	if c := warmCondition(nil, true, events.WarmStart{Asked: 5, FromPeers: 3, Restored: 3, Resumed: 3}); !c.Ready {
		t.Errorf("%+v: not ready although nothing more will come", c)
	}
	b, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(){
		"index.seed_file": func() { f.seed++ },
		"damaged":         func() { b[len(b)-1]++ },
		"was not written": func() { b = b[:20] },
	} {
		logged.Reset()
		was := f.seed
		spoil()
		if err := os.WriteFile(f.path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := f.read(now); got != nil || !strings.Contains(logged.String(), name) && !strings.Contains(logged.String(), "damaged") {
			t.Errorf("%s: %d publishers, log %s", name, len(got), logged.String())
		}
		f.seed = was
	}
	if files, _ := filepath.Glob(f.path + ".*"); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// The condition of the warm start counts until the router has been ready, and
// not before all other conditions hold as well.
func TestRouter_WarmStartCountsOnlyBeforeReady(t *testing.T) {
	r := &router{}
	ok, not := condition{Name: "events", Ready: true}, condition{Name: "events"}
	for i, step := range []struct {
		events condition
		warm   events.WarmStart
		want   bool
	}{
		{not, events.WarmStart{}, true}, // nothing is listed yet
		{ok, events.WarmStart{Asked: 2, Asking: 1}, false},
		{ok, events.WarmStart{Asked: 2, FromPeers: 1, Restored: 1}, false},
		{ok, events.WarmStart{Asked: 2, FromPeers: 1, Restored: 1, Resumed: 1}, true},
		{ok, events.WarmStart{Asked: 3, Asking: 1, FromPeers: 1, Restored: 1, Resumed: 1}, true}, // another engine comes
		{ok, events.WarmStart{Asked: 3, FromPeers: 2, Restored: 2, Resumed: 1}, true},            // and does not answer
	} {
		all := r.addWarm([]condition{step.events}, warmCondition(nil, true, step.warm))
		if len(all) != 2 || all[0] != step.events || all[1].Ready != step.want {
			t.Errorf("step %d: %+v, want ready %t", i, all, step.want)
		}
	}
}

// The command itself: one router follows an engine that keeps two batches, and
// another one, which is told of the first, is exact.
func TestWarmStart_FromAnotherRouter(t *testing.T) {
	e, err := server.New(server.Config{
		Models: []string{"m"}, Events: "tcp://127.0.0.1:0", Replay: "tcp://127.0.0.1:0", BufferSteps: 2, TimeScale: 1e-5,
		Engine: engine.Config{Blocks: 64, BlockSize: 4, MaxSeqs: 4},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	started(t, e.Run)
	<-e.Ready()
	peers := freeAddress(t)
	first := startServe(t, e, "listen: \""+peers+"\"")
	first.await(t, `warmpath_events_publisher_trust{endpoint="e",rank="0"} 3`)
	for i := range 8 {
		prompt := fmt.Sprintf(`{"model": "m", "prompt": [%d,2,3,4,5,6,7,8,9], "max_tokens": 1}`, i)
		resp, err := http.Post("http://"+e.Addr()+"/v1/completions", "application/json", strings.NewReader(prompt))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	const held = `warmpath_kvindex_publisher_held_blocks{endpoint="e",rank="0",tier="device"} 16`
	first.await(t, held)
	second := startServe(t, e, "peers: [\""+peers+"\"]")
	for _, line := range []string{
		`warmpath_events_publisher_trust{endpoint="e",rank="0"} 3`, held, `warmpath_relay_peers_total{result="answered"} 1`,
		`warmpath_relay_peer_publishers_total{result="taken"} 1`, `warmpath_events_warm_publishers_total{result="resumed"} 1`,
	} {
		second.await(t, line)
	}
	if got := second.get(t, "/readyz"); !strings.Contains(got, "asked for 1 event streams, 0 of them still, and 1 taken") {
		t.Errorf("/readyz says:\n%s", got)
	}
	first.await(t, `warmpath_relay_told_publishers_total{result="told"} 1`)
}

// served is a router that runs, by the address of its admin server.
type served string

// startServe runs warmpath serve with an engine until the test ends.
func startServe(t *testing.T, e *server.Server, cachestate string) served {
	t.Helper()
	admin := freeAddress(t)
	file := filepath.Join(t.TempDir(), "warmpath.yaml")
	text := fmt.Sprintf("admin: {listen: %q}\nextproc: {listen: %q, drain_delay: 0s}\nindex: {seed_file: %s}\ncachestate: {%s}\npool: {static: {endpoints: [{name: e, address: %q, models: [m], events: %q, replay: %q}]}}\n",
		admin, freeAddress(t), writeSeed(t), cachestate, e.Addr(), e.EventsEndpoint(), e.ReplayEndpoint())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	started(t, func(ctx context.Context) error {
		var stderr bytes.Buffer
		if code := dispatch(ctx, process{args: []string{"serve", "--config", file}, stdout: io.Discard, stderr: &stderr}); code != exitOK {
			return fmt.Errorf("exit code %d:\n%s", code, stderr.String())
		}
		return nil
	})
	return served(admin)
}

// freeAddress returns an address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// get returns a page of the admin server, empty while there is none.
func (s served) get(t *testing.T, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + string(s) + path)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// await waits until the metrics have a line.
func (s served) await(t *testing.T, line string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		got := s.get(t, "/metrics")
		if strings.Contains(got, line+"\n") {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			var like []string
			name, _, _ := strings.Cut(line, "{")
			for l := range strings.Lines(got) {
				if strings.HasPrefix(l, name) {
					like = append(like, l)
				}
			}
			t.Fatalf("no %s in:\n%s", line, strings.Join(like, ""))
		}
	}
}
