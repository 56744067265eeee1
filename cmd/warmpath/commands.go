package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const usage = `warmpath sends LLM requests, through Envoy, to the endpoint that already holds
the KV cache of their prompt.

usage: warmpath COMMAND [FLAGS]

  serve         --config FILE   run the router
  relay         --config FILE   run beside one engine and tell routers what it holds
  check         --config FILE   report everything wrong with a configuration
  envoy-config  --config FILE   print the Envoy bootstrap that goes with it
  explain       FILE            ask a running router what it would choose, and why
  doctor        --config FILE   look for what keeps a deployment from working
  events        tcp://HOST:PORT show what an engine publishes, and record it
  decode        FILE            print recorded events, one JSON object a line
  replay        FILE            play a recording through the index and compare
  version                       print the version
  help                          print this

"warmpath COMMAND --help" lists the flags of a command. Every setting is read
from the file, then from WARMPATH_SECTION_KEY in the environment, then from
--section.key; the last one wins.
`

// commands returns every subcommand by its name.
func commands() map[string]func(context.Context, process) int {
	return map[string]func(context.Context, process) int{
		"serve":        cmdServe,
		"relay":        cmdRelay,
		"check":        cmdCheck,
		"envoy-config": cmdEnvoyConfig,
		"explain":      cmdExplain,
		"doctor":       cmdDoctor,
		"events":       cmdEvents,
		"decode":       cmdDecode,
		"replay":       cmdReplay,
		"version":      cmdVersion,
		"help":         cmdHelp,
		"h":            cmdHelp, // of -h
	}
}

func cmdHelp(_ context.Context, p process) int {
	fmt.Fprint(p.stdout, usage)
	return exitOK
}

func cmdServe(ctx context.Context, p process) int {
	c := newCommand(p, "serve", "Runs the router until it is interrupted.")
	cfg, code, ok := c.config()
	if !ok {
		return code
	}
	log := newLogger(p.stderr, cfg.Log)
	for _, w := range cfg.Warnings() {
		log.Warn(w)
	}
	src := source{file: *c.file, content: c.content, parse: func(data []byte) (Config, error) { return parse(*c.file, data, c.env, c.overrides) }}
	if err := serve(ctx, cfg, src, log); err != nil {
		log.Error("stopped", "err", err)
		return exitFault
	}
	return exitOK
}

func cmdCheck(_ context.Context, p process) int {
	c := newCommand(p, "check", "Reports everything wrong with a configuration at once, or sums up what it says.")
	print := c.flags.Bool("print", false, "print the configuration with every setting, as YAML")
	reference := c.flags.Bool("reference", false, "print a table of every setting, as Markdown; needs no --config")
	if code, ok := c.parse(); !ok {
		return code
	}
	if *reference {
		fmt.Fprint(p.stdout, configReference())
		return exitOK
	}
	cfg, code, ok := c.load()
	if !ok {
		return code
	}
	if *print {
		b, err := yaml.Marshal(cfg)
		if err != nil {
			return c.fail(err)
		}
		_, err = p.stdout.Write(b)
		return c.fail(err)
	}
	fmt.Fprint(p.stdout, cfg.summary())
	for _, w := range cfg.Warnings() {
		fmt.Fprintf(p.stdout, "warning: %s\n", w)
	}
	return exitOK
}

func cmdEnvoyConfig(_ context.Context, p process) int {
	c := newCommand(p, "envoy-config", "Prints a complete Envoy bootstrap; run it with: envoy -c FILE.")
	output := c.flags.String("output", "", "write it to this `FILE` instead")
	cfg, code, ok := c.config()
	if !ok {
		return code
	}
	b, err := envoyBootstrap(cfg)
	if err != nil {
		return c.fail(err)
	}
	if *output != "" {
		return c.fail(os.WriteFile(*output, b, 0o644))
	}
	_, err = p.stdout.Write(b)
	return c.fail(err)
}

func cmdVersion(_ context.Context, p process) int {
	fmt.Fprintln(p.stdout, versionText())
	return exitOK
}

// command is a subcommand that works on a configuration.
type command struct {
	process
	name, about string
	flags       *flag.FlagSet
	file        *string
	// content is what the file said when it was loaded.
	content   []byte
	overrides []override
}

func newCommand(p process, name, about string) *command {
	c := &command{process: p, name: name, about: about, flags: flag.NewFlagSet(name, flag.ContinueOnError)}
	c.flags.SetOutput(io.Discard) // parse reports
	c.file = c.flags.String("config", "", "the configuration `FILE`, YAML")
	cfg := DefaultConfig()
	for _, s := range settings(&cfg) {
		if s.Loose {
			c.flags.Var(settingFlag{c, s}, s.Key, s.help())
		}
	}
	return c
}

// settingFlag is the flag of a setting. It remembers the text; what is wrong
// with it is found by load, together with all other faults.
type settingFlag struct {
	c *command
	s setting
}

func (f settingFlag) String() string { return "" }

func (f settingFlag) Set(text string) error {
	f.c.overrides = append(f.c.overrides, override{f.s.Key, text})
	return nil
}

// IsBoolFlag lets --section.key stand for --section.key=true.
func (f settingFlag) IsBoolFlag() bool { return f.s.isBool() }

// parse reads the command line. If the command ends with it, ok is false and
// code is the exit code.
func (c *command) parse() (code int, ok bool) {
	err := c.flags.Parse(c.args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		c.printHelp(c.stdout)
		return exitOK, false
	case err != nil:
		text := err.Error()
		if name, unknown := strings.CutPrefix(text, "flag provided but not defined: -"); unknown {
			var names []string
			c.flags.VisitAll(func(f *flag.Flag) { names = append(names, "--"+f.Name) })
			text = fmt.Sprintf("--%s: no such flag%s", name, didYouMean("--"+name, names))
		}
		return c.misuse(text), false
	case c.flags.NArg() > 0:
		return c.misuse(fmt.Sprintf("%q is not expected here; flags are written --name=value", c.flags.Arg(0))), false
	}
	return exitOK, true
}

// load reads the configuration once the command line is parsed.
func (c *command) load() (cfg Config, code int, ok bool) {
	if *c.file == "" {
		return cfg, c.misuse("--config is missing; name the configuration file"), false
	}
	cfg, data, err := load(*c.file, c.env, c.overrides)
	c.content = data
	if err != nil {
		fmt.Fprintln(c.stderr, err)
		if n := len(asFaults(err)); n > 1 {
			fmt.Fprintf(c.stderr, "%d faults\n", n)
		}
		return cfg, exitFault, false
	}
	return cfg, exitOK, true
}

// config parses the command line and reads the configuration that it names.
func (c *command) config() (cfg Config, code int, ok bool) {
	if code, ok := c.parse(); !ok {
		return cfg, code, false
	}
	return c.load()
}

// fail reports err, if there is one, and returns the exit code.
func (c *command) fail(err error) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(c.stderr, "warmpath %s: %v\n", c.name, err)
	return exitFault
}

func (c *command) misuse(text string) int {
	fmt.Fprintf(c.stderr, "warmpath %s: %s\nsee: warmpath %s --help\n", c.name, text, c.name)
	return exitUsage
}

func (c *command) printHelp(w io.Writer) {
	fmt.Fprintf(w, "%s\n\nusage: warmpath %s --config FILE [--section.key=VALUE ...]\n\n", c.about, c.name)
	loose := map[string]string{}
	cfg := DefaultConfig()
	for _, s := range settings(&cfg) {
		if s.Loose {
			loose[s.Key] = s.text()
		}
	}
	c.flags.VisitAll(func(f *flag.Flag) {
		if _, ok := loose[f.Name]; !ok {
			fmt.Fprintf(w, "  --%-10s %s\n", f.Name, strings.ReplaceAll(f.Usage, "`", ""))
		}
	})
	fmt.Fprint(w, "\nsettings, which override the file:\n\n")
	for _, key := range slices.Sorted(maps.Keys(loose)) {
		fmt.Fprintf(w, "  --%s=%s\n        %s\n", key, loose[key], c.flags.Lookup(key).Usage)
	}
}

// newLogger returns the logger that cfg, which is valid, describes.
func newLogger(w io.Writer, cfg LogConfig) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Level)) // validated
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
