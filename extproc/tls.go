package extproc

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// TLSConfig names the files with which the server proves who it is, in PEM.
// They are read again when they change.
type TLSConfig struct {
	// Cert and Key are the certificate chain and its key. Both empty: plain
	// HTTP/2.
	Cert string `yaml:"cert" help:"certificate chain of the router, PEM; empty: no TLS"`
	Key  string `yaml:"key" help:"key of the certificate, PEM"`
	// ClientCA are the authorities one of which must have signed the
	// certificate of a client. Empty: clients need none.
	ClientCA string `yaml:"client_ca" help:"authorities that must have signed Envoy's certificate, PEM; empty: clients need none"`
}

func (c TLSConfig) enabled() bool { return c.Cert != "" || c.Key != "" || c.ClientCA != "" }

func (c TLSConfig) validate() []error {
	if !c.enabled() {
		return nil
	}
	var errs []error
	if c.Cert == "" {
		errs = append(errs, errors.New("tls.cert: empty; set it to the file of the certificate, or empty all of tls"))
	}
	if c.Key == "" {
		errs = append(errs, errors.New("tls.key: empty; set it to the file of the certificate's key, or empty all of tls"))
	}
	return errs
}

// recheck is how long loaded files are used without a look at their times.
const recheck = time.Second

// certificates hands out a TLS configuration made from files, and follows
// their changes. If changed files cannot be used it keeps the old ones, so that
// a rotation that is half done breaks nothing.
type certificates struct {
	cfg TLSConfig
	log *slog.Logger

	// mu guards the rest.
	mu      sync.Mutex
	current *tls.Config
	stamp   string
	checked time.Time
	failed  bool
}

// newCertificates loads the files.
func newCertificates(cfg TLSConfig, log *slog.Logger) (*certificates, error) {
	c := &certificates{cfg: cfg, log: log, stamp: cfg.stamp()}
	var err error
	c.current, err = cfg.load()
	return c, err
}

// server returns the configuration of a listener.
func (c *certificates) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return c.at(time.Now()), nil
		},
	}
}

// at returns the configuration for a connection made at now.
func (c *certificates) at(now time.Time) *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.checked) < recheck {
		return c.current
	}
	c.checked = now
	stamp := c.cfg.stamp()
	if stamp == c.stamp && !c.failed {
		return c.current
	}
	next, err := c.cfg.load()
	if err != nil {
		if !c.failed || stamp != c.stamp {
			c.log.Error("changed TLS files are not usable; the old ones stay in use", "err", err)
		}
		c.failed, c.stamp = true, stamp
		return c.current
	}
	c.log.Info("loaded changed TLS files", "cert", c.cfg.Cert)
	c.current, c.stamp, c.failed = next, stamp, false
	return c.current
}

// stamp changes when a file does.
func (c TLSConfig) stamp() string {
	var s string
	for _, name := range []string{c.Cert, c.Key, c.ClientCA} {
		info, err := os.Stat(name)
		if err != nil {
			s += "-;"
			continue
		}
		s += fmt.Sprintf("%d,%d;", info.ModTime().UnixNano(), info.Size())
	}
	return s
}

func (c TLSConfig) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("tls: load %s and %s: %w", c.Cert, c.Key, err)
	}
	out := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{pair},
	}
	if c.ClientCA == "" {
		return out, nil
	}
	pem, err := os.ReadFile(c.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("tls.client_ca: %w", err)
	}
	out.ClientCAs = x509.NewCertPool()
	if !out.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls.client_ca: %s has no certificate in PEM", c.ClientCA)
	}
	out.ClientAuth = tls.RequireAndVerifyClientCert
	return out, nil
}
