package report

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/warmpath/warmpath/benchmarks/sim"
)

//go:embed page.html.tmpl
var page string

// flagship is the strategy that drawings show thickest.
const flagship = "prefix-cache"

// most bounds the curves of a drawing: more cannot be told apart.
const most = 9

// Report is the command that draws results.
func Report(_ context.Context, args []string, out *os.File) error {
	fs := flag.NewFlagSet("report", flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprintln(fs.Output(), "usage: report [flags] RESULT ...\n\nRESULT is a file that sim --json wrote. Several are shown as one.")
		fs.PrintDefaults()
	}
	html := fs.String("html", "report.html", "page to write, which needs nothing but a browser; empty is none")
	markdown := fs.String("markdown", "", "tables to write as Markdown; - is standard output, empty is none")
	title := fs.String("title", "Routing, simulated", "heading")
	slo := fs.Float64("slo", 2, "p90 TTFT in `seconds` up to which a load is carried")
	strategies := fs.String("strategies", "", "only these, separated by commas")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() == 0 {
		return errors.New("no result; use: report RESULT")
	}
	if !(*slo > 0) {
		return fmt.Errorf("--slo %v: must be seconds above 0", *slo)
	}
	var cells []sim.Cell
	for _, path := range fs.Args() {
		r, err := read(path)
		if err != nil {
			return err
		}
		cells = append(cells, r.Cells...)
	}
	if *strategies != "" {
		wanted := strings.Split(*strategies, ",")
		cells = slices.DeleteFunc(cells, func(c sim.Cell) bool { return !slices.Contains(wanted, c.Strategy) })
	}
	if len(cells) == 0 {
		return errors.New("no cells to show")
	}
	doc, err := newDocument(*title, *slo, cells)
	if err != nil {
		return err
	}
	if *markdown != "" {
		if err := write(*markdown, out, doc.markdown); err != nil {
			return err
		}
	}
	if *html == "" {
		return nil
	}
	if err := write(*html, out, doc.html); err != nil {
		return err
	}
	if *html != "-" {
		fmt.Fprintf(out, "%s: %d cells\n", *html, len(cells))
	}
	return nil
}

// write makes a file, or writes to out if path is "-".
func write(path string, out io.Writer, content func(io.Writer) error) (err error) {
	if path == "-" {
		return content(out)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return content(f)
}

// document is a report.
type document struct {
	Title    string
	SLO      float64
	Sections []section
}

// section is one workload on one fleet.
type section struct {
	Heading string
	Tables  []figures
	// Keys tell the curves of the drawings.
	Keys     []legend
	Drawings []template.HTML
}

// legend is the colour of a strategy, the same in all drawings of a section.
type legend struct{ Name, Color string }

func keys(strategies []string) []legend {
	var out []legend
	for i, name := range strategies[:min(len(strategies), most)] {
		c := colors()[i]
		out = append(out, legend{name, fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B)})
	}
	return out
}

// figures is a table. The first column names rows.
type figures struct {
	Caption string
	Head    []string
	Rows    [][]entry
}

type entry struct {
	Text string
	// Best marks the best of its column.
	Best bool
}

// group is cells that differ in strategy and load alone.
type group struct {
	workload, setting string
	endpoints         int
	cells             []*sim.Cell
}

func newDocument(title string, slo float64, cells []sim.Cell) (*document, error) {
	doc := &document{Title: title, SLO: slo}
	var groups []*group
	for i := range cells {
		c := &cells[i]
		if c.Load == 0 { // it was given as a speed
			c.Load, c.Setting = c.Speed, strings.TrimPrefix(c.Setting+", loads as multiples of the recorded rate", ", ")
		}
		at := slices.IndexFunc(groups, func(g *group) bool {
			return g.workload == c.Workload && g.setting == c.Setting && g.endpoints == c.Endpoints
		})
		if at < 0 {
			at = len(groups)
			groups = append(groups, &group{workload: c.Workload, setting: c.Setting, endpoints: c.Endpoints})
		}
		groups[at].cells = append(groups[at].cells, c)
	}
	for _, g := range groups {
		s, err := g.section(slo)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", g.workload, err)
		}
		doc.Sections = append(doc.Sections, s)
	}
	capacity, err := capacities(groups)
	doc.Sections = append(doc.Sections, capacity...)
	return doc, err
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
			if err := draw(heat(c.Strategy, fmt.Sprintf("requests waiting, over time, load %g", c.Load), c.Waiting, high)); err != nil {
				return s, err
			}
		}
		if len(c.Regret) > 0 {
			if err := draw(bars(c.Strategy, fmt.Sprintf("regret up to, s, load %g", c.Load), "share of decisions", sim.RegretLabels(), c.Regret)); err != nil {
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
		c.low, c.high = append(c.low, e.Mean-e.CI95), append(c.high, e.Mean+e.CI95)
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
			var curves []curve
			for _, name := range g.strategies() {
				if len(curves) < most {
					curves = append(curves, newCurve(name, sizes, func(size float64) *sim.Cell { return g.cell(name, size) }, m))
				}
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
			heading := fmt.Sprintf("%s, %d endpoints: hits against cache size", p.workload, p.endpoints)
			if len(out) == 0 || out[len(out)-1].Heading != heading {
				out = append(out, section{Heading: heading, Keys: keys(g.strategies())})
			}
			last := &out[len(out)-1]
			last.Drawings = append(last.Drawings, svg)
		}
	}
	return out, nil
}

func (d *document) html(w io.Writer) error {
	t, err := template.New("page").Parse(page)
	if err != nil {
		return err
	}
	return t.Execute(w, d)
}

func (d *document) markdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n", d.Title)
	for _, s := range d.Sections {
		if len(s.Tables) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n", s.Heading)
		for _, f := range s.Tables {
			fmt.Fprintf(&b, "\n%s:\n\n| %s |\n|%s\n", f.Caption, strings.Join(f.Head, " | "), "---|"+strings.Repeat("---:|", len(f.Head)-1))
			for _, row := range f.Rows {
				for _, e := range row {
					if e.Best {
						fmt.Fprintf(&b, "| **%s** ", e.Text)
					} else {
						fmt.Fprintf(&b, "| %s ", e.Text)
					}
				}
				b.WriteString("|\n")
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
