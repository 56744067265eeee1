//go:build nozmq

package zmtp

import (
	"errors"
	"testing"
)

func TestStub_SaysWhatIsMissing(t *testing.T) {
	_, sub := DialSub(t.Context(), "tcp://127.0.0.1:1", "")
	_, dealer := DialDealer(t.Context(), "tcp://127.0.0.1:1")
	_, pub := ListenPub(t.Context(), "tcp://127.0.0.1:0")
	_, router := ListenRouter(t.Context(), "tcp://127.0.0.1:0")
	for name, err := range map[string]error{"DialSub": sub, "DialDealer": dealer, "ListenPub": pub, "ListenRouter": router} {
		if !errors.Is(err, ErrNotBuilt) {
			t.Errorf("%s: error %v, want ErrNotBuilt", name, err)
		}
	}
}
