package sim

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Summary prints a result for people: a table for every workload, setting and
// load, the least time to first token first, and how the tested strategy is
// beside the best baseline.
func (r Result) Summary(w io.Writer) error {
	if len(r.Cells) == 0 {
		_, err := fmt.Fprintln(w, "no run of a strategy was finished")
		return err
	}
	count := map[Verdict]int{}
	for _, g := range r.places() {
		if err := g.print(w, count); err != nil {
			return err
		}
	}
	judged := 0
	for _, n := range count {
		judged += n
	}
	if judged == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "%s beside the best baseline, by mean TTFT, in %d tables: %d better, %d same, %d worse, %d too noisy (95 %% intervals, margin %g %%)\n",
		tested, judged, count[Better], count[Same], count[Worse], count[TooNoisy], 100*Margin)
	return err
}

// peers are cells that differ in strategy alone.
type peers []*Cell

// places groups cells, in the order in which they are.
func (r Result) places() []peers {
	type key struct {
		workload, setting string
		endpoints         int
		load, speed       float64
	}
	at := map[key]int{}
	var out []peers
	for i := range r.Cells {
		c := &r.Cells[i]
		k := key{c.Workload, c.Setting, c.Endpoints, c.Load, c.Speed}
		if _, ok := at[k]; !ok {
			at[k] = len(out)
			out = append(out, nil)
		}
		out[at[k]] = append(out[at[k]], c)
	}
	return out
}

// baseline tells whether a strategy is one that the tested one is held against.
func isBaseline(strategy string) bool {
	return strategy != tested && !strings.HasPrefix(strategy, tested+":") && !slices.Contains(Bounds(), strategy)
}

// best returns the baseline with the least mean time to first token, nil if
// there is none.
func (p peers) best() *Cell {
	var best *Cell
	for _, c := range p {
		if isBaseline(c.Strategy) && (best == nil || c.MeanTTFT.Mean < best.MeanTTFT.Mean) {
			best = c
		}
	}
	return best
}

func (p peers) print(w io.Writer, count map[Verdict]int) error {
	seeds := 0
	for _, c := range p {
		seeds = max(seeds, c.Seeds)
	}
	first := p[0]
	load := fmt.Sprintf("%.3g × the recorded rate", first.Speed)
	if first.Load != 0 {
		load = fmt.Sprintf("load %g of the knee (%s)", first.Load, load)
	}
	title := fmt.Sprintf("%s, %d endpoints, %s, %d seed", first.Workload, first.Endpoints, load, seeds)
	if seeds != 1 {
		title += "s"
	}
	if first.Setting != "" {
		title += ", " + first.Setting
	}
	rows := slices.Clone(p)
	slices.SortStableFunc(rows, func(a, b *Cell) int { return cmp.Compare(a.MeanTTFT.Mean, b.MeanTTFT.Mean) })
	if _, err := fmt.Fprintln(w, title); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  strategy\tmean TTFT, s\tp90, s\tTPOT, ms\ttoken hit\tof the ceiling\tof the best baseline")
	best := p.best()
	for _, c := range rows {
		name := c.Strategy
		if slices.Contains(Bounds(), name) {
			name += " (a bound)"
		}
		if c.Seeds != seeds {
			name += fmt.Sprintf(" (%d seeds)", c.Seeds)
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%.1f\t%.3f\t%s\t%s\n", name, seconds(c.MeanTTFT), seconds(c.P90TTFT), 1e3*c.TPOT.Mean,
			c.TokenHit.Mean, percent(c.TokenHit.Mean, c.CeilingHit), c.beside(best, count))
	}
	fmt.Fprintf(t, "  (all pooled)\t%s\t%s\t\t%.3f\t%s\t\n\n", seconds(Estimate{Mean: first.PooledTTFT}), seconds(Estimate{Mean: first.PooledP90}), first.CeilingHit, percent(1, 1))
	return t.Flush()
}

// beside says how many times as long as the best baseline c takes, and counts
// the verdict if c is of the tested strategy.
func (c *Cell) beside(best *Cell, count map[Verdict]int) string {
	switch {
	case best == nil:
		return "–"
	case c == best:
		return "1.00 ×"
	}
	r, v := Judge(best.MeanTTFT, c.MeanTTFT, false, min(best.Seeds, c.Seeds), Margin)
	if c.Strategy == tested {
		count[v]++
	}
	return fmt.Sprintf("%.2f × %s", r.Mean, v)
}

// seconds formats a time and half its interval to three digits.
func seconds(e Estimate) string {
	digits := 3
	switch {
	case e.Mean >= 100:
		digits = 0
	case e.Mean >= 10:
		digits = 1
	case e.Mean >= 1:
		digits = 2
	}
	if e.CI95 == 0 {
		return fmt.Sprintf("%.*f", digits, e.Mean)
	}
	return fmt.Sprintf("%.*f ± %.*f", digits, e.Mean, digits, e.CI95)
}

// percent is a share of a whole, or a dash where there is none.
func percent(share, whole float64) string {
	if whole <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f %%", 100*share/whole)
}
