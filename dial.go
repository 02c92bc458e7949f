package main

// dial.go is the socket to PostgreSQL, and what is known about sockets that die without a word.

import (
	"context"
	"crypto/tls"
	"net"
	"syscall"
	"time"
)

// dial opens the socket of a connection, or of the cancel request of one that is given up. For both,
// pgx allows 15 s, and keeps the place in the pool as long; on a network that swallows everything this
// would be as long without service after it heals. The cancel request is known by those 15 s.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok && time.Until(end) > 2*connectTimeout {
		c.SetDeadline(time.Now().Add(closeTimeout))
	}
	b := &boundedConn{Conn: c}
	if b.raw, err = c.(syscall.Conn).SyscallConn(); err != nil {
		c.Close()
		return nil, err
	}
	b.peek = func(fd uintptr) { // not Read: pgx may still be reading, and that would wait for it
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		b.quiet = err == syscall.EAGAIN || err == syscall.EINTR
	}
	return b, nil
}

// boundedConn closes within closeTimeout: that is all that pgx sets deadlines in the future for.
type boundedConn struct {
	net.Conn
	raw   syscall.RawConn
	peek  func(fd uintptr) // sets quiet; made once, as each request looks
	quiet bool             // there is nothing to read
}

func (c *boundedConn) SetDeadline(t time.Time) error {
	if last := time.Now().Add(closeTimeout); t.After(last) {
		t = last
	}
	return c.Conn.SetDeadline(t)
}

// isQuiet tells, without a round trip, that the server has neither closed an idle connection nor said
// that it will: a statement sent on a closed one is lost, and nobody can tell whether it was done.
func isQuiet(c net.Conn) bool {
	if layer, ok := c.(*tls.Conn); ok {
		c = layer.NetConn()
	}
	b, ok := c.(*boundedConn)
	return ok && b.raw.Control(b.peek) == nil && b.quiet
}
