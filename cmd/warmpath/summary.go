package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/warmpath/warmpath/routing/pool"
)

// summary says in a few lines what a valid configuration was understood to
// mean.
func (c Config) summary() string {
	var b strings.Builder
	line := func(section, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", section, fmt.Sprintf(format, args...))
	}
	line("extproc", "%s, decides within %s, bodies up to %s", c.ExtProc.Listen, c.ExtProc.DecisionTimeout, byteSize(c.ExtProc.MaxBodyBytes))
	line("admin", "%s", c.Admin.Listen)
	line("envoy", "%s, reaches the router at %s and waits %s for an answer", c.Envoy.Listen, c.routerAddress(), c.messageTimeout())
	line("routing", "%s, with %s after the chosen one", c.Routing.Strategy, count(c.Routing.Fallbacks, "endpoint"))
	switch {
	case c.Tokenizer.Disabled:
		line("tokenizer", "disabled")
	case len(c.Tokenizer.Endpoints) == 0:
		line("tokenizer", "the engines' own /tokenize, within %s", c.Tokenizer.Budget)
	default:
		line("tokenizer", "%s, within %s", strings.Join(c.Tokenizer.Endpoints, ", "), c.Tokenizer.Budget)
	}
	if len(c.Pool.Static.Endpoints) > 0 {
		line("pool", "%s", c.poolSummary())
	}
	if f := c.Pool.File; f.Path != "" {
		line("pool", "endpoints of the file %s, looked at every %s", f.Path, f.Interval)
	}
	if k := c.Pool.Kubernetes; k.Enabled() {
		line("pool", "%s", kubernetesSummary(k))
	}
	return b.String()
}

func (c Config) poolSummary() string {
	events, replay, learned := 0, 0, 0
	var models []string
	for _, e := range c.Pool.Static.Endpoints {
		if e.HasEvents() {
			events++
		}
		if e.Replay != "" {
			replay++
		}
		if len(e.Models) == 0 {
			learned++
		} else if !slices.Contains(models, e.Models[0]) {
			models = append(models, e.Models[0])
		}
	}
	if learned > 0 {
		models = append(models, fmt.Sprintf("what %s will say", count(learned, "endpoint")))
	}
	return fmt.Sprintf("%s, %d with events, %d with replay, for %s", count(len(c.Pool.Static.Endpoints), "endpoint"), events, replay, strings.Join(models, ", "))
}

// kubernetesSummary says what is looked at in the cluster.
func kubernetesSummary(k pool.KubernetesConfig) string {
	var what []string
	if k.PodSelector != "" {
		what = append(what, fmt.Sprintf("pods with %s", k.PodSelector))
	}
	if len(k.Services) > 0 {
		what = append(what, "Services "+strings.Join(k.Services, ", "))
	}
	if len(k.InferencePools) > 0 {
		what = append(what, "InferencePools "+strings.Join(k.InferencePools, ", "))
	}
	where := "the namespace of the service account or context"
	if len(k.Namespaces) > 0 {
		where = "namespaces " + strings.Join(k.Namespaces, ", ")
	}
	return fmt.Sprintf("%s, in %s of Kubernetes", strings.Join(what, "; "), where)
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// byteSize writes n in the largest unit that keeps it whole.
func byteSize(n int) string {
	for _, unit := range [...]struct {
		size int
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= unit.size && n%unit.size == 0 {
			return fmt.Sprintf("%d %s", n/unit.size, unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
