package routing

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Config says how requests are routed.
type Config struct {
	// Strategy decides for requests that name none.
	Strategy string `yaml:"strategy" help:"strategy for requests without a routing-strategy header"`
	// Fallbacks is how many endpoints follow the chosen one in the destination
	// list, for Envoy's retries.
	Fallbacks int `yaml:"fallbacks" help:"endpoints listed after the chosen one, for Envoy's retries"`
	// Decisions is how many recent decisions are kept for explanation.
	Decisions int `yaml:"decisions" help:"recent decisions kept for /debug/decisions; 0 keeps none"`
}

// DefaultConfig returns the configuration where nothing is set.
func DefaultConfig() Config {
	return Config{Strategy: "prefix-cache", Fallbacks: 2, Decisions: 256}
}

// maxFallbacks keeps the destination header short.
const maxFallbacks = 16

// Validate reports every fault of c, one an error, each starting with the
// field's path.
func (c Config) Validate() error {
	var errs []error
	if !slices.Contains(Strategies(), c.Strategy) {
		errs = append(errs, fmt.Errorf("strategy: %q is not a strategy; use one of %s", c.Strategy, strings.Join(Strategies(), ", ")))
	}
	if c.Fallbacks < 0 || c.Fallbacks > maxFallbacks {
		errs = append(errs, fmt.Errorf("fallbacks: %d is out of range; use 0 to %d", c.Fallbacks, maxFallbacks))
	}
	if c.Decisions < 0 || c.Decisions > 1<<16 {
		errs = append(errs, fmt.Errorf("decisions: %d is out of range; use 0 to %d", c.Decisions, 1<<16))
	}
	return errors.Join(errs...)
}
