package pool

import (
	"fmt"
	"testing"
	"time"
)

// vllmSays is what an engine says in vLLM's format.
func vllmSays(running, waiting, ended, first, prompt, cached int, prefill float64) []byte {
	return fmt.Appendf(nil, `vllm:num_requests_running %d
vllm:num_requests_waiting %d
vllm:request_success_total{finished_reason="stop"} %d
vllm:time_to_first_token_seconds_count %d
vllm:prompt_tokens_total %d
vllm:generation_tokens_total 0
vllm:prefix_cache_hits_total %d
vllm:request_prefill_time_seconds_sum %g
vllm:request_prefill_time_seconds_count %d
`, running, waiting, ended, first, prompt, cached, prefill, ended)
}

// vllmKeeps is what an engine with a cache of 100,000 tokens says of it, and of
// requests that ended, which ran for some seconds in sum.
func vllmKeeps(running, waiting int, usage float64, ended int, seconds float64) []byte {
	return fmt.Appendf(nil, `vllm:num_requests_running %d
vllm:num_requests_waiting %d
vllm:kv_cache_usage_perc %g
vllm:cache_config_info{block_size="100",num_gpu_blocks="1000"} 1
vllm:prompt_tokens_total 0
vllm:generation_tokens_total 0
vllm:request_prefill_time_seconds_sum %g
vllm:request_prefill_time_seconds_count %d
vllm:request_decode_time_seconds_sum %g
`, running, waiting, usage, seconds/4, ended, seconds*3/4)
}

func TestMeter_TellsWhatIsNeededOfTheCache(t *testing.T) {
	at := time.Unix(1000, 0)
	var shared fleet
	read := func(m *Meter, s *State, text []byte) *Load {
		t.Helper()
		at = at.Add(time.Second)
		l, err := m.Read(at, text, s)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	var a, b State
	a.fleet.Store(&shared)
	b.fleet.Store(&shared)
	ma, mb := NewMeter(time.Minute), NewMeter(time.Minute)
	if l := read(ma, &a, vllmKeeps(0, 0, 0, 0, 0)); l.Has&FieldMemory != 0 {
		t.Error("no request ever ended, and it is told how long they stay")
	}
	read(mb, &b, vllmKeeps(0, 0, 0, 0, 0))
	for i, tokens := range []int64{500, 4000, 2000} {
		a.Place(at, tokens)
		a.Reserve(tokens)
		a.Send(uint64(i), tokens)
	}
	// Ten requests of 4 s each on one, and ten of 8 s on the other of the same model.
	read(ma, &a, vllmKeeps(2, 1, .4, 10, 40))
	read(mb, &b, vllmKeeps(0, 0, 0, 10, 80))
	l := read(ma, &a, vllmKeeps(2, 1, .4, 10, 40))
	// The first ten have a little less weight, as they are a second older.
	if l.Has&FieldMemory == 0 || l.StaySeconds < 6 || l.StaySeconds > 6.05 {
		t.Errorf("requests stay %v s, want the mean of both endpoints, about 6", l.StaySeconds)
	}
	if l.Demand != 42_000 || l.Placed != 6500 {
		t.Errorf("demand %v, placed %v; want 40 %% of 100,000 held, the last of three waiting, and 6500", l.Demand, l.Placed)
	}
	// Two wait, and this router has sent none of them: they are taken to be as large as those that run.
	if l := read(mb, &b, vllmKeeps(4, 2, .2, 10, 80)); l.Demand != 30_000 {
		t.Errorf("demand %v, want 20,000 of four running ones and 10,000 of two that wait", l.Demand)
	}
	// An endpoint of no known model goes by its own requests.
	var alone State
	mc := NewMeter(time.Minute)
	read(mc, &alone, vllmKeeps(0, 0, 0, 0, 0))
	if l := read(mc, &alone, vllmKeeps(1, 0, .1, 5, 5)); l.StaySeconds != 1 {
		t.Errorf("requests stay %v s, want 1", l.StaySeconds)
	}
}

func TestMeter_TellsTheBacklogByWhoWaits(t *testing.T) {
	at := time.Unix(1000, 0)
	var s State
	m := NewMeter(time.Minute)
	read := func(text []byte) *Load {
		t.Helper()
		at = at.Add(time.Second)
		l, err := m.Read(at, text, &s)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	// Seven ended and five got a first token: two failed before.
	read(vllmSays(0, 0, 7, 5, 0, 0, 0))
	l := read(vllmSays(0, 0, 17, 15, 10_000, 2000, 8))
	if l.PrefillRate != 1000 {
		t.Fatalf("prefill rate %v, want 8000 uncached tokens in 8 s", l.PrefillRate)
	}
	for i, tokens := range []int64{500, 4000, 2000, 1000} {
		s.Reserve(tokens)
		s.Send(uint64(i), tokens)
	}
	// Two of four have their first token: the oldest two.
	l = read(vllmSays(3, 1, 17, 17, 10_000, 2000, 8))
	if l.Unanswered != 2 {
		t.Errorf("%v wait for their first token, want 2", l.Unanswered)
	}
	if got := s.Backlog(at).Round(time.Millisecond); got != 3*time.Second {
		t.Errorf("backlog %v, want the 3000 tokens of the two sent last", got)
	}
	// As many more of another router. Four of eight wait: half of what counts is
	// two of ours, scaled up to four, and half is four times the mean of ours, 1875.
	read(vllmSays(6, 2, 17, 19, 10_000, 2000, 8))
	if got := s.Backlog(at); got != 6750*time.Millisecond {
		t.Errorf("backlog %v, want the mean of 6000 and 7500 tokens", got)
	}
	s.Return(2)
	l = read(vllmSays(2, 1, 19, 19, 10_000, 2000, 8))
	if got := s.Backlog(at); l.Unanswered != 1 || got != time.Second {
		t.Errorf("%v wait, backlog %v: want one with 1000 tokens", l.Unanswered, got)
	}
	for _, i := range []uint64{0, 1, 3} {
		s.Return(i)
	}
	s.Enqueue(at, time.Hour) // an estimate gone wrong
	read(vllmSays(0, 0, 22, 20, 10_000, 2000, 8))
	if got := s.Backlog(at); got != 0 {
		t.Errorf("an idle engine has a backlog of %v", got)
	}
}

// Of two routers that have one request each on an engine, nobody knows whose it
// is that waits: it is not nobody's.
func TestMeter_CountsAPartOfARequest(t *testing.T) {
	at := time.Unix(1000, 0)
	var s State
	m := NewMeter(time.Minute)
	for _, text := range [][]byte{vllmSays(0, 0, 0, 0, 0, 0, 0), vllmSays(0, 0, 10, 10, 10_000, 0, 10)} {
		at = at.Add(time.Second)
		if _, err := m.Read(at, text, &s); err != nil {
			t.Fatal(err)
		}
	}
	s.Reserve(3000)
	s.Send(1, 3000)
	at = at.Add(time.Second)
	if _, err := m.Read(at, vllmSays(4, 0, 10, 13, 10_000, 0, 10), &s); err != nil {
		t.Fatal(err)
	}
	if got := s.Backlog(at).Round(time.Millisecond); got != 3*time.Second {
		t.Errorf("backlog %v, want 3 s: one of four waits, and ours takes that long", got)
	}
}

// An engine that is new goes by the rate of others of its model until its own is
// learned, and does not count in theirs.
func TestMeter_LendsARate(t *testing.T) {
	at := time.Unix(1000, 0)
	var shared fleet
	var known, fresh State
	known.fleet.Store(&shared)
	fresh.fleet.Store(&shared)
	a, b := NewMeter(time.Minute), NewMeter(time.Minute)
	read := func(m *Meter, s *State, text []byte) *Load {
		t.Helper()
		at = at.Add(time.Second)
		l, err := m.Read(at, text, s)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := read(b, &fresh, vllmSays(0, 0, 0, 0, 0, 0, 0)); l.Has&FieldPrefillRate != 0 {
		t.Errorf("a rate of %v is lent that nobody has", l.PrefillRate)
	}
	read(a, &known, vllmSays(0, 0, 0, 0, 0, 0, 0))
	if l := read(a, &known, vllmSays(0, 0, 10, 10, 10_000, 0, 10)); l.RateLent || l.PrefillRate != 1000 {
		t.Fatalf("rate %v, lent: %v; want an own one of 1000", l.PrefillRate, l.RateLent)
	}
	for range 2 { // it stays lent
		l := read(b, &fresh, vllmSays(0, 0, 0, 0, 0, 0, 0))
		if l.Has&FieldPrefillRate == 0 || !l.RateLent || l.PrefillRate != 1000 {
			t.Errorf("rate %v, lent: %v; want that of the other", l.PrefillRate, l.RateLent)
		}
	}
	if l := read(b, &fresh, vllmSays(0, 0, 10, 10, 20_000, 0, 10)); l.RateLent || l.PrefillRate != 2000 {
		t.Errorf("rate %v, lent: %v; want an own one of 2000", l.PrefillRate, l.RateLent)
	}
	if got := shared.rate; got != 1050 {
		t.Errorf("the common rate is %v, want 1000 and a twentieth of the way to 2000", got)
	}
}
