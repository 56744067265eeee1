package indexops

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
)

// Run is the command that writes a stream.
func Run(_ context.Context, args []string, out *os.File) (err error) {
	p := Default()
	fs := flag.NewFlagSet("ops", flag.ContinueOnError)
	path := fs.String("out", "ops.bin", "file to write")
	fs.Uint64Var(&p.Seed, "seed", p.Seed, "seed of the stream")
	fs.IntVar(&p.Pairs, "pairs", p.Pairs, "(pod, block) pairs held after the load section")
	fs.IntVar(&p.Churn, "churn", p.Churn, "blocks removed by the churn section")
	fs.IntVar(&p.Queries, "queries", p.Queries, "queries after churn")
	fs.IntVar(&p.HoleQueries, "hole-queries", p.HoleQueries, "queries after holes")
	if err := fs.Parse(args); err != nil {
		return err
	}
	f, err := os.Create(*path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h, err := Generate(f, p)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %d pairs after load, %d after churn\n", *path, h.PairsAfterLoad(), h.PairsAfterChurn())
	return nil
}
