package idle

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"
)

// Most endpoints that have a loopback address of their own here.
const maxEndpoints = 4096

// goal is how many cores an idle router with 1,000 endpoints may use.
const goal = 0.1

// Result is what was measured.
type Result struct {
	Command   string  `json:"command"`
	Endpoints int     `json:"endpoints"`
	Seconds   float64 `json:"seconds"`
	// Cores is how many the router used.
	Cores float64 `json:"cores"`
	// ReadsPerSecond and ProbesPerSecond are requests for metrics and for health
	// that the engines answered, BytesPerRead the mean length of the metrics.
	ReadsPerSecond  float64 `json:"reads_per_second"`
	ProbesPerSecond float64 `json:"probes_per_second"`
	BytesPerRead    float64 `json:"bytes_per_read"`
	MicrosPerAnswer float64 `json:"cpu_us_per_answer"`
	// OldestSeconds is the longest time that an endpoint's metrics were not read.
	OldestSeconds float64 `json:"oldest_seconds"`
	// ResidentMB is the router's resident memory in 10^6 bytes.
	ResidentMB float64 `json:"resident_mb"`
}

type options struct {
	warmpath, profile string
	endpoints         int
	seconds, warm     time.Duration
	filter, asJSON    bool
	dir               string
}

// Run is the idle command.
func Run(ctx context.Context, args []string, out *os.File) (err error) {
	o := options{}
	fs := flag.NewFlagSet("idle", flag.ContinueOnError)
	fs.StringVar(&o.warmpath, "warmpath", "bin/warmpath", "the warmpath `program`")
	fs.StringVar(&o.profile, "profile", "", "write a processor profile of the router to this `file`; costs some time itself")
	fs.IntVar(&o.endpoints, "endpoints", 1000, "`number` of endpoints")
	fs.DurationVar(&o.seconds, "for", 20*time.Second, "how long to measure")
	fs.DurationVar(&o.warm, "warm", 10*time.Second, "how long to wait before that, for connections and first answers")
	fs.BoolVar(&o.filter, "filter", true, "the engines know the name[] parameter, as those with the Prometheus client for Python do")
	fs.BoolVar(&o.asJSON, "json", false, "print JSON")
	if err := fs.Parse(args); err != nil {
		return err
	}
	switch {
	case fs.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case o.endpoints < 1 || o.endpoints > maxEndpoints:
		return fmt.Errorf("--endpoints: %d is out of range; use 1 to %d", o.endpoints, maxEndpoints)
	case o.seconds < time.Second || o.warm < 0:
		return errors.New("--for must be 1s or more, --warm not negative")
	}
	o.dir, err = os.MkdirTemp("", "warmpath-idle-")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(o.dir)
		}
	}()
	r, err := o.measure(ctx)
	if err != nil {
		return err
	}
	r.Command = "go run ./benchmarks idle " + strings.Join(args, " ")
	if o.asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	return r.print(out)
}

func (r Result) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "endpoints\t%d\n", r.Endpoints)
	fmt.Fprintf(w, "router\t%.3f cores (goal %.1f)\n", r.Cores, goal)
	fmt.Fprintf(w, "reads of metrics\t%.0f a second, of %.0f bytes\n", r.ReadsPerSecond, r.BytesPerRead)
	fmt.Fprintf(w, "health probes\t%.0f a second\n", r.ProbesPerSecond)
	fmt.Fprintf(w, "cost of an answer\t%.0f µs\n", r.MicrosPerAnswer)
	fmt.Fprintf(w, "longest time without a read\t%.2f s\n", r.OldestSeconds)
	fmt.Fprintf(w, "resident\t%.0f MB\n", r.ResidentMB)
	return w.Flush()
}

// fleet is the engines.
type fleet struct {
	full, filtered []byte
	filter         bool
	reads, probes  atomic.Int64
	bytes          atomic.Int64

	mu sync.Mutex
	// last is when each address was read, longest the longest time between two
	// reads of one since watch began.
	last    map[string]time.Time
	longest time.Duration
}

func (f *fleet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/health":
		f.probes.Add(1)
	case "/v1/models":
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"m","object":"model","parent":null}]}`)
	case "/metrics":
		text := f.full
		if f.filter && strings.Contains(r.URL.RawQuery, "name") {
			f.mu.Lock()
			if f.filtered == nil {
				f.filtered = []byte(vllmMetrics().text(r.URL.Query()))
			}
			text = f.filtered
			f.mu.Unlock()
		}
		f.reads.Add(1)
		f.bytes.Add(int64(len(text)))
		now := time.Now()
		f.mu.Lock()
		if before := f.last[r.Host]; !before.IsZero() {
			f.longest = max(f.longest, now.Sub(before))
		}
		f.last[r.Host] = now
		f.mu.Unlock()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(text)
	default:
		http.NotFound(w, r)
	}
}

// begin forgets what came before.
func (f *fleet) begin() (reads, probes, bytes int64) {
	f.mu.Lock()
	f.longest = 0
	f.mu.Unlock()
	return f.reads.Load(), f.probes.Load(), f.bytes.Load()
}

func (o options) measure(ctx context.Context) (Result, error) {
	r := Result{Endpoints: o.endpoints}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		return r, err
	}
	f := &fleet{full: []byte(vllmMetrics().text(nil)), filter: o.filter, last: map[string]time.Time{}}
	server := &http.Server{Handler: f}
	go func() { _ = server.Serve(l) }()
	defer server.Close()

	admin, err := freeAddress()
	if err != nil {
		return r, err
	}
	stop, err := o.start(ctx, l.Addr().(*net.TCPAddr).Port, admin)
	if err != nil {
		return r, err
	}
	defer stop()
	if err := o.sleep(ctx, o.warm); err != nil {
		return r, err
	}
	reads, probes, bytes := f.begin()
	before, err := processMetrics(ctx, admin)
	if err != nil {
		return r, err
	}
	began := time.Now()
	if o.profile == "" {
		err = o.sleep(ctx, o.seconds)
	} else {
		err = o.fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", admin, int(o.seconds.Seconds())))
	}
	if err != nil {
		return r, err
	}
	after, err := processMetrics(ctx, admin)
	if err != nil {
		return r, err
	}
	r.Seconds = time.Since(began).Seconds()
	cpu := after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
	r.Cores, r.ResidentMB = cpu/r.Seconds, after["process_resident_memory_bytes"]/1e6
	n, m := float64(f.reads.Load()-reads), float64(f.probes.Load()-probes)
	r.ReadsPerSecond, r.ProbesPerSecond = n/r.Seconds, m/r.Seconds
	if n > 0 {
		r.BytesPerRead = float64(f.bytes.Load()-bytes) / n
		r.MicrosPerAnswer = cpu / (n + m) * 1e6
	}
	f.mu.Lock()
	r.OldestSeconds = f.longest.Seconds()
	read := len(f.last)
	f.mu.Unlock()
	if read != o.endpoints {
		return r, fmt.Errorf("%d of %d endpoints were read; is 127.0.0.0/8 local here?", read, o.endpoints)
	}
	return r, nil
}

func (o options) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// start runs the router and returns what stops it.
func (o options) start(ctx context.Context, port int, admin string) (func(), error) {
	var c strings.Builder
	fmt.Fprintf(&c, "admin: {listen: %q}\nextproc: {listen: \"127.0.0.1:0\"}\npool:\n  static:\n    endpoints:\n", admin)
	for i := range o.endpoints {
		fmt.Fprintf(&c, "    - {name: engine-%d, address: \"127.%d.%d.%d:%d\"}\n", i, 1+i>>16, i>>8&255, i&255, port)
	}
	path := filepath.Join(o.dir, "warmpath.yaml")
	if err := os.WriteFile(path, []byte(c.String()), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(o.dir, "warmpath.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(o.warmpath, "serve", "--config", path)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this process, which stops it
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w; build it with make build", o.warmpath, err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(15 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	}
	for range 100 {
		if _, err = processMetrics(ctx, admin); err == nil {
			return stop, nil
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("%s ended:\n%s", o.warmpath, text)
		case <-ctx.Done():
			stop()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	stop()
	return nil, fmt.Errorf("%s does not answer: %w", o.warmpath, err)
}

func (o options) fetch(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(o.profile)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}

// processMetrics returns the metrics of a process that have no labels.
func processMetrics(ctx context.Context, admin string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	values := map[string]float64{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				values[name] = v
			}
		}
	}
	if _, ok := values["process_cpu_seconds_total"]; !ok {
		return nil, fmt.Errorf("GET %s: no process_cpu_seconds_total", req.URL)
	}
	return values, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
