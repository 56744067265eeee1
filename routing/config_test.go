package routing

import (
	"testing"
)

func TestConfig_Validate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the default is not valid: %v", err)
	}
	bad := Config{Strategy: "best", Fallbacks: -1, Decisions: 1 << 20}
	want := `strategy: "best" is not a strategy; use one of least-request, prefix-cache, random
fallbacks: -1 is out of range; use 0 to 16
decisions: 1048576 is out of range; use 0 to 65536`
	if err := bad.Validate(); err == nil || err.Error() != want {
		t.Errorf("Validate:\n%v\nwant\n%s", err, want)
	}
}

func TestReasons_HaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]Reason{}
	for _, r := range Reasons() {
		if other, dup := seen[r.String()]; dup {
			t.Errorf("reasons %d and %d share the name %q", r, other, r)
		}
		seen[r.String()] = r
	}
	if len(seen) != len(reasonNames) {
		t.Errorf("%d names for %d reasons", len(seen), len(reasonNames))
	}
}
