package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// tool is a subcommand that works on event streams and needs no
// configuration: flags and one operand, in any order.
type tool struct {
	process
	name, usage, about string
	flags              *flag.FlagSet
}

func newTool(p process, name, usage, about string) *tool {
	t := &tool{process: p, name: name, usage: usage, about: about, flags: flag.NewFlagSet(name, flag.ContinueOnError)}
	t.flags.SetOutput(io.Discard) // parse reports
	return t
}

// parse reads the command line and returns its operand, which what names. If
// the command ends with it, ok is false and code is the exit code.
func (t *tool) parse(what string) (operand string, code int, ok bool) {
	var operands []string
	for rest := t.args; ; {
		err := t.flags.Parse(rest)
		switch {
		case errors.Is(err, flag.ErrHelp):
			t.printHelp(t.stdout)
			return "", exitOK, false
		case err != nil:
			text := err.Error()
			if name, unknown := strings.CutPrefix(text, "flag provided but not defined: -"); unknown {
				var names []string
				t.flags.VisitAll(func(f *flag.Flag) { names = append(names, "--"+f.Name) })
				text = fmt.Sprintf("--%s: no such flag%s", name, didYouMean("--"+name, names))
			}
			return "", t.misuse(text), false
		}
		if t.flags.NArg() == 0 {
			break
		}
		operands = append(operands, t.flags.Arg(0))
		rest = t.flags.Args()[1:]
	}
	switch len(operands) {
	case 0:
		return "", t.misuse(what + " is missing"), false
	case 1:
		return operands[0], exitOK, true
	}
	return "", t.misuse(fmt.Sprintf("%q is one operand too many", operands[1])), false
}

func (t *tool) printHelp(w io.Writer) {
	fmt.Fprintf(w, "%s\n\nusage: warmpath %s %s\n\n", t.about, t.name, t.usage)
	t.flags.VisitAll(func(f *flag.Flag) {
		kind, text := flag.UnquoteUsage(f)
		fmt.Fprintf(w, "  --%-16s %s\n", strings.TrimSpace(f.Name+" "+kind), text)
	})
}

// fail reports err, if there is one, and returns the exit code.
func (t *tool) fail(err error) int {
	if err == nil {
		return exitOK
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(t.stderr, "warmpath %s: %s\n", t.name, strings.TrimSuffix(line, "\n"))
	}
	return exitFault
}

func (t *tool) misuse(text string) int {
	fmt.Fprintf(t.stderr, "warmpath %s: %s\nsee: warmpath %s --help\n", t.name, text, t.name)
	return exitUsage
}
