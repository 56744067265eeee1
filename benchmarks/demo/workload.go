package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// workload is multi-turn chat: groups of conversations that share a system
// prompt, each turn extending the one before it.
type workload struct {
	groups, conversations, turns     int
	systemWords, userWords, maxToken int
	// concurrency is how many conversations run at a time.
	concurrency int
	seed        uint64
}

// requests is the number of requests that one run sends.
func (w workload) requests() int { return w.groups * w.conversations * w.turns }

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// words makes n words from r.
func words(r *rand.Rand, n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(' ')
		}
		for range 2 + r.IntN(6) {
			b.WriteByte(letters[r.IntN(len(letters))])
		}
	}
	return b.String()
}

// answer is what one request gave.
type answer struct {
	ttft           time.Duration
	prompt, cached int
	content        string
	err            error
}

// run sends the workload through url under a strategy; each finished request
// is passed to done, which is called by one goroutine at a time. It returns
// when all are finished or ctx ends.
func (w workload) run(ctx context.Context, client *http.Client, url, model, strategy string, done func(answer)) error {
	r := rand.New(rand.NewPCG(w.seed, 0))
	var all []*conversation
	for range w.groups {
		system := words(r, w.systemWords)
		for range w.conversations {
			all = append(all, &conversation{
				rand: rand.New(rand.NewPCG(r.Uint64(), 1)), chat: []message{{"system", system}}, left: w.turns,
			})
		}
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })

	// A conversation goes to the end of the queue after each of its turns: its
	// user reads the answer while the others go on.
	queue := make(chan *conversation, len(all))
	for _, c := range all {
		queue <- c
	}
	left := len(all)
	var mu sync.Mutex // guards left and orders calls of done
	var wg sync.WaitGroup
	for range w.concurrency {
		wg.Go(func() {
			for c := range queue {
				c.chat = append(c.chat, message{"user", words(c.rand, w.userWords)})
				a := w.send(ctx, client, url, model, strategy, c.chat)
				c.chat = append(c.chat, message{"assistant", a.content})
				c.left--
				mu.Lock()
				done(a)
				if c.left > 0 && ctx.Err() == nil {
					queue <- c
				} else if left--; left == 0 {
					close(queue)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// conversation is one user's chat so far.
type conversation struct {
	rand *rand.Rand
	chat []message
	// left is how many turns are to come.
	left int
}

// send makes one streamed chat completion.
func (w workload) send(ctx context.Context, client *http.Client, url, model, strategy string, chat []message) answer {
	body, err := json.Marshal(map[string]any{
		"model": model, "messages": chat, "max_tokens": w.maxToken, "stream": true,
		"stream_options": map[string]any{"include_usage": true},
	})
	if err != nil {
		return answer{err: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("routing-strategy", strategy)
	sent := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		return answer{err: fmt.Errorf("status %d: %s", resp.StatusCode, text)}
	}
	return readStream(resp.Body, sent)
}

// chunk is the part of a streamed chat completion that is read here.
type chunk struct {
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
	} `json:"choices"`
	Usage *struct {
		PromptTokens        int `json:"prompt_tokens"`
		PromptTokensDetails struct {
			CachedTokens int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
}

// readStream reads server-sent events up to their end marker.
func readStream(r io.Reader, sent time.Time) answer {
	var a answer
	var content strings.Builder
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	ended, counted := false, false
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		if string(data) == "[DONE]" {
			ended = true
			continue
		}
		var c chunk
		if err := json.Unmarshal(data, &c); err != nil {
			a.err = fmt.Errorf("chunk %q: %w", data, err)
			return a
		}
		for _, choice := range c.Choices {
			if choice.Delta.Content != "" && a.ttft == 0 {
				a.ttft = time.Since(sent)
			}
			content.WriteString(choice.Delta.Content)
		}
		if c.Usage != nil {
			counted = true
			a.prompt, a.cached = c.Usage.PromptTokens, c.Usage.PromptTokensDetails.CachedTokens
		}
	}
	a.content = content.String()
	switch {
	case lines.Err() != nil:
		a.err = lines.Err()
	case !ended:
		a.err = errors.New("the stream ended without [DONE]")
	case !counted:
		a.err = errors.New("the stream carried no usage")
	case a.ttft == 0:
		a.err = errors.New("the stream carried no content")
	}
	return a
}
