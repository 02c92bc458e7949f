package main

// store.go holds every statement about accounts and sessions, store_documents.go every one about
// documents. The contexts are those of requests: see retry.

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	maxSessions = 50   // of one user; the one that was used least recently goes
	sweepBatch  = 1000 // rows: some 10 ms, so that no lock is held for long
)

// ---- users ----

const userColumns = `u.id, u.email, u.full_name, u.is_active, u.is_admin, u.created_at,
	u.updated_at`

var scanUser = pgx.RowToStructByPos[user]

// createUser inserts an account, or returns errEmailTaken.
func (st *store) createUser(ctx context.Context, n newUser) (user, error) {
	u, err := queryOne(ctx, st.run, scanUser, `
		INSERT INTO users AS u (email, password_hash, full_name, is_active, is_admin)
		VALUES ($1, $2, $3, $4, $5) RETURNING `+userColumns,
		n.Email, n.PasswordHash, n.FullName, n.IsActive, n.IsAdmin)
	return u, onConstraint(err, "users_email_key", errEmailTaken)
}

// storedUser is a user with the hash of the password, which never leaves the program.
type storedUser struct {
	user
	PasswordHash string
}

var scanStoredUser = pgx.RowToStructByPos[storedUser]

// userByEmail returns what a login is checked against, or errNotFound.
func (st *store) userByEmail(ctx context.Context, email string) (storedUser, error) {
	return queryOne(ctx, st.runIdempotent, scanStoredUser,
		`SELECT `+userColumns+`, password_hash FROM users u WHERE email = $1`, email)
}

// passwordHash returns an account's hash, or errNotFound.
func (st *store) passwordHash(ctx context.Context, id int64) (string, error) {
	return queryOne(ctx, st.runIdempotent, pgx.RowTo[string],
		`SELECT password_hash FROM users WHERE id = $1`, id)
}

// getUser returns an account, or errNotFound.
func (st *store) getUser(ctx context.Context, id int64) (user, error) {
	return queryOne(ctx, st.runIdempotent, scanUser,
		`SELECT `+userColumns+` FROM users u WHERE u.id = $1`, id)
}

// listUsers returns up to f.Limit accounts in the order of ids, and one more where there is one.
// With f.Q the plan depends on the text: a rare one is found by its index, a common one by id.
func (st *store) listUsers(ctx context.Context, f usersInput) ([]user, error) {
	run, where := st.runIdempotent, ""
	args := []any{f.After, f.IsActive, f.IsAdmin, f.Skip, f.Limit + 1}
	if f.Q != nil {
		run = inTx(st.runIdempotent, "plan_cache_mode = force_custom_plan")
		where = ` AND (u.email ILIKE $6 OR u.full_name ILIKE $6)`
		escaped := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(*f.Q)
		args = append(args, "%"+escaped+"%")
	}
	return queryAll(ctx, run, scanUser, `
		SELECT `+userColumns+` FROM users u
		WHERE u.id > coalesce($1::bigint, 0) AND ($2::boolean IS NULL OR u.is_active = $2)
		  AND ($3::boolean IS NULL OR u.is_admin = $3)`+where+`
		ORDER BY u.id OFFSET $4 LIMIT $5`, args...)
}

// updateUser changes what c names and returns the account before and after: errNotFound,
// errEmailTaken, errLastAdmin, or errWrongPassword where c.OldHash is no longer the account's. A
// new password and a deactivation end the account's sessions except c.KeepSession.
func (st *store) updateUser(
	ctx context.Context, id int64, c userChange,
) (before, after user, err error) {
	return updateUser(ctx, st.runTx, id, c)
}

func updateUser(
	ctx context.Context, runTx runner, id int64, c userChange,
) (before, after user, err error) {
	err = runTx(ctx, func(ctx context.Context, q querier) error {
		if before, err = lockUser(ctx, q, id, c); err != nil {
			return err
		}
		after, err = queryOne(ctx, onConn(q), scanUser, `
			UPDATE users u SET
			    email = coalesce($2, u.email), password_hash = coalesce($3, u.password_hash),
			    full_name = CASE WHEN $4 THEN $5 ELSE u.full_name END,
			    is_active = coalesce($6, u.is_active), is_admin = coalesce($7, u.is_admin),
			    updated_at = greatest(now(), u.updated_at + interval '1 microsecond')
			WHERE u.id = $1 RETURNING `+userColumns,
			id, c.Email, c.PasswordHash, c.FullName.Set, c.FullName.Value, c.IsActive, c.IsAdmin)
		if err == nil && (c.PasswordHash != nil || !after.IsActive) {
			_, err = exec(ctx, onConn(q), endOtherSessions, id, c.KeepSession)
		}
		return err
	})
	return before, after, onConstraint(err, "users_email_key", errEmailTaken)
}

const adminLock = 0x61646d696e // the key of an advisory lock: "admin" in ASCII

// lockUser locks and returns the account that c changes: errWrongPassword unless c.OldHash is empty
// or still its hash, errStale unless c.UpdatedAt is nil or still its time, errLastAdmin where no
// active admin would remain. Of two who demote each other the second waits for adminLock, and then
// sees what the first has done. Inserting documents neither waits for these locks nor holds them
// up.
func lockUser(ctx context.Context, q querier, id int64, c userChange) (user, error) {
	u, err := queryOne(ctx, onConn(q), scanStoredUser,
		`SELECT `+userColumns+`, password_hash FROM users u WHERE u.id = $1 FOR NO KEY UPDATE`, id)
	if err == nil && c.OldHash != "" && c.OldHash != u.PasswordHash {
		err = errWrongPassword
	}
	if err == nil && c.UpdatedAt != nil && !c.UpdatedAt.Equal(u.UpdatedAt) {
		err = errStale
	}
	demotes := c.IsActive != nil && !*c.IsActive || c.IsAdmin != nil && !*c.IsAdmin
	if err != nil || !demotes || !u.IsAdmin || !u.IsActive {
		return u.user, err
	}
	_, err = exec(ctx, onConn(q), `SELECT pg_advisory_xact_lock($1)`, int64(adminLock))
	if err == nil {
		err = requireRow(exec(ctx, onConn(q),
			`SELECT FROM users WHERE is_admin AND is_active AND id <> $1 LIMIT 1`, id))
	}
	if errors.Is(err, errNotFound) {
		err = errLastAdmin
	}
	return u.user, err
}

// deleteUser removes an account and all that belongs to it, with the errors of lockUser. It
// deactivates the account first, which ends its tokens at once: a million documents take some
// seconds to go, and batches in progress are waited for. Both steps have the same connection, so
// that a busy server and a client that goes stop it before the first or not at all. deactivated is
// whether the first has changed anything, also where the second fails.
func (st *store) deleteUser(
	ctx context.Context, id int64, oldHash string,
) (deactivated bool, err error) {
	ch := userChange{IsActive: new(false), OldHash: oldHash}
	run := inSlot(&st.deletions, st.retry(bulkTimeout, false))
	err = run(ctx, func(ctx context.Context, q querier) error {
		for {
			was, _, err := updateUser(ctx, inTx(onConn(q)), id, ch)
			if err != nil {
				return err
			}
			deactivated = deactivated || was.IsActive
			const sql = `DELETE FROM users WHERE id = $1 AND NOT is_active`
			err = requireRow(exec(ctx, inTx(onConn(q), bulkSettings...), sql, id))
			if !errors.Is(err, errNotFound) { // else an admin has reactivated it in between
				return err
			}
		}
	})
	return deactivated, err
}

// rehash replaces a hash by another of the same password, unless that has changed.
func (st *store) rehash(ctx context.Context, id int64, oldHash, newHash string) error {
	_, err := exec(ctx, st.run,
		`UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2`,
		id, oldHash, newHash)
	return err
}

// ---- sessions ----

// sessionIsLive is true for a session s of user u that still accepts tokens.
const sessionIsLive = `s.expires_at > now() AND u.is_active`

// account is an account as its requests need it.
type account struct {
	user
	EfSearch int // of searches by its HNSW index, see searchIndex; 0: its searches are exact
}

// sessionUser returns the account of a live session: errNotFound where the session has ended or
// never was the user's, the account is inactive, or the token has expired. Requests that come
// together share the query, which is the only one of most.
func (st *store) sessionUser(ctx context.Context, ref sessionRef) (account, error) {
	return st.lookups.do(ctx, ref)
}

// runLookups sets account or err of each look-up of a batch, by one statement. Its arguments are
// numbers, so none can fail it for the others.
func (st *store) runLookups(ctx context.Context, batch []*lookup) error {
	n := len(batch)
	sessions, users, expires := make([]int64, n), make([]int64, n), make([]int64, n)
	for i, l := range batch {
		sessions[i], users[i], expires[i] = l.ref.session, l.ref.user, l.ref.expires
		l.err = errNotFound
	}
	type row struct {
		account
		Ordinal int
	}
	rows, err := queryAll(ctx, st.runIdempotent, pgx.RowToStructByPos[row], `
		SELECT `+userColumns+`, coalesce(x.ef_search, 0), t.ordinal
		FROM unnest($1::bigint[], $2::bigint[], $3::bigint[])
		    WITH ORDINALITY AS t (session, account, expires, ordinal)
		JOIN sessions s ON s.id = t.session AND s.user_id = t.account
		JOIN users u ON u.id = s.user_id LEFT JOIN vector_indexes x ON x.owner_id = u.id
		WHERE t.expires > extract(epoch FROM now()) AND `+sessionIsLive, sessions, users, expires)
	for _, r := range rows {
		l := batch[r.Ordinal-1]
		l.account, l.err = r.account, nil
	}
	return err
}

const (
	lookupBatches = 2                      // at once: with more, fewer look-ups share one
	lookupBatch   = 100                    // look-ups of one statement
	lookupWait    = 100 * time.Millisecond // then those in progress hang: another statement starts
)

var errBatchPanicked = errors.New("panic in a batch of look-ups")

// lookup is one look-up of a session.
type lookup struct {
	ref     sessionRef
	account account
	err     error
	done    chan struct{} // closed when account or err is set
}

// batcher runs look-ups in batches. One that gets a slot runs a statement at once, with all that
// wait; the others wait for the next. So none waits for a batch to fill, a busy server makes fewer
// and larger statements, and nothing is stale: each statement starts after its look-ups came.
type batcher struct {
	run     func(context.Context, []*lookup) error
	slots   chan struct{} // one for each statement in progress
	waiting chan *lookup  // not buffered: a look-up gets into a batch, or gets a slot
}

func newBatcher(run func(context.Context, []*lookup) error) *batcher {
	return &batcher{run, make(chan struct{}, lookupBatches), make(chan *lookup)}
}

// do returns the account of a look-up. It stops waiting where ctx ends.
func (b *batcher) do(ctx context.Context, ref sessionRef) (account, error) {
	l := &lookup{ref: ref, done: make(chan struct{})}
	timer := time.NewTimer(lookupWait)
	defer timer.Stop()
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
		runtime.Gosched() // others of the same moment get as far as waiting
		b.runBatch(ctx, []*lookup{l})
	case b.waiting <- l: // to another's batch
	case <-timer.C: // without a slot
		b.runBatch(ctx, []*lookup{l})
	case <-ctx.Done(): // see below
	}
	select {
	case <-l.done:
		return l.account, l.err
	case <-ctx.Done():
		return account{}, ctx.Err()
	}
}

// runBatch runs a batch, with all that wait, and wakes them when it ends, also by a panic. That a
// client has gone does not fail the others.
func (b *batcher) runBatch(ctx context.Context, batch []*lookup) {
	for more := true; more && len(batch) < lookupBatch; {
		select {
		case other := <-b.waiting:
			batch = append(batch, other)
		default:
			more = false
		}
	}
	err := errBatchPanicked // unless run returns
	defer func() {
		for _, l := range batch {
			l.err = cmp.Or(err, l.err)
			close(l.done)
		}
	}()
	err = b.run(context.WithoutCancel(ctx), batch) // ctx has no client yet
}

const sessionColumns = `s.id, s.user_id, s.generation, s.rotated_at, s.expires_at`

var scanSession = pgx.RowToStructByPos[session]

// createSession starts a session: errNotFound unless the account is still active and hash still its
// password's. The lock waits for a change of these. An id that exists, one in 2^53, is an error.
func (st *store) createSession(
	ctx context.Context, userID int64, hash string, c *caller, idle time.Duration,
) (s session, err error) {
	err = st.runTx(ctx, func(ctx context.Context, q querier) error {
		err := requireRow(exec(ctx, onConn(q), `
			SELECT FROM users WHERE id = $1 AND password_hash = $2 AND is_active
			FOR NO KEY UPDATE`, userID, hash))
		if err != nil {
			return err
		}
		s, err = queryOne(ctx, onConn(q), scanSession, `
			WITH old AS (DELETE FROM sessions WHERE user_id = $2 AND (expires_at <= now() OR id IN
			    (SELECT id FROM sessions WHERE user_id = $2 AND expires_at > now()
			     ORDER BY rotated_at DESC, id OFFSET $6)))
			INSERT INTO sessions AS s (id, user_id, expires_at, user_agent, ip)
			VALUES ($1, $2, now() + $3, $4, $5) RETURNING `+sessionColumns,
			newSessionID(), userID, idle, cleanText(c.userAgent), c.ip, maxSessions-1)
		return err
	})
	return s, err
}

// rotateSession moves a session to the generation after the token's, in one compare-and-set, and
// returns it. The token's may be ahead of the row's: a fail-over may lose a rotation. Within grace
// the loser of a race, and a client that lost the answer, get what the winner got. It returns
// errNotFound where the session has ended or the token has expired, errRefreshReused where the
// generation was replaced earlier: then somebody else has the token, and the session is ended.
func (st *store) rotateSession(
	ctx context.Context, ref sessionRef, generation int64, idle, grace time.Duration,
) (s session, err error) {
	err = st.runIdempotent(ctx, func(ctx context.Context, q querier) (err error) {
		s, err = queryOne(ctx, onConn(q), scanSession, `
			UPDATE sessions s SET generation = $3 + 1, rotated_at = now(),
			    expires_at = least(now() + $5, s.created_at + $6)
			FROM users u
			WHERE s.id = $1 AND s.user_id = $2 AND s.generation <= $3
			  AND $4 > extract(epoch FROM now()) AND u.id = s.user_id AND `+sessionIsLive+`
			RETURNING `+sessionColumns,
			ref.session, ref.user, generation, ref.expires, idle, sessionLifetime)
		if !errors.Is(err, errNotFound) {
			return err
		}
		type row struct {
			session
			Successor bool
		}
		r, err := queryOne(ctx, onConn(q), pgx.RowToStructByPos[row], `
			SELECT `+sessionColumns+`,
			    s.generation = $3 + 1 AND s.rotated_at > now() - $5::interval
			FROM sessions s JOIN users u ON u.id = s.user_id
			WHERE s.id = $1 AND s.user_id = $2 AND s.generation > $3
			  AND $4 > extract(epoch FROM now()) AND `+sessionIsLive,
			ref.session, ref.user, generation, ref.expires, grace)
		if s = r.session; err != nil || r.Successor {
			return err
		}
		_, err = exec(ctx, onConn(q), `DELETE FROM sessions WHERE id = $1`, ref.session)
		return cmp.Or(err, error(errRefreshReused))
	})
	return s, err
}

// listSessions returns a user's live sessions, the newest first.
func (st *store) listSessions(ctx context.Context, userID, current int64) ([]sessionInfo, error) {
	return queryAll(ctx, st.runIdempotent, pgx.RowToStructByPos[sessionInfo], `
		SELECT id, created_at, rotated_at, expires_at, user_agent, host(ip), id = $2
		FROM sessions WHERE user_id = $1 AND expires_at > now()
		ORDER BY created_at DESC, id DESC`, userID, current)
}

// endSession ends one session of a user, or returns errNotFound.
func (st *store) endSession(ctx context.Context, userID, id int64) error {
	return requireRow(exec(ctx, st.run,
		`DELETE FROM sessions WHERE id = $1 AND user_id = $2 AND expires_at > now()`, id, userID))
}

const endOtherSessions = `DELETE FROM sessions WHERE user_id = $1 AND id <> $2`

// endSessions ends all sessions of a user except keep, which is 0 for none.
func (st *store) endSessions(ctx context.Context, userID, keep int64) error {
	_, err := exec(ctx, st.runIdempotent, endOtherSessions, userID, keep)
	return err
}

// sweepSessions deletes the expired sessions that nobody has locked, and returns their number.
func (st *store) sweepSessions(ctx context.Context) (total int64, err error) {
	for {
		swept, err := exec(ctx, st.run, `
			DELETE FROM sessions WHERE id IN
			    (SELECT id FROM sessions WHERE expires_at <= now() ORDER BY expires_at
			     LIMIT $1 FOR UPDATE SKIP LOCKED)`, sweepBatch)
		if total += swept; err != nil || swept < sweepBatch {
			return total, err
		}
	}
}
