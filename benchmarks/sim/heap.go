package sim

import "time"

// kind is what happens at an instant.
type kind uint8

const (
	// arrive: request n arrives at the router.
	arrive kind = iota
	// step: the step in flight of endpoint n ends.
	step
	// deliver: the next batch of link n is applied; notice: a gap before it is
	// noticed.
	deliver
	notice
	// read: link n's replica reads its engine's metrics.
	read
	// crash and recover: endpoint n goes, and is back.
	crash
	comeback
)

// event is something that happens at an instant. Events of one instant happen
// in the order in which they were scheduled.
type event struct {
	at   time.Duration
	seq  uint64
	n    int32
	kind kind
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// agenda is a binary heap of events.
type agenda struct {
	events []event
	seq    uint64
}

func (a *agenda) add(at time.Duration, k kind, n int) {
	a.seq++
	a.events = append(a.events, event{at, a.seq, int32(n), k})
	i := len(a.events) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if a.events[parent].before(&a.events[i]) {
			return
		}
		a.events[i], a.events[parent] = a.events[parent], a.events[i]
		i = parent
	}
}

// next removes the earliest event.
func (a *agenda) next() event {
	first := a.events[0]
	last := len(a.events) - 1
	a.events[0] = a.events[last]
	a.events = a.events[:last]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < last; c++ {
			if a.events[c].before(&a.events[least]) {
				least = c
			}
		}
		if least == i {
			return first
		}
		a.events[i], a.events[least] = a.events[least], a.events[i]
		i = least
	}
}
