// Package fidelity compares the simulator with real time: the same requests,
// at the same times, are simulated by package sim, and sent through a real
// Envoy, the router's program and a fake engine of package engine for each
// endpoint, which publish real KV events.
//
// # What is the same
//
// The requests, their arrival, the token ids of their prompts and the lengths
// of their answers; the engines' step model, blocks and their order of reuse,
// capacity, token budget and bound on sequences, in both worlds those of package
// engine; the router's configuration. Arrivals are an open loop: a request is
// sent at its time, whatever became of those before it. A strategy begins with
// cold engines and a router that was just started.
//
// # What differs
//
//   - In real time, events, metrics and tokens travel over loopback, and
//     decisions, Envoy, encoding and decoding take time, on a machine that does
//     other things too: steps begin late and tokens arrive late. The simulator
//     counts none of that.
//   - The router's random numbers. What it decides by them differs from run to
//     run; the simulator is run with several seeds, and says by how much.
//   - Times to first token are from a request's arrival until the step that
//     makes the token ends (simulator), and from the time at which it was to be
//     sent until its first token is read by the client (real time).
//   - A fake engine sends the headers of a streamed answer with the first token,
//     the simulator's at once. The router reads nothing from that.
//   - Blocks that answers fill are asked for again in neither.
//
// A machine that cannot send the requests at their times would measure itself.
// Then the clock of both worlds is slowed down: arrivals and engines take twice
// as long, and the router, which knows nothing of it, does what it does on
// engines that are half as fast. The simulator does the same.
package fidelity
