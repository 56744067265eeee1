package micro

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/warmpath/warmpath/benchmarks/indexops"
	"github.com/warmpath/warmpath/kvindex"
)

// report is what micro prints as JSON.
type report struct {
	FileSHA256 string                    `json:"file_sha256"`
	HeldPairs  int                       `json:"held_pairs"`
	Machine    string                    `json:"machine"`
	Commit     string                    `json:"commit"`
	Indexes    map[string]map[string]any `json:"indexes"`
	Scale      map[string]float64        `json:"scale,omitempty"`
}

func newReport(sum string, f *indexops.File, lanes []*lane) *report {
	rep := &report{FileSHA256: sum, HeldPairs: f.PairsAfterChurn(), Machine: machine(), Commit: commit(), Indexes: map[string]map[string]any{}}
	hash := hashTime()
	for _, l := range lanes {
		fig, med := map[string]any{}, map[string]any{}
		for k, s := range l.samples {
			v := slices.Min(s)
			if strings.Contains(k, "match_p99") {
				v = median(s)
			}
			put(fig, k, v)
			put(med, k, median(s))
		}
		fig["hash_512_us"] = hash
		fig["median"] = med
		fig["queries"], fig["wrong_queries"] = l.queries, l.wrong
		fig["over_credit_pods"], fig["under_credit_pods"] = l.overCredit, l.underCredit
		rep.Indexes[l.name] = fig
	}
	return rep
}

// put files a figure; one of a class becomes a member of the figure's object.
func put(to map[string]any, key string, v float64) {
	figure, class, ok := strings.Cut(key, "/")
	if !ok {
		to[key] = v
		return
	}
	m, _ := to[figure].(map[string]float64)
	if m == nil {
		m = map[string]float64{}
		to[figure] = m
	}
	m[class] = v
}

func median(s []float64) float64 {
	s = slices.Clone(s)
	slices.Sort(s)
	return s[len(s)/2]
}

// hashTime is the least time in µs to compute both hashes of 512 blocks.
func hashTime() float64 {
	h := kvindex.NewHasher(1)
	tokens := make([]kvindex.TokenID, 512*indexops.BlockTokens)
	for i := range tokens {
		tokens[i] = kvindex.TokenID(spread(uint64(i)) % 128_000)
	}
	contents := make([]kvindex.ContentHash, 0, 512)
	chain := make([]kvindex.BlockHash, 0, 512)
	best := time.Hour
	for range 2000 {
		t := time.Now()
		contents = h.AppendContents(contents[:0], tokens, indexops.BlockTokens)
		chain = kvindex.AppendChain(chain[:0], root, contents)
		best = min(best, time.Since(t))
	}
	return float64(best.Nanoseconds()) / 1000
}

// row is one line of the comparison: less is better in share, more in speed-up.
type row struct {
	figure     string
	must, goal float64
	speedup    bool
}

var rows = []row{
	{figure: "match_p50_us/0", speedup: true},
	{figure: "match_p50_us/64", must: 2, goal: 7, speedup: true},
	{figure: "match_p50_us/256", must: 9, goal: 19, speedup: true},
	{figure: "match_p50_us/512", must: 14, goal: 32, speedup: true},
	{figure: "match_p99_us/512", must: 0.10, goal: 0.05},
	{figure: "store_ns_per_block", must: 0.30, goal: 0.10},
	{figure: "churn_store_ns_per_block", must: 0.35, goal: 0.09},
	{figure: "store_single_ns_per_block", must: 0.6, goal: 0.3},
	{figure: "remove_ns_per_block", must: 0.35, goal: 0.14},
}

// text prints absolute figures beside the ratios and their bounds.
func (rep *report) text(out io.Writer, lanes []*lane) error {
	fmt.Fprintf(out, "%s, commit %s\nops %s, %d held pairs\n\n", rep.Machine, rep.Commit, rep.FileSHA256, rep.HeldPairs)
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "figure\t")
	for _, l := range lanes {
		fmt.Fprintf(tw, "%s\tmedian\t", l.name)
	}
	fmt.Fprintln(tw, "ratio\tmust\tgoal\t")
	known := map[string]row{}
	for _, r := range rows {
		known[r.figure] = r
	}
	var names []string
	for k := range lanes[0].samples {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		fmt.Fprintf(tw, "%s\t", k)
		v := make([]float64, len(lanes))
		for i, l := range lanes {
			if len(l.samples[k]) == 0 {
				continue
			}
			v[i] = slices.Min(l.samples[k])
			if strings.Contains(k, "match_p99") {
				v[i] = median(l.samples[k])
			}
			fmt.Fprintf(tw, "%.3f\t%.3f\t", v[i], median(l.samples[k]))
		}
		if r, ok := known[k]; ok && len(lanes) == 2 {
			ratio := v[0] / v[1]
			if r.speedup {
				ratio = v[1] / v[0]
			}
			fmt.Fprintf(tw, "%.3f\t%s\t%s\t", ratio, bound(r.must), bound(r.goal))
		} else {
			fmt.Fprint(tw, "\t\t\t")
		}
		fmt.Fprintln(tw)
	}
	fmt.Fprintf(tw, "hash_512_us\t%.2f\t\t\t\t\t\t\t\n", rep.Indexes[lanes[0].name]["hash_512_us"])
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, l := range lanes {
		fmt.Fprintf(out, "%s: %d queries, %d wrong, over-credited pods %d, under-credited pods %d\n", l.name, l.queries, l.wrong, l.overCredit, l.underCredit)
		if beside, idle := l.samples["match_p99_us_with_writer/512"], l.samples["match_p99_us/512"]; len(beside) > 0 {
			fmt.Fprintf(out, "%s: match p99 at 512 beside a writer / idle %.2f; writer beside a reader / alone %.2f\n", l.name, median(beside)/median(idle),
				slices.Min(l.samples["writer_ns_per_block_with_reader"])/slices.Min(l.samples["writer_ns_per_block_alone"]))
		}
	}
	scale := make([]string, 0, len(rep.Scale))
	for k := range rep.Scale {
		scale = append(scale, k)
	}
	slices.Sort(scale)
	for _, k := range scale {
		fmt.Fprintf(out, "%s: %.3f\n", k, rep.Scale[k])
	}
	return nil
}

func bound(v float64) string {
	if v == 0 {
		return ""
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// machine describes where the figures were taken.
func machine() string {
	model := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	load := ""
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = ", load " + strings.Join(strings.Fields(string(b))[:3], " ")
	}
	return fmt.Sprintf("%s, %d CPUs, %s%s", model, runtime.NumCPU(), runtime.Version(), load)
}

// commit is the checked-out commit, marked where files differ from it.
func commit() string {
	id, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	c := string(bytes.TrimSpace(id))
	if exec.Command("git", "diff", "--quiet", "HEAD").Run() != nil {
		c += "-dirty"
	}
	return c
}

// anon reads the process's anonymous resident memory in bytes.
func anon() (int64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("read resident memory (Linux only): %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read RssAnon: %w", err)
			}
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("read resident memory: no RssAnon in /proc/self/status")
}
