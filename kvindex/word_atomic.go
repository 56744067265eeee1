//go:build !amd64 || race

package kvindex

import "sync/atomic"

// store writes a word that readers load atomically while its writer holds the
// lock that guards it.
func store(p *uint64, v uint64) { atomic.StoreUint64(p, v) }
