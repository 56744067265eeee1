package report

import (
	"bytes"
	"fmt"
	"html/template"
	"image/color"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/palette/moreland"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Sizes of a drawing.
const (
	width  = 18 * vg.Centimeter
	height = 10.5 * vg.Centimeter
)

// curve is a line with a band around it.
type curve struct {
	name string
	// x grows; low and high bound the band, equal to y where there is none.
	x, y, low, high []float64
	// main is drawn thick, reference dashed and black.
	main, reference bool
}

// colors are told apart by people who are colour-blind, too (Okabe and Ito,
// "Color Universal Design", 2008; yellow is left out, as it is hard to see on
// white, and what the paper lacks is appended).
func colors() []color.NRGBA {
	return []color.NRGBA{
		{0, 114, 178, 255},
		{213, 94, 0, 255},
		{0, 158, 115, 255},
		{204, 121, 167, 255},
		{86, 180, 233, 255},
		{230, 159, 0, 255},
		{102, 102, 102, 255},
		{148, 103, 189, 255},
		{140, 86, 75, 255},
	}
}

// lines draws curves of a metric, in the order and colours of [keys].
func lines(title, x string, m metric, curves []curve) (template.HTML, error) {
	p := plot.New()
	y := m.label
	// Where there is nothing above 0 a logarithmic axis has no range.
	m.logarithmic = m.logarithmic && slices.ContainsFunc(curves, func(c curve) bool { return len(c.y) > 0 && slices.Max(c.y) > 0 })
	if m.logarithmic {
		y += " (logarithmic)"
	}
	style(p, title, x, y)
	if !m.logarithmic {
		p.Y.Min = 0
	} else {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, insideTicks{}
	}
	palette, next := colors(), 0
	for _, c := range curves {
		shade := color.NRGBA{0, 0, 0, 255}
		if !c.reference {
			shade = palette[next%len(palette)]
			next++
		}
		if err := addCurve(p, c, shade, m.logarithmic); err != nil {
			return "", fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return drawing(p, width, height)
}

func addCurve(p *plot.Plot, c curve, shade color.NRGBA, logarithmic bool) error {
	var points, band plotter.XYs
	for i := range c.x {
		if logarithmic && c.y[i] <= 0 {
			continue
		}
		points = append(points, plotter.XY{X: c.x[i], Y: c.y[i]})
		band = append(band, plotter.XY{X: c.x[i], Y: c.high[i]})
	}
	if len(points) == 0 {
		return nil
	}
	for i := len(c.x) - 1; i >= 0; i-- {
		if logarithmic && c.y[i] <= 0 {
			continue
		}
		low := c.low[i]
		if logarithmic {
			// A band that reaches 0 has no place on a logarithmic axis.
			low = max(low, c.y[i]/10)
		}
		band = append(band, plotter.XY{X: c.x[i], Y: low})
	}
	area, err := plotter.NewPolygon(band)
	if err != nil {
		return err
	}
	area.LineStyle.Width = 0
	area.Color = color.NRGBA{shade.R, shade.G, shade.B, 45}
	line, marks, err := plotter.NewLinePoints(points)
	if err != nil {
		return err
	}
	line.Color, marks.Color = shade, shade
	line.Width, marks.Radius, marks.Shape = vg.Points(1.2), vg.Points(2), draw.CircleGlyph{}
	switch {
	case c.main:
		line.Width, marks.Radius = vg.Points(2.8), vg.Points(3)
	case c.reference:
		line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	}
	p.Add(area, line, marks)
	return nil
}

// grid is a heat map's data: rows of equal length.
type grid [][]float64

func (g grid) Dims() (c, r int)   { return len(g[0]), len(g) }
func (g grid) Z(c, r int) float64 { return g[r][c] }
func (g grid) X(c int) float64    { return float64(c) }
func (g grid) Y(r int) float64    { return float64(r) }

// heat draws one row per endpoint, from left to right in time. high is the
// value of the darkest colour, so that drawings beside each other compare.
func heat(title, x string, rows grid, high float64) (template.HTML, error) {
	p := plot.New()
	style(p, title, x, "endpoint")
	shades := moreland.ExtendedBlackBody()
	shades.SetMin(0)
	shades.SetMax(max(high, math.SmallestNonzeroFloat64))
	m := plotter.NewHeatMap(rows, reversed{shades.Palette(64).Colors()})
	m.Min, m.Max = 0, max(high, math.SmallestNonzeroFloat64)
	p.Add(m)
	p.Y.Tick.Marker = wholeTicks{len(rows)}
	p.X.Tick.Marker = wholeTicks{len(rows[0])}
	p.X.Padding, p.Y.Padding = 0, 0
	return drawing(p, width/2, vg.Length(float64(2.6*vg.Centimeter)+float64(len(rows))*0.28*float64(vg.Centimeter)))
}

// reversed has light colours for little.
type reversed struct{ colors []color.Color }

func (r reversed) Colors() []color.Color {
	out := make([]color.Color, len(r.colors))
	for i, c := range r.colors {
		out[len(out)-1-i] = c
	}
	return out
}

// wholeTicks marks a few whole numbers below n.
type wholeTicks struct{ n int }

func (w wholeTicks) Ticks(_, _ float64) []plot.Tick {
	var out []plot.Tick
	for i := 0; i < w.n; i += max(1, (w.n+7)/8) {
		out = append(out, plot.Tick{Value: float64(i), Label: fmt.Sprint(i)})
	}
	return out
}

// insideTicks are logarithmic ticks without those beyond the axis, for whose
// labels the drawing would make room.
type insideTicks struct{}

func (insideTicks) Ticks(low, high float64) []plot.Tick {
	return slices.DeleteFunc(plot.LogTicks{Prec: -1}.Ticks(low, high), func(t plot.Tick) bool { return t.Value < low || t.Value > high })
}

// bars draws a histogram whose bins have the given upper bounds.
func bars(title, x, y string, labels []string, shares []float64) (template.HTML, error) {
	p := plot.New()
	style(p, title, x, y)
	chart, err := plotter.NewBarChart(plotter.Values(shares), vg.Points(14))
	if err != nil {
		return "", err
	}
	chart.Color, chart.LineStyle.Width = colors()[0], 0
	p.Add(chart)
	p.NominalX(labels...)
	p.Y.Min = 0
	return drawing(p, width/2, height*2/3)
}

func style(p *plot.Plot, title, x, y string) {
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = vg.Points(6)
	p.BackgroundColor = color.White
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{225}, color.Gray{240}
	p.Add(grid)
	for _, s := range []*draw.TextStyle{&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label} {
		s.Font.Variant = "Sans"
	}
}

// drawing renders p as an SVG element that stands in an HTML page.
func drawing(p *plot.Plot, w, h vg.Length) (template.HTML, error) {
	c := vgsvg.New(w, h)
	// The last tick's label is centered on the right end of the axis.
	p.Draw(draw.Crop(draw.New(c), 0, -vg.Points(16), 0, -vg.Points(3)))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return "", err
	}
	_, svg, ok := strings.Cut(b.String(), "<svg")
	if !ok {
		return "", fmt.Errorf("%s: the drawing has no svg element", p.Title.Text)
	}
	// The element is made of numbers and of text that the library escapes.
	return template.HTML("<svg role=\"img\" aria-label=\"" + template.HTMLEscapeString(p.Title.Text) + "\"" + svg), nil //nolint:gosec // see above
}
