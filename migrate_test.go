package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"regexp"
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
		"-- migration 1: w\n-- migration 2: x (no transaction)\n" +
			"CREATE TABLE IF NOT EXISTS half (x integer);\n"} {
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
		if n := one[int](t, url, `SELECT count(*) FROM schema_migrations`); n != len(fast) {
			t.Errorf("%d migrations are recorded, want %d", n, len(fast))
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
	if n := strings.Count(log.text(), "waiting_for_database"); err == nil || n < 1 || n > 2 ||
		strings.Count(log.text(), "refused") != n {
		t.Errorf("%d lines in 6.5 s (%v):\n%s", n, err, log.text())
	}
	if strings.Contains(log.text()+err.Error(), "canary") {
		t.Errorf("the password is logged: %s, %v", log.text(), err)
	}
}

// TestMigrateRights: where a right or an extension is missing, the error has PostgreSQL's hint, and
// says what Latch needs.
func TestMigrateRights(t *testing.T) {
	t.Parallel()
	guest := fmt.Sprintf("guest%d", dbCount.Add(1))
	runScript(t, newDatabase(t, ""), `CREATE ROLE `+guest)
	for _, row := range []struct{ setup, sql, want string }{
		{`REVOKE ALL ON SCHEMA public FROM public`, schemaSQL,
			`no schema has been selected to create in`},
		{`REVOKE CREATE ON SCHEMA public FROM public`, schemaSQL,
			`permission denied for schema public`},
		{`GRANT CREATE ON SCHEMA public TO public`, schemaSQL,
			`permission denied to create extension "vector". Must [^\n]+ to create this extension`},
		{`GRANT CREATE ON SCHEMA public TO public`, "-- migration 1: x\nCREATE EXTENSION nowhere",
			`extension "nowhere" is not available. The extension must first be installed`},
	} {
		url := newDatabase(t, "")
		runScript(t, url, row.setup)
		all := parseMigrations(row.sql)
		err := migrate(t.Context(), url+"&role="+guest, all, false, quiet)
		if err == nil || !matches(err.Error(), row.want) ||
			!matches(err.Error(), `\n`+requirements+`$`) {
			t.Errorf("after %s: %v, want %s, and what Latch needs", row.setup, err, row.want)
		}
	}
}

// readFile returns a file of the repository.
func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// runScript runs statements in one database, and returns the lines of the last result with rows.
func runScript(t *testing.T, url, script string) (lines []string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	results, err := conn.PgConn().Exec(t.Context(), script).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, result := range results {
		for i, row := range result.Rows {
			if i == 0 {
				lines = nil
			}
			lines = append(lines, string(bytes.Join(row, []byte(" "))))
		}
	}
	return lines
}

const (
	timesLost   = "its times are out of range, and are now those of this run."
	hashUnknown = "it needs a new password: Latch cannot check its hash"
)

// fastAPIDatabases are those of test/fastapi, with what the script reports and copies.
var fastAPIDatabases = map[string]struct {
	tables        string
	report, users []string
	login, locked string // active accounts, and one without a usable password
}{
	"plan": {"alembic_version, items, users", []string{
		"4 of 6 accounts of fastapi.users are copied, 4 of them in this run.",
		"Account 5, BOB@example.com: not copied: its e-mail address is that of 3.",
		"Account 6, root@localhost: not copied: Latch does not take its e-mail address.",
		"Account 70, old@example.com: " + hashUnknown + "; " + timesLost,
		"items_owner_id_fkey of fastapi.items still refers to fastapi.users.",
	}, []string{
		"1 admin@example.com Ada Lovelace t t 2024-01-31 10:00 2024-02-01 08:00",
		"3 bob@example.com - t f 2024-03-01 00:00 2024-03-01 00:00",
		"4 gone@example.com Gone f t 2024-03-02 00:00 2024-03-02 00:00",
		"70 old@example.com Old t f now 2024-03-05 00:00",
	}, "admin@example.com bob@example.com", "old@example.com"},
	"template": {"alembic_version, item, user", []string{
		`3 of 3 accounts of fastapi."user" are copied, 3 of them in this run.`,
		"Account b0000000-0000-4000-8000-000000000003, eve@example.com: it has no password.",
		"3 accounts have a new id: fastapi.latch_users has the old ones.",
		`item_owner_id_fkey of fastapi.item still refers to fastapi."user".`,
	}, []string{
		"1 admin@example.com Ada t t 2025-01-01 00:00 2025-01-01 00:00",
		"2 bob@example.com - t f 2025-02-01 00:00 2025-02-01 00:00",
		"3 eve@example.com - f f now now",
	}, "admin@example.com bob@example.com", "eve@example.com"},
	"loose": {"accounts, user, users", []string{
		"5 of 6 accounts of fastapi.accounts are copied, 5 of them in this run.",
		"Account 5, without e-mail: not copied: it has no e-mail address.",
		"Account 2, bob@example.com: its name is cut to 255 characters.",
		"Account 3, gone@example.com: it was marked as deleted, and is inactive.",
		"Account 4, off@example.com: it has no password; " + timesLost,
		"Account 9223372036854775807, big@example.com: " + hashUnknown + ".",
		"2 accounts have a new id: fastapi.latch_users has the old ones.",
		"Latch has no place for the columns role, embedding; they stay in fastapi.accounts.",
		"No account is an active admin. Make one: latch admin EMAIL",
	}, []string{
		"2 bob@example.com " + strings.Repeat("b", 255) + " t f now now",
		"3 gone@example.com - f f now now",
		"4 off@example.com - f f now now",
		"6 admin@example.com Ada Lovelace t f 2024-07-01 12:00 2024-07-02 12:00",
		"7 big@example.com - t f now now",
	}, "admin@example.com bob@example.com", "big@example.com"},
}

// TestFromFastAPI moves the accounts of databases as SQLAlchemy makes them, and logs in to them.
func TestFromFastAPI(t *testing.T) {
	t.Parallel()
	shown := func(column string) string {
		return `CASE WHEN ` + column + ` > now() - interval '1 hour' THEN 'now'
			ELSE to_char(` + column + ` AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') END`
	}
	moved := []string{"The tables of the application are in the schema fastapi now.",
		`Next: run "latch migrate", and then this script again.`}
	for name, row := range fastAPIDatabases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, script := newDatabase(t, ""), readFile(t, "docs/from-fastapi.sql")
			report := slices.Clone(row.report)
			runScript(t, url, readFile(t, "test/fastapi/"+name+".sql"))
			steps := migrations(&config{EmbeddingDimensions: 3, TextSearch: "simple"})
			up := func() error { return migrate(t.Context(), url, steps, false, quiet) }
			err := up()
			if want := "that are not Latch's (" + row.tables + "), so nothing was changed: " +
				"docs/from-fastapi.md says"; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("migrate = %v, want %s", err, want)
			}
			for range 2 {
				if got := runScript(t, url, script); !slices.Equal(got, moved) {
					t.Errorf("before the migration the script reports %q", got)
				}
			}
			if err := up(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if got := runScript(t, url, script); !slices.Equal(got, report) {
					t.Errorf("the script reports %s\nwant %s", strings.Join(got, "\n"),
						strings.Join(report, "\n"))
				}
				first, _, _ := strings.Cut(report[0], ", ")
				report[0] = first + ", 0 of them in this run."
				got := runScript(t, url, `SELECT id, email, coalesce(full_name, '-'), is_active,
					is_admin, `+shown("created_at")+`, `+shown("updated_at")+`
					FROM users ORDER BY id`)
				if !slices.Equal(got, row.users) {
					t.Errorf("the accounts are %s\nwant %s", strings.Join(got, "\n"),
						strings.Join(row.users, "\n"))
				}
			}
			a := newAppOn(t, url, cheap)
			for email := range strings.FieldsSeq(row.login) {
				a.login(email, goodPass)
			}
			a.want(a.tryLogin(row.locked, goodPass), 401, "invalid_credentials")
			a.signUp("new")     // its id is none of the old ones
			if name == "plan" { // with a table items
				page := regexp.MustCompile("(?s)```sql\n(.*?)```")
				runScript(t, url, page.FindStringSubmatch(readFile(t, "docs/from-fastapi.md"))[1])
				got := runScript(t, url, `SELECT title, owner_id FROM items ORDER BY id`)
				if want := []string{"a 1", "b 70"}; !slices.Equal(got, want) {
					t.Errorf("the items are %q, want %q", got, want)
				}
			}
		})
	}
}

// TestFromFastAPIAgain corrects accounts that were not copied, and changes those that were.
func TestFromFastAPIAgain(t *testing.T) {
	t.Parallel()
	url, script := newDatabase(t, template), readFile(t, "docs/from-fastapi.sql")
	runScript(t, url, `CREATE SCHEMA fastapi; SET search_path = fastapi; `+
		readFile(t, "test/fastapi/plan.sql"))
	a := newAppOn(t, url, cheap)
	m := a.signUp("early") // takes the id 1
	report := runScript(t, url, script)
	if want := "1 accounts have a new id: fastapi.latch_users has the old ones."; !slices.Contains(
		report, want) {
		t.Errorf("the report is %q, want %s in it", report, want)
	}
	a.sql(`DELETE FROM users WHERE email = 'bob@example.com'`)
	a.sql(`UPDATE users SET full_name = 'New', is_active = true WHERE email = 'gone@example.com'`)
	runScript(t, url, `UPDATE fastapi.users SET email = 'root@example.com' WHERE id = 6;
		UPDATE fastapi.users SET full_name = 'Old' WHERE id = 4;
		UPDATE fastapi.users SET email = 'early@example.com' WHERE id = 5`)
	report = runScript(t, url, script)
	want := "Account 5, early@example.com: not copied: Latch has another account with its " +
		"e-mail address."
	if !slices.Contains(report, want) || !strings.HasPrefix(report[0], "5 of 6 accounts") ||
		!strings.HasSuffix(report[0], " 1 of them in this run.") {
		t.Errorf("the second report is %q", report)
	}
	got := runScript(t, url, `SELECT id, email, full_name, is_active FROM users ORDER BY id`)
	if want := []string{"1 early@example.com  t", "4 gone@example.com New t",
		"6 root@example.com Root t", "70 old@example.com Old t",
		"71 admin@example.com Ada Lovelace t"}; !slices.Equal(got, want) {
		t.Errorf("the accounts are %q, want %q", got, want)
	}
	a.login("root@example.com", goodPass)
	a.login("admin@example.com", goodPass)
	a.want(a.do("GET", "/api/v1/users/me", m.AccessToken, nil), 200, "")
}

// TestFromFastAPIChecks holds the script's judgement of addresses and hashes against the program's.
func TestFromFastAPIChecks(t *testing.T) {
	t.Parallel()
	url := newDatabase(t, template)
	hashes := []string{phc("m=131072,t=10,p=8", salt16, tag32), phc("m=8,t=1,p=1", salt16, tag32),
		"$2b$04$" + strings.Repeat("a", 53), "$2b$14$" + strings.Repeat("a", 53), "$2b$15$" +
			strings.Repeat("a", 53), "$2x$04$" + strings.Repeat("a", 53), "$2b$04$a", "pläin"}
	for name, hash := range badPHC {
		if !strings.HasSuffix(name, "last bits") && hash != "" { // which no encoder writes
			hashes = append(hashes, hash)
		}
	}
	emails := []string{"a@b.co", "a@b.c", "A.B+c@X-y.example.com", "a@b", "a@b.1", "a..b@x.com",
		".a@x.com", "a.@x.com", "a b@x.com", "a@-b.com", "a@b-.com", "a@b..com", "a@b.com.",
		"@b.com", "a@", "ab.com", `"a"@b.com`, "a@[127.0.0.1]", "Jo <a@b.com>", "jos\u00e9@x.com",
		"a@x\u00e4.com", "\u212a@x.com", "a\u017f@x.com", "#!$%&'*+/=?^_`{|}~-@x.com",
		"a@b@c.com", "a@x_y.com",
		strings.Repeat("a", 64) + "@x.com", strings.Repeat("a", 65) + "@x.com",
		"a@" + strings.Repeat("b", 63) + ".com", "a@" + strings.Repeat("b", 64) + ".com",
		"a@" + strings.Repeat("b.", 124) + "com", "a@" + strings.Repeat("b.", 125) + "com"}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), `CREATE SCHEMA fastapi`)
	if err == nil {
		_, err = conn.Exec(t.Context(), `CREATE TABLE fastapi.users AS
			SELECT row_number() OVER () AS id, email, hash AS password FROM (
			    SELECT email, '' AS hash FROM unnest($1::text[]) email
			    UNION ALL SELECT 'h' || n || '@x.com', hash
			    FROM unnest($2::text[]) WITH ORDINALITY x (hash, n)) rows`, emails, hashes)
	}
	if err != nil {
		t.Fatal(err)
	}
	runScript(t, url, readFile(t, "docs/from-fastapi.sql"))
	for _, email := range emails {
		_, refusal := parseEmail(email)
		var copied bool
		err := conn.QueryRow(t.Context(), `SELECT new_id IS NOT NULL FROM fastapi.latch_users
			JOIN fastapi.users ON id::text = old_id WHERE email = $1`, email).Scan(&copied)
		if err != nil || copied != (refusal == "") {
			t.Errorf("%q is copied: %v, %v; Latch says %q", email, copied, err, refusal)
		}
	}
	for _, hash := range hashes {
		_, _, _, err := parsePHC(hash)
		usable := err == nil || bcryptForm.MatchString(hash)
		var noted bool
		err = conn.QueryRow(t.Context(), `SELECT note IS NOT NULL FROM fastapi.latch_users
			JOIN fastapi.users ON id::text = old_id WHERE password = $1`, hash).Scan(&noted)
		if err != nil || noted == usable {
			t.Errorf("%q is noted: %v, %v; Latch can check it: %v", hash, noted, err, usable)
		}
	}
}
