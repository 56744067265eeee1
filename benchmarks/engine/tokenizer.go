package engine

import (
	"strings"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/zeebo/xxh3"
)

// The vocabulary: ordinary tokens, then the special ones.
const (
	// OrdinaryTokens is the number of ids that text hashes into.
	OrdinaryTokens = 128_000
	// TokenBOS begins a text, TokenEOS ends one.
	TokenBOS kvindex.TokenID = OrdinaryTokens
	TokenEOS kvindex.TokenID = OrdinaryTokens + 1
	// TokenTurnStart and TokenTurnEnd enclose one message of a chat.
	TokenTurnStart kvindex.TokenID = OrdinaryTokens + 2
	TokenTurnEnd   kvindex.TokenID = OrdinaryTokens + 3
)

// The spelling of the special tokens. As with real tokenizers they are
// recognized anywhere in a text.
const (
	textBOS       = "<|begin_of_text|>"
	textEOS       = "<|end_of_text|>"
	textTurnStart = "<|im_start|>"
	textTurnEnd   = "<|im_end|>"
)

// maxWord is the longest run of letters in one token. With the space before
// it that makes English prose about four characters per token.
const maxWord = 6

// Tokenizer turns text into token ids without a vocabulary file: text is cut
// into short pieces, left to right, and a piece's id is its hash. It is
// deterministic and prefix-stable: text appended to a text changes no token
// that ends more than [Lookahead] bytes before the old end.
//
// Two different pieces may share an id, so ids cannot be turned back into
// text. The exception are the pieces that the engine itself answers with: they
// come from a small table and have ids of their own, and a generated text
// re-tokenizes to the ids that were generated.
//
// A Tokenizer is immutable and safe for concurrent use.
type Tokenizer struct {
	// pieces and ids are the table; pieces is indexed by id.
	pieces []string
	ids    map[string]kvindex.TokenID
	// starts begin a line, words follow other text, marks follow a word.
	starts, words, marks []kvindex.TokenID
	newline              kvindex.TokenID
}

// Lookahead is the number of bytes at the end of a text whose tokens more
// text may change: the longest special token.
const Lookahead = len(textBOS)

// NewTokenizer returns the tokenizer. All are equal.
func NewTokenizer() *Tokenizer {
	t := &Tokenizer{ids: make(map[string]kvindex.TokenID)}
	add := func(piece string) kvindex.TokenID {
		id := kvindex.TokenID(len(t.pieces))
		t.pieces = append(t.pieces, piece)
		t.ids[piece] = id
		return id
	}
	t.newline = add("\n")
	for _, m := range []string{".", ",", ";", ":"} {
		t.marks = append(t.marks, add(m))
	}
	for _, w := range strings.Fields(answerWords) {
		t.words = append(t.words, add(" "+w))
		t.starts = append(t.starts, add(strings.ToUpper(w[:1])+w[1:]))
	}
	return t
}

// Append appends the tokens of text. Special tokens are recognized; a BOS is
// not added.
func (t *Tokenizer) Append(dst []kvindex.TokenID, text string) []kvindex.TokenID {
	for len(text) > 0 {
		id, n := special(text)
		if n == 0 {
			n = pieceLen(text)
			id = t.id(text[:n])
		}
		dst = append(dst, id)
		text = text[n:]
	}
	return dst
}

// Encode returns the tokens of a text, after a BOS if add says so (the
// add_special_tokens of vLLM's API).
func (t *Tokenizer) Encode(text string, addSpecialTokens bool) []kvindex.TokenID {
	dst := make([]kvindex.TokenID, 0, len(text)/3+2)
	if addSpecialTokens {
		dst = append(dst, TokenBOS)
	}
	return t.Append(dst, text)
}

// Continue chooses a token to follow prev from 64 random bits, such that the
// text of prev and of the tokens chosen after it tokenizes to just these ids.
func (t *Tokenizer) Continue(prev kvindex.TokenID, random uint64) kvindex.TokenID {
	pick := func(list []kvindex.TokenID) kvindex.TokenID { return list[(random>>8)%uint64(len(list))] }
	switch {
	case prev == t.newline || prev >= OrdinaryTokens:
		return pick(t.starts)
	case random&0xf == 0 && prev > t.marks[len(t.marks)-1] && int(prev) < len(t.pieces):
		return pick(t.marks)
	}
	return pick(t.words)
}

// Text returns the text of a token that [Tokenizer.Continue] chose, and ""
// for any other.
func (t *Tokenizer) Text(id kvindex.TokenID) string {
	if int(id) < len(t.pieces) {
		return t.pieces[id]
	}
	return ""
}

// id returns the id of an ordinary piece.
func (t *Tokenizer) id(piece string) kvindex.TokenID {
	if id, ok := t.ids[piece]; ok {
		return id
	}
	reserved := uint64(len(t.pieces))
	return kvindex.TokenID(reserved + xxh3.HashString(piece)%(OrdinaryTokens-reserved))
}

// special returns the special token that text begins with, and its length.
func special(text string) (kvindex.TokenID, int) {
	if text[0] != '<' {
		return 0, 0
	}
	switch {
	case strings.HasPrefix(text, textBOS):
		return TokenBOS, len(textBOS)
	case strings.HasPrefix(text, textEOS):
		return TokenEOS, len(textEOS)
	case strings.HasPrefix(text, textTurnStart):
		return TokenTurnStart, len(textTurnStart)
	case strings.HasPrefix(text, textTurnEnd):
		return TokenTurnEnd, len(textTurnEnd)
	}
	return 0, 0
}

// The classes of bytes that share a piece.
type byteClass uint8

const (
	classWord byteClass = iota // letters, and all bytes of non-ASCII runes
	classDigit
	classSpace
	classLine
	classMark
)

func classOf(b byte) byteClass {
	switch {
	case b >= 0x80 || b|0x20 >= 'a' && b|0x20 <= 'z':
		return classWord
	case b >= '0' && b <= '9':
		return classDigit
	case b == '\n' || b == '\r':
		return classLine
	case b == ' ' || b == '\t':
		return classSpace
	}
	return classMark
}

// pieceLen returns the length of the first piece of a non-empty text: a run
// of one class, bounded. A word takes one space or tab before it. '<' begins a piece,
// since it may begin a special token.
func pieceLen(text string) int {
	class := classOf(text[0])
	switch class {
	case classWord:
		return run(text, 0, class, maxWord)
	case classDigit:
		return run(text, 0, class, 3)
	case classLine:
		return run(text, 0, class, 4)
	case classMark:
		return run(text, 0, class, 3)
	}
	n := run(text, 0, class, 8)
	if n == len(text) || classOf(text[n]) != classWord {
		return n
	}
	if n > 1 {
		return n - 1
	}
	return run(text, 1, classWord, maxWord)
}

// run returns the end of the run of a class that begins at from.
func run(text string, from int, class byteClass, limit int) int {
	n := from + 1
	for n < len(text) && n-from < limit && classOf(text[n]) == class && text[n] != '<' {
		n++
	}
	return n
}

// answerWords are the words of the engine's answers, at most maxWord letters.
const answerWords = `a able about above across after again air all almost
along also always an and animal answer any are around as ask at away back be
bed been before began below best better big bird black blue boat body book
both box boy bring build busy but by call came can car care carry cause city
clear close cold color come could cover cross cut dark day deep did do does
dog done door down draw dry each early earth east easy eat end enough even
ever every eye face fact fall family far farm fast father feel feet few field
find fire first fish five fly follow food foot for force form found four free
friend from front full game gave get girl give go gold good great green ground
group grow had half hand happen hard has have he head hear heat help her here
high him his hold home horse hot hour house how idea if in inch into is island
it just keep kind king knew know land large last late laugh lay lead learn
left less let letter life light like line list listen little live long look
love low made main make man many map mark may me mean men might mile mind
minute miss money moon more most mother move much music must my name near need
never new next night no north note notice now number object of off often oh
old on once one only open or order other our out over own page paper part pass
people person piece place plain plan plant play point pose power press
pull put quick rain ran reach read ready real record red remain rest right
river road rock room round rule run said same saw say school sea second see
seem self serve set shape she ship short should show side simple since sing
six size sleep slow small snow so some song soon sound south spell stand star
start state stay step still stood stop story street strong study such sun sure
table tail take talk teach tell ten test than that the their them then there
these they thing think this those though three time to toward told too took
top town tree true try turn two under unit until up upon us use usual very
voice vowel wait walk want war warm was watch water way we week well went were
west what wheel when where which white who whole why will wind with wonder
wood word work world would write year yes yet you young your`
