package main

import (
	"runtime/debug"
	"testing"

	"github.com/warmpath/warmpath/benchmarks/drive"
)

// The collector is told what the benchmarks of the request path run with; 0
// leaves it alone.
func TestMemoryConfig(t *testing.T) {
	before := debug.SetGCPercent(123)
	defer debug.SetGCPercent(before)
	MemoryConfig{}.apply()
	if n := debug.SetGCPercent(123); n != 123 {
		t.Errorf("0 set the collector to %d %%", n)
	}
	DefaultConfig().Memory.apply()
	if n := debug.SetGCPercent(123); n != drive.GCPercent {
		t.Errorf("the default is %d %%, that of the benchmarks %d %%", n, drive.GCPercent)
	}
	if err := (MemoryConfig{GCPercent: -1}).Validate(); err == nil || err.Error() != "gc_percent: -1 is out of range; use 10 to 1000, or 0 to leave it to GOGC" {
		t.Errorf("-1: %v", err)
	}
}
