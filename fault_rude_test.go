//go:build fault

package main

// fault_rude_test.go has the rows that clients cause: the many, the slow, the large and the impatient.

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// meP99 is the 99th percentile of GET /users/me at 50 a second, which f may disturb meanwhile.
func (c *site) meP99(f func()) time.Duration {
	done := make(chan struct{})
	go func() { f(); close(done) }()
	c.samples = nil
	w := &wire{address: c.replicas[0].address()}
	var mu sync.Mutex
	var samples []sample
	var wg sync.WaitGroup
	token := c.accounts[0].tokens.Load().AccessToken
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			wg.Wait()
			for _, conn := range w.idle {
				conn.Close()
			}
			statuses := perStatus(samples)
			for status, n := range statuses {
				c.Statuses[status] += n
			}
			if statuses[200] < len(samples) {
				c.fault("%d GET /users/me were not all answered with 200: %v", len(samples), statuses)
			}
			c.Seconds = perSecond(samples)
			return quantile(samples, .99)
		case <-tick.C:
			wg.Go(func() {
				s := sample{start: time.Now(), op: "me"}
				res, _, err := w.do("GET", "/api/v1/users/me", token, "", nil)
				s.end = time.Now()
				if err == nil {
					s.status = res.StatusCode
				} else {
					s.note = err.Error()
				}
				mu.Lock()
				samples = append(samples, s)
				mu.Unlock()
			})
		}
	}
}

// noise is a p99 below which nothing can be told on a shared machine.
const noise = 20 * time.Millisecond

func TestFaultLoginStorm(t *testing.T) {
	c := newSite(t, "login-storm", startPostgres(t, "storm"))
	target := c.replicas[0]
	idle := max(c.meP99(func() { time.Sleep(3 * time.Second) }), noise)
	h := newHasher(todaysParams)
	hashes := 0
	for start := time.Now(); time.Since(start) < 2*time.Second; hashes++ {
		h.compute(goodPass)
	}
	rate := float64(hashes) / 2
	before := target.rss("VmRSS")
	slots := float64(max(1, runtime.GOMAXPROCS(0)-1))
	var mu sync.Mutex
	counts := map[int]int{}
	storm := func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		parallel(200, func(i int) {
			w := &wire{address: target.address()}
			password := []string{goodPass, "not the password"}[i%2]
			a := c.accounts[1+i%(len(c.accounts)-1)] // the first must keep the session that is watched: 50 newer ones end it
			body := []byte(url.Values{"username": {a.email}, "password": {password}}.Encode())
			for ctx.Err() == nil {
				res, _, err := w.do("POST", "/api/v1/auth/login", "", "application/x-www-form-urlencoded", body)
				status := 0
				if err == nil {
					status = res.StatusCode
				}
				mu.Lock()
				counts[status]++
				mu.Unlock()
				switch {
				case status == 503 && res.Header.Get("Retry-After") != "":
					time.Sleep(time.Second / 4) // less patient than it was asked to be
				case status != 200 && status != 401:
					c.fault("a login: %d %v", status, err)
				}
			}
		})
	}
	p99 := c.meP99(storm)
	c.Figures["idle_p99_ms"], c.Figures["hash_rate"] = milliseconds(idle), rate
	c.atMost("me_p99_ms", milliseconds(p99), min(10*milliseconds(idle), 100))
	c.atMost("rss_mib", target.rss("VmHWM"), before+3*slots*19+64)
	if got := float64(counts[200]+counts[401]) / 20; got < .9*slots*rate {
		c.fault("%.1f logins a second, of %.1f hashes that one thread makes", got, rate)
	} else {
		c.Figures["logins_per_s"] = got
	}
	maps.Copy(c.Statuses, counts)
}

// drip opens n connections, sends start on each, and then what next returns once a second until the connection
// is closed. It returns when all are, with the longest life of one.
func drip(t *testing.T, address string, n int, start string, next string, limit time.Duration) time.Duration {
	var longest atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			time.Sleep(5 * time.Second * time.Duration(i) / time.Duration(n)) // no storm of connects: that is not what this is about
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Errorf("dial: %v", err)
				return
			}
			c.(*net.TCPConn).SetReadBuffer(4 << 10) // so that a reader who is slow is felt at once
			defer c.Close()
			began := time.Now()
			go func() {
				c.Write([]byte(start))
				for next != "" {
					time.Sleep(time.Second)
					if _, err := c.Write([]byte(next)); err != nil {
						return
					}
				}
			}()
			c.SetReadDeadline(began.Add(limit + 10*time.Second))
			if next == "" { // a slow reader: it looks up only after the server should have given up
				time.Sleep(limit + 3*time.Second)
			}
			io.Copy(io.Discard, c)
			life := int64(time.Since(began))
			for {
				if old := longest.Load(); life <= old || longest.CompareAndSwap(old, life) {
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Duration(longest.Load())
}

func TestFaultSlowloris(t *testing.T) {
	c := newSite(t, "slowloris", startPostgres(t, "slowloris"))
	target := c.replicas[0]
	idle := max(c.meP99(func() { time.Sleep(5 * time.Second) }), noise)
	rss, descriptors := target.rss("VmRSS"), target.descriptors()
	token := c.accounts[0].tokens.Load().AccessToken
	var lives [3]time.Duration
	p99 := c.meP99(func() {
		var wg sync.WaitGroup
		wg.Go(func() { lives[0] = drip(t, target.address(), 2000, "GET / HTTP/1.1\r\n", "x", headerTimeout) })
		wg.Go(func() {
			lives[1] = drip(t, target.address(), 300, "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n", " ", requestTimeout)
		})
		wg.Go(func() {
			lives[2] = drip(t, target.address(), 300, strings.Repeat("GET /openapi.json HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+token+"\r\n\r\n", 100), "", writeTimeout)
		})
		wg.Wait()
	})
	c.Figures["idle_p99_ms"] = milliseconds(idle)
	c.atMost("me_p99_ms", milliseconds(p99), 2*milliseconds(idle))
	for i, limit := range []time.Duration{headerTimeout, requestTimeout, writeTimeout} {
		c.atMost([]string{"header_s", "body_s", "reader_s"}[i], lives[i].Seconds(), limit.Seconds()+4)
	}
	time.Sleep(time.Second)
	c.atMost("descriptors", float64(target.descriptors()), float64(descriptors+8)) // the pool may have grown
	c.Figures["rss_idle_mib"], c.Figures["rss_peak_mib"] = rss, target.rss("VmHWM")
	c.settles(target, rss+48)
}

// settles waits until the resident memory of r is at most limit. The Go runtime gives it back after its next
// collection, which comes with the next requests.
func (c *site) settles(r *replica, limit float64) {
	w := &wire{address: r.address()}
	for start := time.Now(); r.rss("VmRSS") > limit && time.Since(start) < time.Minute; time.Sleep(100 * time.Millisecond) {
		for range 100 {
			w.do("GET", "/api/v1/users/me", c.accounts[0].tokens.Load().AccessToken, "", nil)
		}
	}
	c.atMost("rss_after_mib", r.rss("VmRSS"), limit)
}

// TestFaultBodies sends 64 bodies of 64 MiB at once, to routes that take 16 KiB and 16 MiB.
func TestFaultBodies(t *testing.T) {
	const size = 64 << 20
	c := newSite(t, "large-bodies", startPostgres(t, "bodies"))
	target := c.replicas[0]
	token := c.accounts[0].tokens.Load().AccessToken
	for _, way := range []string{"length", "chunked", "expect", "expect-chunked"} {
		for path, limit := range map[string]int{"/auth/login": maxBody, "/documents": maxLargeBody} {
			os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", target.cmd.Process.Pid), []byte("5"), 0)
			before := target.rss("VmRSS")
			var most atomic.Int64
			parallel(64, func(int) {
				head := fmt.Sprintf("POST /api/v1%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\n", path, token)
				if strings.Contains(way, "expect") {
					head += "Expect: 100-continue\r\n"
				}
				if strings.Contains(way, "chunked") {
					head += "Transfer-Encoding: chunked\r\n\r\n"
				} else {
					head += fmt.Sprintf("Content-Length: %d\r\n\r\n", size)
				}
				status, sent := sendBody(target.address(), head, strings.Contains(way, "expect"), strings.Contains(way, "chunked"), size)
				if status != 413 {
					c.fault("%s %s: %d after %d bytes, want 413", path, way, status, sent)
				}
				for {
					if old := most.Load(); sent <= old || most.CompareAndSwap(old, sent) {
						return
					}
				}
			})
			// What the sockets' buffers hold was sent, but not read.
			c.atMost("sent_mib"+strings.ReplaceAll(path, "/", "_")+"_"+way, float64(most.Load())/(1<<20), float64(2*limit)/(1<<20)+8)
			c.atMost("rss_more_mib"+strings.ReplaceAll(path, "/", "_")+"_"+way, target.rss("VmHWM")-before, map[int]float64{maxBody: 32, maxLargeBody: 160}[limit])
		}
	}
}

// sendBody sends a body until it is answered, and returns the status and how much was sent.
func sendBody(address, head string, expect, chunked bool, size int64) (status int, sent int64) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, 0
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	conn.Write([]byte(head))
	r := bufio.NewReader(conn)
	if expect {
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != 100 {
			if err == nil {
				status = res.StatusCode
			}
			return status, 0
		}
	}
	answered := make(chan int, 1)
	go func() {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			answered <- 0
			return
		}
		answered <- res.StatusCode
	}()
	block := bytes.Repeat([]byte(" "), 64<<10)
	if chunked {
		block = slices.Concat([]byte("10000\r\n"), block, []byte("\r\n"))
	}
	for sent < size {
		select {
		case status := <-answered:
			return status, sent
		default:
		}
		n, err := conn.Write(block)
		sent += int64(n)
		if err != nil {
			break
		}
	}
	return <-answered, sent
}

// TestFaultHangUps has 500 clients that go after 5 ms.
func TestFaultHangUps(t *testing.T) {
	c := newSite(t, "hang-ups", startPostgres(t, "hangups"))
	opened := func() (n float64) {
		conn, err := pgx.Connect(t.Context(), urlOf(c.db.address(), "postgres"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		time.Sleep(time.Second) // until the statistics are in
		if err := conn.QueryRow(t.Context(), `SELECT sessions FROM pg_stat_database WHERE datname = 'latch'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := opened()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var requests atomic.Int64
	parallel(500, func(i int) {
		a := c.accounts[i%len(c.accounts)]
		for ctx.Err() == nil {
			conn, err := net.Dial("tcp", c.replicas[i%2].address())
			if err != nil {
				continue
			}
			if body := `{"embedding":[1,2,3]}`; i%3 == 0 {
				fmt.Fprintf(conn, "POST /api/v1/documents/search HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", a.tokens.Load().AccessToken, len(body), body)
			} else {
				fmt.Fprintf(conn, "GET /api/v1/users/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", a.tokens.Load().AccessToken)
			}
			time.Sleep(5 * time.Millisecond)
			conn.Close()
			requests.Add(1)
			time.Sleep(50 * time.Millisecond)
		}
	})
	c.Figures["hang_ups"] = float64(requests.Load())
	c.atMost("connections_per_request", (opened()-before)/float64(requests.Load()), .05)
	for range 20 { // every slot of the pools is there: 8 of each replica at once
		parallel(16, func(i int) {
			if status, body := c.call("list", "GET", "/users?limit=100", c.accounts[0].tokens.Load().AccessToken, nil); status != 200 {
				c.fault("after the hang-ups: %d %s", status, body)
			}
		})
	}
	c.begin()
	c.end(time.Now(), 0, false)
}
