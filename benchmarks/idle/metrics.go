package idle

import (
	"fmt"
	"net/url"
	"strings"
)

// exposition is the text that an engine without requests answers with (vLLM
// documentation, "Production Metrics"): every series with its value, in the
// order of the names.
type exposition []family

type family struct {
	name, kind string
	series     []series
}

type series struct{ name, line string }

const labels = `engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"`

// vllmMetrics returns what an engine answers that has served some requests.
func vllmMetrics() exposition {
	var e exposition
	add := func(name, kind string, value float64) {
		e = append(e, family{name, kind, []series{{name, fmt.Sprintf("%s{%s} %v\n", name, labels, value)}}})
	}
	for i, name := range []string{"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"} {
		add("vllm:"+name, "gauge", float64(i/2)/8) // nothing runs and nothing waits
	}
	for i, name := range []string{"prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "num_preemptions"} {
		add("vllm:"+name+"_total", "counter", float64(1_000_000*i))
		add("vllm:"+name+"_created", "gauge", 1.7e9)
	}
	add("vllm:lora_requests_info", "gauge", 0)
	e = append(e, family{"vllm:cache_config_info", "gauge", []series{{
		"vllm:cache_config_info",
		`vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",engine="0",gpu_memory_utilization="0.9",num_gpu_blocks="27000",num_cpu_blocks="None",sliding_window="None",swap_space="4"} 1.0` + "\n",
	}}})
	for _, name := range []string{
		"time_to_first_token_seconds", "time_per_output_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
		"request_queue_time_seconds", "request_inference_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
		"request_prompt_tokens", "request_generation_tokens", "request_max_num_generation_tokens", "request_params_n", "request_params_max_tokens",
		"iteration_tokens_total",
	} {
		f := family{name: "vllm:" + name, kind: "histogram"}
		for i := range 20 {
			f.series = append(f.series, series{f.name + "_bucket", fmt.Sprintf("%s_bucket{%s,le=%q} %d.0\n", f.name, labels, fmt.Sprint(float64(i)/4), 40*i)})
		}
		for _, suffix := range []string{"_count", "_sum"} {
			f.series = append(f.series, series{f.name + suffix, fmt.Sprintf("%s%s{%s} 812.0625\n", f.name, suffix, labels)})
		}
		e = append(e, f)
	}
	for _, name := range []string{"python_gc_objects_collected_total", "python_gc_collections_total", "process_resident_memory_bytes", "process_cpu_seconds_total"} {
		add(name, "counter", 4096)
	}
	for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/health", "/metrics"} {
		f := family{name: "http_request_duration_highr_seconds", kind: "histogram"}
		for i := range 20 {
			f.series = append(f.series, series{f.name + "_bucket", fmt.Sprintf("%s_bucket{handler=%q,le=%q} %d.0\n", f.name, path, fmt.Sprint(i), 40*i)})
		}
		e = append(e, f)
	}
	return e
}

// text returns the exposition, of the series that names lists if it lists any,
// as the Python client's name[] parameter has it (prometheus/client_python
// documentation, "Restricted registry").
func (e exposition) text(query url.Values) string {
	names := map[string]bool{}
	for _, n := range query["name[]"] {
		names[n] = true
	}
	var b strings.Builder
	for _, f := range e {
		begun := false
		for _, s := range f.series {
			if len(names) > 0 && !names[s.name] {
				continue
			}
			if !begun {
				fmt.Fprintf(&b, "# HELP %s Some words that say what this metric is.\n# TYPE %s %s\n", f.name, f.name, f.kind)
				begun = true
			}
			b.WriteString(s.line)
		}
	}
	return b.String()
}
