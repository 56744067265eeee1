package relay

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A report whose caller set no limit waits for a publisher's goroutine no longer
// than that is alive, and never for long.
func TestInbox_DeliverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newTestSource(t, quickRouter(), testHasher, false)
		report := func(in *inbox) <-chan error {
			done := make(chan error, 1)
			go func() {
				_, err := in.deliver(context.WithoutCancel(t.Context()), reported{})
				done <- err
			}()
			return done
		}
		in := &inbox{identity: brokenID, reports: make(chan reported)}
		shut := src.open(in)
		begun := time.Now()
		busy := report(in)
		if err := <-busy; status.Code(err) != codes.DeadlineExceeded || time.Since(begun) != src.cfg.Timeout {
			t.Errorf("nobody took it, and it ended after %s with %v", time.Since(begun), err)
		}
		gone := report(in)
		synctest.Wait()
		begun = time.Now()
		shut()
		if err := <-gone; status.Code(err) != codes.Unavailable || time.Since(begun) != 0 {
			t.Errorf("nobody will take it, and it ended after %s with %v", time.Since(begun), err)
		}
	})
}
