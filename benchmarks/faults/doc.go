// Package faults tests what event streams must survive: it runs fake engines
// and the event side of a router in one process, over real sockets, spoils the
// streams, and compares the index with the engines' own block pools.
package faults
