package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/warmpath/warmpath/events"
)

const (
	// dialTimeout bounds the connecting to an engine, replayQuiet the silence
	// that ends a replay without an end marker.
	dialTimeout = 5 * time.Second
	replayQuiet = 3 * time.Second
	// hintAfter is the silence after which an engine seems to send nothing,
	// summaryEvery the time between two summaries.
	hintAfter    = 5 * time.Second
	summaryEvery = 10 * time.Second
)

const hintSilent = `nothing yet. An engine sends only when its cache changes: send it a prompt longer
than one block that it has not seen. If still nothing comes:
  - are events on? vLLM: --kv-events-config '{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"}'
    SGLang: --kv-events-config '{"publisher": "zmq", "endpoint": "tcp://*:5557"}'; is prefix caching on?
  - is the endpoint a wildcard, tcp://*:PORT? Anything else vLLM and SGLang connect to instead of listening
  - is this the right port? A data-parallel rank publishes at the port plus its rank
`

// cmdEvents shows what an engine publishes.
func cmdEvents(ctx context.Context, p process) int {
	t := newTool(p, "events", "tcp://HOST:PORT [--replay tcp://HOST:PORT] [--record FILE] [--for DURATION]", `Shows what the engine at HOST:PORT publishes about its KV cache, one line a
batch, with a summary every 10 s and at the end. Runs until it is interrupted or
the engine goes.`)
	replay := t.flags.String("replay", "", "ask the engine's replay endpoint, `tcp://HOST:PORT`, for what was before")
	record := t.flags.String("record", "", "write everything to `FILE`, for warmpath decode, warmpath replay and bug reports; it holds token ids, which are the prompts")
	limit := t.flags.Duration("for", 0, "stop after `DURATION`, for example 30s; 0: never")
	endpoint, code, ok := t.parse("the engine's endpoint, tcp://HOST:PORT,")
	if !ok {
		return code
	}
	if *limit < 0 {
		return t.misuse(fmt.Sprintf("--for: %s is negative", *limit))
	}
	if *limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *limit)
		defer cancel()
	}
	w := watch{transport: events.ZMQ(events.DefaultConfig()), out: p.stdout, hints: p.stderr}
	if *record == "" {
		return t.fail(w.run(ctx, endpoint, *replay))
	}
	f, err := os.Create(*record)
	if err != nil {
		return t.fail(err)
	}
	buffered := bufio.NewWriter(f)
	w.record = json.NewEncoder(buffered)
	err = w.run(ctx, endpoint, *replay)
	return t.fail(errors.Join(err, buffered.Flush(), f.Close()))
}

// watch shows one event stream.
type watch struct {
	transport  events.Transport
	out, hints io.Writer
	record     *json.Encoder // nil: nothing is recorded
	dec        events.Decoder
	sum        watched
}

// watched is what the summary tells.
type watched struct {
	batches, missing, repeated, faulty int
	bytes                              int
	first, next                        uint64 // next is the sequence after the last
	stored, removed, cleared, skipped  int
	causes                             map[string]int
	blockSize                          int
	lag                                time.Duration // of the last live batch
}

// run subscribes, then replays, then shows live messages until ctx ends, which
// is no error.
func (w *watch) run(ctx context.Context, endpoint, replay string) error {
	w.sum.causes = map[string]int{}
	if err := w.note(events.Record{Meta: map[string]any{
		"tool": "warmpath " + versionText(), "endpoint": endpoint, "replay": replay, "recorded": time.Now().UTC().Format(time.RFC3339),
	}}); err != nil {
		return err
	}
	live, err := w.dial(ctx, func(ctx context.Context) (events.Stream, error) { return w.transport.DialLive(ctx, endpoint) })
	if err != nil {
		return fmt.Errorf("%w; does the engine listen there, and is its endpoint a wildcard (tcp://*:PORT)?", err)
	}
	fmt.Fprintf(w.out, "subscribed to %s\n", endpoint)
	messages := receive(ctx, live)
	defer messages.close()
	if replay != "" {
		if err := w.replayed(ctx, replay); err != nil {
			return err
		}
	}
	err = w.live(ctx, messages)
	w.summary()
	return err
}

func (w *watch) dial(ctx context.Context, dial func(context.Context) (events.Stream, error)) (events.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return dial(ctx)
}

// inbox receives the messages of a stream.
type inbox struct {
	c      chan events.Frames
	failed chan error
	stream events.Stream
	done   chan struct{}
}

func receive(ctx context.Context, s events.Stream) *inbox {
	in := &inbox{c: make(chan events.Frames, 4096), failed: make(chan error, 1), stream: s, done: make(chan struct{})}
	go func() {
		defer close(in.done)
		for {
			frames, err := s.Recv()
			if err != nil {
				in.failed <- err
				return
			}
			select {
			case in.c <- frames:
			case <-ctx.Done():
				return
			}
		}
	}()
	return in
}

// close ends the stream and its goroutine, which may wait in Recv or for room.
func (in *inbox) close() {
	_ = in.stream.Close()
	for {
		select {
		case <-in.c:
		case <-in.done:
			return
		}
	}
}

// replayed shows what was published before.
func (w *watch) replayed(ctx context.Context, endpoint string) error {
	s, err := w.dial(ctx, func(ctx context.Context) (events.Stream, error) {
		return w.transport.DialReplay(ctx, endpoint, events.ReplayRequest(0))
	})
	if err != nil {
		return fmt.Errorf("replay: %w; is replay_endpoint set in the engine's --kv-events-config?", err)
	}
	in := receive(ctx, s)
	defer in.close()
	quiet := time.NewTimer(replayQuiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-in.failed:
			return fmt.Errorf("replay: %w", err)
		case <-quiet.C:
			if w.sum.batches == 0 {
				fmt.Fprintf(w.hints, "replay: no answer within %s; an engine that is busy answers late, an endpoint that is no replay endpoint never\n", replayQuiet)
				return nil
			}
			fmt.Fprintf(w.out, "replay: %d batches, no end marker (engines drop what their queue does not hold)\n", w.sum.batches)
			return nil
		case frames := <-in.c:
			quiet.Reset(replayQuiet)
			if err := w.note(events.Record{Replay: frames}); err != nil {
				return err
			}
			seq, payload, ok := events.ReplayBatch(frames)
			if ok && seq == events.EndMarker {
				fmt.Fprintf(w.out, "replay: %d batches, complete\n", w.sum.batches)
				return nil
			}
			w.show("replayed", seq, payload, ok)
		}
	}
}

func (w *watch) live(ctx context.Context, in *inbox) error {
	hint := time.NewTimer(hintAfter)
	defer hint.Stop()
	sums := time.NewTicker(summaryEvery)
	defer sums.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-in.failed:
			for len(in.c) > 0 {
				if err := w.message(<-in.c); err != nil {
					return err
				}
			}
			return fmt.Errorf("the stream ended: %w", err)
		case <-hint.C:
			if w.sum.batches == 0 {
				fmt.Fprint(w.hints, hintSilent)
			}
		case <-sums.C:
			w.summary()
		case frames := <-in.c:
			if err := w.message(frames); err != nil {
				return err
			}
		}
	}
}

func (w *watch) message(frames events.Frames) error {
	seq, payload, ok := events.LiveBatch(frames)
	w.show("live", seq, payload, ok)
	return w.note(events.Record{Live: frames})
}

func (w *watch) note(r events.Record) error {
	if w.record == nil {
		return nil
	}
	if err := w.record.Encode(r); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

// show prints one batch and adds it to the summary.
func (w *watch) show(how string, seq uint64, payload []byte, ok bool) {
	if !ok {
		w.sum.faulty++
		fmt.Fprintf(w.out, "%s: a message without a sequence of 8 bytes: no KV events\n", how)
		return
	}
	line := fmt.Sprintf("%s %d", how, seq) + w.order(seq)
	if err := w.dec.Reset(payload); err != nil {
		w.sum.faulty++
		fmt.Fprintf(w.out, "%s: %v\n", line, err)
		return
	}
	var stored, removed, tokens, cleared int
	var skipped string
	for {
		e, ok := w.dec.Next()
		if !ok {
			break
		}
		if e.Skipped != events.Applied {
			w.sum.skipped++
			w.sum.causes[e.Skipped.String()]++
			skipped += " skipped " + e.Type.String() + " (" + e.Skipped.String() + ")"
			continue
		}
		switch e.Type {
		case events.Stored:
			stored += len(e.Hashes)
			tokens += len(e.Tokens)
			w.sum.blockSize = max(w.sum.blockSize, e.BlockSize)
		case events.Removed:
			removed += len(e.Hashes)
		case events.Cleared:
			cleared++
		}
	}
	w.sum.batches++
	w.sum.bytes += len(payload)
	w.sum.stored += stored
	w.sum.removed += removed
	w.sum.cleared += cleared
	if b := w.dec.Batch(); b.Time > 0 {
		lag := time.Since(time.UnixMicro(int64(b.Time * 1e6)))
		if how == "live" {
			w.sum.lag = lag
		}
		line += fmt.Sprintf(" lag %s", lag.Round(10*time.Microsecond))
	}
	line += fmt.Sprintf(" stored %d (%d tokens) removed %d", stored, tokens, removed)
	if cleared > 0 {
		line += " CLEARED"
	}
	if err := w.dec.Err(); err != nil {
		w.sum.faulty++
		skipped += " " + err.Error()
	}
	fmt.Fprintln(w.out, line+skipped)
}

// order notes a sequence and tells what is remarkable about it.
func (w *watch) order(seq uint64) string {
	defer func() { w.sum.next = max(w.sum.next, seq+1) }()
	switch {
	case w.sum.batches == 0:
		w.sum.first = seq
		return ""
	case seq == w.sum.next:
		return ""
	case seq > w.sum.next:
		n := seq - w.sum.next
		w.sum.missing += int(n)
		return fmt.Sprintf(" MISSING %d before it", n)
	case seq == 0 && w.sum.next > 1:
		w.sum.next = 0
		return " RESTARTED"
	}
	w.sum.repeated++
	return " again"
}

func (w *watch) summary() {
	s := w.sum
	if s.batches == 0 {
		fmt.Fprintf(w.out, "-- no batches, %d faulty messages\n", s.faulty)
		return
	}
	fmt.Fprintf(w.out, "-- batches %d to %d: %d received, %d missing, %d twice, %d faulty, %d bytes; blocks of %d tokens: stored %d, removed %d, cleared %d times; events skipped %d %v; last lag %s\n",
		s.first, s.next-1, s.batches, s.missing, s.repeated, s.faulty, s.bytes, s.blockSize, s.stored, s.removed, s.cleared, s.skipped, s.causes, s.lag.Round(10*time.Microsecond))
}
