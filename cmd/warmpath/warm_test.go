package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
)

func TestWarmFile(t *testing.T) {
	var logged bytes.Buffer
	f := &warmFile{path: filepath.Join(t.TempDir(), "snapshot"), seed: 7, log: slog.New(slog.NewTextHandler(&logged, nil))}
	now := time.Unix(1000, 0)
	if got := f.read(now); got != nil {
		t.Errorf("%d publishers in no file", len(got))
	}
	want := []events.Saved{{Address: "10.0.0.1:8000", Model: "m", Next: 5, Last: [32]byte{1}, OtherGroups: []uint8{3}, Roots: []kvindex.BlockHash{9}, State: kvindex.Export{
		Groups: []uint8{0}, Blocks: []kvindex.ExportedBlock{{Block: 1, Parent: 9, Root: true, Name: 4, Named: true, Held: 1}},
	}}}
	want[0].Sizes[0] = map[uint8]int{0: 16}
	if err := f.write(now, want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, f.read(now.Add(time.Minute)), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("(-written +read):\n%s", d)
	}
	if err := f.write(now.Add(time.Hour), nil); err != nil {
		t.Fatal(err)
	}
	if got := f.read(now.Add(time.Minute)); len(got) != 1 {
		t.Errorf("a router that knew nothing left a file of %d publishers, want the one from before", len(got))
	}
	if c := warmCondition(f, false, events.WarmStart{Restored: 1}); c.Ready || !strings.Contains(c.Detail, "1m0s ago") {
		t.Errorf("%+v: ready before anything is proven, or without its age", c)
	}
	if c := warmCondition(f, false, events.WarmStart{Restored: 1, Reset: 1}); !c.Ready || strings.Contains(c.Detail, "other routers") {
		t.Errorf("%+v: not ready, or of routers that nobody asked", c)
	}
	if c := warmCondition(nil, true, events.WarmStart{Asked: 5, Asking: 2, FromPeers: 3, Restored: 3, Resumed: 3}); c.Ready ||
		!strings.Contains(c.Detail, "asked for 5 event streams, 2 of them still, and 3 taken") {
		t.Errorf("%+v: ready while others are asked, or without how far that is", c)
	}
	if c := warmCondition(nil, true, events.WarmStart{Asked: 5, FromPeers: 3, Restored: 3, Resumed: 3}); !c.Ready {
		t.Errorf("%+v: not ready although nothing more will come", c)
	}
	b, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(){
		"index.seed_file": func() { f.seed++ },
		"damaged":         func() { b[len(b)-1]++ },
		"was not written": func() { b = b[:20] },
	} {
		logged.Reset()
		was := f.seed
		spoil()
		if err := os.WriteFile(f.path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := f.read(now); got != nil || !strings.Contains(logged.String(), name) && !strings.Contains(logged.String(), "damaged") {
			t.Errorf("%s: %d publishers, log %s", name, len(got), logged.String())
		}
		f.seed = was
	}
	if files, _ := filepath.Glob(f.path + ".*"); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}
