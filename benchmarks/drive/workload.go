package drive

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/tidwall/gjson"

	"github.com/warmpath/warmpath/kvindex"
)

const (
	// model is the one model that is served.
	model = "meta-llama/Llama-3.1-8B-Instruct"
	// blockSize is that of the endpoints' caches, in tokens.
	blockSize = 16
	// vocabulary bounds token ids, as large as those of current models.
	vocabulary = 1 << 17
	// minBody is the least body that has room for a prompt of a few blocks.
	minBody = 768
	// sharedNum of sharedDen of a prompt is what the requests of a group have in
	// common.
	sharedNum, sharedDen = 4, 5
	// nonce is the length of the text at the start of a prompt that the
	// tokenizer leaves out.
	nonce = 16
)

// workload is the prompts of one cell. It is a function of its numbers alone,
// so that the driver and its servers need not exchange it.
type workload struct {
	Seed uint64     `json:"seed"`
	Body int        `json:"body"`
	Kind promptKind `json:"kind"`
}

// prompts returns how many different prompts there are, in how many groups.
func (w workload) prompts() (n, groups int) {
	switch {
	case w.Body <= 16<<10:
		return 64, 8
	case w.Body <= 256<<10:
		return 16, 4
	}
	return 4, 2
}

// path is the HTTP path that the requests go to.
func (w workload) path() string {
	if w.Kind == promptIDs {
		return "/v1/completions"
	}
	return "/v1/chat/completions"
}

// bodies returns the request bodies, each of w.Body bytes. Body i belongs to
// group i modulo the number of groups.
func (w workload) bodies() [][]byte {
	n, groups := w.prompts()
	bodies := make([][]byte, n)
	for i := range bodies {
		shared := rand.New(rand.NewPCG(w.Seed, uint64(i%groups)))
		own := rand.New(rand.NewPCG(w.Seed, uint64(1<<32|i)))
		if w.Kind == promptIDs {
			bodies[i] = w.idsBody(shared, own)
		} else {
			bodies[i] = w.chatBody(shared, own)
		}
	}
	return bodies
}

const (
	chatHead   = `{"model":"` + model + `","messages":[{"role":"system","content":"`
	chatMiddle = `"},{"role":"user","content":"`
	chatTail   = `"}],"temperature":0.7,"top_p":0.95,"max_tokens":256,"stream":true,"stream_options":{"include_usage":true}}`
	idsHead    = `{"model":"` + model + `","prompt":[`
	idsTail    = `],"temperature":0.7,"top_p":0.95,"max_tokens":256,"stream":true,"stream_options":{"include_usage":true}`
)

func (w workload) chatBody(shared, own *rand.Rand) []byte {
	room := w.Body - len(chatHead) - len(chatMiddle) - len(chatTail)
	b := make([]byte, 0, w.Body)
	b = append(b, chatHead...)
	b = appendText(b, shared, room*sharedNum/sharedDen)
	b = append(b, chatMiddle...)
	b = appendText(b, own, w.Body-len(b)-len(chatTail))
	return append(b, chatTail...)
}

// appendText appends n bytes of words and lines, as they stand in a JSON
// string.
func appendText(dst []byte, r *rand.Rand, n int) []byte {
	const letters = "etaoinshrdlucmfwypvbgkjqxz"
	end := len(dst) + n
	for words := 1; len(dst) < end; words++ {
		for range 2 + r.IntN(7) {
			dst = append(dst, letters[r.IntN(len(letters))])
		}
		if words%12 == 0 {
			dst = append(dst, `\n`...)
		} else {
			dst = append(dst, ' ')
		}
	}
	if dst[end-1] == '\\' {
		dst[end-1] = '.'
	}
	return dst[:end]
}

func (w workload) idsBody(shared, own *rand.Rand) []byte {
	const longest = len("131071,")
	b := make([]byte, 0, w.Body)
	b = append(b, idsHead...)
	ids := func(r *rand.Rand, end int) {
		for len(b)+longest <= end {
			b = append(strconv.AppendUint(b, r.Uint64N(vocabulary), 10), ',')
		}
	}
	end := w.Body - len(idsTail) - 1
	ids(shared, len(b)+(end-len(b))*sharedNum/sharedDen)
	ids(own, end)
	b[len(b)-1] = ' ' // the last comma
	b = append(b, idsTail...)
	for len(b) < w.Body-1 {
		b = append(b, ' ')
	}
	return append(b, '}')
}

// mark writes number i where the tokenizer does not look, so that the text of
// a chat is a new one. body must be a chat.
func mark(body []byte, i uint64) {
	at := body[len(chatHead) : len(chatHead)+nonce]
	for j := range at {
		at[j] = 'a' + byte(i>>(4*j)&15)
	}
}

// sharedTokens returns the token ids that the requests of a group begin with.
func (w workload) sharedTokens() [][]kvindex.TokenID {
	_, groups := w.prompts()
	bodies := w.bodies()
	out := make([][]kvindex.TokenID, groups)
	for g := range out {
		out[g] = commonPrefix(w.tokens(bodies[g]), w.tokens(bodies[g+groups]))
	}
	return out
}

func commonPrefix(a, b []kvindex.TokenID) []kvindex.TokenID {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n]
}

// tokens returns the token ids of a body's prompt.
func (w workload) tokens(body []byte) []kvindex.TokenID {
	if w.Kind != promptIDs {
		return appendTokens(nil, body)
	}
	var ids []kvindex.TokenID
	gjson.GetBytes(body, "prompt").ForEach(func(_, id gjson.Result) bool {
		ids = append(ids, kvindex.TokenID(id.Uint()))
		return true
	})
	return ids
}

// appendTokens is the tokenizer: it appends the token ids of the chat or the
// text in a request body. Four bytes are a token; each message begins with two
// of its own. The first bytes of a chat are left out, see [mark].
func appendTokens(dst []kvindex.TokenID, body []byte) []kvindex.TokenID {
	skip := nonce
	gjson.GetBytes(body, "messages").ForEach(func(_, m gjson.Result) bool {
		dst = append(dst, kvindex.TokenID(vocabulary-1), kvindex.TokenID(len(m.Get("role").Str)))
		text := m.Get("content").Str
		dst = appendTextTokens(dst, text[min(skip, len(text)):])
		skip = 0
		return true
	})
	return appendTextTokens(dst, gjson.GetBytes(body, "prompt").Str)
}

func appendTextTokens(dst []kvindex.TokenID, text string) []kvindex.TokenID {
	for ; len(text) > 0; text = text[min(4, len(text)):] {
		var four [4]byte
		copy(four[:], text)
		v := binary.LittleEndian.Uint32(four[:])
		// Letters differ in their low bits: five of each, folded.
		v = v&31 | v>>8&31<<5 | v>>16&31<<10 | v>>24&31<<15
		dst = append(dst, kvindex.TokenID(v^v>>17)%vocabulary)
	}
	return dst
}

// hold fills an index as the endpoints' events would: of every group's shared
// prefix three endpoints hold all, a tenth of them the first half, and each
// holds blocks of other prompts as well. publishers are those of the endpoints,
// in any fixed order.
func (w workload) hold(index *kvindex.Index, hasher kvindex.Hasher, publishers []kvindex.Publisher) error {
	const others = 16 << 10 // blocks of other prompts on all endpoints together
	writers := make([]*kvindex.Writer, len(publishers))
	for i, p := range publishers {
		var err error
		if writers[i], err = index.Open(p); err != nil {
			return fmt.Errorf("publisher %d: %w", p.ID, err)
		}
		writers[i].SetTrust(kvindex.TrustExact)
	}
	root := hasher.Root(kvindex.Scope{Model: model, BlockSize: blockSize})
	// The engines name a block alike, as those with a deterministic hash do.
	store := func(w *kvindex.Writer, contents []kvindex.ContentHash) {
		chain := kvindex.AppendChain(nil, root, contents)
		names := make([]kvindex.EngineHash, len(chain))
		for i, b := range chain {
			names[i] = kvindex.EngineHash(b)
		}
		w.Store(kvindex.Stored{Root: root, Names: names, Contents: contents})
	}
	n := len(writers)
	for g, tokens := range w.sharedTokens() {
		contents := hasher.AppendContents(nil, tokens, blockSize)
		if len(contents) == 0 {
			return fmt.Errorf("the shared prefix of group %d is %d tokens, less than a block", g, len(tokens))
		}
		for i := range min(3, n) {
			store(writers[(g*7+i)%n], contents)
		}
		for i := range n / 10 {
			store(writers[(g*7+3+i)%n], contents[:(len(contents)+1)/2])
		}
	}
	r := rand.New(rand.NewPCG(w.Seed, 1<<33))
	for _, w := range writers {
		const run = 32 // blocks of one other prompt
		for range max(1, others/run/n) {
			contents := make([]kvindex.ContentHash, run)
			for i := range contents {
				contents[i] = kvindex.ContentHash(r.Uint64())
			}
			store(w, contents)
		}
	}
	return nil
}
