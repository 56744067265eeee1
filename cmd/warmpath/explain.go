package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/warmpath/warmpath/extproc"
	"github.com/warmpath/warmpath/routing"
)

// serveExplain answers what would be chosen for a request now, and why. The
// request is the body with its own headers; ?path= is its path, which is that
// of chat completions or of completions where it is not named.
func (r *router) serveExplain(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, int64(r.maxBody)))
	if err != nil {
		http.Error(w, fmt.Sprintf("the body cannot be read: %v", err), http.StatusBadRequest)
		return
	}
	path := req.URL.Query().Get("path")
	if path == "" {
		path = guessPath(body)
	}
	asked, refusal := extproc.ReadRequest(http.MethodPost, path, req.Header, body, r.maxBody, time.Now())
	var d routing.Decision
	if refusal == nil {
		d, refusal = r.routing.Explain(req.Context(), asked)
	}
	if refusal != nil {
		writeJSON(w, extproc.StatusOf(refusal.Reason), explainError{Reason: refusal.Reason.String(), Message: refusal.Message, Param: refusal.Param})
		return
	}
	writeJSON(w, http.StatusOK, decisionView{d, d.Words()})
}

// explainError is why a request would be refused.
type explainError struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Param   string `json:"param,omitempty"`
}

// guessPath tells by a body's fields which API it is meant for.
func guessPath(body []byte) string {
	var doc map[string]json.RawMessage
	if json.Unmarshal(body, &doc) == nil && doc["messages"] == nil && doc["prompt"] != nil {
		return "/v1/completions"
	}
	return "/v1/chat/completions"
}

// headerFlags collects --header NAME=VALUE.
type headerFlags http.Header

func (h headerFlags) String() string { return "" }

func (h headerFlags) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return fmt.Errorf("%q is not NAME=VALUE", s)
	}
	http.Header(h).Add(name, value)
	return nil
}

// explainTimeout bounds the whole question; a tokenizer may be asked.
const explainTimeout = 30 * time.Second

func cmdExplain(ctx context.Context, p process) int {
	flags := flag.NewFlagSet("explain", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	admin := flags.String("admin", "http://127.0.0.1:9090", "base `URL` of the router's admin server")
	path := flags.String("path", "", "`PATH` of the request; empty: by the fields of its body")
	asJSON := flags.Bool("json", false, "print the answer as JSON")
	headers := headerFlags{}
	flags.Var(headers, "header", "request header `NAME=VALUE`, for example routing-strategy=least-request; may be repeated")
	misuse := func(text string) int {
		fmt.Fprintf(p.stderr, "warmpath explain: %s\nsee: warmpath explain --help\n", text)
		return exitUsage
	}
	switch err := flags.Parse(p.args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(p.stdout, "Asks a running router what it would choose for a request now, and why.\n\nusage: warmpath explain [--admin URL] [--path PATH] [--header NAME=VALUE] [--json] FILE\n\nFILE has the request's JSON body.\n\n")
		flags.SetOutput(p.stdout)
		flags.PrintDefaults()
		return exitOK
	case err != nil:
		return misuse(err.Error())
	case flags.NArg() != 1:
		return misuse("name one FILE, with the request's JSON body")
	}
	body, err := os.ReadFile(flags.Arg(0))
	if err != nil {
		return misuse(err.Error())
	}
	base, err := url.Parse(*admin)
	if err != nil || base.Host == "" {
		return misuse(fmt.Sprintf("--admin: %q is not a URL; use for example http://127.0.0.1:9090", *admin))
	}
	if http.Header(headers).Get("Content-Type") == "" {
		http.Header(headers).Set("Content-Type", "application/json")
	}
	answer, err := askExplain(ctx, base, *path, http.Header(headers), body)
	if err != nil {
		fmt.Fprintf(p.stderr, "warmpath explain: %v\n", err)
		return exitFault
	}
	if *asJSON {
		_, _ = p.stdout.Write(answer)
		return exitOK
	}
	var d decisionView
	if err := json.Unmarshal(answer, &d); err != nil {
		fmt.Fprintf(p.stderr, "warmpath explain: the answer of %s cannot be read: %v\n", base, err)
		return exitFault
	}
	printDecision(p.stdout, d)
	return exitOK
}

// askExplain returns the router's answer, which is JSON.
func askExplain(ctx context.Context, base *url.URL, path string, headers http.Header, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	u := base.JoinPath("debug", "explain")
	if path != "" {
		u.RawQuery = url.Values{"path": {path}}.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = headers
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		var e explainError
		if json.Unmarshal(answer, &e) == nil && e.Message != "" {
			return nil, fmt.Errorf("the request would be refused with status %d, %s: %s", resp.StatusCode, e.Reason, e.Message)
		}
		return nil, fmt.Errorf("POST %s: status %d: %s", u, resp.StatusCode, bytes.TrimSpace(answer))
	}
	return answer, nil
}

// printDecision prints a decision for people: a table of the candidates, and
// in words what decided.
func printDecision(w io.Writer, d decisionView) {
	fmt.Fprintf(w, "model %s, strategy %s (by %s), reason %s", d.Model, d.Strategy, d.ChosenBy, d.Reason)
	if d.PromptTokens > 0 {
		fmt.Fprintf(w, ", prompt of %d tokens (%s)", d.PromptTokens, d.Tokens)
	}
	fmt.Fprint(w, "\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "ENDPOINT\tADDRESS\tCOST")
	if d.Unit != routing.UnitNone {
		fmt.Fprintf(t, " (%s)", d.Unit)
	}
	fmt.Fprint(t, "\tDEVICE\tHELD\tEXPECTED\tCACHE\tIN FLIGHT\tBACKLOG\tENGINE LOAD\tTERMS\n")
	for _, c := range d.Candidates {
		cost := "∞"
		if c.Cost != nil {
			cost = figure(*c.Cost)
		}
		if c.Missing {
			cost += " (missing)"
		}
		if c.Cooling {
			cost += " (cooling)"
		}
		cache := c.Trust
		if c.Source != "events" {
			cache = c.Source
		}
		load := "never read"
		if l := c.Load; l != nil {
			load = fmt.Sprintf("%.0f+%.0f, %.0f %%, %.1f s ago", l.Running, l.Waiting, 100*l.KVUsage, l.AgeSeconds)
			if l.Stale {
				load += " (stale)"
			}
		}
		var terms []string
		for _, term := range c.Terms {
			if len(c.Terms) > 1 {
				terms = append(terms, term.Name+" "+figure(term.Value))
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%d\t%s\t%s\t%s\n", c.Name, c.Address, cost, c.DeviceTokens, c.MatchedTokens, c.ExpectedTokens,
			cache, c.InFlight, figure(c.BacklogSeconds)+" s", load, strings.Join(terms, ", "))
	}
	_ = t.Flush()
	for _, l := range d.LeftOut {
		fmt.Fprintf(w, "left out: %s (%s): %s\n", l.Name, l.Address, l.Why)
	}
	fmt.Fprintf(w, "\n%s\n", strings.ReplaceAll(d.Words, ". ", ".\n"))
}

func figure(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }
