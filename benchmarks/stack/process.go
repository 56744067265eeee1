package stack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// stopGrace is how long a process may take to end after SIGTERM.
const stopGrace = 5 * time.Second

// Process is a child process whose output goes to a file.
type Process struct {
	// Name is the process's name in errors and log files.
	Name string
	cmd  *exec.Cmd
	log  string
	// done is closed when the process has ended; err is valid then.
	done chan struct{}
	err  error
	once sync.Once
}

// StartProcess runs a program whose output goes to dir/name.log.
func StartProcess(name, dir, path string, args []string) (*Process, error) {
	return start(name, dir, path, args, nil)
}

// StartCommand runs a command whose output goes to dir/name.log.
func StartCommand(name, dir string, cmd *exec.Cmd) (*Process, error) {
	return startCommand(name, dir, cmd, nil)
}

// start runs a program whose standard error, and standard output unless ready
// is not nil, go to dir/name.log. ready gets the first line of standard output.
func start(name, dir, path string, args []string, ready any) (*Process, error) {
	return startCommand(name, dir, exec.Command(path, args...), ready)
}

func startCommand(name, dir string, cmd *exec.Cmd, ready any) (*Process, error) {
	logPath := filepath.Join(dir, name+".log")
	logFile, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer logFile.Close() // the child has its own descriptor
	p := &Process{Name: name, cmd: cmd, log: logPath, done: make(chan struct{})}
	// A group of its own: Ctrl-C in a terminal reaches this process only, which
	// then stops its children in order.
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	p.cmd.Stderr = logFile
	var out io.ReadCloser
	if ready == nil {
		p.cmd.Stdout = logFile
	} else if out, err = p.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	var line string
	if ready != nil {
		r := bufio.NewReader(out)
		line, err = r.ReadString('\n')
		if err == nil {
			err = json.Unmarshal([]byte(line), ready)
		}
		go func() { _, _ = io.Copy(io.Discard, r) }() // ends when the process closes its output
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err != nil {
		p.Stop()
		return nil, fmt.Errorf("%s did not say that it is ready (%q): %w\n%s", name, line, err, p.Tail(20))
	}
	return p, nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the process has ended, nil for exit status 0. It is valid
// once Done is closed.
func (p *Process) Err() error { return p.err }

// Signal sends a signal to the process, if it still runs.
func (p *Process) Signal(s syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
		return p.cmd.Process.Signal(s)
	}
}

// Freeze stops the process in its tracks, until SIGCONT. The signal returns
// before threads that run on other processors have stopped, which may still
// answer: Freeze waits for them where the system tells their states (Linux,
// proc_pid_stat(5), field 3).
func (p *Process) Freeze(ctx context.Context) error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return p.Wait(ctx, "standstill", func(context.Context) error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
		if err != nil {
			return err
		}
		for _, path := range threads {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			// The name before it is in brackets and may contain anything.
			_, state, _ := bytes.Cut(b[bytes.LastIndexByte(b, ')')+1:], []byte(" "))
			if len(state) == 0 || state[0] != 'T' {
				return fmt.Errorf("%s: state %.1s", path, state)
			}
		}
		return nil
	})
}

// Kill ends the process at once and waits for its end.
func (p *Process) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop asks the process to end, insists after a grace period, and waits.
func (p *Process) Stop() {
	p.once.Do(func() {
		_ = p.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(stopGrace):
			p.Kill()
		}
	})
	<-p.done
}

// Tail returns the last lines of the process's log.
func (p *Process) Tail(lines int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	i := len(b)
	for n := 0; i > 0; i-- {
		if b[i-1] == '\n' {
			if n++; n > lines {
				break
			}
		}
	}
	return string(b[i:])
}

// Wait polls check until it succeeds, the process ends or ctx does. what is
// waited for, in errors.
func (p *Process) Wait(ctx context.Context, what string, check func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("%s ended before %s: %w\n%s", p.Name, what, errors.Join(p.err, err), p.Tail(20))
		case <-ctx.Done():
			return fmt.Errorf("%s: no %s in time: %w\n%s", p.Name, what, err, p.Tail(20))
		case <-tick.C:
		}
	}
}
