package micro

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warmpath/warmpath/benchmarks/indexops"
	"github.com/warmpath/warmpath/kvindex"
)

// matchRounds is how often a pass asks every query.
const matchRounds = 3

// errWrong is returned by micro where an index gave a wrong answer.
var errWrong = errors.New("wrong answers")

// session is the state of one micro command.
type session struct {
	file  *indexops.File
	feed  *feed
	bg    *background
	chain []kvindex.BlockHash
	// contents is the query at hand, asked for as content hashes.
	contents []kvindex.ContentHash
	times    []float64 // µs of one class in one round
	progress io.Writer
}

// lane is one index's figures over all passes.
type lane struct {
	name  string
	build func(private bool) (contender, error)
	// samples of every figure, one a pass; a figure of a class is keyed
	// figure/class.
	samples                                 map[string][]float64
	queries, wrong, overCredit, underCredit int
}

func (l *lane) note(figure string, v float64) { l.samples[figure] = append(l.samples[figure], v) }

// check compares the last match with the file's answer.
func (l *lane) check(c contender, q indexops.Query) {
	got := c.answer()
	l.queries++
	bad := false
	for pod := range got {
		switch want := q.Depth(pod); {
		case int(got[pod]) > want:
			l.overCredit++
			bad = true
		case int(got[pod]) < want:
			l.underCredit++
			bad = true
		}
	}
	if bad {
		l.wrong++
	}
}

// Run is the micro command.
func Run(ctx context.Context, args []string, out *os.File) error {
	return run(ctx, args, out, os.Stderr)
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	fs := flag.NewFlagSet("micro", flag.ContinueOnError)
	path := fs.String("ops", "", "op stream to play (see generate)")
	passes := fs.Int("passes", 5, "passes; figures are minima over them, p99 medians")
	asJSON := fs.Bool("json", false, "print JSON")
	only := fs.String("only", "", "run only this index (warmpath or naive); no ratios then")
	scale := fs.Bool("scale", false, "also run the lanes of 1,000 endpoints")
	quick := fs.Bool("quick", false, "leave out the one-block, private-name and two-thread lanes")
	streams := fs.Bool("events", false, "measure the event streams instead, from frames to matches; needs no --ops")
	profile := fs.String("cpuprofile", "", "write a CPU profile of the whole run here")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return fmt.Errorf("profile: %w", err)
		}
		defer pprof.StopCPUProfile()
	}
	if *streams {
		return runEvents(ctx, *passes, out)
	}
	if *path == "" {
		return errors.New("--ops: no file given; make one with `go run ./benchmarks ops --out FILE`")
	}
	if *passes < 1 {
		return fmt.Errorf("--passes: %d is less than 1", *passes)
	}
	sum, err := checksum(*path)
	if err != nil {
		return err
	}
	file, err := indexops.Open(*path)
	if err != nil {
		return err
	}
	defer file.Close()
	r := &session{file: file, feed: newFeed(), progress: progress, times: make([]float64, 0, 1<<16)}
	if !*quick {
		if r.bg, err = newBackground(file, 20_000); err != nil {
			return err
		}
	}
	lanes := []*lane{
		{name: "warmpath", build: newWarmpath, samples: map[string][]float64{}},
		{name: "naive", build: newNaive, samples: map[string][]float64{}},
	}
	if *only != "" {
		lanes = slices.DeleteFunc(lanes, func(l *lane) bool { return l.name != *only })
	}
	for pass := range *passes {
		for i := range lanes {
			if err := ctx.Err(); err != nil {
				return err
			}
			l := lanes[(i+pass)%len(lanes)] // neither is always first
			if err := r.pass(l, pass); err != nil {
				return fmt.Errorf("%s pass %d: %w", l.name, pass, err)
			}
			fmt.Fprintf(progress, "pass %d %-8s store %.0f churn %.0f remove %.0f ns, match 512 %.2f us, %d wrong\n", pass, l.name,
				last(l, "store_ns_per_block"), last(l, "churn_store_ns_per_block"), last(l, "remove_ns_per_block"), last(l, "match_p50_us/512"), l.wrong)
		}
	}
	rep := newReport(sum, file, lanes)
	if *scale {
		if rep.Scale, err = scaleLanes(progress); err != nil {
			return err
		}
	}
	if *asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(rep)
	} else {
		err = rep.text(out, lanes)
	}
	for _, l := range lanes {
		if l.wrong > 0 {
			err = errors.Join(err, fmt.Errorf("%s: %w: %d of %d queries", l.name, errWrong, l.wrong, l.queries))
		}
	}
	return err
}

func last(l *lane, figure string) float64 {
	if s := l.samples[figure]; len(s) > 0 {
		return s[len(s)-1]
	}
	return 0
}

func checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("checksum %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// pass plays the whole stream once against a new index. Everything but the
// two-thread lane runs on one processor, so that the collector's work is paid
// in the figures.
func (r *session) pass(l *lane, pass int) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	if err := r.stream(l, "", false, r.bg != nil); err != nil {
		return err
	}
	if r.bg == nil {
		return nil
	}
	c, err := l.build(false)
	if err != nil {
		return err
	}
	r.feed.single = true
	got := r.feed.play(c, r.file.Ops(indexops.Load), nil)
	r.feed.single = false
	l.note("store_single_ns_per_block", perBlock(got.storeTime, got.stored))
	c = nil
	if pass == 0 {
		return r.stream(l, "private_", true, false)
	}
	return nil
}

// stream plays load, churn, queries, holes and hole queries, and notes every
// figure under its name behind prefix.
func (r *session) stream(l *lane, prefix string, private, beside bool) error {
	r.feed.private = private
	defer func() { r.feed.private = false }()
	before, err := settledAnon()
	if err != nil {
		return err
	}
	c, err := l.build(private)
	if err != nil {
		return err
	}
	peak := before
	chunks := 0
	watch := func() {
		if chunks++; chunks%16 == 0 {
			if a, err := anon(); err == nil {
				peak = max(peak, a)
			}
		}
	}
	memory := func(figure string, pairs int) {
		now, e := settledAnon()
		err = errors.Join(err, e)
		l.note(prefix+figure, float64(now-before)/float64(pairs))
	}
	loaded := r.feed.play(c, r.file.Ops(indexops.Load), watch)
	l.note(prefix+"store_ns_per_block", perBlock(loaded.storeTime, loaded.stored))
	memory("bytes_per_pair_load", r.file.PairsAfterLoad())
	churned := r.feed.play(c, r.file.Ops(indexops.Churn), watch)
	l.note(prefix+"churn_store_ns_per_block", perBlock(churned.storeTime, churned.stored))
	l.note(prefix+"remove_ns_per_block", perBlock(churned.removeTime, churned.removed))
	memory("bytes_per_pair_churn", r.file.PairsAfterChurn())
	l.note(prefix+"peak_bytes_per_pair", float64(peak-before)/float64(r.file.PairsAfterChurn()))

	r.match(l, c, prefix, indexops.Queries)
	if prefix == "" {
		l.note("allocs_per_match", r.allocs(c))
	}
	if beside {
		r.beside(l, c)
		r.match(l, c, "", -1)
	}
	r.feed.playInOrder(c, r.file.Ops(indexops.Holes))
	r.match(l, c, "", indexops.HoleQueries)
	runtime.KeepAlive(c)
	return err
}

// ask hashes a query's chain outside the clock, matches it and returns µs.
func (r *session) ask(c contender, q indexops.Query) float64 {
	r.contents = r.contents[:0]
	for _, x := range q.Contents {
		r.contents = append(r.contents, kvindex.ContentHash(x))
	}
	r.chain = kvindex.AppendChain(r.chain[:0], root, r.contents)
	t := time.Now()
	c.match(r.chain)
	return float64(time.Since(t).Nanoseconds()) / 1000
}

// match asks every query of a section, checks every answer, and notes the
// percentiles per class; a section of -1 asks the queries once without
// noting times, to prove that the state is what it was.
func (r *session) match(l *lane, c contender, prefix string, s indexops.Section) {
	timed := s == indexops.Queries
	if s < 0 {
		s = indexops.Queries
	}
	if !timed {
		for q := range r.file.Queries(s) {
			r.ask(c, q)
			l.check(c, q)
		}
		return
	}
	for _, class := range []int{0, 64, 128, 256, 512} {
		for range matchRounds {
			r.times = r.times[:0]
			for q := range r.file.Queries(s) {
				if q.Class == class {
					r.times = append(r.times, r.ask(c, q))
					l.check(c, q)
				}
			}
			l.percentiles(prefix, "", class, r.times)
		}
	}
}

func (l *lane) percentiles(prefix, suffix string, class int, times []float64) {
	if len(times) == 0 || class == 128 {
		return
	}
	slices.Sort(times)
	at := "/" + strconv.Itoa(class)
	l.note(prefix+"match_p50_us"+suffix+at, times[len(times)/2])
	l.note(prefix+"match_p99_us"+suffix+at, times[len(times)*99/100])
}

// allocs returns the allocations of a match.
func (r *session) allocs(c contender) float64 {
	var before, after runtime.MemStats
	n := 0
	for q := range r.file.Queries(indexops.Queries) {
		r.ask(c, q) // warm the buffers
		runtime.ReadMemStats(&before)
		for range 100 {
			c.match(r.chain)
		}
		runtime.ReadMemStats(&after)
		if n++; n == 1 {
			continue
		}
		return float64(after.Mallocs-before.Mallocs) / 100
	}
	return 0
}

// beside runs the background writer alone and then beside a reader that asks
// the five classes in turn.
func (r *session) beside(l *lane, c contender) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	r.bg.round(c) // warm
	alone := r.bg.round(c)
	l.note("writer_ns_per_block_alone", perBlock(alone, r.bg.blocks))
	var stop atomic.Bool
	var wg sync.WaitGroup
	var took time.Duration
	rounds := 0
	wg.Add(1)
	go func() {
		defer wg.Done()
		for !stop.Load() || rounds == 0 {
			took += r.bg.round(c)
			rounds++
		}
	}()
	times := map[int][]float64{}
	for q := range r.file.Queries(indexops.Queries) {
		times[q.Class] = append(times[q.Class], r.ask(c, q))
		l.check(c, q)
	}
	stop.Store(true)
	wg.Wait()
	l.note("writer_ns_per_block_with_reader", perBlock(took/time.Duration(rounds), r.bg.blocks))
	for class, t := range times {
		l.percentiles("", "_with_writer", class, t)
	}
}

// settledAnon collects garbage, returns free memory to the system and reads
// the process's anonymous memory.
func settledAnon() (int64, error) {
	debug.FreeOSMemory()
	return anon()
}
