// Package gateway tests the manifests of deploy with a real Envoy Gateway as the
// controller of a real Kubernetes API server.
//
// There is no kubelet: the tests do what one would, and run a real Envoy exactly
// as Envoy Gateway's Deployment says. Only names that a cluster's DNS would
// know, and folders that a pod would have, are replaced.
package gateway
