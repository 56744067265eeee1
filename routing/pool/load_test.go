package pool

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func parsed(text string) *sample {
	var s sample
	s.parse([]byte(text), metricNames())
	return &s
}

func loadOf(text string) *Load { return newLoad(time.Unix(1, 0), parsed(text), nil, nil, 0) }

func TestParse_KnowsTheEngines(t *testing.T) {
	tests := []struct {
		name, text string
		want       Load
	}{
		{"vLLM, two ranks", `# HELP vllm:num_requests_running x
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1
vllm:num_requests_waiting{engine="1",model_name="m"} 0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:prompt_tokens_total{engine="0",model_name="m"} 100
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0"} 40
vllm:prefix_cache_hits_created{engine="0"} 1.7e+09
vllm:generation_tokens_total{engine="0"} 7
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1000"} 1.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 100
vllm:lora_requests_info{max_lora="4",running_lora_adapters="a, b",waiting_lora_adapters="b,c"} 200
`, Load{
			Has: FieldRequests | FieldKVUsage | FieldCapacity | FieldAdapters, Running: 7, Waiting: 1, KVUsage: .5,
			Capacity: 16000, BlockSize: 16, Adapters: []string{"a", "b", "c"}, MaxAdapters: 4, Computed: 67,
		}},
		{
			"vLLM, old names", `vllm:num_requests_running{model_name="m"} 3
vllm:num_requests_waiting{model_name="m"} 2
vllm:gpu_cache_usage_perc{model_name="m"} 0.75
vllm:cpu_cache_usage_perc{model_name="m"} 0.125`,
			Load{Has: FieldRequests | FieldKVUsage | FieldHostUsage, Running: 3, Waiting: 2, KVUsage: .75, HostUsage: .125},
		},
		{
			"SGLang, two tensor-parallel ranks and priorities", `sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 3
sglang:num_running_reqs{dp_rank="0",tp_rank="1"} 3
sglang:num_running_reqs{dp_rank="0",tp_rank="0",priority="1"} 2
sglang:num_running_reqs{dp_rank="1",tp_rank="0",priority=""} 1
sglang:num_queue_reqs{tp_rank="0"} 5
sglang:token_usage{tp_rank="0"} 0.5
sglang:hicache_host_used_tokens{tp_rank="0"} 10
sglang:hicache_host_total_tokens{tp_rank="0"} 40
sglang:max_total_num_tokens{tp_rank="0"} 4096`,
			Load{Has: FieldRequests | FieldKVUsage | FieldHostUsage | FieldCapacity, Running: 4, Waiting: 5, KVUsage: .5, HostUsage: .25, Capacity: 4096},
		},
		{
			"TensorRT-LLM", `trtllm_num_requests_running{model_name="m"} 1
trtllm_num_requests_waiting{model_name="m"} 2
trtllm_kv_cache_utilization{model_name="m"} 0.5
trtllm_kv_cache_max_blocks{model_name="m"} 100
trtllm_kv_cache_tokens_per_block{model_name="m"} 32`,
			Load{Has: FieldRequests | FieldKVUsage | FieldCapacity, Running: 1, Waiting: 2, KVUsage: .5, Capacity: 3200, BlockSize: 32},
		},
		{"xLLM and a sidecar", "engine_utilization 0.5\ngpu_busy_time_ratio 0.25", Load{Has: FieldUtilization | FieldBusy, Utilization: .5, Busy: .25}},
		{"one of two", "vllm:num_requests_running 3", Load{}},
		{"no numbers", "vllm:num_requests_running NaN\nvllm:num_requests_waiting +Inf\nvllm:kv_cache_usage_perc x", Load{}},
		{"a time stamp, blanks, CR", "vllm:kv_cache_usage_perc {a=\"b\"}  0.5 1700000000\r\n", Load{Has: FieldKVUsage, KVUsage: .5}},
		{"a time stamp and CR", "vllm:kv_cache_usage_perc{a=\"}\\\"} 9\"} 0.5 1700000000\r", Load{Has: FieldKVUsage, KVUsage: .5}},
		{"broken", "{\nvllm:kv_cache_usage_perc{a=\"b\n\n }\nvllm:kv_cache_usage_perc", Load{}},
		{"a label that ends alike", `sglang:token_usage{xtp_rank="1"} 0.5`, Load{Has: FieldKVUsage, KVUsage: .5}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.At = time.Unix(1, 0)
			if diff := cmp.Diff(&tt.want, loadOf(tt.text)); diff != "" {
				t.Errorf("load (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoad_LearnsRates(t *testing.T) {
	at := func(prompt, cached, generated, prefillSum, prefillN, stepSum, stepN float64) *sample {
		return parsed(fmt.Sprintf(`vllm:num_requests_running 1
vllm:num_requests_waiting 0
vllm:prompt_tokens_total %v
vllm:prefix_cache_hits_total %v
vllm:generation_tokens_total %v
vllm:request_queue_time_seconds_sum %v
vllm:request_queue_time_seconds_count %v
vllm:request_prefill_time_seconds_sum %v
vllm:request_prefill_time_seconds_count %v
vllm:request_decode_time_seconds_sum %v
vllm:request_decode_time_seconds_count %v
vllm:inter_token_latency_seconds_sum %v
vllm:inter_token_latency_seconds_count %v`, prompt, cached, generated, prefillSum/2, prefillN, prefillSum, prefillN, prefillSum*4, prefillN, stepSum, stepN))
	}
	t0 := time.Unix(100, 0)
	a, b, idle := at(1000, 0, 50, 1, 2, 1, 10), at(9000, 4000, 250, 1.5, 4, 2, 60), at(9000, 4000, 250, 1.5, 4, 2, 60)
	l0 := newLoad(t0, a, nil, nil, 0)
	if l0.Has != FieldRequests {
		t.Errorf("one sample tells fields %b, want requests only: it has no rates", l0.Has)
	}
	l1 := newLoad(t0.Add(time.Second), b, a, l0, 3)
	want := &Load{
		At: t0.Add(time.Second), Has: FieldRequests | FieldThroughput | FieldPrefillRate | FieldStep | FieldLatency | FieldBusy,
		Running: 1, PromptRate: 8000, GenerationRate: 200, PrefillRate: 4000 / .5, StepSeconds: 1.0 / 50,
		QueueSeconds: .125, PrefillSeconds: .25, DecodeSeconds: 1, Busy: 1, InFlight: 3, Computed: 5250,
		Alone: Work{4000, .5, 2}, Ended: Work{0, 2.5, 2},
	}
	if diff := cmp.Diff(want, l1); diff != "" {
		t.Errorf("second sample (-want +got):\n%s", diff)
	}
	l2 := newLoad(t0.Add(2*time.Second), idle, b, l1, 0)
	if l2.PrefillRate != l1.PrefillRate || l2.StepSeconds != l1.StepSeconds || l2.QueueSeconds != l1.QueueSeconds {
		t.Error("an idle second changed what was learned of requests")
	}
	if got, want := l2.PromptRate, 8000*math.Exp(-1/learnWindow); math.Abs(got-want) > 1e-9 {
		t.Errorf("after an idle second %v prompt tokens/s, want %v", got, want)
	}
	restarted := newLoad(t0.Add(3*time.Second), at(10, 0, 1, 0, 0, 0, 0), idle, l2, 0)
	if restarted.Has != FieldRequests {
		t.Errorf("after a restart of the engine fields %b, want requests only", restarted.Has)
	}
}

func TestLoad_Freshness(t *testing.T) {
	var none *Load
	now := time.Unix(100, 0)
	l := &Load{At: now, Until: now.Add(time.Second), Has: FieldKVUsage}
	if none.Fresh(now) != 0 || l.Fresh(now.Add(time.Second)) != FieldKVUsage || l.Fresh(now.Add(time.Second+1)) != 0 {
		t.Error("Fresh must give the fields up to the age and none after it, and none of nothing")
	}
}

// vllmText is an answer of the size that a real engine gives.
func vllmText() []byte {
	var b strings.Builder
	for i := range 800 {
		fmt.Fprintf(&b, "vllm:time_to_first_token_seconds_bucket{engine=\"0\",le=\"%d\",model_name=\"meta-llama/Llama-3.1-8B\"} %d\n", i, i)
	}
	b.WriteString("vllm:num_requests_running{engine=\"0\"} 3\nvllm:num_requests_waiting{engine=\"0\"} 1\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.123456789\n")
	return []byte(b.String())
}

func TestParse_AllocatesNothing(t *testing.T) {
	text, names := vllmText(), metricNames()
	var s sample
	if n := testing.AllocsPerRun(20, func() { s.parse(text, names) }); n != 0 {
		t.Errorf("parsing allocates %v times, want 0", n)
	}
	if s.v[numRunning] != 3 {
		t.Errorf("running = %v, want 3", s.v[numRunning])
	}
}

func BenchmarkParse(b *testing.B) {
	text, names := vllmText(), metricNames()
	var s sample
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		s.parse(text, names)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(vllmText())
	f.Add([]byte(`vllm:lora_requests_info{running_lora_adapters="a\"} x"} 1`))
	names := metricNames()
	f.Fuzz(func(t *testing.T, text []byte) {
		var s sample
		s.parse(text, names)
		for m, v := range s.v {
			if math.IsNaN(v) {
				t.Errorf("metric %d is NaN", m)
			}
		}
	})
}

func TestPool_FollowsTheLoad(t *testing.T) {
	var text atomic.Value
	text.Store("vllm:num_requests_running 2\nvllm:num_requests_waiting 1\n")
	e := newEngine(t, "")
	metrics := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s := text.Load().(string); s != "" && r.URL.Path == "/deep/metrics" {
			_, _ = w.Write([]byte(s))
			return
		}
		http.NotFound(w, r)
	}))
	defer metrics.Close()
	p := running(t, Spec{Name: "a", Address: e.address(), Models: []string{"m"}, Metrics: metrics.URL + "/deep/metrics"})
	state := p.Snapshot().Endpoints[0].State
	poll(t, func() bool { l := state.Load(); return l != nil && l.Running == 2 })
	text.Store("vllm:num_requests_running 5\nvllm:num_requests_waiting 0\n")
	poll(t, func() bool { return state.Load().Running == 5 })
	text.Store("")
	was := state.Load()
	poll(t, func() bool { return counter(t, p.metrics.loadFailures[faultStatus]) > 0 })
	text.Store("some_other_metric 1\n")
	poll(t, func() bool { return counter(t, p.metrics.loadFailures[faultUnknownMetrics]) > 0 })
	if got := state.Load(); got.At.Before(was.At) || got.Running != 5 {
		t.Errorf("an unreadable answer replaced the load by %+v", got)
	}
}

// An engine that answered a moment ago and now does not is left before its
// health probe says so.
func TestPool_UnreachableMetricsCoolDown(t *testing.T) {
	var hang atomic.Bool
	release := make(chan struct{})
	e := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			return
		}
		if hang.Load() {
			<-release
		}
		_, _ = w.Write([]byte("vllm:num_requests_running 2\nvllm:num_requests_waiting 1\n"))
	}))
	defer e.Close()
	defer close(release)
	p := running(t, Spec{Name: "a", Address: strings.TrimPrefix(e.URL, "http://"), Models: []string{"m"}})
	state := p.Snapshot().Endpoints[0].State
	poll(t, func() bool { return state.Load() != nil })
	if !state.CoolUntil().IsZero() {
		t.Error("an endpoint that answers cools down")
	}
	hang.Store(true)
	poll(t, func() bool { return !state.CoolUntil().IsZero() })
}

// An idle endpoint that answers reads of its metrics is probed a fourth as
// often, a busy one as often as configured; and one that fails is still found.
func TestPool_SparesIdleEndpoints(t *testing.T) {
	var probes atomic.Int64
	var status atomic.Int32
	status.Store(http.StatusOK)
	e := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" {
			_, _ = w.Write([]byte("vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"))
			return
		}
		probes.Add(1)
		w.WriteHeader(int(status.Load()))
	}))
	defer e.Close()
	p := running(t, Spec{Name: "a", Address: strings.TrimPrefix(e.URL, "http://"), Models: []string{"m"}})
	state := p.Snapshot().Endpoints[0].State
	poll(t, func() bool { return state.Load() != nil && probes.Load() > 0 })
	idle, since := probes.Load(), time.Now()
	poll(t, func() bool { return probes.Load() >= idle+5 })
	each := time.Since(since) / 5
	if each < 3*p.cfg.Health.Interval {
		t.Errorf("an idle endpoint is probed every %v, want every %v or so", each, 4*p.cfg.Health.Interval)
	}
	status.Store(http.StatusServiceUnavailable)
	poll(t, func() bool { return p.Snapshot().Endpoints[0].Health == HealthFailed })
}

func TestState_Backlog(t *testing.T) {
	var s State
	now := time.Unix(100, 0)
	end := s.Enqueue(now, 2*time.Second)
	s.Enqueue(now.Add(time.Second), time.Second)
	if got := s.Backlog(now.Add(time.Second)); got != 2*time.Second {
		t.Errorf("backlog %v, want the second that is left and the new one", got)
	}
	s.Dequeue(now.Add(time.Second), end, 2*time.Second)
	if got := s.Backlog(now.Add(time.Second)); got != time.Second {
		t.Errorf("backlog %v after half of the first was taken back, want 1s", got)
	}
	s.Dequeue(now.Add(time.Hour), end, 2*time.Second)
	if got := s.Backlog(now.Add(time.Second)); got != time.Second {
		t.Errorf("backlog %v: work that was done is taken back", got)
	}
	if s.Backlog(now.Add(time.Hour)) != 0 {
		t.Error("a backlog does not drain")
	}
	if end := s.Enqueue(now.Add(time.Hour), time.Second); !end.Equal(now.Add(time.Hour + time.Second)) {
		t.Errorf("new work on an idle endpoint ends at %v", end)
	}
}

// The one-word rate is the exponentially weighted mean it claims to be.
func TestState_ChurnAgreesWithTheSum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s State
		now := time.Unix(1_700_000_000, 0)
		want := 0.0
		for range rapid.IntRange(1, 20).Draw(t, "placements") {
			dt := rapid.Float64Range(0, 100).Draw(t, "seconds")
			n := rapid.Int64Range(1, 1_000_000).Draw(t, "tokens")
			now = now.Add(time.Duration(dt * 1e9))
			want = want*math.Exp(-dt/churnWindow) + float64(n)/churnWindow
			s.Place(now, n)
			if got := s.Churn(now); math.Abs(got-want) > 1e-3*want+1e-6 {
				t.Fatalf("churn %v tokens/s, want %v", got, want)
			}
		}
	})
}

func TestState_Faith(t *testing.T) {
	var s State
	if s.Faith() != 1 {
		t.Errorf("faith starts at %v, want 1", s.Faith())
	}
	s.ObserveCached(0, 0)
	s.ObserveCached(100, 200)
	if s.Faith() != 1 {
		t.Errorf("faith %v after confirmations, want 1", s.Faith())
	}
	for range 50 {
		s.ObserveCached(100, 50)
	}
	if got := s.Faith(); math.Abs(got-.5) > .01 {
		t.Errorf("faith %v after 50 predictions half wrong, want .5", got)
	}
}

func TestState_CoolDown(t *testing.T) {
	now := time.Unix(100, 0)
	after := func(d time.Duration) time.Time { return now.Add(d) }
	var s State
	if s.Cooling(now) || !s.CoolUntil().IsZero() {
		t.Error("a new endpoint cools down")
	}
	if !s.Observe(now, OutcomeFailure) || !s.Cooling(after(999*time.Millisecond)) || s.Cooling(after(time.Second)) {
		t.Error("one failure must cool down for a second")
	}
	// On trial: the first request keeps the others away.
	s.Try(after(time.Second))
	if !s.Cooling(after(1500*time.Millisecond)) || s.Cooling(after(2*time.Second)) {
		t.Error("a trial must keep other requests away for a second")
	}
	s.Observe(after(2*time.Second), OutcomeFailure)
	if !s.Cooling(after(3900*time.Millisecond)) || s.Cooling(after(4*time.Second)) {
		t.Error("the second failure must cool down for two seconds")
	}
	for range 40 {
		s.Observe(now, OutcomeFailure)
	}
	if d := s.CoolUntil().Sub(now); d != coolMost {
		t.Errorf("many failures cool down for %v, want %v", d, coolMost)
	}
	s.Observe(now, OutcomeSuccess)
	if s.Cooling(now) {
		t.Error("a success does not end the cool-down")
	}
	for i := range coolAfter500 {
		if began := s.Observe(now, OutcomeFault); began != (i == coolAfter500-1) {
			t.Errorf("status 500 number %d: cool-down begun = %v", i+1, began)
		}
	}
	s.Observe(now, OutcomeUnknown)
	if !s.Cooling(now) {
		t.Error("an outcome that says nothing ended the cool-down")
	}
	s.Try(now)
	if d := s.CoolUntil().Sub(now); d != coolFirst {
		t.Errorf("a request sent during the cool-down moved its end to %v", d)
	}
}

func TestOutcomeOf(t *testing.T) {
	for status, want := range map[int]Outcome{
		0: OutcomeUnknown, 100: OutcomeUnknown, 200: OutcomeSuccess, 404: OutcomeSuccess, 429: OutcomeSuccess,
		500: OutcomeFault, 501: OutcomeSuccess, 502: OutcomeFailure, 503: OutcomeFailure, 504: OutcomeFailure, 599: OutcomeFault,
	} {
		if got := OutcomeOf(status); got != want {
			t.Errorf("OutcomeOf(%d) = %d, want %d", status, got, want)
		}
	}
}
