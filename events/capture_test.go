package events

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// capture is a recording of one engine; its README tells the format.
type capture struct {
	live, replay []batchFrame
	truth        map[uint64][]TruthBlock
	truths       []uint64
}

type batchFrame struct {
	seq     uint64
	payload []byte
}

func readCapture(tb testing.TB, path string) capture {
	tb.Helper()
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	c := capture{truth: map[uint64][]TruthBlock{}}
	in := NewCaptureReader(f)
	for {
		r, err := in.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			tb.Fatal(err)
		}
		switch {
		case r.Truth != nil:
			c.truth[r.Truth.AfterSeq] = r.Truth.Blocks
			c.truths = append(c.truths, r.Truth.AfterSeq)
		case r.Live != nil:
			seq, payload, ok := LiveBatch(r.Live)
			if !ok {
				tb.Fatalf("live frames %q", r.Live)
			}
			c.live = append(c.live, batchFrame{seq, payload})
		case r.Replay != nil:
			seq, payload, ok := ReplayBatch(r.Replay)
			if !ok {
				tb.Fatalf("replay frames %q", r.Replay)
			}
			c.replay = append(c.replay, batchFrame{seq, payload})
		}
	}
	if len(c.live) == 0 || len(c.truths) == 0 {
		tb.Fatalf("%s: %d live batches, %d truths", path, len(c.live), len(c.truths))
	}
	return c
}

// expected is an independent reading of the events: generic maps and slices
// instead of a streaming decoder, every block by all of its history.
type expected struct {
	h     kvindex.Hasher
	names map[TruthBlock]kvindex.BlockHash
}

func (x *expected) batch(tb testing.TB, payload []byte) {
	tb.Helper()
	var batch []any
	if err := msgpack.Unmarshal(payload, &batch); err != nil {
		tb.Fatal(err)
	}
	for _, raw := range batch[1].([]any) {
		e, ok := raw.(map[string]any)
		if !ok {
			e = map[string]any{}
			names := []string{"type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "extra_keys", "group_idx", "kv_cache_spec_kind"}
			for i, v := range raw.([]any) {
				if i < len(names) {
					e[names[i]] = v
				}
			}
		}
		if e["type"] == "BlockStored" {
			x.stored(tb, e)
		}
	}
}

func (x *expected) stored(tb testing.TB, e map[string]any) {
	tb.Helper()
	var group uint8
	if g := e["group_idx"]; g != nil {
		group = uint8(num(tb, g))
	}
	name := func(v any) TruthBlock {
		if u, ok := v.(uint64); ok {
			return TruthBlock{group, kvindex.EngineHash(u)}
		}
		return TruthBlock{group, kvindex.EngineHash(v.(int64))}
	}
	size := int(num(tb, e["block_size"]))
	lora, _ := e["lora_name"].(string)
	salt, _ := e["cache_salt"].(string)
	extras, _ := e["extra_keys"].([]any)
	if e["parent_block_hash"] == nil && len(extras) > 0 {
		if keys, ok := extras[0].([]any); ok {
			for _, k := range keys {
				if s, ok := k.(string); ok && s != lora {
					salt = s
				}
			}
		}
	}
	at := x.h.Root(kvindex.Scope{Model: "m", Adapter: lora, Salt: salt, BlockSize: size})
	if p := e["parent_block_hash"]; p != nil {
		b, ok := x.names[name(p)]
		if !ok {
			tb.Fatalf("parent %v was never stored", p)
		}
		at = b
	}
	tokens := e["token_ids"].([]any)
	for i, hash := range e["block_hashes"].([]any) {
		var ids []kvindex.TokenID
		for _, v := range tokens[i*size : (i+1)*size] {
			ids = append(ids, kvindex.TokenID(num(tb, v)))
		}
		var extra []byte
		if extras != nil {
			keys, _ := extras[i].([]any)
			for _, k := range keys {
				if pair, ok := k.([]any); ok {
					id := pair[0].(string)
					extra = append(extra, 1)
					extra = binary.AppendUvarint(extra, uint64(len(id)))
					extra = append(extra, id...)
					extra = binary.AppendVarint(extra, num(tb, pair[1]))
				}
			}
		}
		at = kvindex.Mix(at, x.h.ContentExtra(ids, extra))
		x.names[name(hash)] = at
	}
}

func num(tb testing.TB, v any) int64 {
	tb.Helper()
	switch n := v.(type) {
	case int8:
		return int64(n)
	case uint8:
		return int64(n)
	case uint16:
		return int64(n)
	case int16:
		return int64(n)
	case uint32:
		return int64(n)
	}
	tb.Fatalf("%v is a %T, not a small integer", v, v)
	return 0
}

// Everything between the wire and the index, against what the engines' own
// block pools held.
func TestCaptures_IndexEqualsTheEnginesPool(t *testing.T) {
	paths, err := filepath.Glob("testdata/captures/*.jsonl")
	if err != nil || len(paths) != 3 {
		t.Fatalf("captures %q, error %v; want 3", paths, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			c := readCapture(t, path)
			x := expected{kvindex.NewHasher(7), map[TruthBlock]kvindex.BlockHash{}}
			index, err := kvindex.New(kvindex.Config{})
			if err != nil {
				t.Fatal(err)
			}
			w, err := index.Open(kvindex.Publisher{ID: 3, Endpoint: 3})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			a := &applier{hasher: x.h, model: "m", state: &pool.State{}, to: w}
			s := NewSequence(true)
			var n tally
			last := []byte(nil)
			apply := func(f batchFrame, st Step) {
				t.Helper()
				if st.Reset || st.Ask || st.Frame == Hold {
					t.Fatalf("batch %d: step %+v in a gap-free stream", f.seq, st)
				}
				if st.Frame != Apply {
					return
				}
				last = f.payload
				out, _ := a.apply(f.payload, &n)
				x.batch(t, f.payload)
				if out.cleared {
					s.Cleared()
				}
				if out.missed || out.tainted {
					t.Fatalf("batch %d: %+v", f.seq, out)
				}
			}
			if st := s.Connected(); !st.Ask || st.From != 0 {
				t.Fatalf("connected: step %+v, want a replay from 0", st)
			}
			checked := 0
			for _, f := range c.replay {
				if f.seq == EndMarker {
					s.ReplayEnd(true)
					continue
				}
				apply(f, s.Replayed(f.seq, bytes.Equal(f.payload, last)))
			}
			for _, f := range c.live {
				apply(f, s.Live(f.seq))
				blocks, ok := c.truth[f.seq]
				if !ok {
					continue
				}
				checked++
				if s.Trust() != kvindex.TrustExact {
					t.Errorf("after %d: trust %s, want exact", f.seq, s.Trust())
				}
				compareHeld(t, fmt.Sprintf("after %d", f.seq), index.AppendHeld(nil, 3), x.truth(t, blocks))
			}
			if checked != len(c.truths) {
				t.Errorf("%d of %d truth lines compared", checked, len(c.truths))
			}
			if n.unplaced != 0 || n.skipped != [numCauses]uint64{} {
				t.Errorf("%d blocks unplaced, skipped %v; want none", n.unplaced, n.skipped)
			}
		})
	}
}

// truth translates the engine's own hashes into chain hashes.
func (x *expected) truth(tb testing.TB, blocks []TruthBlock) []kvindex.BlockHash {
	tb.Helper()
	var out []kvindex.BlockHash
	for _, b := range blocks {
		h, ok := x.names[b]
		if !ok {
			tb.Fatalf("the engine holds %v, which was never announced", b)
		}
		out = append(out, h)
	}
	return out
}

// compareHeld compares two sets of blocks.
func compareHeld(tb testing.TB, at string, got, want []kvindex.BlockHash) {
	tb.Helper()
	slices.Sort(got)
	slices.Sort(want)
	got, want = slices.Compact(got), slices.Compact(want)
	over, under := 0, 0
	for _, b := range got {
		if _, ok := slices.BinarySearch(want, b); !ok {
			over++
		}
	}
	for _, b := range want {
		if _, ok := slices.BinarySearch(got, b); !ok {
			under++
		}
	}
	if over != 0 || under != 0 {
		tb.Errorf("%s: the index holds %d blocks, the engine %d; over %d, under %d, want 0 and 0", at, len(got), len(want), over, under)
	}
}
