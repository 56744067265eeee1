// Package kvindex is the prefix index: it tells, for a chain of block hashes,
// which publishers hold how long a prefix of it, per tier, while any number of
// writers change it.
//
// A publisher is one KV-event stream (one endpoint and data-parallel rank, as
// in vLLM's KV events). [Index.Open] gives its [Writer]; one goroutine owns
// each. [Index.Match], which any number of goroutines call, takes no lock and
// allocates nothing but room in the caller's slice.
//
// # What a match promises
//
// A match is a walk, not a snapshot. For every publisher in the answer, each
// block counted was held by it at some instant of the call, and the block that
// ended the count was missing at some instant of it, as far as the events
// applied say. An answer never mixes two incarnations of an id: publishers
// cleared or closed during the call are looked at again or left out.
//
// A block is known by its chain hash, which covers every block before it:
// where the hashes of two chains agree at one place, the chains are the same
// up to there. That is sound up to 64-bit collisions, and the fleet seed keeps
// anyone from choosing them. It is not the jump search that compares numbers
// of holders: a holder's blocks are a mask, and its first zero ends its count.
//
// # What holding means
//
//   - A block is held by (publisher, tier, group) while some name that the
//     publisher announced for it in this generation, and did not remove,
//     denotes it. A removal by a name that it never announced does nothing.
//   - On the device tier a name is held or not, however often it was announced.
//     On the others copies are counted up to 255; beyond that some are lost
//     and none invented.
//   - Held on a tier means held in each cache group that the publisher
//     announced since its last clear.
//   - A name that is announced for another block denotes only that from then on.
//   - The names of the blocks of a publisher's last 1,024 to 2,048 removals
//     still serve as parents; using one so counts like removing it again. So do
//     those of blocks that it stored more often than it removed them: it may
//     have another copy. They hold nothing.
//   - A store behind an unknown parent waits for it, up to 16,384 blocks a
//     publisher. Tier updates, removals and clears apply to what waits. While
//     anything waits, [Writer.Lacks] tells so, and the publisher is not exact.
//
// # Invariants
//
// The tests' audit checks these whenever nothing is in progress.
//
//   - A chain hash is in one segment at one place, and the segment map has
//     exactly the first blocks of segments.
//   - A segment's last block, at least, is held, remembered or expected by
//     somebody. A segment with no such block does not exist.
//   - A shared name stands beside its block if and only if some publisher
//     announced and still remembers it, and the table has it once.
//
// # Memory
//
// Per distinct block: 8 bytes of chain hash, 8 of name, 8 of a table slot at
// 67 to 84 % load, and over up to 64 blocks 64 bytes of segment head and 33 to
// 50 of the map that finds it. Per further holder of a segment: 20 bytes.
// Names that a publisher does not share take 12 bytes at 40 to 80 % load in
// its own table. But for that map it is all in words without pointers, which
// the garbage collector does not scan. Memory freed is used again and not
// returned. Together 24 bytes a held (publisher, block) pair where 1.33
// publishers hold a block, names included; DESIGN.md has the measurements.
//
// # What is approximate
//
//   - Predictions, by nature: they are reported apart and never as held. Those
//     of one endpoint that share a segment end together with the latest.
//   - Coldness: a segment's age is that of its last growth, in steps of 1/64
//     of Config.MaxBlocks stored.
//   - Everything else is exact until Config.MaxBlocks makes the index evict,
//     which lowers the losers' trust to [TrustIncomplete].
package kvindex
