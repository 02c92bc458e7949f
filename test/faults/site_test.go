package faults

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// site is two replicas on one database, behind a proxy, and a load on them.
type site struct {
	*row
	*load
	db       *postgres
	database string
	proxy    *proxy
	replicas []*replica
}

// startSite starts a site on a PostgreSQL of its own and waits until its load runs without a fault.
func startSite(t *testing.T, name string, env ...string) *site {
	t.Helper()
	r := newRow(t, name)
	s := newSite(r, startPostgres(t, name), env...)
	s.begin()
	return s
}

// newSite starts a site on a PostgreSQL, without the load.
func newSite(r *row, db *postgres, env ...string) *site {
	r.t.Helper()
	s := &site{row: r, db: db, database: strings.ReplaceAll(r.Row, "-", "_")}
	db.createDatabase(s.database)
	s.proxy = startProxy(r.t, db.address())
	s.startReplicas(program, databaseURL(s.proxy.address(), s.database), env, env)
	return s
}

// startReplicas starts a binary on a database once for each list of settings, waits until all
// serve, and makes the accounts of the load.
func (s *site) startReplicas(binary, databaseURL string, env ...[]string) {
	s.row.t.Helper()
	var addresses []string
	for _, settings := range env {
		s.replicas = append(s.replicas, newReplica(s.row.t, binary, databaseURL, settings...))
	}
	for _, r := range s.replicas {
		r.ready()
		addresses = append(addresses, r.address())
	}
	s.load = newLoad(s.row.t, s.db, s.database, addresses...)
}

// begin starts the load and waits until it has run for a second and a half without a fault. On a
// machine that does other work this may take several tries.
func (s *site) begin() {
	s.row.t.Helper()
	s.load.start()
	for range 8 {
		time.Sleep(1500 * time.Millisecond)
		s.load.mu.Lock()
		refused := slices.ContainsFunc(s.samples, func(o sample) bool {
			return o.status == 503 && o.note == ""
		})
		n := len(s.samples)
		if refused {
			s.samples = nil
		}
		s.load.mu.Unlock()
		if !refused && n >= loadRate {
			return
		}
	}
	s.row.t.Fatal("the load does not run without refusals before anything is broken")
}

// end stops the load after it has run for limit and a while more since healed, and judges.
func (s *site) end(healed time.Time, limit time.Duration) {
	s.row.t.Helper()
	time.Sleep(time.Until(healed.Add(limit + pick(2*time.Second, time.Second))))
	s.halt()
	s.judge(s.load, healed, limit)
	for _, missing := range s.lost(s.db, s.database) {
		s.fault("lost: %s", missing)
	}
	for i, r := range s.replicas {
		if !r.running() {
			s.fault("replica %d has exited:\n%.2000s", i, r.log())
		}
	}
}

// fillPools makes each replica open all its connections to the database.
func (s *site) fillPools() {
	admin := s.accounts[0].access()
	parallel(100, func(int) { s.call("list", "GET", "/users?limit=100", admin, nil) })
}

// healthWatch asks /health and /health/db of a replica again and again.
type healthWatch struct {
	done      chan struct{}
	wg        sync.WaitGroup
	unhealthy int           // answers of /health other than 200
	slowest   time.Duration // of the answers of /health/db
	first503  time.Duration // after the start, of /health/db
}

func watchHealth(r *replica) *healthWatch {
	w := &healthWatch{done: make(chan struct{})}
	start := time.Now()
	w.repeat(func() {
		if status, _ := r.health("/health"); status != 200 {
			w.unhealthy++
		}
	})
	w.repeat(func() {
		status, took := r.health("/health/db")
		w.slowest = max(w.slowest, took)
		if status == 503 && w.first503 == 0 {
			w.first503 = time.Since(start)
		}
	})
	return w
}

func (w *healthWatch) repeat(f func()) {
	w.wg.Go(func() {
		for {
			select {
			case <-w.done:
				return
			case <-time.After(50 * time.Millisecond):
				f()
			}
		}
	})
}

// judgeHealth ends a watch in which the database was away.
func (s *site) judgeHealth(w *healthWatch) {
	close(w.done)
	w.wg.Wait()
	s.atMost("health_not_200", float64(w.unhealthy), 0)
	s.atMost("health_db_slowest_ms", milliseconds(w.slowest), 1000)
	s.atMost("health_db_503_after_ms", milliseconds(w.first503), 1100)
	if w.first503 == 0 {
		s.fault("/health/db never was 503")
	}
}
