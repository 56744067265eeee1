package events

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/warmpath/warmpath/events/zmtp"
)

// Config says how event streams are followed.
type Config struct {
	// Listen is the endpoint, tcp://*:PORT, at which engines connect that are
	// configured to (endpoints with a topic); empty: none do.
	Listen string `yaml:"listen" help:"endpoint for engines that connect by themselves, tcp://*:PORT; the topic of their messages names the endpoint; empty: all are dialed"`
	// ReplayTimeout is how long a replay request may go unanswered. An engine
	// answers within 100 ms when idle, and not while it is in a long step.
	ReplayTimeout time.Duration `yaml:"replay_timeout"`
	// Quiet is the silence that ends a replay answer without an end marker,
	// which engines may drop.
	Quiet time.Duration `yaml:"quiet"`
	// GiveUp is how long a disconnected or unanswered publisher keeps its state,
	// which is not trusted meanwhile.
	GiveUp time.Duration `yaml:"give_up"`
	// Probe is the silence, jittered by a fifth, after which a publisher with
	// a replay endpoint is asked for its last batch again; 0 switches that
	// off.
	Probe time.Duration `yaml:"probe"`
	// Confirm is how long after the first replay of a connection it is repeated,
	// for what was published before the subscription was in force. A live batch
	// makes that unnecessary.
	Confirm time.Duration `yaml:"confirm"`
	// BackoffMin and BackoffMax bound the pause, jittered by half, before a
	// connection or a replay is tried again; it doubles every time.
	BackoffMin time.Duration `yaml:"backoff_min"`
	BackoffMax time.Duration `yaml:"backoff_max"`
	// MaxFrameBytes bounds one message from an engine; a longer one ends the
	// connection.
	MaxFrameBytes int `yaml:"max_frame_bytes"`
	// MaxHeldBytes bounds the live batches of one publisher that wait for a
	// replay to end; what does not fit is lost and asked for again.
	MaxHeldBytes int `yaml:"max_held_bytes"`
	// Replays bounds the replays that run at once, over all publishers.
	Replays int `yaml:"replays"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		ReplayTimeout: 5 * time.Second,
		Quiet:         2 * time.Second,
		GiveUp:        30 * time.Second,
		Probe:         30 * time.Second,
		Confirm:       500 * time.Millisecond,
		BackoffMin:    200 * time.Millisecond,
		BackoffMax:    5 * time.Second,
		MaxFrameBytes: zmtp.DefaultMaxMessage,
		MaxHeldBytes:  64 << 20,
		Replays:       8,
	}
}

// Validate reports every fault of c, one an error, each starting with the
// field's path below "events".
func (c Config) Validate() error {
	var errs []error
	for _, f := range [...]struct {
		name  string
		value time.Duration
	}{
		{"replay_timeout", c.ReplayTimeout},
		{"quiet", c.Quiet},
		{"give_up", c.GiveUp},
		{"confirm", c.Confirm},
		{"backoff_min", c.BackoffMin},
	} {
		if f.value < time.Millisecond {
			errs = append(errs, fmt.Errorf("%s: %s is too short; use a duration of 1ms or more, such as 2s", f.name, f.value))
		}
	}
	if c.Listen != "" && !strings.HasPrefix(c.Listen, "tcp://") {
		errs = append(errs, fmt.Errorf("listen: %q is not a TCP endpoint; use tcp://*:PORT", c.Listen))
	}
	if c.Probe < 0 || c.Probe > 0 && c.Probe < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("probe: %s is too short; use 100ms or more, or 0 to switch probes off", c.Probe))
	}
	if c.BackoffMax < c.BackoffMin {
		errs = append(errs, fmt.Errorf("backoff_max: %s is less than backoff_min, %s; use a longer duration", c.BackoffMax, c.BackoffMin))
	}
	if c.MaxFrameBytes < 64<<10 {
		errs = append(errs, fmt.Errorf("max_frame_bytes: %d would cut ordinary batches; use %d or more", c.MaxFrameBytes, 64<<10))
	}
	if c.MaxHeldBytes < 1<<20 {
		errs = append(errs, fmt.Errorf("max_held_bytes: %d is too small to bridge a replay; use %d or more", c.MaxHeldBytes, 1<<20))
	}
	if c.Replays < 1 {
		errs = append(errs, fmt.Errorf("replays: %d allows no replay; use 1 or more", c.Replays))
	}
	return errors.Join(errs...)
}
