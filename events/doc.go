// Package events keeps the prefix index true to what inference engines say
// about their KV caches: it follows the ZMQ event streams of the endpoints in
// the pool, puts them in order, decodes them and applies them through one
// [kvindex.Writer] a publisher.
//
//	frames -> Sequence (what is in order, missing, of another process)
//	       -> Decoder  (one normal form for every engine and encoding)
//	       -> Writer   (names, copies and trust are the index's business)
//
// # What ZMQ may lose
//
// A PUB socket drops what a subscriber's queue does not take, drops everything
// published before the subscription is in force, and says nothing of either.
// Batches carry a sequence that starts at 0 with the engine process, without a
// sign of which process that is. There is no heartbeat: an idle engine sends
// nothing.
//
// # What replay gives back
//
// An engine with a replay endpoint keeps its last batches (10,000 by default)
// and sends those from a given sequence on. Answers may begin later than asked,
// miss batches inside, and lack the end marker; they have no topic frame in
// older releases. Every replay here starts at the last batch applied, inclusive:
// that batch carries a time stamp, and if it does not come back byte for byte
// the same, the engine is another process, the state is dropped and history
// is asked for from 0. The same question is put after a disconnect, at a gap,
// and to publishers that have been quiet.
//
// Without a replay endpoint, which is the engines' default, nothing can be
// proven: every gap and every disconnect drops the state.
//
// # Engines that connect
//
// Most engines listen and are dialed. One that is configured to connect finds
// the router at [Config].Listen, and its endpoint by the topic of its messages;
// of two connections with one topic the newer counts. Its replay socket, if it
// has one, is dialed as ever.
//
// # What is not known
//
//   - LMCache hands the events of its chunks to vLLM's publisher and never says
//     what it drops. They are recognised by their medium and their lack of a
//     cache group, counted as store_only, and not indexed: those tiers are
//     under-counted.
//   - vLLM before 0.17 has no place for cache salts and images in its events,
//     so that such blocks look like plain ones. Its publishers are blind, never
//     exact. A salted prompt matches nothing there, because its chain has a root
//     of its own; multimodal prompts are matched nowhere.
//   - Adapters that are known by number only (vLLM before 0.14) are not indexed.
//
// # What is promised
//
// Nothing is applied twice, out of order, or across a gap. Trust is exact only
// while the history is gap-free since sequence 0 or since a clear, the
// subscription is known to be in force, and the index has a place for every
// block: while some wait for a parent that is unknown the publisher is
// incomplete. What cannot be understood is skipped
// and counted with its cause; if it may have been a removal, the state is
// dropped. Events of one publisher are applied in order by one goroutine;
// publishers know nothing of each other. When a subscriber goes, so does all
// that its publisher held.
//
// # Back pressure
//
// Receiving and applying are separate goroutines with a short queue between
// them; when it is full, TCP holds the stream back, and the engine's own queue
// takes what comes until it drops, which is then a gap. During a replay live
// batches are held back up to a bound in bytes; beyond it they are dropped,
// which is a gap too.
package events
