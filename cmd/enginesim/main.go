// Command enginesim is a fake inference engine: an OpenAI-compatible server
// with vLLM's KV events, metrics and tokenizer endpoint around a simulated
// scheduler and KV cache. It needs no GPU and no model.
//
// When it listens, it prints one line of JSON with its addresses:
//
//	{"ready":true,"http":"127.0.0.1:8000","events":"tcp://127.0.0.1:5557","replay":"tcp://127.0.0.1:5558"}
//
// It ends on SIGINT and SIGTERM.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/engine/server"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "enginesim:", err)
		os.Exit(1)
	}
}

// names is a flag that may be given several times.
type names []string

func (n *names) String() string { return strings.Join(*n, ",") }

func (n *names) Set(v string) error {
	*n = append(*n, v)
	return nil
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, level, err := parse(args, stderr)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	s, err := server.New(cfg, logger)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-s.Ready():
	}
	err = json.NewEncoder(stdout).Encode(struct {
		Ready  bool   `json:"ready"`
		HTTP   string `json:"http"`
		Events string `json:"events"`
		Replay string `json:"replay"`
	}{true, s.Addr(), s.EventsEndpoint(), s.ReplayEndpoint()})
	if err != nil {
		cancel()
		<-ended
		return fmt.Errorf("ready line: %w", err)
	}
	return <-ended
}

// parse reads the command line. It writes the list of flags if asked for it,
// with the error [flag.ErrHelp].
func parse(args []string, stderr io.Writer) (server.Config, slog.Level, error) {
	var (
		cfg     server.Config
		level   slog.Level
		models  names
		loras   names
		profile string
		format  string
		hash    string
	)
	fs := flag.NewFlagSet("enginesim", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the caller reports errors
	fs.StringVar(&cfg.Listen, "listen", "127.0.0.1:0", "HTTP `address`; port 0 lets the system choose")
	fs.Var(&models, "model", "served `name`; repeat for aliases, the first is the base model (default fake-model)")
	fs.Var(&loras, "lora", "LoRA adapter `name`; may be repeated")
	fs.StringVar(&profile, "profile", "8b", "step model: 8b, 32b or 70b")
	fs.IntVar(&cfg.Engine.Blocks, "blocks", 0, "KV blocks (default the profile's capacity)")
	fs.IntVar(&cfg.Engine.BlockSize, "block-size", engine.DefaultBlockSize, "tokens per block")
	fs.BoolVar(&cfg.Engine.EmptyFirst, "empty-first", false, "reuse blocks that were left unfilled before cached ones; vLLM does not, simulations with large blocks do")
	fs.IntVar(&cfg.Engine.MaxModelLen, "max-model-len", engine.DefaultMaxModelLen, "context length in tokens")
	fs.IntVar(&cfg.Engine.TokenBudget, "max-num-batched-tokens", engine.DefaultTokenBudget, "tokens computed per step")
	fs.IntVar(&cfg.Engine.MaxSeqs, "max-num-seqs", engine.DefaultMaxSeqs, "running sequences")
	fs.StringVar(&hash, "prefix-caching-hash-algo", string(engine.HashSHA256CBOR), "block hash: sha256_cbor or xxhash_cbor")
	fs.StringVar(&cfg.Engine.HashSeed, "hash-seed", engine.DefaultHashSeed, "seed string of the block hashes")
	fs.Uint64Var(&cfg.Engine.OutputSeed, "seed", 0, "seed of the answers: equal seeds answer equally")
	fs.Float64Var(&cfg.TimeScale, "time-scale", 1, "real time per model time; 0.1 is ten times faster")
	fs.StringVar(&cfg.Events, "events", "", "KV-event `endpoint`, tcp://host:port (default none)")
	fs.StringVar(&cfg.Replay, "replay", "", "replay `endpoint`, tcp://host:port (default none)")
	fs.StringVar(&cfg.Topic, "topic", "", "topic of KV-event messages")
	fs.IntVar(&cfg.BufferSteps, "buffer-steps", server.DefaultBufferSteps, "batches kept for replay")
	fs.StringVar(&format, "event-format", string(engine.FormatMap), "event layout: map (vLLM 0.24+), array (0.17 to 0.19) or array12 (0.22, 0.23)")
	fs.BoolVar(&cfg.LegacyReplay, "legacy-replay", false, "replay answers without a topic frame, as vLLM before 0.26")
	fs.IntVar(&cfg.Rank, "data-parallel-rank", 0, "rank in KV events and metrics")
	fs.TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fs.SetOutput(stderr)
			fs.PrintDefaults()
		}
		return cfg, level, err
	}
	if fs.NArg() > 0 {
		return cfg, level, fmt.Errorf("argument %q: only flags are taken", fs.Arg(0))
	}
	if cfg.TimeScale <= 0 {
		return cfg, level, fmt.Errorf("--time-scale: %v: must be above 0", cfg.TimeScale)
	}
	var err error
	if cfg.Engine.Profile, err = engine.ProfileByName(profile); err != nil {
		return cfg, level, fmt.Errorf("--profile: %w", err)
	}
	cfg.Models, cfg.LoRAs = models, loras
	cfg.EventFormat = engine.Format(format)
	cfg.Engine.Hash = engine.HashAlgorithm(hash)
	return cfg, level, nil
}
