package main

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"
)

// TestGathering makes many calls at once, some of which panic, and sees each served once, in company.
func TestGathering(t *testing.T) {
	t.Parallel()
	type args struct{ n, result int }
	var flying, statements, most atomic.Int32
	g := newGathering(2, nil, func(calls []*call[*args]) error {
		if now := flying.Add(1); now > 2 || len(calls) > maxTogether {
			t.Errorf("%d statements at once, one of %d calls", now, len(calls))
		}
		defer flying.Add(-1)
		statements.Add(1)
		most.Store(max(most.Load(), int32(len(calls))))
		time.Sleep(10 * time.Millisecond) // the others come meanwhile
		for _, c := range calls {
			if c.args.n%500 == 0 {
				panic("canary of a call")
			}
			c.args.result += c.args.n
			c.err = errNotFound
		}
		return nil
	})
	g.overtime = time.Minute
	const n = 1000
	var panics atomic.Int32
	parallel(n, func(i int) {
		a := args{n: i}
		err := g.do(&a)
		if err != errNotFound && strings.Contains(err.Error(), "panic in a shared statement") {
			panics.Add(1)
		} else if err != errNotFound || a.result != i {
			t.Errorf("call %d = %d, %v", i, a.result, err)
		}
	})
	if p, s, m := panics.Load(), statements.Load(), most.Load(); p < n/500 || p == n || s > n/2 || m != maxTogether {
		t.Errorf("%d calls made %d statements of up to %d calls; %d had a panic", n, s, m, p)
	}
	if g.flying != 0 || g.waiting != nil {
		t.Errorf("then %d fly and %d wait", g.flying, len(g.waiting))
	}
}

// gatherApp has 5,000 accounts, each with a session of the same id, and a store that logs its statements.
func gatherApp(t *testing.T) (*app, *store, *logBuffer) {
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
	st.lookups.overtime, st.rotations.overtime, st.insertions.overtime = time.Minute, time.Minute, time.Minute
	return a, st, log
}

const never = 99999999999 // when the tokens of these tests expire

// gather makes n calls of g while a table is locked, as many as may fly before the others, runs change in the
// transaction that holds the lock, and returns what each call said.
func gather[A any](t *testing.T, a *app, st *store, g *gathering[A], table string, n int, call func(i int) error, change string) (errs []error) {
	t.Helper()
	tx, err := a.store.pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `LOCK TABLE `+table)
	}
	if err != nil {
		t.Fatal(err)
	}
	errs = make([]error, n)
	flying, finished := make(chan struct{}), make(chan struct{})
	go func() {
		parallel(n, func(i int) {
			if i >= g.maxFlying {
				<-flying
			}
			errs[i] = call(i)
		})
		close(finished)
	}()
	eventually(t, "the first calls to fly", func() bool { return int(st.pool.Stat().AcquiredConns()) == g.maxFlying })
	close(flying)
	eventually(t, "the calls to gather", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.waiting) == n-g.maxFlying
	})
	if _, err = tx.Exec(t.Context(), change); err == nil {
		err = tx.Commit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	<-finished
	return errs
}

// gatherLookups is gather for look-ups of sessions.
func gatherLookups(t *testing.T, a *app, st *store, n int, session func(i int) int64, change string) (accounts []user, errs []error) {
	t.Helper()
	accounts = make([]user, n)
	return accounts, gather(t, a, st, st.lookups, "sessions", n, func(i int) error {
		return st.authenticate(ticket{session(i), session(i), never}, &accounts[i])
	}, change)
}

// TestLookupsGather proves that look-ups which share a query each get their own answer.
func TestLookupsGather(t *testing.T) {
	t.Parallel()
	a, st, log := gatherApp(t)
	const n = 60
	accounts, errs := gatherLookups(t, a, st, n, func(i int) int64 { return int64(1 + i/2*100) }, // each twice
		`UPDATE sessions SET expires_at = now() WHERE id = 201; UPDATE users SET is_active = false WHERE id = 301; DELETE FROM users WHERE id = 401`)
	for i := range n {
		id := int64(1 + i/2*100)
		if dead := id == 201 || id == 301 || id == 401; dead != errors.Is(errs[i], errNotFound) || !dead && (accounts[i].ID != id || errs[i] != nil) {
			t.Errorf("look-up of %d = account %d, %v", id, accounts[i].ID, errs[i])
		}
	}
	if got := strings.Count(log.text(), "JOIN users"); got != maxLookups+1 {
		t.Errorf("%d look-ups made %d queries, want %d", n, got, maxLookups+1)
	}
}

// TestLookupsFailTogether proves that a fault is everybody's who shared the query, and nobody's after it.
func TestLookupsFailTogether(t *testing.T) {
	t.Parallel()
	a, st, _ := gatherApp(t)
	_, errs := gatherLookups(t, a, st, 20, func(i int) int64 { return int64(i + 1) }, `ALTER TABLE sessions RENAME TO away`)
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
	_, st, _ := gatherApp(t)
	st.lookups.overtime, st.lookups.flying = time.Millisecond, maxLookups // which never land
	parallel(20, func(i int) {
		var u user
		if err := st.authenticate(ticket{int64(i + 1), int64(i + 1), never}, &u); err != nil || u.ID != int64(i+1) {
			t.Errorf("look-up %d = account %d, %v", i+1, u.ID, err)
		}
	})
	eventually(t, "the queries beside them to land", func() bool {
		st.lookups.mu.Lock()
		defer st.lookups.mu.Unlock()
		return st.lookups.flying == maxLookups && st.lookups.waiting == nil
	})
}

func rotationOf(id int64) rotation {
	return rotation{ticket: ticket{id, id, never}, idle: time.Hour, absolute: 24 * time.Hour, grace: time.Minute}
}

// TestRotationsGather proves that refreshes which share a statement each get their own session, that one which comes
// twice is one, and that the ended and the stolen are told from the others.
func TestRotationsGather(t *testing.T) {
	t.Parallel()
	a, st, log := gatherApp(t)
	a.sql(`UPDATE sessions SET generation = 5, rotated_at = now() - interval '1 hour' WHERE id = 501`)
	const n = 40
	id := func(i int) int64 { return int64(1 + i/2*100) } // each twice
	sessions := make([]session, n)
	errs := gather(t, a, st, st.rotations, "sessions", n, func(i int) (err error) {
		sessions[i], err = st.rotateSession(rotationOf(id(i)))
		return err
	}, `UPDATE sessions SET expires_at = now() WHERE id = 201; UPDATE users SET is_active = false WHERE id = 301; DELETE FROM users WHERE id = 401`)
	for i, s := range sessions {
		switch dead := id(i) == 201 || id(i) == 301 || id(i) == 401; {
		case dead && !errors.Is(errs[i], errNotFound), id(i) == 501 && !errors.Is(errs[i], errRefreshReused) && !errors.Is(errs[i], errNotFound):
			t.Errorf("rotation of %d = %v", id(i), errs[i])
		case !dead && id(i) != 501 && (errs[i] != nil || s.ID != id(i) || s.UserID != id(i) || s.Generation != 1 || s.ExpiresAt.Sub(s.RotatedAt) != time.Hour || s != sessions[i^1]):
			t.Errorf("rotation of %d = %+v, %v; its twin %+v", id(i), s, errs[i], sessions[i^1])
		}
	}
	if !errors.Is(errs[10], errRefreshReused) && !errors.Is(errs[11], errRefreshReused) {
		t.Errorf("a token that was replaced an hour ago: %v, %v", errs[10], errs[11])
	}
	if got := strings.Count(log.text(), "WITH t AS"); got != maxRotations+1 {
		t.Errorf("%d rotations shared %d statements, want %d", n, got, maxRotations+1)
	}
}

// TestInsertsGather proves that documents which share a statement are each stored for and returned to their owner, and
// that one which cannot be stored takes nothing from the others.
func TestInsertsGather(t *testing.T) {
	t.Parallel()
	a, st, log := gatherApp(t)
	const n = 40
	docs := make([]document, n)
	insert := func(spoiled int) func(i int) error {
		return func(i int) error {
			in := documentInput{Content: fmt.Sprint("document ", i), Embedding: vector{float32(i + 1), 1, 1}}
			if i == spoiled {
				in.Metadata = jsonObject(`{"a":[` + strings.Repeat("1e308,", 200) + `1]}`) // 60 KiB as it is stored
			}
			owner := int64(i/2 + 1) // two of each
			list, err := st.createDocuments(ticket{owner, owner, never}, []documentInput{in}, false)
			if err == nil {
				docs[i] = list[0]
			}
			return err
		}
	}
	stored := func(errs []error, refused ...int) {
		t.Helper()
		for i, d := range docs {
			if slices.Contains(refused, i) {
				continue
			}
			var owner int64
			err := a.store.pool.QueryRow(t.Context(), `SELECT owner_id FROM documents WHERE id = $1 AND content = $2 AND embedding <-> $3 = 0`,
				d.ID, fmt.Sprint("document ", i), pgvector.NewHalfVector([]float32{float32(i + 1), 1, 1})).Scan(&owner)
			if err != nil || errs[i] != nil || owner != int64(i/2+1) || d.Content != fmt.Sprint("document ", i) || string(d.Metadata) != "{}" {
				t.Errorf("insert %d = %+v, %v; stored for %d (%v)", i, d, errs[i], owner, err)
			}
		}
		if got := one[int](t, a.url, `SELECT count(*) FROM documents`); got != n-len(refused) {
			t.Errorf("%d documents are stored, want %d", got, n-len(refused))
		}
	}
	stored(gather(t, a, st, st.insertions, "documents", n, insert(-1), `SELECT 1`))
	if got := strings.Count(log.text(), "INSERT INTO documents"); got != maxInsertions+1 {
		t.Errorf("%d inserts made %d statements, want %d", n, got, maxInsertions+1)
	}

	a.sql(`DELETE FROM documents`)
	errs := gather(t, a, st, st.insertions, "documents", n, insert(7), `UPDATE sessions SET expires_at = now() WHERE id = 10`)
	stored(errs, 7, 18, 19)
	if p, ok := errors.AsType[*problem](errs[7]); !ok || p.status != 422 || !errors.Is(errs[18], errNotFound) || !errors.Is(errs[19], errNotFound) {
		t.Errorf("metadata too large: %v; an ended session: %v, %v", errs[7], errs[18], errs[19])
	}
}

// TestLocksHoldUpTheirOwnOnly proves that calls which share a statement do not wait for another's row.
func TestLocksHoldUpTheirOwnOnly(t *testing.T) {
	t.Parallel()
	a, st, _ := gatherApp(t)
	for name, call := range map[string]func(id int64) error{
		"rotation": func(id int64) error {
			_, err := st.rotateSession(rotationOf(id))
			return err
		},
		"insert": func(id int64) error {
			_, err := st.createDocuments(ticket{id, id, never}, []documentInput{{Content: "a", Embedding: vector{1, 1, 1}}}, false)
			return err
		},
	} {
		tx, err := a.store.pool.Begin(t.Context())
		if err == nil {
			_, err = tx.Exec(t.Context(), `SELECT FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.id = 1 FOR UPDATE`)
		}
		if err != nil {
			t.Fatal(err)
		}
		first := make(chan error, 1)
		go func() { first <- call(1) }()
		eventually(t, "the first to wait for the lock", func() bool {
			return one[int](t, a.url, `SELECT count(*) FROM pg_locks WHERE NOT granted`) > 0
		})
		parallel(20, func(i int) {
			if err := call(int64(i + 2)); err != nil {
				t.Errorf("%s %d = %v", name, i+2, err)
			}
		})
		select {
		case err := <-first:
			t.Errorf("%s did not wait for the lock on its row: %v", name, err)
		default:
		}
		tx.Rollback(t.Context())
		if err := <-first; err != nil {
			t.Errorf("%s 1 = %v", name, err)
		}
	}
}

// TestSharedStatementsUseIndexes looks at the plans of the statements that most requests make, alone and together.
func TestSharedStatementsUseIndexes(t *testing.T) {
	t.Parallel()
	a, st, log := gatherApp(t)
	gatherLookups(t, a, st, 10, func(i int) int64 { return int64(i + 1) }, `SELECT 1`)
	st.rotateSession(rotationOf(1))
	st.createDocuments(ticket{1, 1, never}, []documentInput{{Content: "a", Embedding: vector{1, 1, 1}}}, false)
	plans := map[string]bool{}
	for entry := range strings.Lines(log.text()) {
		_, after, _ := strings.Cut(entry, "statement=")
		quoted, _ := strconv.QuotedPrefix(after)
		sql, err := strconv.Unquote(quoted)
		if err != nil || plans[sql] || !strings.Contains(sql, "JOIN users") {
			continue
		}
		plans[sql] = true
		args, scans := `(7, 7, 7)`, 2
		switch {
		case strings.Contains(sql, "UPDATE"):
			args, scans = `('{7,8}', '{7,8}', '{7,8}', '{1,1}', '{1 day,1 day}', '{1 day,1 day}')`, 3
		case strings.Contains(sql, "INSERT"):
			args = `('{7,8}', false, '{7,8}', '{7,8}', '{7,8}', '{a,b}', '{"{}","{}"}', '{"[1,1,1]","[1,1,1]"}')`
		case strings.Contains(sql, "unnest"):
			args = `('{7,8}', '{7,8}', '{7,8}')`
		}
		tx, err := a.store.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err = tx.Exec(t.Context(), `PREPARE shared AS `+sql); err != nil {
			t.Fatal(err)
		}
		rows, _ := tx.Query(t.Context(), `EXPLAIN EXECUTE shared `+args, pgx.QueryExecModeSimpleProtocol)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if plan := strings.Join(lines, "\n"); err != nil || strings.Contains(plan, "Seq Scan") || strings.Count(plan, "Index Scan") != scans {
			t.Errorf("plan (%v):\n%s", err, plan)
		}
		tx.Exec(t.Context(), `DEALLOCATE shared`)
		tx.Rollback(t.Context())
	}
	if len(plans) != 4 {
		t.Errorf("%d statements, want 4", len(plans))
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
