//go:build fault

package faults

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// terminateBackends ends the connections of the replicas.
const terminateBackends = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE application_name = 'latch'`

// processes returns the ids of PostgreSQL's processes, that of the postmaster first.
func (p *postgres) processes() (pids []int) {
	text, err := os.ReadFile(filepath.Join(p.DataDir(), "postmaster.pid"))
	if err != nil {
		p.t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, _ := strconv.Atoi(first)
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	pids = []int{pid}
	for _, child := range strings.Fields(string(children)) {
		n, _ := strconv.Atoi(child)
		pids = append(pids, n)
	}
	return pids
}

// TestTerminatedBackends ends all connections to PostgreSQL, again and again. No read is refused.
func TestTerminatedBackends(t *testing.T) {
	s := startSite(t, "backends-terminated")
	s.db.sql("postgres", terminateBackends+" LIMIT 1")
	time.Sleep(500 * time.Millisecond)
	for range 5 {
		s.db.sql("postgres", terminateBackends)
		time.Sleep(200 * time.Millisecond)
	}
	s.end(time.Now(), time.Second)
	refused := 0
	for _, o := range s.samples {
		if o.status == 503 && isRead(o.op) {
			refused++
		}
	}
	s.atMost("reads_refused", float64(refused), 0)
}

// TestKilledBackend ends one backend by SIGKILL. PostgreSQL then ends all others and recovers.
func TestKilledBackend(t *testing.T) {
	s := startSite(t, "backend-killed")
	killed := false
	for _, pid := range s.db.processes()[1:] {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.HasPrefix(name, []byte("postgres: postgres ")) {
			syscall.Kill(pid, syscall.SIGKILL)
			killed = true
			break
		}
	}
	s.end(time.Now(), 2*time.Second)
	if !killed {
		s.fault("there was no backend to kill")
	}
}

// TestLock holds a lock for which every request waits.
func TestLock(t *testing.T) {
	s := startSite(t, "pool-exhausted")
	idle := startReplica(t, databaseURL(s.proxy.address(), s.database))
	conn := s.db.connect(s.database)
	defer conn.Close(context.Background())
	lock := `BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE`
	if _, err := conn.Exec(context.Background(), lock); err != nil {
		t.Fatal(err)
	}
	locked := time.Now()
	time.Sleep(5 * time.Second)
	conn.Exec(context.Background(), `ROLLBACK`)
	healed := time.Now()
	s.end(healed, 500*time.Millisecond)
	// The pool is full of those that wait for the lock; all others wait 500 ms for the pool.
	var refused []sample
	for _, o := range s.samples {
		if o.op == "me" && o.start.After(locked) && o.end.Before(healed) {
			refused = append(refused, o)
		}
	}
	s.atMost("median_refusal_ms", milliseconds(quantile(refused, .5)), 650)
	s.sameGoroutines(idle)
}

// TestSlow puts 300 ms each way between the replicas and the database.
func TestSlow(t *testing.T) {
	s := newSite(newRow(t, "slow-database"), sharedPostgres(t))
	s.begin()
	url := databaseURL(s.proxy.address(), s.database)
	idle := startReplica(t, url)
	s.proxy.delay.Store(int64(300 * time.Millisecond))
	startReplica(t, url) // a replica starts meanwhile, too
	time.Sleep(3 * time.Second)
	s.proxy.delay.Store(0)
	s.end(time.Now(), time.Second)
	s.sameGoroutines(idle)
}

// sameGoroutines ends two replicas and compares the goroutines of the loaded one with those of an
// idle one: each connection of the pool may have one, and the health check of the pool.
func (s *site) sameGoroutines(idle *replica) {
	s.row.t.Helper()
	for _, cl := range s.clients {
		cl.closeIdle()
	}
	time.Sleep(200 * time.Millisecond)
	loaded, rest := s.replicas[0].goroutines(), idle.goroutines()
	s.atMost("goroutines_more", float64(loaded-rest), 3)
}

// goroutines ends the replica with a dump of its goroutines and returns their number.
func (r *replica) goroutines() int {
	r.cmd.Process.Signal(syscall.SIGQUIT)
	<-r.exited
	return strings.Count(r.log(), "\ngoroutine ")
}

// TestFrozenPostgres stops all processes of PostgreSQL for a while, as a hypervisor does.
func TestFrozenPostgres(t *testing.T) {
	s := startSite(t, "postgres-frozen")
	pids := s.db.processes()
	signal := func(sig syscall.Signal) {
		for _, pid := range pids {
			syscall.Kill(pid, sig)
		}
	}
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	signal(syscall.SIGSTOP)
	time.Sleep(3 * time.Second)
	signal(syscall.SIGCONT)
	s.end(time.Now(), 2*time.Second)
}

// TestFrozenReplica stops a replica for a while. It answers afterwards what it has received.
func TestFrozenReplica(t *testing.T) {
	s := newSite(newRow(t, "replica-frozen"), sharedPostgres(t))
	s.begin()
	s.replicas[0].cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(2 * time.Second)
	s.replicas[0].cmd.Process.Signal(syscall.SIGCONT)
	s.end(time.Now(), 2*time.Second)
}

// TestNoConnections uses all of PostgreSQL's connections up (SQLSTATE 53300).
func TestNoConnections(t *testing.T) {
	s := startSite(t, "connections-exhausted")
	var taken []*pgx.Conn
	closeAll := func() {
		for _, conn := range taken {
			conn.Close(context.Background())
		}
	}
	defer closeAll()
	for range 300 {
		conn, err := pgx.Connect(t.Context(), s.db.url(s.database))
		if err == nil {
			taken = append(taken, conn)
			continue
		}
		if _, err := taken[0].Exec(t.Context(), terminateBackends); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Second)
	closeAll()
	s.end(time.Now(), time.Second)
	if s.Statuses[503] < loadRate/2 {
		s.fault("only %d requests were refused: there were connections left", s.Statuses[503])
	}
}

// TestSmartStop asks PostgreSQL to stop when its clients have gone, and then makes it stop.
func TestSmartStop(t *testing.T) {
	s := startSite(t, "postgres-stopping")
	s.db.run("pg_ctl", "stop", "-D", s.db.DataDir(), "-m", "smart", "-W")
	time.Sleep(time.Second)
	s.db.halt("fast")
	s.end(s.db.restart(), 2*time.Second)
}
