package workload

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// BlockTokens is the number of tokens in a block of the file format.
const BlockTokens = 512

// Request is one request of a workload. Those of a trace share memory and
// must not be changed.
type Request struct {
	// Arrival is the time since the start of the workload.
	Arrival time.Duration
	// InputTokens and OutputTokens are the lengths of prompt and answer.
	InputTokens, OutputTokens int
	// Blocks names the prompt's blocks of [BlockTokens] tokens, the last of
	// which may be partial. Equal names are equal blocks behind equal histories.
	Blocks []uint64
	// OutputBlocks names the blocks that prompt and answer fill beyond those
	// that the prompt fills alone, as far as later prompts contain them.
	OutputBlocks []uint64
	// Session and Adapter are the client's session and the LoRA adapter, empty
	// if there is none.
	Session, Adapter string
}

// WholeBlocks is the number of blocks that the prompt fills.
func (r *Request) WholeBlocks() int { return r.InputTokens / BlockTokens }

// validate reports the first fault of r.
func (r *Request) validate() error {
	want := (r.InputTokens + BlockTokens - 1) / BlockTokens
	switch {
	case r.Arrival < 0:
		return fmt.Errorf("timestamp: %v is negative", r.Arrival)
	case r.InputTokens < 1:
		return fmt.Errorf("input_length: %d: must be at least 1", r.InputTokens)
	case r.OutputTokens < 1:
		return fmt.Errorf("output_length: %d: must be at least 1", r.OutputTokens)
	case len(r.Blocks) != want:
		return fmt.Errorf("hash_ids: %d ids for %d tokens: must be %d, one for each block of %d", len(r.Blocks), r.InputTokens, want, BlockTokens)
	}
	return nil
}

// Workload is requests in order of arrival.
type Workload struct {
	// Name is what reports call it.
	Name string
	// SHA256 is that of the file's uncompressed content, in hex; empty for a
	// workload that was made in memory.
	SHA256   string
	Requests []Request
}

// Validate reports every fault of w, up to ten.
func (w *Workload) Validate() error {
	if len(w.Requests) == 0 {
		return errors.New("no requests")
	}
	var errs []error
	for i := range w.Requests {
		err := w.Requests[i].validate()
		if err == nil && i > 0 && w.Requests[i].Arrival < w.Requests[i-1].Arrival {
			err = fmt.Errorf("timestamp: %v is before that of the request before", w.Requests[i].Arrival)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("request %d: %w", i, err))
		}
		if len(errs) == 10 {
			break
		}
	}
	return errors.Join(errs...)
}

// Span is the time between the first and the last arrival.
func (w *Workload) Span() time.Duration {
	return w.Requests[len(w.Requests)-1].Arrival - w.Requests[0].Arrival
}

// Tick returns the step in which arrivals were recorded, 0 where they are not
// quantized: traces that share most of their timestamps are. Replayed as they
// are, they would arrive in bursts that nobody sent.
func (w *Workload) Tick() time.Duration {
	distinct, tick := 1, time.Duration(0)
	for i := 1; i < len(w.Requests); i++ {
		if d := w.Requests[i].Arrival - w.Requests[i-1].Arrival; d > 0 {
			distinct++
			if tick == 0 || d < tick {
				tick = d
			}
		}
	}
	if distinct*2 > len(w.Requests) {
		return 0
	}
	return tick
}

// Arrivals returns when the requests arrive in a replay that is speed times as
// fast, spread evenly within the steps of a quantized trace. Equal seeds give
// equal arrivals. The order is that of w.Requests, but within a step only
// nearly that of time: order[i] is the request that arrives at times[i].
func (w *Workload) Arrivals(speed float64, seed uint64) (times []time.Duration, order []int) {
	random := rand.New(rand.NewPCG(seed, 0x6a09e667f3bcc909))
	tick := w.Tick()
	at := make([]time.Duration, len(w.Requests))
	order = make([]int, len(w.Requests))
	for i := range w.Requests {
		t := float64(w.Requests[i].Arrival)
		if tick > 0 {
			t += random.Float64() * float64(tick)
		}
		at[i], order[i] = time.Duration(t/speed), i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(at[a], at[b]) })
	times = make([]time.Duration, len(order))
	for i, r := range order {
		times[i] = at[r]
	}
	return times, order
}
