package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/warmpath/warmpath/extproc"
)

func TestEnvoyBootstrap_TLSNeedsFiles(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(c *Config)
		want   string
	}{
		{"no authority", func(c *Config) { c.Envoy.RouterTLS = RouterTLSConfig{} }, "envoy.router_tls.ca: empty"},
		{"no client certificate", func(c *Config) { c.ExtProc.TLS.ClientCA = "ca.pem" }, "envoy.router_tls.cert: empty"},
		{"enough", func(*Config) {}, ""},
		{"no TLS", func(c *Config) { c.ExtProc.TLS, c.Envoy.RouterTLS = extproc.TLSConfig{}, RouterTLSConfig{} }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := mustParse(t, twoEngines)
			cfg.ExtProc.TLS = extproc.TLSConfig{Cert: "c.pem", Key: "k.pem"}
			cfg.Envoy.RouterTLS.CA = "ca.pem"
			tt.change(&cfg)
			_, err := envoyBootstrap(cfg)
			if (err == nil) != (tt.want == "") || err != nil && !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := parse("w.yaml", []byte(valid+"envoy: {router_tls: {cert: c}}"), nil, nil); err == nil || !strings.Contains(err.Error(), "w.yaml:2: envoy.router_tls: cert and key go together") {
		t.Errorf("half a key pair gives %v", err)
	}
}

// Envoy and a router with certificates find each other healthy, and Envoy does
// not talk to a server that has another name.
func TestEnvoyBootstrap_TLS(t *testing.T) {
	binary := testEnvoy(t)
	ca := newAuthority(t)
	client := ca.issue(t, "envoy", "")
	for _, tt := range []struct {
		name         string
		host, router string // what the certificate is for, and what Envoy is told
		state        string
	}{
		{"by address", "127.0.0.1", "127.0.0.1", "healthy"},
		{"by name", "localhost", "localhost", "healthy"},
		{"of another address", "127.0.0.2", "127.0.0.1", "/failed_active_hc"},
		{"of another name", "other", "localhost", "/failed_active_hc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := ca.issue(t, "server", tt.host)
			address := serveHealth(t, ca, server)
			cfg := mustParse(t, valid)
			addrs := freeAddresses(t, 2)
			cfg.ExtProc.Listen, cfg.Envoy.Listen, cfg.Envoy.Admin = address, addrs[0], addrs[1]
			cfg.ExtProc.TLS = extproc.TLSConfig{Cert: server.cert, Key: server.key, ClientCA: ca.file}
			cfg.Envoy.RouterTLS = RouterTLSConfig{CA: ca.file, Cert: client.cert, Key: client.key}
			_, port, _ := net.SplitHostPort(address)
			cfg.Envoy.Router = net.JoinHostPort(tt.router, port)
			startEnvoy(t, binary, cfg)
			// The first check has ended when Envoy is live.
			httpClient := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			waitFor(t, httpClient, "http://"+cfg.Envoy.Admin+"/clusters", "warmpath::"+address+"::health_flags::"+tt.state+"\n")
		})
	}
}

// serveHealth runs a gRPC server that asks for client certificates of ca and
// is healthy as an ext_proc server.
func serveHealth(t *testing.T, ca *authority, id identity) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(id.cert, id.key)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(ca.cert)
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	checks := health.NewServer()
	checks.SetServingStatus("envoy.service.ext_proc.v3.ExternalProcessor", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(srv, checks)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// authority issues certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
	file string // its certificate
}

// identity is the files of a certificate and its key.
type identity struct{ cert, key string }

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	id := a.issue(t, "authority", "")
	a.file = id.cert
	return a
}

// issue signs a certificate for host, an address or a name. The first one is
// the authority's own.
func (a *authority) issue(t *testing.T, name, host string) identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		cert.IPAddresses = []net.IP{ip}
	} else if host != "" {
		cert.DNSNames = []string{host}
	}
	if a.key == nil {
		a.key, cert = key, a.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if cert == a.cert {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(a.dir, name+"-"+host)
	id := identity{cert: base + ".pem", key: base + ".key"}
	for file, block := range map[string]*pem.Block{id.cert: {Type: "CERTIFICATE", Bytes: der}, id.key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return id
}
