package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// The demo fails by itself if a request fails, if prefix-cache does not clearly
// win, or if warmpath does not follow the pod.
func TestDemo(t *testing.T) {
	programs := map[string]string{}
	for flag, env := range map[string]string{
		"--envoy": "WARMPATH_TEST_ENVOY", "--kube-apiserver": "WARMPATH_TEST_KUBE_APISERVER", "--etcd": "WARMPATH_TEST_ETCD",
	} {
		if programs[flag] = os.Getenv(env); programs[flag] == "" {
			t.Skipf("%s does not name a program; make test-deploy sets it", env)
		}
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", dir+string(filepath.Separator), "./cmd/warmpath", "./cmd/enginesim")
	build.Dir = "../../../.." // the product's module
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, text)
	}
	args := []string{"--warmpath", filepath.Join(dir, "warmpath"), "--enginesim", filepath.Join(dir, "enginesim")}
	for flag, program := range programs {
		args = append(args, flag, program)
	}
	out, err := os.Create(filepath.Join(dir, "demo.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	err = run(t.Context(), args, out)
	text, _ := os.ReadFile(out.Name())
	t.Logf("%s", text)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`prefix-cache +192 +0 `, `models/engine-\d:\d+ \(.*was chosen by prefix-cache`, `engine-2 deleted: gone from the pool`, `engine-2 created: ready`} {
		if !regexp.MustCompile(want).Match(text) {
			t.Errorf("the demo does not say %q", want)
		}
	}
}
