package events

import "encoding/binary"

// EndMarker is the sequence of the message that ends a replay, -1 as a signed
// integer.
const EndMarker = ^uint64(0)

// LiveBatch reads a live message: topic, sequence, payload, and whatever a
// later engine adds.
func LiveBatch(frames [][]byte) (seq uint64, payload []byte, ok bool) {
	if len(frames) < 3 || len(frames[1]) != 8 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(frames[1]), frames[2], true
}

// ReplayBatch reads a message of a replay answer as a DEALER sees it: the empty
// delimiter, then sequence and payload (vLLM before 0.26), or topic, sequence
// and payload. Nothing but the number of frames tells them apart.
func ReplayBatch(frames [][]byte) (seq uint64, payload []byte, ok bool) {
	switch {
	case len(frames) < 3:
		return 0, nil, false
	case len(frames) > 3:
		frames = frames[1:]
	}
	return LiveBatch(frames)
}

// ReplayRequest is what a ROUTER must see, after the identity, to answer with
// every batch from seq on: an empty delimiter and the sequence. Without the
// delimiter engines drop the request without an answer.
func ReplayRequest(seq uint64) [][]byte {
	return [][]byte{{}, binary.BigEndian.AppendUint64(nil, seq)}
}
