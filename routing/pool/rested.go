package pool

import (
	"bytes"
	"io"
	"os"
)

// MaxFile bounds, in bytes, the files that the router reads while it runs: some
// thousand endpoints take one MiB.
const MaxFile = 16 << 20

// RestedFile looks at a file again and again and tells what it says once that
// rests, so that nobody judges one that is caught while it is written: empty,
// or cut where what there is so far is valid. It compares content: a file that
// Kubernetes mounts from a ConfigMap is replaced by a link, which file-system
// events report in ways that differ. It is not safe for concurrent use.
type RestedFile struct {
	path string
	// content is what was told last, nil before. next is what the last look
	// read, if that was not content, else nil.
	content, next []byte
}

// NewRestedFile returns the file at path, of which content is known already,
// nil for nothing.
func NewRestedFile(path string, content []byte) *RestedFile {
	return &RestedFile{path: path, content: content}
}

// Look reads the file. If it says something new, and the look before has read
// the same, that is told, and changed is true. A file that cannot be read is an
// error and no change: it may be missing because it is being replaced. Of one
// that is too large the first MaxFile+1 bytes are told.
func (f *RestedFile) Look() (content []byte, changed bool, err error) {
	b, err := ReadFileBounded(f.path)
	switch {
	case err != nil:
		f.next = nil
		return nil, false, err
	case f.content != nil && bytes.Equal(b, f.content):
		f.next = nil
		return nil, false, nil
	case f.next == nil || !bytes.Equal(b, f.next):
		f.next = b
		return nil, false, nil
	}
	f.content, f.next = b, nil
	return b, true, nil
}

// Now reads the file and tells what it says as if it had rested.
func (f *RestedFile) Now() ([]byte, error) {
	b, err := ReadFileBounded(f.path)
	f.next = nil
	if err == nil {
		f.content = b
	}
	return b, err
}

// ReadFileBounded returns what a file says, of one that is too large the first
// MaxFile+1 bytes. The result is not nil unless there is an error.
func ReadFileBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFile+1))
}
