package events

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"

	"github.com/warmpath/warmpath/kvindex"
)

// maxInterned bounds the adapter names, salts and media that a Decoder keeps
// so as not to allocate them again.
const maxInterned = 1024

// Decoder reads the events of msgpack-encoded batches one by one into one
// reused [Event], without allocating once its buffers have grown. It reads
// both encodings of events, positional arrays (vLLM up to 0.23, older SGLang)
// and maps with a type key (vLLM from 0.24, SGLang, TensorRT-LLM), decided for
// each event; arrays of every length; unknown fields and events are passed
// over. Not safe for concurrent use. The zero value is ready.
type Decoder struct {
	raw []byte
	r   bytes.Reader
	dec *msgpack.Decoder

	batch Batch
	event Event
	err   error
	// left counts the events still to be read, tail the fields after them.
	left, tail int
	mapped     bool

	// sources of the blocks' extras, found before all that explains them
	extraKeys, mmKeys int // offsets into raw, 0 if absent
	stringTokens      []stringToken
	loras             bool // a lora_id was sent
	grouped           bool // a group_idx was sent

	interned map[string]string
	// lastMedium and lastTier are those of the last event that had a medium.
	lastMedium string
	lastTier   kvindex.Tier
}

// stringToken is a token that is no number (TensorRT-LLM's placeholders).
type stringToken struct {
	index int
	text  []byte
}

// errBatch says that the rest of a payload cannot be read, errors.Is-wrapped
// in what [Decoder.Err] returns.
var errBatch = errors.New("batch is not readable")

// Reset starts on a payload, which must not change while it is read, and reads
// the head of its batch.
func (d *Decoder) Reset(payload []byte) error {
	d.raw, d.batch, d.left, d.tail, d.mapped = payload, Batch{}, 0, 0, false
	d.r.Reset(payload)
	if d.dec == nil {
		d.dec = msgpack.NewDecoder(&d.r)
	}
	d.err = d.head()
	return d.err
}

// Batch returns the envelope of the batch being read.
func (d *Decoder) Batch() Batch { return d.batch }

// Err returns why the last Next returned false: nil at the end of the batch.
func (d *Decoder) Err() error { return d.err }

// Next returns the next event, or false when there is none or the rest of the
// payload cannot be read. A bad event is returned with the cause and does not
// end the batch. The event is overwritten by the next call.
func (d *Decoder) Next() (*Event, bool) {
	if d.err != nil || d.left == 0 {
		return nil, false
	}
	d.left--
	start := d.pos()
	d.event.reset()
	d.extraKeys, d.mmKeys, d.stringTokens = 0, 0, d.stringTokens[:0]
	d.loras, d.grouped = false, false
	if err := d.readEvent(); err != nil {
		if d.event.Skipped == Applied {
			d.event.Skipped = Malformed
		}
		end, err := skip(d.raw, start)
		if err != nil {
			d.err = fmt.Errorf("%w: event at byte %d: %w", errBatch, start, err)
			return nil, false
		}
		d.seek(end)
	}
	if d.left == 0 {
		d.err = d.finish()
	}
	return &d.event, true
}

// head reads up to the first event.
func (d *Decoder) head() error {
	c, err := d.peek()
	if err != nil {
		return fmt.Errorf("%w: %w", errBatch, err)
	}
	if isMap(c) {
		d.mapped = true
		if d.tail, err = d.dec.DecodeMapLen(); err != nil {
			return fmt.Errorf("%w: %w", errBatch, err)
		}
		return d.mapFields()
	}
	n, err := d.dec.DecodeArrayLen()
	if err != nil || n < 2 {
		return fmt.Errorf("%w: it is no array of two elements or more: %w", errBatch, err)
	}
	d.tail = n - 2
	if err := d.time(); err != nil {
		return err
	}
	return d.events()
}

// finish reads what follows the events.
func (d *Decoder) finish() error {
	if d.mapped {
		return d.mapFields()
	}
	for i := range d.tail {
		if i == 0 {
			if err := d.rank(); err != nil {
				return err
			}
		} else if err := d.skip(); err != nil {
			return err
		}
	}
	d.tail = 0
	return nil
}

// mapFields reads the fields of a batch in map form, up to the first event if
// they come next.
func (d *Decoder) mapFields() error {
	for d.tail > 0 {
		d.tail--
		key, err := d.bytes()
		if err != nil {
			return fmt.Errorf("%w: %w", errBatch, err)
		}
		switch string(key) {
		case "ts":
			err = d.time()
		case "data_parallel_rank":
			err = d.rank()
		case "events":
			if err = d.events(); err == nil && d.left > 0 {
				return nil
			}
		default:
			err = d.skip()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *Decoder) events() error {
	n, err := d.dec.DecodeArrayLen()
	if err != nil {
		return fmt.Errorf("%w: events: %w", errBatch, err)
	}
	if n > d.r.Len() {
		return fmt.Errorf("%w: %d events in %d bytes", errBatch, n, d.r.Len())
	}
	d.left = max(n, 0)
	if d.left == 0 && !d.mapped {
		return d.finish()
	}
	return nil
}

func (d *Decoder) time() error {
	c, err := d.peek()
	if err != nil {
		return fmt.Errorf("%w: %w", errBatch, err)
	}
	if c != msgpcode.Double {
		return d.skip()
	}
	d.batch.Time, err = d.dec.DecodeFloat64()
	return err
}

func (d *Decoder) rank() error {
	c, err := d.peek()
	if err != nil {
		return fmt.Errorf("%w: %w", errBatch, err)
	}
	if !isInt(c) {
		return d.skip()
	}
	n, err := d.int()
	d.batch.Rank, d.batch.HasRank = int(n), err == nil
	return err
}

// bytes returns a string or byte string as a view into the payload, nil for
// nil.
func (d *Decoder) bytes() ([]byte, error) {
	// Nearly all are the short keys and words of events.
	if p := d.pos(); p < len(d.raw) && msgpcode.IsFixedString(d.raw[p]) {
		b, next, err := text(d.raw, p)
		d.seek(next)
		return b, err
	}
	n, err := d.dec.DecodeBytesLen()
	if err != nil || n < 0 {
		return nil, err
	}
	if n > d.r.Len() {
		return nil, io.ErrUnexpectedEOF
	}
	p := d.pos()
	d.seek(p + n)
	return d.raw[p : p+n], nil
}

func (d *Decoder) text(to *string) error {
	b, err := d.bytes()
	if err == nil {
		*to = d.intern(b)
	}
	return err
}

// intern returns b as a string, without allocating for one seen before.
func (d *Decoder) intern(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if s, ok := d.interned[string(b)]; ok {
		return s
	}
	if d.interned == nil || len(d.interned) == maxInterned {
		d.interned = make(map[string]string, 16)
	}
	s := string(b)
	d.interned[s] = s
	return s
}

// peek returns the code of the next value.
func (d *Decoder) peek() (byte, error) {
	if p := d.pos(); p < len(d.raw) {
		return d.raw[p], nil
	}
	return 0, io.ErrUnexpectedEOF
}

// int reads an integer.
func (d *Decoder) int() (int64, error) {
	if p := d.pos(); p < len(d.raw) && d.raw[p] < 0x80 {
		d.seek(p + 1)
		return int64(d.raw[p]), nil
	}
	return d.dec.DecodeInt64()
}

func (d *Decoder) pos() int { return len(d.raw) - d.r.Len() }

func (d *Decoder) seek(p int) {
	// Seek fails for negative offsets only.
	_, _ = d.r.Seek(int64(p), io.SeekStart)
}

func (d *Decoder) skip() error { return d.skipN(1) }

func (d *Decoder) skipN(n int) error {
	p := d.pos()
	for range n {
		var err error
		if p, err = skip(d.raw, p); err != nil {
			return err
		}
	}
	d.seek(p)
	return nil
}
