package main

// store.go holds every statement about accounts and sessions, in the order of schema.sql;
// store_documents.go holds those about documents. What goes in and out are plain types; pgx is used
// only in these files, in postgres.go and in migrate.go. The first argument of every method is the
// request's context: see store.run.

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	maxSessions = 50   // of one user; the one that was used least recently goes
	sweepBatch  = 1000 // rows: some 10 ms, so that no lock is held for long
)

// ---- users ----

const userColumns = `u.id, u.email, u.full_name, u.is_active, u.is_admin, u.created_at, u.updated_at`

// columns returns where userColumns, and what follows them, are scanned to.
func (u *user) columns(more ...any) []any {
	return append([]any{&u.ID, &u.Email, &u.FullName, &u.IsActive, &u.IsAdmin, &u.CreatedAt,
		&u.UpdatedAt}, more...)
}

// createUser inserts an account. It returns errEmailTaken where the e-mail has one.
func (st *store) createUser(ctx context.Context, n newUser) (user, error) {
	u, err := queryOne(ctx, st.run, pgx.RowToStructByPos[user], `
		INSERT INTO users AS u (email, password_hash, full_name, is_active, is_admin)
		VALUES ($1, $2, $3, $4, $5)
		RETURNING `+userColumns,
		n.Email, n.PasswordHash, n.FullName, n.IsActive, n.IsAdmin)
	return u, onConstraint(err, "users_email_key", errEmailTaken)
}

// credentials are an account and the hash of its password, which never leaves the program.
type credentials struct {
	user
	PasswordHash string
}

// credentials returns what a login is checked against, or errNotFound.
func (st *store) credentials(ctx context.Context, email string) (credentials, error) {
	return queryOne(ctx, st.runIdempotent, pgx.RowToStructByPos[credentials],
		`SELECT `+userColumns+`, u.password_hash FROM users u WHERE u.email = $1`, email)
}

// passwordHash returns an account's hash, or errNotFound.
func (st *store) passwordHash(ctx context.Context, id int64) (string, error) {
	return queryOne(ctx, st.runIdempotent, pgx.RowTo[string],
		`SELECT password_hash FROM users WHERE id = $1`, id)
}

// getUser returns an account, or errNotFound.
func (st *store) getUser(ctx context.Context, id int64) (user, error) {
	return queryOne(ctx, st.runIdempotent, pgx.RowToStructByPos[user],
		`SELECT `+userColumns+` FROM users u WHERE u.id = $1`, id)
}

// listUsers returns up to f.Limit accounts in the order of ids, and one more where there is one.
// Nil fields of f do not restrict. A statement with f.Q is planned for its argument: the index
// suits a rare text, the order of ids one that most accounts have.
func (st *store) listUsers(ctx context.Context, f userFilter) ([]user, error) {
	run, where := runner(st.runIdempotent), ""
	args := []any{f.After, f.IsActive, f.IsAdmin, f.Skip, f.Limit + 1}
	if f.Q != nil {
		run = func(ctx context.Context, f work) error {
			return st.runIdempotent(ctx, inTx(f, "plan_cache_mode = force_custom_plan"))
		}
		where = ` AND (u.email ILIKE $6 OR u.full_name ILIKE $6)`
		escaped := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(*f.Q)
		args = append(args, "%"+escaped+"%")
	}
	return queryAll(ctx, run, pgx.RowToStructByPos[user], `
		SELECT `+userColumns+` FROM users u
		WHERE u.id > coalesce($1::bigint, 0)
		  AND ($2::boolean IS NULL OR u.is_active = $2)
		  AND ($3::boolean IS NULL OR u.is_admin = $3)`+where+`
		ORDER BY u.id OFFSET $4 LIMIT $5`, args...)
}

// updateUser changes what c names and returns the account before and after: errNotFound,
// errEmailTaken, errLastAdmin, or errWrongPassword where c.OldHash is no longer the account's. A
// new password and a deactivation end the account's sessions except c.KeepSession.
func (st *store) updateUser(
	ctx context.Context, id int64, c userChange,
) (before, after user, err error) {
	err = st.run(ctx, inTx(func(ctx context.Context, q querier) error {
		demotes := c.IsActive != nil && !*c.IsActive || c.IsAdmin != nil && !*c.IsAdmin
		if before, err = lockUser(ctx, q, id, demotes, c.OldHash); err != nil {
			return err
		}
		err := q.QueryRow(ctx, `
			UPDATE users u SET
			    email = coalesce($2, u.email), password_hash = coalesce($3, u.password_hash),
			    full_name = CASE WHEN $4 THEN $5 ELSE u.full_name END,
			    is_active = coalesce($6, u.is_active), is_admin = coalesce($7, u.is_admin),
			    updated_at = now()
			WHERE u.id = $1 RETURNING `+userColumns,
			id, c.Email, c.PasswordHash, c.FullName.Set, c.FullName.Value, c.IsActive, c.IsAdmin,
		).Scan(after.columns()...)
		if err == nil && (c.PasswordHash != nil || !after.IsActive) {
			_, err = q.Exec(ctx, `DELETE FROM sessions WHERE user_id = $1 AND id <> $2`,
				id, c.KeepSession)
		}
		return err
	}))
	return before, after, onConstraint(err, "users_email_key", errEmailTaken)
}

// deleteUser removes an account and all that belongs to it: errNotFound, errLastAdmin, or
// errWrongPassword where oldHash is not empty and no longer the account's. It deactivates the
// account first, in a transaction of its own, so that its tokens end at once: a million documents
// take some seconds to go. Where the second step fails, the account stays deactivated.
func (st *store) deleteUser(ctx context.Context, client clientKey, id int64, oldHash string) error {
	inactive := false
	change := userChange{IsActive: &inactive, OldHash: oldHash}
	if _, _, err := st.updateUser(ctx, id, change); err != nil {
		return err
	}
	run := func(ctx context.Context, f work) error { return st.runBulk(ctx, client, f) }
	err := requireRow(exec(ctx, run, `DELETE FROM users WHERE id = $1 AND NOT is_active`, id))
	if err != nil {
		return fmt.Errorf("account %d is deactivated, but not deleted: %w", id, err)
	}
	return nil
}

// lockUser locks an account and reads it: errWrongPassword unless oldHash is empty or still the
// account's. Where an active admin stops being one, all active admins are locked first, in the
// order of ids, so that two who demote each other wait for one another, and the second finds
// itself to be the last: errLastAdmin. A count without the lock lets both go. The locks are of the
// kind that inserting a document does not wait for, nor holds up.
func lockUser(
	ctx context.Context, q querier, id int64, demotes bool, oldHash string,
) (u user, err error) {
	var admins []int64
	if demotes {
		if admins, err = lockAdmins(ctx, q, id); err != nil {
			return u, err
		}
	}
	var hash string
	err = q.QueryRow(ctx, `
		SELECT `+userColumns+`, u.password_hash FROM users u WHERE u.id = $1 FOR NO KEY UPDATE`,
		id).Scan(u.columns(&hash)...)
	switch {
	case err != nil:
		return u, err
	case demotes && u.IsAdmin && u.IsActive && !slices.Contains(admins, id):
		return u, errRaced // promoted since the admins were locked
	case len(admins) == 1 && admins[0] == id:
		return u, errLastAdmin
	case oldHash != "" && oldHash != hash:
		return u, errWrongPassword
	}
	return u, nil
}

// lockAdmins locks the active admins and returns their ids, if id is one of them; else it locks
// nobody, so that ordinary users do not wait for admins, nor admins for them.
func lockAdmins(ctx context.Context, q querier, id int64) ([]int64, error) {
	rows, _ := q.Query(ctx, `
		SELECT id FROM users WHERE is_admin AND is_active
		  AND EXISTS (SELECT FROM users WHERE id = $1 AND is_admin AND is_active)
		ORDER BY id FOR NO KEY UPDATE`, id)
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

// promote makes the account of email an active admin and returns it as it was, or errNotFound.
func (st *store) promote(ctx context.Context, email string) (before user, err error) {
	return queryOne(ctx, st.run, pgx.RowToStructByPos[user], `
		UPDATE users SET is_admin = true, is_active = true, updated_at = now()
		FROM (SELECT * FROM users WHERE email = $1 FOR NO KEY UPDATE) u
		WHERE users.id = u.id RETURNING `+userColumns, email)
}

// rehash replaces a password's hash by a costlier one of the same password, unless it has changed.
func (st *store) rehash(ctx context.Context, id int64, oldHash, newHash string) error {
	_, err := exec(ctx, st.run,
		`UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2`,
		id, oldHash, newHash)
	return err
}

// ---- sessions ----

// sessionIsLive is true for a session s of user u that still accepts tokens: not expired, account
// active.
const sessionIsLive = `s.expires_at > now() AND u.is_active`

// sessionUser returns the account of a live session: errNotFound where the session has ended or
// never was the user's, the account is inactive, or the token has expired. It is the one query of
// most requests, and those that come together share it.
func (st *store) sessionUser(ctx context.Context, ref sessionRef) (user, error) {
	return st.lookups.do(ctx, ref)
}

// lookup is one look-up of a session, in a batch.
type lookup struct {
	ref  sessionRef
	user user
	err  error
	done chan struct{} // closed when user or err is set
}

// runLookups sets user or err of every look-up of a batch, by one statement. Its arguments are
// numbers, so none can fail it for the others.
func (st *store) runLookups(ctx context.Context, batch []*lookup) error {
	n := len(batch)
	sessions, users, expires := make([]int64, n), make([]int64, n), make([]int64, n)
	for i, l := range batch {
		sessions[i], users[i], expires[i] = l.ref.session, l.ref.user, l.ref.expires
	}
	return st.runIdempotent(ctx, func(ctx context.Context, q querier) error {
		for _, l := range batch {
			l.err = errNotFound
		}
		rows, _ := q.Query(ctx, `
			SELECT `+userColumns+`, t.place
			FROM unnest($1::bigint[], $2::bigint[], $3::bigint[])
			    WITH ORDINALITY AS t (session, account, expires, place)
			JOIN sessions s ON s.id = t.session AND s.user_id = t.account
			JOIN users u ON u.id = s.user_id
			WHERE t.expires > extract(epoch FROM now()) AND `+sessionIsLive,
			sessions, users, expires)
		var u user
		var place int
		_, err := pgx.ForEachRow(rows, u.columns(&place), func() error {
			batch[place-1].user, batch[place-1].err = u, nil
			return nil
		})
		return err
	})
}

const (
	lookupBatches = 2                      // at once: with more, fewer look-ups share one
	lookupBatch   = 100                    // look-ups of one statement
	lookupWait    = 100 * time.Millisecond // then those in progress hang: the look-up runs alone
)

// batcher runs look-ups in batches. A look-up that finds a slot free runs a statement at once,
// with all that are waiting; the others are taken along by the next statement. So nobody waits for
// a batch to fill, a busy server makes fewer and larger statements, and nothing is stale, because
// each statement starts after the look-ups that it serves have come.
type batcher struct {
	run    func(context.Context, []*lookup) error
	slots  chan struct{} // one for each statement in progress
	offers chan *lookup  // not buffered: a look-up that waits is received by a batch, or gets a slot
}

func newBatcher(run func(context.Context, []*lookup) error) *batcher {
	return &batcher{run, make(chan struct{}, lookupBatches), make(chan *lookup)}
}

// do returns the user of a look-up. It stops waiting where ctx ends.
func (b *batcher) do(ctx context.Context, ref sessionRef) (user, error) {
	l := &lookup{ref: ref, done: make(chan struct{})}
	select {
	case b.slots <- struct{}{}:
		b.lead(ctx, l)
		return l.user, l.err
	default: // the timer below costs more
	}
	timer := time.NewTimer(lookupWait)
	defer timer.Stop()
	select {
	case b.slots <- struct{}{}:
		b.lead(ctx, l)
	case <-timer.C:
		b.finish(ctx, []*lookup{l})
	case b.offers <- l:
		select {
		case <-l.done:
		case <-ctx.Done():
			return user{}, ctx.Err()
		}
	case <-ctx.Done():
		return user{}, ctx.Err()
	}
	return l.user, l.err
}

// lead runs a batch of l and those that wait, in the slot that the caller has taken.
func (b *batcher) lead(ctx context.Context, l *lookup) {
	defer func() { <-b.slots }()
	runtime.Gosched() // others that have come at the same moment get as far as waiting
	batch := []*lookup{l}
	for len(batch) < lookupBatch {
		select {
		case other := <-b.offers:
			batch = append(batch, other)
			continue
		default:
		}
		break
	}
	b.finish(ctx, batch)
}

// finish runs a batch and wakes those that wait for it, whatever happens.
func (b *batcher) finish(ctx context.Context, batch []*lookup) {
	err := fmt.Errorf("a batch of look-ups did not finish")
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("panic in a batch of look-ups: %v\n%s", cause, debug.Stack())
		}
		for _, l := range batch {
			if err != nil {
				l.err = err
			}
			close(l.done)
		}
	}()
	err = b.run(context.WithoutCancel(ctx), batch) // the others are not to fail where one client goes
}

const sessionColumns = `s.id, s.user_id, s.generation, s.rotated_at, s.expires_at`

func (s *session) columns(more ...any) []any {
	return append([]any{&s.ID, &s.UserID, &s.Generation, &s.RotatedAt, &s.ExpiresAt}, more...)
}

// createSession starts a session, provided that the account is still active and hash is still its
// password's: errNotFound otherwise. The lock on the account makes it wait for a change under way,
// and the next statement sees what that change left. An id that exists already, of which there is
// one in 2^53, fails the insert.
func (st *store) createSession(
	ctx context.Context, userID int64, hash string, c *caller, idle time.Duration,
) (s session, err error) {
	err = st.run(ctx, inTx(func(ctx context.Context, q querier) error {
		err := q.QueryRow(ctx, `
			SELECT id FROM users WHERE id = $1 AND password_hash = $2 AND is_active
			FOR NO KEY UPDATE`, userID, hash).Scan(new(int64))
		if err != nil {
			return err
		}
		_, err = q.Exec(ctx, `
			DELETE FROM sessions WHERE user_id = $1 AND (expires_at <= now() OR id IN
			    (SELECT id FROM sessions WHERE user_id = $1 AND expires_at > now()
			     ORDER BY rotated_at DESC, id OFFSET $2))`,
			userID, maxSessions-1)
		if err != nil {
			return err
		}
		return q.QueryRow(ctx, `
			INSERT INTO sessions AS s (id, user_id, expires_at, user_agent, ip)
			VALUES ($1, $2, now() + $3, $4, $5)
			RETURNING `+sessionColumns,
			newSessionID(), userID, idle, c.agent, c.client).Scan(s.columns()...)
	}))
	return s, err
}

// rotateSession moves a session to the generation after the token's, in one compare-and-set, and
// returns it. The token's may be ahead of the row's: then the database lost a rotation in a
// fail-over, and the token is the truth. The loser of a race, and a client that lost the answer,
// get the state that the winner made, within grace after it. It returns errNotFound where the
// session has ended or the token has expired, and errRefreshReused where the generation was
// replaced earlier: then somebody else has the token, and the session is ended.
func (st *store) rotateSession(
	ctx context.Context, ref sessionRef, generation int64, idle, grace time.Duration,
) (s session, err error) {
	err = st.runIdempotent(ctx, func(ctx context.Context, q querier) error {
		err := q.QueryRow(ctx, `
			UPDATE sessions s SET generation = $3 + 1, rotated_at = now(),
			    expires_at = least(now() + $5, s.created_at + $6)
			FROM users u
			WHERE s.id = $1 AND s.user_id = $2 AND s.generation <= $3
			  AND $4 > extract(epoch FROM now()) AND u.id = s.user_id AND `+sessionIsLive+`
			RETURNING `+sessionColumns,
			ref.session, ref.user, generation, ref.expires, idle, sessionLifetime,
		).Scan(s.columns()...)
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		var recent bool
		err = q.QueryRow(ctx, `
			SELECT `+sessionColumns+`, s.rotated_at > now() - $5::interval
			FROM sessions s JOIN users u ON u.id = s.user_id
			WHERE s.id = $1 AND s.user_id = $2 AND s.generation > $3
			  AND $4 > extract(epoch FROM now()) AND `+sessionIsLive,
			ref.session, ref.user, generation, ref.expires, grace).Scan(s.columns(&recent)...)
		if err != nil || recent && s.Generation == generation+1 {
			return err
		}
		if _, err := q.Exec(ctx, `DELETE FROM sessions WHERE id = $1`, ref.session); err != nil {
			return err
		}
		return errRefreshReused
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

// endSessions ends all sessions of a user except keep, which is 0 for none.
func (st *store) endSessions(ctx context.Context, userID, keep int64) error {
	_, err := exec(ctx, st.runIdempotent,
		`DELETE FROM sessions WHERE user_id = $1 AND id <> $2`, userID, keep)
	return err
}

// sweepSessions deletes sessions that have expired, in batches, and skips rows that others have
// locked. It returns how many were deleted.
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
