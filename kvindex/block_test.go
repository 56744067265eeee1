package kvindex

import (
	"testing"

	"pgregory.net/rapid"
)

func TestMix_IsABijectionOfTheContent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parent := BlockHash(rapid.Uint64().Draw(t, "parent"))
		c := ContentHash(rapid.Uint64().Draw(t, "content"))
		if got := Unmix(parent, Mix(parent, c)); got != c {
			t.Fatalf("Unmix(Mix(%x)) = %x", c, got)
		}
	})
}
