package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/workload"
	"github.com/warmpath/warmpath/routing"
)

// Scenario is what decides a run, but for the seed.
type Scenario struct {
	// Strategy is one of [Strategies], or a blend of product strategies.
	Strategy  string
	Endpoints int
	// Speed is how many times as fast as recorded the requests arrive.
	Speed float64
	// Profile is the engines' step model and cache size.
	Profile engine.Profile
	// Capacity multiplies the engines' cache; Host is the size of a second tier
	// in host memory, as a multiple of it, 0 for none.
	Capacity, Host float64
	// Lag is how late the router learns of KV events, Loss the share of their
	// batches that do not arrive. With Replay what is missing is asked for when
	// the next batch arrives, and comes after another two Lag; without it the
	// publisher's state is dropped.
	Lag    time.Duration
	Loss   float64
	Replay bool
	// Replicas is the number of routers, which take requests in turn and share
	// nothing.
	Replicas int
	// Restart is the time after which an endpoint, each in its turn, crashes;
	// its requests are sent again, and it is back with an empty cache after
	// [downtime]. 0: none does.
	Restart time.Duration
	// Warmup is how many requests come before the measured ones: they fill the
	// caches. Times and shares of requests do not count them; what is told of
	// endpoints, and [Detail], does.
	Warmup int
	// Slow is the share of endpoints that take twice as long for everything.
	Slow float64
	// Wire has events encoded as engines send them and decoded by the
	// production decoder, and prompts as token ids. Blocks that answers fill
	// are then unknown to later prompts.
	Wire bool
	// Detail has the outcome say who waited where, and what every decision
	// cost.
	Detail bool
	// Ahead is how many arrivals the clairvoyant strategy knows before they come.
	Ahead int
	// Routing configures the product's strategies.
	Routing routing.Config

	// pool is how many engines one stands for, 0 for itself.
	pool int
	// maxSeqs, if not 0, bounds the sequences that an engine runs at a time.
	maxSeqs int
}

// Defaults of [Scenario].
const (
	// downtime is how long a restarting engine is away: an optimistic load of
	// the weights.
	downtime = 20 * time.Second
	// maxModelLen admits what traces contain.
	maxModelLen = 1 << 20
	// defaultAhead is Scenario.Ahead: on the conversation trace 8 know less, and
	// with 128 the errors of the forecast outweigh what it knows.
	defaultAhead = 32
)

// WithDefaults returns the scenario with zero values replaced.
func (s Scenario) WithDefaults() Scenario {
	if s.Profile.Name == "" {
		s.Profile = engine.Profiles()[0]
	}
	if s.Endpoints == 0 {
		s.Endpoints = 8
	}
	if s.Speed == 0 {
		s.Speed = 1
	}
	if s.Capacity == 0 {
		s.Capacity = 1
	}
	if s.Replicas == 0 {
		s.Replicas = 1
	}
	if s.Ahead == 0 {
		s.Ahead = defaultAhead
	}
	if s.Routing.Strategy == "" {
		s.Routing = routing.DefaultConfig()
	}
	s.Routing.Decisions = 0
	return s
}

// Validate reports every value that cannot be used.
func (s Scenario) Validate() error {
	var errs []error
	within := func(field string, v, low, high float64) {
		if !(v >= low && v <= high) {
			errs = append(errs, fmt.Errorf("%s: %v is out of range; use %v to %v", field, v, low, high))
		}
	}
	within("endpoints", float64(s.Endpoints), 1, 4096)
	within("speed", s.Speed, 1e-6, 1e6)
	within("capacity", s.Capacity, 0.001, 1000)
	within("host", s.Host, 0, 1000)
	within("lag", s.Lag.Seconds(), 0, 3600)
	within("loss", s.Loss, 0, 1)
	within("replicas", float64(s.Replicas), 1, 64)
	within("restart", s.Restart.Seconds(), 0, 1e6)
	within("warmup", float64(s.Warmup), 0, 1e9)
	within("slow", s.Slow, 0, 1)
	within("ahead", float64(s.Ahead), 1, 1024)
	if s.Wire && s.Strategy == clairvoyantName {
		errs = append(errs, errors.New("wire: the clairvoyant strategy knows blocks by their names only; leave one of the two out"))
	}
	return errors.Join(errs...)
}

// Blocks is the number of blocks of one engine's cache.
func (s *Scenario) Blocks() int {
	return int(float64(s.Profile.KVTokens)*s.Capacity/workload.BlockTokens) * max(1, s.pool)
}

// hostBlocks is the number of blocks of one engine's host tier.
func (s *Scenario) hostBlocks() int { return int(float64(s.Blocks()) * s.Host) }
