package tokenizer

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/warmpath/warmpath/routing"
)

type metrics struct {
	ok, refused, timeout, failed, notServed prometheus.Observer
	answers                                 []prometheus.Counter
	hedges, shared, opened                  prometheus.Counter
	learned, refuted, overclaimed, changed  prometheus.Counter
	droppedFull, droppedBusy, droppedFailed prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, t *Client) *metrics {
	f := promauto.With(reg)
	seconds := f.NewHistogramVec(prometheus.HistogramOpts{
		Name:                            "warmpath_tokenizer_request_seconds",
		Help:                            "Time of one request to one tokenizer, by how it ended.",
		Buckets:                         prometheus.ExponentialBuckets(100e-6, 2, 14),
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  100,
		NativeHistogramMinResetDuration: time.Hour,
	}, []string{"result"})
	answers := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_tokenizer_answers_total",
		Help: "Prompts by where their tokens came from: l0 the same prompt, l1 the beginning of one, remote a tokenizer that was waited for, none.",
	}, []string{"source"})
	dropped := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_tokenizer_unlearned_total",
		Help: "Prompts that were not tokenized behind their decision, by why: the queue was full, decisions were waiting, no tokenizer answered.",
	}, []string{"cause"})
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "warmpath_tokenizer_" + name, Help: help})
	}
	m := &metrics{
		ok:            seconds.WithLabelValues("ok"),
		refused:       seconds.WithLabelValues("refused"),
		timeout:       seconds.WithLabelValues("timeout"),
		failed:        seconds.WithLabelValues("failed"),
		notServed:     seconds.WithLabelValues("not_served"),
		hedges:        counter("hedges_total", "Second requests because the first took longer than most."),
		shared:        counter("shared_total", "Decisions that waited for the request of another one with the same prompt."),
		opened:        counter("breaker_opened_total", "Times that a tokenizer was taken out of use after failures in a row."),
		learned:       counter("learned_total", "Tokenized prompts that were remembered."),
		refuted:       counter("refuted_total", "Times that a chat template was found not to keep a prefix that it had been believed to keep."),
		overclaimed:   counter("overclaimed_blocks_total", "Blocks that had been taken for known and turned out wrong."),
		changed:       counter("changed_total", "Times that a tokenizer was found to give other tokens than before."),
		droppedFull:   dropped.WithLabelValues("queue_full"),
		droppedBusy:   dropped.WithLabelValues("busy"),
		droppedFailed: dropped.WithLabelValues("failed"),
	}
	for _, s := range routing.TokenSources() {
		m.answers = append(m.answers, answers.WithLabelValues(s.String()))
	}
	gauge := func(name, help string, value func() float64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: "warmpath_tokenizer_" + name, Help: help}, value)
	}
	gauge("queue_prompts", "Prompts that wait to be tokenized behind their decision.", func() float64 { return float64(len(t.jobs)) })
	if t.memory != nil {
		gauge("cache_bytes", "Memory held by what is known of prompts.", func() float64 { return float64(t.memory.cache.WeightedSize()) })
		gauge("cache_entries", "Prompts and forks that are known.", func() float64 { return float64(t.memory.cache.EstimatedSize()) })
	}
	return m
}

func (m *metrics) answered(s routing.TokenSource) { m.answers[s].Inc() }

func (m *metrics) ended(d time.Duration, err error) {
	refused := (*refusal)(nil)
	switch s := d.Seconds(); {
	case err == nil:
		m.ok.Observe(s)
	case errors.As(err, &refused):
		m.refused.Observe(s)
	case errors.Is(err, errNotServed):
		m.notServed.Observe(s)
	case errors.Is(err, context.DeadlineExceeded):
		m.timeout.Observe(s)
	default:
		m.failed.Observe(s)
	}
}
