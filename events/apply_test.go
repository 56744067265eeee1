package events

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// recorder writes down the calls on a Writer.
type recorder struct {
	h     kvindex.Hasher
	calls []string
}

func (r *recorder) Store(s kvindex.Stored) int {
	root := "?"
	switch {
	case s.HasParent:
		root = fmt.Sprint("after ", s.Parent)
	case len(s.Contents) == 0:
		root = "known"
	default:
		for _, adapter := range []string{"", "ad"} {
			for _, salt := range []string{"", "s"} {
				for _, size := range []int{1, 2, 4} {
					sc := kvindex.Scope{Model: "m", Adapter: adapter, Salt: salt, BlockSize: size}
					if r.h.Root(sc) == s.Root {
						root = fmt.Sprintf("root %q %q %d", adapter, salt, size)
					}
				}
			}
		}
	}
	r.calls = append(r.calls, fmt.Sprintf("store %d %s %s group %d", s.Names, root, s.Tier, s.Group))
	return 0
}

func (r *recorder) Remove(names []kvindex.EngineHash, t kvindex.Tier, g uint8) int {
	r.calls = append(r.calls, fmt.Sprintf("remove %d %s group %d", names, t, g))
	return 0
}

func (r *recorder) Clear() { r.calls = append(r.calls, "clear") }

func TestApply_Calls(t *testing.T) {
	remove := func(change m) m {
		e := m{"type": "BlockRemoved", "block_hashes": a{7}, "medium": "GPU"}
		for k, v := range change {
			e[k] = v
		}
		return e
	}
	for _, tt := range []struct {
		name   string
		events a
		want   string
		out    outcome
	}{
		{"plain", a{stored(nil), remove(nil)}, `store [7] root "" "" 2 device group 0; remove [7] device group 0`, outcome{}},
		{"adapter and salt", a{stored(m{"lora_name": "ad", "extra_keys": a{a{"ad", "s"}}})}, `store [7] root "ad" "s" 2 device group 0`, outcome{}},
		{"tier update", a{stored(m{"token_ids": a{}, "block_size": 0, "medium": "CPU", "group_idx": 2})}, "store [7] known host group 2", outcome{}},
		{
			"removals of a sliding window group do not tell its kind",
			a{stored(m{"group_idx": 1, "kv_cache_spec_kind": "sliding_window"}), remove(m{"group_idx": 1}), stored(m{"token_ids": a{}, "group_idx": 1}), remove(nil)},
			"remove [7] device group 0",
			outcome{},
		},
		{"a cache that never removes", a{stored(m{"medium": "cpu"}), stored(m{"medium": "cuda:0"})}, "", outcome{}},
		{"adapter without a name", a{stored(m{"lora_id": 1})}, "", outcome{}},
		{
			"a chunk of another size on a chain",
			a{stored(nil), stored(m{"parent_block_hash": 7, "block_hashes": a{8}, "token_ids": a{1}, "block_size": 1})},
			`store [7] root "" "" 2 device group 0`,
			outcome{},
		},
		{
			"a short prompt's chunk before the first whole one",
			a{
				stored(m{"token_ids": a{1}, "block_size": 1}), stored(nil),
				stored(m{"token_ids": a{1}, "block_size": 1}), stored(m{"block_hashes": a{8}, "parent_block_hash": 7}),
			},
			`store [7] root "" "" 1 device group 0; store [7] root "" "" 2 device group 0; store [8] after 7 device group 0`,
			outcome{},
		},
		{"clear in the middle", a{stored(m{"block_size": 0}), cleared, stored(nil)}, `clear; store [7] root "" "" 2 device group 0`, outcome{cleared: true}},
		{"bad store after a clear", a{cleared, stored(m{"block_size": 0})}, "clear", outcome{cleared: true, missed: true}},
		{"bad removal", a{remove(m{"block_hashes": a{nil}})}, "", outcome{missed: true, tainted: true}},
		{"unknown type", a{m{"type": "BlockMoved"}}, "", outcome{}},
		{"remote removal", a{remove(m{"locality": "REMOTE"})}, "", outcome{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &recorder{h: kvindex.NewHasher(3)}
			ap := &applier{hasher: r.h, model: "m", state: &pool.State{}, to: r}
			var n tally
			out, _ := ap.apply(encode(t, a{1.5, tt.events, 0}), &n)
			if diff := cmp.Diff(tt.want, strings.Join(r.calls, "; ")); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if out != tt.out {
				t.Errorf("outcome %+v, want %+v", out, tt.out)
			}
		})
	}
}

// Block sizes come from the wire and cost every request a hash: the pool
// bounds them.
func TestApply_BlockSizesAreBounded(t *testing.T) {
	r := &recorder{h: kvindex.NewHasher(3)}
	state := &pool.State{}
	ap := &applier{hasher: r.h, model: "m", state: state, to: r}
	var n tally
	for size := 1; size <= 6; size++ {
		tokens := make(a, size)
		for i := range tokens {
			tokens[i] = i
		}
		ap.apply(encode(t, a{1.5, a{stored(m{"block_size": size, "token_ids": tokens})}, 0}), &n)
	}
	if got := len(state.BlockSizes()); got != 4 || n.skipped[BlockSizeRefused] != 2 || len(r.calls) != 4 {
		t.Errorf("%d sizes, %d refused, %d stores; want 4, 2 and 4", got, n.skipped[BlockSizeRefused], len(r.calls))
	}
}
