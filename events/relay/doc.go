// Package relay is the cache-state protocol of a fleet: a relay beside each
// engine tells routers which blocks it holds, over gRPC, without token ids or
// text. README.md says when to use it and what it costs.
//
//	engine ── ZMQ ─▶ events ─▶ kvindex ─▶ journal ─▶ feed ──▶ subscribers   (routers dial)
//	                     beside the engine             └────▶ reports       (the relay dials)
//	                                                             │ gRPC
//	                 router:  kvindex ◀─ receiver ◀─ Source, Server
//
// # What a relay promises
//
// It follows the engine's own stream exactly as a router would (package
// events), and keeps what the engine holds as a tree of blocks. A router that
// knows nothing gets the whole of it as one snapshot, whatever the engine still
// has in its replay buffer, and then every change, numbered, in order:
//
//   - Additions may wait for a window, so that several go together. An eviction
//     flushes those before it, and a clear supersedes them.
//   - A removal is told by block. Names, copies and orphans are the relay's
//     business alone.
//   - A change is never lost in silence. What a router missed it gets from the
//     log, and once it has left the log, by a snapshot.
//   - Nothing is queued for a slow router. It reads the log at its own pace.
//   - Another engine process, another relay process, or a loss that nothing
//     mends begins a new incarnation, which is told at once.
//
// # What a router promises
//
// Each change is applied once, in order, or a snapshot is asked for. The state
// is exact only while the relay says so and the stream is alive: heartbeats
// tell. A publisher is fed by one source at a time, the relay first, and what
// one source told is dropped before another tells anything.
//
// # Routers that start
//
// A router that starts may ask others for what they know of publishers that
// they follow over ZMQ. Each is told as of one batch of its engine, whole or not
// at all, and the engine has to send that batch again, unchanged, before any of
// it counts. Being told is a help and never a condition: it is bounded in time.
//
// # What is checked
//
// Peers must hash alike: a mismatch of scheme or seed, or a seed that is random
// per process, is refused. A relay must speak for the endpoint, rank and model
// that the router expects, and where there is TLS or a tokens file, prove that
// it may. Roots of the shared cache are computed again by the receiver, so that
// no tenant's blocks can be told as everybody's; those of a tenant are told as
// hashes that only its salt leads to.
package relay
