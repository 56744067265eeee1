// Package stack runs the whole product as separate processes on loopback: fake
// engines, warmpath and a real Envoy in front of them. The demo and the
// end-to-end tests share it.
package stack

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Config says what to run.
type Config struct {
	// Warmpath, Enginesim and Envoy are paths of the programs.
	Warmpath, Enginesim, Envoy string
	// Dir keeps configuration and logs. It must exist.
	Dir string
	// Engines is the number of engines.
	Engines int
	// EngineArgs are passed to every engine.
	EngineArgs []string
	// RouterArgs are settings, as flags, passed to every command of warmpath.
	RouterArgs []string
	// Model is the served model's name.
	Model string
	// Models, if there are any, are those of the engines in turn, instead.
	Models []string
	// Discover, if it is not nil, tells of the engines where the pool is to find
	// them, and returns the fields of the configuration's pool section, as YAML
	// in one line, that make it look there. Nil: the section lists them.
	Discover func(ctx context.Context, engines []*Engine) (pool string, err error)
	// Silent leaves the engines' events out of the configuration.
	Silent bool
	// Extra is appended to the warmpath configuration, for sections that the
	// stack does not write itself (extproc, admin, envoy and pool).
	Extra string
	// Health is the interval of the pool's health probes; 0: the default.
	Health time.Duration
	// Host is the address on which the engines and the router's ext_proc server
	// listen; empty: 127.0.0.1.
	Host string
	// NoEnvoy leaves Envoy to the caller, who sets URL and EnvoyAdmin.
	NoEnvoy bool
	// Manifests is a folder of those for Kubernetes, whose settings of the router
	// are used: the section extproc. Empty: there is none.
	Manifests string
	// Gateway is the path of an Envoy Gateway that runs Envoy, as the manifests
	// say. Empty: Envoy runs with the bootstrap that warmpath writes.
	Gateway string
	// ByName has that bootstrap find the engines by name instead of by address.
	ByName bool
}

// model returns the model of an engine.
func (c Config) model(i int) string {
	if len(c.Models) == 0 {
		return c.Model
	}
	return c.Models[i%len(c.Models)]
}

func (c Config) host() string { return cmp.Or(c.Host, "127.0.0.1") }

// Engine is one fake engine.
type Engine struct {
	*Process
	// Name is the endpoint's name in the pool, Model that of its model.
	Name, Model string
	// HTTP is its ip:port; Events and Replay its ZMQ endpoints.
	HTTP, Events, Replay string
}

// Stack is a running product.
type Stack struct {
	cfg     Config
	Engines []*Engine
	// Router is the warmpath process, Envoy the proxy, nil if Envoy Gateway runs
	// it.
	Router, Envoy *Process
	gateway       *gateway
	// URL is Envoy's base URL, Admin that of warmpath, EnvoyAdmin that of
	// Envoy's own administration.
	URL, Admin, EnvoyAdmin string
	// Processor is the ip:port of warmpath's ext_proc server.
	Processor string
	config    string
}

// Start runs everything and returns when requests can be sent. The caller must
// Stop the stack, also after an error if the stack is not nil.
func Start(ctx context.Context, cfg Config) (*Stack, error) {
	s := &Stack{cfg: cfg}
	for i := range cfg.Engines {
		e, err := startEngine(cfg, i, nil)
		if err != nil {
			return s, err
		}
		s.Engines = append(s.Engines, e)
	}
	addrs, err := FreeAddresses(4)
	if err != nil {
		return s, err
	}
	s.URL, s.EnvoyAdmin, s.Admin = "http://"+addrs[0], "http://"+addrs[1], "http://"+addrs[2]
	found := ""
	if cfg.Discover != nil {
		if found, err = cfg.Discover(ctx, s.Engines); err != nil {
			return s, err
		}
	}
	s.config = filepath.Join(cfg.Dir, "warmpath.yaml")
	_, port, err := net.SplitHostPort(addrs[3])
	if err != nil {
		return s, err
	}
	addrs[3] = net.JoinHostPort(cfg.host(), port)
	s.Processor = addrs[3]
	settings, err := s.yaml(addrs, found)
	if err != nil {
		return s, err
	}
	if err := os.WriteFile(s.config, []byte(settings), 0o600); err != nil {
		return s, err
	}
	if err := s.StartRouter(ctx); err != nil {
		return s, err
	}
	if cfg.NoEnvoy {
		return s, nil
	}
	if cfg.Gateway != "" {
		return s, s.startGateway(ctx)
	}
	return s, s.startEnvoy(ctx)
}

// Config returns the path of the warmpath configuration file.
func (s *Stack) Config() string { return s.config }

// RestartEngine starts a stopped engine again, empty, at its old addresses.
func (s *Stack) RestartEngine(i int) error {
	e, err := startEngine(s.cfg, i, s.Engines[i])
	if err != nil {
		return err
	}
	s.Engines[i] = e
	return nil
}

func startEngine(cfg Config, i int, old *Engine) (*Engine, error) {
	e := &Engine{Name: fmt.Sprintf("engine-%d", i), Model: cfg.model(i), HTTP: net.JoinHostPort(cfg.host(), "0"), Events: "tcp://127.0.0.1:0", Replay: "tcp://127.0.0.1:0"}
	if old != nil {
		e.HTTP, e.Events, e.Replay = old.HTTP, old.Events, old.Replay
	}
	var ready struct{ HTTP, Events, Replay string }
	args := append([]string{"--listen", e.HTTP, "--events", e.Events, "--replay", e.Replay, "--model", e.Model}, cfg.EngineArgs...)
	p, err := start(e.Name, cfg.Dir, cfg.Enginesim, args, &ready)
	if err != nil {
		return nil, err
	}
	e.Process, e.HTTP, e.Events, e.Replay = p, ready.HTTP, ready.Events, ready.Replay
	return e, nil
}

// yaml writes the configuration for addrs: Envoy, its admin, ours, ext_proc.
// The section extproc is that of the manifests, if there are any. The pool has
// the fields of found, or, if that is empty, the engines.
func (s *Stack) yaml(addrs []string, found string) (string, error) {
	extproc := object{}
	if s.cfg.Manifests != "" {
		var err error
		if extproc, err = extprocSettings(s.cfg.Manifests); err != nil {
			return "", err
		}
	}
	extproc["listen"] = addrs[3]
	section, err := json.Marshal(extproc) // which is YAML, too
	if err != nil {
		return "", err
	}
	var b strings.Builder
	engines := ""
	if found != "" || s.cfg.ByName {
		// localhost is what a headless Service's name is in a cluster.
		for _, e := range s.Engines {
			engines += fmt.Sprintf("%q, ", "localhost:"+e.HTTP[strings.LastIndexByte(e.HTTP, ':')+1:])
		}
	}
	fmt.Fprintf(&b, "extproc: %s\nadmin: {listen: %q}\nenvoy: {listen: %q, admin: %q, engines: [%s]}\npool:\n", section, addrs[2], addrs[0], addrs[1], engines)
	if s.cfg.Health > 0 {
		fmt.Fprintf(&b, "  health: {interval: %s}\n", s.cfg.Health)
	}
	if found != "" {
		b.WriteString("  " + found + "\n" + s.cfg.Extra)
		return b.String(), nil
	}
	b.WriteString("  static:\n    endpoints:\n")
	for _, e := range s.Engines {
		fmt.Fprintf(&b, "      - {name: %s, address: %q, models: [%s], metrics: \"http://%s/metrics\"", e.Name, e.HTTP, e.Model, e.HTTP)
		if !s.cfg.Silent {
			fmt.Fprintf(&b, ", events: %q, replay: %q", e.Events, e.Replay)
		}
		b.WriteString("}\n")
	}
	b.WriteString(s.cfg.Extra)
	return b.String(), nil
}

// StartRouter starts warmpath, again after it was stopped, and waits until it
// is ready.
func (s *Stack) StartRouter(ctx context.Context) error {
	p, err := start("warmpath", s.cfg.Dir, s.cfg.Warmpath, append([]string{"serve", "--config", s.config}, s.cfg.RouterArgs...), nil)
	if err != nil {
		return err
	}
	s.Router = p
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return p.Wait(ctx, "readiness", func(ctx context.Context) error { return get(ctx, s.Admin+"/readyz") })
}

func (s *Stack) startEnvoy(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, s.cfg.Warmpath, append([]string{"envoy-config", "--config", s.config}, s.cfg.RouterArgs...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	bootstrap, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("warmpath envoy-config: %w: %s", err, stderr.String())
	}
	path := filepath.Join(s.cfg.Dir, "envoy.yaml")
	if err := os.WriteFile(path, bootstrap, 0o600); err != nil {
		return err
	}
	p, err := start("envoy", s.cfg.Dir, s.cfg.Envoy, []string{
		"-c", path, "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning",
	}, nil)
	if err != nil {
		return err
	}
	s.Envoy = p
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return p.Wait(ctx, "route to a model", func(ctx context.Context) error {
		return errors.Join(get(ctx, s.EnvoyAdmin+"/ready"), routed(ctx, s.URL+"/v1/models"))
	})
}

// Stop ends every process, Envoy first.
func (s *Stack) Stop() {
	if s.gateway != nil {
		s.gateway.stop()
	}
	for _, p := range []*Process{s.Envoy, s.Router} {
		if p != nil {
			p.Stop()
		}
	}
	for _, e := range s.Engines {
		e.Stop()
	}
}

// get requires a 200 from url.
func get(ctx context.Context, url string) error {
	_, err := request(ctx, url)
	return err
}

// routed requires that warmpath has chosen the endpoint that answered url:
// before Envoy has connected to it, Envoy routes by itself.
func routed(ctx context.Context, url string) error {
	h, err := request(ctx, url)
	if err == nil && h.Get("x-warmpath-endpoint") == "" {
		err = errors.New("answered by an endpoint that warmpath did not choose")
	}
	return err
}

func request(ctx context.Context, url string) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: status %d: %s", url, resp.StatusCode, body)
	}
	return resp.Header, nil
}

// FreeAddresses returns loopback addresses, ip:port, whose ports were free a
// moment ago. Envoy and warmpath must know each other's port before either
// runs.
func FreeAddresses(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all are held until all are known, so that they differ
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}
