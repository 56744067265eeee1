//go:build !unix

package indexops

import (
	"io"
	"os"
)

func mapFile(fd *os.File, _ int64) ([]byte, func() error, error) {
	b, err := io.ReadAll(fd)
	return b, func() error { return nil }, err
}
