package drive

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// stopGrace is how long a child may take to end before it is killed.
const stopGrace = 10 * time.Second

// child is a process whose errors go to a file.
type child struct {
	name, log string
	cmd       *exec.Cmd
	// ended is closed when the process has ended; err is valid then.
	ended chan struct{}
	err   error
}

// startChild runs cmd, whose standard error, and output if it has no other
// place to go, are kept in dir.
func startChild(cmd *exec.Cmd, name, dir string) (*child, error) {
	c := &child{name: name, log: filepath.Join(dir, name+".log"), cmd: cmd, ended: make(chan struct{})}
	log, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	cmd.Stderr = log
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	// A group of its own, so that Ctrl-C reaches only this process, which stops
	// the others when it has printed what there is.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		c.err = cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

// stop waits for a process that was told to end, and kills it if it does not.
func (c *child) stop() {
	t := time.NewTimer(stopGrace)
	defer t.Stop()
	select {
	case <-c.ended:
	case <-t.C:
		_ = c.cmd.Process.Kill()
		<-c.ended
	}
}

// fault says what the process left behind.
func (c *child) fault(err error) error {
	const most = 2 << 10
	text, _ := os.ReadFile(c.log)
	text = text[max(0, len(text)-most):]
	if len(text) == 0 {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return fmt.Errorf("%s: %w\n%s", c.name, err, text)
}

// remote is a server process.
type remote struct {
	*child
	address string
	orders  *os.File
	// answers brings the raw lines that the server writes; it is closed at the
	// end of them.
	answers chan json.RawMessage
}

// startRemote runs program, which is this one, as a server.
func startRemote(ctx context.Context, program, name, dir string, cfg serverConfig) (*remote, error) {
	in, orders, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	answers, out, err := os.Pipe()
	if err != nil {
		orders.Close()
		return nil, err
	}
	cmd := exec.Command(program, commandName, serverCommand)
	cmd.Stdin, cmd.Stdout = in, out
	c, err := startChild(cmd, name, dir)
	out.Close()
	if err != nil {
		orders.Close()
		answers.Close()
		return nil, err
	}
	r := &remote{child: c, orders: orders, answers: make(chan json.RawMessage, 1)}
	go func() { // ends when the process does, for nobody else writes there
		defer close(r.answers)
		defer answers.Close()
		lines := bufio.NewReader(answers)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				_, _ = io.Copy(io.Discard, lines)
				return
			}
			r.answers <- line
		}
	}()
	var ready serverReady
	if err := r.exchange(ctx, cfg, &ready); err != nil {
		r.stop()
		return nil, err
	}
	r.address = ready.Address
	return r, nil
}

// exchange sends one line and reads one.
func (r *remote) exchange(ctx context.Context, question, answer any) error {
	line, err := json.Marshal(question)
	if err != nil {
		return err
	}
	if _, err := r.orders.Write(append(line, '\n')); err != nil {
		return r.fault(err)
	}
	select {
	case got, ok := <-r.answers:
		if !ok {
			<-r.ended
			return r.fault(errors.Join(errors.New("the server has ended"), r.err))
		}
		return json.Unmarshal(got, answer)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *remote) usage(ctx context.Context, o order) (u usage, err error) {
	err = r.exchange(ctx, o, &u)
	return u, err
}

// stop ends the server by ending its input.
func (r *remote) stop() {
	r.orders.Close()
	go func() {
		for range r.answers { // an answer that nobody waited for
		}
	}()
	r.child.stop()
}
