package sim

import (
	"context"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"
)

// dryRun prints a plan and about how long it takes.
func dryRun(ctx context.Context, w io.Writer, p Plan) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "workload\tprofile\tendpoints\tload\tspeed\tcapacity\thost\tlag\tloss\treplicas\tstrategy")
	for _, it := range p.Items {
		fmt.Fprintf(out, "%s\t%s\t%d\t%v\t%v\t%v\t%v\t%v\t%v\t%d\t%s\n", it.Name, it.Profile.Name, it.Endpoints, it.Load, it.Speed,
			it.Capacity, it.Host, it.Lag, it.Loss, it.Replicas, it.Strategy)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	estimate, err := p.Estimate(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "\n%d cells of %d seeds: %d runs; estimated time %v if nothing else runs here, from runs of %d requests\n",
		len(p.Items), p.Seeds, len(p.Items)*p.Seeds, round(estimate), calibrated)
	return err
}

// round drops digits that an estimate does not have.
func round(d time.Duration) time.Duration {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}

// progress says on standard error how far a run is: a line that redraws itself
// on a terminal, a line every ten seconds elsewhere.
type progress struct {
	w     io.Writer
	tty   bool
	now   func() time.Time
	began time.Time
	next  time.Time
}

// newProgress begins to show a run.
func newProgress(w *os.File) *progress {
	p := &progress{w: w, now: time.Now}
	if st, err := w.Stat(); err == nil {
		p.tty = st.Mode()&os.ModeCharDevice != 0
	}
	p.began = p.now()
	p.next = p.began.Add(p.every())
	return p
}

// every is how long a line stands.
func (p *progress) every() time.Duration {
	if p.tty {
		return 100 * time.Millisecond
	}
	return 10 * time.Second
}

func (p *progress) update(s Step) {
	now := p.now()
	if now.Before(p.next) {
		return
	}
	p.next = now.Add(p.every())
	gone := now.Sub(p.began)
	left := time.Duration(float64(gone) / float64(s.Done) * float64(s.Total-s.Done))
	line := fmt.Sprintf("%d of %d runs, %v gone, about %v left; last: %s", s.Done, s.Total, gone.Round(time.Second), left.Round(time.Second), s.What)
	if p.tty {
		fmt.Fprintf(p.w, "\r\x1b[K%.*s", lineWidth, line)
		return
	}
	fmt.Fprintln(p.w, line)
}

// lineWidth keeps a line that redraws itself from wrapping.
const lineWidth = 118

// end removes the line.
func (p *progress) end() {
	if p.tty {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
