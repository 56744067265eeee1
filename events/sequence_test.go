package events

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/warmpath/warmpath/kvindex"
)

// describe writes what a step wants done, in its order.
func describe(st Step, framed bool) string {
	var out []string
	if st.Reset {
		out = append(out, "reset")
	}
	if framed {
		out = append(out, [...]string{"discard", "apply", "hold"}[st.Frame])
	}
	if st.Ask {
		out = append(out, fmt.Sprintf("ask %d", st.From))
	}
	if st.Drain {
		out = append(out, "drain")
	}
	if st.Reconnect {
		out = append(out, "reconnect")
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, ", ")
}

// The files are the specification: one input a line, and what comes of it.
func TestSequence_Transcripts(t *testing.T) {
	datadriven.Walk(t, "testdata/sequence", func(t *testing.T, path string) {
		var s *Sequence
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "new" {
				s = NewSequence(!d.HasArg("no-replay"))
			}
			var out strings.Builder
			for line := range strings.Lines(d.Input) {
				line = strings.TrimSpace(line)
				st, framed := input(t, s, line)
				next := "-"
				if n, ok := s.Next(); ok {
					next = fmt.Sprint(n)
				}
				fmt.Fprintf(&out, "%-18s %-28s %-10s %-10s next %s\n", line, describe(st, framed), s.Phase(), s.Trust(), next)
			}
			return out.String()
		})
	})
}

// input gives one line of a transcript to s.
func input(t *testing.T, s *Sequence, line string) (st Step, framed bool) {
	t.Helper()
	var seq uint64
	word, rest, _ := strings.Cut(line, " ")
	if n, _ := fmt.Sscan(rest, &seq); n == 1 {
		framed = true
	}
	switch word {
	case "connected":
		return s.Connected(), false
	case "disconnected":
		return s.Disconnected(), false
	case "live":
		return s.Live(seq), framed
	case "held":
		return s.Held(seq), framed
	case "replayed":
		return s.Replayed(seq, strings.HasSuffix(rest, "same")), framed
	case "end":
		return s.ReplayEnd(rest != "quiet"), false
	case "failed":
		return s.ReplayFailed(), false
	case "again":
		return s.AskAgain(), false
	case "give-up":
		return s.GiveUp(), false
	case "probe":
		return s.Probe(), false
	case "cleared":
		s.Cleared()
	case "damaged":
		s.Damaged()
	default:
		t.Fatalf("unknown input %q", line)
	}
	return Step{}, false
}

// model is what a publisher's stream may look like from a process of which the
// explorer knows the truth: which batches exist, and from which process.
type model struct {
	s *Sequence
	// applied are the batches applied since the last reset, as process*100+seq.
	applied []int
	// process is the engine process that runs, published how many batches it
	// has sent, lost how many of the oldest have left its buffer.
	process, published, lost int
	// conn is the process of the live connection, -1 if there is none;
	// delivered is how far it got.
	conn, delivered int
	// began is the first batch that the live connection could deliver.
	began int
	held  []int
	// answer is the process that answers the replay that runs, -1 if none
	// does; at is the next sequence it will send.
	answer, at int
	// unseen: the process changed between the live connection and the first
	// replay on it, which nothing shows until the connection's end is noticed.
	unseen bool
}

// Every order of what an engine and the network can do, up to a depth; the
// promises are checked after each step.
func TestSequence_ExploredToDepth8(t *testing.T) {
	for _, replay := range []bool{true, false} {
		t.Run(fmt.Sprintf("replay=%v", replay), func(t *testing.T) {
			const depth = 8
			phases := map[Phase]bool{}
			seen := map[string]bool{}
			paths := [][]string{nil}
			for level := 0; level <= depth; level++ {
				var longer [][]string
				for _, path := range paths {
					m := &model{s: NewSequence(replay), conn: -1, answer: -1}
					for _, a := range path {
						m.act(t, a)
					}
					if err := m.check(); err != "" {
						t.Fatalf("after %q: %s", path, err)
					}
					phases[m.s.Phase()] = true
					key := m.key()
					if seen[key] {
						continue
					}
					seen[key] = true
					for _, a := range m.possible() {
						longer = append(longer, append(path[:len(path):len(path)], a))
					}
				}
				paths = longer
			}
			want := []Phase{Connecting, Live, Stale}
			if replay {
				want = append(want, Replaying, Gap, Verifying)
			}
			for _, p := range want {
				if !phases[p] {
					t.Errorf("phase %s was never reached", p)
				}
			}
			t.Logf("%d states", len(seen))
		})
	}
}

// key tells two states apart.
func (m *model) key() string {
	flat := *m
	flat.s = nil
	return fmt.Sprint(flat, *m.s)
}

// possible lists the actions that make sense now.
func (m *model) possible() []string {
	a := []string{"publish", "restart"}
	if m.lost < m.published {
		a = append(a, "forget-oldest")
	}
	if m.conn < 0 {
		return append(a, "connect", "give-up")
	}
	a = append(a, "disconnect", "probe")
	if m.conn == m.process && m.delivered < m.published {
		a = append(a, "deliver", "lose")
	}
	if m.s.asking() {
		a = append(a, "give-up", "fail")
		if m.answer >= 0 {
			a = append(a, "answer-end", "answer-quiet")
			if m.answer == m.process && m.at < m.published {
				a = append(a, "answer", "answer-drop")
			}
		}
	}
	return a
}

func (m *model) act(t *testing.T, action string) {
	t.Helper()
	switch action {
	case "publish":
		m.published++
	case "forget-oldest":
		m.lost++
	case "restart":
		// The connections' ends are noticed later, or not before the new process
		// has answered a replay.
		m.process++
		m.unseen = m.unseen || m.conn >= 0 && m.s.asking() && !m.s.ask.verify
		m.published, m.lost, m.answer = 0, 0, -1
	case "connect":
		m.conn, m.delivered, m.began = m.process, m.published, m.published
		m.do(m.s.Connected(), -1)
	case "disconnect":
		m.disconnect()
	case "deliver":
		b := m.process*100 + m.delivered
		m.delivered++
		m.do(m.s.Live(uint64(b%100)), b)
	case "lose":
		m.delivered++
	case "probe":
		m.do(m.s.Probe(), -1)
	case "answer":
		b := m.process*100 + m.at
		m.at++
		m.do(m.s.Replayed(uint64(b%100), m.lastIs(b)), b)
	case "answer-drop":
		m.at++
	case "answer-end":
		m.answer = -1
		m.do(m.s.ReplayEnd(true), -1)
	case "answer-quiet":
		m.answer = -1
		m.do(m.s.ReplayEnd(false), -1)
	case "fail":
		m.answer = -1
		m.do(m.s.ReplayFailed(), -1)
		m.do(m.s.AskAgain(), -1)
	case "give-up":
		m.answer = -1
		m.do(m.s.GiveUp(), -1)
	default:
		t.Fatalf("unknown action %q", action)
	}
}

func (m *model) disconnect() {
	m.conn, m.held, m.answer, m.unseen = -1, nil, -1, false
	m.do(m.s.Disconnected(), -1)
}

func (m *model) lastIs(b int) bool {
	return len(m.applied) > 0 && m.applied[len(m.applied)-1] == b
}

// do carries out a step about batch b, -1 for none.
func (m *model) do(st Step, b int) {
	if st.Reset {
		m.applied = nil
	}
	if b >= 0 {
		switch st.Frame {
		case Apply:
			m.applied = append(m.applied, b)
		case Hold:
			m.held = append(m.held, b)
		}
	}
	if st.Ask {
		m.answer, m.at = m.process, max(int(st.From), m.lost)
	}
	for st.Drain && len(m.held) > 0 {
		h := m.held[0]
		hs := m.s.Held(uint64(h % 100))
		if hs.Frame == Hold {
			m.do(Step{Ask: hs.Ask, From: hs.From}, -1)
			return
		}
		m.held = m.held[1:]
		m.do(hs, h)
		if hs.Ask {
			return
		}
	}
	if st.Reconnect {
		m.disconnect()
	}
}

// check tells which promise is broken.
func (m *model) check() string {
	for i, b := range m.applied {
		if b/100 != m.applied[0]/100 {
			return fmt.Sprintf("batches of two processes in one generation: %v", m.applied)
		}
		if i > 0 && b != m.applied[i-1]+1 {
			return fmt.Sprintf("applied out of order, twice or across a gap: %v", m.applied)
		}
	}
	next, started := m.s.Next()
	if started && len(m.applied) > 0 && int(next) != m.applied[len(m.applied)-1]%100+1 {
		return fmt.Sprintf("next is %d after %v", next, m.applied)
	}
	if !started && len(m.applied) > 0 {
		return fmt.Sprintf("not started, and %v is applied", m.applied)
	}
	if m.s.Trust() != kvindex.TrustExact {
		return ""
	}
	if len(m.applied) > 0 && m.applied[0]%100 != 0 {
		return fmt.Sprintf("exact, and %v does not begin at 0", m.applied)
	}
	if m.conn < 0 {
		return "exact without a connection"
	}
	if !m.unseen && len(m.applied) > 0 && m.delivered > m.began && m.applied[0]/100 != m.conn {
		return fmt.Sprintf("exact, and %v is not of the process %d that sends live", m.applied, m.conn)
	}
	return ""
}
