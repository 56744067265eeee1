package engine

import (
	"encoding/hex"
	"testing"

	"github.com/warmpath/warmpath/kvindex"
)

// The digests of vLLM's own hasher for the tokens 1 to 8 in blocks of 4.
func TestSHA256CBORVectors(t *testing.T) {
	tests := []struct {
		seed, none, first, second string
		wire                      [2]kvindex.EngineHash
	}{
		{
			seed:   DefaultHashSeed,
			none:   "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0",
			first:  "58d0879dff3800f65f8c5fd449d73048c0f7699dd238a03b84b146b151d55111",
			second: "e1bc29393a2da9fd798f35ff04d215f846aee6df4b803ce3d43b57df56b58fb1",
			wire:   [2]kvindex.EngineHash{9561501211280363793, 15292913576410714033},
		},
		{
			seed: "0",
			none: "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e",
			wire: [2]kvindex.EngineHash{2164874634404590027, 17270480062156288726},
		},
		{
			seed: "42",
			wire: [2]kvindex.EngineHash{5988051177307384287},
		},
	}
	for _, tt := range tests {
		h, err := newHasher(HashSHA256CBOR, tt.seed)
		if err != nil {
			t.Fatal(err)
		}
		first := h.block(h.none, []kvindex.TokenID{1, 2, 3, 4}, "", "")
		second := h.block(first, []kvindex.TokenID{5, 6, 7, 8}, "", "")
		for _, c := range []struct {
			name string
			got  Digest
			want string
		}{{"none", h.none, tt.none}, {"first", first, tt.first}, {"second", second, tt.second}} {
			if got := hex.EncodeToString(c.got[:]); c.want != "" && got != c.want {
				t.Errorf("seed %q: %s digest %s, want %s", tt.seed, c.name, got, c.want)
			}
		}
		if got := first.Wire(); got != tt.wire[0] {
			t.Errorf("seed %q: first block on the wire %d, want %d", tt.seed, got, tt.wire[0])
		}
		if got := second.Wire(); tt.wire[1] != 0 && got != tt.wire[1] {
			t.Errorf("seed %q: second block on the wire %d, want %d", tt.seed, got, tt.wire[1])
		}
	}
}

func TestExtraKeysSeparateChains(t *testing.T) {
	for _, algorithm := range []HashAlgorithm{HashSHA256CBOR, HashXXH3CBOR} {
		h, err := newHasher(algorithm, DefaultHashSeed)
		if err != nil {
			t.Fatal(err)
		}
		tokens := []kvindex.TokenID{1, 24, 256, 70000}
		seen := make(map[Digest]string)
		for _, k := range [][2]string{{}, {"a"}, {"", "b"}, {"a", "b"}, {"ab"}, {"b", "a"}} {
			d := h.block(h.none, tokens, k[0], k[1])
			if d != h.block(h.none, tokens, k[0], k[1]) {
				t.Errorf("%s: %q hashes differently the second time", algorithm, k)
			}
			if other, ok := seen[d]; ok {
				t.Errorf("%s: %q and %s have the same digest", algorithm, k, other)
			}
			seen[d] = k[0] + "/" + k[1]
		}
	}
}

func TestHashAllocatesNothing(t *testing.T) {
	h, err := newHasher(HashSHA256CBOR, DefaultHashSeed)
	if err != nil {
		t.Fatal(err)
	}
	tokens := make([]kvindex.TokenID, 16)
	d := h.block(h.none, tokens, "adapter", "salt")
	if n := testing.AllocsPerRun(100, func() { d = h.block(d, tokens, "adapter", "salt") }); n != 0 {
		t.Errorf("%v allocations per block, want 0", n)
	}
}
