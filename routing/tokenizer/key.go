package tokenizer

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// key names a text: 128 bits, under a seed that only this process knows, so
// that nobody can choose two texts with one key.
type key struct{ hi, lo uint64 }

// in returns the key's name in a namespace.
func (k key) in(ns key) key { return key{k.hi ^ ns.hi, k.lo ^ ns.lo} }

// derive returns the key of a further thing that belongs to k.
func (k key) derive(n uint64, seed uint64) key {
	var b [24]byte
	binary.LittleEndian.PutUint64(b[0:], k.hi)
	binary.LittleEndian.PutUint64(b[8:], k.lo)
	binary.LittleEndian.PutUint64(b[16:], n)
	h := xxh3.Hash128Seed(b[:], seed)
	return key{h.Hi, h.Lo}
}

func hash(b []byte, seed uint64) key {
	h := xxh3.Hash128Seed(b, seed)
	return key{h.Hi, h.Lo}
}

// then returns the key of k's text followed by a segment.
func (k key) then(segment []byte, seed uint64) key {
	return k.join(hash(segment, seed), len(segment), seed)
}

func (k key) thenString(segment string, seed uint64) key {
	h := xxh3.HashString128Seed(segment, seed)
	return k.join(key{h.Hi, h.Lo}, len(segment), seed)
}

func (k key) join(s key, n int, seed uint64) key {
	var b [40]byte
	binary.LittleEndian.PutUint64(b[0:], k.hi)
	binary.LittleEndian.PutUint64(b[8:], k.lo)
	binary.LittleEndian.PutUint64(b[16:], s.hi)
	binary.LittleEndian.PutUint64(b[24:], s.lo)
	binary.LittleEndian.PutUint64(b[32:], uint64(n))
	return hash(b[:], seed)
}
