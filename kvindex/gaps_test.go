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

// A segment's blocks move to a larger extent after a match read where they
// are, and the old one goes to another segment.
func TestMatch_BlocksMoveMeanwhile(t *testing.T) {
	ix, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	w, p, other := open(t, ix, 1), newPrompt(1, 64), newPrompt(2, 3)
	w.Store(p.stored(0, 3))
	at(t, gapSpan, func() {
		w.Store(p.stored(3, 64))
		w.Store(other.stored(0, 3))
	})
	if got := device(ix, p.chain[:1], 1); got != 1 {
		t.Errorf("%d blocks, want 1", got)
	}
}

// Two publishers make the first block of a chain at the same time.
func TestStore_FirstBlockExistsOnce(t *testing.T) {
	ix, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	a, b, p := open(t, ix, 1), open(t, ix, 2), newPrompt(1, 70)
	at(t, gapAbsent, func() { b.Store(p.stored(0, 70)) })
	a.Store(p.stored(0, 70))
	for id := range PublisherID(2) {
		if got := device(ix, p.chain, id+1); got != 70 {
			t.Errorf("publisher %d: %d blocks, want 70", id+1, got)
		}
	}
	if err := ix.audit(); err != nil {
		t.Error(err)
	}
}

// Entries move to another extent after a match read where they are, and the
// old extent goes to another segment, whose holders hold other blocks.
func TestMatch_EntriesMoveMeanwhile(t *testing.T) {
	for _, length := range []int{64, 128} { // in the first segment, and in the second
		ix, _, chain := filled(t, 5, length, length) // one entry inline, four in an extent for six
		p := prompt{chain: chain}
		for i := range chain {
			before := machineRoot
			if i > 0 {
				before = chain[i-1]
			}
			p.contents = append(p.contents, Unmix(before, chain[i]))
			p.names = append(p.names, EngineHash(hashName(EngineHash(i+100_001))))
		}
		other := newPrompt(9, 64) // one inline, three in an extent for three
		for id := range PublisherID(5) {
			w := open(t, ix, 100+id)
			if length > 64 {
				w.Store(p.stored(0, length-64))
			}
			if id < 4 {
				w.Store(other.stored(0, 64))
			}
		}
		n := 0
		f := func(g gap) {
			if g != gapList {
				return
			}
			if n++; n != length/64 {
				return
			}
			for id := range PublisherID(3) { // the segment's entries outgrow their extent …
				open(t, ix, 200+id).Store(p.stored(0, length))
			}
			// … which the other segment's need next.
			ix.publishers[104].Store(other.stored(0, 64))
		}
		onYield.Store(&f)
		got := ix.Match(nil, chain, time.Unix(0, 0), nil)
		onYield.Store(nil)
		if n <= length/64 {
			t.Errorf("%d blocks: the match did not look again", length)
		}
		for _, m := range got {
			if want := uint32(length - 64); m.ID >= 100 && m.ID < 200 && m.Device != want {
				t.Errorf("%d blocks: publisher %d has %d, want %d", length, m.ID, m.Device, want)
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
