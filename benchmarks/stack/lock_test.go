package stack

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLockNamesItsHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := lockFile(t.Context(), path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lockFile(t.Context(), path, 10*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) || !strings.Contains(err.Error(), path) {
		t.Errorf("the lock is held, and its second taker gets %v", err)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockFile(stopped, path, time.Hour); err == nil {
		t.Error("the lock is held, and was taken")
	}
	got := make(chan error, 1)
	go func() {
		second, err := lockFile(t.Context(), path, time.Minute)
		if err == nil {
			second.Unlock()
		}
		got <- err
	}()
	first.Unlock()
	if err := <-got; err != nil {
		t.Errorf("the lock was given back: %v", err)
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	err = free([]gatewayPort{{port, "the port of a test"}})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("port %d (the port of a test)", port)) {
		t.Errorf("port %d is taken, and the error is %v", port, err)
	}
	_ = l.Close()
	if err := free([]gatewayPort{{port, "the port of a test"}}); err != nil {
		t.Errorf("port %d was given back: %v", port, err)
	}
}
