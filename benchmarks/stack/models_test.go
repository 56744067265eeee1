package stack_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/warmpath/warmpath/benchmarks/stack"
)

// ask sends a completion request for a model, and tells it in the header, which
// may be empty.
func ask(t *testing.T, s *stack.Stack, model, header string) reply {
	t.Helper()
	var headers []string
	if header != "" {
		headers = []string{"x-gateway-model-name", header}
	}
	body := fmt.Appendf(nil, `{"model":%q,"prompt":[1,2,3],"max_tokens":1}`, model)
	return do(t, http.MethodPost, s.URL+"/v1/completions", body, headers...)
}

func TestModelsKeepToTheirEngines(t *testing.T) {
	s := start(t, func(c *stack.Config) { c.Engines, c.Models = 4, []string{"org/one-1.0", "two"} })
	serving := map[string]bool{}
	for i, e := range s.Engines {
		serving[fmt.Sprint([]string{"org/one-1.0", "two"}[i%2], e.HTTP)] = true
	}
	for range 10 {
		for _, model := range []string{"org/one-1.0", "two"} {
			for _, header := range []string{"", model, "unheard of"} {
				r := ask(t, s, model, header)
				if r.status != http.StatusOK || !serving[fmt.Sprint(model, r.endpoint())] {
					t.Fatalf("%s, header %q: status %d from %q: %s", model, header, r.status, r.endpoint(), r.body)
				}
			}
		}
	}
	faultless(t, s)

	s.Router.Kill()
	for i := range 40 {
		for _, model := range []string{"org/one-1.0", "two"} {
			if r := ask(t, s, model, model); r.status != http.StatusOK || r.endpoint() != "" {
				t.Fatalf("request %d without a router, told that its model is %s: status %d: %s", i, model, r.status, r.body)
			}
		}
	}
	// What does not tell its model goes anywhere: that is the limit, and what
	// makes the header worth setting.
	wrong := 0
	for range 40 {
		switch r := ask(t, s, "two", ""); r.status {
		case http.StatusOK:
		case http.StatusNotFound:
			wrong++
		default:
			t.Fatalf("status %d: %s", r.status, r.body)
		}
	}
	if wrong == 0 || wrong == 40 {
		t.Errorf("%d of 40 requests that do not tell their model went to an engine without it", wrong)
	}
}
