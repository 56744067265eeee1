package demo

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// progress shows how far a run is: a bar that redraws itself on a terminal, a
// line every few seconds elsewhere.
type progress struct {
	out   *os.File
	name  string
	total int
	tty   bool
	began time.Time
	shown time.Time
	done  int
	bad   int
}

func newProgress(out *os.File, name string, total int) *progress {
	p := &progress{out: out, name: name, total: total, began: time.Now()}
	if st, err := out.Stat(); err == nil {
		p.tty = st.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// set records how many requests are done and how many of them failed.
func (p *progress) set(done, failed int) {
	p.done, p.bad = done, failed
	every := 5 * time.Second
	if p.tty {
		every = 50 * time.Millisecond
	}
	if now := time.Now(); now.Sub(p.shown) >= every {
		p.shown = now
		p.draw()
	}
}

// finish draws the last state.
func (p *progress) finish() {
	p.draw()
	if p.tty {
		fmt.Fprintln(p.out)
	}
}

func (p *progress) draw() {
	const width = 30
	full := width * p.done / max(p.total, 1)
	line := fmt.Sprintf("%-14s [%s%s] %3d/%d  %4.1f s", p.name, strings.Repeat("#", full), strings.Repeat(".", width-full), p.done, p.total, time.Since(p.began).Seconds())
	if p.bad > 0 {
		line += fmt.Sprintf("  %d failed", p.bad)
	}
	if p.tty {
		fmt.Fprintf(p.out, "\r%s", line)
		return
	}
	fmt.Fprintln(p.out, line)
}
