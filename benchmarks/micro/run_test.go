package micro

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/warmpath/warmpath/benchmarks/indexops"
)

func stream(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ops.bin")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := indexops.Generate(f, indexops.Params{Seed: 5, Pairs: 20_000, Churn: 5_000, Queries: 50, HoleQueries: 40}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRun_ReportsEveryFigureAndNoWrongAnswer(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"--ops", stream(t), "--passes", "1", "--quick", "--json"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	var rep struct {
		FileSHA256 string                    `json:"file_sha256"`
		HeldPairs  int                       `json:"held_pairs"`
		Indexes    map[string]map[string]any `json:"indexes"`
	}
	if err := json.Unmarshal(out.Bytes(), &rep); err != nil {
		t.Fatal(err)
	}
	if len(rep.FileSHA256) != 64 || rep.HeldPairs < 20_000 {
		t.Errorf("sha256 %q, %d pairs", rep.FileSHA256, rep.HeldPairs)
	}
	for _, index := range []string{"warmpath", "naive"} {
		got := rep.Indexes[index]
		for _, k := range []string{
			"store_ns_per_block", "churn_store_ns_per_block", "remove_ns_per_block", "match_p50_us", "match_p99_us", "bytes_per_pair_load",
			"bytes_per_pair_churn", "allocs_per_match", "hash_512_us", "over_credit_pods", "under_credit_pods", "wrong_queries", "queries", "median",
		} {
			if _, ok := got[k]; !ok {
				t.Errorf("%s: no %s", index, k)
			}
		}
		if got["wrong_queries"] != 0.0 || got["queries"].(float64) < 100 {
			t.Errorf("%s: %v wrong of %v queries", index, got["wrong_queries"], got["queries"])
		}
		if got["allocs_per_match"] != 0.0 && !raceEnabled {
			t.Errorf("%s: %v allocations in a match", index, got["allocs_per_match"])
		}
	}
}

// liar is right but for one pod.
type liar struct {
	contender
	by int
}

func (l *liar) answer() depths {
	d := l.contender.answer()
	if d[3] > 0 {
		d[3] += uint16(l.by)
	}
	return d
}

func TestCheck_CatchesALiar(t *testing.T) {
	file, err := indexops.Open(stream(t))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, by := range []int{-1, 0, 1} {
		r := &session{file: file, feed: newFeed(), progress: io.Discard}
		honest, err := newNaive(false)
		if err != nil {
			t.Fatal(err)
		}
		l := &lane{samples: map[string][]float64{}}
		c := &liar{honest, by}
		r.feed.play(c, file.Ops(indexops.Load), nil)
		r.feed.play(c, file.Ops(indexops.Churn), nil)
		r.match(l, c, "", indexops.Queries)
		if (l.wrong > 0) != (by != 0) || (l.overCredit > 0) != (by > 0) || (l.underCredit > 0) != (by < 0) {
			t.Errorf("off by %d: %d wrong, %d over, %d under", by, l.wrong, l.overCredit, l.underCredit)
		}
	}
}

// Engines with names of their own must be as right as those that share.
func TestWarmpath_IsExactWithPrivateNames(t *testing.T) {
	path := stream(t)
	file, err := indexops.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, build := range []func(bool) (contender, error){newWarmpath, newNaive} {
		c, err := build(true)
		if err != nil {
			t.Fatal(err)
		}
		r := &session{file: file, feed: newFeed(), progress: io.Discard}
		r.feed.private = true
		l := &lane{samples: map[string][]float64{}}
		r.feed.play(c, file.Ops(indexops.Load), nil)
		r.feed.play(c, file.Ops(indexops.Churn), nil)
		r.match(l, c, "", indexops.Queries)
		r.feed.playInOrder(c, file.Ops(indexops.Holes))
		r.match(l, c, "", indexops.HoleQueries)
		if l.wrong > 0 || l.queries < 90 {
			t.Errorf("%d of %d wrong", l.wrong, l.queries)
		}
	}
}

func TestRun_NamesWhatIsMissing(t *testing.T) {
	err := run(context.Background(), nil, io.Discard, io.Discard)
	if err == nil || errors.Is(err, errWrong) {
		t.Errorf("got %v", err)
	}
}
