package discovery_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/deploy/conformance/cluster"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
)

// A warmpath process finds a thousand pods, follows the events of each, and
// reports what that takes: benchmarks/results/kubernetes.txt has the figures of
// a quiet machine.
func TestThousandPods(t *testing.T) {
	const pods, idle, updates = 1000, 10 * time.Second, 100
	c, namespace := cluster.Of(t, shared)
	w := newWorld(t, c, namespace, pods)
	w.share(func(mine []*slot, _ uint64) error {
		for _, s := range mine {
			if err := w.create(t.Context(), s, true, true); err != nil {
				return err
			}
		}
		return nil
	})
	if t.Failed() {
		return
	}
	t.Logf("%d pods, each with an engine, are there", pods)
	began := time.Now()
	p := startWarmpath(t, c, namespace)
	p.awaitReady(t)
	t.Logf("start to ready: %.2f s, %.2f s of CPU", time.Since(began).Seconds(), p.cpu(t).Seconds())
	p.checkFollowed(t, pods)
	p.awaitAll(t, pods)
	t.Logf("start to all %d endpoints ready and exact: %.2f s", pods, time.Since(began).Seconds())

	before := p.cpu(t)
	<-time.After(idle)
	t.Logf("idle: %.1f %% of a CPU; resident memory: %d MiB", 100*float64(p.cpu(t)-before)/float64(idle), p.memory(t)>>20)

	before, began = p.cpu(t), time.Now()
	s := w.slots[0]
	for i := range updates {
		s.Labels[labelNeutral] = strconv.Itoa(i)
		if err := w.pods.Label(t.Context(), s.Pod); err != nil {
			t.Fatal(err)
		}
	}
	p.awaitLabel(t, w.name(s), labelNeutral, strconv.Itoa(updates-1))
	t.Logf("%d updates of one pod, one after the other: %.2f s and %.2f s of CPU", updates, time.Since(began).Seconds(), (p.cpu(t) - before).Seconds())
}

// warmpath is a process under test.
type warmpath struct {
	*stack.Process
	admin string
}

// startWarmpath builds and starts warmpath serve, which finds
// the pods of a namespace, until the test ends.
func startWarmpath(t *testing.T, c *cluster.Cluster, namespace string) *warmpath {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "warmpath")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./cmd/warmpath")
	build.Dir = "../../.." // the product's module
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, text)
	}
	identity, err := c.ServiceAccount(t.Context(), namespace, "warmpath", readOnly())
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := cluster.WriteKubeconfig(kubeconfig, identity, namespace); err != nil {
		t.Fatal(err)
	}
	addresses, err := stack.FreeAddresses(2)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "warmpath.yaml")
	// A thousand engines share this machine with the router, so that answers are
	// late. How long is waited for one costs nothing.
	text := fmt.Sprintf("extproc: {listen: %q}\nadmin: {listen: %q}\nevents: {replay_timeout: 1m}\n"+
		"pool: {health: {timeout: 1m}, load: {timeout: 30s, stale_after: 1m}, kubernetes: {kubeconfig: %q, pod_selector: app=engine}}\n",
		addresses[0], addresses[1], kubeconfig)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := stack.StartProcess("warmpath", dir, program, []string{"serve", "--config", config, "--extproc.drain_delay=0s"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("warmpath's log ends with\n%s", p.Tail(30))
		}
		p.Stop()
	})
	return &warmpath{p, "http://" + addresses[1]}
}

// get decodes what the admin server answers, if into is not nil.
func (p *warmpath) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.admin+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: status %d", path, resp.StatusCode)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// await waits until check has nothing to say; the limit only ends a hanging
// test.
func (p *warmpath) await(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), quietLimit)
	defer cancel()
	if err := p.Wait(ctx, what, check); err != nil {
		t.Fatal(err)
	}
}

func (p *warmpath) awaitReady(t *testing.T) {
	t.Helper()
	p.await(t, "readiness", func(ctx context.Context) error { return p.get(ctx, "/readyz", nil) })
}

// checkFollowed demands that n endpoints are ready and that there is a
// connection to the events of each.
func (p *warmpath) checkFollowed(t *testing.T, n int) {
	t.Helper()
	var st stack.State
	if err := p.get(t.Context(), "/debug/state", &st); err != nil {
		t.Fatal(err)
	}
	states := map[string]int{}
	for _, e := range st.Endpoints {
		state := e.Health
		for _, p := range e.Publishers {
			state += " and " + p.Phase
		}
		states[state]++
	}
	connected := 0
	for _, p := range []events.Phase{events.Live, events.Replaying, events.Verifying, events.Gap} {
		connected += states["ready and "+p.String()]
	}
	if connected != n {
		t.Errorf("endpoints when the router says that it is ready: %v, want %d that are ready and connected", states, n)
	}
}

// awaitAll waits until n endpoints are ready and their events are followed.
func (p *warmpath) awaitAll(t *testing.T, n int) {
	t.Helper()
	p.await(t, "exact state of all endpoints", func(ctx context.Context) error {
		var st stack.State
		if err := p.get(ctx, "/debug/state", &st); err != nil {
			return err
		}
		exact := 0
		for _, e := range st.Endpoints {
			if e.Health == "ready" && len(e.Publishers) == 1 && e.Publishers[0].Trust == kvindex.TrustExact.String() {
				exact++
			}
		}
		if exact != n || len(st.Endpoints) != n {
			return fmt.Errorf("%d endpoints of which %d are ready and exact", len(st.Endpoints), exact)
		}
		return nil
	})
}

func (p *warmpath) awaitLabel(t *testing.T, endpoint, label, value string) {
	t.Helper()
	p.await(t, "the label", func(ctx context.Context) error {
		var st struct {
			Endpoints []struct {
				Name   string            `json:"name"`
				Labels map[string]string `json:"labels"`
			} `json:"endpoints"`
		}
		if err := p.get(ctx, "/debug/state", &st); err != nil {
			return err
		}
		for _, e := range st.Endpoints {
			if e.Name == endpoint && e.Labels[label] == value {
				return nil
			}
		}
		return fmt.Errorf("%s has not the label %s=%s", endpoint, label, value)
	})
}

// tick is the unit of /proc/PID/stat on Linux, for every architecture that Go
// runs on.
const tick = 10 * time.Millisecond

// cpu returns the CPU time that the process has used.
func (p *warmpath) cpu(t *testing.T) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	// utime and stime are the 14th and 15th field; the 2nd is the name, in
	// parentheses (proc_pid_stat(5)).
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick
}

// memory returns the process's resident memory in bytes.
func (p *warmpath) memory(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		t.Fatal("no VmRSS in /proc/PID/status")
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
