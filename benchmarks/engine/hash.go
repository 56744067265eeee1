package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/zeebo/xxh3"
)

// HashAlgorithm names a block hash of vLLM's --prefix-caching-hash-algo that
// can be computed outside Python.
type HashAlgorithm string

// The algorithms. Both hash the canonical CBOR (RFC 8949 §4.2.1) of
// (parent digest, token ids, extra keys).
const (
	// HashSHA256CBOR is vLLM's sha256_cbor: digests of 32 bytes.
	HashSHA256CBOR HashAlgorithm = "sha256_cbor"
	// HashXXH3CBOR is vLLM's xxhash_cbor: XXH3-128, digests of 16 bytes. It is
	// not collision resistant and about three times faster: meant for long
	// simulations.
	HashXXH3CBOR HashAlgorithm = "xxhash_cbor"
)

// DefaultHashSeed is the string that vLLM hashes into the parent of first
// blocks when PYTHONHASHSEED is unset (releases with a deterministic
// NONE_HASH).
const DefaultHashSeed = "vllm-none-hash"

// Digest is a full block digest. Digests shorter than 32 bytes are
// right-aligned, so that the last eight bytes always are the wire name.
type Digest [sha256.Size]byte

// Wire returns the digest as KV events name it: its last eight bytes,
// big-endian, unsigned (vLLM with VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES on).
func (d Digest) Wire() kvindex.EngineHash {
	return kvindex.EngineHash(binary.BigEndian.Uint64(d[len(d)-8:]))
}

// namedDigest returns the digest whose wire name is given.
func namedDigest(name uint64) Digest {
	var d Digest
	binary.BigEndian.PutUint64(d[len(d)-8:], name)
	return d
}

// hasher computes block digests. It reuses one buffer and is not safe for
// concurrent use.
type hasher struct {
	algorithm HashAlgorithm
	size      int    // digest bytes
	none      Digest // the parent of first blocks
	buf       []byte
}

func newHasher(algorithm HashAlgorithm, seed string) (*hasher, error) {
	h := &hasher{algorithm: algorithm}
	switch algorithm {
	case HashSHA256CBOR:
		h.size = sha256.Size
	case HashXXH3CBOR:
		h.size = 16
	default:
		return nil, fmt.Errorf("hash %q: use %q or %q", algorithm, HashSHA256CBOR, HashXXH3CBOR)
	}
	h.buf = appendCBORText(h.buf[:0], seed)
	h.none = h.sum()
	return h, nil
}

// block returns the digest of one full block. adapter is part of every block
// of its chain, salt only of the block at token 0, in that order and as bare
// strings (vLLM up to 0.30; later releases hash tagged tuples and announce
// the bare ones).
func (h *hasher) block(parent Digest, tokens []kvindex.TokenID, adapter, salt string) Digest {
	b := append(h.buf[:0], 0x83) // array of 3
	b = appendCBORHead(b, 2, uint64(h.size))
	b = append(b, parent[len(parent)-h.size:]...)
	b = appendCBORHead(b, 4, uint64(len(tokens)))
	for _, t := range tokens {
		b = appendCBORHead(b, 0, uint64(t))
	}
	extras := 0
	if adapter != "" {
		extras++
	}
	if salt != "" {
		extras++
	}
	if extras == 0 {
		b = append(b, 0xf6) // null
	} else {
		b = appendCBORHead(b, 4, uint64(extras))
		if adapter != "" {
			b = appendCBORText(b, adapter)
		}
		if salt != "" {
			b = appendCBORText(b, salt)
		}
	}
	h.buf = b
	return h.sum()
}

// sum returns the digest of buf.
func (h *hasher) sum() Digest {
	if h.algorithm == HashSHA256CBOR {
		return sha256.Sum256(h.buf)
	}
	var d Digest
	u := xxh3.Hash128(h.buf)
	binary.BigEndian.PutUint64(d[16:], u.Hi)
	binary.BigEndian.PutUint64(d[24:], u.Lo)
	return d
}

// appendCBORHead appends the initial byte and the shortest argument of a CBOR
// data item (RFC 8949 §3).
func appendCBORHead(b []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n <= 0xff:
		return append(b, major|24, byte(n))
	case n <= 0xffff:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n <= 0xffffffff:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

func appendCBORText(b []byte, s string) []byte {
	return append(appendCBORHead(b, 3, uint64(len(s))), s...)
}
