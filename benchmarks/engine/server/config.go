package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/warmpath/warmpath/benchmarks/engine"
)

// DefaultBufferSteps is vLLM's default for the batches kept for replay.
const DefaultBufferSteps = 10_000

// Config configures a [Server].
type Config struct {
	// Listen is the HTTP address, host:port; port 0 lets the system choose.
	Listen string
	// Models are the served names of the base model; the first is its id.
	Models []string
	// LoRAs are the names of the adapters.
	LoRAs []string
	// Engine configures the core; zero values mean its defaults.
	Engine engine.Config
	// TimeScale is real time per model time: 1 is real, 0.1 ten times faster.
	TimeScale float64

	// Events is the endpoint of the KV-event PUB socket, tcp://host:port, and
	// Replay that of the ROUTER socket. Empty means none; Replay needs Events.
	Events, Replay string
	// Topic is the first frame of every live message.
	Topic string
	// BufferSteps is the number of batches kept for replay.
	BufferSteps int
	// EventFormat is the layout of events.
	EventFormat engine.Format
	// LegacyReplay leaves the topic frame out of replay answers, as vLLM
	// before 0.26 does.
	LegacyReplay bool
	// Rank is the data-parallel rank in batches and metric labels.
	Rank int
}

// WithDefaults returns the configuration with zero values replaced.
func (c Config) WithDefaults() Config {
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	if len(c.Models) == 0 {
		c.Models = []string{"fake-model"}
	}
	if c.TimeScale == 0 {
		c.TimeScale = 1
	}
	if c.BufferSteps == 0 {
		c.BufferSteps = DefaultBufferSteps
	}
	if c.EventFormat == "" {
		c.EventFormat = engine.FormatMap
	}
	c.Engine = c.Engine.WithDefaults()
	c.Engine.NoEvents = c.Events == ""
	return c
}

// Validate reports every value that cannot be used.
func (c Config) Validate() error {
	errs := []error{c.Engine.Validate(), c.EventFormat.Validate()}
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.TimeScale < 0 {
		fault("time scale: %v: must be above 0", c.TimeScale)
	}
	if c.BufferSteps < 0 {
		fault("buffer steps: %d: must be at least 1", c.BufferSteps)
	}
	if c.Rank < 0 {
		fault("rank: %d: must be at least 0", c.Rank)
	}
	for _, e := range []struct{ name, endpoint string }{{"events", c.Events}, {"replay", c.Replay}} {
		if e.endpoint != "" && !strings.HasPrefix(e.endpoint, "tcp://") {
			fault("%s: %q: use tcp://host:port", e.name, e.endpoint)
		}
	}
	if c.Replay != "" && c.Events == "" {
		fault("replay: %q: needs events to be set as well", c.Replay)
	}
	names := slices.Concat(c.Models, c.LoRAs)
	for i, name := range names {
		if name == "" {
			fault("model or adapter name: empty")
		}
		if slices.Contains(names[:i], name) {
			fault("model or adapter name: %q: given twice", name)
		}
	}
	return errors.Join(errs...)
}
