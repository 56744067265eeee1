package pool

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"
)

// metric is one value that is read of an engine's metrics.
type metric uint8

const (
	numRunning metric = iota
	numWaiting
	kvUsage
	hostUsage
	hostUsed
	hostTotal
	utilization
	busyRatio
	promptTokens
	cachedTokens
	cachedTokensOld
	generationTokens
	capacityTokens
	capacityBlocks
	blockSizeOf
	queueSum
	queueCount
	prefillSum
	prefillCount
	decodeSum
	decodeCount
	stepSum
	stepCount
	firstTokens
	requestsEnded
	cacheConfig // labels only
	adapterInfo // labels only
	numMetrics
)

// maximum are the metrics of which the largest series counts; the series of
// all others are added, one for each data-parallel rank.
const maximum = 1<<kvUsage | 1<<hostUsage | 1<<utilization | 1<<busyRatio | 1<<blockSizeOf

// metricNames are the exact names, as engines export them: a prefix or a
// _created twin must not match.
//
//   - vllm: vLLM docs, "Production Metrics"; with the names before 0.10
//     (gpu_cache_usage_perc, gpu_prefix_cache_hits, time_per_output_token).
//   - sglang: SGLang docs, "Production Metrics".
//   - trtllm_: TensorRT-LLM, tensorrt_llm/metrics/collector.py.
//   - engine_utilization: xLLM; gpu_busy_time_ratio: AIBrix's name.
func metricNames() map[string]metric {
	return map[string]metric{
		"vllm:num_requests_running":   numRunning,
		"sglang:num_running_reqs":     numRunning,
		"trtllm_num_requests_running": numRunning,

		"vllm:num_requests_waiting":   numWaiting,
		"sglang:num_queue_reqs":       numWaiting,
		"trtllm_num_requests_waiting": numWaiting,

		"vllm:kv_cache_usage_perc":    kvUsage,
		"vllm:gpu_cache_usage_perc":   kvUsage,
		"sglang:token_usage":          kvUsage,
		"trtllm_kv_cache_utilization": kvUsage,

		"vllm:cpu_cache_usage_perc":        hostUsage,
		"sglang:hicache_host_used_tokens":  hostUsed,
		"sglang:hicache_host_total_tokens": hostTotal,

		"engine_utilization":  utilization,
		"gpu_busy_time_ratio": busyRatio,

		"vllm:prompt_tokens_total":   promptTokens,
		"sglang:prompt_tokens_total": promptTokens,
		"trtllm_prompt_tokens_total": promptTokens,

		"vllm:prefix_cache_hits_total":      cachedTokens,
		"vllm:gpu_prefix_cache_hits_total":  cachedTokensOld,
		"sglang:cached_tokens_total":        cachedTokens,
		"trtllm_prompt_cached_tokens_total": cachedTokens,

		"vllm:generation_tokens_total":   generationTokens,
		"sglang:generation_tokens_total": generationTokens,
		"trtllm_generation_tokens_total": generationTokens,

		"sglang:max_total_num_tokens":      capacityTokens,
		"trtllm_kv_cache_max_blocks":       capacityBlocks,
		"trtllm_kv_cache_tokens_per_block": blockSizeOf,

		"vllm:request_queue_time_seconds_sum":     queueSum,
		"vllm:request_queue_time_seconds_count":   queueCount,
		"trtllm_request_queue_time_seconds_sum":   queueSum,
		"trtllm_request_queue_time_seconds_count": queueCount,

		"vllm:request_prefill_time_seconds_sum":   prefillSum,
		"vllm:request_prefill_time_seconds_count": prefillCount,
		"vllm:request_decode_time_seconds_sum":    decodeSum,
		"vllm:request_decode_time_seconds_count":  decodeCount,

		"vllm:inter_token_latency_seconds_sum":       stepSum,
		"vllm:inter_token_latency_seconds_count":     stepCount,
		"vllm:time_per_output_token_seconds_sum":     stepSum,
		"vllm:time_per_output_token_seconds_count":   stepCount,
		"sglang:inter_token_latency_seconds_sum":     stepSum,
		"sglang:inter_token_latency_seconds_count":   stepCount,
		"trtllm_time_per_output_token_seconds_sum":   stepSum,
		"trtllm_time_per_output_token_seconds_count": stepCount,

		"vllm:time_to_first_token_seconds_count": firstTokens,
		"vllm:request_success_total":             requestsEnded,

		"vllm:cache_config_info":  cacheConfig,
		"vllm:lora_requests_info": adapterInfo,
	}
}

// sample is what one answer of an engine said.
type sample struct {
	seen uint32
	// prefix is what the names of an engine's metrics begin with: that of the
	// first one that is of an engine.
	prefix string
	v      [numMetrics]float64
	// adapterTime is the value of the newest lora_requests_info series: vLLM
	// keeps one for every set of adapters that there ever was, and its value is
	// the time of its last change.
	adapterTime float64
	adapters    []string
	maxAdapters int
}

func (s *sample) has(m metric) bool { return s.seen&(1<<m) != 0 }

// covers tells whether s has every metric that t has.
func (s *sample) covers(t *sample) bool {
	return s.seen&t.seen == t.seen && (t.adapterTime == 0 || s.adapterTime > 0)
}

// known tells whether the sample has anything that says how loaded an engine
// is.
func (s *sample) known() bool {
	return s.seen&(1<<numRunning|1<<numWaiting|1<<kvUsage|1<<utilization|1<<busyRatio) != 0
}

// parse reads the text format of Prometheus (Prometheus docs, "Exposition
// formats"; OpenMetrics differs in nothing that is read here), keeping what is
// in names. It allocates nothing but the adapters' names. Lines that it cannot
// read are skipped.
func (s *sample) parse(text []byte, names map[string]metric) {
	*s = sample{}
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if line[0] != 'v' && line[0] != 's' && line[0] != 't' && line[0] != 'e' && line[0] != 'g' {
			continue // no name begins like this
		}
		end := nameEnd(line)
		if bytes.HasSuffix(line[:end], bucket) {
			continue // most lines are, and none of them is read
		}
		m, ok := names[string(line[:end])]
		if !ok {
			continue
		}
		var labels []byte
		rest := bytes.TrimLeft(line[end:], " \t")
		if len(rest) > 0 && rest[0] == '{' {
			close := labelsEnd(rest)
			if close < 0 {
				continue
			}
			labels, rest = rest[1:close], rest[close+1:]
		}
		rest = bytes.TrimLeft(rest, " \t")
		if i := bytes.IndexAny(rest, " \t\r"); i >= 0 {
			rest = rest[:i] // a time stamp follows
		}
		v, err := strconv.ParseFloat(string(rest), 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		if s.prefix == "" {
			s.prefix = namePrefix(line)
		}
		s.take(m, labels, v)
	}
	if s.has(cachedTokensOld) && !s.has(cachedTokens) { // some versions export both
		s.add(cachedTokens, s.v[cachedTokensOld])
	}
}

var bucket, quote = []byte("_bucket"), []byte(`"`)

// nameEnd returns the length of the name that line starts with.
func nameEnd(line []byte) int {
	if i := bytes.IndexByte(line, '{'); i >= 0 {
		line = line[:i]
	}
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		line = line[:i]
	}
	if i := bytes.IndexByte(line, '\t'); i >= 0 {
		line = line[:i]
	}
	return len(line)
}

// labelsEnd returns the index of the brace that ends the labels that start at
// b[0]: braces inside of values do not count.
func labelsEnd(b []byte) int {
	if i := bytes.IndexByte(b, '}'); i < 0 {
		return -1
	} else if bytes.IndexByte(b[:i], '\\') < 0 && bytes.Count(b[:i], quote)%2 == 0 {
		return i // outside of any value
	}
	quoted := false
	for i := 1; i < len(b); i++ {
		switch {
		case quoted && b[i] == '\\':
			i++
		case b[i] == '"':
			quoted = !quoted
		case !quoted && b[i] == '}':
			return i
		}
	}
	return -1
}

func (s *sample) take(m metric, labels []byte, v float64) {
	switch m {
	case adapterInfo:
		s.takeAdapters(labels, v)
		return
	case cacheConfig:
		// One series a data-parallel rank: their caches add up.
		size, ok1 := number(labels, `block_size="`)
		blocks, ok2 := number(labels, `num_gpu_blocks="`)
		if ok1 && ok2 {
			s.add(capacityBlocks, blocks)
			s.add(blockSizeOf, size)
		}
		return
	}
	// SGLang exports the same value once for every tensor- and pipeline-parallel
	// rank, and again for every priority.
	if other(labels, `tp_rank="`) || other(labels, `pp_rank="`) {
		return
	}
	if p := value(labels, `priority="`); len(p) > 0 {
		return
	}
	s.add(m, v)
}

func (s *sample) add(m metric, v float64) {
	if maximum&(1<<m) != 0 {
		v = max(v, s.v[m])
	} else {
		v += s.v[m]
	}
	s.v[m] = v
	s.seen |= 1 << m
}

func (s *sample) takeAdapters(labels []byte, at float64) {
	if at <= s.adapterTime {
		return
	}
	s.adapterTime, s.adapters, s.maxAdapters = at, s.adapters[:0], 0
	if n, ok := number(labels, `max_lora="`); ok {
		s.maxAdapters = int(n)
	}
	for _, key := range [...]string{`running_lora_adapters="`, `waiting_lora_adapters="`} {
		for name := range strings.SplitSeq(string(value(labels, key)), ",") {
			if name = strings.TrimSpace(name); name != "" && !slices.Contains(s.adapters, name) {
				s.adapters = append(s.adapters, name)
			}
		}
	}
}

// value returns the raw value of the label that key, NAME=", starts; nil if
// there is none.
func value(labels []byte, key string) []byte {
	for at := 0; at < len(labels); {
		i := bytes.Index(labels[at:], []byte(key))
		if i < 0 {
			return nil
		}
		i += at
		at = i + len(key)
		if i > 0 && labels[i-1] != ',' && labels[i-1] != ' ' {
			continue // the end of a longer name
		}
		for j := at; j < len(labels); j++ {
			switch labels[j] {
			case '\\':
				j++
			case '"':
				return labels[at:j]
			}
		}
		return nil
	}
	return nil
}

func number(labels []byte, key string) (float64, bool) {
	v, err := strconv.ParseFloat(string(value(labels, key)), 64)
	return v, err == nil
}

// other tells whether a rank label is there and is not 0.
func other(labels []byte, key string) bool {
	v := value(labels, key)
	return len(v) > 0 && string(v) != "0"
}
