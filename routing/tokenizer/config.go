package tokenizer

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Config says whom to ask, for how long, and how much to remember.
type Config struct {
	// Endpoints are base URLs of tokenizer servers; empty: the engines that
	// serve the request's model.
	Endpoints []string `yaml:"endpoints" help:"base URLs of tokenizer servers; empty: the engines' own /tokenize"`
	// Disabled routes every prompt that is not token ids by load alone.
	Disabled bool `yaml:"disabled" help:"never tokenize; prompts that are not token ids are routed by load"`
	// API is what the servers speak: one of [APIs].
	API string `yaml:"api" help:"what the servers speak: vllm (/tokenize), vllm-render (/v1/…/render, needs --enable-scale-out or vllm launch render) or sglang (/tokenize, no chats)"`
	// Budget bounds the time that one decision waits for its tokens, all
	// attempts together.
	Budget time.Duration `yaml:"budget" help:"time that one decision waits for its tokens, all attempts together"`
	// Attempt bounds one attempt, so that a server that hangs leaves time for
	// the next one.
	Attempt time.Duration `yaml:"attempt" help:"time for one tokenizer to answer before the next one is asked"`
	// HedgeShare bounds the second requests that are sent when the first takes
	// longer than 95 % of those before it, as a share of all. 0: none.
	HedgeShare float64 `yaml:"hedge_share" help:"share of requests that may be sent to a second tokenizer when the first takes longer than its p95; 0 sends none"`
	// Concurrency bounds the requests in flight to all tokenizers.
	Concurrency int `yaml:"concurrency" help:"requests in flight to all tokenizers together"`
	// MaxResponseBytes bounds what is read of an answer.
	MaxResponseBytes int64 `yaml:"max_response_bytes" help:"largest answer that is read"`
	// BreakerFailures is how many failures in a row take a server out of use;
	// BreakerRest is for how long at first, doubled up to 30 times.
	BreakerFailures int           `yaml:"breaker_failures" help:"failures in a row that take a tokenizer out of use"`
	BreakerRest     time.Duration `yaml:"breaker_rest" help:"time until a tokenizer out of use is tried again; doubled each time, up to 30 times this"`
	// CacheBytes bounds what is remembered of prompts. No text and no whole
	// prompt's ids are kept: about half a byte a token.
	CacheBytes int64 `yaml:"cache_bytes" help:"memory for what is known of prompts, about half a byte a token; 0 waits for the tokenizer with every prompt"`
	// MaxUnseenTokens is how much of a prompt's end may be unknown without
	// waiting for the tokenizer.
	MaxUnseenTokens int `yaml:"max_unseen_tokens" help:"a prompt whose beginning is known is routed without waiting for the tokenizer if no more tokens than this, estimated, follow"`
	// LearnWorkers tokenize behind decisions, from a queue of LearnQueue
	// prompts; what does not fit is not learned.
	LearnWorkers int `yaml:"learn_workers" help:"prompts tokenized at a time behind their decisions"`
	LearnQueue   int `yaml:"learn_queue" help:"prompts that wait to be tokenized behind their decisions; more are not learned"`
	// LearnBytes bounds the text in that queue.
	LearnBytes int64 `yaml:"learn_bytes" help:"text that waits to be tokenized behind decisions"`
	// ExamineInterval is how old the knowledge of a server's tokenizer and chat
	// template may be.
	ExamineInterval time.Duration `yaml:"examine_interval" help:"how often a tokenizer in use is asked for the tokens of a fixed chat, to see if its template changed"`
}

// The values of Config.API.
const (
	apiVLLM   = "vllm"
	apiRender = "vllm-render"
	apiSGLang = "sglang"
)

// APIs returns the values of Config.API.
func APIs() []string { return []string{apiVLLM, apiRender, apiSGLang} }

// DefaultConfig asks the engines, for half a second in all.
func DefaultConfig() Config {
	return Config{
		API: apiVLLM, Budget: 500 * time.Millisecond, Attempt: 300 * time.Millisecond, HedgeShare: 0.1, Concurrency: 64,
		MaxResponseBytes: 64 << 20, BreakerFailures: 5, BreakerRest: time.Second, CacheBytes: 128 << 20, MaxUnseenTokens: 2048,
		LearnWorkers: 4, LearnQueue: 256, LearnBytes: 64 << 20, ExamineInterval: 30 * time.Second,
	}
}

// Validate reports every fault of c, one an error, each starting with the
// field's path.
func (c Config) Validate() error {
	var errs []error
	fault := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for i, e := range c.Endpoints {
		u, err := url.Parse(e)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			errs = append(errs, fmt.Errorf("endpoints[%d]: %q is not an http URL; use for example http://10.0.0.7:8000", i, e))
		} else if (u.Path != "" && u.Path != "/") || u.RawQuery != "" {
			errs = append(errs, fmt.Errorf("endpoints[%d]: %q has a path or a query; give the server's base URL, /tokenize is added", i, e))
		}
	}
	fault(slices.Contains(APIs(), c.API), "api: %q is unknown; use one of %s", c.API, strings.Join(APIs(), ", "))
	fault(c.Budget > 0, "budget: %s is not positive; use for example 500ms, or disabled: true", c.Budget)
	fault(c.Attempt > 0, "attempt: %s is not positive; use for example 300ms", c.Attempt)
	fault(c.HedgeShare >= 0 && c.HedgeShare <= 1, "hedge_share: %v is not a share; use 0 to 1", c.HedgeShare)
	fault(c.Concurrency > 0 && c.Concurrency <= 1<<16, "concurrency: %d is out of range; use 1 to %d", c.Concurrency, 1<<16)
	fault(c.MaxResponseBytes >= 1<<10, "max_response_bytes: %d is too small for any answer; use 1024 or more", c.MaxResponseBytes)
	fault(c.BreakerFailures > 0, "breaker_failures: %d is not positive; use for example 5", c.BreakerFailures)
	fault(c.BreakerRest > 0, "breaker_rest: %s is not positive; use for example 1s", c.BreakerRest)
	fault(c.CacheBytes == 0 || c.CacheBytes >= 1<<20, "cache_bytes: %d is too small; use 1048576 or more, or 0 for no cache", c.CacheBytes)
	fault(c.MaxUnseenTokens >= 0, "max_unseen_tokens: %d is negative; use 0 to wait for the tokenizer unless the whole prompt is known", c.MaxUnseenTokens)
	fault(c.LearnWorkers > 0 && c.LearnWorkers <= 256, "learn_workers: %d is out of range; use 1 to 256", c.LearnWorkers)
	fault(c.LearnQueue >= 0 && c.LearnQueue <= 1<<20, "learn_queue: %d is out of range; use 0 to %d", c.LearnQueue, 1<<20)
	fault(c.LearnBytes >= 0, "learn_bytes: %d is negative; use for example 67108864", c.LearnBytes)
	fault(c.ExamineInterval > 0, "examine_interval: %s is not positive; use for example 30s", c.ExamineInterval)
	return errors.Join(errs...)
}
