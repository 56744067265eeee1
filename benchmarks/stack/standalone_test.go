package stack_test

import (
	"net/http"
	"path/filepath"
	"testing"

	"github.com/warmpath/warmpath/benchmarks/stack"
)

// standalone is an Envoy beside the router, as the manifests of that name have
// it: engines are found by the name of their Service.
func standalone(c *stack.Config) {
	c.Manifests, c.ByName = filepath.Join(manifests, "standalone"), true
}

func TestStandalone(t *testing.T) {
	t.Run("warm prefix", func(t *testing.T) { warmPrefixWins(t, standalone) })
	t.Run("forged headers", func(t *testing.T) { forgedHeaders(t, standalone) })
	t.Run("large bodies and a killed router", func(t *testing.T) {
		s := start(t, standalone)
		if r := do(t, http.MethodPost, s.URL+"/v1/completions", large(t, 16*MiB)); r.status != http.StatusOK || r.endpoint() == "" {
			t.Errorf("16 MiB: status %d from %q: %.200s", r.status, r.endpoint(), r.body)
		}
		openAIError(t, do(t, http.MethodPost, s.URL+"/v1/completions", large(t, 33*MiB)), http.StatusRequestEntityTooLarge, "body_too_large")
		s.Router.Kill()
		for i := range 20 {
			if r := complete(t, s, ids(uint64(i), 50)); r.endpoint() != "" {
				t.Error("an answer carries the decision of a router that is dead")
			}
		}
	})
}

// An endpoint picker as a gateway of InferencePools asks it: bodies in full
// duplex, the destination and the served endpoint in the metadata. The hooks of
// the conformance suite show both.
func TestEndpointPicker(t *testing.T) {
	s := start(t, func(c *stack.Config) {
		duplex(c)
		c.RouterArgs = append(c.RouterArgs, "--extproc.conformance=true")
	})
	const selection, served = "test-epp-endpoint-selection", "x-conformance-test-served-endpoint"
	for _, e := range s.Engines {
		for range 3 {
			r := complete(t, s, ids(1, 50), selection, e.HTTP, "routing-strategy", "random")
			if r.endpoint() != e.HTTP || r.header.Get(served) != e.HTTP {
				t.Errorf("%s was selected, chosen was %s, and %q is said to have answered", e.HTTP, r.endpoint(), r.header.Get(served))
			}
		}
	}
	seen := map[string]bool{}
	for i := range 30 {
		r := complete(t, s, ids(uint64(i), 50), selection, s.Engines[0].HTTP+", "+s.Engines[1].HTTP, "routing-strategy", "random")
		seen[r.header.Get(served)] = true
	}
	if !seen[s.Engines[0].HTTP] || !seen[s.Engines[1].HTTP] || len(seen) != 2 {
		t.Errorf("two engines were selected, and %v have answered", seen)
	}
	if r := complete(t, s, ids(1, 50), selection, "256.256.256.256"); r.endpoint() == "" || r.header.Get(served) != r.endpoint() {
		t.Errorf("nothing was selected: chosen was %q, and %q is said to have answered", r.endpoint(), r.header.Get(served))
	}
	faultless(t, s)
}
