package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// stages returns the stages of deploy/Dockerfile, as BuildKit reads it.
func stages(t *testing.T) []instructions.Stage {
	t.Helper()
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	ast, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	found, _, err := instructions.Parse(ast.AST, linter.New(&linter.Config{
		Warn: func(rule, _, _, detail string, _ []parser.Range) { t.Errorf("%s: %s", rule, detail) },
	}))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestDockerfile(t *testing.T) {
	s := stages(t)
	if len(s) != 2 {
		t.Fatalf("%d stages", len(s))
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\S+)$`).FindSubmatch(mod)
	if want := "golang:" + string(version[1]); s[0].BaseName != want || s[0].Platform != "$BUILDPLATFORM" {
		t.Errorf("it is built with %s on %s, and go.mod says %s", s[0].BaseName, s[0].Platform, want)
	}
	if !strings.Contains(s[1].BaseName, "/distroless/static") || !strings.HasSuffix(s[1].BaseName, ":nonroot") {
		t.Errorf("it runs on %s", s[1].BaseName)
	}
	var user, entry, from string
	for _, c := range s[1].Commands {
		switch c := c.(type) {
		case *instructions.UserCommand:
			user = c.User
		case *instructions.EntrypointCommand:
			entry = strings.Join(c.CmdLine, " ")
		case *instructions.CopyCommand:
			from = c.From + ":" + strings.Join(c.SourcePaths, " ") + " " + c.DestPath
		case *instructions.RunCommand:
			t.Errorf("there is nothing to run with in %s: %v", s[1].BaseName, c)
		}
	}
	if from != "build:/out/warmpath /usr/local/bin/warmpath" || entry != "warmpath" { // in PATH, for kubectl exec
		t.Errorf("it copies %s and starts %s", from, entry)
	}
	pod := object(only(t, release(t, nil), "Deployment", "").at("spec", "template", "spec", "securityContext").(map[string]any))
	if want := fmt.Sprintf("%v:%v", pod["runAsUser"], pod["runAsGroup"]); user != want {
		t.Errorf("the image is for user %s, the chart runs it as %s", user, want)
	}
}

// buildContext copies what .dockerignore leaves of the repository into dir.
func buildContext(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(filepath.Join(root, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	patterns, err := ignorefile.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil || rel == "." {
			return err
		}
		skip, err := ignored.MatchesOrParentMatches(rel)
		switch {
		case err != nil:
			return err
		case d.IsDir() && skip:
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(dir, rel), 0o755)
		case skip || !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		size += int64(len(b))
		return os.WriteFile(filepath.Join(dir, rel), b, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if size > 5<<20 {
		t.Errorf("the build context has %d bytes; ignore what is not built", size)
	}
}

// dockerBuild runs the build stage's command for a platform, in a context as
// Docker would have it, and returns the program.
func dockerBuild(t *testing.T, arch string) string {
	t.Helper()
	context, out := t.TempDir(), t.TempDir()
	buildContext(t, context)
	var line string
	for _, c := range stages(t)[0].Commands {
		if c, ok := c.(*instructions.RunCommand); ok && strings.Contains(c.CmdLine[0], "go build") {
			line = strings.ReplaceAll(c.CmdLine[0], "/out/", out+"/")
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
	cmd.Dir = context
	cmd.Env = append(os.Environ(), "TARGETOS=linux", "TARGETARCH="+arch, "VERSION=v1.2.3", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, text)
	}
	return filepath.Join(out, "warmpath")
}

// The program needs no file of an image: neither a loader nor a library.
func TestDockerfile_StaticForEveryPlatform(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		f, err := elf.Open(dockerBuild(t, arch))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Machine != machine {
			t.Errorf("for %s it is built for %v", arch, f.Machine)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("for %s it has a %v", arch, p.Type)
			}
		}
	}
}

// In a root that holds the program and its configuration alone and that it
// cannot write, as a user without rights, it serves, and ends when it is told.
func TestDockerfile_RunsWithoutRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give up its rights")
	}
	program := dockerBuild(t, "amd64")
	dir := t.TempDir()
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "warmpath"), b, 0o555); err != nil {
		t.Fatal(err)
	}
	const config = `{extproc: {listen: "127.0.0.1:0", drain_delay: 0s}, admin: {listen: "127.0.0.1:0"}, log: {format: json}, pool: {static: {endpoints: [{name: e, address: "127.0.0.1:1"}]}}}`
	if err := os.WriteFile(filepath.Join(dir, "warmpath.yaml"), []byte(config), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	cmd := exec.CommandContext(t.Context(), "/warmpath", "serve", "--config", "/warmpath.yaml")
	cmd.Dir, cmd.Env, cmd.Stderr = "/", []string{}, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	admin := regexp.MustCompile(`"admin":"([^"]+)"`)
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if at := admin.FindStringSubmatch(log.String()); at != nil {
			if resp, err := http.Get("http://" + at[1] + "/readyz"); err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					break
				}
			}
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			t.Fatalf("it is not ready: %v\n%s", cmd.Wait(), log.String())
		}
		<-tick.C
	}
	if !strings.Contains(log.String(), "v1.2.3") {
		t.Errorf("it does not say its version:\n%s", log.String())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log.String())
	}
}
