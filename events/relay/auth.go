package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// subjectRead is the subject of a tokens file that may use a router's read API,
// or follow a relay.
const subjectRead = "read"

// tokens says which token belongs to whom. It keeps hashes, so that comparing
// tells nothing about the tokens.
type tokens map[string][][sha256.Size]byte

// readTokens reads a file of lines SUBJECT TOKEN. Empty lines and those that
// begin with # are skipped.
func readTokens(file string) (tokens, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	t := tokens{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 2 || len(f[1]) < 16 {
			// The line may hold a secret: it is not shown.
			return nil, fmt.Errorf("%s:%d: not SUBJECT TOKEN with a token of 16 characters or more; make one with: openssl rand -hex 16", file, n)
		}
		t[f[0]] = append(t[f[0]], sha256.Sum256([]byte(f[1])))
	}
	return t, lines.Err()
}

// has tells whether token belongs to subject.
func (t tokens) has(subject, token string) bool {
	sum := sha256.Sum256([]byte(token))
	ok := 0
	for _, x := range t[subject] {
		ok |= subtle.ConstantTimeCompare(sum[:], x[:])
	}
	return ok == 1
}

// caller is who makes a call.
type caller struct {
	// cert is the client's verified certificate, nil if there is none.
	cert *x509.Certificate
	// token is what it showed, empty if nothing.
	token string
}

func callerOf(ctx context.Context) caller {
	var c caller
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.VerifiedChains) > 0 {
			c.cert = info.State.VerifiedChains[0][0]
		}
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		for _, v := range md.Get("authorization") {
			if t, ok := strings.CutPrefix(v, "Bearer "); ok {
				c.token = t
			}
		}
	}
	return c
}

// access says who may call a server. Where neither certificates nor tokens are
// asked for, everybody may: a router is so on loopback alone, a relay wherever
// it is told to be.
type access struct {
	mtls       bool
	tokensFile string
}

// errDenied is the answer to who has no right to call; it does not say why.
var errDenied = errors.New("no right to make this call: it takes a client certificate, or a token, of the endpoint, or one for reading; see tls.client_ca and tokens_file")

// endpoint tells whether a caller may report for an endpoint.
func (a access) endpoint(c caller, name, address string) error {
	return a.allow(c, func(cert *x509.Certificate) bool { return speaksFor(cert, name, address) }, name, address)
}

// reader tells whether a caller may read, a router's state or a relay's: by any certificate that
// the authorities signed, or a token for reading.
func (a access) reader(c caller) error {
	return a.allow(c, func(*x509.Certificate) bool { return true }, subjectRead)
}

func (a access) allow(c caller, cert func(*x509.Certificate) bool, subjects ...string) error {
	if !a.mtls && a.tokensFile == "" {
		return nil
	}
	if a.mtls && c.cert != nil && cert(c.cert) {
		return nil
	}
	if a.tokensFile == "" || c.token == "" {
		return errDenied
	}
	// Read for every stream and every call, so that a token that was changed
	// counts at once; the file is small.
	t, err := readTokens(a.tokensFile)
	if err != nil {
		return fmt.Errorf("tokens_file: %w", err)
	}
	for _, s := range subjects {
		if t.has(s, c.token) {
			return nil
		}
	}
	return errDenied
}

// bearer shows the token in a file with every call.
type bearer struct{ file string }

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text, err := os.ReadFile(b.file)
	if err != nil {
		return nil, fmt.Errorf("token_file: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(text))}, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials]. Whether
// a token may go over the wire in clear is said by tls.ca being empty.
func (b bearer) RequireTransportSecurity() bool { return false }
