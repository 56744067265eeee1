package kvindex

import (
	"maps"
	"slices"
)

// maxOrphans bounds the parked blocks of one publisher: 8 chains of 8k blocks
// would be enough to hear of a long context behind a lost batch.
const maxOrphans = 1 << 14

// orphanage keeps the blocks whose parent the publisher never announced, by
// name, until the parent arrives. They are never matched.
type orphanage struct {
	parked map[EngineHash]orphan
	// waiting lists the blocks parked behind a name; some may have been taken
	// or parked elsewhere since.
	waiting map[EngineHash][]EngineHash
	queued  int // names in waiting
	// held counts the parked blocks that the publisher holds, lost tells that
	// some could not even be parked.
	held int
	lost bool
	// emptied counts the parked blocks that were let go since the last sweep.
	emptied int
}

// orphan is a parked block.
type orphan struct {
	parent  EngineHash
	content ContentHash
	held    uint32 // a bit per kind
}

func (o *orphanage) any() bool { return len(o.parked) > 0 }

// lacks tells whether blocks that the publisher holds are parked, or could not
// even be.
func (o *orphanage) lacks() bool { return o.held > 0 || o.lost }

// set parks a block, in place of one of that name.
func (o *orphanage) set(name EngineHash, p orphan) {
	o.take(name)
	if p.held != 0 {
		o.held++
	}
	o.parked[name] = p
}

// take takes a block out; others may go on waiting for it.
func (o *orphanage) take(name EngineHash) (p orphan, ok bool) {
	if p, ok = o.parked[name]; ok {
		delete(o.parked, name)
		if p.held != 0 {
			o.held--
		}
	}
	return p, ok
}

// hold adds a copy to a parked block.
func (o *orphanage) hold(name EngineHash, kind key) bool {
	if len(o.parked) == 0 {
		return false
	}
	p, ok := o.parked[name]
	if ok {
		p.held |= 1 << kind
		o.set(name, p)
	}
	return ok
}

// remove takes a copy from a parked block; the block stays, for children may
// wait for its place in the chain.
func (o *orphanage) remove(name EngineHash, kind key) (parked, known bool) {
	if len(o.parked) == 0 {
		return false, false
	}
	p, ok := o.parked[name]
	if !ok {
		return false, false
	}
	known = p.held>>kind&1 == 1
	p.held &^= 1 << kind
	o.set(name, p)
	if p.held == 0 {
		o.emptied++
	}
	return true, known
}

func (o *orphanage) put(name EngineHash, p orphan) bool {
	if o.queued >= maxOrphans && !o.sweep() {
		return false
	}
	if o.parked == nil {
		o.parked, o.waiting = map[EngineHash]orphan{}, map[EngineHash][]EngineHash{}
	}
	if old, ok := o.parked[name]; ok && old.parent == p.parent && old.content == p.content {
		p.held |= old.held
		o.set(name, p)
		return true
	}
	o.set(name, p)
	o.waiting[p.parent] = append(o.waiting[p.parent], name)
	o.queued++
	return true
}

// sweep makes room: it drops parked blocks that are not held and that no block
// which is held waits for. It reports whether there is room now.
func (o *orphanage) sweep() bool {
	if o.emptied < maxOrphans/4 {
		return false // not worth the walk
	}
	o.emptied = 0
	needed := make(map[EngineHash]bool, o.held)
	for name, p := range o.parked {
		if p.held == 0 {
			continue
		}
		for ok := true; ok && !needed[name]; p, ok = o.parked[name] {
			needed[name] = true
			name = p.parent
		}
	}
	maps.DeleteFunc(o.parked, func(name EngineHash, _ orphan) bool { return !needed[name] })
	o.queued = 0
	for parent, kids := range o.waiting {
		kids = slices.DeleteFunc(kids, func(kid EngineHash) bool {
			p, ok := o.parked[kid]
			return !ok || p.parent != parent
		})
		if len(kids) == 0 {
			delete(o.waiting, parent)
			continue
		}
		o.waiting[parent] = kids
		o.queued += len(kids)
	}
	return o.queued < maxOrphans
}

// park keeps a batch for the arrival of its parent. A name that denoted a
// placed block no longer does: where it stands now is not known.
func (w *Writer) park(parent EngineHash, b *batch) (unplaced int) {
	for i, name := range b.names {
		w.disown(name)
		if !w.orphans.put(name, orphan{parent, b.contents[i], 1 << b.kind}) {
			w.counts.dropped += uint64(len(b.names) - i)
			w.orphans.lost = true
			w.rec.lower(TrustIncomplete)
			break
		}
		w.counts.parked++
		parent = name
	}
	return len(b.names)
}

// attach places the blocks parked behind names just announced, and those
// behind them.
func (w *Writer) attach(b *batch) {
	o, names := &w.orphans, b.names
	for i, n := range names { // placed by the store itself
		p, ok := o.take(n)
		if !ok {
			continue
		}
		if ref := w.locate(n); ref != 0 && p.content == b.contents[i] {
			for kind := key(0); p.held>>kind != 0; kind++ {
				if p.held>>kind&1 == 1 && kind != b.kind {
					w.update(names[i:i+1], kind)
				}
			}
		}
	}
	for queue := append([]EngineHash(nil), names...); len(queue) > 0; {
		parent := queue[0]
		queue = queue[1:]
		kids := o.waiting[parent]
		if kids == nil {
			continue
		}
		at := w.locate(parent)
		if at == 0 {
			continue // its name went to another block of the same store
		}
		delete(o.waiting, parent)
		o.queued -= len(kids)
		for _, kid := range kids {
			p, ok := o.parked[kid]
			if !ok || p.parent != parent {
				continue
			}
			o.take(kid)
			for kind, held := key(0), p.held; kind == 0 || held>>kind != 0; kind++ {
				if kind == 0 || held>>kind&1 == 1 {
					w.extend(at, &batch{names: []EngineHash{kid}, contents: []ContentHash{p.content}, kind: kind, parent: parent, hold: held>>kind&1 == 1})
				}
			}
			queue = append(queue, kid)
		}
	}
	if len(o.parked) == 0 {
		*o = orphanage{lost: o.lost}
	}
}
