package events

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/warmpath/warmpath/kvindex"
)

// maxCaptureLine bounds a line of a capture: the largest message in hex, and
// its JSON.
const maxCaptureLine = 64 << 20

// Record is one line of a capture, a recorded event stream with one JSON
// object a line. Exactly one of its fields is set.
type Record struct {
	// Meta says what was recorded. It is for people.
	Meta map[string]any `json:"meta,omitempty"`
	// Live has the frames of a live message, Replay those of a message of an
	// answer to a replay from 0, as a DEALER sees them.
	Live   Frames `json:"live,omitempty"`
	Replay Frames `json:"replay,omitempty"`
	// Truth is what the engine really held.
	Truth *Truth `json:"truth,omitempty"`
}

// Truth is what an engine's block pool held when it had published a batch.
type Truth struct {
	AfterSeq uint64       `json:"after_seq"`
	Blocks   []TruthBlock `json:"blocks"`
}

// TruthBlock names a block as the engine's events do. In JSON it is an array
// of the cache group and the hash, signed or not.
type TruthBlock struct {
	Group uint8
	Name  kvindex.EngineHash
}

// UnmarshalJSON reads [group, hash].
func (b *TruthBlock) UnmarshalJSON(data []byte) error {
	var pair [2]json.Number
	if err := json.Unmarshal(data, &pair); err != nil {
		return fmt.Errorf("block %s: %w; use [group, hash]", data, err)
	}
	group, err := strconv.ParseUint(pair[0].String(), 10, 8)
	if err != nil {
		return fmt.Errorf("block %s: group: %w", data, err)
	}
	b.Group = uint8(group)
	if n, err := pair[1].Int64(); err == nil {
		b.Name = kvindex.EngineHash(n)
		return nil
	}
	n, err := strconv.ParseUint(pair[1].String(), 10, 64)
	if err != nil {
		return fmt.Errorf("block %s: hash: %w", data, err)
	}
	b.Name = kvindex.EngineHash(n)
	return nil
}

// Frames are the frames of one ZMQ message, hex strings in JSON.
type Frames [][]byte

// MarshalJSON writes the frames as an array of hex strings.
func (f Frames) MarshalJSON() ([]byte, error) {
	out := make([]string, len(f))
	for i, b := range f {
		out[i] = hex.EncodeToString(b)
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads an array of hex strings.
func (f *Frames) UnmarshalJSON(data []byte) error {
	var in []string
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*f = make(Frames, len(in))
	for i, s := range in {
		b, err := hex.DecodeString(s)
		if err != nil {
			return fmt.Errorf("frame %d: %w", i, err)
		}
		(*f)[i] = b
	}
	return nil
}

// CaptureReader reads the records of a capture one by one.
type CaptureReader struct {
	lines *bufio.Scanner
	line  int
}

// NewCaptureReader returns a reader of the capture in r.
func NewCaptureReader(r io.Reader) *CaptureReader {
	c := &CaptureReader{lines: bufio.NewScanner(r)}
	c.lines.Buffer(nil, maxCaptureLine)
	return c
}

// Read returns the next record, or [io.EOF] after the last. Other errors name
// the line.
func (c *CaptureReader) Read() (Record, error) {
	for c.lines.Scan() {
		c.line++
		if len(c.lines.Bytes()) == 0 {
			continue
		}
		var r Record
		if err := json.Unmarshal(c.lines.Bytes(), &r); err != nil {
			return r, fmt.Errorf("line %d: %w", c.line, err)
		}
		if r.Meta == nil && r.Live == nil && r.Replay == nil && r.Truth == nil {
			return r, fmt.Errorf("line %d: no object with meta, live, replay or truth", c.line)
		}
		return r, nil
	}
	if err := c.lines.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			err = fmt.Errorf("longer than %d bytes", maxCaptureLine)
		}
		return Record{}, fmt.Errorf("line %d: %w", c.line+1, err)
	}
	return Record{}, io.EOF
}
