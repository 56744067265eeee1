package workload

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// Run is the command that writes a workload and says what it is like.
func Run(_ context.Context, args []string, out *os.File) error {
	fs := flag.NewFlagSet("gen", flag.ContinueOnError)
	list := fs.Bool("list", false, "list the workloads")
	name := fs.String("workload", "chat", "the workload, see --list")
	path := fs.String("out", "", "file to write, compressed if its name ends in .gz; - is standard output, empty is none")
	trace := fs.String("trace", "", "describe this trace instead of making a workload")
	seed := fs.Uint64("seed", 1, "seed")
	requests := fs.Int("requests", 0, "number of requests; 0 is what the workload has")
	rate := fs.Float64("rate", 0, "requests per second; 0 is what the workload has")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%q: not a flag; a workload is chosen by --workload", fs.Arg(0))
	}
	if *list {
		return printPresets(out)
	}
	if *trace != "" {
		w, err := Load(*trace)
		if err != nil {
			return err
		}
		return describe(out, w)
	}
	spec, err := Preset(*name)
	if err != nil {
		return fmt.Errorf("--workload %w", err)
	}
	if *requests != 0 {
		spec.Requests = *requests
	}
	if *rate != 0 {
		spec.Rate = *rate
	}
	w, err := spec.Generate(*seed)
	if err != nil {
		return err
	}
	switch *path {
	case "":
		return describe(out, w)
	case "-":
		return w.Write(out)
	}
	if err := w.Save(*path); err != nil {
		return err
	}
	return describe(out, w)
}

// Save writes w to a file, compressed if its name ends in .gz.
func (w *Workload) Save(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := bufio.NewWriterSize(f, 1<<16)
	var to io.Writer = buf
	if strings.HasSuffix(path, ".gz") {
		z := gzip.NewWriter(buf)
		defer func() { err = errors.Join(err, z.Close(), buf.Flush()) }()
		to = z
	} else {
		defer func() { err = errors.Join(err, buf.Flush()) }()
	}
	return w.Write(to)
}

func printPresets(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WORKLOAD\tREQUESTS\tPER SECOND\tWHAT IT IS LIKE\tFIGURES FROM")
	for _, s := range Presets() {
		fmt.Fprintf(t, "%s\t%d\t%g\t%s\t%s\n", s.Name, s.Requests, s.Rate, s.Doc, s.Source)
	}
	return t.Flush()
}

// describe prints the figures of w and its reuse curve.
func describe(out io.Writer, w *Workload) error {
	var b bytes.Buffer
	input, output, sessions, adapters := 0, 0, map[string]bool{}, map[string]bool{}
	for i := range w.Requests {
		r := &w.Requests[i]
		input += r.InputTokens
		output += r.OutputTokens
		sessions[r.Session] = true
		adapters[r.Adapter] = true
	}
	delete(sessions, "")
	delete(adapters, "")
	n := float64(len(w.Requests))
	reuse := ReuseOf(w, nil, 0)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "workload\t%s\n", w.Name)
	fmt.Fprintf(t, "sha256\t%s\n", w.SHA256)
	fmt.Fprintf(t, "requests\t%d in %v: %.2f a second\n", len(w.Requests), w.Span().Round(time.Second), n/w.Span().Seconds())
	fmt.Fprintf(t, "sessions\t%d\n", len(sessions))
	fmt.Fprintf(t, "adapters\t%d\n", len(adapters))
	fmt.Fprintf(t, "prompt\t%.0f tokens on average, %d in all\n", float64(input)/n, input)
	fmt.Fprintf(t, "answer\t%.0f tokens on average, %d in all\n", float64(output)/n, output)
	fmt.Fprintf(t, "blocks\t%d different, of %d tokens\n", reuse.Blocks, BlockTokens)
	t.Flush()
	fmt.Fprintf(&b, "\nshare of prompt tokens that one cache finds, least recently used forgotten first\n")
	t = tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "cache tokens\tshare\t\n")
	const width = 50
	for blocks := 128; ; blocks *= 2 {
		blocks = min(blocks, max(reuse.Blocks, 1))
		hit := reuse.Hit(blocks)
		fmt.Fprintf(t, "%d\t%.1f %%\t%-*s\n", blocks*BlockTokens, 100*hit, width, strings.Repeat("#", int(hit*width+0.5)))
		if blocks == max(reuse.Blocks, 1) {
			break
		}
	}
	t.Flush()
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}
