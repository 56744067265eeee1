package micro

import (
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the processor time of the whole process, the collector's
// included. Write sections are timed by it, for they are long enough to be
// preempted on a shared machine; on an idle one it is the wall time, since
// they run on one processor.
func cpuTime() time.Duration { return clock(unix.CLOCK_PROCESS_CPUTIME_ID) }

// threadTime is the processor time of the calling thread.
func threadTime() time.Duration { return clock(unix.CLOCK_THREAD_CPUTIME_ID) }

func clock(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(ts.Nano())
}
