package extproc

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/warmpath/warmpath/routing"
)

// chatBody returns a chat of about n bytes, written as the OpenAI client for
// Python does.
func chatBody(t testing.TB, n int) []byte {
	t.Helper()
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	body := struct {
		Messages []message `json:"messages"`
		Model    string    `json:"model"`
		Stream   bool      `json:"stream"`
	}{Model: "demo", Stream: true}
	for size := 0; size < n; size += 500 {
		text := strings.Repeat("It was the \"best\" of times,\nit was the worst. ", 10)
		body.Messages = append(body.Messages, message{"user", fmt.Sprintf("%d %s", size, text[:min(450, n-size)])})
	}
	out, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A chat is read in place: of a body of any size only the model is copied.
func TestParseJSON_Allocations(t *testing.T) {
	for _, size := range []int{4 << 10, 1 << 20} {
		body := chatBody(t, size)
		n := testing.AllocsPerRun(20, func() {
			d, err := parseJSON(apiChat, body, false)
			if err != nil || d.model != "demo" || d.prompt.Kind != routing.PromptChat {
				t.Fatalf("%+v, %v", d, err)
			}
		})
		if n != 1 {
			t.Errorf("%d bytes: %v allocations, want 1", size, n)
		}
	}
}

func BenchmarkParseJSON(b *testing.B) {
	for _, size := range []int{1 << 10, 4 << 10, 100 << 10, 1 << 20} {
		body := chatBody(b, size)
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := parseJSON(apiChat, body, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
