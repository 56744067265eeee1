package routing

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConfig_Validate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the default is not valid: %v", err)
	}
	bad := Config{
		Strategy: "best", Lock: "pd", Fallbacks: -1, Decisions: 1 << 20, DefaultProfile: "gone",
		Profiles:    map[string]Profile{"b": {}, "a": {Strategy: "random:2,least-request"}},
		PrefixCache: PrefixCacheConfig{AffinityFloor: 1.5, EvictionPrice: math.NaN(), Release: -1, ReleaseSavings: -1, InexactFaith: 2, ReuseHorizon: 1000 * time.Hour, LoadRate: 1},
	}
	all := strings.Join(Strategies(), ", ")
	want := `strategy: "best" is not a strategy; use one of ` + all + `
lock: "pd" is a strategy of AIBrix that is not offered here (prefill and decode are not separated); use one of ` + all + `
profiles.a.strategy: "random" cannot be a part of a blend, because its cost is no quantity; use it alone, or blend some of least-busy-time, least-gpu-cache, least-kv-cache, least-latency, least-request, least-utilization, lora-affinity, prefix-cache, throughput
profiles.b.strategy: "" is not a strategy; use one of ` + all + `
default_profile: "gone" is not one of routing.profiles; add it there or leave it empty
fallbacks: -1 is out of range; use 0 to 16
decisions: 1048576 is out of range; use 0 to 65536
prefix_cache.affinity_floor: 1.5 is out of range; use 0 to 1
prefix_cache.release_savings: -1 is out of range; use 0 to 1000
prefix_cache.inexact_faith: 2 is out of range; use 0 to 1
prefix_cache.pressure: 0s is out of range; use 1ms to 1h, and a long time to have no pressure
prefix_cache.eviction_price: NaN is out of range; use 0 to 1000
prefix_cache.prefill_rate: 0 is out of range; use 1 to 1e+09
prefix_cache.release: -1ns is out of range; use 0s to 1m0s
prefix_cache.reuse_horizon: 1000h0m0s is out of range; use 0s to 24h0m0s
queue.max_waiting: 0 is out of range; use 1 to 65536
queue.deadline: 0s is out of range; use more than 0s, up to 1h`
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(bad.Validate().Error(), "\n")); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

func TestReasons_HaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]Reason{}
	for _, r := range Reasons() {
		if other, dup := seen[r.String()]; dup {
			t.Errorf("reasons %d and %d share the name %q", r, other, r)
		}
		seen[r.String()] = r
	}
	if len(seen) != len(reasonNames) {
		t.Errorf("%d names for %d reasons", len(seen), len(reasonNames))
	}
}
