package main

import (
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// lookupApp has 5,000 accounts, each with a session of the same id, and a store that logs its statements.
func lookupApp(t *testing.T) (*app, *store, *logBuffer) {
	a := newApp(t)
	a.sql(`INSERT INTO users (email, password_hash) SELECT 'u' || i || '@example.com', '' FROM generate_series(1, 5000) i`)
	a.sql(`INSERT INTO sessions (user_id, expires_at, user_agent) SELECT id, now() + interval '1 day', '' FROM users ORDER BY id`)
	a.sql(`ANALYZE`)
	log := &logBuffer{}
	st, err := openStore(t.Context(), a.url, 4, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.close)
	st.lookups.overtime = time.Minute
	return a, st, log
}

const never = 99999999999 // when the tokens of these tests expire

// gather makes n look-ups while the table of sessions is locked, the first maxFlying of which are made alone, runs
// change in the transaction that holds the lock, and returns what each look-up said.
func gather(t *testing.T, a *app, st *store, n int, session func(i int) int64, change string) (accounts []user, errs []error) {
	t.Helper()
	tx, err := a.store.pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `LOCK TABLE sessions`)
	}
	if err != nil {
		t.Fatal(err)
	}
	accounts, errs = make([]user, n), make([]error, n)
	flying, finished := make(chan struct{}), make(chan struct{})
	go func() {
		parallel(n, func(i int) {
			if i >= maxFlying {
				<-flying
			}
			errs[i] = st.authenticate(ticket{session(i), session(i), never}, &accounts[i])
		})
		close(finished)
	}()
	eventually(t, "the first look-ups to fly", func() bool { return st.pool.Stat().AcquiredConns() == maxFlying })
	close(flying)
	eventually(t, "the look-ups to gather", func() bool {
		st.lookups.mu.Lock()
		defer st.lookups.mu.Unlock()
		return len(st.lookups.waiting) == n-maxFlying
	})
	if _, err = tx.Exec(t.Context(), change); err == nil {
		err = tx.Commit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	<-finished
	return accounts, errs
}

// TestLookupsGather proves that look-ups which share a query each get their own answer.
func TestLookupsGather(t *testing.T) {
	t.Parallel()
	a, st, log := lookupApp(t)
	const n = 60
	accounts, errs := gather(t, a, st, n, func(i int) int64 { return int64(1 + i/2*100) }, // each twice
		`UPDATE sessions SET expires_at = now() WHERE id = 201; UPDATE users SET is_active = false WHERE id = 301; DELETE FROM users WHERE id = 401`)
	for i := range n {
		id := int64(1 + i/2*100)
		if dead := id == 201 || id == 301 || id == 401; dead != errors.Is(errs[i], errNotFound) || !dead && (accounts[i].ID != id || errs[i] != nil) {
			t.Errorf("look-up of %d = account %d, %v", id, accounts[i].ID, errs[i])
		}
	}
	if got := strings.Count(log.text(), "JOIN users"); got != maxFlying+1 {
		t.Errorf("%d look-ups made %d queries, want %d", n, got, maxFlying+1)
	}
}

// TestLookupsFailTogether proves that a fault is everybody's who shared the query, and nobody's after it.
func TestLookupsFailTogether(t *testing.T) {
	t.Parallel()
	a, st, _ := lookupApp(t)
	_, errs := gather(t, a, st, 20, func(i int) int64 { return int64(i + 1) }, `ALTER TABLE sessions RENAME TO away`)
	for i, err := range errs {
		if err == nil || errors.Is(err, errNotFound) {
			t.Errorf("look-up %d without the table = %v", i, err)
		}
	}
	a.sql(`ALTER TABLE away RENAME TO sessions`)
	var u user
	if err := st.authenticate(ticket{7, 7, never}, &u); err != nil || u.ID != 7 || st.lookups.flying != 0 {
		t.Errorf("after a fault: account %d, %v, %d in flight", u.ID, err, st.lookups.flying)
	}
	if err := st.authenticate(ticket{7, 7, 1}, &u); !errors.Is(err, errNotFound) {
		t.Errorf("an expired token: %v", err)
	}
}

// TestLookupsOvertake proves that queries which hang do not hold up the others.
func TestLookupsOvertake(t *testing.T) {
	t.Parallel()
	_, st, _ := lookupApp(t)
	st.lookups.overtime, st.lookups.flying = time.Millisecond, maxFlying // which never land
	parallel(20, func(i int) {
		var u user
		if err := st.authenticate(ticket{int64(i + 1), int64(i + 1), never}, &u); err != nil || u.ID != int64(i+1) {
			t.Errorf("look-up %d = account %d, %v", i+1, u.ID, err)
		}
	})
	if st.lookups.flying != maxFlying || st.lookups.waiting != nil {
		t.Errorf("then %d fly and %d wait, want %d and none", st.lookups.flying, len(st.lookups.waiting), maxFlying)
	}
}

// TestLookupsUseIndexes looks at the plans of the one query that every request makes, alone and together.
func TestLookupsUseIndexes(t *testing.T) {
	t.Parallel()
	a, st, log := lookupApp(t)
	gather(t, a, st, 10, func(i int) int64 { return int64(i + 1) }, `SELECT 1`)
	plans := map[string]bool{}
	for entry := range strings.Lines(log.text()) {
		_, after, _ := strings.Cut(entry, "statement=")
		quoted, _ := strconv.QuotedPrefix(after)
		sql, err := strconv.Unquote(quoted)
		if err != nil || plans[sql] || !strings.Contains(sql, "JOIN users") {
			continue
		}
		plans[sql] = true
		args := `(7, 7, 7)`
		if strings.Contains(sql, "unnest") {
			args = `('{7,8}', '{7,8}', '{7,8}')`
		}
		tx, err := a.store.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err = tx.Exec(t.Context(), `PREPARE look_up AS `+sql); err != nil {
			t.Fatal(err)
		}
		rows, _ := tx.Query(t.Context(), `EXPLAIN EXECUTE look_up `+args, pgx.QueryExecModeSimpleProtocol)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if plan := strings.Join(lines, "\n"); err != nil || strings.Contains(plan, "Seq Scan") || strings.Count(plan, "Index Scan") != 2 {
			t.Errorf("plan (%v):\n%s", err, plan)
		}
		tx.Exec(t.Context(), `DEALLOCATE look_up`)
		tx.Rollback(t.Context())
	}
	if len(plans) != 2 {
		t.Errorf("%d statements, want 2", len(plans))
	}
}

// TestTicketsAreRemembered proves that the tickets of tokens are the same at each request, that there is never one for
// what is no token, and that there is an end to them.
func TestTicketsAreRemembered(t *testing.T) {
	t.Parallel()
	k := newKeyring([]string{testKey}, time.Minute)
	token := func(i int64) string {
		return k.issue(session{ID: i, UserID: 2 * i, RotatedAt: time.Unix(1000, 0)}).AccessToken
	}
	for i := range int64(3*rememberTokens + 10) {
		got, ok := k.checkAccess(token(i/2 + 1)) // each twice
		if want := (ticket{i/2 + 1, 2 * (i/2 + 1), 1060}); got != want || !ok {
			t.Fatalf("checkAccess(%d) = %v %v, want %v", i, got, ok, want)
		}
	}
	if young, old := len(k.known.young), len(k.known.old); old != rememberTokens || young > rememberTokens {
		t.Errorf("%d young and %d old tickets are kept, want %d at most each", young, old, rememberTokens)
	}
	for _, bad := range []string{"", "x", token(1) + "x", token(1)[1:], k.issue(session{ID: 1, UserID: 1}).RefreshToken} {
		if got, ok := k.checkAccess(bad); ok || got != (ticket{}) {
			t.Errorf("checkAccess of no access token = %v %v", got, ok)
		}
	}
}
