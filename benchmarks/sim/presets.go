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
			"default", "what make bench runs: the conversation trace below and above the knee, three seeds",
			[]string{
				"--trace", conversation, "--load", "0.7,0.9,1.1,1.3", "--seeds", "3",
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
			[]string{"--workload", "shared-prefix", "--profile", "32b", "--load", "0.7,0.9", "--seeds", "10", "--strategies", compared},
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
