package main

import (
	"fmt"
	"strings"
)

// summary says in a few lines what a valid configuration was understood to
// mean.
func (c Config) summary() string {
	var b strings.Builder
	eps := c.Pool.Static.Endpoints
	events, replay := 0, 0
	var models []string
	seen := map[string]bool{}
	learned := 0
	for _, e := range eps {
		if e.Events != "" {
			events++
		}
		if e.Replay != "" {
			replay++
		}
		if len(e.Models) == 0 {
			learned++
		} else if !seen[e.Models[0]] {
			seen[e.Models[0]] = true
			models = append(models, e.Models[0])
		}
	}
	if learned > 0 {
		models = append(models, fmt.Sprintf("%d to be learned", learned))
	}
	fmt.Fprintf(&b, "pool       %d endpoints, %d with events, %d of them with replay; models: %s\n", len(eps), events, replay, strings.Join(models, ", "))
	return b.String()
}
