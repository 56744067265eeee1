// Package zmtp is all the ZeroMQ that Warmpath speaks: SUB and DEALER sockets
// that dial, PUB and ROUTER sockets that listen, over TCP with the NULL
// mechanism (ZMTP 3.0, RFC 23).
//
// # What it promises
//
// A dialing socket is one connection. It is never redialed behind its owner's
// back: when the peer is gone, Recv says so, because whoever follows a
// numbered stream must know that it was interrupted. Messages arrive whole and
// in the order sent, or not at all. A message longer than the limit ends the
// connection before memory is allocated for it. Close ends a blocked Recv or
// Send, and Close of a listening socket returns when every goroutine and
// connection of it is gone.
//
// PUB drops for a subscriber that is too slow and never blocks, as ZeroMQ's
// does; a message published before a subscription has arrived is not seen by
// that subscriber.
//
// # How it uses the library
//
// github.com/go-zeromq/zmq4 v0.17.0 does the greeting, the security handshake
// and the framing of what is sent, through its Conn. Its Socket is not used:
// after Close its accept loop spins until the context ends, a reader blocked
// on its internal channel is never released, a PUB's writer goroutine never
// ends, automatic reconnection hides the interruption, and errors go to
// standard error. Received frames are read here, because the library allocates
// whatever length the wire claims, and because a handshake with malformed
// metadata makes it index out of range, which is caught and becomes an error.
//
// Built with -tags nozmq the package has the same functions without the
// library, and each of them returns [ErrNotBuilt].
package zmtp
