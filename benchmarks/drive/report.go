package drive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/warmpath/warmpath/benchmarks/origin"
)

func writeJSON(out io.Writer, env origin.Origin, o options, results []result) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	if results == nil {
		results = []result{}
	}
	return e.Encode(struct {
		Origin      origin.Origin `json:"origin"`
		Concurrency int           `json:"concurrency"`
		Envoy       bool          `json:"envoy"`
		Seed        uint64        `json:"seed"`
		Lanes       []result      `json:"lanes"`
	}{env, o.concurrency, o.envoy != "", o.seed, results})
}

// save writes both forms of the report.
func save(prefix string, env origin.Origin, o options, results []result) error {
	var text, data bytes.Buffer
	writeTable(&text, env, o, results)
	if err := writeJSON(&data, env, o, results); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(prefix+".txt", text.Bytes(), 0o644), os.WriteFile(prefix+".json", data.Bytes(), 0o644))
}

func writeTable(out io.Writer, env origin.Origin, o options, results []result) {
	through := "straight over the external processing protocol"
	if o.envoy != "" {
		through = "through Envoy"
	}
	_ = env.Write(out)
	fmt.Fprintf(out, "driven   %s, closed loop of %d requests at a time\n\n", through, o.concurrency)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := []string{"lane", "endpoints", "body", "chunks", "requests", "failed", "CPU µs", "× null", "from", "to", "allocs", "KB", "messages", "tokenized", "p50 ms", "p99 ms", "null p50", "null p99", "peak MB", "idle MB", "cache MB"}
	if o.envoy != "" {
		head = append(head, "Envoy µs")
	}
	fmt.Fprintln(w, strings.Join(head, "\t")+"\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%s\t%s\t%s\t",
			r.Name, r.Endpoints, size(r.BodyBytes), r.ResponseChunks, r.Requests, r.Failures,
			figure(r.CPU, 1), figure(r.Ratio, 2), figure(r.RatioLow, 2), figure(r.RatioHigh, 2), figure(r.Allocs, 0), figure(r.Bytes/1024, 1), figure(r.Messages, 2), figure(r.Tokenized, 2),
			r.P50, r.P99, r.NullP50, r.NullP99, figure(float64(r.PeakResident)/(1<<20), 1), figure(float64(r.Idle)/(1<<20), 1), figure(float64(r.TokenCache)/(1<<20), 1))
		if o.envoy != "" {
			fmt.Fprintf(w, "%s\t", figure(r.EnvoyCPU, 0))
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
	fmt.Fprintf(out, "\nCPU, allocs, KB and messages are the server's for one request, and how often it asked the tokenizer; CPU and × null are medians of the rounds,\nfrom and to the bounds of × null with a confidence of 95 %%.\nPeak MB is the most physical memory of the server's process at any time since before its first request, warm-up included: the pages of the program file,\nthe heap with what the collector has not freed, and caches; idle MB what it had before the first request, cache MB what the tokenizer's cache held at\nmost, which is no memory of requests in flight and has a bound of its own.\n")
	if v := verdicts(results); len(v) > 0 && o.envoy == "" {
		fmt.Fprintf(out, "\nBars:\n  %s\n", strings.Join(v, "\n  "))
	}
}

// figure writes what was not measured as a dash.
func figure(v float64, digits int) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f", digits, v)
}
