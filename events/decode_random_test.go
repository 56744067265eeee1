package events

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmihailenco/msgpack/v5"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
)

// wireEvent is an event of vLLM's fields before it is encoded.
type wireEvent struct {
	Type             string
	Hashes           []uint64
	Parent           *uint64
	Tokens           []uint32
	BlockSize        int
	Lora, Kind       string
	Medium           any
	Extra            []any
	Group            int
	Digests, Signed  bool
	Length           int // of a positional array
	Map, WideHeaders bool
}

func drawEvent(t *rapid.T) wireEvent {
	e := wireEvent{
		Type:        rapid.SampledFrom([]string{"BlockStored", "BlockStored", "BlockRemoved", "AllBlocksCleared", "BlockMoved"}).Draw(t, "type"),
		Hashes:      rapid.SliceOfN(rapid.Uint64(), 1, 5).Draw(t, "hashes"),
		BlockSize:   rapid.IntRange(1, 4).Draw(t, "block size"),
		Lora:        rapid.SampledFrom([]string{"", "adapter"}).Draw(t, "lora"),
		Kind:        rapid.SampledFrom([]string{"", "full_attention", "mamba", "mla_attention"}).Draw(t, "kind"),
		Medium:      rapid.SampledFrom([]any{nil, "GPU", "CPU", "cpu_Tier2", "floppy"}).Draw(t, "medium"),
		Group:       rapid.IntRange(0, 3).Draw(t, "group"),
		Digests:     rapid.Bool().Draw(t, "digests"),
		Signed:      rapid.Bool().Draw(t, "signed"),
		Map:         rapid.Bool().Draw(t, "map"),
		WideHeaders: rapid.Bool().Draw(t, "wide headers"),
	}
	if rapid.Bool().Draw(t, "has parent") {
		p := rapid.Uint64().Draw(t, "parent")
		e.Parent = &p
	}
	n := len(e.Hashes) * e.BlockSize
	e.Tokens = rapid.SliceOfN(rapid.Uint32(), n, n).Draw(t, "tokens")
	for range e.Hashes {
		e.Extra = append(e.Extra, rapid.SampledFrom([]any{nil, []any{"other"}, []any{[]any{"image", -7}}, []any{"adapter", []byte("digest")}}).Draw(t, "extra"))
	}
	e.Length = 12
	if e.Type == "BlockRemoved" {
		e.Length = 4
	}
	return e
}

// fields returns the event's fields by name and their order in an array.
func (e wireEvent) fields() (map[string]any, []string) {
	name := func(h uint64) any {
		switch {
		case e.Digests:
			return append(bytes.Repeat([]byte{0xab}, 24), byte(h>>56), byte(h>>48), byte(h>>40), byte(h>>32), byte(h>>24), byte(h>>16), byte(h>>8), byte(h))
		case e.Signed:
			return int64(h)
		}
		return h
	}
	var hashes []any
	for _, h := range e.Hashes {
		hashes = append(hashes, name(h))
	}
	f := map[string]any{"type": e.Type, "block_hashes": hashes, "medium": e.Medium, "group_idx": e.Group}
	if e.Type == "BlockRemoved" {
		return f, []string{"type", "block_hashes", "medium", "group_idx"}
	}
	f["parent_block_hash"] = nil
	if e.Parent != nil {
		f["parent_block_hash"] = name(*e.Parent)
	}
	f["token_ids"], f["block_size"], f["lora_id"], f["extra_keys"] = e.Tokens, e.BlockSize, nil, e.Extra
	f["lora_name"], f["kv_cache_spec_kind"] = nil, nil
	if e.Lora != "" {
		f["lora_name"], f["lora_id"] = e.Lora, 1
	}
	if e.Kind != "" {
		f["kv_cache_spec_kind"] = e.Kind
	}
	f["kv_cache_spec_sliding_window"] = nil
	return f, []string{"type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "extra_keys", "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window"}
}

// encode writes the event; unknown fields are added, which must change nothing.
func (e wireEvent) encode(enc *msgpack.Encoder, t interface{ Fatal(...any) }) {
	f, order := e.fields()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !e.Map {
		if e.Type == "AllBlocksCleared" {
			must(enc.Encode([]any{e.Type}))
			return
		}
		var row []any
		for _, k := range order {
			row = append(row, f[k])
		}
		must(enc.Encode(append(row, map[string]any{"new": []any{1, "x"}})))
		return
	}
	if e.Type == "AllBlocksCleared" {
		f, order = map[string]any{"type": e.Type}, []string{"type"}
	}
	f["locality"], f["session_id"] = "LOCAL", []any{nil, true, 1.5}
	order = append(order, "locality", "session_id")
	if e.WideHeaders {
		must(enc.Encode(rawHeader(len(order))))
	} else {
		must(enc.EncodeMapLen(len(order)))
	}
	for _, k := range order {
		must(enc.EncodeString(k))
		must(enc.Encode(f[k]))
	}
}

// rawHeader is a map header of 16 bits however few fields there are, as
// msgspec writes it.
func rawHeader(n int) msgpack.RawMessage { return msgpack.RawMessage{0xde, byte(n >> 8), byte(n)} }

// generic decodes a payload with the reflecting decoder and describes every
// event by rules written down once more.
func generic(t interface{ Fatal(...any) }, payload []byte) []string {
	var batch []any
	if err := msgpack.Unmarshal(payload, &batch); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, raw := range batch[1].([]any) {
		f, ok := raw.(map[string]any)
		if !ok {
			row := raw.([]any)
			_, order := wireEvent{Type: row[0].(string)}.fields()
			f = map[string]any{}
			for i, v := range row {
				if i < len(order) {
					f[order[i]] = v
				}
			}
		}
		out = append(out, describeGeneric(f))
	}
	return out
}

func describeGeneric(f map[string]any) string {
	if f["type"] == "BlockMoved" {
		return "unknown"
	}
	if f["type"] == "AllBlocksCleared" {
		return "cleared"
	}
	tiers := map[string]string{"": "device", "GPU": "device", "CPU": "host", "cpu_Tier2": "disk"}
	medium, _ := f["medium"].(string)
	tier, ok := tiers[medium]
	if !ok {
		return "unknown medium"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s group %v on %s:", f["type"], asUint(f["group_idx"]), tier)
	lora, _ := f["lora_name"].(string)
	for i, h := range f["block_hashes"].([]any) {
		fmt.Fprintf(&b, " %x", asHash(h))
		if f["type"] != "BlockStored" {
			continue
		}
		size := int(asUint(f["block_size"]))
		for _, v := range f["token_ids"].([]any)[i*size : (i+1)*size] {
			fmt.Fprintf(&b, ",%d", asUint(v))
		}
		keys, _ := f["extra_keys"].([]any)[i].([]any)
		for _, k := range keys {
			switch k := k.(type) {
			case string:
				if k == lora {
					continue
				}
				if i == 0 && f["parent_block_hash"] == nil {
					fmt.Fprintf(&b, "(salt %s)", k)
				} else {
					fmt.Fprintf(&b, "(mm %s 0)", k)
				}
			case []byte:
				fmt.Fprintf(&b, "(bytes %s)", k)
			case []any:
				fmt.Fprintf(&b, "(mm %s %d)", k[0], int64(asUint(k[1])))
			}
		}
	}
	if f["type"] == "BlockStored" {
		if k, ok := f["kv_cache_spec_kind"].(string); ok && k == "mamba" {
			return "other kind"
		}
		if f["parent_block_hash"] != nil {
			fmt.Fprintf(&b, " after %x", asHash(f["parent_block_hash"]))
		}
		fmt.Fprintf(&b, " lora %q", lora)
	}
	return b.String()
}

func asHash(v any) uint64 {
	if b, ok := v.([]byte); ok {
		var h uint64
		for _, c := range b[len(b)-8:] {
			h = h<<8 | uint64(c)
		}
		return h
	}
	return asUint(v)
}

func asUint(v any) uint64 {
	r := reflect.ValueOf(v)
	if r.CanInt() {
		return uint64(r.Int())
	}
	return r.Uint()
}

// describeEvent writes an Event as describeGeneric writes its fields.
func describeEvent(e Event) string {
	switch {
	case e.Type == Unknown:
		return "unknown"
	case e.Type == Cleared:
		return "cleared"
	case e.Skipped == UnknownMedium:
		return "unknown medium"
	case e.Skipped == OtherKind:
		return "other kind"
	case e.Skipped != Applied:
		return e.Skipped.String()
	}
	var b strings.Builder
	name := map[EventType]string{Stored: "BlockStored", Removed: "BlockRemoved"}[e.Type]
	fmt.Fprintf(&b, "%s group %d on %s:", name, e.Group, e.Tier)
	for i, h := range e.Hashes {
		fmt.Fprintf(&b, " %x", uint64(h))
		if e.Type != Stored {
			continue
		}
		for _, tok := range e.Tokens[i*e.BlockSize : (i+1)*e.BlockSize] {
			fmt.Fprintf(&b, ",%d", tok)
		}
		if i == 0 && e.Salt != "" {
			fmt.Fprintf(&b, "(salt %s)", e.Salt)
		}
		b.WriteString(describeExtra(e.Extra(i)))
	}
	if e.Type == Stored {
		if e.HasParent {
			fmt.Fprintf(&b, " after %x", uint64(e.Parent))
		}
		fmt.Fprintf(&b, " lora %q", e.Lora)
	}
	return b.String()
}

// describeExtra knows the three items that the generator draws.
func describeExtra(x []byte) string {
	s := string(x)
	s = strings.ReplaceAll(s, "\x01\x05image\x0d", "(mm image -7)")
	s = strings.ReplaceAll(s, "\x01\x05other\x00", "(mm other 0)")
	s = strings.ReplaceAll(s, "\x01\x07adapter\x00", "(mm adapter 0)")
	return strings.ReplaceAll(s, "\x02\x06digest", "(bytes digest)")
}

func TestDecode_EqualsAGenericDecoder(t *testing.T) {
	var d Decoder
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 4).Draw(t, "events")
		var buf bytes.Buffer
		enc := msgpack.NewEncoder(&buf)
		enc.UseCompactInts(rapid.Bool().Draw(t, "compact"))
		if err := enc.EncodeArrayLen(3); err != nil {
			t.Fatal(err)
		}
		_ = enc.EncodeFloat64(1.5)
		_ = enc.EncodeArrayLen(n)
		for range n {
			drawEvent(t).encode(enc, t)
		}
		_ = enc.EncodeInt(2)
		if err := d.Reset(buf.Bytes()); err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			e, ok := d.Next()
			if !ok {
				break
			}
			got = append(got, describeEvent(*e))
		}
		if err := d.Err(); err != nil {
			t.Fatal(err)
		}
		// The adapter's name and digests come in an order that the canonical
		// encoding keeps but for bare strings, which come last.
		want := generic(t, buf.Bytes())
		for i := range want {
			want[i] = strings.ReplaceAll(want[i], "(mm adapter 0)(bytes digest)", "(bytes digest)(mm adapter 0)")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-generic +decoder):\n%s", diff)
		}
		if b := d.Batch(); b.Rank != 2 || !b.HasRank || b.Time != 1.5 {
			t.Fatalf("batch %+v", b)
		}
	})
}

func FuzzDecoder(f *testing.F) {
	for _, c := range []string{"vllm-0.19.1", "vllm-0.30.0", "sglang-0.5.23-default"} {
		for _, b := range readCapture(f, "testdata/captures/"+c+".jsonl").live[:20] {
			f.Add(b.payload)
		}
	}
	f.Add(bytes.Repeat([]byte{0x91}, 1000))
	f.Add([]byte{0x93, 0xc0, 0xdd, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte("\x93\xc0\x91\x95\xabBlockStored\xdd\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		var d Decoder
		if d.Reset(payload) != nil {
			return
		}
		for n := 0; ; n++ {
			e, ok := d.Next()
			if !ok {
				break
			}
			if n > len(payload) {
				t.Fatalf("%d events in %d bytes", n, len(payload))
			}
			// Memory is bounded by what was sent, whatever lengths it claims.
			if c := cap(e.Hashes) + cap(e.Tokens) + cap(e.extra); c > 8*len(payload)+64 {
				t.Fatalf("buffers of %d elements for %d bytes", c, len(payload))
			}
			if e.Type == Stored && e.Skipped == Applied && len(e.Tokens) > 0 && len(e.Tokens) != len(e.Hashes)*e.BlockSize {
				t.Fatalf("%d tokens for %d blocks of %d", len(e.Tokens), len(e.Hashes), e.BlockSize)
			}
			for i := range e.Hashes {
				_ = e.Extra(i)
			}
		}
	})
}

type nowhere struct{}

func (nowhere) Store(kvindex.Stored) int                             { return 0 }
func (nowhere) Remove([]kvindex.EngineHash, kvindex.Tier, uint8) int { return 0 }
func (nowhere) Clear()                                               {}
