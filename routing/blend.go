package routing

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// part is one strategy of a blend.
type part struct {
	*strategy
	weight float64
}

const (
	// fullSeconds is what an engine at 100 % is worth in a blend: a request that
	// comes there is expected to wait about that long.
	fullSeconds = 1.0
	// maxWeight is AIBrix's bound on weights.
	maxWeight = 1_000_000
	// maxBlendText bounds what a client can make us parse.
	maxBlendText = 512
	// blendMetric is the label of all blends in metrics: their text is the
	// client's.
	blendMetric = "blend"
)

// parseBlend reads a weighted blend, such as prefix-cache:2,least-request.
// Weights are numbers from 0 to 1,000,000, 1 where there is none; parts of
// weight 0 are left out.
//
// AIBrix scales every part to 0…1 over the candidates, so that one request more
// weighs as much as a hundred. Here every part's cost is turned into seconds by
// a fixed price, so that a blend's cost is an absolute figure too.
func parseBlend(table map[string]*strategy, text string) (*strategy, error) {
	if len(text) > maxBlendText {
		return nil, fmt.Errorf("a blend of %d bytes is too long; use at most %d", len(text), maxBlendText)
	}
	b := &strategy{unit: UnitSeconds, reason: ReasonBlend}
	sum := 0.0
	for item := range strings.SplitSeq(text, ",") {
		name, number, weighted := strings.Cut(strings.TrimSpace(item), ":")
		name = strings.TrimSpace(name)
		if name == "" {
			return nil, fmt.Errorf("%q has an empty part; write a blend as NAME:WEIGHT,NAME:WEIGHT", clip(text))
		}
		s := table[name]
		switch {
		case s == nil:
			return nil, unknownStrategy(name)
		case s.seconds == nil:
			return nil, fmt.Errorf("%q cannot be a part of a blend, because its cost is no quantity; use it alone, or blend some of %s", name, strings.Join(blendable(table), ", "))
		case slices.ContainsFunc(b.blend, func(p part) bool { return p.name == name }):
			return nil, fmt.Errorf("%q is twice in the blend; name it once and add up the weights", name)
		}
		w := 1.0
		if weighted {
			var err error
			w, err = strconv.ParseFloat(strings.TrimSpace(number), 64)
			if err != nil || !(w >= 0 && w <= maxWeight) {
				return nil, fmt.Errorf("the weight %q of %q is not a number from 0 to %d; write a blend as NAME:WEIGHT,NAME:WEIGHT", clip(number), name, maxWeight)
			}
		}
		if w == 0 {
			continue
		}
		sum += w
		b.blend = append(b.blend, part{s, w})
		b.matches = b.matches || s.matches
	}
	if len(b.blend) == 0 {
		return nil, fmt.Errorf("every weight of %q is 0; give one part a weight above it", clip(text))
	}
	for i := range b.blend {
		b.name += fmt.Sprintf(",%s:%g", b.blend[i].name, b.blend[i].weight)
		b.blend[i].weight /= sum
	}
	b.name = b.name[1:]
	return b, nil
}

func blendable(table map[string]*strategy) []string {
	var names []string
	for name, s := range table {
		if s.seconds != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// blendTerms appends one term a part: its cost in seconds times its share of
// the weights. A part whose data is missing for c has no term.
func blendTerms(b *strategy, sc *scene, c *Candidate, dst []Term) []Term {
	for _, p := range b.blend {
		if v := p.cost(sc, &c.row, &c.held); !missing(v) {
			dst = append(dst, Term{p.name, v * p.seconds(sc.settings) * p.weight, UnitSeconds})
		}
	}
	return dst
}

// expressions remembers blends that were parsed. Clients choose the texts, so
// it is bounded: when it is full, it is emptied.
type expressions struct {
	mu     sync.RWMutex
	parsed map[string]*strategy
}

const maxExpressions = 256

func (e *expressions) lookUp(table map[string]*strategy, text string) (*strategy, error) {
	if s := table[text]; s != nil {
		return s, nil
	}
	e.mu.RLock()
	s := e.parsed[text]
	e.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	s, err := lookUp(table, text)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.parsed == nil || len(e.parsed) >= maxExpressions {
		e.parsed = map[string]*strategy{}
	}
	e.parsed[strings.Clone(text)] = s
	return s, nil
}
