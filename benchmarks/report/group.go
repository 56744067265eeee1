package report

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"

	"github.com/warmpath/warmpath/benchmarks/sim"
)

// group is cells that differ in strategy and load alone.
type group struct {
	workload, setting string
	endpoints         int
	cells             []*sim.Cell
}

func (g *group) section(slo float64) (section, error) {
	heading := fmt.Sprintf("%s, %d endpoints", g.workload, g.endpoints)
	if g.setting != "" {
		heading += ", " + g.setting
	}
	s := section{Heading: heading}
	for _, m := range metrics() {
		s.Tables = append(s.Tables, g.table(m))
	}
	if len(g.loads()) > 1 {
		s.Tables = append(s.Tables, g.knees(slo))
	}
	draw := func(svg template.HTML, err error) error {
		if err == nil && svg != "" {
			s.Drawings = append(s.Drawings, svg)
		}
		return err
	}
	if len(g.loads()) > 1 {
		s.Keys = keys(g.strategies())
		for _, m := range metrics() {
			if err := draw(g.drawing(m)); err != nil {
				return s, err
			}
		}
	}
	high := 0.0
	for _, c := range g.shown() {
		for _, row := range c.Waiting {
			high = max(high, slices.Max(row))
		}
	}
	for _, c := range g.shown() {
		if len(c.Waiting) > 0 {
			if err := draw(heat(fmt.Sprintf("%s: waiting, up to %.3g", c.Strategy, high), fmt.Sprintf("time, at load %g", c.Load), c.Waiting, high)); err != nil {
				return s, err
			}
		}
		if len(c.Regret) > 0 {
			if err := draw(bars(c.Strategy+": regret", fmt.Sprintf("up to, s, at load %g", c.Load), "share of decisions", sim.RegretLabels(), c.Regret)); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

// shown is the cells of the highest load, up to as many as can be looked at.
func (g *group) shown() []*sim.Cell {
	loads := g.loads()
	var out []*sim.Cell
	for _, name := range g.strategies() {
		if c := g.cell(name, loads[len(loads)-1]); c != nil && len(out) < most {
			out = append(out, c)
		}
	}
	return out
}

func (g *group) loads() []float64 {
	var out []float64
	for _, c := range g.cells {
		out = append(out, c.Load)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// strategies are the names of g's strategies, the flagship first, then from
// best to worst under the highest load.
func (g *group) strategies() []string {
	last := map[string]*sim.Cell{}
	var names []string
	for _, c := range g.cells {
		if last[c.Strategy] == nil {
			names = append(names, c.Strategy)
		}
		if last[c.Strategy] == nil || c.Load > last[c.Strategy].Load {
			last[c.Strategy] = c
		}
	}
	slices.SortStableFunc(names, func(a, b string) int {
		if (a == flagship) != (b == flagship) {
			if a == flagship {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(last[b].Load, last[a].Load), cmp.Compare(last[a].MeanTTFT.Mean, last[b].MeanTTFT.Mean))
	})
	return names
}

func (g *group) cell(strategy string, load float64) *sim.Cell {
	for _, c := range g.cells {
		if c.Strategy == strategy && c.Load == load {
			return c
		}
	}
	return nil
}

// table has a row per strategy and a column per load.
func (g *group) table(m metric) figures {
	f := figures{Caption: m.label + ": mean over seeds and half its 95 % interval", Head: []string{"strategy"}}
	if m.more {
		f.Caption += ", more is better"
	}
	best := map[float64]float64{}
	for _, load := range g.loads() {
		f.Head = append(f.Head, fmt.Sprintf("load %g", load))
		for _, name := range g.strategies() {
			if c := g.cell(name, load); c != nil {
				v := m.of(c).Mean
				if b, ok := best[load]; !ok || m.more && v > b || !m.more && v < b {
					best[load] = v
				}
			}
		}
	}
	for _, name := range g.strategies() {
		row := []entry{{Text: name}}
		for _, load := range g.loads() {
			c := g.cell(name, load)
			if c == nil {
				row = append(row, entry{Text: "–"})
				continue
			}
			row = append(row, entry{Text: figure(m.of(c)), Best: m.of(c).Mean == best[load]})
		}
		f.Rows = append(f.Rows, row)
	}
	if bound := bound(m); bound != nil {
		row := []entry{{Text: bound.name}}
		for _, load := range g.loads() {
			text := "–"
			for _, c := range g.cells {
				if c.Load == load && bound.of(c) > 0 {
					text = fmt.Sprintf("%.4g", bound.of(c))
				}
			}
			row = append(row, entry{Text: text})
		}
		f.Rows = append(f.Rows, row)
	}
	return f
}

// reference is a bound that belongs to a metric.
type reference struct {
	name string
	of   func(*sim.Cell) float64
}

func bound(m metric) *reference {
	switch m.name {
	case "mean_ttft_s":
		return &reference{"(pooled reference)", func(c *sim.Cell) float64 { return c.PooledTTFT }}
	case "token_hit":
		return &reference{"(ceiling: one pooled LRU cache)", func(c *sim.Cell) float64 { return c.CeilingHit }}
	}
	return nil
}

// knees lists the highest load that each strategy carries.
func (g *group) knees(slo float64) figures {
	f := figures{
		Caption: fmt.Sprintf("highest load tried with p90 TTFT up to %g s, there and at all loads below", slo),
		Head:    []string{"strategy", "load", "p90 TTFT there, s", "next load", "p90 TTFT there, s"},
	}
	for _, name := range g.strategies() {
		row := []entry{{Text: name}, {Text: "none"}, {Text: "–"}, {Text: "–"}, {Text: "–"}}
		for _, load := range g.loads() {
			c := g.cell(name, load)
			if c == nil {
				continue
			}
			if c.P90TTFT.Mean > slo {
				row[3].Text, row[4].Text = fmt.Sprintf("%g", load), figure(c.P90TTFT)
				break
			}
			row[1].Text, row[2].Text = fmt.Sprintf("%g", load), figure(c.P90TTFT)
		}
		f.Rows = append(f.Rows, row)
	}
	return f
}

// drawing draws a metric against load.
func (g *group) drawing(m metric) (template.HTML, error) {
	var curves []curve
	for _, name := range g.strategies() {
		if len(curves) == most {
			break
		}
		curves = append(curves, newCurve(name, g.loads(), func(load float64) *sim.Cell { return g.cell(name, load) }, m))
	}
	if b := bound(m); b != nil {
		c := curve{name: strings.Trim(b.name, "()"), reference: true}
		for _, load := range g.loads() {
			for _, cell := range g.cells {
				if v := b.of(cell); cell.Load == load && v > 0 {
					c.x, c.y, c.low, c.high = append(c.x, load), append(c.y, v), append(c.low, v), append(c.high, v)
					break
				}
			}
		}
		curves = append(curves, c)
	}
	return lines(m.label+", against load", "load", m, curves)
}

func newCurve(name string, xs []float64, at func(float64) *sim.Cell, m metric) curve {
	c := curve{name: name, main: name == flagship}
	for _, x := range xs {
		cell := at(x)
		if cell == nil {
			continue
		}
		e := m.of(cell)
		c.x, c.y = append(c.x, x), append(c.y, e.Mean)
		c.low, c.high = append(c.low, max(0, e.Mean-e.CI95)), append(c.high, e.Mean+e.CI95)
	}
	return c
}

// capacities draws the hit share against the size of the cache, where cells
// differ in it.
func capacities(groups []*group) ([]section, error) {
	type place struct {
		workload  string
		endpoints int
		load      float64
	}
	cells := map[place][]*sim.Cell{}
	var order []place
	for _, g := range groups {
		for _, c := range g.cells {
			if c.Capacity == 0 {
				continue
			}
			p := place{c.Workload, c.Endpoints, c.Load}
			if cells[p] == nil {
				order = append(order, p)
			}
			cells[p] = append(cells[p], c)
		}
	}
	slices.SortStableFunc(order, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.workload, b.workload), cmp.Compare(a.endpoints, b.endpoints), cmp.Compare(a.load, b.load))
	})
	var out []section
	for _, p := range order {
		g := &group{workload: p.workload, endpoints: p.endpoints}
		var sizes []float64
		for _, c := range cells[p] {
			sizes = append(sizes, c.Capacity)
			// The same cell, with the size in the place of the load.
			shifted := *c
			shifted.Load = c.Capacity
			if g.cell(c.Strategy, c.Capacity) == nil {
				g.cells = append(g.cells, &shifted)
			}
		}
		slices.Sort(sizes)
		if sizes = slices.Compact(sizes); len(sizes) < 2 {
			continue
		}
		for _, m := range metrics() {
			if m.name != "token_hit" {
				continue
			}
			heading := fmt.Sprintf("%s, %d endpoints: hits against cache size", p.workload, p.endpoints)
			if len(out) == 0 || out[len(out)-1].Heading != heading {
				out = append(out, section{Heading: heading, Keys: keys(g.strategies())})
			}
			last := &out[len(out)-1]
			var curves []curve
			for _, k := range last.Keys { // not by this load's order: colours are the section's
				curves = append(curves, newCurve(k.Name, sizes, func(size float64) *sim.Cell { return g.cell(k.Name, size) }, m))
			}
			ceiling := curve{name: "ceiling: one pooled LRU cache", reference: true}
			for _, size := range sizes {
				v := g.cells[slices.IndexFunc(g.cells, func(c *sim.Cell) bool { return c.Load == size })].CeilingHit
				ceiling.x, ceiling.y = append(ceiling.x, size), append(ceiling.y, v)
				ceiling.low, ceiling.high = append(ceiling.low, v), append(ceiling.high, v)
			}
			svg, err := lines(fmt.Sprintf("load %g", p.load), "cache of an engine, as a multiple of its profile's", m, append(curves, ceiling))
			if err != nil {
				return nil, err
			}
			last.Drawings = append(last.Drawings, svg)
		}
	}
	return out, nil
}
