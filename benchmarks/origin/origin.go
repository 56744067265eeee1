// Package origin says where the figures of a benchmark come from.
package origin

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// Origin is the head of a result.
type Origin struct {
	Machine string    `json:"machine"`
	Load    string    `json:"load_average"`
	Commit  string    `json:"commit"`
	Go      string    `json:"go"`
	Command string    `json:"command"`
	Began   time.Time `json:"began"`
}

// unknown is what cannot be found out.
const unknown = "unknown"

// Now returns that of a run which begins now by a command line.
func Now(ctx context.Context, command ...string) Origin {
	machine := fmt.Sprintf("%s, %d cores, %s/%s", line("/proc/cpuinfo", "model name"), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	if mem := line("/proc/meminfo", "MemTotal"); mem != unknown {
		machine += ", " + mem + " of memory"
	}
	load := unknown
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = strings.Join(strings.Fields(string(text))[:3], " ")
	}
	return Origin{
		Machine: machine, Load: load, Commit: commit(ctx), Go: runtime.Version(),
		Command: strings.Join(command, " "), Began: time.Now().UTC().Truncate(time.Second),
	}
}

// line returns the value of the first "name: value" line of a file.
func line(file, name string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return unknown
	}
	for l := range strings.SplitSeq(string(text), "\n") {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == name {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	return unknown
}

// commit asks git, because a program that is made by go run does not know.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return unknown
	}
	return strings.TrimSpace(string(out))
}

// Write prints o for people, a line a field.
func (o Origin) Write(w io.Writer) error {
	_, err := fmt.Fprintf(w, "machine  %s\nload     %s\ncommit   %s\ngo       %s\nbegan    %s\ncommand  %s\n",
		o.Machine, o.Load, o.Commit, o.Go, o.Began.Format(time.RFC3339), o.Command)
	return err
}
