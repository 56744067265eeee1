package routing

import (
	"math"
	"time"
)

// waitsWindow is the time constant of [waits]: long enough to smooth over a
// burst, short against the time in which a fleet fills up.
const waitsWindow = 5 * time.Second

// waits is a mean of how long the requests that were placed lately had to wait
// for their prefill to begin, by the estimate of their decision: near 0 while
// some endpoint is idle, and about the length of the queues where none is. The
// router's lock guards it.
type waits struct {
	seconds float64
	at      time.Time
}

// add counts a request that waits for some seconds. Of requests at one instant
// the first counts.
func (w *waits) add(now time.Time, seconds float64) {
	weight := 1 - math.Exp(-float64(max(0, now.Sub(w.at)))/float64(waitsWindow))
	w.seconds += weight * (seconds - w.seconds)
	if now.After(w.at) {
		w.at = now
	}
}
