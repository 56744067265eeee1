package pool

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Spec is one endpoint as a source describes it.
type Spec struct {
	// Name is unique in the pool and appears in logs and metrics.
	Name string `yaml:"name"`
	// Address is ip:port of the engine's HTTP server, IPv6 in brackets.
	Address string `yaml:"address"`
	// Models are the names of the base model: the first is its id, the others
	// are aliases. Empty: learned from the engine's /v1/models.
	Models []string `yaml:"models"`
	// Adapters are LoRA adapters of that base model.
	Adapters []string `yaml:"adapters"`
	// Events is the ZMQ endpoint of the engine's KV events; empty: none;
	// EventsAuto: learned from the engine, with its replay socket and ranks.
	Events string `yaml:"events"`
	// Topic is the topic of the events of an engine that connects to the router
	// by itself, instead of Events; empty: it is dialed.
	Topic string `yaml:"topic" help:"topic of the events of an engine that connects to events.listen, in the place of events; empty: it is dialed"`
	// Replay is the ZMQ endpoint of its replay socket; empty: none.
	Replay string `yaml:"replay"`
	// Relay is where a relay beside the engine tells of its cache, which is then
	// preferred to Events: host:port of its gRPC server, RelayPush where it
	// reports by itself, or empty: there is none.
	Relay string `yaml:"relay" help:"host:port of the relay beside the engine, or push if that relay reports by itself; preferred to events; empty: none"`
	// Ranks is the number of data-parallel ranks behind Address, each with an
	// event stream of its own: that of rank r at the ports of Events and Replay
	// plus r. 0 means 1.
	Ranks int `yaml:"ranks" help:"data-parallel ranks behind the address; rank r publishes at the ports of events and replay plus r; 0: one"`
	// Metrics is the URL of its Prometheus metrics; empty: load.path on Address.
	Metrics string `yaml:"metrics"`
	// Labels are free-form; the external-filter header selects by them.
	Labels map[string]string `yaml:"labels"`
	// Annotations are free-form; routing reads profiles from them.
	Annotations map[string]string `yaml:"annotations"`
}

// HasEvents tells whether the endpoint says what it caches.
func (s Spec) HasEvents() bool { return s.Events != "" || s.Topic != "" || s.Relay != "" }

// RelayPush as a [Spec]'s Relay has the relay report to the router.
const RelayPush = "push"

// Config describes the pool.
type Config struct {
	Static     StaticConfig     `yaml:"static"`
	File       FileConfig       `yaml:"file"`
	Kubernetes KubernetesConfig `yaml:"kubernetes"`
	// SyncTimeout bounds the wait of [Pool.Probed] for sources that have not
	// listed their endpoints, if there are others. 0: there is no bound.
	SyncTimeout time.Duration `yaml:"sync_timeout" help:"time in which all of file and cluster is to be listed at the start; after it the endpoints that are known, if any, are followed and served without the others, which join when they are listed; 0s: everything is waited for"`
	Health      HealthConfig  `yaml:"health"`
	Load        LoadConfig    `yaml:"load"`
}

// LoadConfig says how the engines' own metrics are read.
type LoadConfig struct {
	// Path is where endpoints that name no metrics URL serve their metrics;
	// empty: only endpoints that name one are read.
	Path string `yaml:"path" help:"path of the engines' Prometheus metrics, for endpoints without a metrics URL (TensorRT-LLM: /prometheus/metrics); empty: those are not read"`
	// Interval is the longest time between two reads of an idle endpoint; one
	// with requests in flight is read four times as often, and at once when it
	// gets the first.
	Interval time.Duration `yaml:"interval" help:"time between two reads of an idle engine's metrics, which is as old as the load that is known of other routers' requests; a busy one is read four times as often, and at once with its first request; 0s: never"`
	// Timeout bounds one read.
	Timeout time.Duration `yaml:"timeout" help:"time after which a read of an engine's metrics is given up"`
	// Filter: engines are asked for the metrics that are used only.
	Filter bool `yaml:"filter" help:"ask engines for the metrics that are used only, by the name[] parameter that vLLM's exporter knows; those that do not know it are read in full"`
	// StaleAfter is the age at which metrics count as missing.
	StaleAfter time.Duration `yaml:"stale_after" help:"age at which an engine's metrics no longer count"`
}

// StaticConfig lists endpoints.
type StaticConfig struct {
	Endpoints []Spec `yaml:"endpoints"`
}

// HealthConfig says how endpoints are probed.
type HealthConfig struct {
	// Path is requested on every endpoint; 200 means ready.
	Path string `yaml:"path"`
	// Interval is the time between two probes of an endpoint, jittered by a
	// tenth. An idle endpoint that answers reads of its metrics is probed a
	// fourth as often, a busy one that does not four times as often.
	Interval time.Duration `yaml:"interval"`
	// Timeout bounds one probe.
	Timeout time.Duration `yaml:"timeout"`
	// Models is the time after which an engine is asked again for the models and
	// adapters that are not configured.
	Models time.Duration `yaml:"models" help:"time after which an engine whose models are not all configured is asked again for its models and LoRA adapters; 0s: asked once"`
}

// DefaultConfig returns a pool without endpoints.
func DefaultConfig() Config {
	return Config{
		SyncTimeout: 30 * time.Second,
		File:        FileConfig{Interval: time.Second},
		Kubernetes:  KubernetesConfig{Port: 8000, Events: EventsAuto, EventsPort: 5557, ReplayPort: 5558},
		Health:      HealthConfig{Path: "/health", Interval: time.Second, Timeout: 500 * time.Millisecond, Models: 10 * time.Second},
		Load:        LoadConfig{Path: "/metrics", Interval: time.Second, Timeout: 500 * time.Millisecond, Filter: true, StaleAfter: 3 * time.Second},
	}
}

// Discovers tells whether endpoints come and go by themselves.
func (c Config) Discovers() bool { return c.File.Path != "" || c.Kubernetes.Enabled() }

// validateSpecs reports every fault of a list of endpoints found at path.
func validateSpecs(path string, specs []Spec) error {
	var errs []error
	names, addrs, topics := map[string]int{}, map[string]int{}, map[string]int{}
	for i, e := range specs {
		at := fmt.Sprintf("%s[%d]", path, i)
		errs = append(errs, e.validate(at)...)
		if j, dup := names[e.Name]; dup && e.Name != "" {
			errs = append(errs, fmt.Errorf("%s.name: %q is also the name of %s[%d]; names must be unique", at, e.Name, path, j))
		}
		if j, dup := addrs[e.Address]; dup && e.Address != "" {
			errs = append(errs, fmt.Errorf("%s.address: %q is also the address of %s[%d]; remove one of them", at, e.Address, path, j))
		}
		if j, dup := topics[e.Topic]; dup && e.Topic != "" {
			errs = append(errs, fmt.Errorf("%s.topic: %q is also the topic of %s[%d]; give each engine its own in --kv-events-config", at, e.Topic, path, j))
		}
		names[e.Name], addrs[e.Address], topics[e.Topic] = i, i, i
	}
	return errors.Join(errs...)
}

// Validate reports every fault of c, one an error, each starting with the
// field's path below "pool".
func (c Config) Validate() error {
	var errs []error
	if len(c.Static.Endpoints) == 0 && !c.Discovers() {
		errs = append(errs, errors.New("static.endpoints: empty; list at least one endpoint, or let them be found: set file.path, or kubernetes.pod_selector, services or inference_pools"))
	}
	if err := validateSpecs("static.endpoints", c.Static.Endpoints); err != nil {
		errs = append(errs, err)
	}
	for _, section := range []struct {
		name string
		err  error
	}{{"file", c.File.Validate()}, {"kubernetes", c.Kubernetes.Validate()}} {
		if joined, ok := section.err.(interface{ Unwrap() []error }); ok {
			for _, err := range joined.Unwrap() {
				errs = append(errs, fmt.Errorf("%s.%w", section.name, err))
			}
		}
	}
	if c.SyncTimeout < 0 {
		errs = append(errs, fmt.Errorf("sync_timeout: %s is negative; use for example 30s, or 0s to wait for everything", c.SyncTimeout))
	}
	if !strings.HasPrefix(c.Health.Path, "/") {
		errs = append(errs, fmt.Errorf("health.path: %q does not start with a slash; use for example /health", c.Health.Path))
	}
	if c.Health.Interval < 10*time.Millisecond {
		errs = append(errs, fmt.Errorf("health.interval: %s is too short; use 10ms or more", c.Health.Interval))
	}
	if c.Health.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("health.timeout: %s is not positive; use for example 500ms", c.Health.Timeout))
	}
	if c.Health.Models != 0 && c.Health.Models < c.Health.Interval {
		errs = append(errs, fmt.Errorf("health.models: %s is shorter than health.interval (%s); use for example 10s, or 0s to ask once", c.Health.Models, c.Health.Interval))
	}
	errs = append(errs, c.Load.validate()...)
	return errors.Join(errs...)
}

func (c LoadConfig) validate() []error {
	var errs []error
	if c.Path != "" && !strings.HasPrefix(c.Path, "/") {
		errs = append(errs, fmt.Errorf("load.path: %q does not start with a slash; use for example /metrics", c.Path))
	}
	if c.Interval == 0 {
		return errs // the rest is not used
	}
	if c.Interval < 40*time.Millisecond || c.Interval > time.Second {
		errs = append(errs, fmt.Errorf("load.interval: %s is out of range; use 40ms to 1s, or 0s to read no metrics", c.Interval))
	}
	if c.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("load.timeout: %s is not positive; use for example 500ms", c.Timeout))
	}
	if c.StaleAfter < c.Interval+c.Timeout {
		errs = append(errs, fmt.Errorf("load.stale_after: %s is shorter than one read may take (load.interval and load.timeout, together %s); use for example %s", c.StaleAfter, c.Interval+c.Timeout, 2*(c.Interval+c.Timeout)))
	}
	return errs
}

func (s Spec) validate(at string) []error {
	var errs []error
	if s.Name == "" {
		errs = append(errs, fmt.Errorf("%s.name: empty; give the endpoint a name", at))
	}
	if ap, err := netip.ParseAddrPort(s.Address); err != nil {
		errs = append(errs, fmt.Errorf("%s.address: %q is not ip:port; use for example 10.0.0.7:8000 (Envoy's override takes no host names)", at, s.Address))
	} else if ap.Port() == 0 {
		errs = append(errs, fmt.Errorf("%s.address: %q has port 0; use the port the engine listens on", at, s.Address))
	} else if canon := ap.String(); canon != s.Address {
		errs = append(errs, fmt.Errorf("%s.address: %q is not in canonical form; use %s", at, s.Address, canon))
	}
	for j, m := range s.Models {
		if m == "" {
			errs = append(errs, fmt.Errorf("%s.models[%d]: empty; remove it or name a model", at, j))
		}
	}
	if len(s.Adapters) > 0 && len(s.Models) == 0 {
		errs = append(errs, fmt.Errorf("%s.adapters: set without models; name the base model in models too", at))
	}
	for _, f := range [...]struct{ name, value string }{{"events", s.Events}, {"replay", s.Replay}} {
		if f.value == "" || f.value == EventsAuto && f.name == "events" {
			continue
		}
		if err := validateZMQ(f.value); err != nil {
			errs = append(errs, fmt.Errorf("%s.%s: %q %w", at, f.name, f.value, err))
		}
	}
	if s.Topic != "" && (s.Events != "" || s.Ranks > 1) {
		errs = append(errs, fmt.Errorf("%s.topic: %q is set together with events or ranks; an engine connects or is dialed, and each rank has a topic: remove one of them", at, s.Topic))
	}
	if s.Replay != "" && s.Events == "" && s.Topic == "" {
		errs = append(errs, fmt.Errorf("%s.replay: %q is set but events is not; set events to the engine's live stream", at, s.Replay))
	}
	if err := s.validateRanks(at); err != nil {
		errs = append(errs, err)
	}
	if s.Relay != "" && s.Relay != RelayPush {
		if host, port, err := net.SplitHostPort(s.Relay); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("%s.relay: %q is not host:port; use for example 10.0.0.7:5560, or push if the relay reports by itself", at, s.Relay))
		}
	}
	if s.Metrics != "" {
		u, err := url.Parse(s.Metrics)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			errs = append(errs, fmt.Errorf("%s.metrics: %q is not an http URL; use for example http://10.0.0.7:8000/metrics", at, s.Metrics))
		}
	}
	return errs
}

func validateZMQ(endpoint string) error {
	rest, ok := strings.CutPrefix(endpoint, "tcp://")
	if !ok {
		return errors.New("is not a TCP endpoint; use tcp://HOST:PORT")
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil || host == "" || port == "" {
		return errors.New("lacks a host or a port; use tcp://HOST:PORT")
	}
	if host == "*" || host == "0.0.0.0" || host == "::" {
		return fmt.Errorf("is what the engine binds; use the address to dial, tcp://HOST:%s", port)
	}
	return nil
}
