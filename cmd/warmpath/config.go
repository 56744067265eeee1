package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/relay"
	"github.com/warmpath/warmpath/extproc"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
	"github.com/warmpath/warmpath/routing/tokenizer"
)

// Config is everything that can be configured, one section a package. Each
// section is declared, defaulted and validated by the package that it
// configures; what spans sections is checked here.
type Config struct {
	ExtProc   extproc.Config   `yaml:"extproc"`
	Admin     AdminConfig      `yaml:"admin"`
	Envoy     EnvoyConfig      `yaml:"envoy"`
	Routing   routing.Config   `yaml:"routing"`
	Tokenizer tokenizer.Config `yaml:"tokenizer"`
	Pool      pool.Config      `yaml:"pool"`
	Index     IndexConfig      `yaml:"index"`
	Events    events.Config    `yaml:"events"`
	Memory    MemoryConfig     `yaml:"memory"`
	// CacheState is a router's, Relay that of the process beside an engine.
	CacheState relay.RouterConfig `yaml:"cachestate"`
	Relay      relay.Config       `yaml:"relay"`
	Log        LogConfig          `yaml:"log"`
}

// AdminConfig says where operators look.
type AdminConfig struct {
	// Listen is the ip:port of the admin HTTP server.
	Listen string `yaml:"listen" help:"ip:port of the HTTP server for metrics, health, state and profiles"`
}

// IndexConfig is the index's own configuration and the seed of its hashes.
type IndexConfig struct {
	kvindex.Config `yaml:",inline"`
	// SeedFile names a file that holds the fleet's seed, see readSeed.
	SeedFile string `yaml:"seed_file" help:"file with the fleet's hash seed, 16 hexadecimal digits; empty: a random seed for this process"`
}

// MemoryConfig is what the program asks of Go's garbage collector. A limit is
// set by GOMEMLIMIT, as for any Go program.
type MemoryConfig struct {
	// GCPercent is how much the heap may grow, in percent of what is in use,
	// before it is collected. 0 leaves it to GOGC.
	GCPercent int `yaml:"gc_percent" help:"growth of the heap before it is collected, in percent of what is in use; less costs processor time, more costs memory; 0 leaves it to GOGC"`
}

// LogConfig says what is logged and how.
type LogConfig struct {
	Level  string `yaml:"level" help:"least severe level that is logged: debug, info, warn or error"`
	Format string `yaml:"format" help:"text or json"`
}

// DefaultConfig returns the configuration where nothing is set. It is not
// valid: a pool needs endpoints.
func DefaultConfig() Config {
	return Config{
		ExtProc:    extproc.DefaultConfig(),
		Admin:      AdminConfig{Listen: "127.0.0.1:9090"},
		Envoy:      DefaultEnvoyConfig(),
		Routing:    routing.DefaultConfig(),
		Tokenizer:  tokenizer.DefaultConfig(),
		Pool:       pool.DefaultConfig(),
		Index:      IndexConfig{Config: kvindex.Config{MaxBlocks: kvindex.DefaultMaxBlocks}},
		Events:     events.DefaultConfig(),
		Memory:     MemoryConfig{GCPercent: 50},
		CacheState: relay.DefaultRouterConfig(),
		Relay:      relay.DefaultConfig(),
		Log:        LogConfig{Level: "info", Format: "text"},
	}
}

// Validate reports every fault of c, one an error, each starting with the path
// of a field.
func (c Config) Validate() error {
	var errs []error
	for _, section := range []struct {
		name string
		err  error
	}{
		{"extproc", c.ExtProc.Validate()},
		{"admin", c.Admin.Validate()},
		{"envoy", c.Envoy.Validate()},
		{"routing", c.Routing.Validate()},
		{"tokenizer", c.Tokenizer.Validate()},
		{"pool", c.Pool.Validate()},
		{"index", c.Index.Validate()},
		{"events", c.Events.Validate()},
		{"memory", c.Memory.Validate()},
		{"cachestate", c.CacheState.Validate()},
		{"relay", c.Relay.Validate()},
		{"log", c.Log.Validate()},
	} {
		for _, err := range unjoin(section.err) {
			errs = append(errs, fmt.Errorf("%s.%w", section.name, err))
		}
	}
	errs = append(errs, c.crossFaults()...)
	return errors.Join(errs...)
}

// Validate reports every fault of c.
func (c AdminConfig) Validate() error { return validateListen("listen", c.Listen) }

// Validate reports every fault of c.
func (c MemoryConfig) Validate() error {
	if c.GCPercent != 0 && (c.GCPercent < 10 || c.GCPercent > 1000) {
		return fmt.Errorf("gc_percent: %d is out of range; use 10 to 1000, or 0 to leave it to GOGC", c.GCPercent)
	}
	return nil
}

// apply tells the collector.
func (c MemoryConfig) apply() {
	if c.GCPercent > 0 {
		debug.SetGCPercent(c.GCPercent)
	}
}

// Validate reports every fault of c.
func (c LogConfig) Validate() error {
	return errors.Join(
		oneOf("level", c.Level, "debug", "info", "warn", "error"),
		oneOf("format", c.Format, "text", "json"),
	)
}

// Validate reports every fault of c.
func (c IndexConfig) Validate() error {
	errs := unjoin(c.Config.Validate())
	if c.SeedFile != "" {
		if _, err := readSeed(c.SeedFile); err != nil {
			errs = append(errs, fmt.Errorf("seed_file: %w", err))
		}
	}
	return errors.Join(errs...)
}

func oneOf(field, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("%s: %q is unknown; use one of %s", field, value, strings.Join(allowed, ", "))
}

// validateListen refuses host names, which name an interface only by accident,
// and a missing address, which listens on all of them by accident.
func validateListen(field, value string) error {
	if _, err := netip.ParseAddrPort(value); err == nil {
		return nil
	}
	if strings.HasPrefix(value, ":") {
		return fmt.Errorf("%s: %q names no address; use 127.0.0.1%s for this machine only or 0.0.0.0%s for all interfaces", field, value, value, value)
	}
	return fmt.Errorf("%s: %q is not ip:port; use for example 127.0.0.1:9090", field, value)
}

// unjoin takes apart what [errors.Join] has joined, at any depth.
func unjoin(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var flat []error
	var text []string
	for _, e := range joined.Unwrap() {
		flat = append(flat, unjoin(e)...)
		text = append(text, e.Error())
	}
	if err.Error() != strings.Join(text, "\n") {
		return []error{err} // several %w in one text
	}
	return flat
}

// crossFaults reports fields that are each right and do not go together.
func (c Config) crossFaults() []error {
	var errs []error
	errs = append(errs, c.addressFaults()...)
	errs = append(errs, c.timeoutFaults()...)
	errs = append(errs, c.tokenizerFaults()...)
	errs = append(errs, c.topicFaults()...)
	errs = append(errs, c.relayedFaults()...)
	return errs
}

// listeners returns the addresses that this configuration makes some process
// on this machine listen on, with the field that says so.
func (c Config) listeners() []listenField {
	return []listenField{
		{"extproc.listen", c.ExtProc.Listen},
		{"admin.listen", c.Admin.Listen},
		{"envoy.listen", c.Envoy.Listen},
		{"envoy.admin", c.Envoy.Admin},
		{"cachestate.listen", c.CacheState.Listen},
	}
}

type listenField struct{ path, value string }

// addressFaults reports two users of one port, and a pool that would make
// Envoy or the router talk to itself.
func (c Config) addressFaults() []error {
	var errs []error
	ls := c.listeners()
	for i, a := range ls {
		for _, b := range ls[:i] {
			if collide(a.value, b.value) {
				errs = append(errs, fmt.Errorf("%s: %q is taken by %s (%q); use another port", a.path, a.value, b.path, b.value))
			}
		}
	}
	for i, e := range c.Pool.Static.Endpoints {
		for _, l := range ls {
			if e.Address != "" && e.Address == l.value {
				errs = append(errs, fmt.Errorf("pool.static.endpoints[%d].address: %q is %s, not an engine; use the address the engine listens on", i, e.Address, l.path))
			}
		}
	}
	return errs
}

// collide tells whether two listeners cannot be open at the same time. Port 0
// is a port of the system's choice.
func collide(a, b string) bool {
	pa, pb := listenAddrPort(a), listenAddrPort(b)
	if !pa.IsValid() || !pb.IsValid() {
		return a == b && strings.Contains(a, ":") // a name, or unix:PATH
	}
	if pa.Port() == 0 || pa.Port() != pb.Port() {
		return false
	}
	return pa.Addr() == pb.Addr() || pa.Addr().IsUnspecified() || pb.Addr().IsUnspecified()
}

// listenAddrPort returns what a server that is given value listens on, as far
// as that can be told without looking up names. It is the zero value if not.
func listenAddrPort(value string) netip.AddrPort {
	if port, ok := strings.CutPrefix(value, ":"); ok {
		value = "0.0.0.0:" + port
	} else if port, ok := strings.CutPrefix(value, "localhost:"); ok {
		value = "127.0.0.1:" + port
	}
	ap, _ := netip.ParseAddrPort(value)
	return ap
}

// messageMargin is how much longer Envoy waits for an answer than the longest
// decision takes: the router answers in time even when it answers late.
const messageMargin = time.Second

// messageTimeout returns how long Envoy waits for one answer of the router.
func (c Config) messageTimeout() time.Duration {
	if c.Envoy.MessageTimeout > 0 {
		return c.Envoy.MessageTimeout
	}
	return c.longestDecision() + messageMargin
}

// longestDecision is how long the router may take to answer.
func (c Config) longestDecision() time.Duration {
	return c.ExtProc.DecisionTimeout + c.Routing.Queue.Wait()
}

// timeoutFaults reports timeouts that contradict each other.
func (c Config) timeoutFaults() []error {
	var errs []error
	if m, d := c.Envoy.MessageTimeout, c.ExtProc.DecisionTimeout; m > 0 && m <= d {
		errs = append(errs, fmt.Errorf("envoy.message_timeout: %s is not above extproc.decision_timeout (%s), so Envoy would answer 504 before the router decides; use %s, or 0s for the default", m, d, d+messageMargin))
	}
	if m, d := c.Envoy.MessageTimeout, c.longestDecision(); m > c.ExtProc.DecisionTimeout && m <= d {
		errs = append(errs, fmt.Errorf("envoy.message_timeout: %s is not above extproc.decision_timeout and routing.queue.deadline together (%s), so Envoy would answer 504 while requests wait for room; use %s, or 0s for the default", m, d, d+messageMargin))
	}
	if b, d := c.Tokenizer.Budget, c.ExtProc.DecisionTimeout; !c.Tokenizer.Disabled && b >= d && d > 0 {
		errs = append(errs, fmt.Errorf("tokenizer.budget: %s leaves nothing of extproc.decision_timeout (%s) to fall back when no tokenizer answers; use less than %s", b, d, d))
	}
	return errs
}

// tokenizerFaults reports caches that are followed and can never be matched.
func (c Config) tokenizerFaults() []error {
	if !c.Tokenizer.Disabled {
		return nil
	}
	for i, e := range c.Pool.Static.Endpoints {
		if e.HasEvents() {
			return []error{fmt.Errorf("tokenizer.disabled: true, but pool.static.endpoints[%d] has events, which speak of token ids, and prompts are text; use disabled: false, or remove events from every endpoint", i)}
		}
	}
	return nil
}

// topicFaults reports endpoints that are waited for where nobody listens.
func (c Config) topicFaults() []error {
	if c.Events.Listen != "" {
		return nil
	}
	if k := c.Pool.Kubernetes; k.Enabled() && k.Topic != "" {
		return []error{errors.New("events.listen: empty, but pool.kubernetes.topic says that engines connect to it; set it to the endpoint that the engines are given, such as tcp://*:5557")}
	}
	for i, e := range c.Pool.Static.Endpoints {
		if e.Topic != "" {
			return []error{fmt.Errorf("events.listen: empty, but pool.static.endpoints[%d].topic says that the engine connects to it; set it to the endpoint that the engines are given, such as tcp://*:5557", i)}
		}
	}
	return nil
}

// relayedFaults reports endpoints whose relays could not be understood or
// heard.
func (c Config) relayedFaults() []error {
	var errs []error
	for i, e := range c.Pool.Static.Endpoints {
		if e.Relay != "" && c.Index.SeedFile == "" {
			errs = append(errs, fmt.Errorf("index.seed_file: empty, but pool.static.endpoints[%d] has a relay, whose hashes only a process with the same seed understands; give every router and relay the same file", i))
		}
		if e.Relay == pool.RelayPush && c.CacheState.Listen == "" {
			errs = append(errs, fmt.Errorf("cachestate.listen: empty, but pool.static.endpoints[%d].relay says that the relay reports to it; set it to the address in the relay's relay.report_to", i))
		}
		if len(errs) > 0 {
			break // the others say the same
		}
	}
	if c.CacheState.SnapshotFile != "" && c.Index.SeedFile == "" && len(errs) == 0 {
		errs = append(errs, errors.New("index.seed_file: empty, but cachestate.snapshot_file is set, whose hashes the next process understands only with the same seed; give it a file"))
	}
	if len(c.CacheState.Peers) > 0 && c.Index.SeedFile == "" && len(errs) == 0 {
		errs = append(errs, errors.New("index.seed_file: empty, but cachestate.peers is set, whose hashes only a process with the same seed understands; give every router the same file"))
	}
	if c.Pool.Kubernetes.RelayPort > 0 && c.Index.SeedFile == "" && len(errs) == 0 {
		errs = append(errs, errors.New("index.seed_file: empty, but pool.kubernetes.relay_port says that engines have relays, whose hashes only a process with the same seed understands; give every router and relay the same file"))
	}
	return errs
}

// Warnings lists what is allowed and probably not what was meant, each with
// the path of the field that would mend it.
func (c Config) Warnings() []string {
	var ws []string
	events, bases := 0, map[string]bool{}
	for i, e := range c.Pool.Static.Endpoints {
		at := fmt.Sprintf("pool.static.endpoints[%d]", i)
		if len(e.Models) > 0 {
			bases[e.Models[0]] = true
		}
		if !e.HasEvents() {
			continue
		}
		events++
		if e.Events == pool.EventsAuto {
			continue // so is replay
		}
		if e.Replay == "" && e.Relay == "" {
			ws = append(ws, fmt.Sprintf(`%s.replay: empty, so lost events of %s cannot be asked for again: each gap and each reconnect empties what is known of its cache; `+
				`start vLLM with --kv-events-config '{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"}' and set replay to tcp://HOST:5558`, at, e.Name))
		}
	}
	if c.Routing.Strategy == "prefix-cache" && events == 0 && !c.Pool.Discovers() {
		ws = append(ws, "routing.strategy: prefix-cache, but no endpoint has events, so caches are guessed from what this router sends; set pool.static.endpoints[].events")
	}
	if len(c.CacheState.Peers) > 0 && c.CacheState.Listen == "" {
		ws = append(ws, "cachestate.listen: empty, but cachestate.peers is set: a router with this configuration asks others for what they know and tells nobody; set it to the port in cachestate.peers")
	}
	return slices.Concat(ws, c.relayWarnings(), c.modelWarnings(len(bases)))
}

// relayWarnings are those of the process beside an engine.
func (c Config) relayWarnings() []string {
	ws := c.Relay.Warnings()
	for i := range ws {
		ws[i] = "relay." + ws[i]
	}
	return ws
}

// modelWarnings is about requests that reach an engine without their model
// while the router is away.
func (c Config) modelWarnings(bases int) []string {
	learned := slices.ContainsFunc(c.Pool.Static.Endpoints, func(e pool.Spec) bool { return len(e.Models) == 0 })
	switch {
	case bases > 1 && c.Envoy.ModelHeader == "":
		return []string{fmt.Sprintf("envoy.model_header: empty, with %d base models in one pool: while this router is down Envoy spreads requests over all endpoints whatever their model, and some will answer 404; "+
			"name a request header that tells the model, for example x-gateway-model-name", bases)}
	case bases > 1:
		return []string{fmt.Sprintf("pool.static.endpoints: %d base models in one pool: while this router is down Envoy keeps only those requests to the endpoints of their model that tell it in the header %s; "+
			"let clients, or a gateway before this one, set it (envoy.model_header)", bases, c.Envoy.ModelHeader)}
	case bases > 0 && learned:
		return []string{"pool.static.endpoints: some list their models and some do not: while this router is down Envoy takes those that do not for endpoints of every model, and some requests may get 404; list models for every endpoint"}
	}
	return nil
}
