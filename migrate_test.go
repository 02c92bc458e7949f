package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
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
func one[T any](t testing.TB, url, sql string) (v T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
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
	if len(got) != 2 || got[0].name != "first" || got[0].outsideTx || got[1].name != "an index" ||
		!got[1].outsideTx || !strings.HasPrefix(got[1].sql, "DROP INDEX") {
		t.Errorf("parseMigrations = %+v", got)
	}
	crlf := parseMigrations(strings.ReplaceAll(twoSections, "\n", "\r\n"))
	if crlf[0].sum != got[0].sum {
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
	up := func(all []migration, checkOnly bool) error {
		return migrate(t.Context(), url, all, checkOnly, quiet)
	}
	if err := up(all, true); !errors.Is(err, errPending) {
		t.Errorf("check on an empty database = %v", err)
	}
	if err := up(all[:1], false); err != nil {
		t.Fatal(err)
	}
	err := up(all, true)
	if !errors.Is(err, errPending) || !strings.Contains(err.Error(), "2 (an index)") {
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
	if err = up(all[:1], false); err == nil || !strings.Contains(err.Error(), "run a newer latch") {
		t.Errorf("a database that is newer than the program = %v", err)
	}
	edited := parseMigrations(strings.Replace(twoSections, "VALUES (1)", "VALUES (2)", 1))
	for _, checkOnly := range []bool{true, false} {
		err := up(edited, checkOnly)
		if err == nil || !strings.Contains(err.Error(), "migration 1 (first) was edited") {
			t.Errorf("an edited section, check %v = %v", checkOnly, err)
		}
	}
}

// TestMigrateWords checks that documents of an older release are found by their parts.
func TestMigrateWords(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	all := migrations(&config{EmbeddingDimensions: 3, TextSearch: "english"})
	before := slices.IndexFunc(all, func(m migration) bool {
		return m.name == "words without punctuation"
	})
	for _, steps := range [][]migration{all[:before], all} {
		if err := migrate(t.Context(), url, steps, false, quiet); err != nil {
			t.Fatal(err)
		}
		one[int64](t, url, `WITH u AS (INSERT INTO users (email, password_hash)
				VALUES (gen_random_uuid() || '@x.com', '') RETURNING id)
			INSERT INTO documents (owner_id, content, metadata, embedding)
			SELECT id, 'the bugs in src/main.go', '{}', '[1,2,3]' FROM u RETURNING id`)
	}
	n := one[int](t, url, `SELECT count(*) FROM documents
		WHERE words @@ phraseto_tsquery('english', 'bugs in src main')`)
	if n != 2 {
		t.Errorf("%d documents are found by their parts, want 2", n)
	}
}

func TestMigrateFailure(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	const create = "CREATE TABLE a (x integer);\n"
	bad := parseMigrations("-- migration 1: bad\n" + create + create)
	err := migrate(t.Context(), url, bad, false, quiet)
	if err == nil || !strings.Contains(err.Error(), "42P07") {
		t.Errorf("migrate = %v, want SQLSTATE 42P07", err)
	}
	if one[int](t, url, `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`) > 0 {
		t.Error("a failed section left something")
	}
}

// TestMigrateAtOnce starts the program eight times on an empty database.
func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	dir := t.TempDir()
	env := []string{"DATABASE_URL=" + url, "SECRET_KEY=" + testKey}
	parallel(8, func(int) {
		if out, err := latch(t, dir, env, "migrate").CombinedOutput(); err != nil {
			t.Errorf("latch migrate: %v\n%s", err, out)
		}
	})
	want := len(parseMigrations(schemaSQL))
	if got := one[int](t, url, `SELECT count(*) FROM schema_migrations`); got != want {
		t.Errorf("%d migrations are recorded, want %d", got, want)
	}
}

// TestMigrateConcurrentIndexAtOnce lets eight migrate at once where one section is outside a
// transaction: none may wait in a statement, or CREATE INDEX CONCURRENTLY would wait for it.
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

// runSQL runs a statement.
func runSQL(t testing.TB, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// nameOf returns the name of the database of a URL.
func nameOf(url string) string { return path.Base(strings.Split(url, "?")[0]) }

// TestMigrateKilled kills a process in the middle of a section, in a transaction and outside; the
// next one starts it again.
func TestMigrateKilled(t *testing.T) {
	t.Parallel()
	for _, head := range []string{"-- migration 1: x\nCREATE TABLE half (x integer);\n",
		"-- migration 1: x (no transaction)\nCREATE TABLE IF NOT EXISTS half (x integer);\n"} {
		url := newDatabase(t, "")
		ctx, kill := context.WithCancel(t.Context())
		done := make(chan error)
		slow := parseMigrations(head + "SELECT pg_sleep(60);\n")
		go func() { done <- migrate(ctx, url, slow, false, quiet) }()
		eventually(t, "the section to run", func() bool {
			return one[bool](t, url, `SELECT count(*) > 0 FROM pg_stat_activity
				WHERE wait_event = 'PgSleep' AND datname = current_database()`)
		})
		kill() // pgx closes the connections, as the death of the process does
		if err := <-done; err == nil {
			t.Fatal("migrate ended well")
		}
		fast := parseMigrations(head)
		eventually(t, "the next migration", func() bool {
			return migrate(t.Context(), url, fast, false, quiet) == nil
		})
		if n := one[int](t, url, `SELECT count(*) FROM schema_migrations`); n != 1 {
			t.Errorf("%d migrations are recorded, want 1", n)
		}
	}
}

// TestMigrateTimeouts migrates where the database, the role or the URL sets time-outs that every
// section exceeds.
func TestMigrateTimeouts(t *testing.T) {
	t.Parallel()
	limits := []string{"statement_timeout", "idle_in_transaction_session_timeout"}
	for name, place := range map[string]string{"database": "ALTER DATABASE %s SET ",
		"role": "ALTER ROLE CURRENT_USER IN DATABASE %s SET ", "URL": ""} {
		url := newDatabase(t, "")
		for _, limit := range limits {
			if place == "" {
				url += "&" + limit + "=200"
			} else {
				runSQL(t, url, strings.Replace(place, "%s", nameOf(url), 1)+limit+" = 200")
			}
		}
		slow := parseMigrations("-- migration 1: x\nSELECT pg_sleep(0.5);\n" +
			"-- migration 2: y (no transaction)\nSELECT pg_sleep(0.5);\n")
		if err := migrate(t.Context(), url, slow, false, quiet); err != nil {
			t.Errorf("migrate with limits of the %s = %v", name, err)
		}
	}
}

// TestMigrateIsolation starts four at once where transactions are serializable by default, with a
// section that waits for all snapshots to end.
func TestMigrateIsolation(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	const serializable = " SET default_transaction_isolation = serializable"
	runSQL(t, url, "ALTER DATABASE "+nameOf(url)+serializable)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	parallel(4, func(int) {
		if err := migrate(ctx, url, parseMigrations(twoSections), false, quiet); err != nil {
			t.Error(err)
		}
	})
}

// TestEncodings: a database that does not keep UTF-8 is refused, one whose LC_CTYPE is C is warned
// of, and a client_encoding of the database or the URL changes nothing.
func TestEncodings(t *testing.T) {
	t.Parallel()
	all := migrations(&config{EmbeddingDimensions: testDimensions, TextSearch: "simple"})
	for encoding, want := range map[string]string{"SQL_ASCII": "SQL_ASCII", "LATIN1": "LATIN1",
		"EUC_KR": "EUC_KR", "UTF8": ""} {
		name := "encoding_" + strings.ToLower(encoding)
		runSQL(t, suite.URL, "CREATE DATABASE "+name+" TEMPLATE template0 LOCALE 'C' ENCODING '"+
			encoding+"'")
		if want == "" {
			runSQL(t, suite.URL, "ALTER DATABASE "+name+" SET client_encoding = LATIN1")
		}
		var log logBuffer
		url := databaseURL(name) + "&client_encoding=SQL_ASCII"
		err := migrate(t.Context(), url, all, false, slog.New(slog.NewTextHandler(&log, nil)))
		refused := "the database has the encoding " + want + ": "
		switch {
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), refused)):
			t.Errorf("migrate of a database in %s = %v", encoding, err)
		case want == "" && (err != nil || !strings.Contains(log.text(), "ascii_case")):
			t.Errorf("migrate of a database with LC_CTYPE C = %v: %s", err, log.text())
		}
	}
	a := newAppOn(t, databaseURL("encoding_utf8")+"&client_encoding=LATIN1", cheap)
	m := a.signUp("ada")
	a.want(a.do("PUT", "/api/v1/users/me", m.AccessToken, `{"full_name":"Ä日😀"}`), 200, "")
	if n := one[int](t, a.url, `SELECT char_length(full_name) FROM users`); n != 3 {
		t.Errorf("a name of 3 characters is stored as %d", n)
	}
	var log logBuffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	err := migrate(t.Context(), newDatabase(t, ""), all, false, logger)
	if err != nil || strings.Contains(log.text(), "ascii_case") {
		t.Errorf("migrate of an ordinary database = %v: %s", err, log.text())
	}
}

// TestMigrateBusyTable alters a table that a long transaction reads: it waits for its end, and the
// requests that come meanwhile do not.
func TestMigrateBusyTable(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	const first = "-- migration 1: x\nCREATE TABLE a (x integer);\n"
	if err := migrate(t.Context(), url, parseMigrations(first), false, quiet); err != nil {
		t.Fatal(err)
	}
	end := hold(t, url, `SELECT FROM a`)
	var log logBuffer
	done := make(chan error)
	go func() {
		all := parseMigrations(first + "-- migration 2: y\nALTER TABLE a ADD y integer;\n")
		done <- migrate(t.Context(), url, all, false, slog.New(slog.NewTextHandler(&log, nil)))
	}()
	var longest time.Duration
	eventually(t, "a second try", func() bool {
		start := time.Now()
		one[int](t, url, `SELECT count(*) FROM a`)
		longest = max(longest, time.Since(start))
		return strings.Count(log.text(), "msg=migration_waits version=2") == 2
	})
	if longest > 3*time.Second || longest < time.Second {
		t.Errorf("a request waited for %v, want some 2 s", longest)
	}
	end()
	if err := <-done; err != nil || one[int](t, url, `SELECT count(y) FROM a`) != 0 {
		t.Errorf("migrate = %v", err)
	}
}

// TestSchemaRefuses proves the constraints that stand behind the checks of the program.
func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	const account = `INSERT INTO users (email, password_hash) VALUES `
	const session = `INSERT INTO sessions (id, user_id, expires_at, user_agent) VALUES `
	for name, sql := range map[string]string{
		"upper case":       account + `('A@example.com', '')`,
		"the same e-mail":  account + `('ada@example.com', '')`,
		"long e-mail":      account + `(repeat('a', 255), '')`,
		"long name":        `UPDATE users SET full_name = repeat('a', 256)`,
		"orphaned session": session + `(7, 99999, now(), '')`,
		"session id":       session + `(9007199254740992, ` + fmt.Sprint(m.ID) + `, now(), '')`,
	} {
		if _, err := a.store.pool.Exec(t.Context(), sql); !sqlState(err, "23") {
			t.Errorf("%s: %v, want a violation", name, err)
		}
	}
	a.sql(`DELETE FROM users WHERE id = $1`, m.ID)
	if got := one[int](t, a.url, `SELECT count(*) FROM sessions`); got != 0 {
		t.Errorf("%d sessions outlive their account", got)
	}
}

func TestMigrateCommand(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, "")
	env := []string{"DATABASE_URL=" + url, "SECRET_KEY=" + testKey}
	for i, row := range []struct {
		args string
		exit int
	}{{"migrate -check", 1}, {"migrate", 0}, {"migrate -check", 0}, {"migrate -x", 2}} {
		exit, stdout, stderr := runLatch(t, t.TempDir(), env, "", strings.Fields(row.args)...)
		if exit != row.exit {
			t.Errorf("%d: latch %s exits with %d, want %d: %s%s",
				i, row.args, exit, row.exit, stdout, stderr)
		}
	}
}

// TestWaitingIsLogged once, and then at most every five seconds.
func TestWaitingIsLogged(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 6500*time.Millisecond)
	defer cancel()
	var log logBuffer
	url := fmt.Sprintf("postgresql://u:canary@127.0.0.1:%d/x", freePort(t))
	_, err := connectWhenReady(ctx, url, slog.New(slog.NewTextHandler(&log, nil)))
	if n := strings.Count(log.text(), "waiting_for_database"); err == nil || n < 1 || n > 2 {
		t.Errorf("%d lines in 6.5 s (%v):\n%s", n, err, log.text())
	}
	if strings.Contains(log.text()+err.Error(), "canary") {
		t.Errorf("the password is logged: %s, %v", log.text(), err)
	}
}
