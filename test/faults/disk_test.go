//go:build fault

package faults

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// smallDisk mounts a disk of so many MiB at a new directory, in which every user may write.
func smallDisk(t *testing.T, name string, size int) (dir string) {
	t.Helper()
	dir = filepath.Join(workDir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("size=%dm,mode=0777", size)
	out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "tmpfs", dir).CombinedOutput()
	if err != nil {
		t.Skipf("NOT TESTED: a small disk needs root: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	return dir
}

// fillDisk uses the rest of the disk of dir up, until free is called.
func fillDisk(t *testing.T, dir string) (free func()) {
	t.Helper()
	file, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for buf := make([]byte, 4096); err == nil; {
		_, err = file.Write(buf)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() { os.Remove(file.Name()) }
}

// TestFullDisk fills the disk of the tables, but not that of PostgreSQL's write-ahead log: without
// room for that, PostgreSQL stops, which is TestFullLogDisk. Reads go on, writes are refused.
func TestFullDisk(t *testing.T) {
	r := newRow(t, "disk-full")
	dir := smallDisk(t, "small-disk", 40)
	db := startPostgres(t, "disk-full")
	db.tablespaceOn(dir)
	s := newSite(r, db)
	s.begin()
	free := fillDisk(t, dir)
	full := time.Now()
	refused := 0
	for time.Since(full) < 4*time.Second { // fill the pages that have room
		if s.writeText() == 503 {
			refused++
		}
		time.Sleep(5 * time.Millisecond)
	}
	free()
	healed := time.Now()
	s.end(healed, time.Second)
	s.figure("writes_refused", float64(refused))
	if refused == 0 {
		s.fault("no write was refused: the disk was not full")
	}
	reads := 0
	for _, o := range s.samples {
		during := o.start.After(full) && o.end.Before(healed)
		if during && isRead(o.op) && o.status != 200 {
			reads++
		}
	}
	s.atMost("reads_refused", float64(reads), 0)
}

// tablespaceOn makes the tables of all databases to come lie in dir.
func (p *postgres) tablespaceOn(dir string) {
	p.t.Helper()
	space := filepath.Join(dir, "space")
	info, err := os.Stat(p.DataDir())
	if err == nil {
		err = os.Mkdir(space, 0o700)
	}
	if err == nil {
		owner := info.Sys().(*syscall.Stat_t)
		err = os.Chown(space, int(owner.Uid), int(owner.Gid))
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.sql("postgres", "CREATE TABLESPACE small LOCATION '"+space+"'",
		"ALTER SYSTEM SET default_tablespace = small", "SELECT pg_reload_conf()",
		"ALTER DATABASE template1 SET TABLESPACE small")
}

// writeText stores a document of some 1.6 kB that does not compress, and returns the status.
func (s *site) writeText() (status int) {
	text := rand.Text() + strings.Repeat(rand.Text(), 60)
	body := map[string]any{"content": text, "embedding": []int{1, 0, 0}}
	return s.call("create", "POST", "/documents", s.accounts[1].access(), body).status()
}

// TestFullLogDisk fills the one disk that holds all of PostgreSQL. It stops when its write-ahead
// log needs another file, and cannot start before a person makes room.
func TestFullLogDisk(t *testing.T) {
	r := newRow(t, "log-disk-full")
	dir := smallDisk(t, "log-disk-full", 200) // some 60 MiB of databases and five files of the log
	db := startPostgres(t, "log-disk-full", "min_wal_size=32MB", "max_wal_size=32MB")
	s := newSite(r, db)
	s.begin()
	free := fillDisk(t, dir)
	full := time.Now()
	s.useUpLog(full)
	stopped := func() bool { return db.run("pg_ctl", "status", "-D", db.DataDir()) != nil }
	if _, ok := eventually(20*time.Second-time.Since(full), stopped); !ok {
		s.fault("PostgreSQL did not stop: its log had room")
	}
	s.figure("stopped_after_s", time.Since(full).Seconds())
	watch := watchHealth(s.replicas[0])
	time.Sleep(2 * time.Second)
	free()
	healed := db.restart()
	s.judgeHealth(watch)
	s.end(healed, 2*time.Second)
	if s.Statuses[503] < loadRate {
		s.fault("only %d requests were refused", s.Statuses[503])
	}
}

// useUpLog writes until PostgreSQL has used the log files that it had made beforehand and stops.
func (s *site) useUpLog(full time.Time) {
	ctx := context.Background()
	conn := s.db.connect(s.database)
	defer conn.Close(ctx)
	for time.Since(full) < 20*time.Second && conn.Ping(ctx) == nil {
		conn.Exec(ctx, `SELECT pg_switch_wal()`)
		s.writeText()
	}
}
