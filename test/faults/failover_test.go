//go:build fault

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// postgresDir makes a directory in workDir that belongs to the user who runs PostgreSQL.
func (p *postgres) postgresDir(name string) string {
	p.t.Helper()
	dir := filepath.Join(workDir, name)
	info, err := os.Stat(p.DataDir())
	if err == nil {
		err = os.Mkdir(dir, 0o755)
	}
	if err == nil {
		owner := info.Sys().(*syscall.Stat_t)
		err = os.Chown(dir, int(owner.Uid), int(owner.Gid))
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return dir
}

// standby starts a streaming standby of p.
func (p *postgres) standby(name string) *postgres {
	p.t.Helper()
	data := filepath.Join(p.postgresDir(name), "postgres")
	if err := p.run("pg_basebackup", "-D", data, "-h", "127.0.0.1", "-p", strconv.Itoa(p.port),
		"-U", "postgres", "-R", "-c", "fast"); err != nil {
		p.t.Fatal(err)
	}
	return startPostgres(p.t, name)
}

func (p *postgres) promote() {
	p.t.Helper()
	if err := p.run("pg_ctl", "promote", "-D", p.DataDir()); err != nil {
		p.t.Fatal(err)
	}
}

// TestFailover promotes the synchronous standby of a primary that has crashed, that the network has
// cut off, or that is alive and read-only.
func TestFailover(t *testing.T) {
	for _, name := range []string{"failover", "failover-blackhole", "failover-read-only"} {
		t.Run(name, func(t *testing.T) {
			s, second := startFailoverSite(t, name)
			switch name {
			case "failover":
				s.db.halt("immediate")
			case "failover-blackhole":
				s.proxy.mode.Store("swallow")
				defer s.proxy.mode.Store("pass")
				time.Sleep(2 * time.Second) // no sooner does anybody promote a standby
			case "failover-read-only":
				s.db.sql("postgres", "ALTER SYSTEM SET default_transaction_read_only = on",
					"SELECT pg_reload_conf()")
				time.Sleep(500 * time.Millisecond)
			}
			second.promote()
			s.db = second
			s.end(time.Now(), 3*time.Second)
		})
	}
}

// startFailoverSite starts a site whose replicas know both a primary and its synchronous standby,
// and the load.
func startFailoverSite(t *testing.T, name string) (s *site, second *postgres) {
	t.Helper()
	s = &site{row: newRow(t, name), database: "latch", db: startPostgres(t, name)}
	second = s.db.standby(name + "-2")
	s.db.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'",
		"SELECT pg_reload_conf()", "CREATE DATABASE latch")
	s.proxy = startProxy(t, s.db.address())
	addresses := s.proxy.address() + "," + startProxy(t, second.address()).address()
	url := databaseURL(addresses, s.database) + "?target_session_attrs=read-write"
	s.startReplicas(program, url, nil, nil)
	s.begin()
	return s, second
}

// TestLostTail promotes a standby that has not received the last transactions: registrations and
// logins that were acknowledged are gone, and their ids may be given again. The tokens of those who
// were lost must open nothing, whatever happens next. PostgreSQL logs sequences 32 ahead, so the
// tail and what follows are longer.
func TestLostTail(t *testing.T) {
	const tail = 40
	r := newRow(t, "lost-tail")
	primary := startPostgres(t, "lost-tail")
	primary.createDatabase("latch")
	standby := primary.standby("lost-tail-2")
	first := startReplica(t, primary.url("latch"))
	cl := &client{address: first.address()}
	cl.signUp(t, "kept@example.com")
	const caughtUp = `SELECT count(*) FROM pg_stat_replication
		WHERE replay_lsn >= pg_current_wal_lsn()`
	if _, ok := eventually(10*time.Second, func() bool {
		return primary.count("latch", caughtUp) == 1
	}); !ok {
		t.Fatal("the standby does not catch up")
	}
	standby.halt("fast")
	var lost []member
	for i := range tail {
		lost = append(lost, cl.signUp(t, fmt.Sprintf("lost%d@example.com", i)))
	}
	first.terminate()
	primary.halt("immediate")
	standby.restart()
	standby.promote()
	second := startReplica(t, standby.url("latch"))
	cl = &client{address: second.address()}
	r.opensNothing(cl, lost)
	same := 0
	for i := range 2 * tail {
		m := cl.signUp(t, fmt.Sprintf("new%d@example.com", i))
		for _, l := range lost {
			if l.id == m.id {
				same++
			}
		}
	}
	r.figure("ids_given_again", float64(same))
	r.opensNothing(cl, lost)
	if strings.Contains(second.log(), `"panic"`) {
		r.fault("a panic:\n%.2000s", second.log())
	}
}
