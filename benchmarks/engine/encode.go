package engine

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/warmpath/warmpath/kvindex"
)

// Format is the msgpack layout of events. The batch around them is an array
// in every release.
type Format string

// The formats.
const (
	// FormatMap is the layout of vLLM 0.24 to 0.32: maps with a "type" key,
	// optional fields left out.
	FormatMap Format = "map"
	// FormatArray is the layout of vLLM 0.17 to 0.19: arrays of 9 (stored) and
	// 3 (removed) elements.
	FormatArray Format = "array"
	// FormatArray12 is the layout of vLLM 0.22 and 0.23: arrays of 12 (stored)
	// and 4 (removed) elements.
	FormatArray12 Format = "array12"
)

// Validate reports an unknown format.
func (f Format) Validate() error {
	switch f {
	case FormatMap, FormatArray, FormatArray12:
		return nil
	}
	return fmt.Errorf("event format %q: use %q, %q or %q", string(f), FormatMap, FormatArray, FormatArray12)
}

// AppendBatch appends one batch as vLLM publishes it, [ts, events, rank]: ts
// in Unix seconds, rank the data-parallel rank. The bytes are those of
// vLLM's msgspec encoder: shortest integers and headers, 64-bit floats.
func AppendBatch(b []byte, f Format, ts float64, events []Event, rank int) []byte {
	b = appendArrayLen(b, 3)
	b = binary.BigEndian.AppendUint64(append(b, 0xcb), math.Float64bits(ts))
	b = appendArrayLen(b, len(events))
	for _, e := range events {
		b = e.appendTo(b, f)
	}
	return appendUint(b, uint64(rank))
}

func (e BlockStored) appendTo(b []byte, f Format) []byte {
	if f == FormatMap {
		return e.appendMap(b)
	}
	n := 9
	if f == FormatArray12 {
		n = 12
	}
	b = appendString(appendArrayLen(b, n), "BlockStored")
	b = appendHashes(b, e.Hashes)
	b = e.appendParent(b)
	b = appendTokens(b, e.Tokens)
	b = appendUint(b, uint64(e.BlockSize))
	b = appendUintOrNil(b, e.LoRAID)
	b = appendStringOrNil(b, e.Medium)
	b = appendStringOrNil(b, e.LoRAName)
	b = appendExtraKeys(b, e.ExtraKeys)
	if f == FormatArray12 {
		b = appendGroup(b, e.GroupIdx)
		b = appendStringOrNil(b, e.Kind)
		b = append(b, msgpackNil) // sliding window
	}
	return b
}

func (e BlockStored) appendMap(b []byte) []byte {
	n := 8
	if e.ExtraKeys != nil {
		n++
	}
	if e.GroupIdx != NoGroup {
		n++
	}
	if e.Kind != "" {
		n++
	}
	b = append(b, 0x80|byte(n)) // fixmap: at most 15 fields are declared
	b = appendString(appendString(b, "type"), "BlockStored")
	b = appendHashes(appendString(b, "block_hashes"), e.Hashes)
	b = e.appendParent(appendString(b, "parent_block_hash"))
	b = appendTokens(appendString(b, "token_ids"), e.Tokens)
	b = appendUint(appendString(b, "block_size"), uint64(e.BlockSize))
	b = appendUintOrNil(appendString(b, "lora_id"), e.LoRAID)
	b = appendStringOrNil(appendString(b, "medium"), e.Medium)
	b = appendStringOrNil(appendString(b, "lora_name"), e.LoRAName)
	if e.ExtraKeys != nil {
		b = appendExtraKeys(appendString(b, "extra_keys"), e.ExtraKeys)
	}
	if e.GroupIdx != NoGroup {
		b = appendGroup(appendString(b, "group_idx"), e.GroupIdx)
	}
	if e.Kind != "" {
		b = appendString(appendString(b, "kv_cache_spec_kind"), e.Kind)
	}
	return b
}

func (e BlockStored) appendParent(b []byte) []byte {
	if e.Root {
		return append(b, msgpackNil)
	}
	return appendUint(b, uint64(e.Parent))
}

func (e BlockRemoved) appendTo(b []byte, f Format) []byte {
	switch f {
	case FormatMap:
		n := byte(3)
		if e.GroupIdx != NoGroup {
			n++
		}
		b = append(b, 0x80|n)
		b = appendString(appendString(b, "type"), "BlockRemoved")
		b = appendHashes(appendString(b, "block_hashes"), e.Hashes)
		b = appendStringOrNil(appendString(b, "medium"), e.Medium)
		if e.GroupIdx != NoGroup {
			b = appendGroup(appendString(b, "group_idx"), e.GroupIdx)
		}
		return b
	case FormatArray12:
		b = appendString(appendArrayLen(b, 4), "BlockRemoved")
	default:
		b = appendString(appendArrayLen(b, 3), "BlockRemoved")
	}
	b = appendHashes(b, e.Hashes)
	b = appendStringOrNil(b, e.Medium)
	if f == FormatArray12 {
		b = appendGroup(b, e.GroupIdx)
	}
	return b
}

func (AllBlocksCleared) appendTo(b []byte, f Format) []byte {
	if f == FormatMap {
		b = appendString(append(b, 0x81), "type")
		return appendString(b, "AllBlocksCleared")
	}
	return appendString(appendArrayLen(b, 1), "AllBlocksCleared")
}

func appendHashes(b []byte, hashes []kvindex.EngineHash) []byte {
	b = appendArrayLen(b, len(hashes))
	for _, h := range hashes {
		b = appendUint(b, uint64(h))
	}
	return b
}

func appendTokens(b []byte, tokens []kvindex.TokenID) []byte {
	b = appendArrayLen(b, len(tokens))
	for _, t := range tokens {
		b = appendUint(b, uint64(t))
	}
	return b
}

func appendExtraKeys(b []byte, keys [][]string) []byte {
	if keys == nil {
		return append(b, msgpackNil)
	}
	b = appendArrayLen(b, len(keys))
	for _, block := range keys {
		if block == nil {
			b = append(b, msgpackNil)
			continue
		}
		b = appendArrayLen(b, len(block))
		for _, k := range block {
			b = appendString(b, k)
		}
	}
	return b
}

func appendGroup(b []byte, idx int) []byte {
	if idx == NoGroup {
		return append(b, msgpackNil)
	}
	return appendUint(b, uint64(idx))
}

// The msgpack primitives, always in their shortest form (MessagePack
// specification, "Formats").

const msgpackNil = 0xc0

func appendUint(b []byte, n uint64) []byte {
	switch {
	case n < 0x80:
		return append(b, byte(n))
	case n <= 0xff:
		return append(b, 0xcc, byte(n))
	case n <= 0xffff:
		return binary.BigEndian.AppendUint16(append(b, 0xcd), uint16(n))
	case n <= 0xffffffff:
		return binary.BigEndian.AppendUint32(append(b, 0xce), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xcf), n)
}

func appendUintOrNil(b []byte, n int) []byte {
	if n == 0 {
		return append(b, msgpackNil)
	}
	return appendUint(b, uint64(n))
}

func appendArrayLen(b []byte, n int) []byte {
	switch {
	case n < 16:
		return append(b, 0x90|byte(n))
	case n <= 0xffff:
		return binary.BigEndian.AppendUint16(append(b, 0xdc), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, 0xdd), uint32(n))
}

func appendString(b []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n <= 0xff:
		b = append(b, 0xd9, byte(n))
	case n <= 0xffff:
		b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n))
	}
	return append(b, s...)
}

func appendStringOrNil(b []byte, s string) []byte {
	if s == "" {
		return append(b, msgpackNil)
	}
	return appendString(b, s)
}
