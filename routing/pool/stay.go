package pool

import (
	"math"
	"sync"
	"time"
)

// stayWindow is the time constant of [stays], in seconds: requests of some
// minutes, so that chance does not make one engine look slower than the next.
const stayWindow = 60.0

// stays is how long engines lately kept a request, from its admission to its
// end: the time after which what it holds of the cache can be had. All
// endpoints of a model share one, for a few dozen requests of one endpoint tell
// their mean to 10 % only, and waits that differ by that much send requests away
// from what is cached. Safe for concurrent use.
type stays struct {
	mu  sync.Mutex // guards what follows
	sum Work
	at  time.Time
}

// add counts requests that ended by now and returns the mean stay in seconds, 0
// if none ever ended. Work.Tokens is not used.
func (s *stays) add(now time.Time, w Work) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.After(s.at) {
		s.sum = s.sum.decayed(math.Exp(-now.Sub(s.at).Seconds() / stayWindow))
		s.at = now
	}
	s.sum.add(0, w.Seconds, w.N)
	return mean(s.sum.Seconds, s.sum.N)
}

// staysOf returns what the endpoints of m's model share, nil while the model is
// not known. The caller holds mu.
func (p *Pool) staysOf(m *member) *stays {
	if len(m.models) == 0 {
		return nil
	}
	s := p.stays[m.models[0]]
	if s == nil {
		if len(p.stays) > len(p.members) {
			clear(p.stays) // of models that are gone
		}
		s = &stays{}
		p.stays[m.models[0]] = s
	}
	return s
}
