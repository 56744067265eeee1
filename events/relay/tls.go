package relay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// TLSConfig names files in PEM. They are read again when they change.
type TLSConfig struct {
	// Cert and Key are this process's certificate chain and key: what its
	// server shows, and what it shows to servers that ask for one.
	Cert string `yaml:"cert" help:"certificate chain of this process, PEM, for its server and for servers that ask for one; empty: none"`
	Key  string `yaml:"key" help:"key of the certificate, PEM"`
	// CA are the authorities that must have signed a server's certificate.
	CA string `yaml:"ca" help:"authorities that must have signed the certificates of servers that are called, PEM; empty: calls are not encrypted"`
	// ClientCA are the authorities that must have signed a client's.
	ClientCA string `yaml:"client_ca" help:"authorities that must have signed the certificates of clients, PEM; empty: clients need none"`
}

func (c TLSConfig) validate(serves, calls bool) []error {
	var errs []error
	if (c.Cert == "") != (c.Key == "") {
		errs = append(errs, errors.New("tls.cert: cert and key go together; set both or none"))
	}
	if c.ClientCA != "" && c.Cert == "" {
		errs = append(errs, errors.New("tls.client_ca: set without cert and key, so there is no TLS that could ask for a certificate; set them too"))
	}
	if c.ClientCA != "" && !serves {
		errs = append(errs, errors.New("tls.client_ca: set, but nothing is served; set listen, or empty it"))
	}
	if c.CA != "" && !calls {
		errs = append(errs, errors.New("tls.ca: set, but nobody is called; empty it"))
	}
	return errs
}

// server returns the credentials of a listener. The files are read for every
// connection, of which there are few; if they cannot be used, because they are
// just being replaced, the last that could be are.
func (c TLSConfig) server() (credentials.TransportCredentials, error) {
	if c.Cert == "" {
		return insecure.NewCredentials(), nil
	}
	first, err := c.material()
	if err != nil {
		return nil, err
	}
	var last atomic.Pointer[tls.Config]
	last.Store(first)
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			if now, err := c.material(); err == nil {
				last.Store(now)
			}
			return last.Load(), nil
		},
	}), nil
}

// material reads the files of a server.
func (c TLSConfig) material() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("tls: load %s and %s: %w", c.Cert, c.Key, err)
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{pair}}
	if c.ClientCA == "" {
		return out, nil
	}
	if out.ClientCAs, err = loadPool(c.ClientCA); err != nil {
		return nil, fmt.Errorf("tls.client_ca: %w", err)
	}
	out.ClientAuth = tls.RequireAndVerifyClientCert
	return out, nil
}

// client returns the credentials of one connection to a server, from the files
// as they are now.
func (c TLSConfig) client() (credentials.TransportCredentials, error) {
	if c.CA == "" {
		return insecure.NewCredentials(), nil
	}
	roots, err := loadPool(c.CA)
	if err != nil {
		return nil, fmt.Errorf("tls.ca: %w", err)
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("tls: load %s and %s: %w", c.Cert, c.Key, err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(out), nil
}

func loadPool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM", file)
	}
	return pool, nil
}

// speaksFor tells whether a certificate is that of an endpoint: a subject
// alternative name is the IP of its address, its host name, or its name. A
// certificate with URIs warmpath://IP:PORT is for those endpoints alone: one that
// a router dials must have the IP, too, and several engines may share that.
func speaksFor(cert *x509.Certificate, name, address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	bound := false
	for _, san := range cert.URIs {
		if san.Scheme == "warmpath" {
			if san.Host == address {
				return true
			}
			bound = true
		}
	}
	if bound {
		return false
	}
	ip := net.ParseIP(host)
	if slices.ContainsFunc(cert.IPAddresses, ip.Equal) {
		return true
	}
	return slices.ContainsFunc(cert.DNSNames, func(san string) bool { return san == name || san == host })
}
