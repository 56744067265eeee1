package pool

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	unlisted      prometheus.Gauge
	sources       []prometheus.Gauge
	endpoints     map[Health]prometheus.Gauge
	probeFailures prometheus.Counter
	loadReads     prometheus.Counter
	loadFailures  map[loadFault]prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, sources []Source) *metrics {
	f := promauto.With(reg)
	endpoints := f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "warmpath_pool_endpoints",
		Help: "Endpoints by what their last health probe said; withheld: they must get no requests, because their pod is not ready or terminating.",
	}, []string{"state"})
	m := &metrics{
		endpoints: map[Health]prometheus.Gauge{},
		probeFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "warmpath_pool_probe_failures_total",
			Help: "Health probes that failed or timed out.",
		}),
	}
	m.unlisted = f.NewGauge(prometheus.GaugeOpts{
		Name: "warmpath_pool_unlisted_sources",
		Help: "Sources that have not listed their endpoints yet; after pool.sync_timeout what is known is made use of without them.",
	})
	m.loadReads = f.NewCounter(prometheus.CounterOpts{
		Name: "warmpath_pool_load_reads_total",
		Help: "Reads of an engine's metrics that told its load.",
	})
	failures := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_pool_load_failures_total",
		Help: "Reads of an engine's metrics that told nothing, by why.",
	}, []string{"reason"})
	m.loadFailures = map[loadFault]prometheus.Counter{}
	for _, r := range []loadFault{faultUnreachable, faultStatus, faultUnknownMetrics, faultTooLarge} {
		m.loadFailures[r] = failures.WithLabelValues(string(r))
	}
	listed := f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "warmpath_pool_listed",
		Help: "Things with endpoints that a source lists: endpoints of the configuration or the file, pods and slices of a cluster.",
	}, []string{"source"})
	m.sources = append(m.sources, listed.WithLabelValues("static"))
	for _, s := range sources {
		m.sources = append(m.sources, listed.WithLabelValues(s.Name()))
	}
	for _, h := range []Health{HealthUnknown, HealthReady, HealthFailed, HealthWithheld} {
		m.endpoints[h] = endpoints.WithLabelValues(h.String())
	}
	return m
}

// listed says how many things a source lists.
func (m *metrics) listed(source, n int) { m.sources[source].Set(float64(n)) }
