package drive

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/warmpath/warmpath/benchmarks/origin"
)

// commandName is the name that this package's command has in the program, by
// which the program starts itself as a server.
const commandName = "drive"

// Run is the drive command. It prints its report to out, also what there is of
// it when ctx ends.
func Run(ctx context.Context, args []string, out *os.File) error {
	if len(args) == 1 && args[0] == serverCommand {
		return serve(ctx, os.Stdin, out)
	}
	o, err := parse(args, os.Stderr)
	if err != nil {
		return err
	}
	d := &driver{options: o, progress: newProgress(os.Stderr)}
	env := origin.Now(ctx, append([]string{"go run ./benchmarks drive"}, args...)...)
	results, err := d.measure(ctx)
	if len(results) == 0 && err != nil {
		return err
	}
	if o.json {
		err = errors.Join(err, writeJSON(out, env, o, results))
	} else {
		writeTable(out, env, o, results)
	}
	if o.save != "" {
		err = errors.Join(err, save(o.save, env, o, results))
	}
	return errors.Join(err, failures(results))
}

// failures is an error if a request failed: a lane that fails measures
// something else.
func failures(results []result) error {
	var errs []error
	for _, r := range results {
		if r.Failures > 0 {
			errs = append(errs, fmt.Errorf("lane %s, %d endpoints, %s body: %d of %d requests failed, first: %s",
				r.Name, r.Endpoints, size(r.BodyBytes), r.Failures, r.Requests, r.FirstFailure))
		}
	}
	return errors.Join(errs...)
}

// Bounds of the flags.
const (
	maxBody        = 16 << 20
	maxEndpoints   = 4096
	maxChunks      = 10_000
	maxRequests    = 1_000_000
	maxSeconds     = 600
	maxConcurrency = 1024
)

func parse(args []string, errOut io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(commandName, flag.ContinueOnError)
	fs.SetOutput(errOut)
	fs.Usage = func() {
		fmt.Fprintf(errOut, "usage: benchmarks drive [flags]\n\nLoads the request path and measures what a request costs the router.\n\nLanes:\n%s\nFlags:\n", list(lanes()))
		fs.PrintDefaults()
	}
	names := fs.String("lanes", "*", "comma-separated `names` or patterns of lanes; null is always one of them")
	bodies := fs.String("bodies", "1K,10K,100K,1M", "comma-separated `sizes` of request bodies, K and M are 2^10 and 2^20 bytes")
	endpoints := fs.String("endpoints", "10,1000", "comma-separated `numbers` of endpoints; those after the first are driven at the first body size only")
	chunks := fs.String("chunks", "0,100", "comma-separated `numbers` of pieces of an answer; those after the first are driven at the first body size only")
	fs.IntVar(&o.requests, "requests", 0, "`number` of requests of each cell, in place of --seconds")
	seconds := fs.Float64("seconds", 3, "`time` for each cell, in seconds")
	fs.DurationVar(&o.slice, "slice", 100*time.Millisecond, "how long a cell is driven before it is the next one's turn")
	fs.IntVar(&o.concurrency, "concurrency", 16, "`number` of requests at a time")
	fs.Uint64Var(&o.seed, "seed", 1, "of the prompts and of all random choices")
	fs.StringVar(&o.envoy, "envoy", "", "send requests through this Envoy `program`")
	fs.StringVar(&o.profile, "profile", "", "write processor and allocation profiles of the servers to this `directory`; costs some processor time itself")
	fs.StringVar(&o.save, "save", "", "also write the report to `PREFIX`.txt and PREFIX.json")
	fs.BoolVar(&o.json, "json", false, "print JSON in place of a table")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	var errs []error
	keep := func(err error) { errs = append(errs, err) }
	var err error
	o.lanes, err = selectLanes(*names, o.envoy != "")
	keep(err)
	o.bodies, err = numbers("bodies", *bodies, minBody, maxBody)
	keep(err)
	o.endpoints, err = numbers("endpoints", *endpoints, 1, maxEndpoints)
	keep(err)
	o.chunks, err = numbers("chunks", *chunks, 0, maxChunks)
	keep(err)
	o.seconds = time.Duration(*seconds * float64(time.Second))
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	switch {
	case given["requests"] && given["seconds"]:
		keep(errors.New("--requests and --seconds exclude each other; use one"))
	case given["requests"] && (o.requests < 1 || o.requests > maxRequests):
		keep(fmt.Errorf("--requests: %d is out of range; use 1 to %d", o.requests, maxRequests))
	case !(*seconds > 0 && *seconds <= maxSeconds): // also not a number
		keep(fmt.Errorf("--seconds: %v is out of range; use more than 0, up to %d", *seconds, maxSeconds))
	}
	if o.slice < 10*time.Millisecond || o.slice > 10*time.Second {
		keep(fmt.Errorf("--slice: %s is out of range; use 10ms to 10s", o.slice))
	}
	if o.concurrency < 1 || o.concurrency > maxConcurrency {
		keep(fmt.Errorf("--concurrency: %d is out of range; use 1 to %d", o.concurrency, maxConcurrency))
	}
	if o.save != "" {
		if st, err := os.Stat(filepath.Dir(o.save)); err != nil {
			keep(fmt.Errorf("--save: %w; make the directory first", err))
		} else if !st.IsDir() {
			keep(fmt.Errorf("--save: %s is not a directory", filepath.Dir(o.save)))
		}
	}
	if o.envoy != "" {
		if o.envoy, err = exec.LookPath(o.envoy); err != nil {
			keep(fmt.Errorf("--envoy: %w", err))
		}
	}
	return o, errors.Join(errs...)
}

// numbers reads a list of different numbers, with K and M.
func numbers(name, list string, least, most int) ([]int, error) {
	var all []int
	seen := map[int]bool{}
	for text := range strings.SplitSeq(list, ",") {
		text = strings.TrimSpace(text)
		digits, shift := text, 0
		switch {
		case strings.HasSuffix(text, "K"):
			digits, shift = text[:len(text)-1], 10
		case strings.HasSuffix(text, "M"):
			digits, shift = text[:len(text)-1], 20
		}
		n, err := strconv.ParseInt(digits, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("--%s: %q is not a number; use for example 1000, 1K or 1M", name, text)
		}
		if n <<= shift; n < int64(least) || n > int64(most) {
			return nil, fmt.Errorf("--%s: %s is out of range; use %d to %d", name, text, least, most)
		}
		if seen[int(n)] {
			return nil, fmt.Errorf("--%s: %s is there twice; remove one", name, text)
		}
		seen[int(n)] = true
		all = append(all, int(n))
	}
	return all, nil
}
