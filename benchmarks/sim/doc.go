// Package sim simulates a fleet of inference engines behind a router, in
// virtual time. It runs the production decisions (packages routing and kvindex)
// against the engine of package benchmarks/engine.
package sim
