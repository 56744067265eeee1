package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/warmpath/warmpath/events/zmtp"
	"github.com/warmpath/warmpath/routing/pool"
)

// maxInbound bounds the connections whose topic is known. Those whose topic no
// endpoint has give way to others.
const maxInbound = 4096

// inbound is a transport for engines that connect to the router: their live
// streams are told apart by the topic of their messages. Everything else goes
// to the transport below it.
type inbound struct {
	Transport
	socket *zmtp.Inbound
	wg     sync.WaitGroup

	mu sync.Mutex
	// open are the newest streams by topic, guarded by mu. ready is closed and
	// replaced whenever there is a new one.
	open  map[string]*inboundStream
	ready chan struct{}
}

// inboundStream is the connection of one engine.
type inboundStream struct {
	*zmtp.Sub
	// first is the message that told the topic, until it is received.
	first [][]byte
	// taken: a subscriber has it. Guarded by inbound.mu.
	taken bool
}

// Recv implements [Stream].
func (s *inboundStream) Recv() ([][]byte, error) {
	if f := s.first; f != nil {
		s.first = nil
		return f, nil
	}
	return s.Sub.Recv()
}

// listenInbound binds endpoint for the engines that connect.
func listenInbound(ctx context.Context, endpoint string, maxMessage int, below Transport) (*inbound, error) {
	socket, err := zmtp.ListenSub(ctx, endpoint, zmtp.MaxMessage(maxMessage))
	if err != nil {
		return nil, fmt.Errorf("events.listen: %w", err)
	}
	in := &inbound{Transport: below, socket: socket, open: map[string]*inboundStream{}, ready: make(chan struct{})}
	in.wg.Go(in.accept)
	return in, nil
}

func (in *inbound) accept() {
	for {
		s, err := in.socket.Accept()
		if err != nil {
			return
		}
		in.wg.Go(func() {
			frames, err := s.Recv() // an idle engine says nothing, and holds nothing new
			if err != nil || len(frames) == 0 || !in.offer(string(frames[0]), &inboundStream{Sub: s, first: frames}) {
				_ = s.Close()
			}
		})
	}
}

// offer keeps a stream for the subscriber of its topic. An older one with the
// same topic is closed: the engine has connected again.
func (in *inbound) offer(topic string, s *inboundStream) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	old := in.open[topic]
	if old == nil && len(in.open) >= maxInbound && !in.evict() {
		return false
	}
	if old != nil {
		_ = old.Close()
	}
	in.open[topic] = s
	close(in.ready)
	in.ready = make(chan struct{})
	return true
}

// evict closes a stream that no subscriber has taken. The caller holds mu.
func (in *inbound) evict() bool {
	for topic, s := range in.open {
		if !s.taken {
			_ = s.Close()
			delete(in.open, topic)
			return true
		}
	}
	return false
}

// DialLive waits for the engine that publishes with the topic.
func (in *inbound) DialLive(ctx context.Context, endpoint string) (Stream, error) {
	topic, ok := strings.CutPrefix(endpoint, pool.TopicScheme)
	if !ok {
		return in.Transport.DialLive(ctx, endpoint)
	}
	for {
		in.mu.Lock()
		s, ready := in.open[topic], in.ready
		if s != nil && !s.taken {
			s.taken = true
			in.mu.Unlock()
			return &claimed{s, in, topic}, nil
		}
		in.mu.Unlock()
		select {
		case <-ready:
		case <-ctx.Done():
			return nil, fmt.Errorf("no engine that connected to events.listen publishes with topic %q", topic)
		}
	}
}

// claimed is a stream in the hands of its subscriber.
type claimed struct {
	*inboundStream
	in    *inbound
	topic string
}

// Close ends the connection and makes room for the next.
func (c *claimed) Close() error {
	c.in.mu.Lock()
	if c.in.open[c.topic] == c.inboundStream {
		delete(c.in.open, c.topic)
	}
	c.in.mu.Unlock()
	return c.inboundStream.Close()
}

func (in *inbound) close() error {
	err := in.socket.Close()
	in.wg.Wait()
	return err
}

// errNotListening is for a topic without events.listen.
var errNotListening = errors.New("the endpoint is known by its topic, but events.listen is empty; set it to the tcp://*:PORT that the engines connect to")
