package main

import (
	"context"
	"errors"
	"log/slog"
)

// serve runs the router until ctx ends.
func serve(_ context.Context, _ Config, _ *slog.Logger) error {
	return errors.New("serve: not built yet")
}
