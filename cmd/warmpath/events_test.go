//go:build !nozmq

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/zmtp"
)

// stopper is an output that ends the command when it has printed some text.
type stopper struct {
	bytes.Buffer
	text string
	stop context.CancelFunc
}

func (s *stopper) Write(p []byte) (int, error) {
	n, err := s.Buffer.Write(p)
	if strings.Contains(s.String(), s.text) {
		s.stop()
	}
	return n, err
}

func seqFrame(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

func batchOf(t *testing.T, evs ...any) []byte {
	t.Helper()
	b, err := msgpack.Marshal([]any{1.5, evs, 0})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is shown and recorded can be played again.
func TestEvents_ShowsAndRecordsALiveStream(t *testing.T) {
	pub, err := zmtp.ListenPub(t.Context(), "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	router, err := zmtp.ListenRouter(t.Context(), "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stored := func(hash, token int, parent any) []any {
		return []any{"BlockStored", []int{hash}, parent, []int{token}, 1, nil, "GPU", nil, []any{nil}}
	}
	history := batchOf(t, stored(7, 70, nil))
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			req, err := router.Recv()
			if err != nil {
				return err
			}
			if err := router.Send(req[0], nil, []byte("t"), seqFrame(0), history); err != nil {
				return err
			}
			if err := pub.WaitSubscribers(t.Context(), 1); err != nil {
				return err
			}
			return errors.Join(
				pub.Send([]byte("t"), seqFrame(0), history),
				pub.Send([]byte("t"), seqFrame(1), batchOf(t, stored(8, 80, 7), []any{"BlockMoved"})),
				pub.Send([]byte("t"), seqFrame(4), batchOf(t, []any{"BlockRemoved", []int{8}, "GPU"})),
				router.Send(req[0], nil, nil, seqFrame(events.EndMarker), nil),
			)
		}()
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &stopper{text: "live 4", stop: cancel}
	var faults bytes.Buffer
	file := filepath.Join(t.TempDir(), "capture.jsonl")
	code := dispatch(ctx, process{
		args:   []string{"events", pub.Endpoint(), "--replay", router.Endpoint(), "--record", file},
		stdout: out, stderr: &faults,
	})
	if err := errors.Join(<-done, pub.Close(), router.Close()); err != nil {
		t.Error(err)
	}
	if code != exitOK || faults.Len() > 0 {
		t.Fatalf("exit code %d, stderr %q", code, faults.String())
	}
	got := regexp.MustCompile(`lag \S+`).ReplaceAllString(out.String(), "lag L")
	got = regexp.MustCompile(`\d+ bytes`).ReplaceAllString(got, "N bytes")
	want := `subscribed to ` + pub.Endpoint() + `
replayed 0 lag L stored 1 (1 tokens) removed 0
replay: 1 batches, complete
live 0 again lag L stored 1 (1 tokens) removed 0
live 1 lag L stored 1 (1 tokens) removed 0 skipped unknown (unknown_type)
live 4 MISSING 2 before it lag L stored 0 (0 tokens) removed 1
-- batches 0 to 4: 4 received, 2 missing, 1 twice, 0 faulty, N bytes; blocks of 1 tokens: stored 3, removed 1, cleared 0 times; events skipped 1 map[unknown_type:1]; last lag L
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	record, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(record), "\n"); lines != 6 {
		t.Errorf("%d lines recorded, want meta, 2 replayed and 3 live", lines)
	}
	code, played, text := invoke(t, nil, "replay", "--json", file)
	if code != exitOK || !strings.Contains(played, `"trust":"incomplete"`) {
		t.Errorf("replay of the record: exit code %d, %s%s", code, played, text)
	}
}

func TestEvents_EngineThatGoes(t *testing.T) {
	pub, err := zmtp.ListenPub(t.Context(), "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = pub.WaitSubscribers(t.Context(), 1)
		_ = pub.Close()
	}()
	code, _, faults := invoke(t, nil, "events", pub.Endpoint())
	if code != exitFault || !strings.Contains(faults, "the stream ended") {
		t.Errorf("exit code %d, stderr %q", code, faults)
	}
	code, _, faults = invoke(t, nil, "events", pub.Endpoint())
	if code != exitFault || !strings.Contains(faults, "does the engine listen there") {
		t.Errorf("exit code %d, stderr %q", code, faults)
	}
}
