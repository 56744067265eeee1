package routing

import (
	"context"
	"fmt"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Tokenizer tells what the engines' tokens of a prompt are. It appends to dst
// one [Tokens] for each group of serving endpoints that tokenize alike, at
// most [MaxTokenGroups]. Endpoints in no group count as holding nothing.
//
// An error's reason becomes the decision's. What is appended is valid until
// the next call with the same dst, and is not changed by the caller.
type Tokenizer interface {
	Tokenize(ctx context.Context, q *TokenQuery, dst []Tokens) ([]Tokens, *Error)
}

// MaxTokenGroups bounds how many different tokenizations of one prompt are
// looked up: two, for a rolling upgrade that brings a second chat template.
const MaxTokenGroups = 2

// TokenQuery is what a [Tokenizer] is asked. It is borrowed for the call.
type TokenQuery struct {
	Request *Request
	// Serving are the endpoints that serve the request's model.
	Serving []*pool.Endpoint
	// Hasher and BlockSizes (tokens in a block) say which content hashes are
	// wanted.
	Hasher     kvindex.Hasher
	BlockSizes []int
}

// TokenSource says where the tokens of a decision came from.
type TokenSource uint8

const (
	// TokensNone: no tokens are known.
	TokensNone TokenSource = iota
	// TokensIDs: the request itself carried token ids.
	TokensIDs
	// TokensL0: the same prompt had been tokenized before.
	TokensL0
	// TokensL1: the beginning of the prompt had been tokenized before; the rest
	// is not known.
	TokensL1
	// TokensRemote: a tokenizer was asked and waited for.
	TokensRemote
)

var tokenSourceNames = [...]string{TokensNone: "none", TokensIDs: "ids", TokensL0: "l0", TokensL1: "l1", TokensRemote: "remote"}

// TokenSources returns every source, in numeric order.
func TokenSources() []TokenSource {
	return []TokenSource{TokensNone, TokensIDs, TokensL0, TokensL1, TokensRemote}
}

// String returns the stable name, a metric label value.
func (s TokenSource) String() string {
	if int(s) < len(tokenSourceNames) {
		return tokenSourceNames[s]
	}
	return fmt.Sprintf("source_%d", uint8(s))
}

// Tokens is what is known of a prompt's tokens: the blocks they fill, from the
// start of the prompt without a gap, each certain.
type Tokens struct {
	Source TokenSource
	// Count is the length of the prompt in tokens, Unseen how many of them, at
	// its end, are not known. Both are estimates where Unseen is not 0.
	Count, Unseen int
	// Blocks has an element for each block size of the query for which blocks
	// are known, in any order.
	Blocks []TokenBlocks
	// Endpoints are those that tokenize like this; nil: all that were asked for.
	Endpoints []*pool.Endpoint
	// Fault is why a tokenizer that was asked gave no better answer;
	// [ReasonNone] if none was asked or it answered.
	Fault Reason
}

// TokenBlocks are the content hashes of a prompt's leading whole blocks.
type TokenBlocks struct {
	Size     int
	Contents []kvindex.ContentHash
}

// TokenView is what a [Target] and a [Decision] keep of [Tokens].
type TokenView struct {
	Source TokenSource
	// Unseen is the estimated number of tokens, at the end of the prompt, that
	// were not looked up, because they were not known.
	Unseen int
	// Fault is why a tokenizer that was asked gave no better answer.
	Fault Reason
}

// String returns the source as a response header shows it: ids, l0, l1+57
// (57 tokens, estimated, at the end of the prompt are unseen), remote, none;
// and the fault after a comma.
func (v TokenView) String() string {
	s := v.Source.String()
	if v.Source == TokensL1 {
		s = fmt.Sprintf("%s+%d", s, v.Unseen)
	}
	if v.Fault != ReasonNone {
		s += "," + v.Fault.String()
	}
	return s
}

// MarshalText gives [TokenView.String] in JSON.
func (v TokenView) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// words explains the source in half a sentence, "" where there is nothing to
// say.
func (v TokenView) words() string {
	switch v.Source {
	case TokensL0:
		return "The same prompt had been tokenized before."
	case TokensL1:
		s := fmt.Sprintf("The prompt's beginning had been tokenized before; about %d tokens at its end were not looked up", v.Unseen)
		if v.Fault != ReasonNone {
			s += " (" + v.Fault.String() + ")"
		}
		return s + "."
	case TokensRemote:
		return "The decision waited for the tokenizer."
	}
	return ""
}

// blocksOf returns the content hashes of the prompt's blocks of one size.
func (t *Tokens) blocksOf(size int) []kvindex.ContentHash {
	for i := range t.Blocks {
		if t.Blocks[i].Size == size {
			return t.Blocks[i].Contents
		}
	}
	return nil
}

// usable is how many of the prompt's blocks an engine could reuse. The block
// of the last token is not: engines compute at least one token of every
// prompt.
func (t *Tokens) usable(size, known int) int {
	if t.Unseen > 0 {
		return known // all of them end before the unseen rest
	}
	return max(0, min(known, (t.Count-1)/size))
}

// match fills in how many of the prompt's tokens each candidate holds. It
// returns the reason of the decision if none of them holds any, and the prompt's
// length in tokens.
func (r *Router) match(ctx context.Context, req *Request, sc *scratch, scope kvindex.Scope, serving []*pool.Endpoint) (Reason, int, TokenView) {
	sizes := sc.blockSizes()
	if len(sizes) == 0 {
		return ReasonNoEvents, 0, TokenView{}
	}
	if reason := r.tokens(ctx, req, sc, serving, sizes); reason != ReasonNone {
		return reason, 0, TokenView{Fault: reason}
	}
	short := true
	for i := range sc.tokens {
		t := &sc.tokens[i]
		for _, size := range sizes {
			known := t.blocksOf(size)
			blocks := t.usable(size, len(known))
			if blocks == 0 {
				continue
			}
			short = false
			scope.BlockSize = size
			from := len(sc.chain)
			sc.chain = kvindex.AppendChain(sc.chain, r.hasher.Root(scope), known[:blocks])
			k := chain{size, sc.chain[from:], t.Endpoints}
			sc.chains = append(sc.chains, k)
			sc.matches = r.index.Match(sc.matches[:0], k.blocks, req.Arrived, nil)
			sc.merge(size, t.Endpoints)
		}
	}
	first := &sc.tokens[0]
	view := TokenView{Source: first.Source, Unseen: first.Unseen, Fault: first.Fault}
	switch {
	case first.Fault != ReasonNone:
		return first.Fault, first.Count, view
	case short && first.Unseen == 0:
		return ReasonShort, first.Count, view
	}
	return ReasonCold, first.Count, view
}

// tokens puts what is known of the prompt's tokens into sc.tokens, at least
// one element, or returns the reason why nothing is.
func (r *Router) tokens(ctx context.Context, req *Request, sc *scratch, serving []*pool.Endpoint, sizes []int) Reason {
	p := &req.Prompt
	switch {
	case sc.known != nil:
		sc.tokens = sc.known.tokens
		return sc.known.reason
	case p.Kind == PromptTokens && len(p.Options) > 0:
		// The ids are cut, or not all of the prompt.
		return ReasonPromptOptions
	case p.Kind == PromptTokens:
		sc.tokens = append(sc.tokens[:0], Tokens{Source: TokensIDs, Count: len(p.Tokens), Blocks: sc.blocks[:0]})
		sc.contents = sc.contents[:0]
		for _, size := range sizes {
			from := len(sc.contents)
			sc.contents = r.hasher.AppendContents(sc.contents, p.Tokens, size)
			sc.blocks = append(sc.tokens[0].Blocks, TokenBlocks{Size: size, Contents: sc.contents[from:]})
			sc.tokens[0].Blocks = sc.blocks
		}
		return ReasonNone
	case p.Kind == PromptNone, p.Multimodal:
		// Two images have the same placeholder tokens: ids alone would match
		// another client's image.
		return ReasonNoPrompt
	case r.tokenizer == nil:
		return ReasonTokenizerDown
	}
	sc.query = TokenQuery{Request: req, Serving: serving, Hasher: r.hasher, BlockSizes: sizes}
	tokens, err := r.tokenizer.Tokenize(ctx, &sc.query, sc.tokens[:0])
	sc.query = TokenQuery{} // the scratch must not keep the request alive
	if err != nil {
		return err.Reason
	}
	sc.tokens = tokens
	if len(tokens) == 0 {
		return ReasonTokenizerDown
	}
	return ReasonNone
}
