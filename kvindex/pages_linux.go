package kvindex

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePages asks for large pages behind a big table. Its look-ups are random
// and each would miss the TLB besides the cache; in a virtual machine such a
// miss costs as much as the memory. The kernel may decline (transparent huge
// pages "never"), which costs only time.
func hugePages(words []uint64) {
	const huge = 2 << 20
	from := uintptr(unsafe.Pointer(unsafe.SliceData(words)))
	skip := int(-from & (huge - 1))
	whole := (8*len(words) - skip) &^ (huge - 1)
	if whole <= 0 {
		return
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&words[skip/8])), whole)
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // advice: nothing to do where it is not taken
}
