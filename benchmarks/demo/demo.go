// Package demo shows Warmpath at its work: three fake engines, a real Envoy and
// warmpath on this machine, one workload under three strategies, one table.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/routing"
)

const model = "demo"

// strategies are shown in this order, the one that has to win last.
var strategies = [...]string{"random", "least-request", "prefix-cache"}

// clearlyMore is how many times the share of prompt tokens served from cache
// under prefix-cache has to be that of every other strategy.
const clearlyMore = 1.2

// result is one row of the table.
type result struct {
	strategy           string
	requests, failures int
	prompt, cached     int
	ttft               []time.Duration
	firstFailure       error
}

func (r *result) add(a answer) {
	r.requests++
	if a.err != nil {
		if r.failures++; r.firstFailure == nil {
			r.firstFailure = a.err
		}
		return
	}
	r.prompt += a.prompt
	r.cached += a.cached
	r.ttft = append(r.ttft, a.ttft)
}

// share is the share of prompt tokens that were served from cache.
func (r *result) share() float64 {
	if r.prompt == 0 {
		return 0
	}
	return float64(r.cached) / float64(r.prompt)
}

// quantile returns the q-quantile of the time to the first token, by nearest
// rank.
func (r *result) quantile(q float64) time.Duration {
	if len(r.ttft) == 0 {
		return 0
	}
	slices.Sort(r.ttft)
	return r.ttft[min(len(r.ttft)-1, int(q*float64(len(r.ttft))))]
}

// Options say what the demo runs.
type Options struct {
	// Warmpath, Enginesim and Envoy are paths of the programs.
	Warmpath, Enginesim, Envoy string
	// Gateway is the path of an Envoy Gateway that runs Envoy as Manifests, a
	// folder, says. Empty: Envoy runs with the bootstrap of warmpath envoy-config.
	Gateway, Manifests string
	// Keep leaves everything running afterwards, until the context ends.
	Keep bool
	// Discover has warmpath find the engines instead of having them listed, see
	// [stack.Config]; dir is there for its files. Finale, which may be nil, is
	// called after the table.
	Discover func(ctx context.Context, dir string, engines []*stack.Engine) (pool string, err error)
	Finale   func(ctx context.Context, s *stack.Stack, out io.Writer) error
}

// Flags registers the options that are set by flags.
func (o *Options) Flags(fs *flag.FlagSet) {
	fs.StringVar(&o.Warmpath, "warmpath", "bin/warmpath", "the warmpath `program`")
	fs.StringVar(&o.Enginesim, "enginesim", "bin/enginesim", "the enginesim `program`")
	fs.StringVar(&o.Envoy, "envoy", "envoy", "the Envoy `program`")
	fs.StringVar(&o.Gateway, "envoy-gateway", "", "the Envoy Gateway `program`, to run Envoy with its configuration; empty: Envoy has the one of warmpath envoy-config")
	fs.StringVar(&o.Manifests, "manifests", "", "`folder` of the manifests that attach warmpath to it")
	fs.BoolVar(&o.Keep, "keep", false, "leave everything running afterwards, until Ctrl-C")
}

// config returns what the stack is to run, in dir.
func (o *Options) config(dir string) stack.Config {
	cfg := stack.Config{
		Engines: 3, Model: model, Dir: dir, Warmpath: o.Warmpath, Enginesim: o.Enginesim, Envoy: o.Envoy,
		Gateway: o.Gateway, Manifests: o.Manifests,
		// 700 blocks of 16 tokens: an engine can keep a third of the workload's
		// prefixes and a little more, but not all of them.
		EngineArgs: []string{"--profile", "32b", "--block-size", "16", "--blocks", "700"},
		RouterArgs: []string{"--extproc.drain_delay=0s"}, // nobody is left to notice
	}
	if o.Discover != nil {
		cfg.Discover = func(ctx context.Context, engines []*stack.Engine) (string, error) {
			return o.Discover(ctx, dir, engines)
		}
	}
	return cfg
}

// Run is the demo command.
func Run(ctx context.Context, args []string, out *os.File) error {
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	var o Options
	o.Flags(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return Show(ctx, o, out)
}

// Show shows the demo. It writes to out and returns when it has cleaned up after
// itself.
func Show(ctx context.Context, o Options, out *os.File) (err error) {
	dir, err := os.MkdirTemp("", "warmpath-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(out, "\nLogs are kept in %s\n", dir)
			return
		}
		_ = os.RemoveAll(dir)
	}()
	what := "Envoy"
	if o.Gateway != "" {
		what = "Envoy Gateway with its Envoy"
	}
	fmt.Fprintf(out, "Starting three engines, warmpath and %s …\n", what)
	began := time.Now()
	s, err := stack.Start(ctx, o.config(dir))
	defer s.Stop()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Ready after %.1f s. Envoy listens on %s, warmpath's admin is %s\n\n", time.Since(began).Seconds(), s.URL, s.Admin)

	results, err := measure(ctx, s, out)
	if err != nil {
		return err
	}
	fmt.Fprintln(out)
	table(out, results)
	if err := explain(ctx, s.Admin, out); err != nil {
		return err
	}
	if err := verdict(results); err != nil {
		return err
	}
	if o.Finale != nil {
		if err := o.Finale(ctx, s, out); err != nil {
			return err
		}
	}
	if o.Keep {
		usage(out, s)
		<-ctx.Done()
	}
	return nil
}

// measure runs the workload once under every strategy, on cold engines.
func measure(ctx context.Context, s *stack.Stack, out *os.File) ([]*result, error) {
	w := workload{
		groups: 12, conversations: 4, turns: 4, systemWords: 800, userWords: 40, maxToken: 32,
		concurrency: 9, seed: 1,
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: w.concurrency}}
	defer client.CloseIdleConnections()
	var results []*result
	for _, strategy := range strategies {
		if err := cool(ctx, client, s, w); err != nil {
			return nil, err
		}
		r := &result{strategy: strategy}
		bar := newProgress(out, strategy, w.requests())
		err := w.run(ctx, client, s.URL, model, strategy, func(a answer) {
			r.add(a)
			bar.set(r.requests, r.failures)
		})
		bar.finish()
		if err != nil {
			return nil, err
		}
		results = append(results, r)
	}
	return results, nil
}

// cool empties the caches of all engines. An engine tells of a reset with its
// next request, so each gets a short one, straight to its own address.
func cool(ctx context.Context, client *http.Client, s *stack.Stack, w workload) error {
	for _, e := range s.Engines {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.HTTP+"/reset_prefix_cache", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("POST http://%s/reset_prefix_cache: status %d", e.HTTP, resp.StatusCode)
		}
		w.maxToken = 1
		if a := w.send(ctx, client, "http://"+e.HTTP, model, "", []message{{"user", "Hello."}}); a.err != nil {
			return fmt.Errorf("first request to %s: %w", e.Name, a.err)
		}
	}
	return nil
}

func table(out io.Writer, results []*result) {
	const row = "%-14s %9s %9s %18s %10s %10s\n"
	fmt.Fprintf(out, row, "strategy", "requests", "failures", "prompt from cache", "TTFT p50", "TTFT p95")
	for _, r := range results {
		fmt.Fprintf(out, row, r.strategy, fmt.Sprint(r.requests), fmt.Sprint(r.failures),
			fmt.Sprintf("%.1f %%", 100*r.share()), millis(r.quantile(0.50)), millis(r.quantile(0.95)))
	}
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
}

// explain shows one decision of the last run in words.
func explain(ctx context.Context, admin string, out io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+"/debug/decisions", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var decisions []struct{ Strategy, Reason, Words string }
	if err := json.NewDecoder(resp.Body).Decode(&decisions); err != nil {
		return fmt.Errorf("GET %s/debug/decisions: %w", admin, err)
	}
	for _, d := range decisions {
		if d.Strategy == "prefix-cache" && d.Reason == routing.ReasonPrefix.String() {
			fmt.Fprintf(out, "\nOne decision, explained:\n  %s\n", d.Words)
			return nil
		}
	}
	return errors.New("no decision of prefix-cache was won by a cached prefix")
}

// verdict fails if something failed or prefix-cache did not clearly win.
func verdict(results []*result) error {
	best := results[len(results)-1]
	var errs []error
	for _, r := range results {
		if r.failures > 0 {
			errs = append(errs, fmt.Errorf("%s: %d of %d requests failed, first: %w", r.strategy, r.failures, r.requests, r.firstFailure))
		}
		if r != best && best.share() < clearlyMore*r.share() {
			errs = append(errs, fmt.Errorf("%s served %.1f %% of the prompt tokens from cache, %s %.1f %%: not clearly more",
				best.strategy, 100*best.share(), r.strategy, 100*r.share()))
		}
	}
	return errors.Join(errs...)
}

// usage prints how to send a request to the running stack.
func usage(out io.Writer, s *stack.Stack) {
	fmt.Fprintf(out, `
Everything keeps running until Ctrl-C. Send a request:

  curl -i %[1]s/v1/chat/completions -H 'content-type: application/json' -H 'routing-strategy: prefix-cache' \
    -d '{"model": %[2]q, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16}'

or with the OpenAI client for Python:

  from openai import OpenAI
  client = OpenAI(base_url="%[1]s/v1", api_key="none")
  print(client.chat.completions.create(model=%[2]q, max_tokens=16,
        messages=[{"role": "user", "content": "Hello!"}],
        extra_headers={"routing-strategy": "prefix-cache"}))

  warmpath: %[3]s/debug/decisions  %[3]s/debug/state  %[3]s/metrics
  Envoy:    %[4]s
  files:    %[5]s
`, s.URL, model, s.Admin, s.EnvoyAdmin, filepath.Dir(s.Config()))
}
