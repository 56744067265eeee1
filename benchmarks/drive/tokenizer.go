package drive

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// stub is a tokenizer server that takes a given time for an answer and its own
// time to write it, which is not the router's.
type stub struct {
	delay time.Duration
	asked atomic.Uint64
	pool  sync.Pool
}

// stubMemory is what one answer needs, used again by later ones.
type stubMemory struct {
	tokens []kvindex.TokenID
	answer []byte
}

// ServeHTTP answers POST /tokenize as vLLM does (vLLM documentation,
// "OpenAI-Compatible Server", Tokenizer API).
func (s *stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	s.asked.Add(1)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	m, _ := s.pool.Get().(*stubMemory)
	if m == nil {
		m = &stubMemory{}
	}
	defer s.pool.Put(m)
	m.tokens = appendTokens(m.tokens[:0], body)
	b := append(m.answer[:0], `{"count":`...)
	b = strconv.AppendInt(b, int64(len(m.tokens)), 10)
	b = append(b, `,"max_model_len":131072,"tokens":[`...)
	for i, id := range m.tokens {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(id), 10)
	}
	m.answer = append(b, `],"token_strs":null}`...)
	if left := s.delay - time.Since(began); left > 0 {
		t := time.NewTimer(left)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(m.answer)))
	_, _ = w.Write(m.answer)
}

// local is an HTTP server on loopback, on one port or more.
type local struct {
	server    *http.Server
	addresses []string
	done      sync.WaitGroup
}

// startLocal serves h on n ports until stop is called.
func startLocal(h http.Handler, n int) (*local, error) {
	l := &local{server: &http.Server{Handler: h, ReadHeaderTimeout: requestTimeout}}
	var listeners []net.Listener
	for range n {
		li, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			for _, li := range listeners {
				li.Close()
			}
			return nil, fmt.Errorf("listen on port %d of %d: %w", len(listeners)+1, n, err)
		}
		listeners = append(listeners, li)
		l.addresses = append(l.addresses, li.Addr().String())
	}
	for _, li := range listeners {
		l.done.Go(func() { _ = l.server.Serve(li) })
	}
	return l, nil
}

func (l *local) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if l.server.Shutdown(ctx) != nil {
		_ = l.server.Close()
	}
	l.done.Wait()
}
