package drive

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/warmpath/warmpath/benchmarks/origin"
)

// TestMain also is the server process that the tests start: this program under
// another name.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == commandName && os.Args[2] == serverCommand {
		if err := Run(context.Background(), os.Args[2:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// tiny are options of a run that takes a moment.
func tiny(t *testing.T, args ...string) options {
	t.Helper()
	o, err := parse(append([]string{"--bodies=1K", "--endpoints=3", "--chunks=0", "--requests=20", "--concurrency=4"}, args...), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// requireClean requires the figures that do not depend on the machine.
func requireClean(t *testing.T, results []result, requests int) {
	t.Helper()
	for _, r := range results {
		at := fmt.Sprintf("%s, %d endpoints, %d chunks", r.Name, r.Endpoints, r.ResponseChunks)
		if r.Requests != requests || r.Failures != 0 {
			t.Errorf("%s: %d requests and %d failures (%s), want %d and none", at, r.Requests, r.Failures, r.FirstFailure, requests)
		}
		if r.P50 <= 0 || r.P99 < r.P50 {
			t.Errorf("%s: p50 %v ms, p99 %v ms", at, r.P50, r.P99)
		}
		if r.Name == laneDirect {
			continue
		}
		if r.Messages != messagesPerRequest {
			t.Errorf("%s: %v messages per request, want %d", at, r.Messages, messagesPerRequest)
		}
		if r.CPU <= 0 || r.Ratio <= 0 || r.Allocs <= 0 || r.PeakResident <= 0 {
			t.Errorf("%s: a cost was not measured: %+v", at, r)
		}
		// Each unseen text is asked for, perhaps twice by a hedge; one that was
		// seen may be, if it was forgotten, but not always.
		switch cold := strings.HasPrefix(r.Name, "prefix-cold-"); {
		case cold && r.Tokenized < 1, strings.HasPrefix(r.Name, "prefix-warm-") && r.Tokenized > 0.5, !strings.HasPrefix(r.Name, "prefix-") && r.Tokenized != 0, r.Name == "prefix-ids" && r.Tokenized != 0:
			t.Errorf("%s: the tokenizer was asked %v times per request", at, r.Tokenized)
		}
		if r.Name == laneNull && r.Ratio != 1 {
			t.Errorf("%s: ratio to itself is %v", at, r.Ratio)
		}
	}
}

func TestRun_EveryLane(t *testing.T) {
	d := &driver{options: tiny(t)}
	results, err := d.measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	requireClean(t, results, 20)
	if want := len(lanes()) - 1; len(results) != want {
		t.Errorf("%d results, want %d: all lanes but that which needs Envoy", len(results), want)
	}
}

func TestRun_EndpointsAndChunks(t *testing.T) {
	d := &driver{options: tiny(t, "--lanes=prefix-ids", "--bodies=1K,200K", "--endpoints=3,20", "--chunks=0,5")}
	results, err := d.measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	requireClean(t, results, 20)
	var got []string
	for _, r := range results {
		got = append(got, fmt.Sprintf("%s %d %s %d", r.Name, r.Endpoints, size(r.BodyBytes), r.ResponseChunks))
	}
	want := []string{
		"null 3 1K 0", "prefix-ids 3 1K 0", "prefix-ids 20 1K 0", "null 3 1K 5", "prefix-ids 3 1K 5",
		"null 3 200K 0", "prefix-ids 3 200K 0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
}

func TestRun_ThroughEnvoy(t *testing.T) {
	program := os.Getenv("WARMPATH_TEST_ENVOY")
	if program == "" {
		t.Skip("WARMPATH_TEST_ENVOY does not name an Envoy program; make test sets it")
	}
	d := &driver{options: tiny(t, "--envoy="+program, "--chunks=0,5", "--lanes=direct,random,prefix-ids,prefix-cold-0ms")}
	results, err := d.measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	requireClean(t, results, 20)
	if len(results) != 10 {
		t.Errorf("%d results, want 5 lanes at two numbers of chunks", len(results))
	}
}

// An interrupted run keeps the rows that were finished.
func TestRun_InterruptedKeepsResults(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			if strings.HasPrefix(s.Text(), "row 2 of 2") {
				cancel()
			}
		}
	}()
	d := &driver{options: tiny(t, "--lanes=random", "--chunks=0,5"), progress: newProgress(w)}
	results, err := d.measure(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("measure: %v, want %v", err, context.Canceled)
	}
	if len(results) < 2 {
		t.Fatalf("%d results, want those of the first row", len(results))
	}
	requireClean(t, results[:2], 20)
}

func TestRemote_FaultsAreNamed(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := startRemote(t.Context(), program, "bad", t.TempDir(), serverConfig{Kind: serverNull}); err == nil || !strings.Contains(err.Error(), "addresses: empty") {
		t.Errorf("a server without endpoints: %v, want its own words", err)
	}
	r, err := startRemote(t.Context(), program, "null-1", t.TempDir(), serverConfig{Kind: serverNull, Addresses: imaginary(1)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.stop()
	if err := r.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	if _, err := r.usage(t.Context(), orderBegin); err == nil || !strings.Contains(err.Error(), "null-1") {
		t.Errorf("a server that was killed: %v, want an error that names it", err)
	}
}

func TestParse_Refuses(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--lanes=nonsense", `there is no lane "nonsense"; use names or patterns of direct, null, random`},
		{"--lanes=random,prefix-[", "not a pattern"},
		{"--lanes=direct", "--envoy"},
		{"--bodies=1K,2X", `"2X" is not a number`},
		{"--bodies=100", "out of range"},
		{"--bodies=1K,1024", "twice"},
		{"--endpoints=0", "out of range"},
		{"--endpoints=9M", "out of range"},
		{"--chunks=", `"" is not a number`},
		{"--requests=0", "--requests: 0 is out of range"},
		{"--requests=10 --seconds=1", "exclude each other"},
		{"--seconds=NaN", "--seconds: NaN is out of range"},
		{"--seconds=1e9", "out of range"},
		{"--slice=1ms", "--slice: 1ms is out of range"},
		{"--concurrency=0", "out of range"},
		{"--envoy=/nonexistent", "--envoy: "},
		{"--save=/nonexistent/x", "make the directory first"},
		{"extra", `unexpected argument "extra"`},
	} {
		_, err := parse(strings.Fields(tt.args), &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", tt.args, err, tt.want)
		}
	}
}

func TestParse_Defaults(t *testing.T) {
	o, err := parse(nil, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{1 << 10, 10 << 10, 100 << 10, 1 << 20}, o.bodies); diff != "" {
		t.Errorf("bodies (-want +got):\n%s", diff)
	}
	if n, b := o.rounds(); n != 30 || b.time != 100*time.Millisecond || b.requests != 0 {
		t.Errorf("%d rounds of %+v, want 30 of 100ms", n, b)
	}
}

func TestSelectLanes(t *testing.T) {
	for _, tt := range []struct {
		list  string
		envoy bool
		want  string
	}{
		{"random", false, "null, random"},
		{"random, null", false, "null, random"},
		{"prefix-cold-*,random", false, "null, random, prefix-cold-0ms, prefix-cold-1ms, prefix-cold-5ms, prefix-cold-20ms"},
		{"*-ids,direct", true, "direct, null, prefix-ids"},
		{"*", true, laneNames(lanes())},
		{"*", false, strings.TrimPrefix(laneNames(lanes()), "direct, ")},
	} {
		got, err := selectLanes(tt.list, tt.envoy)
		if err != nil {
			t.Fatal(err)
		}
		if laneNames(got) != tt.want {
			t.Errorf("%q: %s, want %s", tt.list, laneNames(got), tt.want)
		}
	}
}

func TestPlan(t *testing.T) {
	chosen, err := selectLanes("random", false)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range plan(chosen, []int{1024, 4096}, []int{10, 1000}, []int{0, 100}) {
		for _, c := range r.cells {
			got = append(got, fmt.Sprintf("%d/%d %s", r.body, r.chunks, c.label()))
		}
	}
	want := []string{
		"1024/0 null-10ep", "1024/0 random-10ep", "1024/0 random-1000ep",
		"1024/100 null-10ep", "1024/100 random-10ep",
		"4096/0 null-10ep", "4096/0 random-10ep",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}

// The members that other programs read.
func TestWriteJSON_Schema(t *testing.T) {
	var b bytes.Buffer
	if err := writeJSON(&b, origin.Origin{}, options{}, []result{{Name: "random", BodyBytes: 1024}}); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Lanes []map[string]any `json:"lanes"`
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Lanes) != 1 || got.Lanes[0]["name"] != "random" || got.Lanes[0]["body_bytes"] != 1024.0 {
		t.Fatalf("lanes: %v", got.Lanes)
	}
	for _, key := range []string{
		"name", "body_bytes", "endpoints", "requests", "failures", "cpu_us_per_request", "ratio_to_null",
		"allocs_per_request", "messages_per_request", "p50_ms", "p99_ms",
	} {
		if _, ok := got.Lanes[0][key]; !ok {
			t.Errorf("a lane has no member %s", key)
		}
	}
	b.Reset()
	if err := writeJSON(&b, origin.Origin{}, options{}, nil); err != nil || !strings.Contains(b.String(), `"lanes": []`) {
		t.Errorf("without results: %v, %s", err, b.String())
	}
}

func TestWriteTable_SaysWhereFiguresComeFrom(t *testing.T) {
	var b bytes.Buffer
	env := origin.Origin{Machine: "a machine", Commit: "abc", Go: "go9", Command: "the command"}
	writeTable(&b, env, options{concurrency: 7}, []result{
		{Name: laneNull, BodyBytes: 1 << 20, Endpoints: 10, Requests: 5, CPU: 40, Ratio: 1, RatioLow: 1, RatioHigh: 1, Messages: 3},
		{Name: "random", BodyBytes: 1 << 10, Endpoints: 10, Requests: 5, CPU: 88, Ratio: 2.2, RatioLow: 2.1, RatioHigh: 2.3, Messages: 3},
	})
	for _, want := range []string{"a machine", "abc", "go9", "the command", "7 requests at a time", "88.0", "2.20 × null (≤ 2.4, goal 1.2: met)"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table does not say %q:\n%s", want, b.String())
		}
	}
}

func TestSave_WritesBothForms(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "x")
	if err := save(prefix, origin.Origin{Commit: "abc"}, options{}, []result{{Name: "random", BodyBytes: 1024}}); err != nil {
		t.Fatal(err)
	}
	for _, ext := range []string{".txt", ".json"} {
		text, err := os.ReadFile(prefix + ext)
		if err != nil || !bytes.Contains(text, []byte("random")) || !bytes.Contains(text, []byte("abc")) {
			t.Errorf("%s: %v\n%s", ext, err, text)
		}
	}
}

func TestFailures(t *testing.T) {
	if err := failures([]result{{Name: "random", Requests: 5}}); err != nil {
		t.Error(err)
	}
	err := failures([]result{{Name: "random", BodyBytes: 1024, Endpoints: 3, Requests: 5, Failures: 2, FirstFailure: "why"}})
	if err == nil || err.Error() != "lane random, 3 endpoints, 1K body: 2 of 5 requests failed, first: why" {
		t.Error(err)
	}
}
