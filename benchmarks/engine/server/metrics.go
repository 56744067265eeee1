package server

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/warmpath/warmpath/benchmarks/engine"
)

// metrics are vLLM's, with its names, labels and units (vLLM docs,
// "Production Metrics"). What the core counts is read from it at each scrape.
type metrics struct {
	timeToFirstToken  prometheus.Histogram
	interTokenLatency prometheus.Histogram
	// What follows is observed of a request when it has ended.
	e2eLatency, queueTime, prefillTime, decodeTime, inferenceTime prometheus.Histogram

	success *prometheus.CounterVec
}

// vLLM's buckets, in seconds.
var (
	bucketsTTFT = []float64{
		0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
	}
	bucketsITL = []float64{0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	bucketsE2E = []float64{
		0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
	}
)

func newMetrics(reg prometheus.Registerer, cfg Config) *metrics {
	labels := engineLabels(cfg)
	with := promauto.With(reg)
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return with.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets, ConstLabels: labels})
	}
	with.NewGauge(prometheus.GaugeOpts{
		Name: "vllm:cache_config_info",
		Help: "Information of the LLMEngine CacheConfig",
		ConstLabels: prometheus.Labels{
			"block_size":               strconv.Itoa(cfg.Engine.BlockSize),
			"num_gpu_blocks":           strconv.Itoa(cfg.Engine.Blocks),
			"enable_prefix_caching":    "True",
			"prefix_caching_hash_algo": string(cfg.Engine.Hash),
			"engine":                   labels["engine"],
		},
	}).Set(1)
	m := &metrics{
		timeToFirstToken:  histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", bucketsTTFT),
		interTokenLatency: histogram("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", bucketsITL),
		e2eLatency:        histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", bucketsE2E),
		queueTime:         histogram("vllm:request_queue_time_seconds", "Histogram of the time that requests waited, in seconds.", bucketsE2E),
		prefillTime:       histogram("vllm:request_prefill_time_seconds", "Histogram of the time from admission to the first token, in seconds.", bucketsE2E),
		decodeTime:        histogram("vllm:request_decode_time_seconds", "Histogram of the time from the first token to the last, in seconds.", bucketsE2E),
		inferenceTime:     histogram("vllm:request_inference_time_seconds", "Histogram of the time from admission to the last token, in seconds.", bucketsE2E),
		success: with.NewCounterVec(prometheus.CounterOpts{
			Name: "vllm:request_success_total", Help: "Count of successfully processed requests.", ConstLabels: labels,
		}, []string{"finished_reason"}),
	}
	for _, reason := range []string{finishStop, finishLength, finishAbort} {
		m.success.WithLabelValues(reason)
	}
	return m
}

// ended counts a request that has its last token.
func (m *metrics) ended(f *engine.Finished, reason string) {
	m.e2eLatency.Observe(f.Done.Sub(f.Arrived).Seconds())
	m.queueTime.Observe(f.Admitted.Sub(f.Arrived).Seconds())
	m.prefillTime.Observe(f.FirstToken.Sub(f.Admitted).Seconds())
	m.decodeTime.Observe(f.Done.Sub(f.FirstToken).Seconds())
	m.inferenceTime.Observe(f.Done.Sub(f.Admitted).Seconds())
	m.success.WithLabelValues(reason).Inc()
}

func engineLabels(cfg Config) prometheus.Labels {
	return prometheus.Labels{"model_name": cfg.Models[0], "engine": strconv.Itoa(cfg.Rank)}
}

// coreCollector exports the core's own statistics.
type coreCollector struct {
	state  func() *coreState
	series []coreSeries
	// adapters is nil without adapters.
	adapters *prometheus.Desc
	maxLoRA  string
}

type coreSeries struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(engine.Stats) float64
}

func newCoreCollector(cfg Config, state func() *coreState) *coreCollector {
	c := &coreCollector{state: state}
	if len(cfg.LoRAs) > 0 {
		c.maxLoRA = strconv.Itoa(len(cfg.LoRAs))
		c.adapters = prometheus.NewDesc("vllm:lora_requests_info", "Running stats on lora requests.",
			[]string{"max_lora", "running_lora_adapters", "waiting_lora_adapters"}, nil)
	}
	add := func(kind prometheus.ValueType, name, help string, value func(engine.Stats) float64) {
		c.series = append(c.series, coreSeries{prometheus.NewDesc(name, help, nil, engineLabels(cfg)), kind, value})
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	add(gauge, "vllm:num_requests_running", "Number of requests in model execution batches.",
		func(s engine.Stats) float64 { return float64(s.Running) })
	add(gauge, "vllm:num_requests_waiting", "Number of requests waiting to be processed.",
		func(s engine.Stats) float64 { return float64(s.Waiting) })
	add(gauge, "vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.",
		func(s engine.Stats) float64 { return s.KVUsage() })
	add(counter, "vllm:prefix_cache_queries_total", "Prefix cache queries, in terms of number of queried tokens.",
		func(s engine.Stats) float64 { return float64(s.CacheQueries) })
	add(counter, "vllm:prefix_cache_hits_total", "Prefix cache hits, in terms of number of cached tokens.",
		func(s engine.Stats) float64 { return float64(s.CacheHits) })
	add(counter, "vllm:num_preemptions_total", "Cumulative number of preemption from the engine.",
		func(s engine.Stats) float64 { return float64(s.Preemptions) })
	add(counter, "vllm:prompt_tokens_total", "Number of prefill tokens processed.",
		func(s engine.Stats) float64 { return float64(s.PromptTokens) })
	add(counter, "vllm:generation_tokens_total", "Number of generation tokens processed.",
		func(s engine.Stats) float64 { return float64(s.GenerationTokens) })
	return c
}

// Describe implements [prometheus.Collector].
func (c *coreCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, s := range c.series {
		ch <- s.desc
	}
	if c.adapters != nil {
		ch <- c.adapters
	}
}

// Collect implements [prometheus.Collector].
func (c *coreCollector) Collect(ch chan<- prometheus.Metric) {
	state := c.state()
	for _, s := range c.series {
		ch <- prometheus.MustNewConstMetric(s.desc, s.kind, s.value(state.Stats))
	}
	if c.adapters != nil {
		// As in vLLM the value is the time at which the labels were true.
		ch <- prometheus.MustNewConstMetric(c.adapters, prometheus.GaugeValue, float64(state.at.Unix()),
			c.maxLoRA, strings.Join(state.runningAdapters, ","), strings.Join(state.waitingAdapters, ","))
	}
}
