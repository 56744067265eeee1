package sim

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// A line every ten seconds on a file, one that redraws itself on a terminal.
func TestProgress(t *testing.T) {
	for _, tty := range []bool{false, true} {
		var b bytes.Buffer
		clock := time.Unix(0, 0)
		p := &progress{w: &b, tty: tty, now: func() time.Time { return clock }, began: clock}
		p.next = clock.Add(p.every())
		for done := 1; done <= 8; done++ {
			clock = clock.Add(4 * time.Second)
			p.update(Step{done, 8, "chat, random, seed 1"})
		}
		p.end()
		got := b.String()
		lines := strings.Count(got, "of 8 runs")
		if !tty && (lines != 2 || !strings.Contains(got, "3 of 8 runs, 12s gone, about 20s left; last: chat, random, seed 1\n")) {
			t.Errorf("on a file: %q", got)
		}
		if tty && (lines != 8 || strings.Contains(got, "\n") || !strings.HasSuffix(got, "\x1b[K")) {
			t.Errorf("on a terminal: %q", got)
		}
	}
}
