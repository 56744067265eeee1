package server

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/warmpath/warmpath/kvindex"
)

// The values that vLLM reports for queues this server does not have.
const reportedHWM = 100_000

type modelCard struct {
	ID          string     `json:"id"`
	Object      string     `json:"object"`
	Created     int64      `json:"created"`
	OwnedBy     string     `json:"owned_by"`
	Root        string     `json:"root"`
	Parent      *string    `json:"parent"`
	MaxModelLen *int       `json:"max_model_len"`
	Permission  []struct{} `json:"permission"`
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	card := func(id, root string) modelCard {
		return modelCard{
			ID: id, Object: "model", Created: s.started.Unix(), OwnedBy: "vllm", Root: root, Permission: []struct{}{},
		}
	}
	length := s.engine.MaxModelLen
	var cards []modelCard
	for _, name := range s.cfg.Models {
		c := card(name, s.cfg.Models[0])
		c.MaxModelLen = &length
		cards = append(cards, c)
	}
	for _, name := range s.cfg.LoRAs {
		c := card(name, "/adapters/"+name)
		c.Parent = &s.cfg.Models[0]
		cards = append(cards, c)
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": cards})
}

// tokenize answers with the ids that the completions would use for the same
// prompt.
func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Model           string          `json:"model"`
		Prompt          json.RawMessage `json:"prompt"`
		ReturnTokenStrs bool            `json:"return_token_strs"`
		// The pointer tells the forms' different defaults apart.
		AddSpecialTokens *bool `json:"add_special_tokens"`
		chatForm
	}
	if err := readJSON(w, r, &q); err != nil {
		writeError(w, err)
		return
	}
	if _, err := s.resolve(q.Model); err != nil {
		writeError(w, err)
		return
	}
	if q.ReturnTokenStrs {
		writeError(w, badRequest("return_token_strs", "return_token_strs: true: not supported"))
		return
	}
	var tokens []kvindex.TokenID
	var err error
	switch {
	case q.Prompt == nil:
		q.chatForm.AddSpecialTokens = q.AddSpecialTokens != nil && *q.AddSpecialTokens
		tokens, err = q.chatForm.encode(s.tokenizer)
	case q.Prompt[0] != '"':
		err = badRequest("prompt", "prompt: %.20s: use a string", q.Prompt)
	default:
		tokens, err = completionRequest{Prompt: q.Prompt, AddSpecialTokens: q.AddSpecialTokens}.encode(s.tokenizer)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	if tokens == nil {
		tokens = []kvindex.TokenID{}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"count":         len(tokens),
		"max_model_len": s.engine.MaxModelLen,
		"tokens":        tokens,
		"token_strs":    nil,
	})
}

func (s *Server) health(http.ResponseWriter, *http.Request) {}

// resetPrefixCache empties the cache if no block is in use. The
// AllBlocksCleared leaves with the next step, as observed of vLLM.
func (s *Server) resetPrefixCache(w http.ResponseWriter, r *http.Request) {
	var success bool
	if err := s.driver.call(r.Context(), s.driver.boundary, func() { success = s.driver.core.Reset() }); err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]bool{"success": success})
}

// kvEventSources tells where the KV events are, keyed by data-parallel rank.
func (s *Server) kvEventSources(w http.ResponseWriter, _ *http.Request) {
	sources := make(map[string]any)
	if s.publisher != nil {
		var replay *string
		if e := s.ReplayEndpoint(); e != "" {
			replay = &e
		}
		sources[strconv.Itoa(s.cfg.Rank)] = map[string]any{
			"enable_kv_cache_events": true,
			"publisher":              "zmq",
			"endpoint":               s.EventsEndpoint(),
			"replay_endpoint":        replay,
			"buffer_steps":           s.publisher.bufferSteps(),
			"hwm":                    reportedHWM,
			"max_queue_size":         reportedHWM,
			"topic":                  s.cfg.Topic,
		}
	}
	writeJSON(w, http.StatusOK, sources)
}

// heldBlock is one entry of /debug/pool.
type heldBlock struct {
	Hash   string            `json:"hash"` // uint64, decimal
	Tokens []kvindex.TokenID `json:"tokens"`
	LoRA   string            `json:"lora"`
	Salt   string            `json:"salt"`
	Copies int               `json:"copies"`
	// CopyRemoved: the last event about the block announced the removal of one
	// of several copies.
	CopyRemoved bool `json:"copy_removed"`
}

// poolTruth is the answer of /debug/pool.
type poolTruth struct {
	BlockSize int `json:"block_size"`
	// NextSeq is the sequence number of the next batch: the blocks are what a
	// reader of all batches before it should know.
	NextSeq uint64 `json:"next_seq"`
	// PendingEvents counts events that the truth already reflects and that no
	// batch carries yet: the clear after a reset.
	PendingEvents int         `json:"pending_events"`
	Running       int         `json:"running"`
	Waiting       int         `json:"waiting"`
	Blocks        []heldBlock `json:"blocks"`
}

// debugPool answers with every cached block, from the pool itself.
func (s *Server) debugPool(w http.ResponseWriter, r *http.Request) {
	truth := poolTruth{BlockSize: s.engine.BlockSize, Blocks: []heldBlock{}}
	err := s.driver.call(r.Context(), s.driver.boundary, func() {
		if s.publisher != nil {
			truth.NextSeq = s.publisher.nextSeq()
		}
		truth.PendingEvents = s.driver.core.PendingEvents()
		stats := s.driver.core.Stats()
		truth.Running, truth.Waiting = stats.Running, stats.Waiting
		for _, h := range s.driver.core.Held() {
			truth.Blocks = append(truth.Blocks, heldBlock{
				Hash:        strconv.FormatUint(uint64(h.Hash), 10),
				Tokens:      h.AppendPrefix(nil),
				LoRA:        h.Adapter,
				Salt:        h.Salt,
				Copies:      h.Copies,
				CopyRemoved: h.CopyRemoved,
			})
		}
	})
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, truth)
}
