//go:build !race

package routing

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/warmpath/warmpath/kvindex"
)

// envUpdates has TestUpdates_Work do its work: "endpoints updates requests".
const envUpdates = "WARMPATH_TEST_UPDATES"

// TestUpdates_Work changes a label of one endpoint of many again and again, as
// an update of its pod does, and routes a request after each change. It is run
// by TestUpdates_CostRequestsNothing, which counts what is executed.
func TestUpdates_Work(t *testing.T) {
	var endpoints, updates, requests int
	if _, err := fmt.Sscan(os.Getenv(envUpdates), &endpoints, &updates, &requests); err != nil {
		t.Skip("it is run by TestUpdates_CostRequestsNothing")
	}
	// A collection would empty pools of memory that is used again.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	cfg := static(endpoints)
	w := newWorld(t, cfg, nil)
	w.router.approximate.attended.Store(true) // as by Run
	prompt := tokens(0, 64)
	for _, i := range []int{3, 7} {
		w.hold(i, kvindex.Scope{Model: "m"}, prompt)
	}
	route := func() {
		c := NewContext(context.Background(), ids("m", prompt))
		defer c.Finish()
		w.router.Route(c)
		if _, err := c.Target(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	update := func(i int) {
		cfg.Static.Endpoints[5].Labels = map[string]string{"version": strconv.Itoa(i)}
		w.pool.Set(cfg.Static.Endpoints)
	}
	for i := range 4 { // everything grows to its size
		update(-i)
		route()
	}
	var before, after runtime.MemStats
	var bytes uint64
	for i := range max(updates, requests) {
		if i < updates {
			update(i)
		}
		if i < requests {
			runtime.ReadMemStats(&before)
			route()
			runtime.ReadMemStats(&after)
			bytes += after.TotalAlloc - before.TotalAlloc
		}
	}
	fmt.Printf("bytes allocated by requests: %d\n", bytes)
}

// What a request costs after an update of one endpoint, more than it costs
// without, does not grow with the number of endpoints. Counted are executed
// statements and allocated bytes, which are the same on every machine.
func TestUpdates_CostRequestsNothing(t *testing.T) {
	const rounds = 20
	program := filepath.Join(t.TempDir(), "routing.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "-covermode=atomic", "-coverpkg="+modulePath+"/routing,"+modulePath+"/routing/pool", ".")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, text)
	}
	type work struct{ statements, bytes int64 }
	run := func(endpoints, updates, requests int) work {
		t.Helper()
		profile := filepath.Join(t.TempDir(), "profile")
		cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestUpdates_Work$", "-test.v", "-test.coverprofile="+profile)
		cmd.Env = append(os.Environ(), envUpdates+"="+fmt.Sprint(endpoints, " ", updates, " ", requests))
		text, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		var w work
		_, rest, _ := strings.Cut(string(text), "bytes allocated by requests: ")
		if _, err := fmt.Sscan(rest, &w.bytes); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		w.statements = executed(t, profile)
		return w
	}
	// extra is what a request costs more if an update came before it. What the
	// update itself costs is the pool's, which nobody waits for.
	extra := func(endpoints int) work {
		nothing, updates := run(endpoints, 0, 0), run(endpoints, rounds, 0)
		requests, both := run(endpoints, 0, rounds), run(endpoints, rounds, rounds)
		return work{
			(both.statements - updates.statements - requests.statements + nothing.statements) / rounds,
			(both.bytes - requests.bytes) / rounds,
		}
	}
	few, many := extra(10), extra(1000)
	t.Logf("an update costs the next request %d statements and %d bytes among 10 endpoints, %d and %d among 1,000", few.statements, few.bytes, many.statements, many.bytes)
	// Large fleets are decided upon in other ways than small ones, and memory that
	// is used again grows now and then: less than anything for each of 1,000.
	if many.statements > few.statements+100 {
		t.Errorf("an update of one of 1,000 endpoints costs the next request %d statements, of one of 10 %d", many.statements, few.statements)
	}
	if many.bytes > few.bytes+4096 {
		t.Errorf("an update of one of 1,000 endpoints costs the next request %d bytes, of one of 10 %d", many.bytes, few.bytes)
	}
}

const modulePath = "github.com/warmpath/warmpath"

// executed returns how many statements a coverage profile counts. Each of its
// lines is a block: file:from,to statements count.
func executed(t *testing.T, profile string) (sum int64) {
	t.Helper()
	f, err := os.Open(profile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blocks := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var statements, count int64
		var where string
		if n, _ := fmt.Sscan(lines.Text(), &where, &statements, &count); n == 3 {
			sum += statements * count
			blocks++
		}
	}
	if blocks == 0 {
		t.Fatal("the profile is empty")
	}
	return sum
}
