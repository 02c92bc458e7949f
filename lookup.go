package main

// lookup.go is the query that a request with a token makes, unless its own statement asks for the session (alive in
// store.go). Look-ups gather by themselves: one that finds fewer than maxFlying queries in flight makes one, with all
// that have come at the same moment; those that arrive meanwhile go together in the next. So nobody waits for company,
// a busy server makes fewer and larger queries, and nothing is stale, because each query starts after the requests that
// it serves have come.

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// maxFlying is how many of these queries run at once. With more, fewer look-ups share one; with one alone, 8 clients wait
// for each other: BENCHMARKS.md has the figures.
const maxFlying = 2

// overtime is how long a look-up waits for queries in flight, which take some 2 ms on a busy machine. Then they hang, or
// the network is slow, and those that wait get one beside them.
const overtime = 100 * time.Millisecond

// lookups are those that wait for the next query.
type lookups struct {
	overtime time.Duration
	mu       sync.Mutex
	waiting  []*lookup
	flying   int
}

// lookup is one that waits.
type lookup struct {
	ticket
	account user
	err     error
	done    chan struct{} // closed when account and err are there
}

const living = `s.expires_at > now() AND u.is_active`

// authenticate reads the account of a living session into u: errNotFound where the session has ended, the account
// is inactive, or the token has expired.
func (st *store) authenticate(t ticket, u *user) error {
	ls := &st.lookups
	if l := ls.wait(t); l != nil {
		timer := time.NewTimer(ls.overtime)
		defer timer.Stop()
		select {
		case <-l.done:
		case <-timer.C:
			if batch := ls.takeWaiting(l); batch != nil {
				st.fly(batch)
			}
			<-l.done // the query that it has ends by itself
		}
		*u = l.account
		return l.err
	}
	for range 2 { // the requests that have come by now get this far too; twice gathers more than once, and more no more
		runtime.Gosched()
	}
	if others := ls.takeWaiting(nil); others != nil {
		own := &lookup{ticket: t, err: errNotFound, done: make(chan struct{})}
		st.fly(append(others, own))
		*u = own.account
		return own.err
	}
	defer st.land()
	return st.again(func(ctx context.Context, q querier) error {
		return q.QueryRow(ctx, `
			SELECT `+userColumns+` FROM sessions s JOIN users u ON u.id = s.user_id
			WHERE s.id = $1 AND s.user_id = $2 AND $3::bigint > extract(epoch FROM now()) AND `+living,
			t.session, t.user, t.expires).Scan(u.targets()...)
	})
}

// wait returns a look-up that waits for the next query, or nil where t may have a query of its own.
func (ls *lookups) wait(t ticket) *lookup {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.flying < maxFlying {
		ls.flying++
		return nil
	}
	l := &lookup{ticket: t, err: errNotFound, done: make(chan struct{})}
	ls.waiting = append(ls.waiting, l)
	return l
}

// takeWaiting returns those that wait, for a query of their own: none where l is not nil and has one by now. A query for
// l is one beside those that are allowed.
func (ls *lookups) takeWaiting(l *lookup) (batch []*lookup) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l != nil {
		if !slices.Contains(ls.waiting, l) {
			return nil
		}
		ls.flying++
	}
	batch, ls.waiting = ls.waiting, nil
	return batch
}

// land ends a query, and starts the next for those that wait.
func (st *store) land() {
	st.lookups.mu.Lock()
	defer st.lookups.mu.Unlock()
	if len(st.lookups.waiting) == 0 || st.lookups.flying > maxFlying {
		st.lookups.flying--
		return
	}
	go st.fly(st.lookups.waiting)
	st.lookups.waiting = nil
}

// fly makes one query for all of batch. The arguments are numbers, so none can spoil it for the others: an error is
// the database's, and everybody's.
func (st *store) fly(batch []*lookup) {
	var err error
	defer func() {
		if cause := recover(); cause != nil { // it would end the program: there is no request around it
			err = fmt.Errorf("panic in a look-up: %v\n%s", cause, debug.Stack())
		}
		st.land()
		for _, l := range batch {
			if err != nil {
				l.err = err
			}
			close(l.done)
		}
	}()
	var session, account, expires []int64
	for _, l := range batch {
		session, account, expires = append(session, l.session), append(account, l.user), append(expires, l.expires)
	}
	err = st.again(func(ctx context.Context, q querier) error {
		rows, _ := q.Query(ctx, `
			SELECT `+userColumns+`, l.place
			FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS l (session, account, expires, place)
			JOIN sessions s ON s.id = l.session AND s.user_id = l.account JOIN users u ON u.id = s.user_id
			WHERE l.expires > extract(epoch FROM now()) AND `+living, session, account, expires)
		var u user
		var place int
		_, err := pgx.ForEachRow(rows, u.targets(&place), func() error {
			batch[place-1].account, batch[place-1].err = u, nil
			return nil
		})
		return err
	})
}
