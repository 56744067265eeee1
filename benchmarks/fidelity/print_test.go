package fidelity

import (
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	r := Result{
		Workload: "chat", Requests: 300, Endpoints: 2, Profile: "8b", Capacity: 1, Speed: 0.5, Seeds: 7,
		Rows: []Row{{
			Strategy: "random", Scale: 2,
			Simulated: Simulated{Figures{0.5, 0.1, 0.2, []int{160, 140}}, 0.49, 0.51},
			Real:      Real{Figures{0.51, 0.12, 0.22, []int{155, 145}}, 0.11, 0.002, 0.009},
			HitPoints: 1, MeanPercent: 20, P90Percent: 10,
		}},
	}
	var b strings.Builder
	if err := r.Table(&b); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(b.String(), "\n\n")
	want := `
strategy            world       token hit     of its seeds    mean TTFT  by the engines  p90 TTFT  sent late, p95 (most)  requests per endpoint
random, 2 × slower  simulated   50.00 %       49.00 to 51.00  100.0 ms                   200.0 ms                         160 140
                    real        51.00 %                       120.0 ms   110.0 ms        220.0 ms  2.0 ms (9.0 ms)        155 145
                    difference  +1.00 points                  +20 %                      +10 %

Simulated figures are means over 7 seeds of the router, requests per endpoint the most first.
`
	if got != want[1:] {
		t.Errorf("got\n%swant%s", got, want)
	}
}

func TestProgress_String(t *testing.T) {
	p := Progress{Strategy: "random", Scale: 2, Answered: 3, Total: 9, At: 4 * time.Second, Span: 8 * time.Second, Late: 12340 * time.Microsecond, Ended: true, TooLate: true}
	want := "random: 3 of 9 requests answered, 4 of 8 s, sent at most 12.3ms late, 2 × slower: the machine is too slow, again at half the speed"
	if got := p.String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
