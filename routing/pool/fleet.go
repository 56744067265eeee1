package pool

import (
	"maps"
	"math"
	"slices"
	"sync"
	"time"
)

// fleet is what the engines of one model have in common, learned from all of
// them. Safe for concurrent use.
type fleet struct {
	mu sync.Mutex // guards what follows
	// stays are the requests that ended lately and how long engines ran them,
	// from admission to end: after that time what a request holds of the cache
	// can be had. They are common because a few dozen requests of one endpoint
	// tell their mean to 10 % only, and waits that differ by that much send
	// requests away from what is cached.
	stays Work
	at    time.Time
	// rate is a mean of the prefill rates that were learned, 0 if none was.
	rate float64
}

const (
	// stayWindow is the time constant of fleet.stays, in seconds: long
	// enough for some dozens of requests of every endpoint, short against the
	// hours in which traffic changes.
	stayWindow = 60.0
	// rateWeight is the weight of one load in fleet.rate.
	rateWeight = 0.05
)

// stay counts requests that ended by now and returns the mean time that one
// runs, in seconds, 0 if none ever ended. Work.Tokens is not used.
func (f *fleet) stay(now time.Time, w Work) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.After(f.at) {
		f.stays = f.stays.decayed(math.Exp(-now.Sub(f.at).Seconds() / stayWindow))
		f.at = now
	}
	f.stays.add(0, w.Seconds, w.N)
	return mean(f.stays.Seconds, f.stays.N)
}

// lend has l count in the fleet's rate, or gives it that rate if its engine's
// own is not learned: beside engines that are known to be fast, a new one must
// not look slow, or slow ones beside it.
func (f *fleet) lend(l *Load) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case l.Has&FieldPrefillRate != 0 && !l.RateLent:
		if f.rate == 0 {
			f.rate = l.PrefillRate
		}
		f.rate += rateWeight * (l.PrefillRate - f.rate)
	case f.rate > 0:
		l.PrefillRate, l.RateLent = f.rate, true
		l.Has |= FieldPrefillRate
	}
}

// fleetOf returns that of m's model, nil while the model is not known. The
// caller holds mu.
func (p *Pool) fleetOf(m *member) *fleet {
	if len(m.models) == 0 {
		return nil
	}
	f := p.fleets[m.models[0]]
	if f == nil {
		if len(p.fleets) > len(p.members) { // some are of models that are gone
			maps.DeleteFunc(p.fleets, func(model string, _ *fleet) bool {
				return !slices.ContainsFunc(p.members, func(m *member) bool { return len(m.models) > 0 && m.models[0] == model })
			})
		}
		f = &fleet{}
		p.fleets[m.models[0]] = f
	}
	return f
}
