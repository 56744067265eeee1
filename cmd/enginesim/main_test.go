package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRunPrintsItsAddressesAndStops(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	out, stdout := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{
			"--model", "m", "--model", "alias", "--lora", "ad", "--profile", "70b", "--blocks", "9", "--time-scale", "0.01",
			"--events", "tcp://127.0.0.1:0", "--replay", "tcp://127.0.0.1:0", "--event-format", "array",
		}, stdout, io.Discard)
		_ = stdout.Close()
	}()
	var line struct {
		Ready                bool
		HTTP, Events, Replay string
	}
	if err := json.NewDecoder(out).Decode(&line); err != nil {
		t.Fatal(err, <-ended)
	}
	if !line.Ready || !strings.HasPrefix(line.Events, "tcp://127.0.0.1:") || !strings.HasPrefix(line.Replay, "tcp://127.0.0.1:") {
		t.Errorf("ready line %+v", line)
	}
	for path, want := range map[string]string{"/v1/models": `"id":"ad"`, "/metrics": `num_gpu_blocks="9"`} {
		resp, err := http.Get("http://" + line.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: error %v, %s", path, err, body)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestRunRefusesBadFlags(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"--profile", "7b"}, `--profile: profile "7b": use 8b, 32b or 70b`},
		{[]string{"--time-scale", "0"}, "--time-scale: 0: must be above 0"},
		{[]string{"--block-size", "-1"}, "block size: -1"},
		{[]string{"--event-format", "xml"}, `event format "xml"`},
		{[]string{"--events", "ipc:///x"}, `events: "ipc:///x": use tcp://`},
		{[]string{"--listen", "nowhere"}, "listen nowhere"},
		{[]string{"extra"}, `argument "extra"`},
	}
	for _, tt := range tests {
		err := run(t.Context(), tt.args, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: error %v, want %q", tt.args, err, tt.want)
		}
	}
	var help bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, io.Discard, &help); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("help: %v", err)
	}
	if !strings.Contains(help.String(), "-time-scale") {
		t.Errorf("help does not list the flags:\n%s", help.String())
	}
}
