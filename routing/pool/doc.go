// Package pool knows which endpoints exist: their addresses, the models they
// serve, whether they answer, and how much work this router has given them.
//
// A [Pool] merges what its source says about endpoints with what it learns by
// probing them and publishes the result as an immutable [Snapshot] by one
// atomic store. A request loads one snapshot and never looks at the live pool
// again. Counters of work in flight belong to an endpoint's incarnation
// ([State]): snapshots share them, successors never inherit them.
package pool
