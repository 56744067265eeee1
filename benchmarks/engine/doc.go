// Package engine simulates an LLM inference engine: the scheduler, the paged
// KV cache with prefix caching, and the time its steps take. It is what a
// router is tested and measured against without a GPU.
//
// [Core] is a pure state machine that is told the time. A simulator steps many
// of them on a virtual clock; package server runs one on the real clock:
//
//	id, err := core.Submit(now, engine.Request{Prompt: ids, OutputTokens: 128})
//	for {
//		length, ok := core.Begin(now) // false: idle until the next Submit
//		now = now.Add(length)         // or wait that long
//		result := core.End(now)       // tokens, finished sequences, KV events
//	}
//
// Equal calls give equal results on every machine: nothing depends on map
// order, on the clock or on floating-point contraction, and the generated
// tokens are a function of the prompt, the adapter and Config.OutputSeed.
//
// # What is modelled, and after what
//
//   - One step per engine at a time, with a token budget shared by sequences
//     that decode, which come first, and chunks of prompts (vLLM docs,
//     "Optimization and Tuning": chunked prefill). The time of a step is linear
//     in its work: see [Profile] for the formula and the source of each number.
//   - Admission first come, first served, when all of a request's blocks would
//     fit; otherwise it waits. A request that could never fit is refused. When
//     decoding runs out of blocks the latest admitted sequence is preempted and
//     later recomputed (same page: preemption).
//   - Blocks with reference counts and a least-recently-used free list, in
//     which a sequence's last blocks are reused first. Free blocks stay cached
//     until they are taken (vLLM docs, "Automatic Prefix Caching", design).
//   - A block becomes visible when the step that computed it ends: identical
//     prompts that run together do not hit each other, and each ends up with
//     its own copy. Output blocks are cached as they fill. The last token of a
//     prompt is always computed, so a cached prompt of whole blocks computes
//     its last block a second time.
//   - A host tier, if configured, that keeps what was computed longer: every
//     block is copied there when it becomes visible, least recently used out;
//     a prompt that goes on there is loaded in the step that admits it, and the
//     blocks are on the device again when that step ends (vLLM docs, KV
//     offloading).
//   - Block hashes of vLLM's sha256_cbor and xxhash_cbor, with LoRA name and
//     cache salt as bare strings (releases up to 0.30), and KV events in the
//     layouts of vLLM 0.17 to 0.32 ([Format]). A BlockRemoved per evicted block,
//     a BlockStored per sequence and step, and a reset that is announced by the
//     next step.
//
// # What is not modelled
//
// Time: jitter, CPU overhead between steps, the cost of sampling, tokenization
// or networks, adapter loading, and the difference that a batch's shape makes.
// Cache: disk tiers, asynchronous loading, hybrid and sliding-window groups, several ranks,
// vLLM's reserved null block, speculative decoding and its lookahead hashes,
// images. Scheduling: priorities, limits per adapter, watermarks. A block is
// hashed when a sequence is scheduled or the block is full, and announced with
// the step's end; real releases announce some blocks one step earlier.
//
// The tokenizer has no vocabulary: see [Tokenizer].
package engine
