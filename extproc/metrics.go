package extproc

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/warmpath/warmpath/routing"
)

// kind is a kind of message, for metrics.
type kind uint8

const (
	kindRequestHeaders kind = iota
	kindRequestBody
	kindRequestTrailers
	kindResponseHeaders
	kindResponseBody
	kindResponseTrailers
	// kindObserved: a message of Envoy's observability mode.
	kindObserved
	// kindUnknown: a message that this program does not know.
	kindUnknown
	numKinds
)

var kindNames = [numKinds]string{
	"request_headers", "request_body", "request_trailers",
	"response_headers", "response_body", "response_trailers", "observed", "unknown",
}

type metrics struct {
	streams  prometheus.Gauge
	messages [numKinds]prometheus.Counter
	// requests has a counter for each reason, nil for numbers without one.
	requests [256]prometheus.Counter
	decision prometheus.Histogram
	retried  prometheus.Counter
	panics   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		streams: f.NewGauge(prometheus.GaugeOpts{
			Name: "warmpath_extproc_streams",
			Help: "Requests that Envoy has open with this router.",
		}),
		decision: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "warmpath_extproc_decision_seconds",
			Help:    "Time from the last message that a decision needs to its reply being handed to the transport.",
			Buckets: prometheus.ExponentialBuckets(10e-6, 2.5, 14), NativeHistogramBucketFactor: 1.1,
			NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
		}),
		retried: f.NewCounter(prometheus.CounterOpts{
			Name: "warmpath_extproc_retried_total",
			Help: "Answers that came from another endpoint than the chosen one.",
		}),
		panics: f.NewCounter(prometheus.CounterOpts{
			Name: "warmpath_extproc_panics_total",
			Help: "Requests let through unrouted because of a fault in this program.",
		}),
	}
	messages := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_extproc_messages_total",
		Help: "Messages received from Envoy.",
	}, []string{"kind"})
	for k := range numKinds {
		m.messages[k] = messages.WithLabelValues(kindNames[k])
	}
	requests := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_extproc_requests_total",
		Help: "Requests by why they were routed as they were, or not at all.",
	}, []string{"reason"})
	for _, r := range routing.Reasons() {
		m.requests[r] = requests.WithLabelValues(r.String())
	}
	return m
}

func (m *metrics) message(k kind) { m.messages[k].Inc() }

func (m *metrics) request(r routing.Reason) {
	if c := m.requests[r]; c != nil {
		c.Inc()
	}
}
