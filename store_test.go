package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// echoingStore opens a store that logs its statements.
func echoingStore(t testing.TB, url string) (*store, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	st, err := openStore(t.Context(), url, 1,
		&statementLog{log: slog.New(slog.NewJSONHandler(log, nil)), echo: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.close)
	return st, log
}

// TestQueriesPerRequest counts what reaches PostgreSQL: one statement for the token, those of the
// request, and those that begin and end its transaction.
func TestQueriesPerRequest(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m, admin := a.signUp("ada"), a.signUpAdmin("root")
	st, log := echoingStore(t, a.url)
	a.server.store = st
	a.accepts(m.AccessToken) // opens the connection
	const inTx = 2           // begin and commit
	b := map[string]string{"email": "b@example.com", "password": goodPass}
	login := map[string]string{"username": "b@example.com", "password": goodPass}
	refresh := map[string]string{"refresh_token": m.RefreshToken}
	document := map[string]any{"content": "a", "embedding": []int{1, 2, 3}}
	nearest := map[string]any{"embedding": []int{1, 2, 3}}
	for _, row := range []struct {
		method, path, token string
		body                any
		want                int
	}{
		{"GET", "/health", "", nil, 0},
		{"GET", "/users/me", m.AccessToken, nil, 1},
		{"GET", "/users/me", "x", nil, 0},
		{"PUT", "/users/me", m.AccessToken, `{"full_name":"Ada"}`, 1 + inTx + 2}, // lock, update
		{"GET", "/users", admin.AccessToken, nil, 1 + 1},
		{"POST", "/auth/refresh", "", refresh, 1},
		{"POST", "/auth/register", "", b, 1},
		{"POST", "/auth/login", "", login, 1 + inTx + 2}, // look-up; lock, insert
		{"GET", "/auth/sessions", m.AccessToken, nil, 1 + 1},
		{"POST", "/documents", m.AccessToken, document, 1 + 1},
		{"GET", "/documents", m.AccessToken, nil, 1 + 1},
		{"POST", "/documents/search", m.AccessToken, nearest, 1 + 1},
		{"POST", "/auth/logout", m.AccessToken, nil, 1 + 1},
	} {
		before := strings.Count(log.text(), `"msg":"sql"`)
		ans := a.do(row.method, "/api/v1"+row.path, row.token, row.body)
		if ans.status >= 400 && row.token != "x" {
			t.Errorf("%s = %d: %s", ans.call, ans.status, ans.body)
		}
		if got := strings.Count(log.text(), `"msg":"sql"`) - before; got != row.want {
			t.Errorf("%s makes %d queries, want %d", ans.call, got, row.want)
		}
	}
	if text := log.text(); strings.Contains(text, "b@example.com") ||
		strings.Contains(text, "argon2") || !strings.Contains(text, "INSERT INTO users") {
		t.Error("the echo of statements holds arguments, or nothing")
	}
}

// TestSlowStatement lets a statement wait for a lock: the log has it with its request, and without
// its arguments.
func TestSlowStatement(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m, log := a.signUp("ada"), &logBuffer{}
	tracer := &statementLog{log: slog.New(slog.NewJSONHandler(log, nil))}
	st, err := openStore(t.Context(), a.url, 1, tracer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.close)
	a.server.store = st
	put := func() answer {
		time.AfterFunc(100*time.Millisecond, hold(t, a.url, `SELECT FROM users FOR UPDATE`))
		return a.do("PUT", "/api/v1/users/me", m.AccessToken, `{"full_name":"canary"}`)
	}
	a.want(put(), 200, "")
	if text := log.text(); text != "" {
		t.Errorf("without a limit the log has %s", text)
	}
	tracer.slow = 50 * time.Millisecond
	check := func(ans answer) {
		t.Helper()
		line := fmt.Sprintf(`"level":"WARN","msg":"slow_statement","request_id":%q,`+
			`"route":"/users/me","duration_ms":`, a.want(ans, 200, "").header.Get("X-Request-Id"))
		if text := log.text(); !strings.Contains(text, line) || strings.Contains(text, "canary") ||
			!strings.Contains(text, `"statement":"SELECT`) {
			t.Errorf("the log of a slow statement is %s, want %s…", text, line)
		}
	}
	check(put())
	time.AfterFunc(100*time.Millisecond, hold(t, a.url, `LOCK TABLE sessions`))
	check(a.do("GET", "/api/v1/users/me", m.AccessToken, nil)) // the look-up of the session
}

// TestErrorsHoldNoValues makes PostgreSQL fail with values in its messages.
func TestErrorsHoldNoValues(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	for _, sql := range []string{
		`SELECT 'canary'::integer`,
		`INSERT INTO users (email, password_hash) VALUES ('canary', ''), ('canary', '')`,
	} {
		_, err := a.store.pool.Exec(t.Context(), sql)
		if got := translate(err).Error(); strings.Contains(got, "canary") {
			t.Errorf("translate(%s) = %s", sql, got)
		}
	}
	// pgx itself refuses an argument of the wrong type.
	_, err := a.store.pool.Exec(t.Context(), `SELECT $1::integer`, []string{"canary"})
	if got := translate(err); got == nil || strings.Contains(got.Error(), "canary") {
		t.Errorf("an argument of the wrong type: %v", got)
	}
	const url = "postgresql://u:canary@host:port/x"
	_, openErr := openStore(t.Context(), url, 1, nil)
	for _, err := range []error{openErr, migrate(t.Context(), url, nil, true, quiet)} {
		if err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("a URL that cannot be read: %v", err)
		}
	}
}

// refuse plays a server or a pooler that ends each connection at once: the n-th, from 0 on, with
// codes(n). It returns the URL.
func refuse(t testing.TB, codes func(n int) string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b := pgproto3.NewBackend(conn, conn)
			b.ReceiveStartupMessage()
			b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: codes(n), Message: "refused"})
			b.Flush()
			conn.Close()
		}
	}()
	return "postgresql://u@" + l.Addr().String() + "/x?sslmode=disable"
}

// TestRefusedConnections: what fails before a statement has run is never the statement's fault.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"55000", "42501", "XX000", "08P01", "22023", "23503", "23505",
		"28P01", "3D000", "53300", "57P03", "58000", "P0001", ""} {
		st, err := openStore(t.Context(), refuse(t, func(int) string { return code }), 2, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer st.close()
		_, err = st.getUser(t.Context(), 1)
		_, _, updateErr := st.updateUser(t.Context(), 1, userChange{})
		if !errors.Is(err, errUnavailable) || !errors.Is(updateErr, errUnavailable) ||
			!errors.Is(st.ping(t.Context()), errUnavailable) {
			t.Errorf("a connection refused with %q: %v, %v", code, err, updateErr)
		}
	}
	for _, code := range []string{"28P01", "3D000", "42704", "22023"} {
		_, err := connectWhenReady(t.Context(), refuse(t, func(n int) string {
			return []string{"08P01", "XX000", code, code, code}[n]
		}), quiet)
		if !sqlState(err, code) && (err == nil || !strings.Contains(err.Error(), code)) {
			t.Errorf("connectWhenReady = %v, want %s after two that are waited for", err, code)
		}
	}
}

// TestFailedStatements: the code of a statement that ran decides, unless it ended the session.
func TestFailedStatements(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	for code, want := range map[string]error{"XX000": errUnavailable, "57P01": errUnavailable,
		"08006": errUnavailable, "54000": errUnavailable, "58030": errUnavailable,
		"22023": errInvalidRequest, "23503": errNotFound, "42501": nil, "XX001": nil} {
		fail := `DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '` + code + `'; END $$`
		for _, run := range []runner{a.store.run, a.store.runIdempotent,
			a.store.runLimited("body")} {
			_, err := exec(t.Context(), run, fail)
			_, isProblem := errors.AsType[*problem](err)
			limited := code == "54000" && errors.Is(err, errInvalidRequest) // by the client's words
			internal := want == nil && err != nil && !isProblem
			if !errors.Is(err, want) && !limited && !internal {
				t.Errorf("a statement that fails with %s: %v, want %v", code, err, want)
			}
		}
		ended := translate(&pgconn.PgError{Code: code, Severity: "FATAL"})
		if !errors.Is(ended, errUnavailable) {
			t.Errorf("a session ended with %s: %v", code, ended)
		}
	}
}

// TestOnConstraint violates a foreign key and a unique index, which may have refusals of their own.
func TestOnConstraint(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	a.signUp("ada")
	own := newProblem(409, "own", "Own.")
	for constraint, sql := range map[string]string{
		"sessions_user_id_fkey": `INSERT INTO sessions (id, user_id, expires_at, user_agent)
			VALUES (1, 77, now(), '')`,
		"users_email_key": `INSERT INTO users (email, password_hash) SELECT email, '' FROM users`,
	} {
		_, err := exec(t.Context(), a.store.run, sql)
		if got := onConstraint(err, constraint, own); got != own {
			t.Errorf("onConstraint(%v, %s) = %v", err, constraint, got)
		}
		if got := onConstraint(err, "other", own); got != err || err == nil {
			t.Errorf("onConstraint(%v, other) = %v", err, got)
		}
	}
}

// TestSurvivesTerminatedConnections ends every connection of the pool, as a restart does.
func TestSurvivesTerminatedConnections(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	for range 5 {
		one[int](t, a.url, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		eventually(t, "an answer", func() bool {
			ans := a.do("GET", "/api/v1/users/me", m.AccessToken, nil)
			if ans.status != 200 && ans.status != 503 {
				t.Fatalf("%d: %s", ans.status, ans.body)
			}
			return ans.status == 200
		})
	}
}

// hold begins a transaction with a statement, and returns the function that ends it.
func hold(t testing.TB, url, sql string) (end func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err == nil {
		_, err = conn.Exec(t.Context(), `BEGIN`)
	}
	if err == nil {
		_, err = conn.Exec(t.Context(), sql)
	}
	if err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { conn.Close(context.Background()) })
	t.Cleanup(end)
	return end
}

// TestLockedRow holds a row that a request needs: it answers 503 in time, and goes on afterwards.
func TestLockedRow(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	end := hold(t, a.url, `SELECT FROM users FOR UPDATE`)
	start := time.Now()
	put := func() answer {
		return a.do("PUT", "/api/v1/users/me", m.AccessToken, `{"full_name":"x"}`)
	}
	a.want(put(), 503, "database_unavailable")
	if took := time.Since(start); took > queryTimeout+time.Second {
		t.Errorf("a locked row held a request for %v", took)
	}
	if !a.accepts(m.AccessToken) {
		t.Error("reading waits for the lock")
	}
	end()
	a.want(put(), 200, "")
}

// TestHangUp lets clients go in mid-request: it costs no connection of the pool.
func TestHangUp(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(c *config) { c.DatabaseMaxConns = 2 })
	m := a.signUp("ada")
	before := a.store.pool.Stat().NewConnsCount()
	client := *a.web.Client()
	client.Timeout = time.Millisecond
	for range 100 {
		r, err := http.NewRequest("GET", a.web.URL+"/api/v1/users/me", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+m.AccessToken)
		if res, err := client.Do(r); err == nil {
			res.Body.Close()
		}
	}
	eventually(t, "an idle pool", func() bool { return a.store.pool.Stat().AcquiredConns() == 0 })
	if opened := a.store.pool.Stat().NewConnsCount() - before; opened > 2 {
		t.Errorf("100 hang-ups opened %d new connections", opened)
	}
}

// TestPanics panics in more statements than there are connections: each goes back to the pool.
func TestPanics(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(c *config) { c.DatabaseMaxConns = 2 })
	for range 3 {
		func() {
			defer func() { recover() }()
			a.store.run(t.Context(), func(context.Context, querier) error { panic("a cause") })
		}()
	}
	a.want(a.do("GET", "/api/v1/health/db", "", nil), 200, "")
}

// TestTimeoutStart waits for a connection: the time-out of the statement begins afterwards, so that
// PostgreSQL's, which keeps the connection, ends first.
func TestTimeoutStart(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	const wait = 300 * time.Millisecond
	time.AfterFunc(wait, occupy(t, &a.store.conns))
	err := a.store.run(t.Context(), func(ctx context.Context, _ querier) error {
		end, _ := ctx.Deadline()
		if left := time.Until(end); left < queryTimeout-wait/2 {
			t.Errorf("a statement has %v after a wait of %v, want %v", left, wait, queryTimeout)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestIsNetwork(t *testing.T) {
	t.Parallel()
	if isLostConnection(errors.New("cannot scan")) || isLostConnection(nil) {
		t.Error("a fault of the program counts as a lost connection")
	}
	if _, err := openStore(t.Context(), "postgresql://u@127.0.0.1:1/x", 1, nil); err != nil {
		t.Errorf("openStore with the database away = %v: that is no fault of the settings", err)
	}
}

// TestBatches makes a thousand look-ups at once and sees each served once, with the others.
func TestBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var inProgress, statements atomic.Int32
		b := newBatcher(func(_ context.Context, batch []*lookup) error {
			statements.Add(1)
			if now := inProgress.Add(1); now > lookupBatches || len(batch) > lookupBatch {
				t.Errorf("%d statements at once, one of %d look-ups", now, len(batch))
			}
			defer inProgress.Add(-1)
			time.Sleep(10 * time.Millisecond) // the others come meanwhile
			for _, l := range batch {
				l.account.ID += l.ref.user
			}
			return nil
		})
		const n = 1000
		parallel(n, func(i int) {
			u, err := b.do(t.Context(), sessionRef{user: int64(i)})
			if u.ID != int64(i) || err != nil {
				t.Errorf("look-up %d = account %d, %v", i, u.ID, err)
			}
		})
		if got := statements.Load(); got > n/lookupBatch+2*lookupBatches {
			t.Errorf("%d look-ups made %d statements", n, got)
		}
	})
}

// TestBatchFails proves that a fault is everybody's who shared the statement, and nobody's after,
// and that a panic wakes all and keeps no slot.
func TestBatchFails(t *testing.T) {
	t.Parallel()
	cause := errors.New("a fault")
	for name, fault := range map[string]func() error{
		"error": func() error { return cause },
		"panic": func() error { panic(cause) },
	} {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			var statements atomic.Int32
			b := newBatcher(func(_ context.Context, batch []*lookup) error {
				if batch[0].ref.user == 0 {
					<-release
				} else if statements.Add(1) == 1 {
					return fault()
				}
				return nil
			})
			var failed atomic.Int32
			do := func(int) {
				defer func() {
					if recover() != nil { // as the server does for the request
						failed.Add(1)
					}
				}()
				if _, err := b.do(t.Context(), sessionRef{user: 1}); err != nil {
					failed.Add(1)
				}
			}
			for range lookupBatches {
				go b.do(t.Context(), sessionRef{})
			}
			synctest.Wait()
			go parallel(50, do)
			synctest.Wait()
			release <- struct{}{} // now one of them gets the slot, with all the others
			synctest.Wait()
			if f, s := failed.Load(), statements.Load(); f != 50 || s != 1 {
				t.Errorf("%s: %d of 50 failed, in %d statements", name, f, s)
			}
			parallel(50, do)
			close(release)
			synctest.Wait()
			if f := failed.Load(); f != 50 || len(b.slots) != 0 {
				t.Errorf("%s: %d failed after it, and %d slots are taken", name, f-50, len(b.slots))
			}
		})
	}
}

// TestBatchHangs proves that statements which hang do not hold up the look-ups behind them, that
// nobody has to wait for its answer, and that a client that goes does not fail the others.
func TestBatchHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		b := newBatcher(func(ctx context.Context, batch []*lookup) error {
			if batch[0].ref.user == 0 {
				<-release
			}
			return ctx.Err()
		})
		gone, leave := context.WithCancel(t.Context())
		for range lookupBatches {
			go b.do(gone, sessionRef{})
		}
		synctest.Wait()
		start := time.Now()
		parallel(20, func(int) {
			if _, err := b.do(t.Context(), sessionRef{user: 1}); err != nil {
				t.Errorf("a look-up behind = %v", err)
			}
		})
		if took := time.Since(start); took != lookupWait {
			t.Errorf("look-ups behind took %v, want %v", took, lookupWait)
		}
		go func() { time.Sleep(time.Millisecond); leave() }()
		if _, err := b.do(gone, sessionRef{user: 1}); !errors.Is(err, context.Canceled) {
			t.Errorf("the look-up of a client that goes = %v", err)
		}
		close(release)
		other := &lookup{done: make(chan struct{})}
		b.runBatch(gone, []*lookup{{done: make(chan struct{})}, other})
		if other.err != nil {
			t.Errorf("a look-up with that of a client that has gone = %v", other.err)
		}
	})
}

// TestLookups makes look-ups of 5,000 accounts, each with a session of the same id.
func TestLookups(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	st, log := echoingStore(t, a.url)
	a.sql(`INSERT INTO users (email, password_hash)
		SELECT 'u' || i || '@example.com', '' FROM generate_series(1, 5000) i`)
	a.sql(`INSERT INTO sessions (id, user_id, expires_at, user_agent)
		SELECT id, id, now() + interval '1 day', '' FROM users`)
	a.sql(`UPDATE sessions SET expires_at = now() WHERE id = 201`)
	a.sql(`UPDATE users SET is_active = false WHERE id = 301`)
	a.sql(`DELETE FROM users WHERE id = 401`)
	a.sql(`ANALYZE`)
	const never = 99999999999
	refs := []sessionRef{{501, 601, never}, {601, 601, 1}} // not the user's; an expired token
	for i := range int64(60) {
		refs = append(refs, sessionRef{1 + i/2*100, 1 + i/2*100, never}) // each twice
	}
	var batch []*lookup
	for _, ref := range refs {
		batch = append(batch, &lookup{ref: ref})
	}
	if err := st.runLookups(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	for i, l := range batch {
		ended := i < 2 || l.ref.user == 201 || l.ref.user == 301 || l.ref.user == 401
		if ended && l.err != errNotFound || !ended && (l.err != nil || l.account.ID != l.ref.user) {
			t.Errorf("look-up %+v = account %d, %v", l.ref, l.account.ID, l.err)
		}
	}
	if got := strings.Count(log.text(), "JOIN users"); got != 1 {
		t.Errorf("%d look-ups made %d statements, want 1", len(batch), got)
	}

	a.sql(`ALTER TABLE sessions RENAME TO away`)
	if _, err := st.sessionUser(t.Context(), sessionRef{7, 7, never}); err == nil ||
		errors.Is(err, errNotFound) {
		t.Errorf("a look-up without the table = %v: that is no ended session", err)
	}
	a.sql(`ALTER TABLE away RENAME TO sessions`)
	if u, err := st.sessionUser(t.Context(), sessionRef{7, 7, never}); err != nil || u.ID != 7 {
		t.Errorf("a look-up after the fault = account %d, %v", u.ID, err)
	}

	name, err := queryOne(t.Context(), st.run, pgx.RowTo[string],
		`SELECT name FROM pg_prepared_statements WHERE statement LIKE '%ORDINALITY%'
		ORDER BY prepare_time`)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := queryAll(t.Context(), st.run, pgx.RowTo[string],
		`EXPLAIN EXECUTE `+name+`('{7,8}', '{7,8}', '{7,8}')`, pgx.QueryExecModeSimpleProtocol)
	plan := strings.Join(lines, "\n")
	rest := strings.Replace(plan, "Seq Scan on vector_indexes", "", 1) // which is empty here
	if err != nil || strings.Contains(rest, "Seq Scan") || strings.Count(plan, "Index Scan") != 2 {
		t.Errorf("the plan of a look-up (%v):\n%s", err, plan)
	}
}

// holdBatches begins a batch of 500 documents for each member and returns when as many as may be
// are in progress, with the locks that their foreign key takes on the owner. They stay so until
// release, which waits for their ends.
func holdBatches(a *app, inProgress int, members ...member) (release func()) {
	a.t.Helper()
	a.sql(`CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END'`)
	a.sql(`CREATE TRIGGER hold AFTER INSERT ON documents
		FOR EACH STATEMENT EXECUTE FUNCTION hold()`)
	end := hold(a.t, a.url, `SELECT pg_advisory_xact_lock(1)`)
	const document = `{"content":"a","embedding":[1,2,3]}`
	body := `{"documents":[` + strings.Repeat(document+",", 499) + document + `]}`
	var batches sync.WaitGroup
	for _, m := range members {
		batches.Go(func() {
			ans := a.do("POST", docsPath+"/batch", m.AccessToken, body)
			if ans.status != 201 && ans.status != 401 { // one that waited may find the account gone
				a.t.Errorf("a batch = %d: %s", ans.status, ans.body)
			}
		})
	}
	const waiting = `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	eventually(a.t, "the batches", func() bool {
		return one[int](a.t, a.url, waiting) == inProgress
	})
	return func() { end(); batches.Wait() }
}

// TestRevocation revokes while batches of the same users are in progress, and waits for none.
func TestRevocation(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(c *config) { c.DatabaseMaxConns = 16 }) // 4 batches, 2 of one user
	root, ada, bob := a.signUpAdmin("root"), a.signUp("ada"), a.signUp("bob")
	laptop := a.login(ada.Email, goodPass)
	release := holdBatches(a, 3, ada, ada, ada, bob)
	start := time.Now()
	soon := func() {
		t.Helper()
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
		start = time.Now()
	}
	path := fmt.Sprintf("/api/v1/users/%d", ada.ID)
	current := `"current_password":"` + goodPass + `"}`
	for _, row := range []struct{ method, path, token, body string }{
		{"PUT", path, root.AccessToken, `{"email":"lovelace@example.com"}`},
		{"POST", "/api/v1/auth/logout", laptop.AccessToken, `{}`},
		{"PUT", "/api/v1/users/me", ada.AccessToken, `{"password":"a new canary pass",` + current},
		{"PUT", path, root.AccessToken, `{"password":"a third canary passphrase"}`},
		{"PUT", path, root.AccessToken, `{"is_active":false}`},
	} {
		if ans := a.do(row.method, row.path, row.token, row.body); ans.status >= 400 {
			t.Errorf("%s = %d: %s", ans.call, ans.status, ans.body)
		}
		soon()
	}
	deleted := make(chan answer, 2)
	go func() { deleted <- a.do("DELETE", path, root.AccessToken, nil) }()
	go func() { deleted <- a.do("DELETE", "/api/v1/users/me", bob.AccessToken, `{`+current) }()
	eventually(t, "the tokens to end", func() bool { return !a.accepts(bob.AccessToken) })
	soon()
	a.login(root.Email, goodPass)
	soon()
	if len(deleted) > 0 {
		t.Error("a deletion did not wait for the batches: this test proves nothing")
	}
	release()
	a.want(<-deleted, 204, "")
	a.want(<-deleted, 204, "")
	if got := one[int](t, a.url, `SELECT count(*) FROM documents`); got != 0 {
		t.Errorf("%d documents outlive their owners", got)
	}
}

// TestRestore goes back to a copy of the database, in which the next account gets the id of one
// that came after the copy: the tokens of that one open nothing.
func TestRestore(t *testing.T) {
	t.Parallel()
	before := newAppOn(t, newDatabase(t, template), cheap)
	before.signUp("root")
	before.store.close() // a database that is in use cannot be copied
	backup := newDatabase(t, before.store.pool.Config().ConnConfig.Database)
	ada := newAppOn(t, before.url, cheap).signUp("ada")
	a := newAppOn(t, backup, cheap)
	bob := a.signUp("bob")
	if ada.ID != bob.ID {
		t.Errorf("Ada is account %d, and Bob %d: this test proves nothing", ada.ID, bob.ID)
	}
	if a.accepts(ada.AccessToken) {
		t.Error("the access token of another account's session is accepted")
	}
	a.want(a.refresh(ada.RefreshToken), 401, "invalid_refresh_token")
	for _, token := range []string{ada.AccessToken, ada.RefreshToken} {
		a.want(a.do("POST", "/api/v1/auth/revoke", "", map[string]string{"token": token}), 200, "")
	}
	if !a.accepts(bob.AccessToken) {
		t.Error("a token of before the restore has ended a session of after it")
	}
}

// citusTracer keeps the statements of requests that Citus would refuse where documents is
// distributed by owner_id and all other tables are local: see docs/citus.md.
type citusTracer struct {
	mu      sync.Mutex
	refused []string
}

func (c *citusTracer) TraceQueryStart(
	ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData,
) context.Context {
	if requestOf(ctx).route == "" || citusTakes(data.SQL) { // without a route it is a test's own
		return ctx
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = append(c.refused, data.SQL)
	return ctx
}

func (*citusTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

var (
	ofDocuments = regexp.MustCompile(`(FROM|JOIN|INTO|UPDATE) documents\b`)
	ofOneOwner  = regexp.MustCompile(`INSERT INTO|owner_id = (\$\d|\d)`)
	localTables = regexp.MustCompile(`\b(` + strings.Join(slices.DeleteFunc(
		submatches(`CREATE TABLE (\w+)`, schemaSQL),
		func(name string) bool { return name == "documents" }), "|") + `)\b`)
	returnsParameter = regexp.MustCompile(`(?s)INSERT INTO.*RETURNING.*\$\d`)
)

// citusTakes reports whether Citus can send a statement to the one node that has the documents of
// an owner: it names the owner and no local table, and an INSERT returns no parameter.
func citusTakes(sql string) bool {
	return !ofDocuments.MatchString(sql) || ofOneOwner.MatchString(sql) &&
		!localTables.MatchString(sql) && !returnsParameter.MatchString(sql)
}

func TestCitusTakes(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]bool{
		`SELECT id FROM users WHERE id = $1`:                                       true,
		`SELECT id FROM documents d WHERE d.owner_id = $1`:                         true,
		`SELECT id FROM documents WHERE owner_id = 7 ORDER BY id`:                  true,
		`INSERT INTO documents (owner_id) SELECT $1 RETURNING id`:                  true,
		`UPDATE documents SET metadata = $2 WHERE owner_id = $1 RETURNING $2`:      true,
		`SELECT id FROM documents WHERE id = $1`:                                   false,
		`INSERT INTO documents AS d (owner_id) SELECT $1 RETURNING id, $2`:         false,
		`SELECT d.id FROM documents d JOIN sessions ON true WHERE owner_id = $1`:   false,
		`DELETE FROM documents WHERE owner_id = $1 AND EXISTS (SELECT FROM users)`: false,
	} {
		if got := citusTakes(sql); got != want {
			t.Errorf("citusTakes(%s) = %t, want %t", sql, got, want)
		}
	}
}

// TestCitus runs deploy/citus.sql, without what only Citus has: the documents of a deleted account
// go, as with the foreign key, and a key is taken where its index has the name of a shard.
func TestCitus(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	sql, err := os.ReadFile("deploy/citus.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, function := range []string{"create_distributed_table(regclass, text)",
		"truncate_local_data_after_distributing_table(regclass)"} {
		a.sql(`CREATE FUNCTION ` + function + ` RETURNS void LANGUAGE sql AS ''`)
	}
	name := one[string](t, a.url, `SELECT current_database()`)
	a.sql(strings.ReplaceAll(string(sql), "app_db", name), pgx.QueryExecModeSimpleProtocol)
	a.sql(`ALTER INDEX documents_key_idx RENAME TO documents_key_idx_102008`)
	m, other := a.signUp("ada"), a.signUp("bob")
	body := `{"content":"a","embedding":[1,2,3],"key":"k"}`
	for _, member := range []member{m, other} {
		a.createDocument(member.AccessToken, body)
		a.want(a.do("POST", docsPath, member.AccessToken, body), 409, "key_taken")
	}
	a.want(a.do("DELETE", "/api/v1/users/me", m.AccessToken,
		map[string]string{"current_password": goodPass}), 204, "")
	if got := one[int64](t, a.url, `SELECT sum(owner_id)::bigint FROM documents`); got != other.ID {
		t.Errorf("after the deletion of account %d the documents belong to %d, want %d", m.ID, got,
			other.ID)
	}
}
