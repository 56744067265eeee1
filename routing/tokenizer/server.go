package tokenizer

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// server is one tokenizer.
type server struct {
	// base is its URL without a path.
	base string

	// mu guards the breaker.
	mu       sync.Mutex
	failures int
	// until is when an open breaker lets the next request try; rest is how long
	// it stays open after that one fails.
	until time.Time
	rest  time.Duration
}

// allow tells whether a request may be sent. An open breaker lets one request
// try after its rest, and the others wait for what comes of it.
func (s *server) allow(now time.Time, cfg *Config) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failures < cfg.BreakerFailures {
		return true
	}
	if now.Before(s.until) {
		return false
	}
	s.until = now.Add(cfg.Attempt)
	return true
}

// closed tells whether the breaker is closed.
func (s *server) closed(cfg *Config) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failures < cfg.BreakerFailures
}

// report counts how a request ended. It reports whether the breaker changed.
func (s *server) report(ok bool, now time.Time, cfg *Config) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := s.failures >= cfg.BreakerFailures
	if ok {
		s.failures, s.rest = 0, 0
		return open
	}
	if s.failures < cfg.BreakerFailures {
		s.failures++
	}
	if s.failures < cfg.BreakerFailures {
		return false
	}
	s.rest = min(max(2*s.rest, cfg.BreakerRest), 30*cfg.BreakerRest)
	s.until = now.Add(s.rest)
	return !open
}

// lane is one model on one server.
type lane struct {
	*server
	model string
	// identity is nil until the server was examined, see Client.examine.
	identity atomic.Pointer[identity]
	// examined is when that was last tried, in nanoseconds since 1970; 0: never.
	examined atomic.Int64
	// refuses is until when the server is believed not to serve the model, in
	// nanoseconds since 1970.
	refuses atomic.Int64
	// queued: waits to be examined, or is being examined.
	queued atomic.Bool
}

func (l *lane) serves(now time.Time) bool { return now.UnixNano() >= l.refuses.Load() }

// identity is one tokenizer with one chat template, as far as its answers to
// the examination show. Servers that answer alike share it.
type identity struct {
	// ns is the namespace of what is learned from it.
	ns key
	// bytesPerToken is a moving average, as float64 bits.
	bytesPerToken atomic.Uint64
}

// latencies estimates the 95th percentile of answers, by size of the request:
// a long prompt takes longer.
type latencies struct {
	mu    sync.Mutex
	sizes [5]struct {
		ring [64]time.Duration
		n    int
	}
	p95s [5]atomic.Int64
}

// sizeClass is 0 up to 4 KiB and one more for each factor of four.
func sizeClass(bytes int) int {
	c := 0
	for n := bytes >> 12; n > 0 && c < 4; n >>= 2 {
		c++
	}
	return c
}

func (l *latencies) observe(bytes int, d time.Duration) {
	c := sizeClass(bytes)
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.sizes[c]
	s.ring[s.n%len(s.ring)] = d
	if s.n++; s.n%16 == 0 {
		sorted := slices.Clone(s.ring[:min(s.n, len(s.ring))])
		slices.Sort(sorted)
		l.p95s[c].Store(int64(sorted[len(sorted)*95/100]))
	}
}

// p95 returns 0 as long as too little was observed.
func (l *latencies) p95(bytes int) time.Duration {
	return time.Duration(l.p95s[sizeClass(bytes)].Load())
}
