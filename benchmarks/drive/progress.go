package drive

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// progress says on standard error how far a run is: a line that redraws itself
// on a terminal, a line for each row elsewhere. A nil progress says nothing.
type progress struct {
	out    *os.File
	tty    bool
	name   string
	shown  time.Time
	failed int
}

func newProgress(out *os.File) *progress {
	p := &progress{out: out}
	if st, err := out.Stat(); err == nil {
		p.tty = st.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// row begins row i of n.
func (p *progress) row(i, n int, r row) {
	if p == nil {
		return
	}
	p.name = fmt.Sprintf("row %d of %d: %s body, %d response chunks, %d lanes", i+1, n, size(r.body), r.chunks, len(r.cells))
	p.shown, p.failed = time.Now(), 0
	p.draw("starting")
}

// turn says that done of total slices are over, the last of them with a number
// of failures.
func (p *progress) turn(done, total, failures int) {
	if p == nil {
		return
	}
	p.failed += failures
	every := 10 * time.Second
	if p.tty {
		every = 100 * time.Millisecond
	}
	if now := time.Now(); now.Sub(p.shown) >= every || done == total {
		p.shown = now
		text := fmt.Sprintf("%3d %%", 100*done/total)
		if p.failed > 0 {
			text += fmt.Sprintf(", %d requests failed", p.failed)
		}
		p.draw(text)
		if p.tty && done == total {
			fmt.Fprintln(p.out)
		}
	}
}

func (p *progress) draw(text string) {
	if p.tty {
		fmt.Fprintf(p.out, "\r\x1b[K%s: %s", p.name, text)
		return
	}
	fmt.Fprintf(p.out, "%s: %s\n", p.name, text)
}

// size writes a number of bytes as --bodies takes it.
func size(n int) string {
	switch {
	case n%(1<<20) == 0:
		return fmt.Sprintf("%dM", n>>20)
	case n%(1<<10) == 0:
		return fmt.Sprintf("%dK", n>>10)
	}
	return fmt.Sprint(n)
}

// list writes lane names below each other, each with what it is.
func list(all []lane) string {
	var b strings.Builder
	for _, l := range all {
		fmt.Fprintf(&b, "  %-18s %s\n", l.name, l.doc)
	}
	return b.String()
}
