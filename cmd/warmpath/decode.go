package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
)

// cmdDecode prints the events of a file, one JSON object a line.
func cmdDecode(_ context.Context, p process) int {
	t := newTool(p, "decode", "[--hex] FILE", `Prints the KV-cache events in FILE, one JSON object a line, the same for every
engine and encoding. FILE is a capture (see: warmpath events --record), one
msgpack payload as it was on the wire, or, with --hex, one payload a line.`)
	asHex := t.flags.Bool("hex", false, "FILE has one payload a line, in hex")
	file, code, ok := t.parse("FILE")
	if !ok {
		return code
	}
	f, err := os.Open(file)
	if err != nil {
		return t.fail(err)
	}
	defer f.Close()
	out := bufio.NewWriter(p.stdout)
	d := printer{out: json.NewEncoder(out)}
	return t.fail(errors.Join(d.file(bufio.NewReader(f), *asHex), out.Flush()))
}

// printer prints decoded events.
type printer struct {
	dec events.Decoder
	out *json.Encoder
}

// file prints every payload of r. What one payload lacks does not keep the
// others from being printed; all faults are returned.
func (d *printer) file(r *bufio.Reader, asHex bool) error {
	head, err := r.Peek(1)
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("the file is empty")
	case err != nil:
		return err
	case asHex:
		return d.hexLines(r)
	case head[0] == '{':
		return d.capture(r)
	}
	payload, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if _, err := hex.DecodeString(string(bytes.TrimSpace(bytes.SplitN(payload, []byte("\n"), 2)[0]))); err == nil {
		return errors.New("the file is neither a capture nor a payload but hex; add --hex")
	}
	return d.payload(payload)
}

func (d *printer) hexLines(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<20)
	var errs []error
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" {
			continue
		}
		payload, err := hex.DecodeString(text)
		if err == nil {
			err = d.payload(payload)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
		}
	}
	return errors.Join(append(errs, lines.Err())...)
}

// capture prints the live messages, and the replayed ones that were not live.
func (d *printer) capture(r io.Reader) error {
	in := events.NewCaptureReader(r)
	var errs []error
	seen := map[uint64]bool{}
	for {
		rec, err := in.Read()
		if errors.Is(err, io.EOF) {
			return errors.Join(errs...)
		}
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		read, frames := events.LiveBatch, rec.Live
		if rec.Replay != nil {
			read, frames = events.ReplayBatch, rec.Replay
		}
		if frames == nil {
			continue
		}
		seq, payload, ok := read(frames)
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("a message of %d frames has no sequence of 8 bytes", len(frames)))
		case seq != events.EndMarker && !(rec.Replay != nil && seen[seq]):
			seen[seq] = true
			if err := d.payload(payload); err != nil {
				errs = append(errs, fmt.Errorf("batch %d: %w", seq, err))
			}
		}
	}
}

// eventLine is what decode prints of an event.
type eventLine struct {
	Type   string   `json:"type"`
	Hashes []string `json:"hashes"`
	// Parent is nil at the root of a chain.
	Parent    *string `json:"parent"`
	Tokens    int     `json:"tokens"`
	BlockSize int     `json:"block_size"`
	Tier      string  `json:"tier"`
	Medium    string  `json:"medium"`
	Lora      string  `json:"lora"`
	Salt      string  `json:"salt"`
	Group     int     `json:"group"`
	Kind      string  `json:"kind"`
	// Rank is nil if the batch has none.
	Rank    *int   `json:"rank"`
	Skipped string `json:"skipped"`
}

func (d *printer) payload(payload []byte) error {
	if err := d.dec.Reset(payload); err != nil {
		return err
	}
	var lines []eventLine // the rank is known when all events are
	for {
		e, ok := d.dec.Next()
		if !ok {
			break
		}
		lines = append(lines, lineOf(e))
	}
	err := d.dec.Err()
	b := d.dec.Batch()
	for _, l := range lines {
		if b.HasRank {
			l.Rank = &b.Rank
		}
		if err := d.out.Encode(l); err != nil {
			return err
		}
	}
	return err
}

func lineOf(e *events.Event) eventLine {
	l := eventLine{
		Type: e.Type.String(), Hashes: []string{}, Tokens: len(e.Tokens), BlockSize: e.BlockSize,
		Tier: e.Tier.String(), Medium: e.Medium, Lora: e.Lora, Salt: e.Salt, Group: int(e.Group), Kind: e.Kind,
		Skipped: e.Skipped.String(),
	}
	for _, h := range e.Hashes {
		l.Hashes = append(l.Hashes, decimal(h))
	}
	if e.HasParent {
		s := decimal(e.Parent)
		l.Parent = &s
	}
	return l
}

func decimal(h kvindex.EngineHash) string { return strconv.FormatUint(uint64(h), 10) }
