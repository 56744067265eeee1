package routing

import (
	"fmt"
	"strings"
)

// StrategyTable returns the table of all strategies as Markdown, for the
// documentation.
func StrategyTable() string {
	var b strings.Builder
	b.WriteString("| Strategy | Chooses | Cost (the lowest wins) | Unit | Needs | When that is missing | In blends |\n|---|---|---|---|---|---|---|\n")
	for _, s := range strategies() {
		blends, unit := "no", string(s.unit)
		if s.seconds != nil {
			blends = "yes"
		}
		if unit == "" {
			unit = "–"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s |\n", s.name, s.doc, s.formula, unit, s.needs, s.missing, blends)
	}
	return b.String()
}
