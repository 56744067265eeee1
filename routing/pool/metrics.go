package pool

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	endpoints     map[Health]prometheus.Gauge
	probeFailures prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	endpoints := f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "warmpath_pool_endpoints",
		Help: "Endpoints by what their last health probe said.",
	}, []string{"state"})
	m := &metrics{
		endpoints: map[Health]prometheus.Gauge{},
		probeFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "warmpath_pool_probe_failures_total",
			Help: "Health probes that failed or timed out.",
		}),
	}
	for _, h := range []Health{HealthUnknown, HealthReady, HealthFailed} {
		m.endpoints[h] = endpoints.WithLabelValues(h.String())
	}
	return m
}
