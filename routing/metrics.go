package routing

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics holds every series ready, so that a decision looks none up by label.
type metrics struct {
	decisions map[string]map[Reason]prometheus.Counter
	degraded  map[Reason]prometheus.Counter
	errors    map[Reason]prometheus.Counter
	prompt    prometheus.Counter
	matched   prometheus.Counter
	missing   map[string]prometheus.Counter
	cooldowns prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, strategies []string) *metrics {
	f := promauto.With(reg)
	decisions := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_routing_decisions_total",
		Help: "Requests that got a target, by strategy and by the reason of the choice.",
	}, []string{"strategy", "reason"})
	degraded := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_routing_degraded_total",
		Help: "Requests routed with less knowledge than their strategy wants, by what was missing.",
	}, []string{"reason"})
	errs := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_routing_errors_total",
		Help: "Requests that got no target, by reason.",
	}, []string{"reason"})
	m := &metrics{
		decisions: map[string]map[Reason]prometheus.Counter{},
		degraded:  map[Reason]prometheus.Counter{},
		errors:    map[Reason]prometheus.Counter{},
		prompt: f.NewCounter(prometheus.CounterOpts{
			Name: "warmpath_routing_prompt_tokens_total",
			Help: "Tokens of the prompts that were looked up.",
		}),
		matched: f.NewCounter(prometheus.CounterOpts{
			Name: "warmpath_routing_matched_tokens_total",
			Help: "Tokens of those prompts that the chosen endpoint held.",
		}),
	}
	missing := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_routing_missing_total",
		Help: "Decisions for which the strategy's data of at least one candidate was missing or stale.",
	}, []string{"strategy"})
	m.missing = map[string]prometheus.Counter{}
	for _, s := range strategies {
		m.missing[s] = missing.WithLabelValues(s)
	}
	m.cooldowns = f.NewCounter(prometheus.CounterOpts{
		Name: "warmpath_routing_cooldowns_total",
		Help: "Times that an endpoint began to be avoided because it failed requests.",
	})
	for _, r := range Reasons() {
		if r >= ReasonBadRequest {
			m.errors[r] = errs.WithLabelValues(r.String())
			continue
		}
		if r.Degraded() {
			m.degraded[r] = degraded.WithLabelValues(r.String())
		}
		for _, s := range strategies {
			if m.decisions[s] == nil {
				m.decisions[s] = map[Reason]prometheus.Counter{}
			}
			m.decisions[s][r] = decisions.WithLabelValues(s, r.String())
		}
	}
	return m
}

func (m *metrics) decided(strategy string, t Target) {
	m.decisions[strategy][t.Reason].Inc()
	if t.Reason.Degraded() {
		m.degraded[t.Reason].Inc()
	}
	m.prompt.Add(float64(t.PromptTokens))
	m.matched.Add(float64(t.MatchedTokens))
}

func (m *metrics) failed(r Reason) {
	if c := m.errors[r]; c != nil {
		c.Inc()
	}
}
