// Package cluster runs a real Kubernetes API server on loopback: etcd and
// kube-apiserver, and nothing else. There is no scheduler, no controller and
// no kubelet, so that a test makes everything that happens: it creates pods,
// writes their status, and takes them away.
//
// [Start] starts one, [Main] one for all tests of a package. [Cluster.Admin]
// may do everything; [Cluster.ServiceAccount] makes an identity that may do
// exactly what its rules say, with a token as a pod would have it.
// [Cluster.Apply] creates what manifests say and refuses fields that no schema
// knows. Faults: [Cluster.StopAPIServer] and [Cluster.StartAPIServer] restart
// the server at its address, a [Proxy] before it cuts, holds back or delays
// connections, and [Cluster.Expire] makes every resource version that a client
// may know too old to watch from.
//
// Kubernetes does not accept loopback addresses in EndpointSlices, but does in
// the status of pods.
package cluster
