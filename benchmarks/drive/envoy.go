package drive

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"
)

// bootstrapText is the template of the bootstrap (Envoy v3 API,
// config.bootstrap.v3.Bootstrap): a listener for each cell of a row.
//
//go:embed envoy.yaml.tmpl
var bootstrapText string

// gateway is one cell's part of the bootstrap.
type gateway struct {
	Name string
	// Router is the ext_proc server's ip:port, empty for none.
	Router string
	// Engines are the endpoints' ip:port.
	Engines []string
}

// envoy is a running Envoy.
type envoy struct {
	*child
	// listeners are the ip:port of each gateway, by name.
	listeners map[string]string
}

func writeBootstrap(gateways []gateway) ([]byte, error) {
	t, err := template.New("envoy.yaml").Option("missingkey=error").Funcs(template.FuncMap{
		"address": func(ipPort string) (string, error) {
			host, port, err := net.SplitHostPort(ipPort)
			return fmt.Sprintf("{socket_address: {address: %q, port_value: %s}}", host, port), err
		},
	}).Parse(bootstrapText)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, gateways)
	return b.Bytes(), err
}

// startEnvoy runs an Envoy with two workers and waits until it listens. Envoy
// chooses the ports.
func startEnvoy(ctx context.Context, program, dir string, gateways []gateway) (*envoy, error) {
	text, err := writeBootstrap(gateways)
	if err != nil {
		return nil, err
	}
	config, admin := filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "envoy.admin")
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return nil, err
	}
	_ = os.Remove(admin) // that of an earlier Envoy
	c, err := startChild(exec.Command(program, "-c", config, "--admin-address-path", admin,
		"--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"), "envoy", dir)
	if err != nil {
		return nil, err
	}
	e := &envoy{child: c}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		e.listeners, err = listening(ctx, admin)
		if err == nil && len(e.listeners) == len(gateways) {
			return e, nil
		}
		select {
		case <-tick.C:
			continue
		case <-e.ended:
			err = errors.Join(errors.New("it has ended"), e.err)
		case <-ctx.Done():
			err = errors.Join(ctx.Err(), err)
		}
		e.stop()
		return nil, e.fault(err)
	}
}

// listening asks Envoy's admin page, whose address is in a file, where it
// listens.
func listening(ctx context.Context, addressFile string) (map[string]string, error) {
	admin, err := os.ReadFile(addressFile)
	if err != nil {
		return nil, err
	}
	base := "http://" + strings.TrimSpace(string(admin))
	if _, err := fetch(ctx, base+"/ready"); err != nil {
		return nil, err
	}
	text, err := fetch(ctx, base+"/listeners?format=json")
	if err != nil {
		return nil, err
	}
	var page struct {
		Statuses []struct {
			Name    string `json:"name"`
			Address struct {
				Socket struct {
					Address string `json:"address"`
					Port    int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(text, &page); err != nil {
		return nil, fmt.Errorf("GET %s/listeners: %w", base, err)
	}
	found := map[string]string{}
	for _, s := range page.Statuses {
		found[s.Name] = net.JoinHostPort(s.Address.Socket.Address, strconv.Itoa(s.Address.Socket.Port))
	}
	return found, nil
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{DisableKeepAlives: true}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: status %d: %s", url, resp.StatusCode, text)
	}
	return text, err
}

func (e *envoy) stop() {
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	e.child.stop()
}

// cpu returns the processor time that Envoy has used, in steps of the kernel's
// clock tick of 10 ms (proc(5), stat). 0 where the system does not tell.
func (e *envoy) cpu() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", e.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// The second field is in parentheses and may hold anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const utime, stime, tick = 14 - 3, 15 - 3, 10 * time.Millisecond
	if len(fields) <= stime {
		return 0
	}
	user, _ := strconv.ParseInt(fields[utime], 10, 64)
	system, _ := strconv.ParseInt(fields[stime], 10, 64)
	return time.Duration(user+system) * tick
}

// engines answers as an engine would: whole, or as a stream of chunks.
type engines struct{ chunks int }

func (e engines) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	if e.chunks == 0 {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":"chatcmpl-1","object":"chat.completion","choices":[]}`)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	for range e.chunks {
		if _, err := io.WriteString(w, sseChunk); err != nil {
			return
		}
		w.(http.Flusher).Flush()
	}
}

// proxied sends its requests through an Envoy.
type proxied struct {
	source
	url       string
	transport *http.Transport
}

func newProxied(listener string, w workload, s source, concurrency int) *proxied {
	return &proxied{
		source: s, url: "http://" + listener + w.path(),
		transport: &http.Transport{MaxIdleConnsPerHost: concurrency, DisableCompression: true},
	}
}

func (c *proxied) close() { c.transport.CloseIdleConnections() }

// do implements client.
func (c *proxied) do(ctx context.Context, i uint64) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(c.body(i)))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "OpenAI/Python 1.99.1")
	req.Header.Set("Authorization", "Bearer sk-0123456789abcdef0123456789abcdef")
	began := time.Now()
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	took := time.Since(began)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return 0, fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	return took, c.check(resp.Header.Get(headerReason))
}
