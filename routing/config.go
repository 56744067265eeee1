package routing

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Config says how requests are routed. It may change while the router runs,
// see [Router.Reload].
type Config struct {
	// Strategy decides for requests that name none, directly or by a profile: a
	// name, or a weighted blend such as prefix-cache:2,least-request:1.
	Strategy string `yaml:"strategy" help:"strategy, or weighted blend such as prefix-cache:2,least-request, for requests that name none by a routing-strategy header or a profile"`
	// Lock decides for all requests, whatever they name; empty: none does.
	Lock string `yaml:"lock" help:"strategy for all requests, whatever header or profile they name; empty: none"`
	// Profiles are named choices, for the config-profile header. Those in an
	// endpoint's annotation model.aibrix.ai/config come before them.
	Profiles map[string]Profile `yaml:"profiles" help:"named choices for the config-profile header: NAME: {strategy: NAME, locked: false}; locked: the routing-strategy header does not change it"`
	// DefaultProfile is the profile of requests that name none; empty: none.
	DefaultProfile string `yaml:"default_profile" help:"profile of requests without a config-profile header; empty: none"`
	// Fallbacks is how many endpoints follow the chosen one in the destination
	// list, for Envoy's retries.
	Fallbacks int `yaml:"fallbacks" help:"endpoints listed after the chosen one, for Envoy's retries"`
	// Decisions is how many recent decisions are kept for explanation.
	Decisions   int               `yaml:"decisions" help:"recent decisions kept for /debug/decisions; 0 keeps none"`
	PrefixCache PrefixCacheConfig `yaml:"prefix_cache"`
	Queue       QueueConfig       `yaml:"queue"`
}

// Profile is a named choice of strategy.
type Profile struct {
	Strategy string `yaml:"strategy"`
	// Locked: the routing-strategy header does not change it.
	Locked bool `yaml:"locked"`
}

// PrefixCacheConfig has the prices of the prefix-cache strategy: every constant
// of its formula, see strategyPrefixCache. Some price the load in other
// strategies and in blends too.
type PrefixCacheConfig struct {
	// AffinityFloor is the share of the prompt that an endpoint must hold to
	// be kept although another is somewhat better.
	AffinityFloor float64 `yaml:"affinity_floor" help:"share of the prompt, 0 to 1, from which on the endpoint that holds it is kept although another is faster by up to release"`
	// Release is how much better another must be than one that holds the whole
	// prompt.
	Release time.Duration `yaml:"release" help:"time by which another endpoint must be faster to take a prompt from one that holds all of it; in proportion for one that holds less, from affinity_floor on"`
	// ReleaseSavings bounds the release by the prefill time that affinity saves,
	// as a multiple of it: a chat template's first block ties nothing to an
	// endpoint.
	ReleaseSavings float64 `yaml:"release_savings" help:"release is at most this multiple of the time to compute the cached tokens, so that a short common prefix ties nothing to an endpoint"`
	// Pressure is the wait at which prefill work counts twice.
	Pressure time.Duration `yaml:"pressure" help:"where requests lately waited as long as this for their prefill to begin, the work that a request causes counts twice, at twice that wait three times: whoever waits behind it pays for it"`
	// EvictionPrice multiplies the prefill time of what a placement evicts, for
	// each Pressure that requests lately waited.
	EvictionPrice float64 `yaml:"eviction_price" help:"price of evicting cached blocks, as a multiple of the time to compute them again, for each pressure that requests lately waited; 0: none"`
	// ReuseHorizon is the time within which evicted blocks are wanted again.
	ReuseHorizon time.Duration `yaml:"reuse_horizon" help:"a cache that is replaced within this time pays the full eviction_price, one that lasts longer pays less"`
	// InexactFaith is the share of an endpoint's reported blocks that is
	// believed where removals may have been lost.
	InexactFaith float64 `yaml:"inexact_faith" help:"share of the reported blocks, 0 to 1, that is believed of an endpoint whose events may have been lost"`
	// PrefillRate stands in until an engine's own rate is learned.
	PrefillRate float64 `yaml:"prefill_rate" help:"prompt tokens an engine computes a second, until its own rate is learned from its metrics"`
	// LoadRate is how many tokens a second come back from slower tiers.
	LoadRate float64 `yaml:"load_rate" help:"cached tokens an engine loads a second from host memory or disk"`
	// RequestCost is what one request in flight adds to the time to first token
	// of a new one.
	RequestCost time.Duration `yaml:"request_cost" help:"what each request in flight adds to the expected time to first token of a new one"`
}

// DefaultConfig returns the configuration where nothing is set. The prices were
// found by simulation (benchmarks/README.md); the rates are those of an 8B model
// on an H100.
func DefaultConfig() Config {
	return Config{
		Strategy: "prefix-cache", Fallbacks: 2, Decisions: 256,
		PrefixCache: PrefixCacheConfig{
			AffinityFloor: 0.5, Release: 2 * time.Second, ReleaseSavings: 8,
			Pressure: time.Second, EvictionPrice: 3, ReuseHorizon: time.Minute, InexactFaith: 0.8,
			PrefillRate: 15_000, LoadRate: 150_000, RequestCost: 50 * time.Millisecond,
		},
		Queue: DefaultQueueConfig(),
	}
}

// maxFallbacks keeps the destination header short.
const maxFallbacks = 16

// Validate reports every fault of c, one an error, each starting with the
// field's path.
func (c Config) Validate() error {
	var errs []error
	table := strategyTable()
	named := func(field, text string) {
		s, err := lookUp(table, text)
		if err == nil && s.queues && c.Queue.MaxInFlight == 0 {
			err = errQueueOff
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
	}
	named("strategy", c.Strategy)
	if c.Lock != "" {
		named("lock", c.Lock)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Profiles)) {
		named("profiles."+name+".strategy", c.Profiles[name].Strategy)
	}
	if _, ok := c.Profiles[c.DefaultProfile]; c.DefaultProfile != "" && !ok {
		errs = append(errs, fmt.Errorf("default_profile: %q is not one of routing.profiles; add it there or leave it empty", c.DefaultProfile))
	}
	if c.Fallbacks < 0 || c.Fallbacks > maxFallbacks {
		errs = append(errs, fmt.Errorf("fallbacks: %d is out of range; use 0 to %d", c.Fallbacks, maxFallbacks))
	}
	if c.Decisions < 0 || c.Decisions > 1<<16 {
		errs = append(errs, fmt.Errorf("decisions: %d is out of range; use 0 to %d", c.Decisions, 1<<16))
	}
	errs = append(errs, c.PrefixCache.validate()...)
	return errors.Join(append(errs, c.Queue.validate()...)...)
}

func (c PrefixCacheConfig) validate() []error {
	var errs []error
	within := func(field string, v, low, high float64) {
		if !(v >= low && v <= high) { // not a number is out of range too
			errs = append(errs, fmt.Errorf("prefix_cache.%s: %v is out of range; use %v to %v", field, v, low, high))
		}
	}
	within("affinity_floor", c.AffinityFloor, 0, 1)
	within("release_savings", c.ReleaseSavings, 0, 1000)
	within("inexact_faith", c.InexactFaith, 0, 1)
	if c.Pressure < time.Millisecond || c.Pressure > time.Hour {
		errs = append(errs, fmt.Errorf("prefix_cache.pressure: %s is out of range; use 1ms to 1h, and a long time to have no pressure", c.Pressure))
	}
	within("eviction_price", c.EvictionPrice, 0, 1000)
	within("prefill_rate", c.PrefillRate, 1, 1e9)
	within("load_rate", c.LoadRate, 1, 1e9)
	for _, f := range [...]struct {
		name  string
		value time.Duration
		high  time.Duration
	}{{"release", c.Release, time.Minute}, {"reuse_horizon", c.ReuseHorizon, 24 * time.Hour}, {"request_cost", c.RequestCost, 10 * time.Second}} {
		if f.value < 0 || f.value > f.high {
			errs = append(errs, fmt.Errorf("prefix_cache.%s: %s is out of range; use 0s to %s", f.name, f.value, f.high))
		}
	}
	return errs
}
