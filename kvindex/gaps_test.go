//go:build kvyield

package kvindex

import (
	"flag"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

var gapSeed = flag.Uint64("seed", 0, "seed of the schedule at yield points; 0 takes one from the clock")

// scheduleAtGaps lets other goroutines run at about every second yield point,
// by a seed that it prints.
func scheduleAtGaps(t *testing.T) {
	seed := *gapSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("yield seed %d (replay with -args -seed=%d)", seed, seed)
	var n atomic.Uint64
	n.Store(seed)
	f := func(gap) {
		for x := hashName(EngineHash(n.Add(1))); x&1 == 1; x >>= 1 {
			runtime.Gosched()
		}
	}
	onYield.Store(&f)
	t.Cleanup(func() { onYield.Store(nil) })
}

// at runs f once, at the first yield point of a kind.
func at(t *testing.T, g gap, f func()) {
	var once atomic.Bool
	hook := func(here gap) {
		if here == g && once.CompareAndSwap(false, true) {
			f()
		}
	}
	onYield.Store(&hook)
	t.Cleanup(func() {
		onYield.Store(nil)
		if !once.Load() {
			t.Error("the gap was not reached")
		}
	})
}

// A slot is used again between a match's look at a mask and its end: the
// successor must not be credited with the blocks of its predecessor.
func TestMatch_ReusedIDInheritsNothing(t *testing.T) {
	ix, ws, chain := filled(t, 1, 64, 64)
	at(t, gapMask, func() {
		ws[0].Close()
		if _, err := ix.Open(Publisher{ID: 0, Endpoint: 0, Incarnation: 2}); err != nil {
			t.Error(err)
		}
	})
	for _, m := range ix.Match(nil, chain, time.Unix(0, 0), nil) {
		t.Errorf("found %+v", m)
	}
}

// The careful way must leave out whoever was cleared in every attempt.
func TestMatch_ClearedInEveryAttempt(t *testing.T) {
	ix, ws, chain := filled(t, 2, 64, 64)
	s := Stored{Root: machineRoot}
	for i := range chain {
		before := machineRoot
		if i > 0 {
			before = chain[i-1]
		}
		s.Contents = append(s.Contents, Unmix(before, chain[i]))
		s.Names = append(s.Names, EngineHash(i+1))
	}
	busy := false
	f := func(g gap) {
		if g == gapMask && !busy {
			busy = true
			ws[1].Clear()
			ws[1].Store(s)
			busy = false
		}
	}
	onYield.Store(&f)
	t.Cleanup(func() { onYield.Store(nil) })
	got := ix.Match(nil, chain, time.Unix(0, 0), nil)
	if len(got) != 1 || got[0].ID != 0 || got[0].Device != 64 {
		t.Errorf("found %+v, want publisher 0 with 64 blocks", got)
	}
}

// Entries move to another extent after a match read where they are, and the
// old extent goes to another segment.
func TestMatch_EntriesMoveMeanwhile(t *testing.T) {
	for _, later := range []bool{false, true} {
		length := 64
		if later {
			length = 128 // the second segment of the walk
		}
		ix, ws, chain := filled(t, 5, length, length)
		other := newPrompt(9, 64)
		n := 0
		f := func(g gap) {
			if g != gapList {
				return
			}
			if n++; (n == 2) != later || n > 2 {
				return
			}
			// The segment's entries outgrow their extent …
			var more []*Writer
			for id := range PublisherID(8) {
				w := open(t, ix, 100+id)
				for i := range chain {
					before := machineRoot
					if i > 0 {
						before = chain[i-1]
					}
					s := Stored{Root: machineRoot, Names: []EngineHash{EngineHash(hashName(EngineHash(i + 100_001)))}, Contents: []ContentHash{Unmix(before, chain[i])}}
					if i > 0 {
						s.HasParent, s.Parent = true, EngineHash(hashName(EngineHash(i+100_000)))
					}
					w.Store(s)
				}
				more = append(more, w)
			}
			for _, w := range ws[1:] {
				w.Clear()
			}
			// … which others then use, with none of this chain's blocks.
			for _, w := range more {
				w.Clear()
				w.Store(other.stored(0, 64))
			}
		}
		onYield.Store(&f)
		got := ix.Match(nil, chain, time.Unix(0, 0), nil)
		onYield.Store(nil)
		if n < 2 {
			t.Fatal("the gap was not reached again after the change")
		}
		for _, m := range got {
			if m.ID >= 100 {
				t.Errorf("later %v: publisher %d has %d blocks of a chain that it no longer held when its entry was written", later, m.ID, m.Device)
			}
		}
	}
}

// A writer removes a block while another moves the entries of its segment.
func TestRemove_WhileEntriesMove(t *testing.T) {
	ix, ws, chain := filled(t, 4, 64, 64)
	names := make([]EngineHash, 64)
	for i := range names {
		names[i] = EngineHash(hashName(EngineHash(i + 100_001)))
	}
	removed := make(chan struct{})
	at(t, gapMoved, func() {
		go func() {
			ws[2].Remove(names[10:11], TierDevice, 0)
			close(removed)
		}()
		for range 10_000 {
			runtime.Gosched() // let it come as far as it can
		}
	})
	w := open(t, ix, 100)
	w.Store(Stored{Root: machineRoot, Names: names[:1], Contents: []ContentHash{Unmix(machineRoot, chain[0])}})
	<-removed
	if got := device(ix, chain, 2); got != 10 {
		t.Errorf("%d blocks after the 11th was removed, want 10", got)
	}
}
