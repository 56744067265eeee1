package events

// Phase is where a publisher's history stands.
type Phase uint8

// The phases.
const (
	// Connecting: there is no live connection.
	Connecting Phase = iota
	// Replaying: history is being asked for, live batches are held back.
	Replaying
	// Gap: batches are missing and are being asked for, live ones held back.
	Gap
	// Verifying: the last batch is asked for again, to see whether it is still
	// the same process; live batches are held back.
	Verifying
	// Live: batches are applied as they come, and the history is complete.
	Live
	// Stale: batches are applied as they come, but some before them are unknown.
	Stale
)

// String returns the phase's name as used in metrics and by the tools.
func (p Phase) String() string {
	switch p {
	case Connecting:
		return "connecting"
	case Replaying:
		return "replaying"
	case Gap:
		return "gap"
	case Verifying:
		return "verifying"
	case Live:
		return "live"
	case Stale:
		return "stale"
	}
	return "unknown"
}

// Verdict is what to do with a batch.
type Verdict uint8

// The verdicts.
const (
	// Discard it: it was applied before, or cannot be used.
	Discard Verdict = iota
	// Apply it now.
	Apply
	// Hold it back until a step says Drain.
	Hold
)

// Step is what [Sequence] wants done about one input, in the order of its
// fields.
type Step struct {
	// Reset: forget all state of the publisher; it is a new generation.
	Reset bool
	// Frame is what to do with the batch that the input was about.
	Frame Verdict
	// Ask: request a replay from sequence From, giving up the one that runs.
	Ask  bool
	From uint64
	// Drain: give the batches held back to Held, oldest first, until one of
	// them is to be held again.
	Drain bool
	// Reconnect: close the live connection and call Disconnected.
	Reconnect bool
}
