package server

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmihailenco/msgpack/v5"
)

// one asks for one request that publishes one batch.
func (f *fixture) one(token byte) {
	f.t.Helper()
	f.complete(`{"prompt":[` + strings.Repeat(string('1'+token%9)+",", 8) + `1],"max_tokens":1,"cache_salt":"` + string('a'+token) + `"}`)
}

// replayed returns the sequences of a replay answer.
func (f *fixture) replayed(start uint64) (seqs []uint64) {
	f.t.Helper()
	for _, frames := range f.replay(start) {
		seqs = append(seqs, binary.BigEndian.Uint64(frames[len(frames)-2]))
	}
	return seqs
}

func TestFaults_LiveMessages(t *testing.T) {
	for _, tt := range []struct {
		name, fault string
		live        []uint64
	}{
		{"lost", `{"lose_next":2}`, []uint64{0, 3, 4}},
		{"lost by share", `{"lose_share":1}`, []uint64{0}},
		{"twice", `{"duplicate_next":1}`, []uint64{0, 1, 1, 2, 3, 4}},
		{"out of order", `{"reorder_next":1}`, []uint64{0, 2, 1, 3, 4}},
		{"garbage", `{"garbage_next":1}`, []uint64{0, math.MaxUint64, math.MaxUint64, 1, 2, 3, 4}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, withEvents())
			sub := f.subscribe()
			f.one(0)
			f.ok("POST", "/debug/faults", tt.fault, &Faults{})
			for i := range byte(4) {
				f.one(1 + i)
			}
			f.ok("POST", "/debug/faults", `{"lose_share":0}`, &Faults{})
			f.one(5)
			var live []uint64
			for {
				frames, err := sub.Recv()
				if err != nil {
					t.Fatalf("after %v: %v", live, err)
				}
				seq := uint64(math.MaxUint64) // stands for garbage
				if len(frames) == 3 && len(frames[1]) == 8 {
					seq = binary.BigEndian.Uint64(frames[1])
				}
				if seq == 5 {
					break
				}
				live = append(live, seq)
			}
			if diff := cmp.Diff(tt.live, live); diff != "" {
				t.Errorf("live messages (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFaults_Replay(t *testing.T) {
	f := start(t, withEvents())
	f.ok("POST", "/debug/faults", `{"lose_share":1}`, &Faults{})
	for i := range byte(6) {
		f.one(i)
	}
	end := uint64(math.MaxUint64)
	for _, tt := range []struct {
		fault string
		want  []uint64
	}{
		{`{}`, []uint64{0, 1, 2, 3, 4, 5, end}},
		{`{"replay_hole":2,"replay_hole_after":1}`, []uint64{0, 3, 4, 5, end}},
		{`{"replay_hole":0,"buffer_steps":2}`, []uint64{4, 5, end}},
		{`{"restart":"connection"}`, []uint64{4, 5, end}},
		{`{"restart":"process"}`, []uint64{end}},
	} {
		f.ok("POST", "/debug/faults", tt.fault, &Faults{})
		if diff := cmp.Diff(tt.want, f.replayed(0)); diff != "" {
			t.Errorf("%s: replay (-want +got):\n%s", tt.fault, diff)
		}
	}
	if truth := f.truth(); truth.NextSeq != 0 || len(truth.Blocks) != 0 {
		t.Errorf("after the restart: sequence %d, %d blocks; want none", truth.NextSeq, len(truth.Blocks))
	}
	f.one(0)
	if truth := f.truth(); truth.NextSeq != 1 || len(truth.Blocks) != 2 {
		t.Errorf("the new process: sequence %d, %d blocks; want 1 and 2", truth.NextSeq, len(truth.Blocks))
	}
}

// A stall keeps messages and answers back and loses none.
func TestFaults_Stall(t *testing.T) {
	cfg := withEvents()
	f := start(t, cfg)
	sub := f.subscribe()
	f.ok("POST", "/debug/faults", `{"stall":true,"unknown_next":1}`, &Faults{})
	f.one(0)
	f.one(1)
	answered := make(chan []uint64, 1)
	go func() { answered <- f.replayed(1) }()
	select {
	case got := <-answered:
		t.Errorf("a stalled engine answered a replay with %v", got)
	default:
	}
	f.ok("POST", "/debug/faults", `{"stall":false}`, &Faults{})
	var seqs []uint64
	batches := receive(t, sub, cfg.Topic, 2)
	for _, b := range batches {
		seqs = append(seqs, b.seq)
	}
	if !slices.Equal(seqs, []uint64{0, 1}) || !slices.Equal(<-answered, []uint64{1, math.MaxUint64}) {
		t.Errorf("live %v", seqs)
	}
	var b []any
	if err := msgpack.Unmarshal(batches[0].payload, &b); err != nil {
		t.Fatal(err)
	}
	evs := b[1].([]any)
	if first := evs[0].(map[string]any)["type"]; len(evs) != 2 || first != "BlockPinned!" {
		t.Errorf("events %v, want one of an unknown type before the store", evs)
	}
}

// Requests in flight fail with the engine that they were sent to.
func TestFaults_RestartEndsRequests(t *testing.T) {
	cfg := withEvents()
	cfg.TimeScale = 1
	f := start(t, cfg)
	answer := make(chan int, 1)
	go func() {
		status, _, err := f.send("POST", "/v1/completions", `{"prompt":[1,2,3],"max_tokens":60,"ignore_eos":true}`)
		if err != nil {
			status = -1
		}
		answer <- status
	}()
	for f.truth().Running == 0 {
		// The truth is told between two steps, so this waits for each.
	}
	f.ok("POST", "/debug/faults", `{"restart":"process"}`, &Faults{})
	if status := <-answer; status != 503 {
		t.Errorf("status %d, want 503", status)
	}
	if truth := f.truth(); truth.Running != 0 || len(truth.Blocks) != 0 {
		t.Errorf("%d requests run on the new engine, with %d blocks", truth.Running, len(truth.Blocks))
	}
}

func TestFaults_AreChecked(t *testing.T) {
	f := start(t, withEvents())
	for body, part := range map[string]string{
		`{"lose_share":1.5}`:  "lose_share: 1.5: use 0 to 1",
		`{"buffer_steps":0}`:  "buffer_steps: 0: must be at least 1",
		`{"restart":"pod"}`:   `restart: \"pod\": use`,
		`{"reorder_next":-1}`: "reorder_next: -1: must be at least 0",
	} {
		if status, answer := f.do("POST", "/debug/faults", body); status != 400 || !strings.Contains(answer, part) {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	silent := start(t, Config{})
	if status, answer := silent.do("POST", "/debug/faults", `{"stall":true}`); status != 400 || !strings.Contains(answer, "no KV events") {
		t.Errorf("without events: %d %s", status, answer)
	}
}
