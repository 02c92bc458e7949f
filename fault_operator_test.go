//go:build fault

package main

// fault_operator_test.go has the rows that operators cause: restarts, other keys, other clocks; and the soak.

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestFaultKeepAlive stops a replica in the middle of POSTs on connections that are kept alive.
func TestFaultKeepAlive(t *testing.T) {
	c := newSite(t, "sigterm-mid-post", startPostgres(t, "sigterm"))
	target := c.replicas[0]
	var answered, broken, waiting atomic.Int64
	var wg sync.WaitGroup
	for i := range 60 {
		pause := []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond}[i%4]
		token := c.accounts[i%len(c.accounts)].tokens.Load().AccessToken
		wg.Go(func() {
			w := &wire{address: target.address()}
			body := `{"content":"text","embedding":[1,2,3]}`
			for {
				conn, err := w.conn()
				if err != nil {
					return // it listens no more: nothing was sent
				}
				conn.SetDeadline(time.Now().Add(clientPatience))
				waiting.Add(1)
				fmt.Fprintf(conn, "POST /api/v1/documents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", token, len(body), body[:9])
				time.Sleep(pause)
				res, _, err := conn.exchange([]byte(body[9:]))
				waiting.Add(-1)
				if err != nil || res.StatusCode != 201 && res.StatusCode != 503 {
					broken.Add(1)
					t.Logf("broken: %v, on connection %v", err, conn.LocalAddr())
					return
				}
				answered.Add(1)
				if res.Close {
					conn.Close()
				} else {
					w.idle = append(w.idle, conn)
				}
				time.Sleep(pause / 4)
			}
		})
	}
	time.Sleep(time.Second)
	c.Figures["under_way"] = float64(waiting.Load())
	target.terminate()
	wg.Wait()
	c.Figures["answered"] = float64(answered.Load())
	c.atMost("broken", float64(broken.Load()), 0)
	if waiting.Load(); answered.Load() < 100 || c.Figures["under_way"] < 10 {
		c.fault("too few POSTs were under way")
	}
}

// TestFaultRolling restarts both replicas in turn, twice, behind a balancer that asks /health/db.
func TestFaultRolling(t *testing.T) {
	c := newSite(t, "rolling-restart", startPostgres(t, "rolling"), "SHUTDOWN_DELAY=1")
	c.balanced = true
	c.begin()
	for range 2 {
		for _, r := range c.replicas {
			r.terminate()
			r.start()
			r.ready()
			time.Sleep(300 * time.Millisecond) // until the balancer knows
		}
	}
	c.end(time.Now(), 0, false)
	c.atMost("refused", float64(c.Statuses[503]), 0)
}

// TestFaultRotation changes the key in three steps, each a rolling restart.
func TestFaultRotation(t *testing.T) {
	const oldKey, newKey = faultKey, "another key of the fault tests 9876543210fedcba"
	c := newSite(t, "key-rotation", startPostgres(t, "rotation"), "SHUTDOWN_DELAY=1")
	c.balanced = true
	c.begin()
	for _, keys := range []string{oldKey + "," + newKey, newKey + "," + oldKey} {
		for _, r := range c.replicas {
			r.terminate()
			r.env = append(r.env, "SECRET_KEY="+keys)
			r.start()
			r.ready()
			time.Sleep(500 * time.Millisecond)
		}
	}
	for _, a := range c.accounts { // the last refresh before the old key goes
		c.change(a, c.refresh)
	}
	c.end(time.Now(), 0, false)
	c.atMost("refused", float64(c.Statuses[503]), 0)
	for _, a := range c.accounts {
		if head, _, _ := strings.Cut(a.tokens.Load().AccessToken, "."); head != newKeyring([]string{newKey}, 0).keys[0].access.header {
			c.fault("a token is signed with the old key")
		}
	}
}

// TestFaultSkew uses tokens of issuers with other clocks, on replicas whose own clocks are a minute off: the
// binary is built with another time.Now.
func TestFaultSkew(t *testing.T) {
	binary := rebuild(t, "latch-skewed", "time/time.go", func(text string) string {
		text = strings.Replace(text, "import (", "import (\n\t\"syscall\"", 1)
		return strings.Replace(text, "func Now() Time {", `var skew, _ = func() (Duration, error) { s, _ := syscall.Getenv("SKEW"); return ParseDuration(s) }()

func Now() Time {
	t := unskewed()
	mono := t.ext
	if t = t.Add(skew); t.wall&hasMonotonic != 0 {
		t.ext = mono // only what the wall clock says
	}
	return t
}

func unskewed() Time {`, 1)
	})
	c := &site{row: newRow(t, "clock-skew"), db: startPostgres(t, "skew"), database: "latch"}
	c.db.sql("postgres", "CREATE DATABASE latch")
	for _, skew := range []string{"60s", "-60s"} {
		r := startBinary(t, binary, urlOf(c.db.address(), c.database), "SKEW="+skew)
		r.ready()
		var line struct{ Time time.Time }
		if err := json.Unmarshal([]byte(r.log()[:strings.Index(r.log(), "\n")]), &line); err != nil {
			t.Fatal(err)
		}
		if off := time.Since(line.Time).Abs(); off < 50*time.Second {
			t.Fatalf("the replica's clock is off by only %v", off)
		}
		c.replicas = append(c.replicas, r)
	}
	c.load = newLoad(t, c.replicas, c.direct())
	c.begin()
	keys := newKeyring([]string{faultKey}, 0)
	claims, id, _ := keys.parseAccess(c.accounts[0].tokens.Load().AccessToken)
	for _, skew := range []struct {
		iat, exp int64
		want     int
	}{{20, 1800, 200}, {120, 1800, 200}, {-1800, 5, 200}, {-1800, -1, 401}} {
		now := time.Now().Unix()
		claims.Subject, claims.IssuedAt, claims.Expires = fmt.Sprint(id), now+skew.iat, now+skew.exp
		for range 4 {
			if status, _ := c.call("dead", "GET", "/users/me", keys.keys[0].access.sign(claims), nil); status != skew.want {
				c.fault("iat %+d s, exp %+d s: %d, want %d", skew.iat, skew.exp, status, skew.want)
			}
		}
	}
	c.mu.Lock()
	for i := range c.samples { // those that were meant to be good are no dead sessions
		if c.samples[i].note == "a session is alive after its logout was acknowledged" {
			c.samples[i].note = ""
		}
	}
	c.mu.Unlock()
	time.Sleep(2 * time.Second)
	c.end(time.Now(), 0, false)
	c.atMost("refused", float64(c.Statuses[503]), 0)
}

// TestSoak runs the load for ten minutes. "make soak" runs it alone.
func TestSoak(t *testing.T) {
	length := 10 * time.Minute
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	c := startSite(t, "soak")
	idle := startReplica(t, urlOf(c.proxy.address(), c.database))
	idle.ready()
	time.Sleep(length / 5) // until all that is made once is made
	before := c.replicas[0].rss("VmRSS")
	time.Sleep(length * 4 / 5)
	after := c.replicas[0].rss("VmRSS")
	c.end(time.Now(), 0, false)
	c.Figures["rss_mib"] = before
	c.atMost("rss_more_mib", after-before, 16)
	c.atMost("refused", float64(c.Statuses[503]), 0)
	c.sameGoroutines(idle)
}
