package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

var quiet = slog.New(slog.DiscardHandler)

const twoSections = `-- a schema

-- migration 1: first
CREATE TABLE a (x integer);
INSERT INTO a VALUES (1);
-- migration 2: an index (no transaction)
DROP INDEX CONCURRENTLY IF EXISTS a_x;
CREATE INDEX CONCURRENTLY a_x ON a (x);
`

// one reads a single value.
func one[T any](t *testing.T, url, sql string) (v T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), (url))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func TestParseMigrations(t *testing.T) {
	t.Parallel()
	got := parseMigrations(twoSections)
	if len(got) != 2 || got[0].name != "first" || got[0].outsideTx || got[1].name != "an index" || !got[1].outsideTx || !strings.HasPrefix(got[1].sql, "DROP INDEX") {
		t.Errorf("parseMigrations = %+v", got)
	}
	if crlf := parseMigrations(strings.ReplaceAll(twoSections, "\n", "\r\n")); crlf[0].sum != got[0].sum {
		t.Error("line ends change the checksum")
	}
	defer func() {
		if recover() == nil {
			t.Error("a gap in the numbers is not noticed")
		}
	}()
	parseMigrations("-- migration 2: x\n")
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	all := parseMigrations(twoSections)
	up := func(all []migration, checkOnly bool) error { return migrate(t.Context(), url, all, checkOnly, quiet) }
	if err := up(all, true); !errors.Is(err, errPending) {
		t.Errorf("check on an empty database = %v", err)
	}
	if err := up(all[:1], false); err != nil {
		t.Fatal(err)
	}
	if err := up(all, true); !errors.Is(err, errPending) || !strings.Contains(err.Error(), "2 (an index)") {
		t.Errorf("check with one pending = %v", err)
	}
	if err := up(all, false); err != nil {
		t.Fatal(err)
	}
	if err := up(all, true); err != nil {
		t.Errorf("check on a current database = %v", err)
	}
	if !one[bool](t, url, `SELECT indisvalid FROM pg_index WHERE indexrelid = 'a_x'::regclass`) {
		t.Error("the index outside a transaction is not valid")
	}
	if err := up(all[:1], false); err == nil || !strings.Contains(err.Error(), "run a newer latch") {
		t.Errorf("a database that is newer than the program = %v", err)
	}
	edited := parseMigrations(strings.Replace(twoSections, "VALUES (1)", "VALUES (2)", 1))
	for _, checkOnly := range []bool{true, false} {
		if err := up(edited, checkOnly); err == nil || !strings.Contains(err.Error(), "migration 1 (first) was edited") {
			t.Errorf("an edited section, check %v = %v", checkOnly, err)
		}
	}
}

func TestMigrateFailure(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	bad := parseMigrations("-- migration 1: bad\nCREATE TABLE a (x integer);\nCREATE TABLE a (x integer);\n")
	if err := migrate(t.Context(), url, bad, false, quiet); err == nil || !strings.Contains(err.Error(), "42P07") {
		t.Errorf("migrate = %v, want SQLSTATE 42P07", err)
	}
	if one[bool](t, url, `SELECT to_regclass('a') IS NOT NULL OR to_regclass('schema_migrations') IS NOT NULL`) {
		t.Error("a failed section left something")
	}
}

// TestMigrateAtOnce starts the program eight times on an empty database.
func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	dir := t.TempDir()
	parallel(8, func(int) {
		if out, err := latch(t, dir, []string{"DATABASE_URL=" + url, "SECRET_KEY=" + testKey}, "migrate").CombinedOutput(); err != nil {
			t.Errorf("latch migrate: %v\n%s", err, out)
		}
	})
	if got, want := one[int](t, url, `SELECT count(*) FROM schema_migrations`), len(parseMigrations(schemaSQL)); got != want {
		t.Errorf("%d migrations are recorded, want %d", got, want)
	}
}

// TestMigrateConcurrentIndexAtOnce lets eight migrate at once where one section is outside a transaction:
// none may wait in a statement, or CREATE INDEX CONCURRENTLY would wait for it for ever.
func TestMigrateConcurrentIndexAtOnce(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	parallel(8, func(int) {
		if err := migrate(ctx, url, parseMigrations(twoSections), false, quiet); err != nil {
			t.Error(err)
		}
	})
	if got := one[int](t, url, `SELECT count(*) FROM a`); got != 1 {
		t.Errorf("the first section ran %d times", got)
	}
}

// TestMigrateKilled kills a process in the middle of a section; the next one starts from nothing.
func TestMigrateKilled(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	ctx, kill := context.WithCancel(t.Context())
	done := make(chan error)
	slow := parseMigrations("-- migration 1: slow\nCREATE TABLE half (x integer);\nSELECT pg_sleep(60);\n")
	go func() { done <- migrate(ctx, url, slow, false, quiet) }()
	eventually(t, "the section to run", func() bool {
		return one[bool](t, url, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND datname = current_database() AND pid <> pg_backend_pid())`)
	})
	kill() // pgx closes the connection, as the death of the process does
	if err := <-done; err == nil {
		t.Fatal("migrate ended well")
	}
	fast := parseMigrations("-- migration 1: fast\nCREATE TABLE half (x integer);\n")
	eventually(t, "the next migration", func() bool { return migrate(t.Context(), url, fast, false, quiet) == nil })
}

func TestMigrateCommand(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	env := []string{"DATABASE_URL=" + url, "SECRET_KEY=" + testKey}
	for i, row := range []struct {
		args string
		exit int
	}{{"migrate -check", 1}, {"migrate", 0}, {"migrate -check", 0}, {"migrate -x", 2}} {
		if exit, stdout, stderr := runLatch(t, t.TempDir(), env, "", strings.Fields(row.args)...); exit != row.exit {
			t.Errorf("%d: latch %s exits with %d, want %d: %s%s", i, row.args, exit, row.exit, stdout, stderr)
		}
	}
}
