package extproc

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"

	"github.com/warmpath/warmpath/kvindex"
)

// memory is where the body of one request is kept, and the token ids in it.
type memory struct {
	body []byte
	ids  []kvindex.TokenID
}

// Memories are kept for reuse in classes of body sizes, a factor of four apart,
// so that a short body does not hold on to the memory of a long one. Bodies of
// more than largestKept bytes are left to the garbage collector.
const (
	smallestClass = 4 << 10
	numClasses    = 7
	largestKept   = smallestClass << (2 * (numClasses - 1)) // 16 MiB
	// keptIDs is the most ids that a memory keeps for a byte of its class: each
	// is at least a digit and a comma, so it has four bytes for two.
	keptIDs = 2
)

// memories lends memory for bodies. A body of any size is garbage the moment
// its request is decided, so without it the heap would be as large again as
// the bodies in flight. It is safe for concurrent use.
type memories struct {
	classes [numClasses]sync.Pool
}

// class returns the class for n bytes.
func class(n int) int {
	if n <= smallestClass {
		return 0
	}
	return (bits.Len(uint(n-1)/smallestClass) + 1) / 2
}

// get lends memory for a body of n bytes, whose content is not defined.
func (l *memories) get(n int) *memory {
	if n > largestKept {
		return &memory{body: make([]byte, n)}
	}
	m, _ := l.classes[class(n)].Get().(*memory)
	if m == nil {
		m = &memory{}
	}
	if cap(m.body) < n {
		// Bodies of one kind are of similar lengths: an eighth more is room for
		// most of those that follow.
		m.body = make([]byte, n, min(n+n/8, smallestClass<<(2*class(n))))
	}
	m.body = m.body[:n]
	return m
}

// put takes memory back, which nobody may use any more.
func (l *memories) put(m *memory) {
	if poison {
		overwrite(m)
	}
	n := cap(m.body)
	if n == 0 || n > largestKept {
		return
	}
	c := class(n)
	if cap(m.ids) > keptIDs*smallestClass<<(2*c)/4 {
		m.ids = nil
	}
	l.classes[c].Put(m)
}

// overwrite makes sure that nobody who still reads m finds what was in it.
func overwrite(m *memory) {
	for i := range m.body {
		m.body[i] = 0xDB
	}
	ids := m.ids[:cap(m.ids)] // their number is not kept
	for i := range ids {
		ids[i] = 0xDBDBDBDB
	}
}

// fill copies data into m, which has room for it.
func (m *memory) fill(data mem.BufferSlice) {
	n := 0
	for _, b := range data {
		n += copy(m.body[n:], b.ReadOnlyData())
	}
}
