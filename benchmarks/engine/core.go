package engine

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// Defaults of [Config].
const (
	// DefaultBlockSize is vLLM's block size on CUDA.
	DefaultBlockSize = 16
	// DefaultTokenBudget is vLLM's max_num_batched_tokens for online serving.
	DefaultTokenBudget = 8192
	// DefaultMaxSeqs is vLLM's max_num_seqs outside the largest GPUs.
	DefaultMaxSeqs = 256
	// DefaultMaxModelLen is the context length of the served model in tokens.
	DefaultMaxModelLen = 131_072
)

// Config configures a [Core]. [Config.WithDefaults] fills in zero values.
type Config struct {
	// Profile gives the time of a step.
	Profile Profile
	// BlockSize is the number of tokens in a block.
	BlockSize int
	// Blocks is the number of KV blocks; 0 means Profile.KVTokens worth.
	Blocks int
	// HostBlocks is the number of blocks that fit in a second tier in host
	// memory; 0: there is none.
	HostBlocks int
	// MaxModelLen bounds prompt plus output, in tokens.
	MaxModelLen int
	// TokenBudget bounds the tokens computed in one step.
	TokenBudget int
	// MaxSeqs bounds the running sequences.
	MaxSeqs int
	// Hash and HashSeed name blocks.
	Hash     HashAlgorithm
	HashSeed string
	// OutputSeed selects what the engine answers: equal seeds and prompts
	// give equal answers.
	OutputSeed uint64
	// Output chooses the next token from the one before it and 64 random bits.
	// Nil means [Tokenizer.Continue] of the built-in tokenizer.
	Output func(prev kvindex.TokenID, random uint64) kvindex.TokenID
	// EmptyFirst gives blocks that a sequence left without filling them to others
	// before any cached one. vLLM does not, and loses half a block a request by
	// it: nothing with blocks of 16 tokens, but far too much with blocks as large
	// as those of traces, which stand for many small ones.
	EmptyFirst bool
	// NoEvents leaves KV events out, for baselines that do not read them.
	NoEvents bool
}

// WithDefaults returns the configuration with zero values replaced.
func (c Config) WithDefaults() Config {
	if c.Profile.Name == "" {
		c.Profile = Profiles()[0]
	}
	if c.BlockSize == 0 {
		c.BlockSize = DefaultBlockSize
	}
	if c.Blocks == 0 && c.BlockSize > 0 {
		c.Blocks = c.Profile.KVTokens / c.BlockSize
	}
	if c.MaxModelLen == 0 {
		c.MaxModelLen = DefaultMaxModelLen
	}
	if c.TokenBudget == 0 {
		c.TokenBudget = DefaultTokenBudget
	}
	if c.MaxSeqs == 0 {
		c.MaxSeqs = DefaultMaxSeqs
	}
	if c.Hash == "" {
		c.Hash = HashSHA256CBOR
	}
	if c.HashSeed == "" {
		c.HashSeed = DefaultHashSeed
	}
	return c
}

// Validate reports every value that cannot be used.
func (c Config) Validate() error {
	var errs []error
	positive := func(field string, v int) {
		if v <= 0 {
			errs = append(errs, fmt.Errorf("%s: %d: must be at least 1", field, v))
		}
	}
	positive("block size", c.BlockSize)
	positive("blocks", c.Blocks)
	positive("max model len", c.MaxModelLen)
	positive("token budget", c.TokenBudget)
	positive("max seqs", c.MaxSeqs)
	if c.Blocks > 1<<30 {
		errs = append(errs, fmt.Errorf("blocks: %d: must be at most %d", c.Blocks, 1<<30))
	}
	if c.HostBlocks < 0 || c.HostBlocks > 1<<30 {
		errs = append(errs, fmt.Errorf("host blocks: %d: must be 0 to %d", c.HostBlocks, 1<<30))
	}
	if c.Profile.Base <= 0 {
		errs = append(errs, fmt.Errorf("profile %q: base: %v ms: a step must take time", c.Profile.Name, c.Profile.Base))
	}
	if _, err := newHasher(c.Hash, c.HashSeed); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// SequenceID names a request inside one Core. IDs count up from 1.
type SequenceID uint64

// Request is one generation to run.
type Request struct {
	// Prompt is the prompt's token ids, at least one. Submit takes ownership.
	Prompt []kvindex.TokenID
	// PromptTokens and Names stand in for Prompt where only lengths and the
	// identity of blocks matter, as in simulations of long traces: the length
	// of the prompt, and the names of its whole blocks and, as far as later
	// prompts contain them, of those that the answer fills. Equal names must
	// stand behind equal names. Other blocks get names of their own. Such a
	// request's events have no tokens, and the tokens it emits are 0. Submit
	// keeps Names, which must not change.
	PromptTokens int
	Names        []kvindex.EngineHash
	// OutputTokens is the number of tokens to generate, at least 1.
	OutputTokens int
	// Adapter is the LoRA adapter's name, empty for the base model.
	Adapter string
	// Salt is the request's cache_salt.
	Salt string
}

// Errors of [Core.Submit]. Both mean that the request can never run.
var (
	// ErrTooLong says that prompt and output exceed MaxModelLen.
	ErrTooLong = errors.New("request is longer than the model's context")
	// ErrNeverFits says that the request needs more blocks than there are.
	ErrNeverFits = errors.New("request does not fit in the KV cache")
)

// sequence is the state of one request.
type sequence struct {
	id SequenceID
	// tokens are the prompt, then the output; nil where names stand in.
	tokens []kvindex.TokenID
	names  []kvindex.EngineHash
	length int // of prompt and output so far
	prompt int // length of the prompt
	target int // length when finished
	scope  *scope
	random uint64 // seed of the answer

	// digests names the full blocks of tokens, as far as computed.
	digests []Digest
	// blocks are the physical blocks; the first len(nodes) of them are
	// visible and have the content in nodes.
	blocks []int32
	nodes  []*node
	// computed counts the tokens whose KV is in blocks.
	computed int
	// scheduled is the number of tokens that the step in flight computes.
	scheduled int
	aborted   bool

	admitted bool // has run before: a preemption does not count hits twice
	stats    Finished
}

// remaining is the number of tokens to compute before the next one can be
// sampled.
func (s *sequence) remaining() int { return s.length - s.computed }

// decoding says that only the last sampled token is missing.
func (s *sequence) decoding() bool { return s.remaining() == 1 && s.computed >= s.prompt }

// Core is one inference engine: scheduler, block pool and step model. It is a
// pure state machine: it reads no clock and starts no goroutine. It is not
// safe for concurrent use.
//
// A driver alternates [Core.Begin], which plans a step and says how long it
// takes, and [Core.End], which is to be called when that time has passed.
// Submit, Abort, Reset, Stats and Held may be called at any time, also while
// a step is in flight; what is submitted meanwhile waits for the next step.
type Core struct {
	cfg     Config
	hasher  *hasher
	pool    *blockPool
	host    *hostTier // nil without one
	output  func(kvindex.TokenID, uint64) kvindex.TokenID
	loraIDs map[string]int

	sequences map[SequenceID]*sequence
	nextID    SequenceID
	// running is in order of admission, waiting in order of arrival with
	// preempted sequences in front.
	running []*sequence
	waiting []*sequence
	// step is the set of sequences scheduled in the step in flight.
	step     []*sequence
	work     work
	inFlight bool
	hits     []int32 // scratch of match
	loading  int     // tokens that the step in flight loads from the host tier

	// pending are the events of the next batch.
	pending []Event
	result  StepResult
	stats   Stats
}

// New returns an idle engine with an empty cache.
func New(cfg Config) (*Core, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	h, err := newHasher(cfg.Hash, cfg.HashSeed)
	if err != nil {
		return nil, err
	}
	output := cfg.Output
	if output == nil {
		output = NewTokenizer().Continue
	}
	c := &Core{
		cfg:       cfg,
		hasher:    h,
		pool:      newBlockPool(cfg.Blocks),
		output:    output,
		loraIDs:   make(map[string]int),
		sequences: make(map[SequenceID]*sequence),
	}
	c.pool.emptyFirst = cfg.EmptyFirst
	if cfg.HostBlocks > 0 {
		c.host = newHostTier(cfg.HostBlocks)
	}
	return c, nil
}

// Config returns the configuration with defaults filled in.
func (c *Core) Config() Config { return c.cfg }

// Submit queues a request that arrives now. A request that can never run is
// refused with an error that wraps [ErrTooLong] or [ErrNeverFits]; one that
// does not fit at the moment waits.
func (c *Core) Submit(now time.Time, r Request) (SequenceID, error) {
	prompt := len(r.Prompt)
	if prompt == 0 {
		prompt = r.PromptTokens
	}
	total := prompt + r.OutputTokens
	switch {
	case prompt <= 0:
		return 0, errors.New("prompt: empty: at least one token is needed")
	case r.OutputTokens < 1:
		return 0, fmt.Errorf("output tokens: %d: must be at least 1", r.OutputTokens)
	case total > c.cfg.MaxModelLen:
		return 0, fmt.Errorf("%d prompt and %d output tokens, limit %d: %w",
			prompt, r.OutputTokens, c.cfg.MaxModelLen, ErrTooLong)
	// The last token is sampled and never fed back: it has no KV.
	case c.blocksFor(total-1) > c.pool.capacity():
		return 0, fmt.Errorf("%d prompt and %d output tokens, %d blocks of %d: %w",
			prompt, r.OutputTokens, c.pool.capacity(), c.cfg.BlockSize, ErrNeverFits)
	}
	c.nextID++
	s := &sequence{
		id:     c.nextID,
		tokens: r.Prompt,
		names:  r.Names,
		length: prompt,
		prompt: prompt,
		target: total,
		scope:  &scope{adapter: r.Adapter, salt: r.Salt},
		random: seedOf(c.cfg.OutputSeed, r.Prompt, r.Adapter),
		stats:  Finished{ID: c.nextID, PromptTokens: prompt, Arrived: now},
	}
	if len(r.Prompt) == 0 {
		s.random = splitmix(s.random ^ uint64(s.id))
	}
	if r.Adapter != "" && c.loraIDs[r.Adapter] == 0 {
		c.loraIDs[r.Adapter] = len(c.loraIDs) + 1
	}
	c.sequences[s.id] = s
	c.waiting = append(c.waiting, s)
	return s.id, nil
}

// Cached returns how many tokens of a prompt the engine would find if it were
// admitted now, on the device and behind them in host memory. It changes
// nothing.
func (c *Core) Cached(r Request) (device, host int) {
	s := &sequence{tokens: r.Prompt, names: r.Names, length: max(len(r.Prompt), r.PromptTokens), scope: &scope{adapter: r.Adapter, salt: r.Salt}}
	hits, _ := c.match(s)
	n := len(hits)
	if c.host != nil {
		for limit := (s.length - 1) / c.cfg.BlockSize; n < limit; n++ {
			if _, ok := c.host.at[s.digests[n]]; !ok {
				break
			}
		}
	}
	return len(hits) * c.cfg.BlockSize, (n - len(hits)) * c.cfg.BlockSize
}

// Holds tells where the engine holds the block that requests without tokens name
// so. It changes nothing.
func (c *Core) Holds(name kvindex.EngineHash) (device, host bool) {
	d := namedDigest(uint64(name))
	_, device = c.pool.lookup(d)
	if c.host != nil {
		_, host = c.host.at[d]
	}
	return device, host
}

// Abort ends a sequence and frees its blocks: at once, or with the step in
// flight if that computes it. It reports whether the sequence was alive. An
// aborted sequence appears in no later result.
func (c *Core) Abort(id SequenceID) bool {
	s, ok := c.sequences[id]
	if !ok || s.aborted {
		return false
	}
	if s.scheduled > 0 {
		s.aborted = true
		return true
	}
	c.waiting = slices.DeleteFunc(c.waiting, func(o *sequence) bool { return o == s })
	c.running = slices.DeleteFunc(c.running, func(o *sequence) bool { return o == s })
	c.discard(s)
	return true
}

// Reset empties the prefix cache if no block is in use, and reports whether
// it did. As in vLLM, nothing is announced at once: the clear is the first
// event of the next step that is run.
func (c *Core) Reset() bool {
	if !c.pool.reset() {
		return false
	}
	if c.host != nil {
		c.host = newHostTier(c.cfg.HostBlocks)
	}
	c.emit(AllBlocksCleared{})
	return true
}

// PendingEvents is the number of events that the next finished step will
// report.
func (c *Core) PendingEvents() int { return len(c.pending) }

// InFlight says whether a step was begun and not ended.
func (c *Core) InFlight() bool { return c.inFlight }

// Stats returns gauges as of now and counters since the start.
func (c *Core) Stats() Stats {
	s := c.stats
	s.Running = len(c.running)
	s.Waiting = len(c.waiting)
	s.BlocksTotal = c.pool.capacity()
	s.BlocksInUse = c.pool.inUse()
	return s
}

// Adapters returns the names of the LoRA adapters with running and with
// waiting sequences, each sorted.
func (c *Core) Adapters() (running, waiting []string) {
	if len(c.loraIDs) == 0 {
		return nil, nil
	}
	return adaptersOf(c.running), adaptersOf(c.waiting)
}

func adaptersOf(sequences []*sequence) []string {
	var names []string
	for _, s := range sequences {
		if s.scope.adapter != "" {
			names = append(names, s.scope.adapter)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// discard frees what a sequence holds and forgets it.
func (c *Core) discard(s *sequence) {
	c.pool.release(s.blocks)
	s.blocks, s.nodes = nil, nil
	delete(c.sequences, s.id)
}

func (c *Core) emit(e Event) {
	if !c.cfg.NoEvents {
		c.pending = append(c.pending, e)
	}
}

func (c *Core) blocksFor(tokens int) int {
	return (tokens + c.cfg.BlockSize - 1) / c.cfg.BlockSize
}

// seedOf mixes all that an answer depends on.
func seedOf(seed uint64, prompt []kvindex.TokenID, adapter string) uint64 {
	h := splitmix(seed)
	for _, t := range prompt {
		h = splitmix(h ^ uint64(t))
	}
	for i := range len(adapter) {
		h = splitmix(h ^ uint64(adapter[i]))
	}
	return h
}

// splitmix is the step of SplitMix64 (Steele, Lea, Flood: "Fast splittable
// pseudorandom number generators", 2014).
func splitmix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
