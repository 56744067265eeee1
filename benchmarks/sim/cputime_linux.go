package sim

import (
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the processor time of the whole process, the collector's included:
// what a run takes, whatever else the machine does.
func cpuTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(ts.Nano())
}
