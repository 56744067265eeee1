package events

import (
	"testing"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// worstBatch is what vLLM publishes for a 2048-token prompt into a full pool:
// one store of 128 blocks and 128 removals of one hash each.
func worstBatch(tb testing.TB) []byte {
	tb.Helper()
	var hashes, tokens, extra a
	for i := range 128 {
		hashes = append(hashes, uint64(0xf0f0f0f0f0f0f0f0)+uint64(i))
		extra = append(extra, nil)
		for j := range 16 {
			tokens = append(tokens, uint16(1000+16*i+j))
		}
	}
	events := a{stored(m{"block_hashes": hashes, "token_ids": tokens, "block_size": 16, "extra_keys": extra, "group_idx": 0, "kv_cache_spec_kind": "full_attention"})}
	for i := range 128 {
		events = append(events, m{"type": "BlockRemoved", "block_hashes": a{uint64(0xe0e0e0e0e0e0e0e0) + uint64(i)}, "medium": "GPU", "group_idx": 0})
	}
	return encode(tb, a{1.5, events, 0})
}

// storeBatch is one event of 16 blocks of 16 tokens.
func storeBatch(tb testing.TB) []byte {
	tb.Helper()
	var hashes, tokens, extra a
	for i := range 16 {
		hashes = append(hashes, uint64(0xf0f0f0f0f0f0f0f0)+uint64(i))
		extra = append(extra, nil)
		for j := range 16 {
			tokens = append(tokens, uint16(30000+16*i+j))
		}
	}
	return encode(tb, a{1.5, a{stored(m{"block_hashes": hashes, "token_ids": tokens, "block_size": 16, "extra_keys": extra, "group_idx": 0, "kv_cache_spec_kind": "full_attention"})}, 0})
}

// richBatch has everything that is interned or mixed into contents.
func richBatch(tb testing.TB) []byte {
	tb.Helper()
	return encode(tb, a{1.5, a{
		stored(m{"lora_name": "ad", "extra_keys": a{a{"ad", a{"img", 10}, "salt"}}}),
		a{"BlockStored", a{7}, nil, a{1}, 1, nil, "GPU", m{"cache_salt": "s"}},
		m{"type": "BlockMoved"},
		m{"type": "AllBlocksCleared"},
	}, 0})
}

func TestApply_AllocatesNothingPerEvent(t *testing.T) {
	for name, payload := range map[string][]byte{"worst": worstBatch(t), "store": storeBatch(t), "rich": richBatch(t)} {
		ap := &applier{hasher: kvindex.NewHasher(1), model: "m", state: &pool.State{}, to: nowhere{}}
		var n tally
		if allocs := testing.AllocsPerRun(100, func() { ap.apply(payload, &n) }); allocs != 0 {
			t.Errorf("%s: %v allocations a batch, want 0", name, allocs)
		}
		if n.frames != 101 || n.skipped[Malformed] != 0 {
			t.Errorf("%s: tally %+v", name, n)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	for _, bb := range []struct {
		name    string
		payload []byte
		blocks  int
	}{
		{"worst=1x128+128x1", worstBatch(b), 256},
		{"store=16x16", storeBatch(b), 16},
	} {
		for _, indexed := range []bool{false, true} {
			name := bb.name + "/index=none"
			if indexed {
				name = bb.name + "/index=kvindex"
			}
			b.Run(name, func(b *testing.B) {
				ap := &applier{hasher: kvindex.NewHasher(1), model: "m", state: &pool.State{}, to: nowhere{}}
				if indexed {
					index, err := kvindex.New(kvindex.Config{})
					if err != nil {
						b.Fatal(err)
					}
					w, err := index.Open(kvindex.Publisher{})
					if err != nil {
						b.Fatal(err)
					}
					defer w.Close()
					ap.to = w
				}
				var n tally
				b.SetBytes(int64(len(bb.payload)))
				b.ReportAllocs()
				for b.Loop() {
					ap.apply(bb.payload, &n)
				}
				b.ReportMetric(float64(bb.blocks)*float64(b.N)/b.Elapsed().Seconds(), "blocks/s")
			})
		}
	}
}
