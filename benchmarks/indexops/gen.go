package indexops

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// The modelled fleet; the file format fixes Pods at 64 (16 answer words).
const (
	Pods        = 64
	BlockTokens = 16
	prompts     = 20
	promptLen   = 64
	chainLen    = 512
	liveAtOnce  = 512
	shortestNew = 8 // unseen blocks after a held prefix, at least
)

// Params selects a stream. Equal Params give equal bytes.
type Params struct {
	Seed uint64
	// Pairs is the number of (pod, block) pairs held after load, Churn the
	// number of blocks that churn removes; both are reached by whole events.
	Pairs, Churn int
	// Queries and HoleQueries count the prompts after churn and after holes.
	Queries, HoleQueries int
}

// Default is the stream that results are quoted for: 4.1 M pairs, 240 MB.
func Default() Params {
	return Params{Seed: 1, Pairs: 4_000_000, Churn: 1_500_000, Queries: 20_000, HoleQueries: 5_000}
}

// Validate reports every fault of p.
func (p Params) Validate() error {
	var errs []error
	for _, f := range []struct {
		name string
		v    int
		min  int
	}{{"pairs", p.Pairs, 20_000}, {"churn", p.Churn, 1}, {"queries", p.Queries, 0}, {"hole queries", p.HoleQueries, 0}} {
		if f.v < f.min {
			errs = append(errs, fmt.Errorf("%s: %d is below the least possible %d", f.name, f.v, f.min))
		}
	}
	return errors.Join(errs...)
}

// block is one block of a chain.
type block struct{ name, content uint64 }

// conversation is a chain and the lengths it had after each turn, the system
// prompt not counted as a turn.
type conversation struct {
	prompt int
	chain  []block
	turns  []int
}

// residency is a conversation on a pod, which holds its first depth blocks.
type residency struct {
	*conversation
	depth, goal int
}

// random is SplitMix64.
type random struct{ state uint64 }

const golden = 0x9e3779b97f4a7c15

func finish(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (r *random) below(n int) int {
	r.state += golden
	// The output function adds the increment once more: the published
	// SplitMix64 step applied to an already advanced state.
	hi, _ := bits.Mul64(finish(r.state+golden), uint64(n))
	return int(hi)
}
func (r *random) in(lo, hi int) int       { return lo + r.below(hi-lo+1) }
func (r *random) chance(percent int) bool { return r.below(100) < percent }

// cumulative is XXH3-64 of two words with seed 1337 (xxHash specification,
// XXH3 for inputs of 9 to 16 bytes, default secret).
func cumulative(prev, content uint64) uint64 {
	const seed = 1337
	const secretLo = (0x1f67b3b7a4a44072 ^ 0x78e5c0cc4ee679cb) + seed
	const secretHi = (0x2172ffcc7dd05a82 ^ 0x8e2443f7744608b8) - seed
	lo, hi := prev^secretLo, content^secretHi
	ph, pl := bits.Mul64(lo, hi)
	acc := 16 + bits.ReverseBytes64(lo) + hi + (ph ^ pl)
	acc = (acc ^ acc>>37) * 0x165667919e3779f9
	return acc ^ acc>>32
}

// section counts what a part of the stream did.
type section struct{ start, ops, stored, removed uint64 }

// generator writes a stream and keeps the fleet's truth beside it.
type generator struct {
	random
	fresh   uint64 // contents made so far
	out     *bufio.Writer
	at      uint64 // words written
	err     error
	prompts [prompts][]block
	held    [Pods]map[uint64]struct{}
	resting [Pods][]*residency // oldest first
	pairs   int
	cur     section
}

// Generate writes the stream of p to w, the header last.
func Generate(w io.WriteSeeker, p Params) (Header, error) {
	if err := p.Validate(); err != nil {
		return Header{}, err
	}
	g := &generator{random: random{p.Seed}, out: bufio.NewWriterSize(w, 1<<20)}
	for range HeaderWords {
		g.word(0)
	}
	for i := range g.held {
		g.held[i] = map[uint64]struct{}{}
	}
	for i := range g.prompts {
		g.prompts[i] = g.grow(nil, promptLen)
	}
	h := Header{magic, version, p.Seed, Pods, BlockTokens}

	g.begin()
	g.load(p.Pairs)
	h[5], h[6], h[15], h[16] = g.cur.ops, g.cur.start, uint64(g.pairs), g.cur.stored
	h[20] = g.distinct()
	g.begin()
	g.churn(p.Churn)
	h[7], h[8], h[17], h[18], h[19] = g.cur.ops, g.cur.start, g.cur.stored, g.cur.removed, uint64(g.pairs)
	h[11], h[12] = uint64(p.Queries), g.at
	for i := range p.Queries {
		g.prefixQuery(classes[i%len(classes)])
	}
	g.begin()
	holed := g.holes()
	h[9], h[10], h[21], h[22], h[23] = g.cur.ops, g.cur.start, g.cur.removed, g.cur.stored, uint64(g.pairs)
	h[13], h[14] = uint64(p.HoleQueries), g.at
	for i := range p.HoleQueries {
		if i%2 == 0 && len(holed) > 0 {
			g.holeQuery(holed[g.below(len(holed))])
		} else {
			g.prefixQuery(classes[i/2%len(classes)])
		}
	}
	if err := errors.Join(g.err, g.out.Flush()); err != nil {
		return Header{}, fmt.Errorf("write ops: %w", err)
	}
	if _, err := w.Seek(0, io.SeekStart); err != nil {
		return Header{}, fmt.Errorf("rewind to the header: %w", err)
	}
	if err := binary.Write(w, binary.LittleEndian, h[:]); err != nil {
		return Header{}, fmt.Errorf("write header: %w", err)
	}
	return h, nil
}

// word writes one word; the first error sticks.
func (g *generator) word(v uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	if _, err := g.out.Write(b[:]); err != nil && g.err == nil {
		g.err = err
	}
	g.at++
}

func (g *generator) begin() { g.cur = section{start: g.at} }

func (g *generator) distinct() uint64 {
	seen := map[uint64]struct{}{}
	for _, pod := range g.held {
		for name := range pod {
			seen[name] = struct{}{}
		}
	}
	return uint64(len(seen))
}

// grow appends n unseen blocks to a chain.
func (g *generator) grow(chain []block, n int) []block {
	for range n {
		g.fresh++
		c := finish((g.fresh ^ g.state<<32 | 1) + golden)
		name := c
		if k := len(chain); k > 0 {
			name = cumulative(chain[k-1].name, c)
		}
		chain = append(chain, block{name, c})
	}
	return chain
}

func (g *generator) converse() *conversation {
	c := &conversation{prompt: g.below(prompts)}
	c.chain = append(make([]block, 0, chainLen), g.prompts[c.prompt]...)
	goal := chainLen
	if g.chance(50) {
		goal = g.in(2*promptLen, chainLen)
	}
	for len(c.chain) < goal {
		left := goal - len(c.chain)
		n := min(g.in(8, 64), left)
		if left-n < 8 { // no turn is shorter than 8 blocks
			n = left
		}
		c.chain = g.grow(c.chain, n)
		c.turns = append(c.turns, len(c.chain))
	}
	return c
}

func (g *generator) store(pod int, chain []block, from, to int) {
	head, parent := uint64(opStore)|uint64(pod)<<16|uint64(to-from)<<32, uint64(0)
	if from > 0 {
		head |= 1 << 8
		parent = chain[from-1].name
	}
	g.word(head)
	g.word(parent)
	for _, b := range chain[from:to] {
		g.word(b.name)
		g.word(b.content)
		g.held[pod][b.name] = struct{}{}
	}
	g.pairs += to - from
	g.cur.ops++
	g.cur.stored += uint64(to - from)
}

// remove emits blocks [from,to) of a chain, leaf first.
func (g *generator) remove(pod int, chain []block, from, to int) {
	g.word(uint64(opRemove) | uint64(pod)<<16 | uint64(to-from)<<32)
	g.word(0)
	for i := to - 1; i >= from; i-- {
		g.word(chain[i].name)
		delete(g.held[pod], chain[i].name)
	}
	g.pairs -= to - from
	g.cur.ops++
	g.cur.removed += uint64(to - from)
}

// turn stores a residency's next turn, before it the system prompt where the
// pod lacks it, and returns the blocks stored.
func (g *generator) turn(pod int, r *residency) (stored int) {
	if r.depth == 0 {
		prompt := g.prompts[r.prompt]
		if _, ok := g.held[pod][prompt[0].name]; !ok {
			g.store(pod, prompt, 0, promptLen)
			stored = promptLen
		}
		r.depth = promptLen
	}
	for _, end := range r.turns {
		if end > r.depth {
			g.store(pod, r.chain, r.depth, end)
			stored += end - r.depth
			r.depth = end
			break
		}
	}
	return stored
}

func (g *generator) load(pairs int) {
	type growing struct {
		*residency
		pod int
	}
	var live []growing
	for g.pairs < pairs {
		for len(live) < liveAtOnce {
			c, first, copies := g.converse(), g.below(Pods), 1
			if g.chance(20) {
				copies = 3
			}
			started := len(live)
			for i := range copies {
				pod := (first + i*(1+g.below(prompts))) % Pods
				r := &residency{conversation: c, goal: len(c.chain)}
				if i > 0 && g.chance(50) {
					r.goal = c.turns[g.below(len(c.turns))]
				}
				twice := false
				for _, o := range live[started:] {
					twice = twice || o.pod == pod
				}
				if !twice {
					live = append(live, growing{r, pod})
				}
			}
		}
		i := g.below(len(live))
		l := live[i]
		g.turn(l.pod, l.residency)
		if l.depth >= l.goal {
			g.resting[l.pod] = append(g.resting[l.pod], l.residency)
			live[i] = live[len(live)-1]
			live = live[:len(live)-1]
		}
	}
	for _, l := range live {
		for l.depth < l.goal {
			g.turn(l.pod, l.residency)
		}
		g.resting[l.pod] = append(g.resting[l.pod], l.residency)
	}
}

func (g *generator) churn(blocks int) {
	var open [Pods]*residency
	var debt [Pods]int // blocks removed and not yet stored
	for removed := 0; removed < blocks; {
		pod := g.below(Pods)
		rest := g.resting[pod]
		if len(rest) == 0 {
			continue
		}
		i := 0
		if g.chance(10) {
			i = g.below(len(rest) / 2)
		}
		r := rest[i]
		n := min(g.in(8, 64), r.depth-promptLen)
		if n > 0 {
			g.remove(pod, r.chain, r.depth-n, r.depth)
			r.depth -= n
			removed += n
		}
		if r.depth == promptLen {
			g.resting[pod] = append(rest[:i:i], rest[i+1:]...)
		}
		for debt[pod] += n; debt[pod] > 0; {
			if open[pod] == nil {
				open[pod] = g.arrival(pod)
			}
			debt[pod] -= g.turn(pod, open[pod])
			if open[pod].depth >= open[pod].goal {
				g.resting[pod] = append(g.resting[pod], open[pod])
				open[pod] = nil
			}
		}
	}
	for pod, r := range open {
		if r != nil {
			g.resting[pod] = append(g.resting[pod], r)
		}
	}
}

// arrival picks the conversation that comes to a pod next: a new one, or in
// 20 % one that another pod used lately and this pod lacks.
func (g *generator) arrival(pod int) *residency {
	c := g.converse()
	if g.chance(20) {
		there := g.resting[g.below(Pods)]
		known := there[len(there)-1-g.below(len(there)/4)].conversation
		if len(known.chain) > promptLen {
			if _, here := g.held[pod][known.chain[promptLen].name]; !here {
				c = known
			}
		}
	}
	return &residency{conversation: c, goal: len(c.chain)}
}

// holes punches middles out of residencies and returns their conversations.
func (g *generator) holes() (holed []*conversation) {
	for pod := range Pods {
		for _, r := range g.resting[pod] {
			if r.depth < 2*promptLen || !g.chance(3) {
				continue
			}
			n := g.in(1, 4)
			at := g.in(promptLen+1, r.depth-8)
			g.remove(pod, r.chain, at, at+n)
			holed = append(holed, r.conversation)
			if !g.chance(50) {
				continue
			}
			g.store(pod, r.chain, at, at+n)
			if g.chance(50) && r.depth < len(r.chain) {
				g.store(pod, r.chain, r.depth, len(r.chain))
				r.depth = len(r.chain)
			}
		}
	}
	for i := range 8 { // a system prompt loses a block on a few pods
		if _, ok := g.held[7*i][g.prompts[i][0].name]; ok {
			g.remove(7*i, g.prompts[i], 20+i, 21+i)
		}
	}
	return holed
}

// classes are the blocks that the best pod holds of a prefix query.
var classes = [...]int{0, 64, 128, 256, 512}

func (g *generator) prefixQuery(class int) {
	switch class {
	case 0:
		g.query(class, g.grow(nil, chainLen))
		return
	case promptLen:
		q := append([]block(nil), g.prompts[g.below(prompts)]...)
		g.query(class, g.grow(q, g.in(shortestNew, 64)))
		return
	}
	for {
		rest := g.resting[g.below(Pods)]
		r := rest[g.below(len(rest))]
		if r.depth < class {
			continue
		}
		q := append([]block(nil), r.chain[:class]...)
		if class < chainLen {
			q = g.grow(q, g.in(shortestNew, 64))
		}
		g.query(class, q)
		return
	}
}

func (g *generator) holeQuery(c *conversation) {
	q := append([]block(nil), c.chain...)
	if len(q) < chainLen {
		q = g.grow(q, min(g.in(shortestNew, 64), chainLen-len(q)))
	}
	g.query(ClassHole, q)
}

func (g *generator) query(class int, q []block) {
	g.word(uint64(class) | uint64(len(q))<<32)
	var answers [Pods / 4]uint64
	for pod := range Pods {
		depth := 0
		for depth < len(q) {
			if _, ok := g.held[pod][q[depth].name]; !ok {
				break
			}
			depth++
		}
		answers[pod/4] |= uint64(depth) << (pod % 4 * 16)
	}
	for _, a := range answers {
		g.word(a)
	}
	for _, b := range q {
		g.word(b.content)
	}
	for _, b := range q {
		g.word(b.name)
	}
}
