//go:build fault

package main

// fault_test.go breaks PostgreSQL, and what lies between it and the program, under load. Run by "make fault".

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// site is two replicas on a database of their own, behind a proxy.
type site struct {
	*row
	*load
	db       *postgres
	database string
	proxy    *proxy
	replicas []*replica
}

// startSite starts a site and its load, and sees that all is well for a second.
func startSite(t *testing.T, name string, env ...string) *site {
	t.Helper()
	c := newSite(t, name, startPostgres(t, name), env...)
	c.begin()
	return c
}

// newSite is startSite without the load.
func newSite(t *testing.T, name string, db *postgres, env ...string) *site {
	t.Helper()
	if testing.Short() { // "go test" runs few rows, which wait most of the time, and has little time itself
		t.Parallel()
	}
	c := &site{row: newRow(t, name), db: db, database: "latch"}
	c.db.sql("postgres", "CREATE DATABASE "+c.database)
	c.proxy = startProxy(t, c.db.address())
	for range 2 {
		c.replicas = append(c.replicas, startReplica(t, urlOf(c.proxy.address(), c.database), env...))
	}
	for _, r := range c.replicas {
		r.ready()
	}
	c.load = newLoad(t, c.replicas, c.direct())
	return c
}

func (c *site) direct() string { return urlOf(c.db.address(), c.database) }

// begin starts the load and waits until it has run for a second and a half without a fault: on a shared
// machine this may take more than one try.
func (c *site) begin() {
	c.row.t.Helper()
	c.load.start()
	for range 8 {
		time.Sleep(1500 * time.Millisecond)
		c.mu.Lock()
		bad := slices.ContainsFunc(c.samples, func(s sample) bool { return s.status == 503 && s.note == "" })
		n := len(c.samples)
		if bad {
			c.samples = nil
		}
		c.mu.Unlock()
		if !bad && n >= faultRate {
			return
		}
	}
	c.row.t.Fatal("the load does not run without faults before anything is broken")
}

// end stops the load once it has run for the given time after healed, and judges.
func (c *site) end(healed time.Time, limit time.Duration, broken bool) {
	c.row.t.Helper()
	time.Sleep(time.Until(healed.Add(limit + pick(2*time.Second, time.Second))))
	c.halt()
	c.judge(c.load, broken, healed, limit)
	for _, missing := range c.lost(c.direct()) {
		c.fault("lost: %s", missing)
	}
	for i, r := range c.replicas {
		if !r.alive() {
			c.fault("replica %d has exited:\n%.2000s", i, r.log())
		}
	}
}

// pick is whole, or little in the short selection.
func pick[T any](whole, little T) T {
	if testing.Short() {
		return little
	}
	return whole
}

// watchHealth asks a replica's /health and /health/db until stop is called, which returns the worst: the number of
// answers of /health that were not 200, and of /health/db the slowest and how long after the start came the first 503.
func watchHealth(r *replica) (stop func() (notAlive int, slowest, first503 time.Duration)) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	var notAlive int
	var slowest, first503 time.Duration
	start := time.Now()
	loop := func(f func()) {
		for {
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
				f()
			}
		}
	}
	wg.Go(func() {
		loop(func() {
			if status, _ := r.health("/health"); status != 200 {
				notAlive++
			}
		})
	})
	wg.Go(func() {
		loop(func() {
			status, took := r.health("/health/db")
			slowest = max(slowest, took)
			if status == 503 && first503 == 0 {
				first503 = time.Since(start)
			}
		})
	})
	return func() (int, time.Duration, time.Duration) {
		close(done)
		wg.Wait()
		return notAlive, slowest, first503
	}
}

// judgeHealth ends a watch of watchHealth, during which the database was away.
func (c *site) judgeHealth(stop func() (notAlive int, slowest, first503 time.Duration)) {
	notAlive, slowest, first503 := stop()
	c.atMost("health_not_200", float64(notAlive), 0)
	c.atMost("health_db_slowest_ms", milliseconds(slowest), 1000)
	c.atMost("health_db_503_after_ms", milliseconds(first503), 1100)
	if first503 == 0 {
		c.fault("/health/db never was 503")
	}
}

// fillPools makes each replica open all its connections.
func (c *site) fillPools() {
	parallel(100, func(int) { c.call("list", "GET", "/users?limit=100", c.accounts[0].tokens.Load().AccessToken, nil) })
}

func TestFaultCrash(t *testing.T) {
	c := startSite(t, "postgres-crash")
	c.db.halt("immediate")
	time.Sleep(time.Second)
	healed := c.db.restart()
	c.end(healed, 2*time.Second, false)
	c.atMost("first_success_ms", c.Figures["first_success_ms"], 1000)
}

func TestFaultTerminate(t *testing.T) {
	c := startSite(t, "backends-terminated")
	kill := `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'latch'`
	c.db.sql("postgres", kill+" LIMIT 1")
	time.Sleep(500 * time.Millisecond)
	for range 5 {
		c.db.sql("postgres", kill)
		time.Sleep(200 * time.Millisecond)
	}
	c.end(time.Now(), time.Second, false)
	for _, s := range c.samples {
		if s.status == 503 && (s.op == "me" || s.op == "list" || s.op == "search") {
			c.Figures["reads_refused"]++
		}
	}
	c.atMost("reads_refused", c.Figures["reads_refused"], 0)
}

// TestFaultKilledBackend ends one backend by SIGKILL, for which PostgreSQL ends all others and recovers.
func TestFaultKilledBackend(t *testing.T) {
	c := startSite(t, "backend-killed")
	for _, pid := range c.db.processes()[1:] {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if len(name) > 0 && string(name[:min(len(name), 15)]) == "postgres: latch" {
			syscall.Kill(pid, syscall.SIGKILL)
			break
		}
	}
	c.end(time.Now(), 2*time.Second, false)
	if c.Statuses[503] == 0 {
		t.Log("nothing was broken")
	}
}

func TestFaultBlackhole(t *testing.T) {
	for _, mode := range pick([]string{"hold", "swallow"}, []string{"swallow"}) {
		t.Run(mode, func(t *testing.T) {
			c := startSite(t, "blackhole-"+mode)
			c.fillPools()
			stop := watchHealth(c.replicas[0])
			c.proxy.mode.Store(mode)
			time.Sleep(pick(4*time.Second, 3500*time.Millisecond)) // shorter than the deadline of a query: that is what ends it
			c.proxy.mode.Store("pass")
			healed := time.Now()
			c.judgeHealth(stop)
			c.end(healed, 3*time.Second, false)
		})
	}
}
