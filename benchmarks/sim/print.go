package sim

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"
)

// Table prints a result for people.
func (r Result) Table(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "workload\tendpoints\tload\tspeed\tstrategy\tmean TTFT s\tp90 s\tTPOT ms\ttoken hit\tof ceiling\tof pooled\timbalance")
	last := ""
	for _, c := range r.Cells {
		if at := fmt.Sprint(c.Workload, c.Endpoints, c.Speed); at != last {
			if last != "" {
				fmt.Fprintln(out)
			}
			last = at
		}
		ceiling, pooled := 0.0, 0.0
		if c.CeilingHit > 0 {
			ceiling = 100 * c.TokenHit.Mean / c.CeilingHit
		}
		if c.PooledTTFT > 0 {
			pooled = c.MeanTTFT.Mean / c.PooledTTFT
		}
		fmt.Fprintf(out, "%s\t%d\t%.3g\t%.3g\t%s\t%.3f ± %.3f\t%.3f ± %.3f\t%.1f\t%.4f ± %.4f\t%.1f %%\t%.2f ×\t%.2f\n",
			c.Workload, c.Endpoints, c.Load, c.Speed, c.Strategy, c.MeanTTFT.Mean, c.MeanTTFT.CI95, c.P90TTFT.Mean, c.P90TTFT.CI95,
			c.TPOT.Mean*1e3, c.TokenHit.Mean, c.TokenHit.CI95, ceiling, pooled, c.Imbalance)
	}
	return out.Flush()
}

// dryRun prints a plan.
func dryRun(w io.Writer, p Plan) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "workload\tprofile\tendpoints\tload\tspeed\tcapacity\thost\tlag\tloss\treplicas\tstrategy")
	for _, it := range p.Items {
		fmt.Fprintf(out, "%s\t%s\t%d\t%v\t%v\t%v\t%v\t%v\t%v\t%d\t%s\n", it.Name, it.Profile.Name, it.Endpoints, it.Load, it.Speed,
			it.Capacity, it.Host, it.Lag, it.Loss, it.Replicas, it.Strategy)
	}
	fmt.Fprintf(out, "%d cells of %d seeds: %d runs\n", len(p.Items), p.Seeds, len(p.Items)*p.Seeds)
	return out.Flush()
}

// progress says on standard error how far a run is.
type progress struct {
	w     *os.File
	began time.Time
	next  time.Time
}

func newProgress(w *os.File) *progress {
	now := time.Now()
	return &progress{w, now, now.Add(10 * time.Second)}
}

func (p *progress) update(done, total int) {
	now := time.Now()
	if now.Before(p.next) || done == total {
		return
	}
	p.next = now.Add(10 * time.Second)
	left := time.Duration(float64(now.Sub(p.began)) / float64(done) * float64(total-done))
	fmt.Fprintf(p.w, "%d of %d runs, about %v left\n", done, total, left.Round(time.Second))
}

func (p *progress) end() {}
