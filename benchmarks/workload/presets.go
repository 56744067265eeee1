package workload

import (
	"fmt"
	"strings"
)

// Presets returns the workloads that have a name, in the order in which they
// are listed.
//
// The figures are those of the sources; where a source gives a mean and a
// deviation only, the shape is log-normal. Rates suit eight engines of an
// 8-billion-parameter model; simulations set the load themselves.
func Presets() []Spec {
	const catalogue = "kubernetes-sigs/inference-perf, workload catalogue"
	once := fixed(1)
	return []Spec{
		{
			Name: "shared-prefix", Doc: "150 system prompts of 6,000 tokens, five questions each, asked again and again",
			Source:   "llm-d blog, KV-cache wins you can see (b2b-saas; answers as long as its throughput implies)",
			Requests: 12_000, Rate: 20, ArrivalCV: 1,
			Prefixes: 150, PrefixTokens: fixed(6000), Questions: 5, Message: fixed(1200), Output: fixed(245), Turns: once,
		},
		{
			Name: "shared-prefix-long", Doc: "83 system prompts of 8,000 tokens, three questions each, answers of 1,000 tokens",
			Source:   "llm-d blog, precise prefix-cache routing (37 % of the cache)",
			Requests: 6000, Rate: 8, ArrivalCV: 1,
			Prefixes: 83, PrefixTokens: fixed(8000), Questions: 3, Message: fixed(1000), Output: fixed(1000), Turns: once,
		},
		{
			Name: "chat", Doc: "people who talk with an assistant, a few turns each",
			Source:   catalogue + ", interactive chat",
			Requests: 12_000, Rate: 16, ArrivalCV: 1,
			Prefixes: 1, PrefixTokens: fixed(1000), Context: Dist{Mean: 4000, SD: 2500}, Message: Dist{Mean: 50, SD: 40, Min: 1},
			Output: Dist{Mean: 300, SD: 150, Min: 1}, Turns: Dist{Mean: 4, SD: 2.5, Min: 1}, Gap: Dist{Mean: 45, SD: 40},
		},
		{
			Name: "agentic", Doc: "agents with long contexts that start helpers behind one prompt, many at once",
			Source:   catalogue + ", agentic replay (growth and gaps); AIBrix, agent workload (fan-out)",
			Requests: 12_000, Rate: 6, ArrivalCV: 1,
			Prefixes: 4, PrefixZipf: 1, PrefixTokens: fixed(6000), Context: Dist{Mean: 12_000, SD: 9000, Max: 60_000},
			Message: Dist{Mean: 1100, SD: 1500, Min: 16, Max: 16_000}, Output: Dist{Mean: 400, SD: 400, Min: 8, Max: 4000},
			Turns: Dist{Mean: 12, SD: 8, Min: 2, Max: 40}, Gap: Dist{Mean: 13, SD: 15},
			FanOut: 0.12, Helpers: Dist{Mean: 6, SD: 4, Min: 2, Max: 24}, HelperPrefix: fixed(4000),
			HelperTask: Dist{Mean: 800, SD: 600, Min: 32}, HelperTurns: Dist{Mean: 2.5, SD: 1.5, Min: 1, Max: 8},
		},
		{
			Name: "tools", Doc: "short calls of many tools, few of which are used most",
			Source:   "Preble (arXiv 2407.00023), tool use: 1,835 tokens, 85 % of them shared, 43 of answer; Zipf 1.1",
			Requests: 16_000, Rate: 60, ArrivalCV: 1,
			Prefixes: 1000, PrefixZipf: 1.1, PrefixTokens: Dist{Mean: 1560, SD: 200, Min: 600, Max: 4000}, Message: Dist{Mean: 275, SD: 150, Min: 16},
			Output: Dist{Mean: 43, SD: 20, Min: 4}, Turns: once,
		},
		{
			Name: "rag", Doc: "questions about long documents, few of which are asked about most",
			Source:   "Preble (arXiv 2407.00023), LooGLE: 23,474 tokens, 91 % of them shared, 16 of answer",
			Requests: 6000, Rate: 5, ArrivalCV: 1,
			Prefixes: 400, PrefixZipf: 0.8, PrefixTokens: Dist{Mean: 21_400, SD: 8000, Min: 4000, Max: 60_000}, Message: Dist{Mean: 2000, SD: 1000, Min: 32},
			Output: Dist{Mean: 16, SD: 8, Min: 2}, Turns: once,
		},
		{
			Name: "no-reuse", Doc: "no two prompts share anything: what a cache cannot help",
			Source:   "Azure LLM inference trace 2023, conversation: 1,155 tokens, 211 of answer (CC-BY-4.0, figures only)",
			Requests: 12_000, Rate: 40, ArrivalCV: 1,
			Context: Dist{Mean: 1155, SD: 1100, Min: 3, Max: 14_000}, Output: Dist{Mean: 211, SD: 165, Min: 1, Max: 1500}, Turns: once,
		},
		{
			Name: "burst", Doc: "programs that call by template, in bursts",
			Source:   "Azure LLM inference trace 2023, code: 2,048 tokens, 28 of answer, bursts (CC-BY-4.0, figures only); templates as in KVCache in the wild (arXiv 2506.02634), to-B",
			Requests: 12_000, Rate: 25, ArrivalCV: 8,
			Prefixes: 600, PrefixZipf: 1, PrefixTokens: Dist{Mean: 1400, SD: 900, Min: 200, Max: 6000}, Message: Dist{Mean: 650, SD: 600, Min: 8},
			Output: Dist{Mean: 28, SD: 30, Min: 1}, Turns: once,
		},
		{
			Name: "lora", Doc: "one base model under 24 adapters, few of which are used most",
			Source:   "of our own: lengths as chat has them, adapters by Zipf 1",
			Requests: 12_000, Rate: 18, ArrivalCV: 1,
			Prefixes: 2, PrefixTokens: fixed(2000), Context: Dist{Mean: 1500, SD: 1200}, Message: Dist{Mean: 80, SD: 60, Min: 1},
			Output: Dist{Mean: 250, SD: 150, Min: 1}, Turns: Dist{Mean: 3, SD: 2, Min: 1}, Gap: Dist{Mean: 30, SD: 25},
			Adapters: 24, AdapterZipf: 1,
		},
		{
			Name: "code", Doc: "coding sessions over large sources",
			Source:   catalogue + ", code generation (as published with the 46 k tokens/s figure)",
			Requests: 6000, Rate: 2, ArrivalCV: 1,
			Prefixes: 1, PrefixTokens: fixed(3000), Context: Dist{Mean: 52_000, SD: 26_000, Max: 97_000}, Message: Dist{Mean: 500, SD: 400, Min: 16},
			Output: Dist{Mean: 800, SD: 400, Min: 16, Max: 3000}, Turns: uniform(2, 12), Gap: Dist{Mean: 15, SD: 25},
		},
		{
			Name: "research", Doc: "long reading in many steps",
			Source:   catalogue + ", deep research",
			Requests: 6000, Rate: 2, ArrivalCV: 1,
			Prefixes: 1, PrefixTokens: fixed(2000), Context: Dist{Mean: 45_000, SD: 35_000, Max: 100_000}, Message: Dist{Mean: 3000, SD: 2500, Min: 32, Max: 12_000},
			Output: Dist{Mean: 300, SD: 400, Min: 8, Max: 3000}, Turns: Dist{Mean: 6, SD: 4, Min: 1, Max: 10}, Gap: Dist{Mean: 25, SD: 12},
		},
		{
			Name: "reasoning", Doc: "short questions, very long answers",
			Source:   catalogue + ", reasoning",
			Requests: 3000, Rate: 3, ArrivalCV: 1,
			Prefixes: 1, PrefixTokens: fixed(250), Context: Dist{Mean: 1000, SD: 800}, Output: Dist{Mean: 8000, SD: 6500, Min: 200, Max: 30_000}, Turns: once,
		},
	}
}

// Preset returns the workload of that name.
func Preset(name string) (Spec, error) {
	var names []string
	for _, s := range Presets() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Spec{}, fmt.Errorf("%q: no such workload%s; there are %s", name, DidYouMean(name, names), strings.Join(names, ", "))
}

// DidYouMean returns "; did you mean X?" for the one of names that is nearest
// to name, or nothing if none is near.
func DidYouMean(name string, names []string) string {
	best, nearest := "", len(name)/3+2
	for _, n := range names {
		if d := distance(name, n); d < nearest {
			best, nearest = n, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// distance is the number of letters to insert, delete or replace (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			same := before
			if a[i] != b[j] {
				same++
			}
			before = row[j+1]
			row[j+1] = min(same, row[j]+1, before+1)
		}
	}
	return row[len(b)]
}
