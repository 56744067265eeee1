package server

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmihailenco/msgpack/v5"
	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/events/zmtp"
)

// withEvents is a small engine that publishes on loopback.
func withEvents() Config {
	return Config{
		Events: "tcp://127.0.0.1:0", Replay: "tcp://127.0.0.1:0", Topic: "kv@pod@model",
		Engine: engine.Config{Blocks: 24, BlockSize: 4},
	}
}

// subscribe returns a socket that sees every later batch.
func (f *fixture) subscribe() *zmtp.Sub {
	f.t.Helper()
	sub, err := zmtp.DialSub(f.t.Context(), f.EventsEndpoint(), "")
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = sub.Close() })
	if err := f.publisher.pub.WaitSubscribers(f.t.Context(), 1); err != nil {
		f.t.Fatal(err)
	}
	return sub
}

// receive reads live batches until the one before next.
func receive(t *testing.T, sub *zmtp.Sub, topic string, next uint64) (batches []batch) {
	t.Helper()
	for len(batches) == 0 || batches[len(batches)-1].seq+1 < next {
		frames, err := sub.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(frames) != 3 || string(frames[0]) != topic || len(frames[1]) != 8 {
			t.Fatalf("live frames %q", frames)
		}
		batches = append(batches, batch{binary.BigEndian.Uint64(frames[1]), frames[2]})
	}
	return batches
}

// replay asks for a replay and returns the frames of the whole answer.
func (f *fixture) replay(start uint64) (frames [][][]byte) {
	f.t.Helper()
	dealer, err := zmtp.DialDealer(f.t.Context(), f.ReplayEndpoint())
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = dealer.Close() }()
	if err := dealer.Send(nil, seqFrame(start)); err != nil {
		f.t.Fatal(err)
	}
	for {
		reply, err := dealer.Recv()
		if err != nil {
			f.t.Fatal(err)
		}
		frames = append(frames, reply)
		if bytes.Equal(reply[len(reply)-2], seqFrame(math.MaxUint64)) {
			return frames
		}
	}
}

// apply applies a batch to the set of held hashes, and counts copies.
func apply(t *testing.T, payload []byte, copies map[string]int) {
	t.Helper()
	var b []any
	if err := msgpack.Unmarshal(payload, &b); err != nil {
		t.Fatal(err)
	}
	if len(b) != 3 {
		t.Fatalf("batch of %d elements", len(b))
	}
	for _, event := range b[1].([]any) {
		tag, hashes := fields(t, event)
		for _, h := range hashes {
			name := fmt.Sprint(h)
			switch tag {
			case "BlockStored":
				copies[name]++
			case "BlockRemoved":
				if copies[name]--; copies[name] == 0 {
					delete(copies, name)
				}
			}
		}
		if tag == "AllBlocksCleared" {
			clear(copies)
		}
	}
}

// fields returns the tag and the hashes of an event in either layout.
func fields(t *testing.T, event any) (tag string, hashes []any) {
	t.Helper()
	switch e := event.(type) {
	case map[string]any:
		hashes, _ = e["block_hashes"].([]any)
		return e["type"].(string), hashes
	case []any:
		if len(e) > 1 {
			hashes, _ = e[1].([]any)
		}
		return e[0].(string), hashes
	}
	t.Fatalf("event %v", event)
	return "", nil
}

// load sends requests that share prefixes and overflow the cache.
func (f *fixture) load() {
	f.t.Helper()
	for i := range 30 {
		extra := []string{"", `,"cache_salt":"s"`, `,"model":"ad"`}[i%3]
		f.complete(fmt.Sprintf(`{"prompt":"%s %d","max_tokens":%d%s}`, longPrompt[:20+i], i%4, 1+i%9, extra))
	}
}

func TestEventsTellThePoolsTruth(t *testing.T) {
	for _, format := range []engine.Format{engine.FormatMap, engine.FormatArray, engine.FormatArray12} {
		t.Run(string(format), func(t *testing.T) {
			cfg := withEvents()
			cfg.EventFormat = format
			cfg.LoRAs = []string{"ad"}
			f := start(t, cfg)
			sub := f.subscribe()
			f.load()
			truth := f.truth()
			batches := receive(t, sub, cfg.Topic, truth.NextSeq)
			copies := make(map[string]int)
			for i, b := range batches {
				if b.seq != uint64(i) {
					t.Fatalf("batch %d has the sequence number %d", i, b.seq)
				}
				apply(t, b.payload, copies)
			}
			want := make(map[string]int)
			salts := make(map[string]bool)
			for _, b := range truth.Blocks {
				want[b.Hash] = b.Copies
				salts[b.Salt+"/"+b.LoRA] = true
				if len(b.Tokens) == 0 || len(b.Tokens)%truth.BlockSize != 0 || b.Tokens[0] != engine.TokenBOS {
					t.Errorf("block %s stands for %d tokens", b.Hash, len(b.Tokens))
				}
			}
			if diff := cmp.Diff(want, copies); diff != "" {
				t.Errorf("copies (-pool +events):\n%s", diff)
			}
			if len(want) == 0 || len(salts) < 2 || truth.PendingEvents != 0 {
				t.Errorf("%d blocks of the scopes %v, %d events pending", len(want), salts, truth.PendingEvents)
			}
		})
	}
}

func TestReplayAnswersInBothLayouts(t *testing.T) {
	for _, legacy := range []bool{false, true} {
		t.Run(strconv.FormatBool(legacy), func(t *testing.T) {
			cfg := withEvents()
			cfg.LoRAs = []string{"ad"}
			cfg.LegacyReplay = legacy
			cfg.BufferSteps = 10
			f := start(t, cfg)
			sub := f.subscribe()
			f.load()
			next := f.truth().NextSeq
			live := receive(t, sub, cfg.Topic, next)
			for _, start := range []uint64{0, next - 10, next - 3, next, next + 5} {
				want := [][][]byte{}
				for _, b := range live {
					if b.seq < start || b.seq+10 < next {
						continue
					}
					want = append(want, layout(legacy, cfg.Topic, b.seq, b.payload))
				}
				want = append(want, layout(legacy, "", math.MaxUint64, nil))
				if diff := cmp.Diff(want, f.replay(start)); diff != "" {
					t.Errorf("replay from %d of %d (-want +got):\n%s", start, next, diff)
				}
			}
		})
	}
}

// layout is what a DEALER sees of one replayed batch.
func layout(legacy bool, topic string, seq uint64, payload []byte) [][]byte {
	if payload == nil {
		payload = []byte{}
	}
	if legacy {
		return [][]byte{{}, seqFrame(seq), payload}
	}
	return [][]byte{{}, []byte(topic), seqFrame(seq), payload}
}

// A request without the delimiter is dropped; later ones are served.
func TestReplayNeedsTheDelimiter(t *testing.T) {
	f := start(t, withEvents())
	dealer, err := zmtp.DialDealer(t.Context(), f.ReplayEndpoint())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dealer.Close() }()
	for _, frames := range [][][]byte{{seqFrame(0)}, {nil, {1, 2}}, {nil, seqFrame(0), nil}, {nil, seqFrame(7)}} {
		if err := dealer.Send(frames...); err != nil {
			t.Fatal(err)
		}
	}
	frames, err := dealer.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(layout(false, "", math.MaxUint64, nil), frames); diff != "" {
		t.Errorf("answer to the only valid request (-want +got):\n%s", diff)
	}
}

func TestDroppedBatchesAreGone(t *testing.T) {
	cfg := withEvents()
	f := start(t, cfg)
	sub := f.subscribe()
	ask := func(token int) {
		f.complete(`{"prompt":[` + strings.Repeat(strconv.Itoa(token)+",", 8) + `1],"max_tokens":1}`)
	}
	ask(1)
	var state Faults
	f.ok("POST", "/debug/faults", `{"drop_next":1}`, &state)
	ask(2)
	ask(3)
	f.ok("POST", "/debug/faults", `{}`, &state)
	if *state.DropNext != 0 {
		t.Errorf("%d batches still to drop", *state.DropNext)
	}
	truth := f.truth()
	if truth.NextSeq != 3 || len(truth.Blocks) != 6 {
		t.Fatalf("next sequence %d, %d blocks held: a fault must not change the pool", truth.NextSeq, len(truth.Blocks))
	}
	var live, replayed []uint64
	for _, b := range receive(t, sub, cfg.Topic, truth.NextSeq) {
		live = append(live, b.seq)
	}
	for _, frames := range f.replay(0) {
		replayed = append(replayed, binary.BigEndian.Uint64(frames[2]))
	}
	if !slices.Equal(live, []uint64{0, 2}) || !slices.Equal(replayed, []uint64{0, 2, math.MaxUint64}) {
		t.Errorf("live %v, replayed %v", live, replayed)
	}
}

func TestResetIsAnnouncedLate(t *testing.T) {
	cfg := withEvents()
	f := start(t, cfg)
	sub := f.subscribe()
	body := `{"prompt":[1,2,3,4,5],"max_tokens":1}`
	f.complete(body)
	var reset struct{ Success bool }
	f.ok("POST", "/reset_prefix_cache", "", &reset)
	truth := f.truth()
	if !reset.Success || truth.NextSeq != 1 || truth.PendingEvents != 1 || len(truth.Blocks) != 0 {
		t.Errorf("reset %+v, truth %+v", reset, truth)
	}
	if r := f.complete(body); r.Usage.PromptTokensDetails.CachedTokens != 0 {
		t.Errorf("%d tokens survived", r.Usage.PromptTokensDetails.CachedTokens)
	}
	batches := receive(t, sub, cfg.Topic, 2)
	var b []any
	if err := msgpack.Unmarshal(batches[1].payload, &b); err != nil {
		t.Fatal(err)
	}
	var tags []string
	for _, event := range b[1].([]any) {
		tag, _ := fields(t, event)
		tags = append(tags, tag)
	}
	if !slices.Equal(tags, []string{"AllBlocksCleared", "BlockStored"}) {
		t.Errorf("second batch: %v", tags)
	}
}

func TestKVEventSources(t *testing.T) {
	cfg := withEvents()
	cfg.Rank = 2
	f := start(t, cfg)
	var got map[string]map[string]any
	f.ok("GET", "/kv_event_sources", "", &got)
	want := map[string]map[string]any{"2": {
		"enable_kv_cache_events": true, "publisher": "zmq", "topic": cfg.Topic,
		"endpoint": f.EventsEndpoint(), "replay_endpoint": f.ReplayEndpoint(),
		"buffer_steps": 10000.0, "hwm": 100000.0, "max_queue_size": 100000.0,
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
	silent := start(t, Config{})
	if _, answer := silent.do("GET", "/kv_event_sources", ""); answer != "{}\n" {
		t.Errorf("without events: %s", answer)
	}
}
