package main

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// queryCount is how many statements a request makes, and how many it may.
type queryCount struct {
	request   string
	got, want int
}

// countQueries counts what reaches PostgreSQL, with the statements that begin and end a transaction.
func countQueries(t testing.TB) (counts []queryCount) {
	a := newApp(t)
	m, admin := a.signUp("ada"), a.signUpAdmin("root")
	var log logBuffer
	st, err := openStore(t.Context(), a.url, 1, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.close)
	a.server.store = st
	a.alive(m.AccessToken) // opens the connection
	const inTx = 2         // begin and commit
	b := map[string]string{"email": "b@example.com", "password": goodPass}
	for _, row := range []struct {
		method, path, token string
		body                any
		want                int
	}{
		{"GET", "/health", "", nil, 0},
		{"GET", "/users/me", m.AccessToken, nil, 1},
		{"GET", "/users/me", "x", nil, 0},
		{"PUT", "/users/me", m.AccessToken, map[string]string{"full_name": "Ada"}, 1 + inTx + 2}, // lock, update
		{"GET", "/users", admin.AccessToken, nil, 1 + 1},
		{"POST", "/auth/refresh", "", map[string]string{"refresh_token": m.RefreshToken}, 1},
		{"POST", "/auth/register", "", b, 1},
		{"POST", "/auth/login", "", map[string]string{"username": "b@example.com", "password": goodPass}, 1 + inTx + 3}, // look-up; lock, cap, insert
		{"GET", "/auth/sessions", m.AccessToken, nil, 1 + 1},
		{"POST", "/documents", m.AccessToken, map[string]any{"content": "a", "embedding": []int{1, 2, 3}}, 1 + 1},
		{"GET", "/documents", m.AccessToken, nil, 1 + 1},
		{"POST", "/documents/search", m.AccessToken, map[string]any{"embedding": []int{1, 2, 3}}, 1 + 1},
		{"POST", "/auth/logout", m.AccessToken, nil, 1 + 1},
	} {
		before := strings.Count(log.text(), "msg=sql")
		if ans := a.do(row.method, "/api/v1"+row.path, row.token, row.body); ans.status >= 400 && row.token != "x" {
			t.Errorf("%s = %d: %s", ans.call, ans.status, ans.body)
		}
		counts = append(counts, queryCount{row.method + " " + row.path + map[bool]string{true: " with a bad token"}[row.token == "x"], strings.Count(log.text(), "msg=sql") - before, row.want})
	}
	if text := log.text(); strings.Contains(text, "b@example.com") || strings.Contains(text, "argon2") || !strings.Contains(text, "INSERT INTO users") {
		t.Error("the echo of statements holds arguments, or nothing")
	}
	return counts
}

// TestQueriesPerRequest holds the counts: one statement for the token, and those of the request.
func TestQueriesPerRequest(t *testing.T) {
	t.Parallel()
	for _, c := range countQueries(t) {
		if c.got != c.want {
			t.Errorf("%s makes %d queries, want %d", c.request, c.got, c.want)
		}
	}
}

// TestSchemaRefuses proves the constraints that stand behind the checks of the program.
func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	for name, sql := range map[string]string{
		"upper case":       `INSERT INTO users (email, password_hash) VALUES ('A@example.com', '')`,
		"the same e-mail":  `INSERT INTO users (email, password_hash) VALUES ('ada@example.com', '')`,
		"long e-mail":      `INSERT INTO users (email, password_hash) VALUES (repeat('a', 255), '')`,
		"long name":        `UPDATE users SET full_name = repeat('a', 256)`,
		"orphaned session": `INSERT INTO sessions (user_id, expires_at, user_agent) VALUES (99999, now(), '')`,
	} {
		if _, err := a.store.pool.Exec(t.Context(), sql); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	a.sql(`DELETE FROM users WHERE id = $1`, m.ID)
	if got := one[int](t, a.url, `SELECT count(*) FROM sessions`); got != 0 {
		t.Errorf("%d sessions outlive their account", got)
	}
}

// TestErrorsHoldNoValues makes PostgreSQL fail with values in its messages.
func TestErrorsHoldNoValues(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	for _, sql := range []string{`SELECT 'canary'::integer`, `INSERT INTO users (email, password_hash) VALUES ('canary', ''), ('canary', '')`} {
		_, err := a.store.pool.Exec(t.Context(), sql)
		if got := translate(err).Error(); strings.Contains(got, "canary") {
			t.Errorf("translate(%s) = %s", sql, got)
		}
	}
	_, err := a.store.pool.Exec(t.Context(), `SELECT $1::integer`, []string{"canary"}) // pgx itself refuses it
	if got := translate(err); got == nil || strings.Contains(got.Error(), "canary") {
		t.Errorf("an argument of the wrong type: %v", got)
	}
	if _, err := openStore(t.Context(), "postgresql://u:canary@host:port/x", 1, nil); err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("openStore = %v", err)
	}
	if err := migrate(t.Context(), "postgresql://u:canary@host:port/x", nil, true, quiet); err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("migrate = %v", err)
	}
}

// TestSurvivesTerminatedConnections ends every connection of the pool, as a restart does.
func TestSurvivesTerminatedConnections(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	conn, err := pgx.Connect(t.Context(), a.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for range 5 {
		if _, err := conn.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
		eventually(t, "an answer", func() bool {
			ans := a.do("GET", "/api/v1/users/me", m.AccessToken, nil)
			if ans.status != 200 && ans.status != 503 {
				t.Fatalf("%d: %s", ans.status, ans.body)
			}
			return ans.status == 200
		})
	}
}

// TestLockedRow holds a row that a request needs: it answers 503 in time, and goes on afterwards.
func TestLockedRow(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	conn, err := pgx.Connect(t.Context(), a.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	tx, err := conn.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `SELECT FROM users FOR UPDATE`)
	}
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	a.want(a.do("PUT", "/api/v1/users/me", m.AccessToken, `{"full_name":"x"}`), 503, "database_unavailable")
	if took := time.Since(start); took > queryTimeout+time.Second {
		t.Errorf("a locked row held a request for %v", took)
	}
	if !a.alive(m.AccessToken) {
		t.Error("reading waits for the lock")
	}
	tx.Rollback(t.Context())
	a.want(a.do("PUT", "/api/v1/users/me", m.AccessToken, `{"full_name":"x"}`), 200, "")
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
		r, err := newAuthorized(a, m.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		if res, err := client.Do(r); err == nil {
			res.Body.Close()
		}
	}
	eventually(t, "the pool to be idle", func() bool { return a.store.pool.Stat().AcquiredConns() == 0 })
	if opened := a.store.pool.Stat().NewConnsCount() - before; opened > 2 {
		t.Errorf("100 hang-ups opened %d new connections", opened)
	}
}

func TestIsNetwork(t *testing.T) {
	t.Parallel()
	if isNetwork(errors.New("cannot scan")) || isNetwork(nil) {
		t.Error("a fault of the program counts as a lost connection")
	}
	var buf bytes.Buffer
	if _, err := openStore(t.Context(), "postgresql://u@127.0.0.1:1/x", 1, slog.New(slog.NewTextHandler(&buf, nil))); err != nil {
		t.Errorf("openStore with the database away = %v: it reports only faults of the settings", err)
	}
}

func newAuthorized(a *app, token string) (*http.Request, error) {
	r, err := http.NewRequest("GET", a.web.URL+"/api/v1/users/me", nil)
	if err == nil {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r, err
}
