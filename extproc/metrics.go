package extproc

import (
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
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
	// kindMalformed: a message that cannot be decoded. It ends the stream, and
	// the request goes on without us.
	kindMalformed
	numKinds
)

var kindNames = [numKinds]string{
	"request_headers", "request_body", "request_trailers",
	"response_headers", "response_body", "response_trailers", "observed", "unknown", "malformed",
}

// end is how much was seen of how a routed request ended, for metrics.
type end uint8

const (
	// endUnanswered: no answer has come from an engine.
	endUnanswered end = iota
	// endUnseen: the answer has begun; only streamed bodies tell whether it was
	// finished.
	endUnseen
	// endComplete: the end of the answer's body has been seen.
	endComplete
	// endAborted: a part of the body has been seen, and not its end.
	endAborted
	numEnds
)

var endNames = [numEnds]string{"unanswered", "unseen", "complete", "aborted"}

// verdict is what came of looking at an answer, for metrics.
type verdict uint8

const (
	// sampleCompared: prediction and report could be compared.
	sampleCompared verdict = iota
	// sampleNoPrediction: the prompt was not tokenized, or Envoy retried on an
	// endpoint that nothing was predicted for.
	sampleNoPrediction
	// sampleNoCached: the engine does not report cached tokens.
	sampleNoCached
	// sampleNoUsage: the answer has no usage.
	sampleNoUsage
	// sampleCut: it was not seen to its end.
	sampleCut
	numVerdicts
)

var verdictNames = [numVerdicts]string{"compared", "no_prediction", "no_cached_tokens", "no_usage", "cut"}

// wait is how a large body came to its turn, for metrics.
type wait uint8

const (
	// turnAtOnce: there was room.
	turnAtOnce wait = iota
	// turnWaited: others came first.
	turnWaited
	// turnSkipped: it went on without, because it had waited for long enough or
	// the request had ended.
	turnSkipped
	numWaits
)

var waitNames = [numWaits]string{"at_once", "waited", "skipped"}

type metrics struct {
	streams  prometheus.Gauge
	messages [numKinds]prometheus.Counter
	// requests has a counter for each reason, nil for numbers without one.
	requests [256]prometheus.Counter
	decision prometheus.Histogram
	retried  prometheus.Counter
	panics   prometheus.Counter
	ends     [numEnds]prometheus.Counter
	turns    [numWaits]prometheus.Counter

	samples                   [numVerdicts]prometheus.Counter
	prompt, predicted, cached *prometheus.CounterVec
	// mu guards compared, the endpoints that have series in these three.
	mu       sync.Mutex
	compared map[string]bool
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
	perEndpoint := func(name, help string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"endpoint"})
	}
	m.compared = map[string]bool{}
	m.prompt = perEndpoint("warmpath_extproc_sampled_prompt_tokens_total",
		"Prompt tokens of the sampled answers that could be compared with their prediction, as the engine reports them.")
	m.predicted = perEndpoint("warmpath_extproc_sampled_predicted_tokens_total",
		"Prompt tokens that the endpoint was expected to hold, of the same answers.")
	m.cached = perEndpoint("warmpath_extproc_sampled_cached_tokens_total",
		"Prompt tokens that the endpoint had cached, of the same answers, as the engine reports them.")
	samples := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_extproc_samples_total",
		Help: "Answers whose bodies were looked at, by what came of it.",
	}, []string{"result"})
	for r := range numVerdicts {
		m.samples[r] = samples.WithLabelValues(verdictNames[r])
	}
	ends := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_extproc_ends_total",
		Help: "Routed requests that have ended, by what was seen of their end.",
	}, []string{"end"})
	for e := range numEnds {
		m.ends[e] = ends.WithLabelValues(endNames[e])
	}
	turns := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_extproc_body_turns_total",
		Help: "Large request bodies, by whether they were received at once, waited for their turn, or went on without one.",
	}, []string{"result"})
	for w := range numWaits {
		m.turns[w] = turns.WithLabelValues(waitNames[w])
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

func (m *metrics) end(e end) { m.ends[e].Inc() }

func (m *metrics) sample(r verdict) { m.samples[r].Inc() }

// compare counts what an endpoint reported beside what was predicted.
func (m *metrics) compare(endpoint string, u usage, predicted int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.compared[endpoint] = true
	m.prompt.WithLabelValues(endpoint).Add(float64(u.prompt))
	m.predicted.WithLabelValues(endpoint).Add(float64(predicted))
	m.cached.WithLabelValues(endpoint).Add(float64(u.cached))
}

// retain deletes the series of endpoints that the snapshot does not have.
func (m *metrics) retain(endpoints []*pool.Endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	gone := maps.Clone(m.compared)
	for _, e := range endpoints {
		delete(gone, e.Name)
	}
	for name := range gone {
		delete(m.compared, name)
		for _, v := range []*prometheus.CounterVec{m.prompt, m.predicted, m.cached} {
			v.DeleteLabelValues(name)
		}
	}
}

func (m *metrics) request(r routing.Reason) {
	if c := m.requests[r]; c != nil {
		c.Inc()
	}
}
