// Package server puts the fake inference engine of package engine behind
// vLLM's outer interfaces: the OpenAI API with JSON and server-sent events,
// /tokenize, /metrics, and the ZMQ KV-event stream with its replay socket. It
// runs the core on the real clock, faster or slower by a factor.
//
// One goroutine, the driver, owns the core and publishes its events. HTTP
// handlers hand it closures and read tokens from a stream of their own, so
// that a slow client never holds up a step. Requests for the pool's truth
// (/debug/pool) run between two steps, when every event of the past has been
// given a sequence number: the truth and "next_seq" belong together.
//
// What is imitated is documented by vLLM's "OpenAI-Compatible Server", "KV
// Events" and "Production Metrics" pages. What differs:
//
//   - n, best_of, echo, logprobs, tool calls, structured output and images
//     are refused or ignored; a request gets one choice.
//   - An answer's natural length, without max_tokens or ignore_eos, is 32 to
//     255 tokens, chosen by the prompt.
//   - Token ids of a prompt may be any 32-bit value.
//   - A replay does not pause live publishing.
//   - /reset_prefix_cache needs no development mode.
//
// Routes under /debug are this server's own. GET /debug/pool is the pool's
// truth. POST /debug/faults sets the faults of [Faults] that its JSON body
// names and answers with all of them: events lost, doubled, out of order,
// unknown or garbage, a stall, restarts, late subscriptions, and replays that
// are short, holey or without an end.
package server
