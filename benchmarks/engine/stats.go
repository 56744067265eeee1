package engine

import (
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// Stats describes an engine in the terms of vLLM's metrics.
type Stats struct {
	// Running and Waiting count sequences.
	Running, Waiting int
	// BlocksInUse counts blocks that sequences reference; a free block may
	// still be cached.
	BlocksInUse, BlocksTotal int

	// Steps counts finished steps, Preemptions sequences thrown back to the
	// queue.
	Steps, Preemptions uint64
	// CacheQueries, CacheHits and HostHits count prompt tokens of first
	// admissions: all, those found in the cache, and those found only in the
	// host tier.
	CacheQueries, CacheHits, HostHits uint64
	// PromptTokens counts the prompt tokens of requests whose prefill ended,
	// cached or not; GenerationTokens the sampled tokens.
	PromptTokens, GenerationTokens uint64
	// ComputedTokens counts the tokens that steps computed, recomputation
	// after preemption included.
	ComputedTokens uint64
}

// KVUsage is the share of blocks in use, 0 to 1.
func (s Stats) KVUsage() float64 { return float64(s.BlocksInUse) / float64(s.BlocksTotal) }

// Emission is one sampled token.
type Emission struct {
	ID    SequenceID
	Token kvindex.TokenID
}

// Finished sums up a sequence that sampled its last token. The differences of
// the times are queueing time, time to first token and end-to-end time.
type Finished struct {
	ID           SequenceID
	PromptTokens int
	OutputTokens int
	// CachedTokens is the number of prompt tokens found in the cache at the
	// first admission: what usage.prompt_tokens_details.cached_tokens says.
	CachedTokens int
	// LoadedTokens is how many of them came from the host tier.
	LoadedTokens int
	Preemptions  int
	// Arrived, Admitted, FirstToken and Done are the driver's times of Submit,
	// of the first Begin and of two Ends.
	Arrived, Admitted, FirstToken, Done time.Time
}

// StepResult is what one step did. Its slices belong to the Core and are
// valid until the next Begin, the events themselves for good.
type StepResult struct {
	// Duration is what Begin returned.
	Duration time.Duration
	// PrefillTokens and DecodeTokens are the tokens computed.
	PrefillTokens, DecodeTokens int
	// Emitted has at most one token per sequence, in scheduling order.
	Emitted []Emission
	// Started are the sequences that emitted their first token.
	Started []SequenceID
	// Finished are the sequences that emitted their last token.
	Finished []Finished
	// Events is the batch of the step, in order. Empty means that no batch is
	// published.
	Events []Event
}
