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
	return boundedConn{c}, nil
}

// boundedConn closes within closeTimeout: that is all that pgx sets deadlines in the future for.
type boundedConn struct{ net.Conn }

func (c boundedConn) SetDeadline(t time.Time) error {
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
	if bounded, ok := c.(boundedConn); ok {
		c = bounded.Conn
	}
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) { // not Read: pgx may still be reading, and that would wait for it
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = err == syscall.EAGAIN || err == syscall.EINTR
	})
	return quiet && err == nil
}
