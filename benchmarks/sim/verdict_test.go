package sim

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		name  string
		a, b  Estimate
		more  bool
		seeds int
		want  Verdict
	}{
		{"equal", Estimate{Mean: 1, CI95: 0.5}, Estimate{Mean: 1, CI95: 0.5}, false, 5, Same},
		{"equal, once", Estimate{Mean: 1}, Estimate{Mean: 1}, false, 1, Same},
		{"once proves nothing", Estimate{Mean: 1}, Estimate{Mean: 2}, false, 1, TooNoisy},
		{"less time", Estimate{Mean: 1, CI95: 0.05}, Estimate{Mean: 0.8, CI95: 0.04}, false, 5, Better},
		{"more time", Estimate{Mean: 1, CI95: 0.05}, Estimate{Mean: 1.25, CI95: 0.05}, false, 5, Worse},
		{"more hits", Estimate{Mean: 0.5, CI95: 0.01}, Estimate{Mean: 0.6, CI95: 0.01}, true, 5, Better},
		{"less hits", Estimate{Mean: 0.5, CI95: 0.01}, Estimate{Mean: 0.4, CI95: 0.01}, true, 5, Worse},
		{"different, but by less than the margin", Estimate{Mean: 1, CI95: 0.001}, Estimate{Mean: 1.01, CI95: 0.001}, false, 5, Same},
		{"overlap", Estimate{Mean: 1, CI95: 0.3}, Estimate{Mean: 1.2, CI95: 0.3}, false, 5, TooNoisy},
		{"nothing was hit", Estimate{}, Estimate{Mean: 0.1, CI95: 0.01}, true, 5, TooNoisy},
	} {
		r, got := Judge(c.a, c.b, c.more, c.seeds, Margin)
		if got != c.want {
			t.Errorf("%s: %s (%+v), want %s", c.name, got, r, c.want)
		}
	}
}

// Whatever is compared, the other way round is the opposite.
func TestVerdict_Opposite(t *testing.T) {
	opposite := map[Verdict]Verdict{Better: Worse, Worse: Better, TooNoisy: TooNoisy}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) Estimate {
			return Estimate{Mean: rapid.Float64Range(0.01, 100).Draw(t, label), CI95: rapid.Float64Range(0, 10).Draw(t, label+" ci")}
		}
		a, b := draw("a"), draw("b")
		r, v := Judge(a, b, false, 5, 0)
		back, w := Judge(b, a, false, 5, 0)
		if a != b && (w != opposite[v] || math.Abs(r.Mean*back.Mean-1) > 1e-9 || math.Abs(r.Low*back.High-1) > 1e-9) {
			t.Fatalf("%v beside %v is %s %+v, the other way round %s %+v", b, a, v, r, w, back)
		}
		if r.Low > r.Mean || r.Mean > r.High {
			t.Fatalf("%+v is not an interval", r)
		}
	})
}
