package events

import (
	"github.com/warmpath/warmpath/kvindex"
)

// EventType is what an event says happened.
type EventType uint8

// The event types. vLLM, SGLang and TensorRT-LLM have no others.
const (
	// Unknown is an event of a type, or in a form, that is not understood.
	Unknown EventType = iota
	// Stored says that blocks were added. Without tokens it says that blocks
	// known by name now also exist on another tier.
	Stored
	// Removed says that blocks are gone from a tier.
	Removed
	// Cleared says that everything is gone.
	Cleared
	numEventTypes
)

// String returns the type's name as used in metrics and by the tools.
func (t EventType) String() string {
	switch t {
	case Stored:
		return "stored"
	case Removed:
		return "removed"
	case Cleared:
		return "cleared"
	}
	return "unknown"
}

// Cause says why an event is skipped. The zero value means that it is not.
type Cause uint8

// The causes. Those up to causeFaults say that the engine's message could not
// be understood, so that something may have been missed; the others that the
// event is understood and does not concern the index.
const (
	Applied Cause = iota
	// Malformed: a field has a type that it cannot have.
	Malformed
	// Truncated: an array that ends before a field that every release sends.
	Truncated
	// NoHashes: the block hashes are nil or missing.
	NoHashes
	// BadBlockSize: tokens, and a block size that is not positive.
	BadBlockSize
	// TokenCount: not as many tokens as the blocks hold.
	TokenCount
	// BadGroup: a KV cache group outside 0 to 255.
	BadGroup
	causeFaults

	// UnknownType: an event type of a later engine.
	UnknownType
	// UnknownMedium: a medium of a later engine.
	UnknownMedium
	// Remote: the blocks are not on this endpoint.
	Remote
	// OtherKind: a group whose blocks are no prefix of the prompt, such as a
	// sliding window's.
	OtherKind
	// StoreOnly: a chunk of a cache that never says what it drops (LMCache). Its
	// names and sizes are its own, too. Counting it would be a guess, so it
	// counts nothing.
	StoreOnly
	// UnnamedAdapter: a LoRA adapter known only by a number that means nothing
	// outside the engine process (vLLM before 0.14).
	UnnamedAdapter
	// BlockSizeRefused: the endpoint already uses as many block sizes as
	// requests are hashed for, or the chain was begun with another size.
	BlockSizeRefused
	numCauses
)

// String returns the cause's name as used in metrics and by the tools, empty
// for Applied.
func (c Cause) String() string {
	switch c {
	case Malformed:
		return "malformed"
	case Truncated:
		return "truncated"
	case NoHashes:
		return "no_hashes"
	case BadBlockSize:
		return "bad_block_size"
	case TokenCount:
		return "token_count"
	case BadGroup:
		return "bad_group"
	case UnknownType:
		return "unknown_type"
	case UnknownMedium:
		return "unknown_medium"
	case Remote:
		return "remote"
	case OtherKind:
		return "other_kind"
	case StoreOnly:
		return "store_only"
	case UnnamedAdapter:
		return "unnamed_adapter"
	case BlockSizeRefused:
		return "block_size_refused"
	}
	return ""
}

// Fault tells whether the cause is a message that could not be understood.
func (c Cause) Fault() bool { return c != Applied && c < causeFaults }

// Event is one KV-cache event, the same for every engine and encoding. Its
// slices belong to the [Decoder] and are overwritten by its next event.
type Event struct {
	Type EventType
	// Skipped is why the event must not be applied; the other fields are then
	// what was read before the cause was found.
	Skipped Cause

	// Hashes are the engine's names of the blocks: integers as their 64-bit
	// pattern, byte strings by their last 8 bytes big-endian, which is the
	// integer that vLLM derives from them.
	Hashes []kvindex.EngineHash
	// Parent is the name of the block before the first one, if HasParent.
	Parent    kvindex.EngineHash
	HasParent bool
	// Tokens are the blocks' tokens, BlockSize for each of them, or none.
	Tokens    []kvindex.TokenID
	BlockSize int

	// Tier is the storage tier of Medium, which is as sent, empty if absent.
	Tier   kvindex.Tier
	Medium string
	// Lora is the adapter's name. HasLora is also true where only its number
	// was sent.
	Lora    string
	HasLora bool
	// Salt is the cache salt, sent at least for the first block of a chain.
	Salt string
	// Group is the KV cache group, 0 if absent; Kind is its attention kind as
	// sent, empty if absent.
	Group uint8
	Kind  string
	// Blind is true for a stored event whose layout has no place for a salt or
	// for images (vLLM before 0.17), so that such blocks look like plain ones.
	Blind bool

	extra    []byte
	extraEnd []int
}

// Extra returns what block i holds besides its tokens, as a canonical encoding
// that [kvindex.Hasher.ContentExtra] mixes into the block's content; empty for
// plain blocks.
func (e *Event) Extra(i int) []byte {
	if i >= len(e.extraEnd) {
		return nil
	}
	from := 0
	if i > 0 {
		from = e.extraEnd[i-1]
	}
	return e.extra[from:e.extraEnd[i]]
}

// reset empties the event and keeps its buffers.
func (e *Event) reset() {
	*e = Event{
		Hashes: e.Hashes[:0], Tokens: e.Tokens[:0],
		extra: e.extra[:0], extraEnd: e.extraEnd[:0],
	}
}

// Batch is the envelope of the events that one engine step published.
type Batch struct {
	// Time is the engine's wall clock at publication in Unix seconds, 0 if it
	// was not sent. Good for the lag only, never for order.
	Time float64
	// Rank is the data-parallel rank if HasRank. It follows the events, and is
	// known when they have all been read.
	Rank    int
	HasRank bool
}

// tierOf maps a medium, in any case, to a tier.
func tierOf(medium []byte) (kvindex.Tier, bool) {
	var buf [16]byte
	if len(medium) > len(buf) {
		return 0, false
	}
	low := buf[:len(medium)]
	for i, c := range medium {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		low[i] = c
	}
	switch string(low) {
	case "", "gpu", "device":
		return kvindex.TierDevice, true
	case "cpu", "cpu_pinned", "cpu_tier1":
		return kvindex.TierHost, true
	case "cpu_tier2", "disk", "nvme", "storage", "fs":
		return kvindex.TierDisk, true
	case "obj", "external", "network", "remote", "shared":
		return kvindex.TierExternal, true
	}
	if len(low) >= 4 && string(low[:4]) == "cuda" {
		return kvindex.TierDevice, true
	}
	return 0, false
}

// prefixKind tells whether a group of this attention kind keeps every block of
// a prompt, so that its blocks are prefixes.
func prefixKind(kind string) bool {
	switch kind {
	case "", "full_attention", "mla_attention", "sink_full_attention":
		return true
	}
	return false
}

// storeOnly tells whether a stored event with tokens on this medium is a chunk
// of LMCache, which hands its events to vLLM's publisher: it sends PyTorch
// device names and a lower-case "cpu", or, in newer releases, the "CPU" of
// vLLM's own offloading, but never the cache group, which that always sends
// along with tokens. SGLang spells its host tier differently.
func storeOnly(medium string, grouped bool) bool {
	switch {
	case medium == "cpu":
		return true
	case medium == "CPU":
		return !grouped
	}
	return len(medium) >= 4 && medium[:4] == "cuda"
}
