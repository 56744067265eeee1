package workload

import (
	"bytes"
	"compress/gzip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRead(t *testing.T) {
	const text = `{"timestamp": 0, "input_length": 6, "output_length": 2, "hash_ids": [3]}

{"timestamp": 1.5, "input_length": 513, "output_length": 600, "hash_ids": [3, 4], "output_hash_ids": [9], "session": "s", "lora": "x"}
`
	want := []Request{
		{InputTokens: 6, OutputTokens: 2, Blocks: []uint64{3}},
		{
			Arrival: 1500 * time.Microsecond, InputTokens: 513, OutputTokens: 600, Blocks: []uint64{3, 4},
			OutputBlocks: []uint64{9}, Session: "s", Adapter: "x",
		},
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write([]byte(text))
	z.Close()
	sums := map[string]bool{}
	for _, in := range []string{text, packed.String()} {
		w, err := Read(strings.NewReader(in), "t")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, w.Requests); d != "" {
			t.Error(d)
		}
		sums[w.SHA256] = true
		var out bytes.Buffer
		if err := w.Write(&out); err != nil {
			t.Fatal(err)
		}
		again, err := Read(&out, "t")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, again.Requests); d != "" {
			t.Errorf("written and read again: %s", d)
		}
	}
	if len(sums) != 1 {
		t.Error("compression changes the sum")
	}
}

func TestRead_Faults(t *testing.T) {
	ok := `{"timestamp": 5, "input_length": 6, "output_length": 2, "hash_ids": [3]}` + "\n"
	for _, c := range []struct{ in, want string }{
		{"", "no requests"},
		{"{", "line 1"},
		{`{"input_length": 6, "output_length": 2, "hash_ids": [3]}`, "timestamp: missing"},
		{`{"timestamp": -1, "input_length": 6, "output_length": 2, "hash_ids": [3]}`, "out of range"},
		{ok + `{"timestamp": 4, "input_length": 6, "output_length": 2, "hash_ids": [3]}`, "request 1: timestamp"},
		{`{"timestamp": 1, "input_length": 0, "output_length": 2, "hash_ids": []}`, "input_length: 0"},
		{`{"timestamp": 1, "input_length": 1, "output_length": 0, "hash_ids": [1]}`, "output_length: 0"},
		{`{"timestamp": 1, "input_length": 513, "output_length": 1, "hash_ids": [1]}`, "must be 2"},
	} {
		if _, err := Read(strings.NewReader(c.in), "t"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.in, err, c.want)
		}
	}
}

func TestArrivals(t *testing.T) {
	w := &Workload{}
	for i := range 30 { // ten at a time, every 3 s
		w.Requests = append(w.Requests, Request{Arrival: time.Duration(i/10) * 3 * time.Second})
	}
	if got := w.Tick(); got != 3*time.Second {
		t.Fatalf("tick %v, want 3s", got)
	}
	times, order := w.Arrivals(2, 7)
	seen := map[int]bool{}
	for i, r := range order {
		seen[r] = true
		if i > 0 && times[i] < times[i-1] {
			t.Errorf("%v arrives after %v", times[i-1], times[i])
		}
		if low := w.Requests[r].Arrival / 2; times[i] < low || times[i] >= low+1500*time.Millisecond {
			t.Errorf("request %d of %v arrives at %v", r, w.Requests[r].Arrival, times[i])
		}
	}
	if len(seen) != 30 {
		t.Errorf("%d requests arrive, want 30", len(seen))
	}
	again, _ := w.Arrivals(2, 7)
	if d := cmp.Diff(times, again); d != "" {
		t.Error("equal seeds differ: " + d)
	}
	if other, _ := w.Arrivals(2, 8); cmp.Equal(times, other) {
		t.Error("seeds 7 and 8 give equal arrivals")
	}
}
