// Command warmpath is the router: an Envoy external processor that sends an
// LLM request to the endpoint that already holds the KV cache of its prompt.
//
// This package reads the configuration, builds every part, connects them and
// serves what an operator looks at. It decides nothing about requests. Nothing
// imports it, and it alone reads the environment.
package main
