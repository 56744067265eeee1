package kvindex

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"unsafe"

	"github.com/zeebo/xxh3"
)

// TokenID is one token of a prompt, in the vocabulary of the model that the
// endpoint serves.
type TokenID uint32

// ContentHash is the hash of one block's tokens alone: it does not depend on
// where in a prompt the block stands.
type ContentHash uint64

// BlockHash is the chain hash of a block: it depends on the block's content,
// on every block before it and on the [Scope] of the chain.
type BlockHash uint64

// EngineHash is an engine's own name for a block, an opaque 64-bit pattern
// that means something only for the publisher that sent it.
type EngineHash uint64

// PublisherID names one KV-event stream: one (endpoint, data-parallel rank).
// The pool assigns it and may use it again for a successor, with another
// incarnation.
type PublisherID uint32

// Tier is where a block lives.
type Tier uint8

// The tiers, fastest first.
const (
	TierDevice Tier = iota
	TierHost
	TierDisk
	TierExternal
	NumTiers = 4
)

// String returns the tier's name as used in metrics and explanations.
func (t Tier) String() string {
	switch t {
	case TierDevice:
		return "device"
	case TierHost:
		return "host"
	case TierDisk:
		return "disk"
	case TierExternal:
		return "external"
	}
	return "unknown"
}

// Scope is everything besides tokens that separates two chains: blocks of
// different scopes never match each other.
type Scope struct {
	// Model is the pool's id of the base model, never an alias of it.
	Model string
	// Adapter is the resolved LoRA adapter name, empty for the base model.
	Adapter string
	// Salt is the request's cache_salt, empty for the shared cache.
	Salt string
	// BlockSize is the number of tokens in a block.
	BlockSize int
}

// Hasher computes content and chain hashes under one fleet seed, so that
// nobody who does not know the seed can choose colliding prompts. It is a
// value, immutable and safe for concurrent use. Hashers of different seeds
// do not understand each other's hashes.
type Hasher struct{ seed uint64 }

// NewHasher returns the hasher of a fleet seed.
func NewHasher(seed uint64) Hasher { return Hasher{seed: seed} }

// Root returns the hash that stands before the first block of a scope's
// chains.
func (h Hasher) Root(s Scope) BlockHash {
	// Length-prefixed fields: ("ab","c") and ("a","bc") must differ.
	var stack [256]byte
	buf := stack[:0]
	for _, f := range [...]string{s.Model, s.Adapter, s.Salt} {
		buf = binary.LittleEndian.AppendUint32(buf, uint32(len(f)))
		buf = append(buf, f...)
	}
	buf = binary.LittleEndian.AppendUint64(buf, uint64(s.BlockSize))
	return BlockHash(xxh3.HashSeed(buf, h.seed))
}

// Content returns the hash of one block's tokens: XXH3-64 over the tokens as
// little-endian uint32, seeded.
func (h Hasher) Content(tokens []TokenID) ContentHash {
	return ContentHash(xxh3.HashSeed(tokenBytes(tokens), h.seed))
}

// ContentExtra returns the hash of a block that holds more than tokens, such
// as image placeholders: extra is a canonical encoding of what the engine
// added to its own hash. An empty extra gives [Hasher.Content].
func (h Hasher) ContentExtra(tokens []TokenID, extra []byte) ContentHash {
	c := h.Content(tokens)
	if len(extra) == 0 {
		return c
	}
	return ContentHash(uint64(c) ^ xxh3.HashSeed(extra, h.seed^uint64(c)))
}

// AppendContents appends the content hash of every full block of tokens to
// dst. A partial last block is left out. blockSize must be positive.
func (h Hasher) AppendContents(dst []ContentHash, tokens []TokenID, blockSize int) []ContentHash {
	for len(tokens) >= blockSize {
		dst = append(dst, h.Content(tokens[:blockSize]))
		tokens = tokens[blockSize:]
	}
	return dst
}

// AppendChain appends the chain hash of every content hash to dst, starting
// after parent (a root, or the last block of a known prefix, so that a known
// chain is extended and not hashed again).
func AppendChain(dst []BlockHash, parent BlockHash, contents []ContentHash) []BlockHash {
	for _, c := range contents {
		parent = Mix(parent, c)
		dst = append(dst, parent)
	}
	return dst
}

// The multipliers are odd, hence invertible modulo 2^64.
const (
	mixA    = 0x9E3779B97F4A7C15
	mixB    = 0xD6E8FEB86659FD93
	mixAInv = 0xF1DE83E19937733D
	mixBInv = 0xCFEE444D8B59A89B
)

// Mix returns the chain hash of a block with content c after parent. For a
// given parent it is a bijection of c (multiply and xor-shift steps, each
// invertible), so [Unmix] recovers the content from two chain hashes.
func Mix(parent BlockHash, c ContentHash) BlockHash {
	x := uint64(c) + bits.RotateLeft64(uint64(parent), 23)
	x ^= x >> 32
	x *= mixA
	x ^= x >> 29
	x ^= uint64(parent) * mixB
	x *= mixB
	x ^= x >> 32
	return BlockHash(x)
}

// Unmix returns the content hash c for which Mix(parent, c) == child.
func Unmix(parent, child BlockHash) ContentHash {
	x := uint64(child)
	x ^= x >> 32
	x *= mixBInv
	x ^= uint64(parent) * mixB
	x ^= x>>29 ^ x>>58
	x *= mixAInv
	x ^= x >> 32
	return ContentHash(x - bits.RotateLeft64(uint64(parent), 23))
}

// tokenBytes views tokens as little-endian bytes, without a copy where the
// CPU already stores them so.
func tokenBytes(tokens []TokenID) []byte {
	if len(tokens) == 0 {
		return nil
	}
	if cpuLittleEndian {
		return unsafe.Slice((*byte)(unsafe.Pointer(&tokens[0])), 4*len(tokens))
	}
	buf := make([]byte, 0, 4*len(tokens))
	for _, t := range tokens {
		buf = binary.LittleEndian.AppendUint32(buf, uint32(t))
	}
	return buf
}

// Fingerprint tells seeds apart without giving them away: processes compare it
// before they exchange hashes. It is never 0.
func (h Hasher) Fingerprint() uint64 { return max(1, h.digest("fingerprint", "")) }

// Tenant names a cache salt, which may be a secret, for those who know the
// seed. It is never 0.
func (h Hasher) Tenant(salt string) uint64 { return max(1, h.digest("tenant", salt)) }

// digest is the start of SHA-256 over seed, purpose and text: unlike the hashes
// of blocks it is made to be seen.
func (h Hasher) digest(purpose, text string) uint64 {
	b := binary.LittleEndian.AppendUint64(nil, h.seed)
	b = append(append(append(b, purpose...), 0), text...)
	sum := sha256.Sum256(b)
	return binary.LittleEndian.Uint64(sum[:])
}
