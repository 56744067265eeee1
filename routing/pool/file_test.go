package pool

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const oneInFile = "endpoints:\n- {name: a, address: \"10.0.0.1:1\", models: [m]}\n"

// fileRun runs a pool that follows a file, in a bubble where time passes at
// once.
func fileRun(t *testing.T, path string, test func(p *Pool, tick func(), log *bytes.Buffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.Load.Interval = 0
		cfg.File.Path = path
		var text bytes.Buffer
		log := slog.New(slog.NewTextHandler(&text, nil))
		reg := prometheus.NewRegistry()
		p := New(cfg, log, reg, &http.Client{Transport: offline{}}, rand.New(rand.NewPCG(1, 1)), NewFile(cfg.File, log, reg))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		synctest.Wait()
		test(p, func() {
			<-time.After(cfg.File.Interval) // in a bubble: until the file was looked at once
			synctest.Wait()
		}, &text)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFile_IsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.yaml")
	write(t, path, oneInFile)
	fileRun(t, path, func(p *Pool, tick func(), log *bytes.Buffer) {
		one := p.Snapshot().ByAddress("10.0.0.1:1")
		if one == nil || !closedNow(p.Synced()) {
			t.Fatalf("the file's endpoint is not in the pool:\n%s", view(p.Snapshot()))
		}
		// Replaced as editors do, by another file.
		write(t, path+".new", oneInFile+"- {name: b, address: \"10.0.0.2:1\"}\n")
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		tick()
		tick()
		if s := p.Snapshot(); len(s.Endpoints) != 2 || s.ByAddress("10.0.0.1:1").State != one.State {
			t.Errorf("an added endpoint is not there, or the other lost its state:\n%s", view(s))
		}
		write(t, path, "endpoints:\n- {name: b, address: \"10.0.0.2:1\"}\n- {name: c, adress: x}\n")
		tick()
		tick()
		if s := p.Snapshot(); len(s.Endpoints) != 2 || !strings.Contains(log.String(), "field adress not found") {
			t.Errorf("an invalid file changed the pool, or the reason is not logged:\n%s\n%s", view(s), log)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		tick()
		tick()
		if s := p.Snapshot(); len(s.Endpoints) != 2 {
			t.Errorf("a file that is being replaced changed the pool:\n%s", view(s))
		}
		write(t, path, "endpoints: []\n")
		tick()
		tick()
		if s := p.Snapshot(); len(s.Endpoints) != 0 {
			t.Errorf("endpoints that were removed are still there:\n%s", view(s))
		}
	})
}

// A ConfigMap's files are links into a folder that is replaced by another
// link (Kubernetes documentation, "Mounted ConfigMaps are updated
// automatically").
func TestFile_OfAConfigMap(t *testing.T) {
	dir := t.TempDir()
	generation := func(name, text string) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "endpoints.yaml"), text)
		if err := os.Symlink(name, filepath.Join(dir, "..data.new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data.new"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	generation("..1", oneInFile)
	path := filepath.Join(dir, "endpoints.yaml")
	if err := os.Symlink("..data/endpoints.yaml", path); err != nil {
		t.Fatal(err)
	}
	fileRun(t, path, func(p *Pool, tick func(), _ *bytes.Buffer) {
		generation("..2", strings.ReplaceAll(oneInFile, "10.0.0.1", "10.0.0.9"))
		tick()
		tick()
		if p.Snapshot().ByAddress("10.0.0.9:1") == nil {
			t.Errorf("the next generation of the ConfigMap is not in the pool:\n%s", view(p.Snapshot()))
		}
	})
}

// A router whose file is not valid at start waits for one that is.
func TestFile_IsWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.yaml")
	fileRun(t, path, func(p *Pool, tick func(), _ *bytes.Buffer) {
		tick()
		if closedNow(p.Synced()) {
			t.Error("synced without a file")
		}
		write(t, path, "endpoints: [")
		for range 4 {
			tick()
			if closedNow(p.Synced()) {
				t.Fatal("synced with a file that is not valid")
			}
		}
		write(t, path, oneInFile)
		tick()
		tick()
		if !closedNow(p.Synced()) || len(p.Snapshot().Endpoints) != 1 {
			t.Error("not synced with a valid file")
		}
	})
}

func closedNow(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// A file that is not valid at start stays so however often it is looked at.
func TestFile_NotValidAtStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.yaml")
	write(t, path, "endpoints: [")
	fileRun(t, path, func(p *Pool, tick func(), log *bytes.Buffer) {
		for range 3 {
			if closedNow(p.Synced()) {
				t.Fatal("synced with a file that is not valid")
			}
			tick()
		}
		if n := strings.Count(log.String(), "is not valid"); n != 1 {
			t.Errorf("the reason is logged %d times, want once:\n%s", n, log)
		}
	})
}

// A look may catch a file while it is written: empty, or cut where what there
// is so far is a valid list. Neither takes endpoints away.
func TestFile_CaughtWhileItIsWritten(t *testing.T) {
	const two = oneInFile + "- {name: b, address: \"10.0.0.2:1\", models: [m]}\n"
	path := filepath.Join(t.TempDir(), "endpoints.yaml")
	write(t, path, two)
	fileRun(t, path, func(p *Pool, tick func(), log *bytes.Buffer) {
		check := func(when string, want int) {
			t.Helper()
			if s := p.Snapshot(); len(s.Endpoints) != want {
				t.Fatalf("%s: want %d endpoints:\n%s", when, want, view(s))
			}
		}
		check("at start", 2)
		for _, part := range []string{"", oneInFile, two[:len(two)-9], "", two} {
			write(t, path, part)
			tick()
			check(fmt.Sprintf("%q for one look", part), 2)
		}
		tick()
		check("written as it was", 2)
		// Looks that read the same, but not in a row.
		for range 2 {
			write(t, path, oneInFile)
			tick()
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			tick()
			check("gone after one look", 2)
			write(t, path, oneInFile)
			tick()
			write(t, path, two)
			tick()
			check("as it was after one look", 2)
		}
		if strings.Contains(log.String(), "is not valid") {
			t.Errorf("what one look read is called not valid:\n%s", log)
		}
		for _, tt := range []struct {
			text string
			want int
		}{{oneInFile, 1}, {two, 2}, {"", 0}} {
			write(t, path, tt.text)
			tick()
			tick()
			check(fmt.Sprintf("%q for two looks", tt.text), tt.want)
		}
	})
}

// A file that grows without end takes no more memory than the largest that is
// valid.
func TestFile_TooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.yaml")
	write(t, path, oneInFile)
	var told int
	reg := prometheus.NewRegistry()
	var text bytes.Buffer
	f := followed{
		File: NewFile(FileConfig{Path: path, Interval: time.Second}, slog.New(slog.NewTextHandler(&text, nil)), reg),
		tell: func([]Change) { told++ },
		file: NewRestedFile(path, nil),
	}
	f.look()
	// Valid but for its size.
	write(t, path, "endpoints: []\n#"+strings.Repeat(" ", 2*MaxFile))
	for range 3 {
		f.look()
		if len(f.file.next) > MaxFile+1 || len(f.file.content) > MaxFile+1 {
			t.Fatalf("%d and %d bytes were read", len(f.file.next), len(f.file.content))
		}
	}
	const want = "more than 16777216 bytes"
	if told != 1 || f.valid || strings.Count(text.String(), want) != 1 {
		t.Errorf("told %d times, valid: %v, or not once %q:\n%s", told, f.valid, want, &text)
	}
	if _, err := ReadFile(path); err == nil || !strings.Contains(err.Error(), path+": "+want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestFile_Faults(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"endpoints: []", ""},
		{oneInFile, ""},
		{"endpoints: [{name: a, address: nowhere}]", `endpoints[0].address: "nowhere" is not ip:port`},
		{"endpoint: []", "line 1: field endpoint not found"},
		{oneInFile + "---\n" + oneInFile, "a second document"},
		{"endpoints:\n- {name: a, address: \"10.0.0.1:1\"}\n- {name: a, address: \"10.0.0.1:1\"}", `endpoints[1].name: "a" is also the name of endpoints[0]`},
	} {
		path := filepath.Join(t.TempDir(), "f.yaml")
		write(t, path, tt.text)
		err := FileConfig{Path: path, Interval: time.Second}.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), "path: "+path+": ") || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q: error %v, want %q", tt.text, err, tt.want)
		}
	}
	if err := (FileConfig{Path: "/nowhere/at/all", Interval: 1}).Validate(); err == nil || !strings.Contains(err.Error(), "interval: 1ns is too short") {
		t.Errorf("error %v", err)
	}
}

func FuzzFile(f *testing.F) {
	f.Add(oneInFile)
	f.Add("endpoints: [{name: a, address: '[::1]:80', events: auto, labels: {a: b}}]")
	f.Fuzz(func(t *testing.T, text string) {
		specs, err := parseFile([]byte(text))
		for _, s := range specs {
			if err == nil && (s.Name == "" || len(s.validate("x")) > 0) {
				t.Errorf("%q gives %+v", text, s)
			}
		}
	})
}
