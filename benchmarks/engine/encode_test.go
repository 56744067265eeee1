package engine

import (
	"encoding/hex"
	"testing"

	"github.com/warmpath/warmpath/kvindex"
)

// The fixtures are the bytes of the msgspec encoder for vLLM's event classes.
func TestAppendBatchFixtures(t *testing.T) {
	first := BlockStored{
		Hashes: []kvindex.EngineHash{9561501211280363793}, Root: true,
		Tokens: []kvindex.TokenID{1, 2, 3, 4}, BlockSize: 4, Medium: MediumGPU,
		ExtraKeys: [][]string{nil}, Kind: KindFullAttention,
	}
	second := first
	second.Hashes = []kvindex.EngineHash{15292913576410714033}
	second.Root, second.Parent = false, 9561501211280363793
	second.Tokens = []kvindex.TokenID{5, 6, 7, 8}
	tests := []struct {
		name   string
		format Format
		events []Event
		rank   int
		want   string
	}{
		{
			name: "two chained blocks", format: FormatMap, events: []Event{first, second},
			want: "93cb3ff8000000000000928ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391cf84b146b151d55111b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964739401020304aa626c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b65797391c0a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e8ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391cfd43b57df56b58fb1b1706172656e745f626c6f636b5f68617368cf84b146b151d55111a9746f6b656e5f6964739405060708aa626c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b65797391c0a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e00",
		},
		{
			name: "optional fields left out", format: FormatMap, events: []Event{BlockStored{
				Hashes: []kvindex.EngineHash{1, 18446744073709551615}, Root: true,
				Tokens: []kvindex.TokenID{1, 2, 3, 4}, BlockSize: 2, Medium: MediumGPU, GroupIdx: NoGroup,
			}},
			want: "93cb3ff80000000000009188a474797065ab426c6f636b53746f726564ac626c6f636b5f6861736865739201cfffffffffffffffffb1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964739401020304aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c000",
		},
		{
			name: "removed", format: FormatMap,
			events: []Event{BlockRemoved{Hashes: []kvindex.EngineHash{9223372036854775809}, Medium: MediumGPU}},
			want:   "93cb3ff80000000000009184a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391cf8000000000000001a66d656469756da3475055a967726f75705f6964780000",
		},
		{
			name: "cleared", format: FormatMap, events: []Event{AllBlocksCleared{}},
			want: "93cb3ff80000000000009181a474797065b0416c6c426c6f636b73436c656172656400",
		},
		{
			name: "arrays of 0.23", format: FormatArray12,
			events: []Event{first, BlockRemoved{Hashes: []kvindex.EngineHash{15292913576410714033}, Medium: MediumGPU}},
			want:   "93cb3ff8000000000000929cab426c6f636b53746f72656491cf84b146b151d55111c0940102030404c0a3475055c091c000ae66756c6c5f617474656e74696f6ec094ac426c6f636b52656d6f76656491cfd43b57df56b58fb1a34750550000",
		},
		{
			name: "arrays of 0.19", format: FormatArray,
			events: []Event{first, BlockRemoved{Hashes: []kvindex.EngineHash{5}, Medium: MediumGPU}},
			want:   "93cb3ff80000000000009299ab426c6f636b53746f72656491cf84b146b151d55111c0940102030404c0a3475055c091c093ac426c6f636b52656d6f7665649105a347505500",
		},
		{
			name: "array cleared", format: FormatArray, events: []Event{AllBlocksCleared{}},
			want: "93cb3ff80000000000009191b0416c6c426c6f636b73436c656172656400",
		},
		{
			name: "adapter, salt and rank", format: FormatArray, rank: 1,
			events: []Event{BlockStored{
				Hashes: []kvindex.EngineHash{200, 70000}, Root: true, Tokens: []kvindex.TokenID{300, 2},
				BlockSize: 1, LoRAID: 1, LoRAName: "ad", Medium: MediumGPU,
				ExtraKeys: [][]string{{"ad", "s"}, {"ad"}},
			}},
			want: "93cb3ff80000000000009199ab426c6f636b53746f72656492ccc8ce00011170c092cd012c020101a3475055a26164" +
				"9292a26164a17391a2616401",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := hex.EncodeToString(AppendBatch(nil, tt.format, 1.5, tt.events, tt.rank))
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestAppendBatchAllocatesNothing(t *testing.T) {
	events := []Event{
		BlockStored{Hashes: make([]kvindex.EngineHash, 8), Tokens: make([]kvindex.TokenID, 128), BlockSize: 16},
		BlockRemoved{Hashes: make([]kvindex.EngineHash, 1)},
	}
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { buf = AppendBatch(buf[:0], FormatMap, 1.5, events, 0) }); n != 0 {
		t.Errorf("%v allocations per batch, want 0", n)
	}
}
