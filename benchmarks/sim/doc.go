// Package sim simulates a fleet of inference engines behind a router, in
// virtual time. It runs the production decisions (packages routing and kvindex)
// against the engine of package benchmarks/engine, beside re-implementations of
// other projects' policies.
//
// A run is one [Scenario] on one workload with one seed, on one goroutine, from
// a heap of events. It reads no clock, and its result is a function of its
// arguments alone. A [Plan] is many of them, side by side; how many does not
// change its result.
//
// # What the product's router is told, and when
//
// Everything that reaches it in production, in the way in which it does: KV
// events, late or lost as the scenario says, encoded and decoded by the
// production code if it asks for that; the engine's metrics, as text in vLLM's
// format, as often as the pool reads them; the headers of a streamed answer,
// which come at once and do not tell when the prompt is done; the end of the
// answer. Baselines get more: their own requests' first tokens and the engines'
// queues without delay, as far as their originals look at such figures.
//
// # Terms
//
//   - The pooled reference is one engine as large and as fast as all endpoints
//     together. It is what a perfect router could come near to, not a bound: its
//     steps are as long as those of one endpoint.
//   - The knee is the highest rate of arrivals at which the pooled reference
//     has a mean time to first token of at most 2 s. Load is a share of it.
//   - The twin of prefix-cache is that strategy with nothing to wait for: it reads
//     the engines' true state before every decision, see [Bounds].
//   - The clairvoyant policy knows that state too, and the next arrivals.
//   - The ceiling is the token hit of one cache as large as all together, least
//     recently used out.
//
// # What is not modelled
//
// The time of the network, of tokenization and of the decision itself; clients
// that give up; admission control. Blocks are those of the trace, 512 tokens:
// engines of 16 hit up to 511 tokens more of each shared prefix, under any
// strategy. A block that a request left without filling it pushes out none that
// is cached, as it hardly would if it were one of 16 tokens. With Scenario.Wire,
// blocks that answers fill are not asked for again, because the engine chooses the
// tokens of its answers.
//
// Package fidelity holds a run beside the real programs, which take time for all
// of that.
package sim
