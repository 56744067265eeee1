// Package indexops generates and reads index-ops files: one deterministic
// stream of prefix-index operations and queries with exact answers, written
// as little-endian uint64 words so that a harness maps the file and parses
// nothing.
//
// # Layout
//
// A file is a header of [HeaderWords] words and five sections that a harness
// plays in this order: load, churn, queries, holes, hole queries.
//
//	header: 0 magic, 1 version, 2 seed, 3 pods, 4 tokens a block,
//	        5/6 load ops and their offset in words, 7/8 churn ops,
//	        9/10 hole ops, 11/12 queries, 13/14 hole queries,
//	        15 pairs held after load, 16 blocks stored by load,
//	        17/18 blocks stored/removed by churn, 19 pairs after churn,
//	        20 distinct blocks after load, 21/22 blocks removed/stored by
//	        holes, 23 pairs at the end
//	op:     kind (1 store, 2 remove) | has-parent<<8 | pod<<16 | n<<32;
//	        the parent's name; then n (name, content) pairs for a store or
//	        n names for a remove
//	query:  class | n<<32; 16 words of answers, four 16-bit depths a word,
//	        pod 0 lowest; n contents; n names
//
// A block is a pair: its content hash c and its cumulative engine hash e. The
// e of a chain's first block is its c; every later e is XXH3-64 with seed
// 1337 over the previous e and c.
//
// # The modelled fleet
//
// 64 pods and 20 system prompts of 64 blocks. A conversation is a prompt plus
// turns of 8 to 64 blocks, 512 blocks long in half of the cases and 128 to 512
// in the other half, on one pod (80 %) or three; half of the extra copies stop
// at an earlier turn. Load interleaves 512 growing residencies. Churn erodes
// the least recently used conversation of a random pod (10 %: of a random
// older one) leaf first and stores as much, of which 20 % are conversations
// that another pod already holds. Holes remove 1 to 4 middle blocks of 3 % of
// the residencies; half of them heal, and half of these grow.
package indexops
