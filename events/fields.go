package events

import (
	"errors"
	"fmt"
	"io"

	"github.com/vmihailenco/msgpack/v5/msgpcode"

	"github.com/warmpath/warmpath/kvindex"
)

// readEvent reads one event; on an error the reader may stand anywhere in it.
func (d *Decoder) readEvent() error {
	c, err := d.peek()
	if err != nil {
		return err
	}
	switch {
	case isMap(c):
		err = d.readMap()
	case isArray(c):
		err = d.readArray()
	default:
		return fmt.Errorf("event is neither array nor map: code %#x", c)
	}
	if err != nil || d.event.Skipped != Applied {
		return err
	}
	switch d.event.Type {
	case Stored:
		return d.finishStored()
	case Removed:
		return d.finishRemoved()
	}
	return nil
}

func (d *Decoder) readMap() error {
	n, err := d.dec.DecodeMapLen()
	if err != nil {
		return err
	}
	// A bad field does not end the reading: what matters more is whether the
	// event is of a known type, and that may come later.
	var bad error
	for ; n > 0; n-- {
		key, err := d.bytes()
		if err != nil {
			return err
		}
		start := d.pos()
		if err := d.field(fieldOf(key)); err != nil {
			end, serr := skip(d.raw, start)
			if serr != nil {
				return serr
			}
			d.seek(end)
			bad = err
		}
	}
	if d.event.Type == Unknown {
		d.event.Skipped = UnknownType
		return nil
	}
	return bad
}

func (d *Decoder) readArray() error {
	n, err := d.dec.DecodeArrayLen()
	if err != nil {
		return err
	}
	if n < 1 {
		return errors.New("event is an empty array")
	}
	if err := d.field(fieldType); err != nil {
		return err
	}
	layout, required := removedLayout[:], 1
	switch d.event.Type {
	case Stored:
		layout, required = storedLayout[:], 4
	case Cleared:
		layout, required = nil, 0
	case Unknown:
		return d.skipN(n - 1)
	}
	if n-1 < required {
		d.event.Skipped = Truncated
		return d.skipN(n - 1)
	}
	// Salts and images have had a place since the extra keys, at index 8.
	d.event.Blind = d.event.Type == Stored && n <= 8
	for i := range n - 1 {
		f := fieldIgnored
		if i < len(layout) {
			f = layout[i]
		}
		if err := d.field(f); err != nil {
			return err
		}
	}
	return nil
}

// field is a field of an event, however it is encoded.
type field uint8

const (
	fieldIgnored field = iota
	fieldType
	fieldHashes
	fieldParent
	fieldTokens
	fieldBlockSize
	fieldLoraID
	fieldMedium
	fieldLora
	// fieldLoraOrSalt is index 7 of arrays: vLLM's adapter name, or the map
	// with the salt that SGLang appends.
	fieldLoraOrSalt
	fieldExtraKeys
	fieldMMKeys
	fieldGroup
	fieldKind
	fieldSalt
	fieldLocality
)

// The fields of positional events after the tag, in the order in which vLLM
// has added them (vllm/distributed/kv_events.py).
var (
	storedLayout = [...]field{
		fieldHashes, fieldParent, fieldTokens, fieldBlockSize, fieldLoraID, fieldMedium,
		fieldLoraOrSalt, fieldExtraKeys, fieldGroup, fieldKind,
	}
	removedLayout = [...]field{fieldHashes, fieldMedium, fieldGroup}
)

func fieldOf(key []byte) field {
	switch string(key) {
	case "type":
		return fieldType
	case "block_hashes":
		return fieldHashes
	case "parent_block_hash":
		return fieldParent
	case "token_ids":
		return fieldTokens
	case "block_size":
		return fieldBlockSize
	case "lora_id":
		return fieldLoraID
	case "medium":
		return fieldMedium
	case "lora_name":
		return fieldLora
	case "extra_keys":
		return fieldExtraKeys
	case "mm_keys":
		return fieldMMKeys
	case "group_idx":
		return fieldGroup
	case "kv_cache_spec_kind":
		return fieldKind
	case "cache_salt":
		return fieldSalt
	case "locality":
		return fieldLocality
	}
	return fieldIgnored
}

// field reads the value of f.
func (d *Decoder) field(f field) error {
	e := &d.event
	switch f {
	case fieldType:
		tag, err := d.bytes()
		if err != nil {
			return err
		}
		e.Type = typeOf(tag)
		if e.Type == Unknown {
			e.Skipped = UnknownType
		}
		return nil
	case fieldHashes:
		return d.hashes()
	case fieldParent:
		return d.parent()
	case fieldTokens:
		return d.tokens()
	case fieldBlockSize:
		return d.blockSize()
	case fieldLoraID:
		c, err := d.peek()
		d.loras = d.loras || c != msgpcode.Nil
		return errors.Join(err, d.skip())
	case fieldLora:
		return d.text(&e.Lora)
	case fieldLoraOrSalt:
		return d.loraOrSalt()
	case fieldSalt:
		return d.salt()
	case fieldKind:
		return d.text(&e.Kind)
	case fieldMedium:
		return d.medium()
	case fieldGroup:
		return d.group()
	case fieldExtraKeys:
		d.extraKeys = d.pos()
	case fieldMMKeys:
		d.mmKeys = d.pos()
	case fieldLocality:
		b, err := d.bytes()
		if string(b) == "REMOTE" {
			e.Skipped = Remote
		}
		return err
	}
	return d.skip()
}

func typeOf(tag []byte) EventType {
	switch string(tag) {
	case "BlockStored":
		return Stored
	case "BlockRemoved":
		return Removed
	case "AllBlocksCleared":
		return Cleared
	}
	return Unknown
}

func (d *Decoder) blockSize() error {
	c, err := d.peek()
	if err != nil {
		return err
	}
	if c == msgpcode.Nil {
		return d.skip()
	}
	n, err := d.int()
	if err != nil {
		return err
	}
	if n < 0 || n > maxBlockSize {
		n = -1 // refused when the tokens are known
	}
	d.event.BlockSize = int(n)
	return nil
}

// maxBlockSize is beyond any engine's; it keeps products of it in an int.
const maxBlockSize = 1 << 20

func (d *Decoder) group() error {
	c, err := d.peek()
	if err != nil {
		return err
	}
	if c == msgpcode.Nil {
		return d.skip()
	}
	n, err := d.int()
	if err != nil {
		return err
	}
	if n < 0 || n > 255 {
		d.event.Skipped = BadGroup
		return nil
	}
	d.event.Group, d.grouped = uint8(n), true
	return nil
}

func (d *Decoder) medium() error {
	b, err := d.bytes()
	if err != nil {
		return err
	}
	e := &d.event
	if len(b) > 0 && string(b) == d.lastMedium {
		e.Medium, e.Tier = d.lastMedium, d.lastTier
		return nil
	}
	e.Medium = d.intern(b)
	tier, ok := tierOf(b)
	if !ok {
		e.Skipped = UnknownMedium
		return nil
	}
	e.Tier, d.lastMedium, d.lastTier = tier, e.Medium, tier
	return nil
}

// salt reads SGLang's cache_salt. One that is no string keeps its chain apart
// from every prompt's by its encoding.
func (d *Decoder) salt() error {
	c, err := d.peek()
	if err != nil {
		return err
	}
	if c == msgpcode.Nil || isText(c) {
		return d.text(&d.event.Salt)
	}
	start := d.pos()
	if err := d.skip(); err != nil {
		return err
	}
	d.event.Salt = d.intern(d.raw[start:d.pos()])
	return nil
}

func (d *Decoder) loraOrSalt() error {
	c, err := d.peek()
	if err != nil {
		return err
	}
	if !isMap(c) {
		return d.text(&d.event.Lora)
	}
	n, err := d.dec.DecodeMapLen()
	if err != nil {
		return err
	}
	d.event.Blind = false // only SGLang sends a map here
	for ; n > 0; n-- {
		key, err := d.bytes()
		if err != nil {
			return err
		}
		if err := d.field(fieldOf(key)); err != nil {
			return err
		}
	}
	return nil
}

func (d *Decoder) finishRemoved() error {
	if len(d.event.Hashes) == 0 {
		d.event.Skipped = NoHashes
	}
	return nil
}

func (d *Decoder) finishStored() error {
	e := &d.event
	e.HasLora = d.loras || e.Lora != ""
	switch {
	case len(e.Hashes) == 0:
		e.Skipped = NoHashes
	case !prefixKind(e.Kind):
		e.Skipped = OtherKind
	case len(e.Tokens) == 0:
		e.BlockSize, e.Blind = 0, false // a tier update names blocks and nothing else
	case e.HasLora && e.Lora == "":
		e.Skipped = UnnamedAdapter
	case storeOnly(e.Medium, d.grouped):
		e.Skipped = StoreOnly
	case e.BlockSize <= 0:
		e.Skipped = BadBlockSize
	case len(e.Tokens) != e.BlockSize*len(e.Hashes):
		e.Skipped = TokenCount
	default:
		return d.extras()
	}
	return nil
}

func (d *Decoder) parent() error {
	c, err := d.peek()
	if err != nil {
		return err
	}
	if c == msgpcode.Nil {
		return d.skip()
	}
	h, p, err := hash(d.raw, d.pos())
	if err != nil {
		return err
	}
	d.seek(p)
	d.event.Parent, d.event.HasParent = h, true
	return nil
}

// hashes reads the block hashes from the raw bytes.
func (d *Decoder) hashes() error {
	n, err := d.dec.DecodeArrayLen()
	if err != nil {
		return err
	}
	if n < 0 {
		d.event.Skipped = NoHashes
		return nil
	}
	p := d.pos()
	hs := d.event.Hashes
	for range n {
		var h kvindex.EngineHash
		if h, p, err = hash(d.raw, p); err != nil {
			return err
		}
		hs = append(hs, h)
	}
	d.event.Hashes = hs
	d.seek(p)
	return nil
}

// tokens reads the token ids from the raw bytes.
func (d *Decoder) tokens() error {
	n, err := d.dec.DecodeArrayLen()
	if err != nil || n < 0 {
		return err
	}
	if n > d.r.Len() {
		return io.ErrUnexpectedEOF
	}
	raw, p, ts := d.raw, d.pos(), d.event.Tokens
	for range n {
		// Nearly all ids are positive fixints, uint16 or uint32.
		if p+5 <= len(raw) {
			switch c := raw[p]; {
			case c < 0x80:
				ts = append(ts, kvindex.TokenID(c))
				p++
				continue
			case c == msgpcode.Uint16:
				ts = append(ts, kvindex.TokenID(raw[p+1])<<8|kvindex.TokenID(raw[p+2]))
				p += 3
				continue
			case c == msgpcode.Uint32:
				ts = append(ts, kvindex.TokenID(raw[p+1])<<24|kvindex.TokenID(raw[p+2])<<16|kvindex.TokenID(raw[p+3])<<8|kvindex.TokenID(raw[p+4]))
				p += 5
				continue
			}
		}
		var t kvindex.TokenID
		if t, p, err = d.rareToken(p, len(ts)); err != nil {
			return err
		}
		ts = append(ts, t)
	}
	d.event.Tokens = ts
	d.seek(p)
	return nil
}
