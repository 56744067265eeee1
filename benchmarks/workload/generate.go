package workload

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"
)

// How long an answer is assumed to take when the arrival of the next turn is
// chosen, before it is known how fast it will be answered: a trace has arrival
// times, and no one waits in it.
const (
	assumedTTFT = 0.5  // s
	assumedTPOT = 0.02 // s
)

// Generate makes the workload of s. Equal specifications and seeds give equal
// workloads on machines of one architecture; on others the last bit of a
// logarithm may differ.
func (s Spec) Generate(seed uint64) (*Workload, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	g := &generator{
		spec: s, random: rand.New(rand.NewPCG(seed, 0xbb67ae8584caa73b)),
		prefixes: newZipf(s.Prefixes, s.PrefixZipf), adapters: newZipf(s.Adapters, s.AdapterZipf),
		questions: map[[2]int]piece{}, blocks: map[blockKey]uint64{},
	}
	g.helperPrefix = g.piece(s.HelperPrefix)
	for range s.Prefixes {
		g.prefixPieces = append(g.prefixPieces, g.piece(s.PrefixTokens))
	}
	// Sessions are made until as many requests as asked for arrived before the
	// next session does: what comes later would be a tail without new sessions.
	perSession := s.expectedRequests(seed)
	at := 0.0
	for arrived := 0; arrived < s.Requests; {
		g.session(at)
		at += g.between(perSession / s.Rate)
		arrived = 0
		if len(g.requests) >= s.Requests {
			for i := range g.requests {
				if g.requests[i].Arrival.Seconds() <= at {
					arrived++
				}
			}
		}
	}
	slices.SortStableFunc(g.requests, func(a, b Request) int { return cmp.Compare(a.Arrival, b.Arrival) })
	w := &Workload{Name: s.Name, Requests: g.requests[:s.Requests]}
	w.renumber()
	sum := sha256.New()
	if err := w.Write(sum); err != nil {
		return nil, err
	}
	w.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return w, w.Validate()
}

// expectedRequests is the mean number of requests of a session, by trial: the
// cut of the distributions has no closed form.
func (s Spec) expectedRequests(seed uint64) float64 {
	random := rand.New(rand.NewPCG(seed, 0x3c6ef372fe94f82b))
	const trials = 4000
	n := 0
	for range trials {
		turns := s.Turns.count(random, 1)
		n += turns
		for range turns - 1 {
			if s.FanOut > 0 && random.Float64() < s.FanOut {
				for range s.Helpers.count(random, 1) {
					n += s.HelperTurns.count(random, 1)
				}
			}
		}
	}
	return float64(n) / trials
}

// piece is a run of tokens that occurs as a whole.
type piece struct {
	id     uint64
	tokens int
}

// generator makes the requests of a [Spec].
type generator struct {
	spec         Spec
	random       *rand.Rand
	prefixes     zipf
	adapters     zipf
	prefixPieces []piece
	helperPrefix piece
	questions    map[[2]int]piece
	blocks       map[blockKey]uint64
	pieces       uint64
	sessions     int
	requests     []Request
}

// piece makes a run of tokens that nothing had before.
func (g *generator) piece(d Dist) piece {
	g.pieces++
	n := 0
	if d != (Dist{}) {
		n = d.count(g.random, 0)
	}
	return piece{id: g.pieces, tokens: n}
}

// between draws the time to the next session: gamma-distributed with the
// shape that gives the coefficient of variation.
func (g *generator) between(mean float64) float64 {
	shape := 1 / (g.spec.ArrivalCV * g.spec.ArrivalCV)
	return gamma(g.random, shape) * mean / shape
}

// gamma draws from the gamma distribution of scale 1 (Marsaglia and Tsang, "A
// simple method for generating gamma variables", 2000; shapes below 1 by its
// section 6).
func gamma(random *rand.Rand, shape float64) float64 {
	if shape < 1 {
		return gamma(random, shape+1) * math.Pow(1-random.Float64(), 1/shape)
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := random.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if math.Log(1-random.Float64()) < x*x/2+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}

// session makes the requests of a session that arrives at the time at.
func (g *generator) session(at float64) {
	s := &g.spec
	g.sessions++
	name, adapter := "s"+strconv.Itoa(g.sessions), ""
	if s.Adapters > 0 {
		adapter = "lora-" + strconv.Itoa(g.adapters.draw(g.random))
	}
	var prompt []piece
	prefix := -1
	if s.Prefixes > 0 {
		prefix = g.prefixes.draw(g.random)
		prompt = append(prompt, g.prefixPieces[prefix])
	}
	prompt = append(prompt, g.piece(s.Context), g.question(prefix))
	for turn, turns := 1, s.Turns.count(g.random, 1); ; turn++ {
		answer, done := g.request(at, prompt, name, adapter)
		if turn == turns {
			return
		}
		prompt = append(prompt, answer)
		if s.FanOut > 0 && g.random.Float64() < s.FanOut {
			start := done
			for helper := range s.Helpers.count(g.random, 1) {
				said, end := g.helper(start, name+"."+strconv.Itoa(turn)+"."+strconv.Itoa(helper), adapter)
				prompt = append(prompt, said)
				done = max(done, end)
			}
		}
		at = done + s.Gap.draw(g.random)
		prompt = append(prompt, g.piece(s.Message))
	}
}

// question is the first message of a session behind a prefix.
func (g *generator) question(prefix int) piece {
	if g.spec.Questions == 0 {
		return g.piece(g.spec.Message)
	}
	key := [2]int{prefix, g.random.IntN(g.spec.Questions)}
	p, ok := g.questions[key]
	if !ok {
		p = g.piece(g.spec.Message)
		g.questions[key] = p
	}
	return p
}

// helper makes the requests of a helper and returns its last answer and when
// that is done.
func (g *generator) helper(at float64, name, adapter string) (said piece, done float64) {
	s := &g.spec
	prompt := []piece{g.helperPrefix, g.piece(s.HelperTask)}
	for turn, turns := 1, s.HelperTurns.count(g.random, 1); ; turn++ {
		said, done = g.request(at, prompt, name, adapter)
		if turn == turns {
			return said, done
		}
		at = done + s.Gap.draw(g.random)
		prompt = append(prompt, said, g.piece(s.Message))
	}
}

// request adds a request and returns its answer and when it is assumed done.
func (g *generator) request(at float64, prompt []piece, session, adapter string) (answer piece, done float64) {
	g.pieces++
	answer = piece{id: g.pieces, tokens: g.spec.Output.count(g.random, 1)}
	input := 0
	for _, p := range prompt {
		input += p.tokens
	}
	if input == 0 { // an engine needs something to start from
		prompt = append(prompt, piece{id: answer.id, tokens: 1})
		input = 1
	}
	in := g.chain(adapter, prompt, true)
	both := g.chain(adapter, append(prompt[:len(prompt):len(prompt)], answer), false)
	g.requests = append(g.requests, Request{
		// Whole microseconds survive the way through a file.
		Arrival:     time.Duration(at*1e6) * time.Microsecond,
		InputTokens: input, OutputTokens: answer.tokens,
		Blocks: in, OutputBlocks: both[input/BlockTokens:],
		Session: session, Adapter: adapter,
	})
	return answer, at + assumedTTFT + assumedTPOT*float64(answer.tokens)
}

// blockKey is what a block is: the one before it and its content, the run of
// pieces that begins with first at offset. The pieces that follow first differ
// between prompts, so they are chained to it one key at a time.
type blockKey struct {
	adapter          string
	before           uint64
	piece            uint64
	offset, tokens   int
	continued, whole bool
}

// chain names the blocks of a prompt, its partial last one only if asked for.
func (g *generator) chain(adapter string, prompt []piece, partial bool) []uint64 {
	var out []uint64
	before, room, continued := uint64(0), BlockTokens, false
	name := func(k blockKey) uint64 {
		id, ok := g.blocks[k]
		if !ok {
			id = uint64(len(g.blocks)) + 1
			g.blocks[k] = id
		}
		return id
	}
	for _, p := range prompt {
		for from := 0; from < p.tokens; {
			n := min(room, p.tokens-from)
			room -= n
			before = name(blockKey{adapter, before, p.id, from, n, continued, room == 0})
			continued = true
			from += n
			if room == 0 {
				out = append(out, before)
				room, continued = BlockTokens, false
			}
		}
	}
	if partial && room < BlockTokens {
		out = append(out, before)
	}
	return out
}

// renumber names blocks in order of appearance, as traces do.
func (w *Workload) renumber() {
	names := map[uint64]uint64{}
	rename := func(blocks []uint64) {
		for i, b := range blocks {
			id, ok := names[b]
			if !ok {
				id = uint64(len(names))
				names[b] = id
			}
			blocks[i] = id
		}
	}
	for i := range w.Requests {
		rename(w.Requests[i].Blocks)
		rename(w.Requests[i].OutputBlocks)
	}
}
