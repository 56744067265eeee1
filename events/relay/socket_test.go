package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

const testAddress = "127.0.0.1:8000"

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
	n    int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.file, _ = a.issue("ca", nil)
	return a
}

// issue writes a certificate with those alternative names, and its key.
func (a *authority) issue(name string, sans func(*x509.Certificate)) (cert, key string) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.n++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, IsCA: a.cert == nil,
	}
	if sans != nil {
		sans(tmpl)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, k
	}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, parent, &k.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			a.t.Fatal(err)
		}
		a.key = k
	}
	kb, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	write := func(file, kind string, b []byte) string {
		path := filepath.Join(a.dir, file)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			a.t.Fatal(err)
		}
		return path
	}
	return write(name+".pem", "CERTIFICATE", der), write(name+".key", "EC PRIVATE KEY", kb)
}

// run runs f until the test ends.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ended: %v", err)
		}
	})
}

func listenLocal(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func quickConfig() Config {
	cfg := DefaultConfig()
	cfg.Window, cfg.Heartbeat = 0, 20*time.Millisecond
	cfg.BackoffMin, cfg.BackoffMax, cfg.DrainTimeout = 2*time.Millisecond, 10*time.Millisecond, time.Second
	return cfg
}

func quickRouter() RouterConfig {
	cfg := DefaultRouterConfig()
	cfg.BackoffMin, cfg.BackoffMax = 2*time.Millisecond, 10*time.Millisecond
	return cfg
}

// startRelay runs a relay whose engine holds three blocks, and returns where
// it listens.
func startRelay(t *testing.T, cfg Config, hasher kvindex.Hasher) (address string) {
	t.Helper()
	return startRelayOn(t, cfg, hasher, Network{})
}

// startRelayOn is startRelay with another network.
func startRelayOn(t *testing.T, cfg Config, hasher kvindex.Hasher, network Network) (address string) {
	t.Helper()
	r, err := New(cfg, hasher, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(1, 1)), network)
	if err != nil {
		t.Fatal(err)
	}
	var ln net.Listener
	if cfg.Listen != "" {
		ln = listenLocal(t)
		address = ln.Addr().String()
	}
	e := newSide(t)
	own := testAddress
	if cfg.Endpoint != "" {
		own = "127.0.0.1:1" // the relay's own way to the engine
	}
	tap := r.Open(events.Subject{Address: own, Model: "m"}, e.w)
	c := chain{kvindex.Scope{Model: "m", BlockSize: 16}, []kvindex.ContentHash{1, 2, 3}}
	root := hasher.Root(c.scope)
	tap.Root(root, c.scope)
	e.w.Store(kvindex.Stored{Root: root, Names: c.names(), Contents: c.contents})
	tap.Sync(events.Point{Sequence: 4, Sequenced: true, Trust: kvindex.TrustExact})
	run(t, func(ctx context.Context) error { return r.Run(ctx, ln) })
	t.Cleanup(tap.Close)
	return address
}

// followed is a publisher of a router.
type followed struct {
	side
	mu   sync.Mutex
	last events.FeedStatus // guarded by mu
	seen chan struct{}
}

func (f *followed) status() events.FeedStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// follow has a source feed a publisher until the test ends.
func follow(t *testing.T, src *Source, relay string) *followed {
	t.Helper()
	f := &followed{side: newSide(t), seen: make(chan struct{}, 1)}
	feed := events.Feed{
		Subject: events.Subject{Publisher: pool.Publisher{Publisher: f.w.Publisher(), Relay: relay}, Endpoint: "engine-0", Address: testAddress, Model: "m", State: new(pool.State)},
		Writer:  f.w,
		Report: func(st events.FeedStatus) {
			f.mu.Lock()
			f.last = st
			f.mu.Unlock()
			select {
			case f.seen <- struct{}{}:
			default:
			}
		},
	}
	run(t, func(ctx context.Context) error {
		_ = src.Follow(ctx, feed)
		return nil
	})
	return f
}

// await waits until the status is as wanted.
func (f *followed) await(t *testing.T, what string, ok func(events.FeedStatus) bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for !ok(f.status()) {
		select {
		case <-f.seen:
		case <-limit:
			t.Fatalf("not %s: %+v", what, f.status())
		}
	}
}

func (f *followed) awaitExact(t *testing.T) {
	t.Helper()
	f.await(t, "exact", func(st events.FeedStatus) bool { return st.Trust == kvindex.TrustExact && st.Err == nil })
	if n := len(f.held()); n != 3 {
		t.Errorf("%d blocks held, want 3", n)
	}
}

func (f *followed) awaitError(t *testing.T, text string) {
	t.Helper()
	f.await(t, "refused with "+text, func(st events.FeedStatus) bool { return st.Err != nil && strings.Contains(st.Err.Error(), text) })
	if n := len(f.held()); n != 0 {
		t.Errorf("%d blocks held, want none", n)
	}
}

func newTestSource(t *testing.T, cfg RouterConfig, hasher kvindex.Hasher, random bool) *Source {
	t.Helper()
	src, err := NewSource(cfg, hasher, random, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(2, 2)), Network{})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func endpointIP(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }

func TestSubscribe_TLS(t *testing.T) {
	a := newAuthority(t)
	cfg := quickConfig()
	cfg.TLS.Cert, cfg.TLS.Key = a.issue("relay", endpointIP)
	cfg.TLS.ClientCA = a.file
	address := startRelay(t, cfg, testHasher)
	// The same, but its certificate is good for the host and not the endpoint's.
	other := cfg
	other.TLS.Cert, other.TLS.Key = a.issue("other", func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} })
	otherAddress := startRelay(t, other, testHasher)
	_, port, _ := net.SplitHostPort(otherAddress)

	router := quickRouter()
	router.TLS.CA = a.file
	router.TLS.Cert, router.TLS.Key = a.issue("router", nil)
	follow(t, newTestSource(t, router, testHasher, false), address).awaitExact(t)
	follow(t, newTestSource(t, router, testHasher, false), "localhost:"+port).awaitError(t, "must not speak for it")
	// A URI says which of the endpoints at an IP it is: its own, or not. The host
	// that is dialed must be in the certificate beside it.
	for _, tt := range []struct {
		uri, want string
		ips       []net.IP
	}{
		{testAddress, "", []net.IP{net.IPv4(127, 0, 0, 1)}},
		{"127.0.0.1:8001", "must not speak for it", []net.IP{net.IPv4(127, 0, 0, 1)}},
		{testAddress, "certificate", nil},
	} {
		bound := cfg
		bound.TLS.Cert, bound.TLS.Key = a.issue("bound", func(c *x509.Certificate) {
			c.URIs, c.IPAddresses = []*url.URL{{Scheme: "spiffe", Host: "cluster"}, {Scheme: "warmpath", Host: tt.uri}}, tt.ips
		})
		f := follow(t, newTestSource(t, router, testHasher, false), startRelay(t, bound, testHasher))
		if tt.want == "" {
			f.awaitExact(t)
			continue
		}
		f.awaitError(t, tt.want)
	}
	bare := router
	bare.TLS.Cert, bare.TLS.Key = "", ""
	follow(t, newTestSource(t, bare, testHasher, false), address).awaitError(t, "tls")
	bare.TLS.CA = newAuthority(t).file
	follow(t, newTestSource(t, bare, testHasher, false), address).awaitError(t, "certificate")
}

// A relay with a tokens file is followed by those alone that show a token of
// it, and tells nobody its fingerprint.
func TestSubscribe_Tokens(t *testing.T) {
	dir := t.TempDir()
	write := func(file, text string) string {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	reads, other := strings.Repeat("r", 32), strings.Repeat("o", 32)
	cfg := quickConfig()
	cfg.TokensFile = write("tokens", "read "+reads+"\n"+testAddress+" "+other+"\n")
	address := startRelay(t, cfg, testHasher)
	router := quickRouter()
	follow(t, newTestSource(t, router, testHasher, false), address).awaitError(t, errDenied.Error())
	forPeers := router
	forPeers.Peers, forPeers.PeersTokenFile = []string{"routers.test:1"}, write("peers", reads)
	follow(t, newTestSource(t, forPeers, testHasher, false), address).awaitError(t, errDenied.Error())
	router.TokenFile = write("other", other)
	follow(t, newTestSource(t, router, testHasher, false), address).awaitError(t, errDenied.Error())
	router.TokenFile = write("reads", reads)
	follow(t, newTestSource(t, router, testHasher, false), address).awaitExact(t)

	f := follow(t, newTestSource(t, router, kvindex.NewHasher(1), false), address)
	f.awaitError(t, "index.seed_file")
	if text, own := f.status().Err.Error(), fmt.Sprintf("%016x", testHasher.Fingerprint()); strings.Contains(text, own) {
		t.Errorf("the relay's fingerprint is told to a stranger: %s", text)
	}
}

func TestConfig_WarnsOfARelayForEverybody(t *testing.T) {
	for listen, want := range map[string]int{"0.0.0.0:5560": 1, "127.0.0.1:5560": 0, "": 0} {
		cfg := DefaultConfig()
		cfg.Listen = listen
		if got := cfg.Warnings(); len(got) != want || want > 0 && !strings.HasPrefix(got[0], "listen:") {
			t.Errorf("%q: %q", listen, got)
		}
		cfg.TokensFile = "tokens"
		if got := cfg.Warnings(); len(got) != 0 {
			t.Errorf("%q with tokens: %q", listen, got)
		}
	}
}

func TestSubscribe_SeedsMustAgree(t *testing.T) {
	address := startRelay(t, quickConfig(), testHasher)
	follow(t, newTestSource(t, quickRouter(), testHasher, false), address).awaitExact(t)
	named := quickConfig()
	named.Endpoint = testAddress
	follow(t, newTestSource(t, quickRouter(), testHasher, false), startRelay(t, named, testHasher)).awaitExact(t)
	follow(t, newTestSource(t, quickRouter(), kvindex.NewHasher(1), false), address).awaitError(t, "index.seed_file")
	follow(t, newTestSource(t, quickRouter(), testHasher, true), address).awaitError(t, "index.seed_file")
	follow(t, newTestSource(t, quickRouter(), testHasher, true), pool.RelayPush).awaitError(t, "index.seed_file")
}

// pushed runs a router to which a relay reports by itself.
func pushed(t *testing.T, router RouterConfig, relay Config) *followed {
	t.Helper()
	src := newTestSource(t, router, testHasher, false)
	f := follow(t, src, pool.RelayPush)
	ln := listenLocal(t)
	srv := NewServer(router, src, View{}, slog.New(slog.DiscardHandler))
	run(t, func(ctx context.Context) error { return srv.Run(ctx, ln) })
	relay.Listen, relay.ReportTo = "", []string{ln.Addr().String()}
	startRelay(t, relay, testHasher)
	return f
}

// A relay may report for its own endpoint only: a certificate or a token says
// which that is.
func TestReport_OnlyForTheOwnEndpoint(t *testing.T) {
	a := newAuthority(t)
	router := quickRouter()
	router.Timeout, router.Listen = 50*time.Millisecond, "127.0.0.1:0"
	router.TLS.Cert, router.TLS.Key = a.issue("router", endpointIP)
	router.TLS.ClientCA = a.file
	mine, other := strings.Repeat("m", 32), strings.Repeat("o", 32)
	tokensFile := filepath.Join(a.dir, "tokens")
	write := func(file, text string) string {
		path := filepath.Join(a.dir, file)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("tokens", "# who may report\n"+testAddress+" "+mine+"\n127.0.0.1:8001 "+other+"\nread "+strings.Repeat("r", 32)+"\n")
	byToken := quickRouter()
	byToken.Timeout, byToken.TokensFile = 50*time.Millisecond, tokensFile
	for _, tt := range []struct {
		name   string
		router RouterConfig
		sans   func(*x509.Certificate)
		token  string
		ok     bool
	}{
		{"certificate with the address", router, endpointIP, "", true},
		{"certificate with the name", router, func(c *x509.Certificate) { c.DNSNames = []string{"engine-0"} }, "", true},
		{"certificate with the URI", router, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "warmpath", Host: testAddress}} }, "", true},
		{"certificate of another endpoint", router, func(c *x509.Certificate) {
			c.DNSNames, c.URIs = []string{"engine-1"}, []*url.URL{{Scheme: "warmpath", Host: "127.0.0.1:8001"}}
		}, "", false},
		{"certificate of another endpoint at the same IP", router, func(c *x509.Certificate) {
			endpointIP(c)
			c.URIs = []*url.URL{{Scheme: "warmpath", Host: "127.0.0.1:8001"}}
		}, "", false},
		{"token of the endpoint", byToken, nil, mine, true},
		{"token of another endpoint", byToken, nil, other, false},
		{"token for reading", byToken, nil, strings.Repeat("r", 32), false},
		{"no token", byToken, nil, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := quickConfig()
			if tt.sans != nil {
				cfg.TLS.CA = a.file
				cfg.TLS.Cert, cfg.TLS.Key = a.issue("client", tt.sans)
			}
			if tt.token != "" {
				cfg.TokenFile = write("token", tt.token+"\n")
			}
			f := pushed(t, tt.router, cfg)
			if tt.ok {
				f.awaitExact(t)
				return
			}
			f.awaitError(t, errNoReports.Error())
		})
	}
}

// What is left to report of a publisher that is followed no more does not
// overrule what is reported of the same publisher since.
func TestReport_ClosedFeedYieldsToItsSuccessor(t *testing.T) {
	router := quickRouter()
	src := newTestSource(t, router, testHasher, false)
	f := follow(t, src, pool.RelayPush)
	ln := listenLocal(t)
	address := ln.Addr().String()
	srv := NewServer(router, src, View{}, slog.New(slog.DiscardHandler))
	run(t, func(ctx context.Context) error { return srv.Run(ctx, ln) })
	cfg := quickConfig()
	cfg.Listen, cfg.ReportTo = "", []string{address}
	r, err := New(cfg, testHasher, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(1, 1)), Network{})
	if err != nil {
		t.Fatal(err)
	}
	tap := r.Open(events.Subject{Address: testAddress, Model: "m"}, newSide(t).w)
	tap.Close()
	startRelay(t, cfg, testHasher)
	f.awaitExact(t)
	old := r.feed(0)
	before := old.head()
	if err := r.session(t.Context(), old, address, address); !errors.Is(err, errDrained) {
		t.Errorf("the closed feed's session ended with %v, want that there is nothing more to tell", err)
	}
	if old.head() != before {
		t.Errorf("a closed feed went on from %v to %v", before, old.head())
	}
	f.awaitExact(t)
}

func TestReadTokens_NamesTheLineNotTheSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte("read aaaaaaaaaaaaaaaaaaaa\npeer short-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := readTokens(file)
	if err == nil || !strings.Contains(err.Error(), ":2:") || strings.Contains(err.Error(), "short-secret") {
		t.Errorf("error %v", err)
	}
}

func TestConfig_ValidateNamesEveryFault(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	if err := DefaultRouterConfig().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	deaf := DefaultConfig()
	deaf.Listen, deaf.TokensFile = "", "tokens"
	if err := deaf.Validate(); err == nil || !strings.Contains(err.Error(), "tokens_file:") {
		t.Errorf("tokens for nobody are valid: %v", err)
	}
	bad := Config{Listen: "x", Endpoint: "z", ReportTo: []string{"y"}, Window: -1, LogBytes: 1, TLS: TLSConfig{Cert: "c"}}
	for _, field := range []string{"listen:", "endpoint:", "report_to[0]:", "window:", "log_bytes:", "heartbeat:", "timeout:", "drain_timeout:", "backoff_min:", "tls.cert:"} {
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("no fault of %s in %v", field, err)
		}
	}
	slow := DefaultConfig()
	for beat, ok := range map[time.Duration]bool{20 * time.Second: true, 20*time.Second + 1: false} {
		slow.Heartbeat = beat
		if err := slow.Validate(); (err == nil) != ok || !ok && !strings.HasPrefix(err.Error(), "heartbeat:") {
			t.Errorf("heartbeat %v: %v", beat, err)
		}
		if three := 3 * beat; ok && patience(uint32(beat.Milliseconds())) < three {
			t.Errorf("routers wait less than %v for a heartbeat of %v", three, beat)
		}
	}
	router := RouterConfig{Listen: "x", Peers: []string{"routers:9005", "y"}, PeersTimeout: 1, TokenFile: "t", PeersTokenFile: "t", TLS: TLSConfig{Cert: "c", Key: "k"}}
	for _, field := range []string{"listen:", "peers[1]:", "peers_timeout:", "peers_token_file:", "tls.ca:"} {
		if err := router.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("no fault of %s in %v", field, err)
		}
	}
	alone := DefaultRouterConfig()
	alone.PeersTokenFile = "p"
	if err := alone.Validate(); err == nil || !strings.Contains(err.Error(), "peers_token_file:") {
		t.Errorf("a token for nobody is valid: %v", err)
	}
	open := DefaultRouterConfig()
	open.Listen = "0.0.0.0:9005"
	if err := open.Validate(); err == nil || !strings.Contains(err.Error(), "tokens_file") {
		t.Errorf("a server for everybody is valid: %v", err)
	}
}
