package events

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmihailenco/msgpack/v5"
)

func encode(tb testing.TB, v any) []byte {
	tb.Helper()
	var buf bytes.Buffer
	enc := msgpack.NewEncoder(&buf)
	enc.SetSortMapKeys(true) // the type of an event comes last then
	if err := enc.Encode(v); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

type m = map[string]any

type a = []any

// stored is a map event of one plain block with fields changed.
func stored(change m) m {
	e := m{
		"type": "BlockStored", "block_hashes": a{7}, "parent_block_hash": nil, "token_ids": a{1, 2},
		"block_size": 2, "lora_id": nil, "medium": "GPU", "lora_name": nil, "extra_keys": a{nil},
	}
	for k, v := range change {
		e[k] = v
	}
	return e
}

// Shapes that engines, connectors and releases send beside the plain one.
func TestDecode_Shapes(t *testing.T) {
	plain := "stored [7] tokens [1 2] by 2 on device (GPU)"
	for _, tt := range []struct {
		name  string
		event any
		want  string
	}{
		{"adapter by name", stored(m{"lora_id": 3, "lora_name": "ad", "extra_keys": a{a{"ad"}}}), plain + ` lora "ad"`},
		{"adapter by number only", stored(m{"lora_id": 3}), plain + ` lora "" skipped unnamed_adapter`},
		{"image", stored(m{"extra_keys": a{a{a{"img", 10}}}}), plain + ` extra[0] "\x01\x03img\x14"`},
		{"image that began before the block", stored(m{"parent_block_hash": 6, "extra_keys": a{a{a{"img", -6}}}}), "stored [7] after 6 tokens [1 2] by 2 on device (GPU)" + ` extra[0] "\x01\x03img\v"`},
		{"image by a bare identifier", stored(m{"parent_block_hash": 6, "extra_keys": a{a{"img"}}}), "stored [7] after 6 tokens [1 2] by 2 on device (GPU)" + ` extra[0] "\x01\x03img\x00"`},
		{"salt", stored(m{"extra_keys": a{a{"s"}}}), plain + ` salt "s"`},
		{"adapter, image and salt", stored(m{"lora_name": "ad", "extra_keys": a{a{"ad", a{"img", 10}, "s"}}}), plain + ` lora "ad" salt "s" extra[0] "\x01\x03img\x14"`},
		{"adapter and salt of one name", stored(m{"lora_name": "x", "extra_keys": a{a{"x", "x"}}}), plain + ` lora "x" salt "x"`},
		{"prompt embeddings", stored(m{"extra_keys": a{a{[]byte("digest")}}}), plain + ` extra[0] "\x02\x06digest"`},
		{"extra key of an unknown shape", stored(m{"extra_keys": a{a{a{"a", "b", int8(1)}}}}), plain + ` extra[0] "\x04\a\x93\xa1a\xa1b\xd0\x01"`},
		{"no extra keys at all", stored(m{"extra_keys": nil}), plain},
		{"SGLang salt", m{"type": "BlockStored", "block_hashes": a{-7}, "parent_block_hash": nil, "token_ids": a{1}, "block_size": 1, "lora_id": nil, "cache_salt": "s"}, `stored [18446744073709551609] tokens [1] by 1 on device salt "s"`},
		{"SGLang salt that is no string", m{"type": "BlockStored", "block_hashes": a{7}, "token_ids": a{1}, "block_size": 1, "cache_salt": int8(5)}, "stored [7] tokens [1] by 1 on device salt \"\\xd0\\x05\""},
		{"SGLang array with salt as map", a{"BlockStored", a{7}, nil, a{1}, 1, nil, "GPU", m{"cache_salt": "s"}}, `stored [7] tokens [1] by 1 on device (GPU) salt "s"`},
		{"SGLang bigrams", stored(m{"token_ids": a{a{1, 2}, a{2, 3}}}), plain},
		{"TensorRT-LLM string token", stored(m{"token_ids": a{1, "pad"}}), `stored [7] tokens [1 4294967295] by 2 on device (GPU) extra[0] "\x03\x01\x03pad"`},
		{"TensorRT-LLM image", stored(m{"extra_keys": nil, "mm_keys": a{a{m{"type": "mm_key"}}}}), plain + ` extra[0] "\x04\x0e\x91\x81\xa4type\xa6mm_key"`},
		{"TensorRT-LLM without images", stored(m{"extra_keys": nil, "mm_keys": a{a{}}}), plain},
		{"LMCache chunk", stored(m{"medium": "cpu"}), "stored [7] tokens [1 2] by 2 on host (cpu) skipped store_only"},
		{"LMCache chunk of newer releases", stored(m{"medium": "CPU"}), "stored [7] tokens [1 2] by 2 on host (CPU) skipped store_only"},
		{"offloaded blocks that describe themselves", stored(m{"medium": "CPU", "group_idx": 0}), "stored [7] tokens [1 2] by 2 on host (CPU)"},
		{"placeholder of an offloaded block", stored(m{"medium": "CPU", "token_ids": a{}, "block_size": 0}), "stored [7] on host (CPU)"},
		{"SGLang's host tier", stored(m{"medium": "CPU_PINNED"}), "stored [7] tokens [1 2] by 2 on host (CPU_PINNED)"},
		{"LMCache device name", stored(m{"medium": "cuda:0"}), "stored [7] tokens [1 2] by 2 on device (cuda:0) skipped store_only"},
		{"other tiers", stored(m{"medium": "CPU_TIER2"}), "stored [7] tokens [1 2] by 2 on disk (CPU_TIER2)"},
		{"shared store", stored(m{"medium": "OBJ"}), "stored [7] tokens [1 2] by 2 on external (OBJ)"},
		{"lookahead tokens", stored(m{"lookahead_token_ids": a{a{3, 4}}}), plain},
		{"sliding window", stored(m{"group_idx": 1, "kv_cache_spec_kind": "sliding_window"}), plain + " group 1 sliding_window skipped other_kind"},
		{"on another node", stored(m{"locality": "REMOTE"}), "skipped remote"},
		{"unknown medium", m{"type": "BlockRemoved", "block_hashes": a{7}, "medium": "TAPE"}, "removed [7] on device (TAPE) skipped unknown_medium"},
		{"unknown type", m{"type": "BlockMoved", "block_hashes": "other"}, "unknown on device skipped unknown_type"},
		{"unknown array", a{"BlockMoved", 1, 2}, "unknown on device skipped unknown_type"},
		{"placeholder of old releases", stored(m{"token_ids": a{}, "block_size": 16}), "stored [7] on device (GPU)"},
		{"digests", stored(m{"block_hashes": a{[]byte("0123456789abcdefABCDEFGH")}, "parent_block_hash": []byte("ABCDEFGH")}), "stored [4702394921427289928] after 4702394921427289928 tokens [1 2] by 2 on device (GPU)"},

		{"block size 0 with tokens", stored(m{"block_size": 0}), "stored [7] tokens [1 2] by 0 on device (GPU) skipped bad_block_size"},
		{"too many tokens", stored(m{"token_ids": a{1, 2, 3}}), "stored [7] tokens [1 2 3] by 2 on device (GPU) skipped token_count"},
		{"nil hashes", stored(m{"block_hashes": nil}), "skipped no_hashes"},
		{"empty hashes", stored(m{"block_hashes": a{}}), "skipped no_hashes"},
		{"truncated array", a{"BlockStored", a{7}, nil, a{1, 2}}, "stored on device skipped truncated"},
		{"removed without hashes", a{"BlockRemoved"}, "removed on device skipped truncated"},
		{"hash of a wrong type", m{"type": "BlockRemoved", "block_hashes": a{1.5}}, "removed on device skipped malformed"},
		{"short digest", m{"type": "BlockRemoved", "block_hashes": a{[]byte("short")}}, "removed on device skipped malformed"},
		{"type after fields of other shapes", m{"block_hashes": "x", "token_ids": 5, "type": "BlockMoved"}, "unknown on device skipped unknown_type"},
		{"negative token", stored(m{"token_ids": a{1, -2}}), "skipped malformed"},
		{"token of 33 bits", stored(m{"token_ids": a{1, int64(1) << 32}}), "skipped malformed"},
		{"group 256", m{"type": "BlockRemoved", "block_hashes": a{7}, "group_idx": 256}, "skipped bad_group"},
		{"not an event", "hello", "unknown on device skipped malformed"},
		{"empty array", a{}, "unknown on device skipped malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// Whatever the event is, the one behind it must be read.
			events, _, err := read(t, &Decoder{}, encode(t, a{1.5, a{tt.event, m{"type": "AllBlocksCleared"}}, nil}))
			if err != nil || len(events) != 2 || events[1].Type != Cleared {
				t.Fatalf("%d events, error %v", len(events), err)
			}
			got := show(events[0])
			if strings.HasPrefix(tt.want, "skipped") {
				got = "skipped " + events[0].Skipped.String() // how much was read before is of no interest
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecode_BatchForms(t *testing.T) {
	clear := m{"type": "AllBlocksCleared"}
	for _, tt := range []struct {
		name    string
		payload []byte
		events  int
		bad     bool
	}{
		{"map", encode(t, m{"ts": 1.5, "events": a{clear, clear}, "data_parallel_rank": 3, "other": a{}}), 2, false},
		{"later fields", encode(t, a{1.5, a{clear}, 3, "new", m{}}), 1, false},
		{"no events", encode(t, a{1.5, a{}, 3}), 0, false},
		{"nil events", encode(t, a{1.5, nil, 3}), 0, false},
		{"not a batch", encode(t, "hello"), 0, true},
		{"empty", nil, 0, true},
		{"cut inside an event", encode(t, a{1.5, a{clear, clear}, 3})[:40], 1, true},
		{"claims more events than bytes", []byte{0x92, 0xc0, 0xdd, 0x7f, 0xff, 0xff, 0xff}, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			events, batch, err := read(t, &Decoder{}, tt.payload)
			if len(events) != tt.events || (err != nil) != tt.bad {
				t.Errorf("%d events, error %v; want %d, error %v", len(events), err, tt.events, tt.bad)
			}
			if !tt.bad && (batch.Rank != 3 || batch.Time != 1.5) {
				t.Errorf("batch %+v, want rank 3 and time 1.5", batch)
			}
		})
	}
}
