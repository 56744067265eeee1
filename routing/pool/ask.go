package pool

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

// asker sends small requests to one server over one connection, which it keeps
// (RFC 9112 section 9.3). With a thousand engines to be asked every second,
// most of what net/http's transport does for a request, three goroutines that
// hand it on to each other, is most of what an idle router does. Not safe for
// concurrent use; close must be called at the end.
type asker struct {
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	address string
	conn    net.Conn
	in      *bufio.Reader
	// unwatch ends that the end of the context ends what conn is doing.
	unwatch func() bool
}

// asker returns an asker of the server of a URL; nil if only the client can ask
// it: over TLS, through a proxy, or by a transport of another kind.
func (p *Pool) asker(u *url.URL) *asker {
	t, ok := p.client.Transport.(*http.Transport)
	if !ok || t.Proxy != nil || u.Scheme != "http" || u.User != nil {
		return nil
	}
	a := &asker{dial: t.DialContext, address: u.Host}
	if u.Port() == "" {
		a.address = net.JoinHostPort(u.Hostname(), "80")
	}
	if a.dial == nil {
		a.dial = new(net.Dialer).DialContext
	}
	return a
}

// getRequest returns the bytes of a GET.
func getRequest(u *url.URL) []byte {
	// To inflate an answer costs more than to read it from a neighbour as it is.
	return []byte("GET " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\nUser-Agent: warmpath\r\nAccept-Encoding: identity\r\n\r\n")
}

// get sends a request and reads the answer's body, of which it reads at most
// one byte more than most, into body. A connection that was kept may have been
// closed by the server in the meantime; then the request is sent once more.
func (a *asker) get(ctx context.Context, request []byte, timeout time.Duration, body *bytes.Buffer, most int64) (status int, err error) {
	deadline := time.Now().Add(timeout)
	for {
		kept := a.conn != nil
		if !kept {
			if err := a.connect(ctx, deadline); err != nil {
				return 0, err
			}
		}
		status, begun, err := a.exchange(ctx, deadline, request, body, most)
		if err == nil {
			return status, nil
		}
		a.close()
		if !kept || begun || ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, err
		}
	}
}

func (a *asker) connect(ctx context.Context, deadline time.Time) error {
	dialing, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := a.dial(dialing, "tcp", a.address)
	if err != nil {
		return err
	}
	a.conn = conn
	if a.in == nil {
		a.in = bufio.NewReader(conn)
	} else {
		a.in.Reset(conn)
	}
	a.unwatch = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return nil
}

// exchange sends the request and reads the answer. begun tells whether there
// was any of it.
func (a *asker) exchange(ctx context.Context, deadline time.Time, request []byte, body *bytes.Buffer, most int64) (status int, begun bool, err error) {
	// The request fits into the socket's buffer, which is empty: writing does not
	// wait.
	if err := a.conn.SetReadDeadline(deadline); err != nil {
		return 0, false, err
	}
	if err := ctx.Err(); err != nil { // the deadline may have replaced the one that says so
		return 0, false, err
	}
	if _, err := a.conn.Write(request); err != nil {
		return 0, false, err
	}
	if _, err := a.in.Peek(1); err != nil {
		return 0, false, err
	}
	resp, err := http.ReadResponse(a.in, nil)
	for err == nil && resp.StatusCode < http.StatusOK { // hints before the answer
		resp, err = http.ReadResponse(a.in, nil)
	}
	if err != nil {
		return 0, true, err
	}
	defer resp.Body.Close()
	if _, err := body.ReadFrom(io.LimitReader(resp.Body, most+1)); err != nil {
		return 0, true, err
	}
	// A deadline that passes later would wake the process for nothing.
	if err := a.conn.SetReadDeadline(time.Time{}); err != nil || resp.Close || int64(body.Len()) > most || a.in.Buffered() > 0 {
		a.close()
	}
	return resp.StatusCode, true, nil
}

// close closes the connection, if there is one.
func (a *asker) close() {
	if a != nil && a.conn != nil {
		a.unwatch()
		a.conn.Close()
		a.conn = nil
	}
}

// fetch is [asker.get] through the client, for what a cannot ask.
func (p *Pool) fetch(ctx context.Context, u *url.URL, timeout time.Duration, body *bytes.Buffer, most int64) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := p.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = body.ReadFrom(io.LimitReader(resp.Body, most+1))
	return resp.StatusCode, err
}
