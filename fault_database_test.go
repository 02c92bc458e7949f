//go:build fault

package main

// fault_database_test.go has the rows that need more than one PostgreSQL, a small disk, PgBouncer, or a
// database that is there but of little use.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestFaultLock holds a lock that every request waits for.
func TestFaultLock(t *testing.T) {
	c := startSite(t, "pool-exhausted")
	idle := startReplica(t, urlOf(c.proxy.address(), c.database))
	idle.ready()
	conn, err := pgx.Connect(t.Context(), c.direct())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	locked := time.Now()
	time.Sleep(5 * time.Second)
	conn.Exec(t.Context(), `ROLLBACK`)
	healed := time.Now()
	c.end(healed, 500*time.Millisecond, false)
	// The pool is full of those that wait for the lock, until lock_timeout; all others may wait for acquireTimeout.
	var shed []sample
	for _, s := range c.samples {
		if s.op == "me" && s.start.After(locked) && s.end.Before(healed) {
			shed = append(shed, s)
		}
	}
	c.atMost("median_refusal_ms", milliseconds(quantile(shed, .5)), milliseconds(acquireTimeout+150*time.Millisecond))
	c.sameGoroutines(idle)
}

// TestFaultSlow has 300 ms each way to the database.
func TestFaultSlow(t *testing.T) {
	c := startSite(t, "slow-database")
	idle := startReplica(t, urlOf(c.proxy.address(), c.database))
	idle.ready()
	c.proxy.delay.Store(int64(300 * time.Millisecond))
	slow := startReplica(t, urlOf(c.proxy.address(), c.database))
	slow.ready() // one that starts meanwhile
	time.Sleep(3 * time.Second)
	c.proxy.delay.Store(0)
	c.end(time.Now(), time.Second, false)
	c.sameGoroutines(idle)
}

// sameGoroutines ends the replicas and fails where a loaded one has more goroutines than idle.
func (c *site) sameGoroutines(idle *replica) {
	for _, w := range c.wires {
		for _, conn := range w.idle {
			conn.Close()
		}
	}
	time.Sleep(200 * time.Millisecond)
	// Each open connection of the pool may have one, and the pool's health check.
	c.atMost("goroutines_more", float64(c.replicas[0].goroutines()-idle.goroutines()), 3)
}

// TestFaultFrozen stops all processes of PostgreSQL for a while, as a hypervisor does.
func TestFaultFrozen(t *testing.T) {
	c := startSite(t, "postgres-frozen")
	pids := c.db.processes()
	signal := func(s syscall.Signal) {
		for _, pid := range pids {
			syscall.Kill(pid, s)
		}
	}
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	signal(syscall.SIGSTOP)
	time.Sleep(3 * time.Second)
	signal(syscall.SIGCONT)
	c.end(time.Now(), 2*time.Second, false)
}

// TestFaultReplicaFrozen stops a replica for a while: what it has received is answered afterwards.
func TestFaultReplicaFrozen(t *testing.T) {
	c := startSite(t, "replica-frozen")
	c.replicas[0].cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(2 * time.Second)
	c.replicas[0].cmd.Process.Signal(syscall.SIGCONT)
	c.end(time.Now(), 2*time.Second, false)
}

// TestFaultConnections takes all of PostgreSQL's connections (53300).
func TestFaultConnections(t *testing.T) {
	c := startSite(t, "connections-exhausted")
	var taken []*pgx.Conn
	defer func() {
		for _, conn := range taken {
			conn.Close(context.Background())
		}
	}()
	kill := `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'latch'`
	for range 300 {
		conn, err := pgx.Connect(t.Context(), c.direct())
		if err == nil {
			taken = append(taken, conn)
			continue
		}
		if _, err := taken[0].Exec(t.Context(), kill); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Second)
	for _, conn := range taken {
		conn.Close(t.Context())
	}
	c.end(time.Now(), time.Second, false)
	if c.Statuses[503] < faultRate/2 {
		c.fault("only %d requests were refused: the connections were not all taken", c.Statuses[503])
	}
}

// TestFaultSmartStop asks PostgreSQL to stop when its clients have gone, then makes it.
func TestFaultSmartStop(t *testing.T) {
	c := startSite(t, "postgres-stopping")
	c.db.pg("pg_ctl", "stop", "-D", c.db.data(), "-m", "smart", "-W")
	time.Sleep(time.Second)
	c.db.halt("fast")
	c.end(c.db.restart(), 2*time.Second, false)
}

// standby makes a synchronous standby of p.
func (p *postgres) standby(name string) *postgres {
	p.t.Helper()
	dir := filepath.Join(suite.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		uid, _ := strconv.Atoi(postgresUser().Uid)
		gid, _ := strconv.Atoi(postgresUser().Gid)
		os.Chown(dir, uid, gid)
	}
	if err := p.pg("pg_basebackup", "-D", filepath.Join(dir, "postgres"), "-h", "127.0.0.1", "-p", strconv.Itoa(p.port), "-U", "latch", "-R", "-c", "fast"); err != nil {
		p.t.Fatal(err)
	}
	return startPostgres(p.t, name)
}

// TestFaultFailover loses the primary, or leaves it alive and read-only, and promotes its synchronous standby.
func TestFaultFailover(t *testing.T) {
	for _, name := range []string{"failover", "failover-blackhole", "failover-read-only"} {
		t.Run(name, func(t *testing.T) {
			c := &site{row: newRow(t, name), database: "latch", db: startPostgres(t, name)}
			second := c.db.standby(name + "-2")
			c.db.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()", "CREATE DATABASE latch")
			c.proxy = startProxy(t, c.db.address())
			hosts := c.proxy.address() + "," + startProxy(t, second.address()).address()
			for range 2 {
				c.replicas = append(c.replicas, startReplica(t, urlOf(hosts, c.database)+"?target_session_attrs=read-write"))
			}
			for _, r := range c.replicas {
				r.ready()
			}
			c.load = newLoad(t, c.replicas, c.direct())
			c.begin()
			switch name {
			case "failover":
				c.db.halt("immediate")
			case "failover-blackhole":
				c.proxy.mode.Store("swallow")
				defer c.proxy.mode.Store("pass")
				time.Sleep(2 * time.Second) // nobody promotes a standby sooner
			case "failover-read-only":
				c.db.sql("postgres", "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
				time.Sleep(500 * time.Millisecond)
			}
			if err := second.pg("pg_ctl", "promote", "-D", second.data()); err != nil {
				t.Fatal(err)
			}
			c.db = second
			c.end(time.Now(), 3*time.Second, false)
		})
	}
}

// smallDisk mounts a disk of so many MiB at a new directory of PostgreSQL's user.
func smallDisk(t *testing.T, name string, size int) (dir string) {
	t.Helper()
	dir = filepath.Join(suite.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm,mode=0777", size), "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: a small disk needs root: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	return dir
}

// fillDisk takes all the room that is left on the disk of dir, until free is called.
func fillDisk(t *testing.T, dir string) (free func()) {
	t.Helper()
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	for buf := make([]byte, 4096); err == nil; {
		_, err = ballast.Write(buf)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() { os.Remove(ballast.Name()) }
}

// TestFaultDiskFull fills the disk that has the database, but not the one that has PostgreSQL's log of writes:
// without that, PostgreSQL stops, which is TestFaultLogDiskFull.
func TestFaultDiskFull(t *testing.T) {
	dir := smallDisk(t, "small-disk", 40)
	db := startPostgres(t, "disk-full")
	space := filepath.Join(dir, "space")
	if err := os.Mkdir(space, 0o777); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		uid, _ := strconv.Atoi(postgresUser().Uid)
		os.Chown(space, uid, -1)
	}
	db.sql("postgres", "CREATE TABLESPACE small LOCATION '"+space+"'", "ALTER SYSTEM SET default_tablespace = small", "SELECT pg_reload_conf()", "ALTER DATABASE template1 SET TABLESPACE small")
	c := newSite(t, "disk-full", db)
	c.begin()
	free := fillDisk(t, dir)
	full := time.Now()
	refused := 0
	for start := time.Now(); time.Since(start) < 4*time.Second; { // fill the pages that have room
		if c.writeText() == 503 {
			refused++
		}
		time.Sleep(5 * time.Millisecond)
	}
	free()
	healed := time.Now()
	c.end(healed, time.Second, false)
	c.Figures["writes_refused"] = float64(refused)
	if refused == 0 {
		c.fault("no write was refused: the disk was not full")
	}
	reads := 0
	for _, s := range c.samples {
		if slices.Contains([]string{"me", "list", "search"}, s.op) && s.start.After(full) && s.end.Before(healed) && s.status != 200 {
			reads++
		}
	}
	c.atMost("reads_refused", float64(reads), 0)
}

// writeText creates a document of some 1.6 kB that does not shrink.
func (c *site) writeText() (status int) {
	status, _ = c.call("create", "POST", "/documents", c.accounts[1].tokens.Load().AccessToken, map[string]any{"content": rand.Text() + strings.Repeat(rand.Text(), 60), "embedding": []int{1, 0, 0}})
	return status
}

// TestFaultLogDiskFull fills the one disk that has all of PostgreSQL. It stops once its log of writes needs another
// file, and cannot start again, for that takes room as well. A person makes room and starts it.
func TestFaultLogDiskFull(t *testing.T) {
	dir := smallDisk(t, "log-disk-full", 200) // some 60 MiB of databases, and five files of the log
	c := newSite(t, "log-disk-full", startPostgres(t, "log-disk-full", "min_wal_size=32MB", "max_wal_size=32MB"))
	c.begin()
	free := fillDisk(t, dir)
	conn, err := pgx.Connect(t.Context(), c.direct())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	full := time.Now()
	for time.Since(full) < 20*time.Second && conn.Ping(t.Context()) == nil { // it may have files that it made beforehand
		conn.Exec(t.Context(), `SELECT pg_switch_wal()`)
		c.writeText()
	}
	for time.Since(full) < 20*time.Second && c.db.pg("pg_ctl", "status", "-D", c.db.data()) == nil {
		time.Sleep(100 * time.Millisecond)
	}
	c.Figures["stopped_after_s"] = time.Since(full).Seconds()
	if c.db.pg("pg_ctl", "status", "-D", c.db.data()) == nil {
		c.fault("PostgreSQL did not stop: its log had room")
	}
	stop := watchHealth(c.replicas[0])
	time.Sleep(2 * time.Second)
	free()
	healed := c.db.restart()
	c.judgeHealth(stop)
	c.end(healed, 2*time.Second, false)
	if c.Statuses[503] < faultRate {
		c.fault("only %d requests were refused", c.Statuses[503])
	}
}

// TestFaultPgBouncer stands PgBouncer in transaction mode between, and restarts it.
func TestFaultPgBouncer(t *testing.T) {
	for name, settings := range map[string][]string{
		"pgbouncer-restart": nil,
		// One that swallows the settings which it does not know gives itself away only by its mistakes.
		"pgbouncer-tolerant": {"ignore_startup_parameters = statement_timeout,lock_timeout,idle_in_transaction_session_timeout,plan_cache_mode,jit,max_parallel_workers_per_gather,random_page_cost"},
	} {
		t.Run(name, func(t *testing.T) {
			db := startPostgres(t, name)
			bouncer, err := startPgBouncer(suite.dir, "127.0.0.1", db.port, settings...)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { bouncer.stop() }()
			c := &site{row: newRow(t, name), database: "latch", db: db}
			c.db.sql("postgres", "CREATE DATABASE latch")
			for range 2 {
				c.replicas = append(c.replicas, startReplica(t, urlOf(bouncer.address, c.database)))
			}
			for _, r := range c.replicas {
				r.ready()
			}
			c.load = newLoad(t, c.replicas, c.direct())
			c.begin()
			bouncer.stop()
			time.Sleep(500 * time.Millisecond)
			if err := bouncer.start(); err != nil {
				t.Fatal(err)
			}
			c.end(time.Now(), time.Second, false)
		})
	}
}

// TestFaultSuiteThroughPgBouncer runs all tests of the program with PgBouncer before their databases.
func TestFaultSuiteThroughPgBouncer(t *testing.T) {
	r := newRow(t, "suite-through-pgbouncer")
	start := time.Now()
	cmd := exec.Command("go", "test", "-count=1", "-timeout=120s", ".")
	cmd.Env = append(os.Environ(), "LATCH_TEST_PGBOUNCER=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.fault("%v\n%.4000s", err, out)
	}
	r.Figures["took_s"] = time.Since(start).Seconds()
}

// TestFaultStart starts 8 replicas at once on an empty database, also while PostgreSQL is still starting.
func TestFaultStart(t *testing.T) {
	r := newRow(t, "eight-replicas-start")
	db := startPostgres(t, "eight-replicas")
	want := len(migrations(&config{EmbeddingDimensions: 3, TextSearch: "simple"}))
	var slowest time.Duration
	for round := range 10 {
		name := fmt.Sprintf("round%d", round)
		db.sql("postgres", "CREATE DATABASE "+name)
		late := round%2 == 1
		if late {
			db.halt("immediate")
		}
		start := time.Now()
		var replicas []*replica
		for range 8 {
			replicas = append(replicas, startReplica(t, urlOf(db.address(), name), "LOG_LEVEL=info"))
		}
		if late {
			time.Sleep(300 * time.Millisecond)
			db.restart()
		}
		migrated := map[string]int{}
		for _, rep := range replicas {
			rep.ready()
			for line := range strings.Lines(rep.log()) {
				if strings.Contains(line, `"msg":"migrated"`) {
					_, version, _ := strings.Cut(line, `"version":`)
					migrated[strings.SplitN(version, ",", 2)[0]]++
				}
			}
		}
		slowest = max(slowest, time.Since(start))
		if len(migrated) != want {
			r.fault("round %d: %d migrations were logged, want %d", round, len(migrated), want)
		}
		for version, n := range migrated {
			if n != 1 {
				r.fault("round %d: migration %s was applied %d times", round, version, n)
			}
		}
		for _, rep := range replicas {
			rep.allowed.Store(true)
			rep.cmd.Process.Kill()
			<-rep.exited
		}
	}
	r.Figures["slowest_s"] = slowest.Seconds()
}
