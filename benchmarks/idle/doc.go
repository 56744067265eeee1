// Package idle measures what a router costs that has many endpoints and no
// requests: how much processor time it takes to know their health and their
// load.
//
// The router is the real program, in a process of its own; what it uses is its
// own process_cpu_seconds_total, so the engines' work is not in it. The engines
// are one HTTP server in this process that listens on as many loopback
// addresses as there are endpoints (127.0.0.0/8, RFC 1122 section 3.2.1.3, all
// of which is local on Linux). Each answers /health, /v1/models and /metrics as
// vLLM does, with as many series as vLLM has.
package idle
