package routing

import (
	"fmt"
	"slices"
	"strings"
)

// selector is a parsed label selector: an endpoint must meet every
// requirement.
type selector []requirement

type operator uint8

const (
	opIn operator = iota
	opNotIn
	opExists
	opNotExists
)

type requirement struct {
	key    string
	op     operator
	values []string
}

// maxSelector bounds the text of a selector, which clients choose.
const maxSelector = 4096

// parseSelector reads the syntax of Kubernetes label selectors (Kubernetes
// docs, "Labels and Selectors"): a=b, a==b, a!=b, a in (b,c), a notin (b,c),
// a, !a, with commas between them.
func parseSelector(text string) (selector, error) {
	if len(text) > maxSelector {
		return nil, fmt.Errorf("a selector of %d bytes is too long; use at most %d", len(text), maxSelector)
	}
	var sel selector
	for rest := strings.TrimSpace(text); ; {
		var r requirement
		var err error
		if r, rest, err = parseRequirement(rest); err != nil {
			return nil, err
		}
		sel = append(sel, r)
		if rest == "" {
			return sel, nil
		}
		if rest[0] != ',' {
			return nil, fmt.Errorf("%q follows a requirement; put a comma between two", clip(rest))
		}
		rest = strings.TrimSpace(rest[1:])
	}
}

// word returns the label key or value that s starts with and what follows it.
func word(s string) (string, string) {
	i := strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./", r))
	})
	if i < 0 {
		i = len(s)
	}
	return s[:i], strings.TrimSpace(s[i:])
}

func parseRequirement(s string) (requirement, string, error) {
	not := strings.HasPrefix(s, "!")
	key, rest := word(strings.TrimSpace(strings.TrimPrefix(s, "!")))
	if key == "" {
		return requirement{}, "", fmt.Errorf("%q does not start with a label; write for example tier=gold,zone in (a,b)", clip(s))
	}
	r := requirement{key: key, op: opExists}
	if not {
		r.op = opNotExists
		return r, rest, nil
	}
	op, after := word(rest)
	switch {
	case rest == "" || rest[0] == ',':
		return r, rest, nil
	case op == "in" || op == "notin":
		if r.op = opIn; op == "notin" {
			r.op = opNotIn
		}
		return parseValues(r, after)
	case strings.HasPrefix(rest, "!="):
		r.op, rest = opNotIn, rest[2:]
	case strings.HasPrefix(rest, "=="):
		r.op, rest = opIn, rest[2:]
	case strings.HasPrefix(rest, "="):
		r.op, rest = opIn, rest[1:]
	default:
		return r, "", fmt.Errorf("%q follows the label %q; use one of =, ==, !=, in, notin", clip(rest), clip(key))
	}
	value, rest := word(strings.TrimSpace(rest)) // empty: the empty value
	r.values = []string{value}
	return r, rest, nil
}

// parseValues reads (b,c).
func parseValues(r requirement, s string) (requirement, string, error) {
	list, rest, ok := strings.Cut(s, ")")
	if !ok || !strings.HasPrefix(list, "(") {
		return r, "", fmt.Errorf("the values of %q are not in parentheses; write for example zone in (a,b)", clip(r.key))
	}
	for v := range strings.SplitSeq(list[1:], ",") {
		v = strings.TrimSpace(v)
		if w, after := word(v); after != "" || w != v {
			return r, "", fmt.Errorf("%q is not a label value", clip(v))
		}
		r.values = append(r.values, v)
	}
	return r, strings.TrimSpace(rest), nil
}

// matches tells whether labels meet the selector. As in Kubernetes, != and
// notin are met by a label that is not there.
func (s selector) matches(labels map[string]string) bool {
	for _, r := range s {
		v, ok := labels[r.key]
		met := false
		switch r.op {
		case opIn:
			met = ok && slices.Contains(r.values, v)
		case opNotIn:
			met = !ok || !slices.Contains(r.values, v)
		case opExists:
			met = ok
		case opNotExists:
			met = !ok
		}
		if !met {
			return false
		}
	}
	return true
}
