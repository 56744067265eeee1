// Command benchmarks shows and measures Warmpath.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/warmpath/warmpath/benchmarks/demo"
	"github.com/warmpath/warmpath/benchmarks/drive"
	"github.com/warmpath/warmpath/benchmarks/fidelity"
	"github.com/warmpath/warmpath/benchmarks/idle"
	"github.com/warmpath/warmpath/benchmarks/indexops"
	"github.com/warmpath/warmpath/benchmarks/micro"
	"github.com/warmpath/warmpath/benchmarks/relays"
	"github.com/warmpath/warmpath/benchmarks/report"
	"github.com/warmpath/warmpath/benchmarks/sim"
	"github.com/warmpath/warmpath/benchmarks/workload"
)

// command is one subcommand.
type command struct {
	name, doc string
	run       func(ctx context.Context, args []string, out *os.File) error
}

func commands() []command {
	return []command{
		{"demo", "run three engines, warmpath and Envoy, and compare the strategies", demo.Run},
		{"ops", "write the stream of index operations that micro plays", indexops.Run},
		{"micro", "measure the prefix index against a naive one, every answer checked", micro.Run},
		{"gen", "write a workload, or describe one", workload.Run},
		{"compare", "judge one result of sim beside another", report.Compare},
		{"report", "draw results of sim", report.Report},
		{"sim", "simulate a fleet and its router in virtual time", sim.Run},
		{"real", "play a workload through Envoy and fake engines, and simulate the same", fidelity.Run},
		{"relay", "measure relays beside the engines' own replay", relays.Run},
		{"drive", "load the request path and measure what a request costs", drive.Run},
		{"idle", "measure what a router without requests costs that has many endpoints", idle.Run},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, out *os.File, errOut io.Writer) int {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	for _, c := range commands() {
		if c.name != name {
			continue
		}
		err := c.run(ctx, args[1:], out)
		switch {
		case errors.Is(err, flag.ErrHelp):
			return 2
		case errors.Is(err, context.Canceled):
			fmt.Fprintf(errOut, "%s: stopped\n", name)
			return 130
		case err != nil:
			fmt.Fprintf(errOut, "%s: %v\n", name, err)
			return 1
		}
		return 0
	}
	fmt.Fprintf(errOut, "usage: benchmarks COMMAND [flags]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(errOut, "  %-8s %s\n", c.name, c.doc)
	}
	return 2
}
