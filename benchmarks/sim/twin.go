package sim

import (
	"time"

	"github.com/warmpath/warmpath/routing/pool"
)

// twin is prefix-cache with all that it could be told: KV events come at once
// and none is lost, whatever the scenario says, and before every decision it
// reads the metrics of all engines, how long each will compute the prompts that
// it has, by [engine.Core.Forecast], and how fast. What it is better by than
// prefix-cache is the price of not knowing; what it is worse by than a bound is
// the policy's own.
const twin = "prefix-cache-twin"

// tested is the strategy that the twin is of.
const tested = "prefix-cache"

// inform tells a replica's pool the exact state of all engines.
func (p *product) inform(now time.Time) {
	for i := range p.r.endpoints {
		l, e := &p.r.links[i*p.r.Replicas+p.replica], &p.r.endpoints[i]
		if e.down || l.meter == nil || l.state == nil {
			continue
		}
		p.r.buf = e.appendMetrics(p.r.buf[:0], now)
		read, err := l.meter.Read(now, p.r.buf, l.state)
		if err != nil {
			panic(err)
		}
		exact := *read
		exact.PrefillRate = 1e3 / e.core.Config().Profile.PerPrefillToken
		exact.Has |= pool.FieldPrefillRate
		l.state.SetLoad(&exact)
		prompts, _ := e.prompts(p.r.now)
		setBacklog(l.state, now, prompts)
	}
}

// prompts returns how long an engine will compute the prompts that it has, and
// how long each step behind them takes at least. A step in flight counts,
// whatever it computes: no prompt begins within it.
func (e *endpoint) prompts(now time.Duration) (prompts, step time.Duration) {
	prompts, step = e.core.Forecast()
	if e.core.InFlight() {
		prompts += e.due - now
	}
	return prompts, step
}

// setBacklog makes a state's backlog exactly as long.
func setBacklog(s *pool.State, now time.Time, want time.Duration) {
	switch d := want - s.Backlog(now); {
	case d > 0:
		s.Enqueue(now, d)
	case d < 0:
		s.Dequeue(now, now.Add(-d), -d)
	}
}
