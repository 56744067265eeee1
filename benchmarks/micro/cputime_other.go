//go:build !linux

package micro

import "time"

// cpuTime and threadTime are the wall time where the process's own is not at
// hand.
func cpuTime() time.Duration    { return time.Duration(time.Now().UnixNano()) }
func threadTime() time.Duration { return time.Duration(time.Now().UnixNano()) }
