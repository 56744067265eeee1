// Package pool knows which endpoints exist: their addresses, the models they
// serve, whether they answer, and how much work this router has given them.
//
// A [Pool] merges what its sources say about endpoints with what it learns by
// probing them and publishes the result as an immutable [Snapshot] by one
// atomic store. A request loads one snapshot and never looks at the live pool
// again. Counters of work in flight belong to an endpoint's incarnation
// ([State]): snapshots share them, successors never inherit them.
//
// Sources are the configuration, a file ([File]) and a cluster ([Kubernetes]).
// A program builds those that it needs and hands them to [New]; nothing is
// registered anywhere and nothing depends on the order. An endpoint that
// several list is one endpoint. Its incarnation is new whenever the process
// behind it may be another one: another address, pod UID, container restart,
// base model or event stream. Anything else, such as labels or readiness,
// changes in place. Once a source has been heard that an endpoint is gone or
// must get no requests, no snapshot has it as a candidate.
package pool
