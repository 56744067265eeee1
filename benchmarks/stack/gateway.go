package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
)

type gatewayPort struct {
	port int
	what string
}

// gatewayPorts are the ports on which Envoy Gateway and the Envoy that it runs
// listen beside the gateway's own. They cannot be configured, so only one
// instance runs on a machine at a time.
var gatewayPorts = []gatewayPort{
	{18000, "xDS"},
	{18002, "Wasm"},
	{19000, "Envoy Gateway's admin"},
	{19001, "Envoy Gateway's metrics"},
	{8081, "Envoy Gateway's health"},
	{19003, "Envoy's readiness"},
}

// GatewayLock is held by whoever runs Envoy Gateway on this machine.
type GatewayLock struct{ file *os.File }

// gatewayWait is how long one waits for another by default.
const gatewayWait = 5 * time.Minute

// LockGateway waits until no other test or demo of this machine runs Envoy
// Gateway, for at most wait (0: 5 minutes), and checks that its ports are free.
// Who holds the lock is written in its file, in the folder for temporary files.
func LockGateway(ctx context.Context, wait time.Duration) (*GatewayLock, error) {
	if wait == 0 {
		wait = gatewayWait
	}
	l, err := lockFile(ctx, filepath.Join(os.TempDir(), "warmpath-envoy-gateway.lock"), wait)
	if err != nil {
		return nil, err
	}
	if err := free(gatewayPorts); err != nil {
		l.Unlock()
		return nil, err
	}
	return l, nil
}

// free requires that nobody listens on the ports.
func free(ports []gatewayPort) error {
	for _, p := range ports {
		s, err := net.Listen("tcp", ":"+strconv.Itoa(p.port))
		if err != nil {
			return fmt.Errorf("port %d (%s), which Envoy Gateway cannot do without, is taken by another program: %w", p.port, p.what, err)
		}
		_ = s.Close()
	}
	return nil
}

func lockFile(ctx context.Context, path string, wait time.Duration) (*GatewayLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, fmt.Errorf("lock of Envoy Gateway: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			holder, _ := io.ReadAll(io.LimitReader(f, 1<<10))
			_ = f.Close()
			return nil, fmt.Errorf("the ports of Envoy Gateway, which are fixed, are still used by another program of this machine after %s: %s (%s: %w)",
				wait, strings.TrimSpace(string(holder)), path, err)
		case <-tick.C:
		}
	}
	l := &GatewayLock{f}
	if err := f.Truncate(0); err == nil {
		_, err = fmt.Fprintf(f, "process %d (%s) since %s\n", os.Getpid(), filepath.Base(os.Args[0]), time.Now().Format(time.TimeOnly))
		if err != nil {
			l.Unlock()
			return nil, fmt.Errorf("lock of Envoy Gateway: %w", err)
		}
	}
	return l, nil
}

// Unlock lets the next one go on. The file stays: to remove it would let two
// hold the lock, each of a file of its own.
func (l *GatewayLock) Unlock() {
	_ = l.file.Close() // which unlocks it
}

// gateway is a running Envoy Gateway.
type gateway struct {
	lock *GatewayLock
	*Process
	// program is its path, dir its working folder, manifests that of the
	// manifests.
	program, dir, manifests string
	to                      hosted
}

// startGateway runs Envoy Gateway in its standalone mode (Envoy Gateway docs,
// "Standalone Deployment Mode"): it reads manifests from a file and runs Envoy as
// its child.
func (s *Stack) startGateway(ctx context.Context) (err error) {
	g := &gateway{program: s.cfg.Gateway, dir: filepath.Join(s.cfg.Dir, "gateway"), manifests: s.cfg.Manifests, to: hosted{Router: s.Processor, Engines: addresses(s.Engines)}}
	if g.to.Version, err = envoyVersion(ctx, s.cfg.Envoy); err != nil {
		return err
	}
	if g.lock, err = LockGateway(ctx, 0); err != nil {
		return err
	}
	s.gateway = g
	if g.to.Port, err = ListenerPort(); err != nil {
		return err
	}
	s.URL = "http://127.0.0.1:" + g.to.Port
	if err := g.prepare(ctx, s.cfg.Envoy); err != nil {
		return err
	}
	if g.Process, err = start("gateway", s.cfg.Dir, g.program, []string{"server", "--config-path", filepath.Join(g.dir, "gateway.yaml")}, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return g.Wait(ctx, "route to a model", func(ctx context.Context) error {
		if s.EnvoyAdmin, err = g.admin(); err != nil {
			return err
		}
		return errors.Join(get(ctx, s.EnvoyAdmin+"/ready"), routed(ctx, s.URL+"/v1/models"))
	})
}

// ListenerPort returns a port for the listener of a gateway on which nobody
// listens now. The system does not give it to others, as it does with the ports
// of FreeAddresses: Linux chooses from 32768 on. Whoever asks holds the lock.
func ListenerPort() (string, error) {
	for port := 20080; port < 20180; port++ {
		if free([]gatewayPort{{port, "the gateway's own"}}) == nil {
			return strconv.Itoa(port), nil
		}
	}
	return "", errors.New("no port from 20080 to 20179 is free for the gateway")
}

func addresses(engines []*Engine) (all []string) {
	for _, e := range engines {
		all = append(all, e.HTTP)
	}
	return all
}

// Attach has Envoy Gateway know these engines and no others, as it does when
// pods come and go. It returns at once.
func (s *Stack) Attach(engines ...*Engine) error {
	s.gateway.to.Engines = addresses(engines)
	return s.gateway.writeManifests()
}

var versionOfEnvoy = regexp.MustCompile(`/(\d+\.\d+\.\d+)[^/]*/`)

// envoyVersion asks a program which Envoy it is.
func envoyVersion(ctx context.Context, program string) (string, error) {
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: %s", program, err, out)
	}
	m := versionOfEnvoy.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s --version: no version in %q", program, out)
	}
	return string(m[1]), nil
}

// prepare writes what Envoy Gateway needs to run: its folders, with Envoy where
// it looks for a downloaded one, its certificates, configuration and manifests.
func (g *gateway) prepare(ctx context.Context, envoy string) error {
	envoy, err := filepath.Abs(envoy)
	if err != nil {
		return err
	}
	bin := filepath.Join(g.dir, "data", "envoy-versions", g.to.Version, "bin")
	for _, dir := range []string{bin, g.path("config"), g.path("state"), g.path("run"), g.path("manifests")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := os.Symlink(envoy, filepath.Join(bin, "envoy")); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, g.program, "certgen", "--local", "--config-home", g.path("config")).CombinedOutput(); err != nil {
		return fmt.Errorf("envoy-gateway certgen: %w: %s", err, out)
	}
	config, err := yaml.Marshal(object{
		"apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "EnvoyGateway",
		"gateway": object{"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
		"provider": object{"type": "Custom", "custom": object{
			"resource": object{"type": "File", "file": object{"paths": []string{g.path("manifests")}}},
			"infrastructure": object{"type": "Host", "host": object{
				"configHome": g.path("config"), "dataHome": g.path("data"), "stateHome": g.path("state"), "runtimeDir": g.path("run"),
			}},
		}},
		"extensionApis": object{"enableBackend": true, "enableEnvoyPatchPolicy": true},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(g.path("gateway.yaml"), config, 0o600); err != nil {
		return err
	}
	return g.writeManifests()
}

func (g *gateway) path(name string) string { return filepath.Join(g.dir, name) }

// writeManifests writes the manifests as Envoy Gateway can use them here. It
// reads them again when they change; a name with a dot is not read.
func (g *gateway) writeManifests() error {
	b, err := g.to.rewrite(g.manifests)
	if err != nil {
		return err
	}
	next := g.path("manifests") + "/.next"
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return err
	}
	return os.Rename(next, g.path("manifests")+"/all.yaml")
}

// admin returns the URL of the administration of the Envoy that Envoy Gateway
// runs, which listens on a port of its own choice.
func (g *gateway) admin() (string, error) {
	found, err := filepath.Glob(g.path("run") + "/*/admin-address.txt")
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d Envoys are run by Envoy Gateway, want 1", len(found))
	}
	b, err := os.ReadFile(found[0])
	return "http://" + strings.TrimSpace(string(b)), err
}

// stop ends Envoy Gateway, which ends Envoy, and lets others run theirs.
func (g *gateway) stop() {
	if g.Process != nil {
		g.Process.Stop()
	}
	g.lock.Unlock()
}
