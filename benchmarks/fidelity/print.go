package fidelity

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// Table prints a result for people.
func (r Result) Table(w io.Writer) error {
	var b bytes.Buffer
	if err := r.Origin.Write(&b); err != nil {
		return err
	}
	fmt.Fprintf(&b, "workload %s, %d requests at %g times its rate, %s\nengines  %d of profile %s, %g times its cache\n\n",
		r.Workload, r.Requests, r.Speed, r.SHA256, r.Endpoints, r.Profile, r.Capacity)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "strategy\tworld\ttoken hit\tof its seeds\tmean TTFT\tby the engines\tp90 TTFT\tsent late, p95 (most)\trequests per endpoint")
	for _, row := range r.Rows {
		name := row.Strategy
		if row.Scale != 1 {
			name += fmt.Sprintf(", %g × slower", row.Scale)
		}
		s, l := row.Simulated, row.Real
		fmt.Fprintf(t, "%s\tsimulated\t%.2f %%\t%.2f to %.2f\t%s\t\t%s\t\t%s\n", name, 100*s.TokenHit, 100*s.LowestHit, 100*s.HighestHit,
			millis(s.MeanTTFT), millis(s.P90TTFT), numbers(s.Requests))
		fmt.Fprintf(t, "\treal\t%.2f %%\t\t%s\t%s\t%s\t%s (%s)\t%s\n", 100*l.TokenHit, millis(l.MeanTTFT), millis(l.EngineTTFT), millis(l.P90TTFT),
			millis(l.Late), millis(l.LateMax), numbers(l.Requests))
		fmt.Fprintf(t, "\tdifference\t%+.2f points\t\t%+.0f %%\t\t%+.0f %%\t\t\n", row.HitPoints, row.MeanPercent, row.P90Percent)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(&b, "\nSimulated figures are means over %d seeds of the router, requests per endpoint the most first.\n", r.Seeds)
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

func millis(seconds float64) string { return fmt.Sprintf("%.1f ms", seconds*1e3) }

func numbers(n []int) string { return strings.Trim(fmt.Sprint(n), "[]") }

// progress says on standard error how far a run is: a line that redraws itself
// on a terminal, a line every five seconds elsewhere.
type progress struct {
	out  *os.File
	tty  bool
	next time.Time
}

func newProgress(out *os.File) *progress {
	p := &progress{out: out}
	if st, err := out.Stat(); err == nil {
		p.tty = st.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progress) show(at Progress) {
	now := time.Now()
	if !p.tty && now.Before(p.next) && !at.Ended {
		return
	}
	p.next = now.Add(5 * time.Second)
	before, after := "", "\n"
	if p.tty {
		before, after = "\r\x1b[K", ""
		if at.Ended {
			after = "\n"
		}
	}
	fmt.Fprint(p.out, before, at, after)
}

// String is the line that people read.
func (p Progress) String() string {
	text := fmt.Sprintf("%s: %d of %d requests answered, %.0f of %.0f s, sent at most %s late",
		p.Strategy, p.Answered, p.Total, p.At.Seconds(), p.Span.Seconds(), p.Late.Round(100*time.Microsecond))
	if p.Scale != 1 {
		text += fmt.Sprintf(", %g × slower", p.Scale)
	}
	if p.TooLate {
		text += ": the machine is too slow, again at half the speed"
	}
	return text
}
