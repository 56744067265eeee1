package workload

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxLine bounds a line of a trace: a prompt of 64 million tokens.
const maxLine = 1 << 20

// record is a line of a trace.
type record struct {
	Timestamp     *float64 `json:"timestamp"`
	InputLength   int      `json:"input_length"`
	OutputLength  int      `json:"output_length"`
	HashIDs       []uint64 `json:"hash_ids"`
	OutputHashIDs []uint64 `json:"output_hash_ids,omitempty"`
	Session       string   `json:"session,omitempty"`
	LoRA          string   `json:"lora,omitempty"`
}

// Load reads the trace at path, see the package comment for its format. The
// workload is named after the file.
func Load(path string) (*Workload, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	w, err := Read(f, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return w, nil
}

// Read reads a trace, gzip-compressed or not, see the package comment for its
// format.
func Read(r io.Reader, name string) (*Workload, error) {
	in := bufio.NewReaderSize(r, 1<<16)
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, err
		}
		in = bufio.NewReaderSize(z, 1<<16)
	}
	sum := sha256.New()
	lines := bufio.NewScanner(io.TeeReader(in, sum))
	lines.Buffer(nil, maxLine)
	w := &Workload{Name: name}
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		req, err := parse(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		w.Requests = append(w.Requests, req)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	w.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return w, w.Validate()
}

func parse(line []byte) (Request, error) {
	var rec record
	if err := json.Unmarshal(line, &rec); err != nil {
		return Request{}, err
	}
	if rec.Timestamp == nil {
		return Request{}, errors.New("timestamp: missing; use the arrival in milliseconds")
	}
	ns := *rec.Timestamp * float64(time.Millisecond)
	if !(ns >= 0 && ns < math.MaxInt64) {
		return Request{}, fmt.Errorf("timestamp: %v ms is out of range", *rec.Timestamp)
	}
	return Request{
		Arrival:     time.Duration(math.Round(ns)),
		InputTokens: rec.InputLength, OutputTokens: rec.OutputLength,
		Blocks: rec.HashIDs, OutputBlocks: rec.OutputHashIDs,
		Session: rec.Session, Adapter: rec.LoRA,
	}, nil
}

// Write writes a trace, one line a request.
func (w *Workload) Write(out io.Writer) error {
	enc := json.NewEncoder(out)
	for i := range w.Requests {
		r := &w.Requests[i]
		ms := float64(r.Arrival) / float64(time.Millisecond)
		if err := enc.Encode(record{&ms, r.InputTokens, r.OutputTokens, r.Blocks, r.OutputBlocks, r.Session, r.Adapter}); err != nil {
			return err
		}
	}
	return nil
}
