package extproc

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
)

// Of arrays of ids, and of what is nearly one, tokens takes exactly what
// encoding/json takes, and leaves the scanner behind it.
func TestScanner_Tokens(t *testing.T) {
	id := rapid.OneOf(
		rapid.Map(rapid.Uint32(), func(n uint32) string { return fmt.Sprint(n) }),
		rapid.Map(rapid.Uint32Range(0, 200_000), func(n uint32) string { return fmt.Sprint(n) }),
		rapid.SampledFrom([]string{"0", "9", "10", "9999999", "10000000", "99999999", "100000000", "4294967295"}),
	)
	odd := rapid.SampledFrom([]string{
		"4294967296", "99999999999", "00", "012", "-1", "1.5", "1e3", "1 2", "", "null", `"1"`, "[1]", "1/", "1:", "\x7f", "\xff1", "1\x0b",
	})
	space := rapid.SampledFrom([]string{"", "", " ", "\n\t", "\r "})
	rapid.Check(t, func(t *rapid.T) {
		var list []string
		for range rapid.IntRange(0, 12).Draw(t, "ids") {
			v := id.Draw(t, "id")
			if rapid.IntRange(0, 20).Draw(t, "odd") == 0 {
				v = odd.Draw(t, "what")
			}
			list = append(list, space.Draw(t, "before")+v+space.Draw(t, "after"))
		}
		src := "[" + strings.Join(list, ",") + rapid.SampledFrom([]string{"]", "]", "]", "", ",]", " ] "}).Draw(t, "end")
		var want []kvindex.TokenID
		if err := json.Unmarshal([]byte(src), &want); err != nil || strings.Contains(src, "null") || len(want) == 0 {
			want = nil
		}
		rest := rapid.SampledFrom([]string{"", ",", `,"x":[1,2]}`}).Draw(t, "rest")
		s := scanner{src: []byte("  " + strings.TrimSpace(src) + rest), pos: 2}
		got := s.tokens()
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("%q (-encoding/json +scanner):\n%s", src, d)
		}
		wantPos := 2
		if want != nil {
			wantPos += len(strings.TrimSpace(src))
		}
		if s.pos != wantPos || s.err != nil {
			t.Fatalf("%q: the scanner is at %d, want %d; err %v", src, s.pos, wantPos, s.err)
		}
	})
}

func idsBody(n int) []byte {
	body := []byte(`{"model":"demo","prompt":[`)
	for i := range n {
		if i > 0 {
			body = append(body, ", "...)
		}
		body = fmt.Append(body, uint32(i)*2654435761%128000)
	}
	return append(body, "]}"...)
}

// Of a prompt of ids the model and the ids are copied.
func TestParseJSON_AllocationsOfIDs(t *testing.T) {
	body := idsBody(5000)
	n := testing.AllocsPerRun(20, func() {
		d, err := parseJSON(apiCompletion, body, nil, false)
		if err != nil || len(d.prompt.Tokens) != 5000 || cap(d.prompt.Tokens) != 5000 || d.prompt.Tokens[1] > math.MaxInt32 {
			t.Fatalf("%d ids, %v", len(d.prompt.Tokens), err)
		}
	})
	if n != 2 {
		t.Errorf("%v allocations, want 2", n)
	}
}

func BenchmarkParseJSON_IDs(b *testing.B) {
	body := idsBody(16000)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseJSON(apiCompletion, body, nil, false); err != nil {
			b.Fatal(err)
		}
	}
}
