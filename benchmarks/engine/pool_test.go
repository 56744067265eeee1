package engine

import (
	"encoding/binary"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// poolModel is a blockPool as a beginner would write it.
type poolModel struct {
	refs    []int
	content []uint64 // 0: none
	free    []int32  // least recently used first
	copies  map[uint64][]int32
}

func digestOf(n uint64) (d Digest) {
	binary.BigEndian.PutUint64(d[24:], n)
	return d
}

func (m *poolModel) take() (id int32, evicted uint64) {
	id = m.free[0]
	m.free = m.free[1:]
	m.refs[id] = 1
	if evicted = m.content[id]; evicted != 0 {
		m.content[id] = 0
		m.copies[evicted] = slices.DeleteFunc(m.copies[evicted], func(o int32) bool { return o == id })
		if len(m.copies[evicted]) == 0 {
			delete(m.copies, evicted)
		}
	}
	return id, evicted
}

func (m *poolModel) check(t *rapid.T, p *blockPool) {
	if p.free != len(m.free) || p.free > p.capacity() {
		t.Fatalf("%d blocks free of %d, model %d", p.free, p.capacity(), len(m.free))
	}
	var order []int32
	for at := p.blocks[p.sentinel()].next; at != p.sentinel(); at = p.blocks[at].next {
		order = append(order, at)
	}
	if !slices.Equal(order, m.free) {
		t.Fatalf("free list %v, model %v", order, m.free)
	}
	for i := range m.refs {
		if got := int(p.blocks[i].refs); got != m.refs[i] || got < 0 {
			t.Fatalf("block %d has %d references, model %d", i, got, m.refs[i])
		}
	}
	if len(p.cached) != len(m.copies) {
		t.Fatalf("%d contents cached, model %d", len(p.cached), len(m.copies))
	}
	for content, want := range m.copies {
		var got []int32
		for at := p.cached[digestOf(content)]; at != noBlock; at = p.blocks[at].sibling {
			got = append(got, at)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("copies of %d: %v, model %v", content, got, want)
		}
	}
}

func TestBlockPoolAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.IntRange(1, 8).Draw(t, "capacity")
		p := newBlockPool(capacity)
		p.emptyFirst = rapid.Bool().Draw(t, "empty first")
		m := &poolModel{
			refs: make([]int, capacity), content: make([]uint64, capacity), copies: make(map[uint64][]int32),
		}
		for i := range int32(capacity) {
			m.free = append(m.free, i)
		}
		var tables [][]int32 // what sequences hold
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				n := rapid.IntRange(1, 4).Draw(t, "n")
				if n > len(m.free) {
					t.Skip("too few free blocks")
				}
				var table []int32
				for range n {
					want, content := m.take()
					got, evicted := p.take()
					if got != want {
						t.Fatalf("took block %d, model %d", got, want)
					}
					if (evicted == nil) != (content == 0) || evicted != nil && evicted.digest != digestOf(content) {
						t.Fatalf("block %d evicted %v, model %d", got, evicted, content)
					}
					table = append(table, got)
				}
				tables = append(tables, table)
			},
			"publish": func(t *rapid.T) {
				content := rapid.Uint64Range(1, 5).Draw(t, "content")
				for i, refs := range m.refs {
					if refs > 0 && m.content[i] == 0 {
						p.publish(int32(i), &node{digest: digestOf(content)})
						m.content[i] = content
						m.copies[content] = append(m.copies[content], int32(i))
						return
					}
				}
				t.Skip("no private block in use")
			},
			"touch": func(t *rapid.T) {
				content := rapid.Uint64Range(1, 5).Draw(t, "content")
				id, ok := p.lookup(digestOf(content))
				if ok != (len(m.copies[content]) > 0) {
					t.Fatalf("lookup %d: %t, model %v", content, ok, m.copies[content])
				}
				if !ok {
					t.Skip("not cached")
				}
				if id != m.copies[content][0] {
					t.Fatalf("lookup %d: block %d, model %v", content, id, m.copies[content])
				}
				p.touch(id)
				m.refs[id]++
				m.free = slices.DeleteFunc(m.free, func(o int32) bool { return o == id })
				tables = append(tables, []int32{id})
			},
			"release": func(t *rapid.T) {
				if len(tables) == 0 {
					t.Skip("nothing held")
				}
				i := rapid.IntRange(0, len(tables)-1).Draw(t, "i")
				p.release(tables[i])
				for _, id := range slices.Backward(tables[i]) {
					m.refs[id]--
					switch {
					case m.refs[id] > 0:
					case p.emptyFirst && m.content[id] == 0:
						m.free = slices.Insert(m.free, 0, id)
					default:
						m.free = append(m.free, id)
					}
				}
				tables = slices.Delete(tables, i, i+1)
			},
			"reset": func(t *rapid.T) {
				want := len(m.free) == capacity
				if got := p.reset(); got != want {
					t.Fatalf("reset: %t with %d of %d blocks free", got, len(m.free), capacity)
				}
				if want {
					clear(m.copies)
					clear(m.content)
				}
			},
			"": func(t *rapid.T) { m.check(t, p) },
		})
	})
}
