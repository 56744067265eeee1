package micro

import (
	"fmt"
	"iter"
	"runtime"
	"time"

	"github.com/warmpath/warmpath/benchmarks/indexops"
	"github.com/warmpath/warmpath/kvindex"
)

const (
	chunkOps = 256
	// writerLag is how many events behind its stores the background writer
	// removes, so that its working set stays the same size.
	writerLag = 2048
)

// feed turns ops into events, a chunk at a time and outside the clock. Its
// buffers are made once, so that they do not count as an index's memory.
type feed struct {
	// private gives every pod names of its own, as engines with unseeded
	// hashes do.
	private bool
	// single cuts stores into one-block events, as engines send in decode.
	single          bool
	names           []kvindex.EngineHash
	contents        []kvindex.ContentHash
	stores, removes []event
}

func newFeed() *feed {
	const blocks = chunkOps * 64
	return &feed{
		names: make([]kvindex.EngineHash, 0, blocks), contents: make([]kvindex.ContentHash, 0, blocks),
		stores: make([]event, 0, blocks), removes: make([]event, 0, chunkOps),
	}
}

// spread is SplitMix64's output function: a bijection that leaves no pattern.
func spread(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (f *feed) name(pod int, e uint64) kvindex.EngineHash {
	if f.private {
		e = spread(e + uint64(pod+1)*0x9e3779b97f4a7c15)
	}
	return kvindex.EngineHash(e)
}

// add appends op to the chunk. The chunk's slices never move: chunkOps ops of
// at most 64 blocks fit (a heal of the holes section may store more, then the
// old array stays alive through the events that view it).
func (f *feed) add(op indexops.Op) (blocks int) {
	from := len(f.names)
	for i := range op.Len() {
		f.names = append(f.names, f.name(op.Pod, op.Name(i)))
		if !op.Remove {
			f.contents = append(f.contents, kvindex.ContentHash(op.Content(i)))
		}
	}
	e := event{pod: op.Pod, Stored: kvindex.Stored{Root: root, Names: f.names[from:]}}
	if op.Remove {
		f.removes = append(f.removes, e)
		return op.Len()
	}
	e.Contents = f.contents[len(f.contents)-op.Len():]
	if op.HasParent {
		e.Parent, e.HasParent = f.name(op.Pod, op.Parent), true
	}
	if !f.single {
		f.stores = append(f.stores, e)
		return op.Len()
	}
	for i := range e.Names {
		one := e
		one.Names, one.Contents = e.Names[i:i+1], e.Contents[i:i+1]
		if i > 0 {
			one.Parent, one.HasParent = e.Names[i-1], true
		}
		f.stores = append(f.stores, one)
	}
	return op.Len()
}

func (f *feed) reset() {
	f.names, f.contents = f.names[:0], f.contents[:0]
	f.stores, f.removes = f.stores[:0], f.removes[:0]
}

// cost is what a section took.
type cost struct {
	storeTime, removeTime time.Duration
	stored, removed       int
}

func perBlock(d time.Duration, blocks int) float64 { return float64(d.Nanoseconds()) / float64(blocks) }

// play applies ops in chunks, the removals of a chunk before its stores (no
// store of the stream's chunks depends on a block that the chunk removes),
// and calls after behind every chunk, outside the clock.
func (f *feed) play(c contender, ops iter.Seq[indexops.Op], after func()) (total cost) {
	f.reset()
	stored, removed, n := 0, 0, 0
	flush := func() {
		t0 := cpuTime()
		c.apply(nil, f.removes)
		t1 := cpuTime()
		c.apply(f.stores, nil)
		total.storeTime += cpuTime() - t1
		total.removeTime += t1 - t0
		total.stored += stored
		total.removed += removed
		stored, removed, n = 0, 0, 0
		f.reset()
		if after != nil {
			after()
		}
	}
	for op := range ops {
		if b := f.add(op); op.Remove {
			removed += b
		} else {
			stored += b
		}
		if n++; n == chunkOps {
			flush()
		}
	}
	flush()
	return total
}

// playInOrder applies ops one by one, for sections whose ops depend on each
// other.
func (f *feed) playInOrder(c contender, ops iter.Seq[indexops.Op]) {
	for op := range ops {
		f.reset()
		f.add(op)
		c.apply(f.stores, f.removes)
	}
}

// background is what the writer beside the reader does: the churn section's
// conversations with other contents and names behind the same system prompts,
// stored on the same pods and removed again leaf first. It shares roots,
// prompts, locks and tables with the blocks that the reader asks for and never
// changes an answer, so that every answer beside it can be checked.
type background struct {
	stores, removes []event
	blocks          int // of one round: stored and removed
}

func newBackground(f *indexops.File, rounds int) (*background, error) {
	prompts := map[uint64]bool{}
	for op := range f.Ops(indexops.Load) {
		if !op.HasParent {
			prompts[op.Name(op.Len()-1)] = true
		}
	}
	other := func(x uint64) uint64 { return spread(x ^ 0x5bd1e995a5a5a5a5) }
	made := map[[2]uint64]bool{} // pod, name
	b := &background{}
	for op := range f.Ops(indexops.Churn) {
		if len(b.stores) == rounds {
			break
		}
		parent := op.Parent
		if !prompts[parent] {
			parent = other(parent)
		}
		if op.Remove || !op.HasParent || (!prompts[op.Parent] && !made[[2]uint64{uint64(op.Pod), parent}]) {
			continue
		}
		e := event{pod: op.Pod, Stored: kvindex.Stored{Root: root, Parent: kvindex.EngineHash(parent), HasParent: true}}
		gone := e
		for i := range op.Len() {
			e.Names = append(e.Names, kvindex.EngineHash(other(op.Name(i))))
			e.Contents = append(e.Contents, kvindex.ContentHash(other(op.Content(i))))
			gone.Names = append(gone.Names, kvindex.EngineHash(other(op.Name(op.Len()-1-i))))
			made[[2]uint64{uint64(op.Pod), other(op.Name(i))}] = true
		}
		b.stores, b.removes = append(b.stores, e), append(b.removes, gone)
		b.blocks += 2 * op.Len()
	}
	if len(b.stores) <= writerLag {
		return nil, fmt.Errorf("churn section has %d stores the writer can use, needs more than %d", len(b.stores), writerLag)
	}
	return b, nil
}

// round stores and removes everything once, and returns the processor time of
// its thread: beside a reader and a neighbour the wall clock says nothing.
func (b *background) round(c contender) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	t := threadTime()
	for i := range b.stores {
		c.apply(b.stores[i:i+1], nil)
		if i >= writerLag {
			c.apply(nil, b.removes[i-writerLag:i-writerLag+1])
		}
	}
	for i := len(b.removes) - writerLag; i < len(b.removes); i++ {
		c.apply(nil, b.removes[i:i+1])
	}
	return threadTime() - t
}
