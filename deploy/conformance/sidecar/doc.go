// Package sidecar tests with a real Kubernetes API server how a relay comes into
// the pods of engines: by the chart's patch, by its policy, and in the example.
//
// There is no controller: what a Deployment's pods would be is created by the
// tests from its template.
package sidecar
