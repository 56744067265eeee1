package engine

import "github.com/warmpath/warmpath/kvindex"

// Event is one KV-cache event in the shape of vLLM's: [BlockStored],
// [BlockRemoved] or [AllBlocksCleared].
type Event interface {
	appendTo(b []byte, f Format) []byte
}

// Values that vLLM's own block pool puts into its events.
const (
	// MediumGPU is the medium of the device pool.
	MediumGPU = "GPU"
	// MediumCPU is the medium of offloaded blocks (vLLM docs, KV offloading).
	MediumCPU = "CPU"
	// KindFullAttention is the kv_cache_spec_kind of ordinary models.
	KindFullAttention = "full_attention"
	// NoGroup as a group index leaves the field out.
	NoGroup = -1
)

// BlockStored announces consecutive blocks of one chain that became visible
// in one step.
type BlockStored struct {
	// Hashes names the blocks in chain order.
	Hashes []kvindex.EngineHash
	// Parent names the block before the first one; Root says that there is
	// none, and the wire has nil.
	Parent kvindex.EngineHash
	Root   bool
	// Tokens are the token ids of all blocks, len(Hashes)*BlockSize of them.
	Tokens    []kvindex.TokenID
	BlockSize int
	// LoRAID and LoRAName name the adapter; 0 and "" are nil on the wire.
	LoRAID   int
	LoRAName string
	// Medium is where the blocks are; "" is nil on the wire.
	Medium string
	// ExtraKeys has one entry per hash, nil where a block has none: the
	// adapter name on every block, then the cache salt on the block at token
	// 0, both as bare strings. Nil leaves the field out.
	ExtraKeys [][]string
	// GroupIdx is the KV cache group, or NoGroup.
	GroupIdx int
	// Kind is the group's attention kind; "" leaves the field out.
	Kind string
}

// BlockRemoved announces the eviction of one physical copy of each block.
type BlockRemoved struct {
	Hashes   []kvindex.EngineHash
	Medium   string
	GroupIdx int
}

// AllBlocksCleared announces that the whole cache was reset.
type AllBlocksCleared struct{}
