package report

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/warmpath/warmpath/benchmarks/sim"
	"github.com/warmpath/warmpath/benchmarks/workload"
)

// metric is a figure of a cell.
type metric struct {
	// name is that in results, label that for people.
	name, label string
	// more says that more of it is better, logarithmic that its range is wide.
	more, logarithmic bool
	of                func(*sim.Cell) sim.Estimate
}

func metrics() []metric {
	return []metric{
		{"mean_ttft_s", "mean TTFT, s", false, true, func(c *sim.Cell) sim.Estimate { return c.MeanTTFT }},
		{"p90_ttft_s", "p90 TTFT, s", false, true, func(c *sim.Cell) sim.Estimate { return c.P90TTFT }},
		{"tpot_s", "mean TPOT, s", false, false, func(c *sim.Cell) sim.Estimate { return c.TPOT }},
		{"token_hit", "share of prompt tokens found in cache", true, false, func(c *sim.Cell) sim.Estimate { return c.TokenHit }},
	}
}

// side is one of the results to compare.
type side struct {
	label string
	cells map[key]*sim.Cell
	order []key
}

// key is what two cells must have in common to be compared.
type key struct {
	workload, strategy string
	endpoints          int
	load               float64
	setting            string
}

func (k key) String() string {
	parts := []string{k.workload, fmt.Sprintf("%d endpoints", k.endpoints), fmt.Sprintf("load %g", k.load)}
	if k.setting != "" {
		parts = append(parts, k.setting)
	}
	if k.strategy != "" {
		parts = append(parts, k.strategy)
	}
	return strings.Join(parts, ", ")
}

// load reads FILE, or FILE:STRATEGY for the cells of one strategy, which then
// are compared with those of another.
func load(arg string) (*side, error) {
	path, strategy := arg, ""
	if _, err := os.Stat(arg); err != nil {
		if i := strings.LastIndexByte(arg, ':'); i >= 0 {
			path, strategy = arg[:i], arg[i+1:]
		}
	}
	result, err := read(path)
	if err != nil {
		return nil, err
	}
	s := &side{label: arg, cells: map[key]*sim.Cell{}}
	var strategies []string
	for i := range result.Cells {
		c := &result.Cells[i]
		strategies = append(strategies, c.Strategy)
		k := key{c.Workload, c.Strategy, c.Endpoints, c.Load, c.Setting}
		if c.Load == 0 { // it was given as a speed
			k.setting = strings.TrimPrefix(k.setting+fmt.Sprintf(", speed %g", c.Speed), ", ")
		}
		if strategy != "" {
			if c.Strategy != strategy {
				continue
			}
			k.strategy = ""
		}
		if s.cells[k] != nil {
			return nil, fmt.Errorf("%s: two cells for %v", path, k)
		}
		s.cells[k] = c
		s.order = append(s.order, k)
	}
	if len(s.cells) == 0 {
		if strategy == "" {
			return nil, fmt.Errorf("%s: no cells", path)
		}
		slices.Sort(strategies)
		strategies = slices.Compact(strategies)
		return nil, fmt.Errorf("%s: no cells of strategy %q%s; it has %s", path, strategy, workload.DidYouMean(strategy, strategies), strings.Join(strategies, ", "))
	}
	return s, nil
}

// read reads a result file.
func read(path string) (*sim.Result, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := sim.Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: not a result of sim --json: %w", path, err)
	}
	return &r, nil
}

// Compare is the command that compares results with the first of them.
func Compare(_ context.Context, args []string, out *os.File) error {
	fs := flag.NewFlagSet("compare", flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprintln(fs.Output(), "usage: compare [flags] BASE[:STRATEGY] RESULT[:STRATEGY] ...\n\nBASE and RESULT are files that sim --json wrote. Fails if a cell is worse than in BASE.")
		fs.PrintDefaults()
	}
	margin := fs.Float64("margin", sim.Margin, "`share` by which a ratio may differ from 1 and still be the same")
	name := fs.String("metric", "", "compare only this metric, for example mean_ttft_s")
	strict := fs.Bool("strict", false, "fail if a cell is too noisy, too")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() < 2 {
		return errors.New("two results are needed; use: compare BASE RESULT")
	}
	if !(*margin >= 0 && *margin < 1) {
		return fmt.Errorf("--margin %v: must be a share from 0 to 1", *margin)
	}
	chosen := metrics()
	if *name != "" {
		var names []string
		for _, m := range chosen {
			names = append(names, m.name)
		}
		if chosen = slices.DeleteFunc(chosen, func(m metric) bool { return m.name != *name }); len(chosen) == 0 {
			return fmt.Errorf("--metric %q: no such metric%s; there are %s", *name, workload.DidYouMean(*name, names), strings.Join(names, ", "))
		}
	}
	base, err := load(fs.Arg(0))
	if err != nil {
		return err
	}
	count := map[sim.Verdict]int{}
	for _, arg := range fs.Args()[1:] {
		other, err := load(arg)
		if err != nil {
			return err
		}
		if err := table(out, base, other, chosen, *margin, count); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "\n%d better, %d same, %d worse, %d too noisy (95 %% intervals, margin %g %%)\n",
		count[sim.Better], count[sim.Same], count[sim.Worse], count[sim.TooNoisy], *margin*100)
	switch {
	case count[sim.Worse] > 0:
		return fmt.Errorf("%d figures are worse than in %s", count[sim.Worse], base.label)
	case *strict && count[sim.TooNoisy] > 0:
		return fmt.Errorf("%d figures are too noisy; use more seeds", count[sim.TooNoisy])
	}
	return nil
}

// table prints one comparison and counts its verdicts.
func table(out io.Writer, base, other *side, chosen []metric, margin float64, count map[sim.Verdict]int) error {
	var both []key
	for _, k := range base.order {
		if other.cells[k] != nil {
			both = append(both, k)
		}
	}
	if len(both) == 0 {
		return fmt.Errorf("%s and %s have no cell in common: the first has %v, the second %v", base.label, other.label, base.order[0], other.order[0])
	}
	slices.SortStableFunc(both, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.workload, b.workload), cmp.Compare(a.endpoints, b.endpoints), cmp.Compare(a.setting, b.setting), cmp.Compare(a.load, b.load))
	})
	fmt.Fprintf(out, "\n%s beside %s\n", other.label, base.label)
	if n := len(base.cells) + len(other.cells) - 2*len(both); n > 0 {
		fmt.Fprintf(out, "%d cells are in only one of them and not compared\n", n)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "cell\tmetric\tbase\tresult\tratio\t95 % interval\tverdict\t")
	for _, k := range both {
		a, b := base.cells[k], other.cells[k]
		for _, m := range chosen {
			ea, eb := m.of(a), m.of(b)
			r, v := sim.Judge(ea, eb, m.more, min(a.Seeds, b.Seeds), margin)
			count[v]++
			interval := fmt.Sprintf("%.3f to %.3f", r.Low, r.High)
			if math.IsInf(r.High, 1) {
				interval = "unknown"
			}
			fmt.Fprintf(t, "%v\t%s\t%s\t%s\t%.3f\t%s\t%s\t\n", k, m.name, figure(ea), figure(eb), r.Mean, interval, v)
		}
	}
	return t.Flush()
}

// figure formats an estimate to four digits.
func figure(e sim.Estimate) string {
	if e.CI95 == 0 {
		return fmt.Sprintf("%.4g", e.Mean)
	}
	return fmt.Sprintf("%.4g ± %.2g", e.Mean, e.CI95)
}
