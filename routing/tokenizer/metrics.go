package tokenizer

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	ok, refused, timeout, failed prometheus.Observer
}

func newMetrics(reg prometheus.Registerer) *metrics {
	seconds := promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name:                            "warmpath_tokenizer_request_seconds",
		Help:                            "Time of one request to one tokenizer, by how it ended.",
		Buckets:                         prometheus.ExponentialBuckets(100e-6, 2, 14),
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  100,
		NativeHistogramMinResetDuration: time.Hour,
	}, []string{"result"})
	return &metrics{
		ok:      seconds.WithLabelValues("ok"),
		refused: seconds.WithLabelValues("refused"),
		timeout: seconds.WithLabelValues("timeout"),
		failed:  seconds.WithLabelValues("failed"),
	}
}

func (m *metrics) asked(d time.Duration, err error) {
	refused := (*refusal)(nil)
	switch s := d.Seconds(); {
	case err == nil:
		m.ok.Observe(s)
	case errors.As(err, &refused):
		m.refused.Observe(s)
	case errors.Is(err, context.DeadlineExceeded):
		m.timeout.Observe(s)
	default:
		m.failed.Observe(s)
	}
}
