// Package cachestatepb is the Go code of the protocol in cachestate.proto,
// which describes it; make proto generates all but this file.
package cachestatepb
