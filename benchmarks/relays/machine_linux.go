package relays

import (
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the processor time of the whole process.
func cpuTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
