// Package extproc speaks Envoy's external processing protocol
// (envoy.service.ext_proc.v3): it learns from the messages of an HTTP request
// what routing needs to know, and tells Envoy where to send it.
//
// # Phases of a request
//
// One gRPC stream is one HTTP request. Its state machine (stream.go) turns one
// message into zero or more replies and does no I/O:
//
//	        request_headers, body follows          request_body or trailers
//	start ───────────────────────────────▶ body ─────────────────────────┐
//	  │                                      │                           ▼
//	  │ request_headers, no body to come     │ oversize, bad body     deciding
//	  ├──────────────────────────────────────┼──────────────────────▶    │
//	  │                                      │             error │       │ target
//	  │                                      ▼                   ▼       ▼
//	  │                                    closed ◀──────────────────  routed
//	  │                                      ▲     end of the stream     │ response_headers
//	  └──────────────────────────────────────┴───────────────────────  answered
//
// Closed is also what every end of the stream leads to: the end of the HTTP
// request, an abort by the client, a reset by the engine, a drain. It releases
// what the request had reserved, once. A finished answer is told from an
// aborted one only where its body is seen.
//
// # Body modes
//
// The mode is learned from the protocol_config of the first message, not
// configured. Requests without a body are decided at their headers.
//
//   - BUFFERED: decided at the one body message, whether or not it ends the
//     stream (it does not where trailers follow). The default, also for an
//     Envoy that does not tell its mode.
//   - BUFFERED_PARTIAL: the same. Of a body cut by Envoy's limit the members
//     that arrived whole count, but for the prompt, which members behind the cut
//     may change; a model behind the cut stays unknown.
//   - FULL_DUPLEX_STREAMED: the reply to the headers is withheld until the body
//     is complete, which is then handed back in pieces. Envoy does not bound
//     the body, so max_body_bytes does. Envoy takes no mode override if the
//     filter is configured with this mode: then response_trailer_mode must be
//     SEND, or requests leave the counts when their answers begin, no answer can
//     be sampled, and running answers are cut when this program dies. It takes
//     one if the filter is configured for BUFFERED and its routes for this mode.
//   - NONE, STREAMED, GRPC: Envoy wants the headers' reply before it shows the
//     body, so the request is decided without its model: use them only in front
//     of endpoints that all serve the same models.
//
// Responses are taken in any mode. By a mode override, where Envoy allows it
// (allow_mode_override), only their headers are sent to us, and the stream
// stays open until the answer has ended, which makes the counts of requests in
// flight exact. Of a sampled share of answers (sample_responses) the body is
// asked for as well, in mode STREAMED, to compare the cached tokens that the
// engine reports with what was predicted.
//
// # Encoding
//
// The messages of a stream never become objects of the generated API. What is
// needed of them is read from their encoding (message.go), replies are written
// encoded, those that are always the same once (reply.go). Both must agree with
// the generated API in everything; tests compare them. A message that breaks
// its encoding ends the stream, without an error.
//
// # Memory
//
// A body is copied once, out of gRPC's frames, into memory that is used again
// when the request is decided. What is read of it borrows it until then. In
// mode BUFFERED, large bodies are received in turns (turns.go), because many at
// a time are not read faster and Envoy has them in its own buffers anyway.
//
// # Promises
//
//   - No stream ends with an error status, so that a router that is restarted,
//     drained or at fault does not fail requests.
//   - A client never chooses the address: see guarded in headers.go.
//   - Bodies are not changed, and content-length is never set.
//   - Messages that are unknown, repeated or out of order are counted and
//     answered as the protocol allows, never fatal.
package extproc
