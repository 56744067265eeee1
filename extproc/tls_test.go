package extproc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.pem, _, a.cert, a.key = (*authority)(nil).sign(t, 1)
	return a
}

// sign returns a certificate for 127.0.0.1 with its key, in PEM; a nil
// authority makes one that signs itself.
func (a *authority) sign(t *testing.T, serial int64) (certPEM, keyPEM []byte, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"router.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := template, key
	if a == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	} else {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: rawKey})
	return certPEM, keyPEM, cert, key
}

func write(t *testing.T, name string, content []byte, changed time.Time) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, changed, changed); err != nil {
		t.Fatal(err)
	}
}

func files(t *testing.T, a *authority, mutual bool) TLSConfig {
	t.Helper()
	dir := t.TempDir()
	cfg := TLSConfig{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	cert, key, _, _ := a.sign(t, 10)
	write(t, cfg.Cert, cert, time.Unix(1, 0))
	write(t, cfg.Key, key, time.Unix(1, 0))
	if mutual {
		cfg.ClientCA = filepath.Join(dir, "ca")
		write(t, cfg.ClientCA, a.pem, time.Unix(1, 0))
	}
	return cfg
}

func TestServer_MutualTLS(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	cfg := testConfig()
	cfg.TLS = files(t, a, true)
	p := newPool(t, 1)
	for _, tc := range []struct {
		name   string
		signer *authority
		ok     bool
	}{{"known client", a, true}, {"unknown client", stranger, false}, {"no certificate", nil, false}} {
		t.Run(tc.name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AddCert(a.cert)
			client := &tls.Config{RootCAs: roots, ServerName: "router.test"}
			if tc.signer != nil {
				cert, key, _, _ := tc.signer.sign(t, 20)
				pair, err := tls.X509KeyPair(cert, key)
				if err != nil {
					t.Fatal(err)
				}
				client.Certificates = []tls.Certificate{pair}
			}
			r := startWith(t, cfg, toFirst(p), p, credentials.NewTLS(client))
			_, err := r.health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "liveness"})
			if tc.ok && err != nil {
				t.Fatal(err)
			}
			if !tc.ok && status.Code(err) != codes.Unavailable {
				t.Fatalf("check: %v, want that the connection fails", err)
			}
			if tc.ok {
				if exchange(t, r.open(t), get()).GetRequestHeaders() == nil {
					t.Error("a request over TLS was not routed")
				}
			}
		})
	}
}

// unnegotiated is TLS without a negotiation of the protocol, as Envoy speaks it
// unless it is told otherwise.
type unnegotiated struct {
	credentials.TransportCredentials
	config *tls.Config
}

func (u unnegotiated) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := tls.Client(raw, u.config)
	err := conn.HandshakeContext(ctx)
	return conn, credentials.TLSInfo{
		State: conn.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, err
}

func (u unnegotiated) Clone() credentials.TransportCredentials { return u }

func TestServer_TLSWithoutALPN(t *testing.T) {
	a := newAuthority(t)
	cfg := testConfig()
	cfg.TLS = files(t, a, false)
	p := newPool(t, 1)
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	client := &tls.Config{RootCAs: roots, ServerName: "router.test"}
	r := startWith(t, cfg, toFirst(p), p, unnegotiated{credentials.NewTLS(client), client})
	if _, err := r.health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "liveness"}); err != nil {
		t.Fatal(err)
	}
	if exchange(t, r.open(t), get()).GetRequestHeaders() == nil {
		t.Error("no reply to headers")
	}
}

func TestCertificates_FollowTheirFiles(t *testing.T) {
	a := newAuthority(t)
	cfg := files(t, a, false)
	c, err := newCertificates(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(100, 0)
	serial := func() int64 {
		t.Helper()
		leaf, err := x509.ParseCertificate(c.at(now).Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.SerialNumber.Int64()
	}
	expect := func(what string, want int64) {
		t.Helper()
		if got := serial(); got != want {
			t.Errorf("%s: certificate %d, want %d", what, got, want)
		}
	}
	expect("at first", 10)

	cert, key, _, _ := a.sign(t, 11)
	write(t, cfg.Cert, cert, time.Unix(2, 0))
	expect("just looked", 10)
	now = now.Add(recheck)
	expect("the key does not fit yet", 10)
	write(t, cfg.Key, key, time.Unix(2, 0))
	now = now.Add(recheck)
	expect("both changed", 11)

	write(t, cfg.Cert, []byte("garbage"), time.Unix(3, 0))
	now = now.Add(recheck)
	expect("garbage", 11)
	if err := os.Remove(cfg.Key); err != nil {
		t.Fatal(err)
	}
	now = now.Add(recheck)
	expect("gone", 11)
	cert, key, _, _ = a.sign(t, 12)
	write(t, cfg.Cert, cert, time.Unix(4, 0))
	write(t, cfg.Key, key, time.Unix(4, 0))
	now = now.Add(recheck)
	expect("back", 12)
}

func TestNew_RefusesUnusableTLS(t *testing.T) {
	a := newAuthority(t)
	good := files(t, a, true)
	broken := good
	broken.ClientCA = good.Key
	absent := good
	absent.Cert += "-absent"
	half := TLSConfig{Cert: good.Cert}
	for name, tc := range map[string]struct {
		cfg  TLSConfig
		want string
	}{
		"authority without a certificate": {broken, "tls.client_ca: " + good.Key + " has no certificate in PEM"},
		"absent":                          {absent, "no such file"},
		"no key":                          {half, "tls.key: empty"},
		"no certificate":                  {TLSConfig{Key: good.Key}, "tls.cert: empty"},
	} {
		cfg := testConfig()
		cfg.TLS = tc.cfg
		_, err := New(cfg, toFirst(nil), newPool(t, 1), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
