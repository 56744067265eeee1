package tokenizer

import (
	"errors"
	"fmt"
	"net/url"
	"time"
)

// Config says whom to ask and for how long.
type Config struct {
	// Endpoints are base URLs of tokenizer servers; empty: the engines that
	// serve the request's model.
	Endpoints []string `yaml:"endpoints" help:"base URLs of tokenizer servers; empty: the engines' own /tokenize"`
	// Disabled routes every prompt that is not token ids by load alone.
	Disabled bool `yaml:"disabled" help:"never tokenize; prompts that are not token ids are routed by load"`
	// Budget bounds the time that one decision waits for its tokens, all
	// attempts together.
	Budget time.Duration `yaml:"budget" help:"time that one decision waits for its tokens, all attempts together"`
	// Attempt bounds one attempt, so that a server that hangs leaves time for
	// the next one.
	Attempt time.Duration `yaml:"attempt" help:"time for one tokenizer to answer before the next one is asked"`
	// MaxResponseBytes bounds what is read of an answer.
	MaxResponseBytes int64 `yaml:"max_response_bytes" help:"largest answer that is read"`
}

// DefaultConfig asks the engines, for half a second in all.
func DefaultConfig() Config {
	return Config{Budget: 500 * time.Millisecond, Attempt: 300 * time.Millisecond, MaxResponseBytes: 64 << 20}
}

// Validate reports every fault of c, one an error, each starting with the
// field's path.
func (c Config) Validate() error {
	var errs []error
	for i, e := range c.Endpoints {
		u, err := url.Parse(e)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			errs = append(errs, fmt.Errorf("endpoints[%d]: %q is not an http URL; use for example http://10.0.0.7:8000", i, e))
		} else if (u.Path != "" && u.Path != "/") || u.RawQuery != "" {
			errs = append(errs, fmt.Errorf("endpoints[%d]: %q has a path or a query; give the server's base URL, /tokenize is added", i, e))
		}
	}
	if c.Budget <= 0 {
		errs = append(errs, fmt.Errorf("budget: %s is not positive; use for example 500ms, or disabled: true", c.Budget))
	}
	if c.Attempt <= 0 {
		errs = append(errs, fmt.Errorf("attempt: %s is not positive; use for example 300ms", c.Attempt))
	}
	if c.MaxResponseBytes < 1<<10 {
		errs = append(errs, fmt.Errorf("max_response_bytes: %d is too small for any answer; use 1024 or more", c.MaxResponseBytes))
	}
	return errors.Join(errs...)
}
