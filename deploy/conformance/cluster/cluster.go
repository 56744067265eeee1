package cluster

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/warmpath/warmpath/benchmarks/stack"
)

const (
	// startTimeout bounds the start of a program on a machine that is busy with
	// other tests.
	startTimeout = 2 * time.Minute
	// portTries is how often other ports are tried: a port that was free a
	// moment ago can be taken by another process.
	portTries = 3
)

// Config says what to run.
type Config struct {
	// APIServer and Etcd are paths of the programs.
	APIServer, Etcd string
	// Dir keeps data, certificates and logs. It must exist.
	Dir string
	// Flags are added to those of kube-apiserver.
	Flags []string
}

// Cluster is a running API server. It is safe for concurrent use, except for
// stopping and starting.
type Cluster struct {
	cfg             Config
	token           string
	etcd, apiserver *stack.Process
	// Addresses, ip:port.
	etcdAddr, apiAddr string
}

// Start runs etcd and the API server and returns when it is ready. The caller
// must Stop the cluster, also after an error if the cluster is not nil.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	c := &Cluster{cfg: cfg, token: rand.Text()}
	if err := c.writeCredentials(); err != nil {
		return nil, err
	}
	var err error
	for range portTries {
		var ports []string
		if ports, err = stack.FreeAddresses(2); err != nil {
			return nil, err
		}
		c.etcdAddr, c.apiAddr = ports[0], ports[1]
		if err = c.startEtcd(ctx); err == nil {
			err = c.StartAPIServer(ctx)
		}
		if err == nil {
			return c, nil
		}
		c.Stop()
		if ctx.Err() != nil {
			return nil, err
		}
		if err := os.RemoveAll(c.path("etcd")); err != nil {
			return nil, err
		}
	}
	return nil, err
}

// Stop ends both programs.
func (c *Cluster) Stop() {
	c.StopAPIServer()
	if c.etcd != nil {
		c.etcd.Kill() // nothing in its data is wanted again
	}
}

// Address returns the ip:port of the API server, which it keeps when it is
// started again.
func (c *Cluster) Address() string { return c.apiAddr }

// Logs returns the ends of the programs' logs.
func (c *Cluster) Logs() string {
	var text string
	for _, p := range []*stack.Process{c.etcd, c.apiserver} {
		if p != nil {
			text += fmt.Sprintf("== %s, the end of %s\n%s\n", p.Name, c.path(p.Name+".log"), p.Tail(40))
		}
	}
	return text
}

// PID returns the API server's process id.
func (c *Cluster) PID() int { return c.apiserver.PID() }

func (c *Cluster) path(name string) string { return filepath.Join(c.cfg.Dir, name) }

func (c *Cluster) startEtcd(ctx context.Context) error {
	client := "http://" + c.etcdAddr
	p, err := stack.StartProcess("etcd", c.cfg.Dir, c.cfg.Etcd, []string{
		"--data-dir", c.path("etcd"), "--log-level", "warn",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		// One member has no peers.
		"--listen-peer-urls", "http://127.0.0.1:0",
		"--unsafe-no-fsync",
	})
	if err != nil {
		return err
	}
	c.etcd = p
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return p.Wait(ctx, "connection", func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", c.etcdAddr)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// StartAPIServer starts the API server, again after it was stopped, at the
// address that it had, and returns when it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	host, port, err := net.SplitHostPort(c.apiAddr)
	if err != nil {
		return err
	}
	key := c.path("service-account.key")
	p, err := stack.StartProcess("kube-apiserver", c.cfg.Dir, c.cfg.APIServer, append([]string{
		"--etcd-servers", "http://" + c.etcdAddr,
		"--bind-address", host, "--secure-port", port, "--cert-dir", c.path("certificates"),
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", key, "--service-account-signing-key-file", key,
		"--service-cluster-ip-range", "10.0.0.0/16",
		"--token-auth-file", c.path("tokens.csv"), "--authorization-mode", "RBAC",
		// It would have every pod wait for a ServiceAccount, which a controller
		// makes, and there is no controller.
		"--disable-admission-plugins", "ServiceAccount",
		// The address of the server is no endpoint of a Service here.
		"--endpoint-reconciler-type", "none",
	}, c.cfg.Flags...))
	if err != nil {
		return err
	}
	c.apiserver = p
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return p.Wait(ctx, "readiness", c.ready)
}

// ready returns nil if the API server is ready. Its certificate is made with
// its first start.
func (c *Cluster) ready(ctx context.Context) error {
	if _, err := os.Stat(c.certificate()); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(c.Admin())
	if err != nil {
		return err
	}
	body, err := client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("%w: %s", err, body)
	}
	return nil
}

// StopAPIServer kills the API server: its clients see their connections break.
// What it has stored stays.
func (c *Cluster) StopAPIServer() {
	if c.apiserver != nil {
		c.apiserver.Kill()
	}
}

// Expire restarts the API server such that it no longer remembers any change:
// a watch from a resource version before the call is answered with 410 Gone,
// and its client has to list again.
//
// The API server keeps recent changes in memory, and only those since its
// start. Each change of any kind moves the resource version on, so one change
// before the restart leaves every version of a client behind. [410 Gone] is
// described in "Kubernetes API Concepts", section "Efficient detection of
// changes".
func (c *Cluster) Expire(ctx context.Context) error {
	if err := c.touch(ctx); err != nil {
		return err
	}
	c.StopAPIServer()
	return c.StartAPIServer(ctx)
}
