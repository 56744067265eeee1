package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/warmpath/warmpath/events"
)

// warmFile is where a router leaves what it knows for the next one: the SHA-256
// of the rest, and the rest, a warmContent in Go's own encoding.
type warmFile struct {
	path string
	seed uint64
	log  *slog.Logger
	// found and age are of what was read.
	found int
	age   time.Duration
}

// warmVersion changes with what is in the file; other versions are ignored.
const warmVersion = 1

type warmContent struct {
	Version int
	// Seed is the fingerprint of the fleet seed that the hashes are under.
	Seed       uint64
	Written    time.Time
	Publishers []events.Saved
}

// read returns what the file has. A file that cannot be used is like none: the
// router starts with nothing, and says why.
func (f *warmFile) read(now time.Time) []events.Saved {
	c, err := f.content()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.log.Info("no snapshot of a router before; it is written when this one ends", "file", f.path)
		return nil
	case err != nil:
		f.log.Warn("the snapshot is not usable; starting with nothing", "file", f.path, "err", err)
		return nil
	}
	f.found, f.age = len(c.Publishers), now.Sub(c.Written)
	f.log.Info("read the snapshot of the router before", "file", f.path, "publishers", f.found, "age", f.age)
	return c.Publishers
}

func (f *warmFile) content() (c warmContent, err error) {
	b, err := os.ReadFile(f.path)
	if err != nil {
		return c, err
	}
	if len(b) < sha256.Size || sha256.Sum256(b[sha256.Size:]) != [sha256.Size]byte(b) {
		return c, errors.New("it is damaged or was not written to its end")
	}
	if err := gob.NewDecoder(bytes.NewReader(b[sha256.Size:])).Decode(&c); err != nil {
		return c, err
	}
	switch {
	case c.Version != warmVersion:
		return c, fmt.Errorf("it is of version %d, this program writes %d", c.Version, warmVersion)
	case c.Seed != f.seed:
		return c, errors.New("it was written under another seed (index.seed_file)")
	}
	return c, nil
}

// write replaces the file, unless there is nothing to save: a router that stops
// before it has followed any stream leaves the file of the one before it, whose
// streams still have to prove themselves when it is read.
func (f *warmFile) write(now time.Time, publishers []events.Saved) error {
	if len(publishers) == 0 {
		f.log.Info("nothing is known for sure that the next router could start from; the snapshot stays as it was", "file", f.path)
		return nil
	}
	var b bytes.Buffer
	b.Write(make([]byte, sha256.Size))
	if err := gob.NewEncoder(&b).Encode(warmContent{warmVersion, f.seed, now, publishers}); err != nil {
		return fmt.Errorf("cachestate.snapshot_file: %w", err)
	}
	sum := sha256.Sum256(b.Bytes()[sha256.Size:])
	copy(b.Bytes(), sum[:])
	// Beside it, so that the new one is in its place whole or not at all. 0600
	// is what CreateTemp gives: hashes are no prompts, and still nobody's business.
	tmp, err := os.CreateTemp(filepath.Dir(f.path), filepath.Base(f.path)+".*")
	if err != nil {
		return fmt.Errorf("cachestate.snapshot_file: %w", err)
	}
	_, err = tmp.Write(b.Bytes())
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), f.path)
	}
	if err != nil {
		return fmt.Errorf("cachestate.snapshot_file: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	f.log.Info("wrote a snapshot for the next router", "file", f.path, "publishers", len(publishers))
	return nil
}

// warmCondition says how complete the warm start is. f is nil where there is no
// file, peers tells whether other routers are asked.
func warmCondition(f *warmFile, peers bool, w events.WarmStart) condition {
	var from []string
	if f != nil {
		from = append(from, fmt.Sprintf("%d event streams in a snapshot of %s ago", f.found, f.age.Round(time.Second)))
	}
	if peers {
		from = append(from, fmt.Sprintf("other routers were asked for %d event streams, %d of them still, and %d taken from them", w.Asked, w.Asking, w.FromPeers))
	}
	return condition{"warm start", w.Asking == 0 && w.Resumed+w.Reset >= w.Restored, fmt.Sprintf(
		"%s: %d restored, of these %d proven to be of the same process and %d dropped",
		strings.Join(from, "; "), w.Restored, w.Resumed, w.Reset)}
}
