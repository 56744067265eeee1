//go:build !race

package tokenizer

import (
	"testing"

	"github.com/warmpath/warmpath/routing"
)

// A prompt that was seen before is found without an allocation.
func TestTokenize_AllocatesNothingForWhatIsKnown(t *testing.T) {
	c, q := seen(t)
	dst := make([]routing.Tokens, 0, 1)
	allocs := testing.AllocsPerRun(100, func() {
		var err *routing.Error
		if dst, err = c.Tokenize(t.Context(), q, dst[:0]); err != nil || dst[0].Source != routing.TokensL0 {
			t.Fatal(err, dst)
		}
	})
	if allocs > 0 {
		t.Errorf("%v allocations, want 0", allocs)
	}
}
