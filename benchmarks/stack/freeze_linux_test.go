package stack_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/warmpath/warmpath/benchmarks/stack"
)

func TestProcess_FreezeWaitsForStandstill(t *testing.T) {
	p, err := stack.StartProcess("busy", t.TempDir(), "/bin/sh", []string{"-c", "while :; do :; done"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if err := p.Freeze(bounded(t)); err != nil {
		t.Fatal(err)
	}
	status := func() string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if s := status(); !strings.Contains(s, "State:\tT (stopped)") {
		t.Errorf("not stopped:\n%s", s)
	}
	if err := p.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs again", func() bool { return strings.Contains(status(), "State:\tR") })
}
