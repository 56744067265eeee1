// Package cachestatepb is the Go code of the protocol in cachestate.proto and read.proto,
// which describe it; make proto generates all but this file.
package cachestatepb
