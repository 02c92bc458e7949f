package faults

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"latch/internal/devdb"
)

// postgres is a PostgreSQL on a port of the loopback address.
type postgres struct {
	*devdb.DB
	t        testing.TB
	port     int
	settings []string
}

// startPostgres starts a PostgreSQL of this test alone in a directory of this name. It runs without
// fsync, which only matters when the machine itself crashes.
func startPostgres(t testing.TB, name string, settings ...string) *postgres {
	t.Helper()
	p := &postgres{t: t, port: freePort(t)}
	p.settings = append([]string{"listen_addresses=127.0.0.1", "port=" + strconv.Itoa(p.port),
		"fsync=off", "max_connections=100"}, settings...)
	if devdb.FindPostgres("") == "" {
		t.Skip("NOT TESTED: this needs PostgreSQL's own programs; ./setup.sh installs them")
	}
	var err error
	if p.DB, err = devdb.Start(filepath.Join(workDir, name), p.settings...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.run("pg_ctl", "stop", "-D", p.DataDir(), "-m", "immediate") })
	return p
}

// shared is the PostgreSQL of all tests that do not break it. It runs until the end.
var shared struct {
	once sync.Once
	*postgres
}

// sharedPostgres returns the PostgreSQL that this test shares with others.
func sharedPostgres(t testing.TB) *postgres {
	t.Helper()
	shared.once.Do(func() {
		shared.postgres = startPostgres(noCleanup{t}, "shared", "max_connections=300")
	})
	if shared.postgres == nil {
		t.Skip("NOT TESTED: the shared PostgreSQL did not start")
	}
	p := *shared.postgres
	p.t = t
	return &p
}

// noCleanup is a test whose end stops nothing.
type noCleanup struct{ testing.TB }

func (noCleanup) Cleanup(func()) {}

// command returns a command that runs one of PostgreSQL's programs as the user that runs
// PostgreSQL.
func (p *postgres) command(name string, args ...string) *exec.Cmd {
	stop := p.StopCommand().Args
	i := slices.Index(stop, "stop") - 1 // the place of pg_ctl; before it is what changes the user
	argv := slices.Concat(stop[:i], []string{filepath.Join(filepath.Dir(stop[i]), name)}, args)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/" // a directory that every user may enter
	return cmd
}

// run runs one of PostgreSQL's programs. The error has what it printed.
func (p *postgres) run(name string, args ...string) error {
	if out, err := p.command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// halt stops PostgreSQL in one of pg_ctl's modes.
func (p *postgres) halt(mode string) {
	p.t.Helper()
	if err := p.run("pg_ctl", "stop", "-D", p.DataDir(), "-m", mode); err != nil {
		p.t.Fatal(err)
	}
}

// restart starts a stopped PostgreSQL and returns when it accepted connections.
func (p *postgres) restart() time.Time {
	p.t.Helper()
	if _, err := devdb.Start(p.Dir, p.settings...); err != nil {
		p.t.Fatal(err)
	}
	return time.Now()
}

func (p *postgres) address() string { return localAddress(p.port) }

func (p *postgres) url(database string) string { return databaseURL(p.address(), database) }

// databaseURL returns the URL of a database at one or more addresses, which commas separate.
func databaseURL(addresses, database string) string {
	return "postgresql://postgres@" + addresses + "/" + database
}

// createDatabase makes an empty database.
func (p *postgres) createDatabase(name string) {
	p.t.Helper()
	p.sql("postgres", "CREATE DATABASE "+name)
}

// sql runs statements in a database.
func (p *postgres) sql(database string, statements ...string) {
	p.t.Helper()
	conn := p.connect(database)
	defer conn.Close(context.Background())
	for _, s := range statements {
		if _, err := conn.Exec(context.Background(), s); err != nil {
			p.t.Fatalf("%s: %v", s, err)
		}
	}
}

// makeAdmin makes an account an admin.
func (p *postgres) makeAdmin(database string, id int64) {
	p.t.Helper()
	p.sql(database, fmt.Sprintf("UPDATE users SET is_admin = true WHERE id = %d", id))
}

// count returns the number that a query selects.
func (p *postgres) count(database, query string, args ...any) (n int64) {
	p.t.Helper()
	conn := p.connect(database)
	defer conn.Close(context.Background())
	if err := conn.QueryRow(context.Background(), query, args...).Scan(&n); err != nil {
		p.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// connect opens a connection of the test's own.
func (p *postgres) connect(database string) *pgx.Conn {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.url(database))
	if err != nil {
		p.t.Fatal(err)
	}
	return conn
}
