package indexops

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"os"
	"unsafe"
)

// Facts of the format.
const (
	HeaderWords = 32
	// ClassHole is the class of a query over a conversation with a hole; every
	// other class is the number of blocks that the best pod holds.
	ClassHole = 1000

	magic    = 0x3158444958564b21
	version  = 1
	opStore  = 1
	opRemove = 2
)

// Header is a file's first words; the package comment names them.
type Header [HeaderWords]uint64

// PairsAfterLoad and PairsAfterChurn are the held (pod, block) pairs.
func (h Header) PairsAfterLoad() int { return int(h[15]) }

// PairsAfterChurn is the number of held (pod, block) pairs after churn.
func (h Header) PairsAfterChurn() int { return int(h[19]) }

// Op is one event. Its slices are views of the file.
type Op struct {
	Pod       int
	Remove    bool
	HasParent bool
	Parent    uint64
	words     []uint64
}

// Len is the number of blocks.
func (o Op) Len() int {
	if o.Remove {
		return len(o.words)
	}
	return len(o.words) / 2
}

// Name returns the engine hash of block i.
func (o Op) Name(i int) uint64 {
	if o.Remove {
		return o.words[i]
	}
	return o.words[2*i]
}

// Content returns the content hash of block i of a store.
func (o Op) Content(i int) uint64 { return o.words[2*i+1] }

// Query is one prompt. Its slices are views of the file.
type Query struct {
	Class    int
	Contents []uint64
	answers  []uint64
}

// Depth is the exact answer for one pod: the leading blocks that it holds.
func (q Query) Depth(pod int) int { return int(q.answers[pod/4] >> (pod % 4 * 16) & 0xffff) }

// File is an opened stream.
type File struct {
	Header
	words   []uint64
	release func() error
}

// Section names a part of a File.
type Section int

// The sections that hold ops, then those that hold queries.
const (
	Load Section = iota
	Churn
	Holes
	Queries
	HoleQueries
)

// count and offset in words, by section.
var sectionWords = [...]int{Load: 5, Churn: 7, Holes: 9, Queries: 11, HoleQueries: 13}

// Open maps the file at path shared and read-only, so that it counts as file
// memory and not as the memory of the process, and checks every record's
// bounds once.
func Open(path string) (*File, error) {
	fd, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	st, err := fd.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	raw, release, err := mapFile(fd, st.Size())
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	f, err := parse(raw)
	if err != nil {
		release()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f.release = release
	return f, nil
}

// Read parses a whole file from r into memory.
func Read(r io.Reader) (*File, error) {
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read ops: %w", err)
	}
	return parse(raw)
}

// Close unmaps the file; Ops and Queries of it are invalid afterwards.
func (f *File) Close() error {
	if f.release == nil {
		return nil
	}
	return f.release()
}

func parse(raw []byte) (*File, error) {
	if len(raw)%8 != 0 || len(raw) < 8*HeaderWords {
		return nil, fmt.Errorf("%d bytes are not a whole header of 8-byte words", len(raw))
	}
	f := &File{words: asWords(raw)}
	copy(f.Header[:], f.words)
	if f.Header[0] != magic || f.Header[1] != version || f.Header[3] != Pods {
		return nil, fmt.Errorf("header: magic %#x version %d pods %d, want %#x %d %d", f.Header[0], f.Header[1], f.Header[3], uint64(magic), version, Pods)
	}
	for s, w := range sectionWords {
		n, at := f.Header[w], f.Header[w+1]
		for i := range n {
			size, err := f.recordSize(Section(s), at)
			if err != nil {
				return nil, fmt.Errorf("section %d record %d at word %d: %w", s, i, at, err)
			}
			at += size
		}
	}
	return f, nil
}

// recordSize returns the words of the record at a word offset, checked to lie
// inside the file.
func (f *File) recordSize(s Section, at uint64) (uint64, error) {
	end := uint64(len(f.words))
	if at >= end {
		return 0, fmt.Errorf("starts behind the file's %d words", end)
	}
	head := f.words[at]
	n := head >> 32
	size := 1 + Pods/4 + 2*n
	if s <= Holes {
		switch head & 0xff {
		case opStore:
			size = 2 + 2*n
		case opRemove:
			size = 2 + n
		default:
			return 0, fmt.Errorf("unknown op kind %d", head&0xff)
		}
		if pod := head >> 16 & 0xffff; pod >= Pods {
			return 0, fmt.Errorf("pod %d is not below %d", pod, Pods)
		}
	}
	if size > end-at {
		return 0, fmt.Errorf("%d words run over the file's %d", size, end)
	}
	return size, nil
}

// Ops yields the ops of a section.
func (f *File) Ops(s Section) iter.Seq[Op] {
	return func(yield func(Op) bool) {
		at := f.Header[sectionWords[s]+1]
		for range f.Header[sectionWords[s]] {
			head := f.words[at]
			o := Op{
				Pod: int(head >> 16 & 0xffff), Remove: head&0xff == opRemove,
				HasParent: head>>8&1 == 1, Parent: f.words[at+1],
			}
			n := head >> 32
			if !o.Remove {
				n *= 2
			}
			o.words = f.words[at+2 : at+2+n]
			at += 2 + n
			if !yield(o) {
				return
			}
		}
	}
}

// Queries yields the queries of a section.
func (f *File) Queries(s Section) iter.Seq[Query] {
	return func(yield func(Query) bool) {
		at := f.Header[sectionWords[s]+1]
		for range f.Header[sectionWords[s]] {
			head := f.words[at]
			n := head >> 32
			body := at + 1 + Pods/4
			q := Query{Class: int(head & 0xffffffff), answers: f.words[at+1 : body], Contents: f.words[body : body+n]}
			at = body + 2*n
			if !yield(q) {
				return
			}
		}
	}
}

// asWords views raw as words, or copies where the CPU is big-endian or raw is
// not aligned.
func asWords(raw []byte) []uint64 {
	one := uint16(1)
	little := *(*byte)(unsafe.Pointer(&one)) == 1
	if little && uintptr(unsafe.Pointer(&raw[0]))%8 == 0 {
		return unsafe.Slice((*uint64)(unsafe.Pointer(&raw[0])), len(raw)/8)
	}
	w := make([]uint64, len(raw)/8)
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(raw[8*i:])
	}
	return w
}
