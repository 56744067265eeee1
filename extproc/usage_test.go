package extproc

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"
)

func TestUsageReader(t *testing.T) {
	const openAI = `{"prompt_tokens":10,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}`
	for _, tc := range []struct {
		name, body string
		events     bool
		want       usage
		found      bool
	}{
		{"openai", `{"id":"x","usage":` + openAI + `}`, false, usage{10, 8}, true},
		{"openai, no details", `{"usage":{"prompt_tokens":10,"prompt_tokens_details":null}}`, false, usage{10, -1}, true},
		{"openai, null", `{"usage":null}`, false, usage{}, false},
		{"responses", `{"usage":{"input_tokens":10,"input_tokens_details":{"cached_tokens":3}}}`, false, usage{10, 3}, true},
		{"messages", `{"usage":{"input_tokens":4,"cache_read_input_tokens":5,"cache_creation_input_tokens":1}}`, false, usage{10, 5}, true},
		{"negative", `{"usage":{"prompt_tokens":-1,"prompt_tokens_details":{"cached_tokens":-2}}}`, false, usage{0, 0}, true},
		{"not JSON", `usage`, false, usage{}, false},
		{"empty", ``, false, usage{}, false},
		{"too long", `{"usage":` + openAI + `,"x":"` + strings.Repeat("x", maxAnswer) + `"}`, false, usage{}, false},
		{"events", "data: {\"usage\":null}\r\n\r\ndata:{\"usage\":" + openAI + "}\r\n\r\ndata: [DONE]\n\n", true, usage{10, 8}, true},
		{"the last one counts", "data: {\"usage\":{\"prompt_tokens\":1}}\n\ndata: {\"usage\":" + openAI + "}\n\n", true, usage{10, 8}, true},
		{"messages, events", "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":1,\"cache_read_input_tokens\":9}}}\n\n" +
			"data: {\"usage\":{\"output_tokens\":3}}\n\n", true, usage{10, 9}, true},
		{"responses, events", "data: {\"response\":{\"usage\":{\"input_tokens\":7,\"input_tokens_details\":{\"cached_tokens\":7}}}}\n", true, usage{7, 7}, true},
		{"a long line is skipped", "data: {\"usage\":" + openAI + ",\"x\":\"" + strings.Repeat("x", maxEvent) + "\"}\n" +
			"data: {\"usage\":{\"prompt_tokens\":3}}\n", true, usage{3, -1}, true},
		{"unfinished line", "data: {\"usage\":" + openAI + "}", true, usage{}, false},
		{"a comment", ": {\"usage\":" + openAI + "}\n", true, usage{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				r := usageReader{events: tc.events}
				for rest := tc.body; rest != ""; {
					n := rapid.IntRange(1, min(len(rest), 200_000)).Draw(t, "piece")
					piece := []byte(rest[:n])
					r.write(piece)
					clear(piece) // the reader may not have kept it
					rest = rest[n:]
				}
				if got, found := r.end(); got != tc.want || found != tc.found {
					t.Fatalf("%+v, %v; want %+v, %v", got, found, tc.want, tc.found)
				}
			})
		})
	}
}

func FuzzUsageReader(f *testing.F) {
	f.Add([]byte("data: {\"usage\":{\"prompt_tokens\":1}}\n"), true, 3)
	f.Add([]byte(`{"usage":{"prompt_tokens":1}}`), false, 5)
	f.Fuzz(func(t *testing.T, body []byte, events bool, cut int) {
		whole, pieces := usageReader{events: events}, usageReader{events: events}
		whole.write(body)
		cut = max(0, min(cut, len(body)))
		pieces.write(body[:cut])
		pieces.write(body[cut:])
		a, foundA := whole.end()
		b, foundB := pieces.end()
		if a != b || foundA != foundB {
			t.Errorf("whole %+v %v, cut at %d %+v %v", a, foundA, cut, b, foundB)
		}
	})
}

func TestSampler(t *testing.T) {
	for _, share := range []float64{0, 0.001, 0.25, 0.999999, 1} {
		s, picked := newSampler(share), 0
		const n = 100_000
		longest, run := 0, 0
		for i := range uint64(n) {
			if s.picks(i + 1) {
				picked++
				run = 0
				continue
			}
			run++
			longest = max(longest, run)
		}
		if got := float64(picked) / n; got < share-0.0002 || got > share+0.0002 {
			t.Errorf("share %v: %v picked", share, got)
		}
		if share > 0 && float64(longest) > 4/share {
			t.Errorf("share %v: %d in a row were not picked", share, longest)
		}
	}
}

func TestMetrics_ForgetEndpoints(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := newMetrics(reg)
	for i := range 3 {
		m.compare(fmt.Sprintf("e%d", i+1), usage{10, 5}, 4)
	}
	m.retain(newPool(t, 2).Snapshot().Endpoints)
	for _, v := range []*prometheus.CounterVec{m.prompt, m.predicted, m.cached} {
		if n := testutil.CollectAndCount(v); n != 2 {
			t.Errorf("%d series are left, want 2", n)
		}
	}
	if got := testutil.ToFloat64(m.cached.WithLabelValues("e2")); got != 5 {
		t.Errorf("cached tokens of an endpoint that stayed: %v, want 5", got)
	}
}
