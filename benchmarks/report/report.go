package report

import (
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
