package server

import (
	"net/http"
	"sync"
)

// Faults are what POST /debug/faults sets. A field that the body leaves out
// stays as it is; the answer has the state after the change.
type Faults struct {
	// DropNext loses that many of the next KV-event batches: they use up
	// their sequence numbers, and neither subscribers nor replays see them.
	DropNext *int `json:"drop_next"`
	// FailNext answers that many of the next API requests with 503.
	FailNext *int `json:"fail_next"`
	// Hang holds API requests without an answer until it is set to false or
	// the client leaves.
	Hang *bool `json:"hang"`
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
	for _, n := range []struct {
		field string
		value *int
	}{{"drop_next", q.DropNext}, {"fail_next", q.FailNext}} {
		if n.value != nil && *n.value < 0 {
			writeError(w, badRequest(n.field, "%s: %d: must be at least 0", n.field, *n.value))
			return
		}
	}
	if q.DropNext != nil && s.publisher == nil {
		writeError(w, badRequest("drop_next", "drop_next: there are no KV events to drop"))
		return
	}
	s.faults.set(q)
	drop := 0
	if s.publisher != nil {
		if q.DropNext != nil {
			s.publisher.dropNext(*q.DropNext)
		}
		drop = s.publisher.dropping()
	}
	fail, hang := s.faults.get()
	writeJSON(w, http.StatusOK, Faults{DropNext: &drop, FailNext: &fail, Hang: &hang})
}
