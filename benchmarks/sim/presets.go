package sim

import (
	"fmt"
	"strings"

	"github.com/warmpath/warmpath/benchmarks/workload"
)

// preset is a matrix by name.
type preset struct {
	name, doc string
	// args are the flags that it stands for.
	args []string
}

// conversation is the trace that the repository has.
const conversation = "benchmarks/workload/traces/mooncake-conversation.jsonl.gz"

func presets() []preset {
	const compared = "prefix-cache,least-request,round-robin,consistent-hash,aibrix-prefix,llm-d-blend,llm-d-sticky,mooncake-est-ttft,lmetric,dynamo-cost"
	return []preset{
		{
			"default", "what make bench runs: the conversation trace, shared prefixes and no reuse, below and above the knee, three seeds",
			[]string{
				"--trace", conversation, "--workload", "shared-prefix,no-reuse", "--load", "0.7,0.9,1.1,1.3", "--seeds", "3",
				"--strategies", "prefix-cache,least-request,aibrix-prefix,llm-d-blend,llm-d-sticky,mooncake-est-ttft,lmetric",
			},
		},
		{
			"conversation", "the conversation trace below and above the knee, 8 endpoints",
			[]string{"--trace", conversation, "--load", "0.5,0.7,0.9,1.1,1.3", "--strategies", compared},
		},
		{
			"host-tier", "the conversation trace with a host tier of five times the cache",
			[]string{"--trace", conversation, "--host", "5", "--load", "0.7,0.9,1.1,1.3", "--strategies", compared},
		},
		{
			"shared-prefix", "llm-d's 73 % set-up on eight 32B endpoints, ten seeds",
			[]string{"--workload", "shared-prefix", "--profile", "32b", "--load", "0.7,0.9", "--seeds", "10", "--requests", "10000", "--warmup", "2000", "--strategies", compared},
		},
		{
			"generated", "all generated workloads at 0.7 and 0.9 of the knee",
			[]string{"--workload", "shared-prefix,chat,agentic,tools,rag,no-reuse,burst,lora", "--load", "0.7,0.9", "--strategies", compared},
		},
		{
			"stale", "the conversation trace with events 0, 0.2 and 2 s late",
			[]string{"--trace", conversation, "--lag", "0s,200ms,2s", "--load", "0.9,1.3", "--strategies", "prefix-cache,mooncake-est-ttft"},
		},
		{
			"capacity", "the conversation trace with caches of a quarter to four times the size",
			[]string{
				"--trace", conversation, "--capacity", "0.25,0.5,1,2,4", "--speed", "2", "--seeds", "3",
				"--strategies", "prefix-cache,least-request,llm-d-blend,mooncake-est-ttft,lmetric",
			},
		},
		{
			"bounds", "the conversation trace: prefix-cache, its twin that is told everything, and who knows what comes",
			[]string{"--trace", conversation, "--speed", "2,2.6,3.4", "--seeds", "3", "--strategies", "prefix-cache,prefix-cache-twin,clairvoyant-greedy,mooncake-est-ttft,lmetric"},
		},
		{
			"reference", "the conversation trace at twice and three times its rate, where other figures are known",
			[]string{
				"--trace", conversation, "--speed", "2,3", "--strategies",
				"prefix-cache,round-robin,least-request,aibrix-prefix,llm-d-blend,llm-d-sticky,mooncake-est-ttft,lmetric,dynamo-cost",
			},
		},
		{
			"held-out", "workloads that prefix-cache was not tuned on, near the knee",
			[]string{
				"--workload", "agentic,chat,tools,rag,burst,lora", "--load", "0.9", "--requests", "4000",
				"--strategies", "prefix-cache,least-request,llm-d-blend,mooncake-est-ttft,lmetric",
			},
		},
		{
			"shared-prefix-long", "llm-d's 37 % set-up on four 70B endpoints",
			[]string{
				"--workload", "shared-prefix-long", "--profile", "70b", "--endpoints", "4", "--speed", "0.706", "--requests", "3000",
				"--strategies", "prefix-cache,least-request,random,aibrix-prefix,llm-d-blend,llm-d-sticky,mooncake-est-ttft,lmetric",
			},
		},
		{
			"churn", "the conversation trace while an endpoint crashes every two minutes and comes back empty",
			[]string{"--trace", conversation, "--load", "0.7", "--restart", "2m", "--strategies", "prefix-cache,least-request,llm-d-blend,mooncake-est-ttft"},
		},
		{
			"loss", "the conversation trace with none, a thousandth and a hundredth of the event batches lost, with replay and without",
			[]string{"--trace", conversation, "--load", "0.9", "--lag", "50ms", "--loss", "0,0.001,0.01", "--replay", "true,false", "--strategies", "prefix-cache"},
		},
		{
			"unequal", "the conversation trace on eight endpoints of which two are half as fast",
			[]string{"--trace", conversation, "--load", "0.7,0.9", "--slow", "0.25", "--strategies", "prefix-cache,least-request,llm-d-blend,mooncake-est-ttft"},
		},
		{
			"large", "the conversation trace on 16 and 64 endpoints",
			[]string{"--trace", conversation, "--endpoints", "16,64", "--load", "0.9", "--strategies", "prefix-cache,least-request,mooncake-est-ttft,lmetric"},
		},
		{
			"replicas", "the conversation trace with 1, 2 and 4 routers that share nothing",
			[]string{"--trace", conversation, "--replicas", "1,2,4", "--load", "0.9,1.3", "--strategies", "prefix-cache,least-request"},
		},
	}
}

func presetByName(name string) (preset, error) {
	var names []string
	for _, p := range presets() {
		if p.name == name {
			return p, nil
		}
		names = append(names, p.name)
	}
	return preset{}, fmt.Errorf("--preset: %q does not exist%s; use one of %s", name, workload.DidYouMean(name, names), strings.Join(names, ", "))
}
