package kvindex

import (
	"fmt"
	"testing"
	"time"
)

// filled returns an index where holders publishers hold the first shared
// blocks of a chain and the first of them all of it.
func filled(tb testing.TB, holders, shared, length int) (*Index, []*Writer, []BlockHash) {
	tb.Helper()
	ix, err := New(Config{})
	if err != nil {
		tb.Fatal(err)
	}
	contents := make([]ContentHash, length)
	names := make([]EngineHash, length)
	for i := range contents {
		contents[i] = ContentHash(hashName(EngineHash(i + 1)))
		names[i] = EngineHash(hashName(EngineHash(i + 100_001)))
	}
	var ws []*Writer
	for id := range holders {
		w, err := ix.Open(Publisher{ID: PublisherID(id), Endpoint: EndpointID(id)})
		if err != nil {
			tb.Fatal(err)
		}
		n := shared
		if id == 0 {
			n = length
		}
		for from := 0; from < n; from += 64 {
			to := min(from+64, n)
			s := Stored{Root: machineRoot, Names: names[from:to], Contents: contents[from:to]}
			if from > 0 {
				s.HasParent, s.Parent = true, names[from-1]
			}
			w.Store(s)
		}
		ws = append(ws, w)
	}
	return ix, ws, AppendChain(nil, machineRoot, contents)
}

func BenchmarkMatch(b *testing.B) {
	for _, c := range []struct{ holders, shared, length int }{{1, 64, 64}, {64, 64, 64}, {64, 64, 512}, {1000, 64, 192}} {
		b.Run(fmt.Sprintf("holders=%d/blocks=%d", c.holders, c.length), func(b *testing.B) {
			ix, _, chain := filled(b, c.holders, c.shared, c.length)
			chain = append(chain, 1, 2, 3)
			var dst []Match
			now := time.Unix(0, 0)
			b.ReportAllocs()
			for b.Loop() {
				dst = ix.Match(dst[:0], chain, now, nil)
			}
			if len(dst) != c.holders {
				b.Fatalf("%d matches, want %d", len(dst), c.holders)
			}
		})
	}
}
