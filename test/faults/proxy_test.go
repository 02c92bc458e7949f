package faults

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy is a TCP proxy that does to connections what networks do.
type proxy struct {
	listener net.Listener
	target   string
	mode     atomic.Value // pass, hold (what is sent arrives later), swallow (it never arrives)
	delay    atomic.Int64 // nanoseconds each way
	mu       sync.Mutex
	conns    map[net.Conn]bool
}

func startProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, conns: map[net.Conn]bool{}}
	p.mode.Store("pass")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	t.Cleanup(func() { l.Close(); p.reset() })
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) serve(client net.Conn) {
	if p.mode.Load() == "swallow" {
		io.Copy(io.Discard, client) // until the client gives up
		client.Close()
		return
	}
	p.wait()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		client.(*net.TCPConn).SetLinger(0) // a reset is the nearest to a refusal
		client.Close()
		return
	}
	p.register(true, client, server)
	var wg sync.WaitGroup
	var lost atomic.Bool
	wg.Go(func() { p.pump(server, client, &lost) })
	wg.Go(func() { p.pump(client, server, &lost) })
	wg.Wait()
	p.register(false, client, server)
	client.Close()
	server.Close()
}

// register adds connections to those that reset breaks, or removes them.
func (p *proxy) register(open bool, conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if open {
			p.conns[c] = true
		} else {
			delete(p.conns, c)
		}
	}
}

// wait returns when the mode is pass.
func (p *proxy) wait() {
	for p.mode.Load() != "pass" {
		time.Sleep(5 * time.Millisecond)
	}
}

// chunk is what one read returned, and when it is due at the other side.
type chunk struct {
	data []byte
	due  time.Time
}

// pump copies from one side to the other. lost is set for both directions of a connection as soon
// as something was swallowed: nothing arrives on it from then on.
func (p *proxy) pump(to, from net.Conn, lost *atomic.Bool) {
	chunks := make(chan chunk, 10_000)
	go p.read(from, chunks, lost)
	for c := range chunks {
		time.Sleep(time.Until(c.due))
		p.wait()
		if _, err := to.Write(c.data); err != nil {
			break
		}
	}
	p.wait()
	if !lost.Load() {
		to.(*net.TCPConn).CloseWrite()
	}
}

func (p *proxy) read(from net.Conn, chunks chan<- chunk, lost *atomic.Bool) {
	defer close(chunks)
	for {
		buf := make([]byte, 32<<10)
		n, err := from.Read(buf)
		if p.mode.Load() == "swallow" {
			lost.Store(true)
		}
		if n > 0 && !lost.Load() {
			chunks <- chunk{buf[:n], time.Now().Add(time.Duration(p.delay.Load()))}
		}
		if err != nil {
			return
		}
	}
}

// reset breaks all connections.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}
