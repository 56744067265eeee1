package drive

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/warmpath/warmpath/routing"
)

// server is which server process a lane has.
type serverKind string

const (
	serverNone   serverKind = "none"
	serverNull   serverKind = "null"
	serverRouter serverKind = "router"
)

// promptKind is how requests carry their prompt.
type promptKind string

const (
	// promptSeen: chat messages out of a small set, so that every text has been
	// seen before.
	promptSeen promptKind = "seen"
	// promptUnseen: the same messages with a text in front that never occurs
	// twice, and that the tokenizer leaves out: the tokens are known, the text
	// is not.
	promptUnseen promptKind = "unseen"
	// promptIDs: token ids.
	promptIDs promptKind = "ids"
)

// lane is one way to answer a request.
type lane struct {
	name, doc string
	server    serverKind
	strategy  string
	// reasons are how the router may explain its decisions: a lane that fell
	// back to something cheaper measures nothing. nil: there is no router.
	reasons []routing.Reason
	prompt  promptKind
	// delay is the time that the tokenizer takes.
	delay time.Duration
}

// Names that the code refers to.
const (
	laneDirect = "direct"
	laneNull   = "null"
)

// lanes is the table of all lanes, cheapest first.
func lanes() []lane {
	// A prefix that was found and passed over for load was looked up all the same.
	prefix := []routing.Reason{routing.ReasonPrefix, routing.ReasonSpill}
	all := []lane{
		{name: laneDirect, doc: "through Envoy without an external processor; needs --envoy", server: serverNone, prompt: promptSeen},
		{name: laneNull, doc: "the smallest external processor: three messages, one header set", server: serverNull, prompt: promptSeen},
		{name: "random", doc: "strategy random", server: serverRouter, strategy: "random", reasons: []routing.Reason{routing.ReasonRandom}, prompt: promptSeen},
		{name: "least-request", doc: "strategy least-request", server: serverRouter, strategy: "least-request", reasons: []routing.Reason{routing.ReasonLoad}, prompt: promptSeen},
		{name: "prefix-ids", doc: "strategy prefix-cache, prompts are token ids", server: serverRouter, strategy: "prefix-cache", reasons: prefix, prompt: promptIDs},
	}
	for _, p := range []struct {
		kind      promptKind
		name, doc string
	}{{promptSeen, "warm", "text seen before"}, {promptUnseen, "cold", "text never seen before"}} {
		for _, ms := range []int{0, 1, 5, 20} {
			all = append(all, lane{
				name:   fmt.Sprintf("prefix-%s-%dms", p.name, ms),
				doc:    fmt.Sprintf("strategy prefix-cache, %s, tokenizer of %d ms", p.doc, ms),
				server: serverRouter, strategy: "prefix-cache", reasons: prefix,
				prompt: p.kind, delay: time.Duration(ms) * time.Millisecond,
			})
		}
	}
	return all
}

func laneNames(all []lane) string {
	var names []string
	for _, l := range all {
		names = append(names, l.name)
	}
	return strings.Join(names, ", ")
}

// selectLanes returns the lanes that match a comma-separated list of names and
// patterns (path.Match), in the order of the table. The null lane is always
// among them, for without it there is no ratio. Lanes that need an Envoy are
// left out of patterns if there is none, and refused by name.
func selectLanes(list string, haveEnvoy bool) ([]lane, error) {
	all := lanes()
	chosen := map[string]bool{laneNull: true}
	for want := range strings.SplitSeq(list, ",") {
		want = strings.TrimSpace(want)
		known := false
		for _, l := range all {
			match, err := path.Match(want, l.name)
			if err != nil {
				return nil, fmt.Errorf("--lanes: %q is not a pattern: %w", want, err)
			}
			known = known || match
			if match && l.server == serverNone && !haveEnvoy {
				if want == l.name {
					return nil, fmt.Errorf("--lanes: %s goes through Envoy alone; name one with --envoy PATH", l.name)
				}
				continue
			}
			chosen[l.name] = chosen[l.name] || match
		}
		if !known {
			return nil, fmt.Errorf("--lanes: there is no lane %q; use names or patterns of %s", want, laneNames(all))
		}
	}
	return slices.DeleteFunc(all, func(l lane) bool { return !chosen[l.name] }), nil
}

// row is what is measured together: all its cells in turn.
type row struct {
	body, chunks int
	cells        []cell
}

// cell is one lane in one row.
type cell struct {
	lane
	endpoints int
}

// label names the cell in progress, errors and file names.
func (c cell) label() string { return fmt.Sprintf("%s-%dep", c.name, c.endpoints) }

// plan lays out the rows. The first of endpoints and of chunks is measured at
// every body size, the others at the first body size only: what an endpoint or
// a chunk costs does not depend on the body. The number of endpoints is none
// of the null and the direct lane's business, so they are in a row once.
func plan(chosen []lane, bodies, endpoints, chunks []int) []row {
	var rows []row
	for i, body := range bodies {
		for j, n := range chunks {
			if i > 0 && j > 0 {
				continue
			}
			r := row{body: body, chunks: n}
			for k, eps := range endpoints {
				if (i > 0 || j > 0) && k > 0 {
					continue
				}
				for _, l := range chosen {
					if k == 0 || l.server == serverRouter {
						r.cells = append(r.cells, cell{lane: l, endpoints: eps})
					}
				}
			}
			rows = append(rows, r)
		}
	}
	return rows
}
