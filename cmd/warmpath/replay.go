package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// cmdReplay plays a capture through what the router uses, and compares.
func cmdReplay(ctx context.Context, p process) int {
	t := newTool(p, "replay", "FILE [--json]", `Plays the capture FILE through the router's own subscriber and index. At every
line that tells what the engine really held, it compares: blocks that the index
held wrongly (over) or did not hold (under). At the same places it asks the
index for every prefix that the engine ever stored. Exits with 1 if anything
differs.`)
	asJSON := t.flags.Bool("json", false, "print JSON, one object a line")
	file, code, ok := t.parse("FILE")
	if !ok {
		return code
	}
	f, err := os.Open(file)
	if err != nil {
		return t.fail(err)
	}
	defer f.Close()
	r, err := newReplay(f)
	if err != nil {
		return t.fail(fmt.Errorf("%s: %w", file, err))
	}
	r.report = r.text
	out := bufio.NewWriter(p.stdout)
	r.out = out
	if *asJSON {
		r.report = json.NewEncoder(out).Encode
	}
	err = r.run(ctx)
	return t.fail(errors.Join(err, out.Flush()))
}

// comparison is what replay prints of a truth line. Truth, Held, Over and Under
// count blocks.
type comparison struct {
	AfterSeq uint64 `json:"after_seq"`
	Truth    int    `json:"truth"`
	Held     int    `json:"held"`
	Over     int    `json:"over"`
	Under    int    `json:"under"`
}

// replaySummary is what replay prints at the end.
type replaySummary struct {
	// Messages counts those played, a batch that was live and replayed twice.
	Messages int    `json:"messages"`
	Trust    string `json:"trust"`
	// Prefixes counts the questions asked of Match, the others those that were
	// answered with more or fewer blocks than the engine held.
	Prefixes    int `json:"prefixes"`
	PrefixOver  int `json:"prefixes_over"`
	PrefixUnder int `json:"prefixes_under"`
}

// replayModel stands for the model's name, which captures do not have.
const replayModel = "capture"

// settleTimeout is how long the subscriber may take over what it was given.
const settleTimeout = 10 * time.Second

// replay is one run of a capture.
type replay struct {
	records []events.Record
	source  *recorded
	chains  chains
	index   *kvindex.Index
	manager *events.Manager
	pool    *pool.Pool
	// last is the sequence of the last batch given to the subscriber, if any
	// was, and batches their number.
	last    uint64
	batches int
	differ  bool
	sum     replaySummary
	out     io.Writer
	report  func(any) error
}

// newReplay reads a capture.
func newReplay(f io.Reader) (*replay, error) {
	r := &replay{source: newRecorded()}
	hasher := kvindex.NewHasher(secret())
	r.chains = chains{hasher: hasher, nodes: map[events.TruthBlock]*chainNode{}, other: map[uint8]bool{}}
	in := events.NewCaptureReader(f)
	for {
		rec, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if rec.Replay != nil {
			r.source.replayed(rec.Replay)
		}
		r.records = append(r.records, rec)
	}
	if len(r.records) == 0 {
		return nil, errors.New("the capture is empty")
	}
	var err error
	if r.index, err = kvindex.New(kvindex.Config{}); err != nil {
		return nil, err
	}
	spec := pool.Spec{Name: "capture", Address: "127.0.0.1:1", Models: []string{replayModel}, Events: "tcp://capture:1"}
	if r.source.answers() {
		spec.Replay = "tcp://capture:2"
	}
	cfg := pool.DefaultConfig()
	cfg.Static.Endpoints = []pool.Spec{spec}
	log := slog.New(slog.DiscardHandler)
	r.pool = pool.New(cfg, log, prometheus.NewRegistry(), http.DefaultClient, random())
	streams := events.DefaultConfig()
	streams.Quiet, streams.BackoffMin = 200*time.Millisecond, 10*time.Millisecond
	r.manager, err = events.New(streams, r.index, hasher, r.source, log, prometheus.NewRegistry(), random())
	return r, err
}

// run plays the capture to its end.
func (r *replay) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.manager.Run(ctx, r.pool) })
	g.Go(func() error {
		defer cancel()
		return r.play(ctx)
	})
	return g.Wait()
}

func (r *replay) play(ctx context.Context) error {
	for _, frames := range r.source.history() {
		if seq, payload, ok := events.ReplayBatch(frames); ok {
			r.chains.read(payload)
			r.last = seq
			r.batches++
		}
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	for _, rec := range r.records {
		switch {
		case rec.Live != nil:
			if seq, payload, ok := events.LiveBatch(rec.Live); ok {
				r.chains.read(payload)
				r.last = seq
				r.batches++
			}
			if err := r.source.play(ctx, rec.Live); err != nil {
				return err
			}
		case rec.Truth != nil:
			if err := r.settle(ctx); err != nil {
				return err
			}
			if err := r.compare(*rec.Truth); err != nil {
				return err
			}
		}
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	r.sum.Messages, r.sum.Trust = r.batches, r.manager.Status()[0].Trust
	if err := r.report(r.sum); err != nil {
		return err
	}
	if r.differ {
		return errors.New("the index differs from what the engine held")
	}
	return nil
}

// settle waits until the subscriber has nothing to do any more, or not for
// too long: what it made of a faulty capture is then compared all the same.
func (r *replay) settle(ctx context.Context) error {
	if r.batches == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		for _, st := range r.manager.Status() {
			settled := st.Phase == events.Live.String() || st.Phase == events.Stale.String()
			if settled && st.Sequenced && st.Sequence >= r.last {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return nil
			}
			return context.Cause(ctx)
		}
	}
}

// compare prints how the index differs from the truth.
func (r *replay) compare(truth events.Truth) error {
	c := comparison{AfterSeq: truth.AfterSeq}
	want := map[kvindex.BlockHash]bool{}
	for _, b := range truth.Blocks {
		switch n := r.chains.nodes[b]; {
		case r.chains.other[b.Group]: // no prefixes, and not indexed
		case n == nil:
			c.Truth++
			c.Under++ // never announced
		default:
			want[n.hash] = true
		}
	}
	c.Truth += len(want)
	id := r.pool.Snapshot().Endpoints[0].Publishers[0].ID
	held := r.index.AppendHeld(nil, id)
	slices.Sort(held)
	held = slices.Compact(held)
	c.Held = len(held)
	for _, h := range held {
		if !want[h] {
			c.Over++
		}
	}
	c.Under += len(want) - (len(held) - c.Over)
	r.ask(want)
	r.differ = r.differ || c.Over > 0 || c.Under > 0 || r.sum.PrefixOver > 0 || r.sum.PrefixUnder > 0
	return r.report(c)
}

// ask asks the index for every prefix that was ever stored, and compares with
// how much of it is in want.
func (r *replay) ask(want map[kvindex.BlockHash]bool) {
	for _, n := range r.chains.prefixes() {
		chain := n.chain()
		expect := 0
		for expect < len(chain) && want[chain[expect]] {
			expect++
		}
		got := 0
		for _, m := range r.index.Match(nil, chain, time.Now(), nil) {
			got = int(m.Confirmed)
		}
		r.sum.Prefixes++
		switch {
		case got > expect:
			r.sum.PrefixOver++
		case got < expect:
			r.sum.PrefixUnder++
		}
	}
}

// text prints a comparison or the summary for people.
func (r *replay) text(v any) error {
	var err error
	switch v := v.(type) {
	case comparison:
		_, err = fmt.Fprintf(r.out, "after batch %d: engine held %d, index %d, over %d, under %d\n", v.AfterSeq, v.Truth, v.Held, v.Over, v.Under)
	case replaySummary:
		_, err = fmt.Fprintf(r.out, "%d messages, in the end %s; %d prefixes asked for, over %d, under %d\n", v.Messages, v.Trust, v.Prefixes, v.PrefixOver, v.PrefixUnder)
	}
	return err
}

// chains is an independent reading of a capture: every block that was ever
// stored, with those before it. It knows no removals.
type chains struct {
	hasher kvindex.Hasher
	dec    events.Decoder
	nodes  map[events.TruthBlock]*chainNode
	// other marks the groups whose blocks are no prefixes.
	other map[uint8]bool
}

// chainNode is one block and the way to it.
type chainNode struct {
	hash   kvindex.BlockHash
	parent *chainNode
}

// chain returns the hashes from the first block to n.
func (n *chainNode) chain() []kvindex.BlockHash {
	var out []kvindex.BlockHash
	for at := n; at != nil; at = at.parent {
		out = append(out, at.hash)
	}
	slices.Reverse(out)
	return out
}

// prefixes returns one node for each distinct block.
func (c *chains) prefixes() []*chainNode {
	distinct := map[kvindex.BlockHash]*chainNode{}
	for _, n := range c.nodes {
		distinct[n.hash] = n
	}
	return slices.Collect(maps.Values(distinct))
}

// read adds the blocks that a payload stores. What cannot be read is the
// subscriber's to complain about.
func (c *chains) read(payload []byte) {
	if c.dec.Reset(payload) != nil {
		return
	}
	for {
		e, ok := c.dec.Next()
		if !ok {
			return
		}
		if e.Skipped == events.OtherKind {
			c.other[e.Group] = true
		}
		if e.Type == events.Stored && e.Skipped == events.Applied && len(e.Tokens) > 0 {
			c.store(e)
		}
	}
}

func (c *chains) store(e *events.Event) {
	at := &chainNode{hash: c.hasher.Root(kvindex.Scope{Model: replayModel, Adapter: e.Lora, Salt: e.Salt, BlockSize: e.BlockSize})}
	var parent *chainNode
	if e.HasParent {
		if parent = c.nodes[events.TruthBlock{Group: e.Group, Name: e.Parent}]; parent == nil {
			return // the beginning is not in the capture
		}
		at = parent
	}
	for i, name := range e.Hashes {
		content := c.hasher.ContentExtra(e.Tokens[i*e.BlockSize:(i+1)*e.BlockSize], e.Extra(i))
		at = &chainNode{hash: kvindex.Mix(at.hash, content), parent: parent}
		parent = at
		c.nodes[events.TruthBlock{Group: e.Group, Name: name}] = at
	}
}
