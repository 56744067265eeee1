// Package drive loads the request path, from Envoy's side, and measures what a
// request costs the router.
//
// A lane is one way to answer a request: not at all (direct), by the smallest
// possible external processor (null, the yardstick), or by the real router
// under one strategy. Every lane of a row, that is of one body size and one
// number of response chunks, has a server process of its own, wired from the
// real packages, and all of them are driven in turn for short slices of time,
// so that the noise of the machine hits all alike. What counts is the ratio to
// the null lane of the same round; the report gives the median of the rounds.
//
// The costs of a server are read by itself, around each slice: processor time
// by getrusage, allocations by runtime/metrics, messages by its own counters,
// resident memory by /proc. The driver's own work, and the stub of the
// tokenizer, which runs in the driver, are not in them.
//
// The load is a closed loop of fixed concurrency. Latency is what a client
// sees that shares the machine with the servers: read it beside the null
// lane's, and not as a promise.
//
// Without an Envoy the driver plays its part: it speaks the external
// processing protocol (envoy.service.ext_proc.v3) straight to the servers. With
// one, requests go through it to an HTTP server in the driver. All traffic is
// on loopback.
package drive
