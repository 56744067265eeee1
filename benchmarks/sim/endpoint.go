package sim

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/workload"
	"github.com/warmpath/warmpath/kvindex"
)

// maxAdapters is how many LoRA adapters an engine says it can run at a time.
// The engine model itself has no such limit.
const maxAdapters = 4

// endpoint is one engine of the fleet.
type endpoint struct {
	core *engine.Core
	// requests finds a request by its sequence's id, from 1.
	requests []int32
	down     bool
	// due is when the step in flight ends; a step event of another time is of
	// an engine that crashed.
	due time.Duration
	// Sums over ended requests, as vLLM's histograms have them, in seconds.
	ended, answered         int
	queued, prefill, decode float64
	steps, between          float64
	// backlog is the work of requests that wait for their first token, in
	// seconds, known with detail only.
	backlog float64
	// computed are the prompt tokens computed, over all lives of the engine.
	computed int
}

// newCore returns an idle engine.
func (r *run) newCore(i int) (*engine.Core, error) {
	p := r.Profile
	if slow := int(math.Round(r.Slow * float64(r.Endpoints))); i < slow {
		p = p.Slower(2)
	}
	return engine.New(engine.Config{
		Profile: p, BlockSize: workload.BlockTokens, Blocks: r.Blocks(), HostBlocks: r.hostBlocks(),
		TokenBudget: engine.DefaultTokenBudget * max(1, r.pool), MaxSeqs: cmp.Or(r.maxSeqs, engine.DefaultMaxSeqs) * max(1, r.pool),
		MaxModelLen: maxModelLen, Hash: engine.HashXXH3CBOR, EmptyFirst: true, OutputSeed: mix(r.seed ^ mix(uint64(i))),
		Output: func(_ kvindex.TokenID, random uint64) kvindex.TokenID { return kvindex.TokenID(random>>44 | 1) },
	})
}

// ends adds a request that ended to the sums.
func (e *endpoint) ends(f *engine.Finished) {
	e.ended++
	e.queued += f.Admitted.Sub(f.Arrived).Seconds()
	e.prefill += f.FirstToken.Sub(f.Admitted).Seconds()
	e.decode += f.Done.Sub(f.FirstToken).Seconds()
	if f.OutputTokens > 1 {
		e.steps += float64(f.OutputTokens - 1)
		e.between += f.Done.Sub(f.FirstToken).Seconds()
	}
}

// appendMetrics appends what the engine's metrics endpoint answers, in the
// Prometheus text format with vLLM's names (vLLM docs, "Production Metrics").
func (e *endpoint) appendMetrics(b []byte, now time.Time) []byte {
	s := e.core.Stats()
	cfg := e.core.Config()
	put := func(name string, v float64) {
		b = append(b, name...)
		b = append(b, ' ')
		b = strconv.AppendFloat(b, v, 'g', -1, 64)
		b = append(b, '\n')
	}
	put("vllm:num_requests_running", float64(s.Running))
	put("vllm:num_requests_waiting", float64(s.Waiting))
	put("vllm:kv_cache_usage_perc", s.KVUsage())
	put("vllm:prompt_tokens_total", float64(s.PromptTokens))
	put("vllm:prefix_cache_hits_total", float64(s.CacheHits))
	put("vllm:generation_tokens_total", float64(s.GenerationTokens))
	n := float64(e.ended)
	put("vllm:time_to_first_token_seconds_count", float64(e.answered))
	put("vllm:request_success_total", n)
	put("vllm:request_queue_time_seconds_sum", e.queued)
	put("vllm:request_queue_time_seconds_count", n)
	put("vllm:request_prefill_time_seconds_sum", e.prefill)
	put("vllm:request_prefill_time_seconds_count", n)
	put("vllm:request_decode_time_seconds_sum", e.decode)
	put("vllm:request_decode_time_seconds_count", n)
	put("vllm:inter_token_latency_seconds_sum", e.between)
	put("vllm:inter_token_latency_seconds_count", e.steps)
	b = fmt.Appendf(b, "vllm:cache_config_info{block_size=\"%d\",num_gpu_blocks=\"%d\"} 1\n", cfg.BlockSize, cfg.Blocks)
	if running, waiting := e.core.Adapters(); len(running)+len(waiting) > 0 {
		b = fmt.Appendf(b, "vllm:lora_requests_info{max_lora=\"%d\",running_lora_adapters=%q,waiting_lora_adapters=%q} %d\n",
			maxAdapters, strings.Join(running, ","), strings.Join(waiting, ","), now.Unix())
	}
	return b
}
