package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// Exit codes.
const (
	exitOK = iota
	// exitFault: the command was understood and failed.
	exitFault
	// exitUsage: the command line is wrong.
	exitUsage
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := dispatch(ctx, process{args: os.Args[1:], env: os.Environ(), stdout: os.Stdout, stderr: os.Stderr})
	stop()
	os.Exit(code)
}

// process is what a command has of the process that it runs in.
type process struct {
	args           []string
	env            []string // NAME=value each
	stdout, stderr io.Writer
}

// dispatch runs the subcommand that p.args names and returns the exit code.
func dispatch(ctx context.Context, p process) int {
	if len(p.args) == 0 {
		fmt.Fprint(p.stderr, usage)
		return exitUsage
	}
	name := strings.TrimLeft(p.args[0], "-") // --help and --version are found as well
	all := commands()
	run, ok := all[name]
	if !ok {
		fmt.Fprintf(p.stderr, "warmpath: %q is not a command%s\n\n%s", p.args[0], didYouMean(name, slices.Sorted(maps.Keys(all))), usage)
		return exitUsage
	}
	p.args = p.args[1:]
	return run(ctx, p)
}
