//go:build fault

package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The time-outs of the service (server.go), and its limits of a body.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 15 * time.Second // of headers and body
	writeTimeout   = 30 * time.Second // of an answer that nobody reads
	smallLimit     = 16 << 10
	largeLimit     = 16 << 20
)

// noise is a p99 below which a shared machine tells nothing.
const noise = 20 * time.Millisecond

// TestLoginStorm has 200 clients that log in again and again. Memory is bounded, no throughput is
// lost against one client, and a session is used as before.
func TestLoginStorm(t *testing.T) {
	s := newSite(newRow(t, "login-storm"), sharedPostgres(t))
	target, token := s.replicas[0], s.accounts[0].access()
	waitForQuiet(t)
	rest := func() { time.Sleep(3 * time.Second) }
	idle := max(quantile(s.probed(target, token, rest), .99), noise)
	rate := s.loginRate(target)
	before := target.memory("VmRSS")
	target.resetPeak()
	const length = 20 * time.Second
	storm := &loginStorm{site: s, end: time.Now().Add(length)}
	samples := s.probed(target, token, func() { parallel(200, storm.run) })
	slots := float64(max(1, runtime.GOMAXPROCS(0)-1)) // of the service, for hashes at once
	s.figure("idle_p99_ms", milliseconds(idle))
	s.figure("one_client_per_s", rate)
	s.atMost("me_p99_ms", milliseconds(quantile(samples, .99)), min(10*milliseconds(idle), 100))
	s.atMost("rss_mib", target.memory("VmHWM"), before+3*slots*19+64) // a hash takes 19 MiB
	got := float64(storm.hashed.Load()) / length.Seconds()
	s.figure("logins_per_s", got)
	if got < .9*slots*rate {
		s.fault("%.1f logins a second with %.0f slots; one client has %.1f", got, slots, rate)
	}
}

// loginRate returns how many logins a second one client alone gets.
func (s *site) loginRate(target *replica) float64 {
	cl, start, n := &client{address: target.address()}, time.Now(), 0
	for ; time.Since(start) < 2*time.Second; n++ {
		cl.login(s.row.t, s.accounts[1].email, password)
	}
	return float64(n) / time.Since(start).Seconds()
}

// loginStorm is the clients of TestLoginStorm.
type loginStorm struct {
	*site
	end    time.Time
	hashed atomic.Int64 // logins that were not refused
}

// run logs in until the end, with the right and with a wrong password in turn.
func (l *loginStorm) run(i int) {
	cl := &client{address: l.replicas[0].address()}
	word := []string{password, "not the password"}[i%2]
	a := l.accounts[1+i%(len(l.accounts)-1)] // not the probe's: 50 newer sessions would end its own
	for time.Now().Before(l.end) {
		res := cl.do("POST", "/auth/login", "", loginForm(a.email, word))
		l.count(res)
		switch {
		case isBusy(res):
			time.Sleep(time.Second / 4) // sooner than it was asked to
		case res.status() == 200 || res.status() == 401:
			l.hashed.Add(1)
		default:
			l.fault("%v", res)
		}
	}
}

// drips are clients that send and read too slowly.
type drips struct {
	address string
	start   string        // sent at once
	next    string        // sent every second; "": nothing, and nothing is read either
	limit   time.Duration // after which the service should have closed the connection
}

// run opens n connections and returns the longest life of one.
func (d drips) run(t *testing.T, n int) time.Duration {
	lives := make([]time.Duration, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			time.Sleep(5 * time.Second * time.Duration(i) / time.Duration(n)) // no burst
			c, err := net.Dial("tcp", d.address)
			if err != nil {
				t.Errorf("dial: %v", err)
				return
			}
			defer c.Close()
			c.(*net.TCPConn).SetReadBuffer(4 << 10) // so that unread bytes stay with the service
			lives[i] = d.hold(c)
		})
	}
	wg.Wait()
	return slices.Max(lives)
}

// hold uses a connection until the service closes it and returns how long that took.
func (d drips) hold(c net.Conn) time.Duration {
	began := time.Now()
	go func() {
		c.Write([]byte(d.start))
		for d.next != "" {
			time.Sleep(time.Second)
			if _, err := c.Write([]byte(d.next)); err != nil {
				return
			}
		}
	}()
	c.SetReadDeadline(began.Add(d.limit + 10*time.Second))
	if d.next == "" {
		time.Sleep(d.limit + 3*time.Second)
	}
	io.Copy(io.Discard, c)
	return time.Since(began)
}

// TestSlowloris has 2,000 connections of slow headers, 300 of slow bodies and 300 that do not read.
func TestSlowloris(t *testing.T) {
	s := newSite(newRow(t, "slowloris"), sharedPostgres(t))
	target, token := s.replicas[0], s.accounts[0].access()
	waitForQuiet(t)
	rest := func() { time.Sleep(5 * time.Second) }
	idle := max(quantile(s.probed(target, token, rest), .99), noise)
	before, descriptors := target.memory("VmRSS"), target.descriptors()
	target.resetPeak()
	login := string(head("POST", "/auth/login", "", jsonMedia, 1000))
	// More than the service reads ahead: then its close resets the connection, and the client does
	// not go on reading what the kernel still holds.
	host := strings.Repeat("x", 300)
	page := strings.Repeat("GET /openapi.json HTTP/1.1\r\nHost: "+host+"\r\n\r\n", 100)
	var lives [3]time.Duration
	samples := s.probed(target, token, func() {
		at := target.address()
		var wg sync.WaitGroup
		wg.Go(func() {
			lives[0] = drips{at, "GET / HTTP/1.1\r\n", "x", headerTimeout}.run(t, 2000)
		})
		wg.Go(func() { lives[1] = drips{at, login, " ", requestTimeout}.run(t, 300) })
		wg.Go(func() { lives[2] = drips{at, page, "", writeTimeout}.run(t, 300) })
		wg.Wait()
	})
	s.figure("idle_p99_ms", milliseconds(idle))
	s.atMost("me_p99_ms", milliseconds(quantile(samples, .99)), 2*milliseconds(idle))
	s.atMost("header_s", lives[0].Seconds(), (headerTimeout + 4*time.Second).Seconds())
	s.atMost("body_s", lives[1].Seconds(), (requestTimeout + 4*time.Second).Seconds())
	s.atMost("reader_s", lives[2].Seconds(), (writeTimeout + 4*time.Second).Seconds())
	time.Sleep(time.Second)
	s.atMost("descriptors", float64(target.descriptors()), float64(descriptors+8)) // the pool's
	s.figure("rss_peak_mib", target.memory("VmHWM"))
	s.settle(target, token, before)
}

// descriptors returns how many files and sockets the process has open.
func (r *replica) descriptors() int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.cmd.Process.Pid))
	return len(entries)
}

// TestLargeBodies sends 64 bodies of 64 MiB at once, in each way that HTTP has, to operations that
// take 16 KiB and 16 MiB.
func TestLargeBodies(t *testing.T) {
	s := newSite(newRow(t, "large-bodies"), sharedPostgres(t))
	for _, way := range []string{"length", "chunked", "expect", "expect-chunked"} {
		s.sendTooLarge(way, "/auth/login", smallLimit, 32)
		s.sendTooLarge(way, "/documents", largeLimit, 160)
	}
}

// sendTooLarge sends the bodies of TestLargeBodies to one path. The service may take limit bytes of
// each, drop 32 MiB, and use rss MiB more memory for all. A body that does not announce its length
// may also be refused because others are being read.
func (s *site) sendTooLarge(way, path string, limit int, rss float64) {
	const size = 64 << 20
	target := s.replicas[0]
	target.resetPeak()
	before := target.memory("VmRSS")
	var most, refused atomic.Int64
	parallel(64, func(int) {
		u := &upload{strings.Contains(way, "chunked"), strings.Contains(way, "expect"), 0}
		a := u.send(target.address(), path, s.accounts[0].access(), size)
		s.count(a)
		switch {
		case a.status() == 413:
			refused.Add(1)
		case !u.chunked || !isBusy(a):
			s.fault("%s: %v after %d bytes, want 413", way, a, u.sent)
		}
		for old := most.Load(); u.sent > old && !most.CompareAndSwap(old, u.sent); {
			old = most.Load()
		}
	})
	if refused.Load() == 0 {
		s.fault("%s %s: no body was refused with 413", path, way)
	}
	name := strings.ReplaceAll(path, "/", "_") + "_" + way
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	s.atMost("sent_mib"+name, mib(most.Load()), mib(int64(limit))+32+8) // 8: the buffers of sockets
	s.atMost("rss_more_mib"+name, target.memory("VmHWM")-before, rss)
}

// upload is a body that is sent until the service answers.
type upload struct {
	chunked, expect bool
	sent            int64
}

// send sends size bytes, or fewer, and returns the answer.
func (u *upload) send(address, path, token string, size int) (a answer) {
	a.call = "POST " + path
	c, err := dial(address)
	if err != nil {
		a.err = err
		return a
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(60 * time.Second))
	block, length := bytes.Repeat([]byte(" "), 64<<10), size
	if u.chunked {
		block, length = slices.Concat([]byte("10000\r\n"), block, []byte("\r\n")), -1
	}
	request := head("POST", path, token, jsonMedia, length)
	if u.expect {
		request = append(request[:len(request)-2], "Expect: 100-continue\r\n\r\n"...)
	}
	c.Write(request)
	if u.expect {
		if a.Response, a.body, a.err = c.read(); a.err != nil || a.StatusCode != 100 {
			return a
		}
	}
	answered := make(chan answer, 1)
	go func() {
		a := a
		a.Response, a.body, a.err = c.read()
		answered <- a
	}()
	for u.sent < int64(size) {
		select {
		case a := <-answered:
			return a
		default:
		}
		n, err := c.Write(block)
		u.sent += int64(n)
		if err != nil {
			break
		}
	}
	return <-answered
}

// TestHangUps has 500 clients that go away 5 ms after each request.
func TestHangUps(t *testing.T) {
	s := newSite(newRow(t, "hang-ups"), sharedPostgres(t))
	opened := func() float64 {
		time.Sleep(time.Second) // until the statistics are in
		query := `SELECT sessions FROM pg_stat_database WHERE datname = $1`
		return float64(s.db.count("postgres", query, s.database))
	}
	before := opened()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var requests atomic.Int64
	parallel(500, func(i int) {
		for ctx.Err() == nil && s.hangUp(i) == nil {
			requests.Add(1)
			time.Sleep(50 * time.Millisecond)
		}
	})
	s.figure("hang_ups", float64(requests.Load()))
	if requests.Load() < 10_000 {
		s.fault("only %d clients hung up", requests.Load())
	}
	s.atMost("connections_per_request", (opened()-before)/float64(requests.Load()), .05)
	for range 20 { // all connections of the pools are usable: 8 of each replica at once
		parallel(16, func(int) {
			a := s.call("list", "GET", "/users?limit=100", s.accounts[0].access(), nil)
			if a.status() != 200 {
				s.fault("after the clients hung up: %v", a)
			}
		})
	}
	s.begin()
	s.end(time.Now(), 0)
}

// hangUp sends a request and closes the connection before the answer.
func (s *site) hangUp(i int) error {
	c, err := dial(s.replicas[i%2].address())
	if err != nil {
		return err
	}
	defer c.Close()
	token := s.accounts[i%len(s.accounts)].access()
	if i%3 == 0 {
		vector := []byte(`{"embedding":[1,2,3]}`)
		c.Write(request("POST", "/documents/search", token, vector))
	} else {
		c.Write(request("GET", "/users/me", token, nil))
	}
	time.Sleep(5 * time.Millisecond)
	return nil
}
