package stack_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/warmpath/warmpath/benchmarks/stack"
)

// duplex has Envoy hand over bodies piece by piece.
func duplex(c *stack.Config) {
	c.RouterArgs = append(c.RouterArgs, "--envoy.body_mode=full_duplex_streamed")
}

func TestFullDuplex(t *testing.T) {
	t.Run("warm prefix", func(t *testing.T) { warmPrefixWins(t, duplex) })
	t.Run("forged headers", func(t *testing.T) { forgedHeaders(t, duplex) })
	t.Run("abort", func(t *testing.T) { abortReleases(t, duplex) })
	t.Run("16 MiB retried", func(t *testing.T) { retriedOnNext(t, duplex) })
	t.Run("traffic", func(t *testing.T) {
		const tokens = 15
		s := start(t, func(c *stack.Config) { slow(c); duplex(c) })
		if r := do(t, http.MethodGet, s.URL+"/v1/models", nil); r.status != http.StatusOK || r.endpoint() == "" {
			t.Errorf("GET: status %d from %q: %s", r.status, r.endpoint(), r.body)
		}
		expectContinue(t, s)
		body := large(t, 32*MiB+1)
		openAIError(t, do(t, http.MethodPost, s.URL+"/v1/completions", body), http.StatusRequestEntityTooLarge, "body_too_large")
		openAIError(t, chunked(t, s, body), http.StatusRequestEntityTooLarge, "body_too_large")
		all := streams(t, s, 60, tokens)
		if n := inFlight(t, s); n != 60 {
			t.Errorf("%d in flight with 60 streams running", n)
		}
		for _, a := range all[:20] {
			a.abort()
		}
		eventually(t, "40 are in flight after 20 aborts", func() bool { return inFlight(t, s) == 40 })
		unbroken(t, all[20:], tokens)
		eventually(t, "none is in flight at the end", func() bool { return inFlight(t, s) == 0 })
		faultless(t, s)
	})
	// The request leaves the mode when its answer begins, so the answer's body can
	// be asked for.
	t.Run("sampled", func(t *testing.T) {
		s := start(t, func(c *stack.Config) { duplex(c); c.RouterArgs = append(c.RouterArgs, "--extproc.sample_responses=1") })
		for i := range 4 {
			complete(t, s, ids(uint64(i), 40))
		}
		eventually(t, "an answer is compared, once blocks are known", func() bool {
			return metric(t, s, "warmpath_extproc_samples_total", map[string]string{"result": "compared"}) > 0
		})
		if n := metric(t, s, "warmpath_extproc_samples_total", map[string]string{"result": "cut"}); n != 0 {
			t.Errorf("%v answers were not seen to their ends", n)
		}
		faultless(t, s)
	})
	t.Run("kill", func(t *testing.T) { killedWith(t, duplex) })
	t.Run("drain", func(t *testing.T) { drained(t, duplex) })
}

// chunked sends a body without its length.
func chunked(t *testing.T, s *stack.Stack, body []byte) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(bounded(t), http.MethodPost, s.URL+"/v1/completions", io.MultiReader(bytes.NewReader(body)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, text}
}
