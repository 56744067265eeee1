package pool

import (
	"errors"
	"time"
)

// Meter turns what one engine's metrics endpoint answers into its load. It
// remembers the last answer, for rates are learned from differences. Not safe
// for concurrent use.
type Meter struct {
	names       map[string]metric
	staleAfter  time.Duration
	before, now sample
	known       bool
	// alone counts where the model is not known.
	alone fleet
}

// NewMeter returns a meter whose loads count for staleAfter.
func NewMeter(staleAfter time.Duration) *Meter {
	return &Meter{names: metricNames(), staleAfter: staleAfter}
}

// errUnknownMetrics is returned by [Meter.Read].
var errUnknownMetrics = errors.New("it has no load metric of vLLM, SGLang or TensorRT-LLM")

// Read sets the load that an answer in the Prometheus text format tells, read
// at a time, as that of state, and returns it. An answer without any metric of
// load is an error and changes nothing.
func (m *Meter) Read(at time.Time, text []byte, state *State) (*Load, error) {
	return m.take(at, m.peek(text), state)
}

// take is Read for what peek returned.
func (m *Meter) take(at time.Time, s *sample, state *State) (*Load, error) {
	if !s.known() {
		return nil, errUnknownMetrics
	}
	var last *sample
	if m.known {
		last = &m.before
	}
	l := newLoad(at, s, last, state.Load(), state.InFlight())
	l.Until = l.At.Add(m.staleAfter)
	common := state.fleet.Load()
	if common == nil {
		common = &m.alone
	}
	l.demand(state, common.stay(at, l.Ended))
	common.lend(l)
	state.SetLoad(l)
	state.confine(l)
	s.adapters = nil // they belong to l
	m.before, m.known = *s, true
	return l, nil
}

// peek returns what an answer says, without any effect but on the next peek.
func (m *Meter) peek(text []byte) *sample {
	m.now.parse(text, m.names)
	return &m.now
}

// Forget has the next answer count as the first.
func (m *Meter) Forget() { m.known = false }
