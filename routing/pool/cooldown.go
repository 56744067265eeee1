package pool

import (
	"net/http"
	"time"
)

// Cool-down. Envoy's override of the destination ignores its own health checks
// and outlier detection, so endpoints that fail are left out by the router.
//
// cool is 0 while the endpoint is trusted. A failure sets it to the end of a
// cool-down, which doubles with each further failure. After that time the
// endpoint is on trial: the next request that reserves it starts the time
// anew, so one request at a time probes it, and a success ends the cool-down.
// A health probe that says "ready" does not: an engine whose /health answers
// may still fail every request.
const (
	coolFirst = time.Second
	coolMost  = 30 * time.Second
	// coolAfter500 is how many failures in a row that may be the request's own
	// fault, such as status 500, start a cool-down. One request must not be able
	// to take down every endpoint it is retried on.
	coolAfter500 = 3
)

// Outcome is what a request told about the endpoint it was sent to.
type Outcome uint8

const (
	// OutcomeUnknown: nothing, for example an answer to a request that the
	// client ended.
	OutcomeUnknown Outcome = iota
	// OutcomeSuccess: the endpoint answered.
	OutcomeSuccess
	// OutcomeFault: an error that may be the request's own fault.
	OutcomeFault
	// OutcomeFailure: the endpoint cannot serve: connect failure, reset,
	// overload, or the proxy went to another one.
	OutcomeFailure
)

// OutcomeOf returns what an HTTP status says about the endpoint.
func OutcomeOf(status int) Outcome {
	switch {
	case status < 200:
		return OutcomeUnknown
	case status == http.StatusBadGateway, status == http.StatusServiceUnavailable, status == http.StatusGatewayTimeout:
		return OutcomeFailure
	case status == http.StatusNotImplemented:
		return OutcomeSuccess
	case status >= 500:
		return OutcomeFault
	}
	return OutcomeSuccess
}

// Observe records the outcome of a request and reports whether the endpoint
// has just begun, or begun anew, to cool down.
func (s *State) Observe(now time.Time, o Outcome) bool {
	switch o {
	case OutcomeSuccess:
		if s.failures.Load() != 0 {
			s.failures.Store(0)
		}
		if s.cool.Load() != 0 {
			s.cool.Store(0)
			s.touch()
		}
	case OutcomeFault:
		n := s.failures.Add(1)
		if s.cool.Load() == 0 && n < coolAfter500 {
			return false
		}
		s.coolDown(now, n-coolAfter500)
		return true
	case OutcomeFailure:
		s.coolDown(now, s.failures.Add(1)-1)
		return true
	case OutcomeUnknown:
	}
	return false
}

// coolDown starts the time of the nth failure that counts, from 0.
func (s *State) coolDown(now time.Time, n int32) {
	d := coolMost
	if n = max(n, 0); n < 5 {
		d = min(coolMost, coolFirst<<n)
	}
	s.cool.Store(now.Add(d).UnixNano())
	s.touch()
}

// Cooling tells whether the endpoint failed a short time ago and should get no
// request at now.
func (s *State) Cooling(now time.Time) bool {
	c := s.cool.Load()
	return c != 0 && now.UnixNano() < c
}

// Cools returns when the cool-down ends or ended, in Unix nanoseconds, 0 if the
// endpoint is trusted.
func (s *State) Cools() int64 { return s.cool.Load() }

// CoolUntil returns when the cool-down ends or ended, zero if the endpoint is
// trusted.
func (s *State) CoolUntil() time.Time {
	if c := s.cool.Load(); c != 0 {
		return time.Unix(0, c)
	}
	return time.Time{}
}

// Try must be called when a request is sent to the endpoint. If the endpoint
// is on trial, it keeps others away until the trial has ended or a second has
// passed.
func (s *State) Try(now time.Time) {
	c := s.cool.Load()
	if c != 0 && now.UnixNano() >= c {
		s.cool.CompareAndSwap(c, now.Add(coolFirst).UnixNano())
		s.touch()
	}
}
