package server

import (
	"cmp"
	"context"
	"net/http"
	"sync"

	"github.com/warmpath/warmpath/benchmarks/engine"
)

// Faults are what POST /debug/faults sets. A field that the body leaves out
// stays as it is; the answer has the state after the change. None changes what
// the pool holds but Restart.
//
// A clear is late without any fault: /reset_prefix_cache is announced with the
// next step.
type Faults struct {
	// DropNext loses that many of the next KV-event batches: they use up
	// their sequence numbers, and neither subscribers nor replays see them.
	DropNext *int `json:"drop_next"`
	// LoseNext loses that many of the next live messages; replays have them.
	LoseNext *int `json:"lose_next"`
	// LoseShare loses this share of live messages, 0 to 1, chosen by LoseSeed.
	LoseShare *float64 `json:"lose_share"`
	LoseSeed  *uint64  `json:"lose_seed,omitempty"`
	// DuplicateNext sends that many of the next live messages twice,
	// ReorderNext sends them behind the one that follows them.
	DuplicateNext *int `json:"duplicate_next"`
	ReorderNext   *int `json:"reorder_next"`
	// UnknownNext puts an event of an unknown type before those of that many
	// of the next batches, GarbageNext messages that are no KV events before
	// the next live one.
	UnknownNext *int `json:"unknown_next"`
	GarbageNext *int `json:"garbage_next"`
	// Stall holds live messages and answers to replays back until it is set to
	// false.
	Stall *bool `json:"stall"`
	// SlowJoiner is how many live messages are lost whenever there is a new
	// subscriber, as if its subscription came late.
	SlowJoiner *int `json:"slow_joiner"`
	// BufferSteps is the number of batches kept for replay.
	BufferSteps *int `json:"buffer_steps"`
	// ReplayHole leaves that many batches out of every replay answer, after
	// the first ReplayHoleAfter; ReplayNoMarker leaves out the end marker.
	ReplayHole      *int  `json:"replay_hole"`
	ReplayHoleAfter *int  `json:"replay_hole_after"`
	ReplayNoMarker  *bool `json:"replay_no_marker"`
	// Restart is done at once: "connection" closes the event sockets and opens
	// them again, with everything as it was; "process" also loses the cache,
	// the sequence, the replay buffer and the requests in flight.
	Restart string `json:"restart,omitempty"`
	// FailNext answers that many of the next API requests with 503.
	FailNext *int `json:"fail_next"`
	// Hang holds API requests without an answer until it is set to false or
	// the client leaves.
	Hang *bool `json:"hang"`
}

// The values of Faults.Restart.
const (
	RestartConnection = "connection"
	RestartProcess    = "process"
)

// validate reports the first fault in q. events tells whether there are any.
func (q Faults) validate(events bool) error {
	for _, n := range append((&eventFaults{}).counts(&q), counted{"fail_next", nil, &q.FailNext}) {
		switch {
		case *n.wanted == nil:
		case **n.wanted < 0:
			return badRequest(n.name, "%s: %d: must be at least 0", n.name, **n.wanted)
		case !events && n.value != nil:
			return badRequest(n.name, "%s: there are no KV events", n.name)
		}
	}
	switch {
	case q.LoseShare != nil && (*q.LoseShare < 0 || *q.LoseShare > 1):
		return badRequest("lose_share", "lose_share: %v: use 0 to 1", *q.LoseShare)
	case q.BufferSteps != nil && *q.BufferSteps < 1:
		return badRequest("buffer_steps", "buffer_steps: %d: must be at least 1", *q.BufferSteps)
	case q.Restart != "" && q.Restart != RestartConnection && q.Restart != RestartProcess:
		return badRequest("restart", "restart: %q: use %q or %q", q.Restart, RestartConnection, RestartProcess)
	case !events && (q.LoseShare != nil || q.BufferSteps != nil || q.Stall != nil || q.ReplayNoMarker != nil || q.Restart == RestartConnection):
		return badRequest("", "there are no KV events to spoil")
	}
	return nil
}

// faultState is the part of the faults that HTTP handlers obey.
type faultState struct {
	mu   sync.Mutex // guards what follows
	fail int
	// resume is not nil while requests hang, and is closed when they may go on.
	resume chan struct{}
}

// admit applies the faults to one API request. It reports false if the
// request has been answered.
func (f *faultState) admit(w http.ResponseWriter, r *http.Request, stopped <-chan struct{}) bool {
	f.mu.Lock()
	fail, resume := f.fail > 0, f.resume
	if fail {
		f.fail--
	}
	f.mu.Unlock()
	if fail {
		writeError(w, unavailable("failed by fault"))
		return false
	}
	if resume == nil {
		return true
	}
	select {
	case <-resume:
		return true
	case <-r.Context().Done():
	case <-stopped:
		writeError(w, errStopped)
	}
	return false
}

func (f *faultState) set(q Faults) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if q.FailNext != nil {
		f.fail = *q.FailNext
	}
	if q.Hang == nil {
		return
	}
	switch {
	case *q.Hang && f.resume == nil:
		f.resume = make(chan struct{})
	case !*q.Hang && f.resume != nil:
		close(f.resume)
		f.resume = nil
	}
}

func (f *faultState) get() (fail int, hang bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fail, f.resume != nil
}

func (s *Server) debugFaults(w http.ResponseWriter, r *http.Request) {
	var q Faults
	if err := readJSON(w, r, &q); err != nil {
		writeError(w, err)
		return
	}
	now, err := s.SetFaults(r.Context(), q)
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, now)
}

// SetFaults changes the faults that q names and returns all of them, as POST
// /debug/faults does. The server must be ready.
func (s *Server) SetFaults(ctx context.Context, q Faults) (Faults, error) {
	if err := q.validate(s.publisher != nil); err != nil {
		return Faults{}, err
	}
	s.faults.set(q)
	if s.publisher != nil {
		s.publisher.setFaults(q)
	}
	if q.Restart != "" {
		if err := s.restart(ctx, q.Restart == RestartProcess); err != nil {
			return Faults{}, err
		}
	}
	var now Faults
	if s.publisher != nil {
		s.publisher.addFaults(&now)
	}
	fail, hang := s.faults.get()
	now.FailNext, now.Hang = &fail, &hang
	return now, nil
}

// restart opens the event sockets anew, and replaces the engine if fresh.
func (s *Server) restart(ctx context.Context, fresh bool) error {
	core, err := engine.New(s.engine)
	if err != nil {
		return err
	}
	called := s.driver.call(ctx, s.driver.boundary, func() {
		if fresh {
			s.driver.replace(core)
		}
		if s.publisher != nil {
			// The sockets outlive the request that asks for them.
			err = s.publisher.restart(context.WithoutCancel(ctx), fresh)
		}
	})
	return cmp.Or(called, err)
}
