package cluster

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// The environment of tests says which programs to run. make test-deploy sets
// it.
const (
	envAPIServer = "WARMPATH_TEST_KUBE_APISERVER"
	envEtcd      = "WARMPATH_TEST_ETCD"
)

// Main is what TestMain of a package needs: it runs one cluster for all of the
// package's tests, in into, and returns the exit code. Without programs it
// runs the tests with into nil, for [Of] to skip those that need the cluster;
// with CI=true that is an error.
func Main(m *testing.M, into **Cluster) int {
	apiserver, etcd := os.Getenv(envAPIServer), os.Getenv(envEtcd)
	if apiserver == "" || etcd == "" {
		if os.Getenv("CI") == "true" {
			fmt.Fprintf(os.Stderr, "no API server to test against: %s and %s are not set; run make test-deploy\n", envAPIServer, envEtcd)
			return 1
		}
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "warmpath-cluster-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Ctrl-C ends the tests without TestMain's deferred calls: the programs are
	// stopped here.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	c, err := Start(ctx, Config{APIServer: apiserver, Etcd: etcd, Dir: dir})
	if err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\nlogs are kept in %s\n", err, dir)
		return 1
	}
	defer context.AfterFunc(ctx, func() {
		c.Stop()
		os.Exit(1)
	})()
	fmt.Printf("cluster: kube-apiserver ready at %s after %.1f s\n", c.Address(), time.Since(began).Seconds())
	*into = c
	code := m.Run()
	c.Stop()
	if code != 0 {
		fmt.Fprintf(os.Stderr, "logs of the cluster are kept in %s\n", dir)
		return code
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Of returns the cluster of [Main] and a namespace of the test's own in it. It
// skips the test if there is none.
func Of(t testing.TB, c *Cluster) (*Cluster, string) {
	t.Helper()
	if c == nil {
		// Read again here, where the test cache takes note of it.
		t.Skipf("no API server: run make test-deploy, or set %s (now %q) and %s (now %q)", envAPIServer, os.Getenv(envAPIServer), envEtcd, os.Getenv(envEtcd))
	}
	name := fmt.Sprintf("test-%x", time.Now().UnixNano())
	if err := c.Namespace(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return c, name
}
