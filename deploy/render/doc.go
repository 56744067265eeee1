// Command render writes deploy/manifests from the Helm chart in deploy/chart:
//
//	go -C deploy/render run . ../chart ../manifests
//
// It is a module of its own, so that nothing of Helm is among the dependencies
// of the router. Its tests hold the chart, the manifests, the Dockerfile, the
// examples and the pages of deploy to what the router and Kubernetes take.
//
// helm.sh/helm renders and lints the chart as users' Helm does, and is the tool
// `go -C deploy/render tool helm`; moby/buildkit and moby/patternmatcher read
// the Dockerfile and .dockerignore as Docker does.
package main
