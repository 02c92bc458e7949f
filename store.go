package main

// store.go holds every statement about accounts and sessions, in the order of schema.sql, and store_documents.go those
// about documents. What goes in and out are plain types, and pgx is not seen beyond these files and postgres.go.

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	maxSessions = 50   // of one user; the oldest goes
	sweepBatch  = 1000 // rows: some 10 ms, so that no lock is held for long
)

// ---- users ----

const userColumns = `u.id, u.email, u.full_name, u.is_active, u.is_admin, u.created_at, u.updated_at`

func (u *user) targets(more ...any) []any {
	return append([]any{&u.ID, &u.Email, &u.FullName, &u.IsActive, &u.IsAdmin, &u.CreatedAt, &u.UpdatedAt}, more...)
}

// createUser inserts an account. errEmailTaken where there is one of that e-mail.
func (st *store) createUser(n newUser) (user, error) {
	return first(st.once, pgx.RowToStructByPos[user], `
		INSERT INTO users AS u (email, password_hash, full_name, is_active, is_admin)
		VALUES ($1, $2, $3, $4, $5)
		RETURNING `+userColumns,
		n.Email, n.PasswordHash, n.FullName, n.IsActive, n.IsAdmin)
}

// credentials are an account and the hash of its password, which never leaves the program.
type credentials struct {
	user
	PasswordHash string
}

// credentials is what a login is checked against: errNotFound where nobody has this e-mail.
func (st *store) credentials(email string) (credentials, error) {
	return first(st.again, pgx.RowToStructByPos[credentials], `SELECT `+userColumns+`, u.password_hash FROM users u WHERE u.email = $1`, email)
}

// passwordHash returns an account's hash, or errNotFound.
func (st *store) passwordHash(id int64) (string, error) {
	return first(st.again, pgx.RowTo[string], `SELECT password_hash FROM users WHERE id = $1`, id)
}

// getUser returns an account, or errNotFound.
func (st *store) getUser(id int64) (user, error) {
	return first(st.again, pgx.RowToStructByPos[user], `SELECT `+userColumns+` FROM users u WHERE u.id = $1`, id)
}

// listUsers returns up to f.Limit accounts in the order of ids, and one more where there is one; f's nil fields do not
// restrict. How to look for f.Q depends on how rare it is, so that is planned for each: the index for a rare one, the
// order of ids for one that most have.
func (st *store) listUsers(f userFilter) ([]user, error) {
	run, where, args := st.again, "", []any{f.After, f.IsActive, f.IsAdmin, f.Skip, f.Limit + 1}
	if f.Q != nil {
		run = func(w work) error { return st.again(inTx(w, "plan_cache_mode = force_custom_plan")) }
		where = ` AND (u.email ILIKE $6 OR u.full_name ILIKE $6)`
		args = append(args, "%"+strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(*f.Q)+"%")
	}
	return all(run, pgx.RowToStructByPos[user], f.Limit+1, `
		SELECT `+userColumns+` FROM users u
		WHERE u.id > coalesce($1::bigint, 0)
		  AND ($2::boolean IS NULL OR u.is_active = $2)
		  AND ($3::boolean IS NULL OR u.is_admin = $3)`+where+`
		ORDER BY u.id OFFSET $4 LIMIT $5`, args...)
}

// updateUser changes what c names and returns the account before and after: errNotFound, errEmailTaken,
// errLastAdmin, or errWrongPassword where c.OldHash is no longer the account's. A new password and a
// deactivation end the account's sessions but c.KeepSession.
func (st *store) updateUser(id int64, c userChange) (before, after user, err error) {
	err = st.once(inTx(func(ctx context.Context, q querier) error {
		leaves := c.IsActive != nil && !*c.IsActive || c.IsAdmin != nil && !*c.IsAdmin
		if before, err = lockUser(ctx, q, id, leaves, c.OldHash); err != nil {
			return err
		}
		err := q.QueryRow(ctx, `
			UPDATE users u SET
			    email = coalesce($2, u.email), password_hash = coalesce($3, u.password_hash),
			    full_name = CASE WHEN $4 THEN $5 ELSE u.full_name END,
			    is_active = coalesce($6, u.is_active), is_admin = coalesce($7, u.is_admin), updated_at = now()
			WHERE u.id = $1 RETURNING `+userColumns,
			id, c.Email, c.PasswordHash, c.FullName.Set, c.FullName.Value, c.IsActive, c.IsAdmin).Scan(after.targets()...)
		if err == nil && (c.PasswordHash != nil || !after.IsActive) {
			_, err = q.Exec(ctx, `DELETE FROM sessions WHERE user_id = $1 AND id <> $2`, id, c.KeepSession)
		}
		return err
	}))
	return before, after, err
}

// deleteUser removes an account and all that belongs to it: errNotFound, errLastAdmin, or
// errWrongPassword where oldHash is not empty and no longer the account's. A million documents take some seconds.
func (st *store) deleteUser(id int64, oldHash string) error {
	return st.slowly(func(ctx context.Context, q querier) error {
		if _, err := lockUser(ctx, q, id, true, oldHash); err != nil {
			return err
		}
		_, err := q.Exec(ctx, `DELETE FROM users WHERE id = $1`, id)
		return err
	})
}

// lockUser locks an account and reads it: errWrongPassword unless oldHash is empty or still the account's. Where the
// account is about to leave the active admins, those are locked first, all of them and in the order of ids, so that two
// who remove each other wait for one another, and the second finds itself to be the last: errLastAdmin. A count without
// the lock lets both go.
func lockUser(ctx context.Context, q querier, id int64, leaves bool, oldHash string) (u user, err error) {
	var admins []int64
	if leaves {
		rows, _ := q.Query(ctx, `SELECT id FROM users WHERE is_admin AND is_active ORDER BY id FOR UPDATE`)
		if admins, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
			return u, err
		}
	}
	var hash string
	err = q.QueryRow(ctx, `SELECT `+userColumns+`, u.password_hash FROM users u WHERE u.id = $1 FOR UPDATE`, id).Scan(u.targets(&hash)...)
	switch {
	case err == nil && len(admins) == 1 && admins[0] == id:
		err = errLastAdmin
	case err == nil && oldHash != "" && oldHash != hash:
		err = errWrongPassword
	}
	return u, err
}

// promote makes the account of email an active admin: errNotFound where there is none.
func (st *store) promote(email string) error {
	return some(alter(st.once, `UPDATE users SET is_admin = true, is_active = true, updated_at = now() WHERE email = $1`, email))
}

// rehash replaces a password's hash by a costlier one of the same password, unless it has changed since.
func (st *store) rehash(id int64, oldHash, newHash string) error {
	_, err := alter(st.once, `UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2`, id, oldHash, newHash)
	return err
}

// ---- sessions ----

// living is the condition of a session s that may be used, with its user u.
const living = `s.expires_at > now() AND u.is_active`

// ofLiving joins tickets t (session, account, expires) with the sessions and users of those that may be used.
const ofLiving = `JOIN sessions s ON s.id = t.session AND s.user_id = t.account JOIN users u ON u.id = s.user_id
	WHERE t.expires > extract(epoch FROM now()) AND ` + living

// lookup is the arguments of authenticate.
type lookup struct {
	ticket
	account *user
}

// authenticate reads the account of a living session into u: errNotFound where the session has ended, the account
// is inactive, or the token has expired. It is the one query of most requests, unless their own statement asks for the
// session (alive in store_documents.go), and those that come together share it.
func (st *store) authenticate(t ticket, u *user) error { return st.lookups.do(&lookup{t, u}) }

// lookUp is authenticate without company.
func (st *store) lookUp(l *lookup) error {
	return st.again(func(ctx context.Context, q querier) error {
		return q.QueryRow(ctx, `
			SELECT `+userColumns+` FROM sessions s JOIN users u ON u.id = s.user_id
			WHERE s.id = $1 AND s.user_id = $2 AND $3::bigint > extract(epoch FROM now()) AND `+living,
			l.session, l.user, l.expires).Scan(l.account.targets()...)
	})
}

// lookUpTogether is lookUp for several. The arguments are numbers, so none can spoil it for the others.
func (st *store) lookUpTogether(calls []*call[*lookup]) error {
	var list tickets
	for _, c := range calls {
		list.add(c.args.ticket)
	}
	return st.again(func(ctx context.Context, q querier) error {
		for _, c := range calls {
			c.err = errNotFound
		}
		rows, _ := q.Query(ctx, `
			SELECT `+userColumns+`, t.place
			FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS t (session, account, expires, place) `+ofLiving,
			list.sessions, list.users, list.expires)
		var u user
		var place int
		_, err := pgx.ForEachRow(rows, u.targets(&place), func() error {
			*calls[place-1].args.account, calls[place-1].err = u, nil
			return nil
		})
		return err
	})
}

// tickets are a list of them as PostgreSQL takes it.
type tickets struct{ sessions, users, expires []int64 }

func (list *tickets) add(t ticket) {
	list.sessions, list.users, list.expires = append(list.sessions, t.session), append(list.users, t.user), append(list.expires, t.expires)
}

// createSession starts a session, provided that the account is still active and its password is still the
// one with this hash: errNotFound otherwise. The lock on the account makes it wait for a change
// under way, and the delete, a statement of its own, sees what that change left.
func (st *store) createSession(userID int64, hash string, c *caller, idle time.Duration) (s session, err error) {
	err = st.once(inTx(func(ctx context.Context, q querier) error {
		if err := q.QueryRow(ctx, `SELECT id FROM users WHERE id = $1 AND password_hash = $2 AND is_active FOR NO KEY UPDATE`, userID, hash).Scan(new(int64)); err != nil {
			return err
		}
		if _, err := q.Exec(ctx, `
			DELETE FROM sessions WHERE user_id = $1 AND (expires_at <= now() OR id IN
			    (SELECT id FROM sessions WHERE user_id = $1 AND expires_at > now() ORDER BY id DESC OFFSET $2))`,
			userID, maxSessions-1); err != nil {
			return err
		}
		return q.QueryRow(ctx, `
			INSERT INTO sessions AS s (user_id, expires_at, user_agent, ip) VALUES ($1, now() + $2, $3, $4)
			RETURNING `+sessionColumns,
			userID, idle, c.agent, c.client).Scan(s.targets()...)
	}))
	return s, err
}

const sessionColumns = `s.id, s.user_id, s.generation, s.rotated_at, s.expires_at`

func (s *session) targets(more ...any) []any {
	return append([]any{&s.ID, &s.UserID, &s.Generation, &s.RotatedAt, &s.ExpiresAt}, more...)
}

// rotation is the arguments of rotateSession. Its ticket is the refresh token's.
type rotation struct {
	ticket
	generation            int64
	idle, absolute, grace time.Duration
	rotated               session // what came of it
}

// rotateSession moves a session to the generation after r's, in one compare-and-set, and returns it. r's may be ahead of
// the row's: then the database lost a rotation in a fail-over, and the token is the truth. The loser of a
// race, and a client that lost the answer, get the state that the winner made, within grace after it.
// errNotFound where the session has ended or the token has expired; errRefreshReused where its generation was
// replaced earlier: then somebody else has the token, and the session is ended. Rotations that come together share
// a statement and a commit.
func (st *store) rotateSession(r rotation) (session, error) {
	err := st.rotations.do(&r)
	if err == errAlone {
		err = st.rotateAlone(&r)
	}
	return r.rotated, err
}

// rotateAlone is rotateSession for one that rotateTogether has passed over: it waits for a lock, and finds out the rest.
func (st *store) rotateAlone(r *rotation) error {
	s := &r.rotated
	return st.again(func(ctx context.Context, q querier) error {
		err := q.QueryRow(ctx, `
			UPDATE sessions s SET generation = $3 + 1, rotated_at = now(), expires_at = least(now() + $5, s.created_at + $6)
			FROM users u
			WHERE s.id = $1 AND s.user_id = $2 AND s.generation <= $3 AND $4 > extract(epoch FROM now())
			  AND u.id = s.user_id AND `+living+`
			RETURNING `+sessionColumns,
			r.session, r.user, r.generation, r.expires, r.idle, r.absolute).Scan(s.targets()...)
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		var recent bool
		err = q.QueryRow(ctx, `
			SELECT `+sessionColumns+`, s.rotated_at > now() - $5::interval
			FROM sessions s JOIN users u ON u.id = s.user_id
			WHERE s.id = $1 AND s.user_id = $2 AND s.generation > $3 AND $4 > extract(epoch FROM now()) AND `+living,
			r.session, r.user, r.generation, r.expires, r.grace).Scan(s.targets(&recent)...)
		if err != nil || recent && s.Generation == r.generation+1 {
			return err
		}
		if _, err := q.Exec(ctx, `DELETE FROM sessions WHERE id = $1`, r.session); err != nil {
			return err
		}
		return errRefreshReused
	})
}

// rotateTogether is the first step of rotateAlone for several. For most it is all there is to do.
func (st *store) rotateTogether(calls []*call[*rotation]) error {
	var list tickets
	var generations []int64
	var idle, absolute []time.Duration
	for _, c := range calls {
		r := c.args
		list.add(r.ticket)
		generations, idle, absolute = append(generations, r.generation), append(idle, r.idle), append(absolute, r.absolute)
	}
	return st.again(func(ctx context.Context, q querier) error {
		for _, c := range calls {
			c.err = errAlone
		}
		rows, _ := q.Query(ctx, `
			WITH t AS MATERIALIZED (
			    SELECT t.* FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::interval[], $6::interval[])
			        WITH ORDINALITY AS t (session, account, expires, generation, idle, absolute, place)
			    `+ofLiving+` AND s.generation <= t.generation FOR NO KEY UPDATE OF s SKIP LOCKED)
			UPDATE sessions s SET generation = t.generation + 1, rotated_at = now(), expires_at = least(now() + t.idle, s.created_at + t.absolute)
			FROM t WHERE s.id = t.session AND s.generation <= t.generation
			RETURNING `+sessionColumns+`, t.place`,
			list.sessions, list.users, list.expires, generations, idle, absolute)
		var s session
		var place int
		_, err := pgx.ForEachRow(rows, s.targets(&place), func() error {
			calls[place-1].args.rotated, calls[place-1].err = s, nil
			return nil
		})
		return err
	})
}

// listSessions returns a user's living sessions, the newest first.
func (st *store) listSessions(userID, current int64) ([]sessionInfo, error) {
	return all(st.again, pgx.RowToStructByPos[sessionInfo], maxSessions, `
		SELECT id, created_at, rotated_at, expires_at, user_agent, host(ip), id = $2
		FROM sessions WHERE user_id = $1 AND expires_at > now() ORDER BY id DESC`, userID, current)
}

// endSession ends one session of a user: errNotFound where it has none of that id.
func (st *store) endSession(userID, id int64) error {
	return some(alter(st.once, `DELETE FROM sessions WHERE id = $1 AND user_id = $2 AND expires_at > now()`, id, userID))
}

// endSessions ends all sessions of a user but keep, which is 0 for none.
func (st *store) endSessions(userID, keep int64) error {
	_, err := alter(st.again, `DELETE FROM sessions WHERE user_id = $1 AND id <> $2`, userID, keep)
	return err
}

// sweepSessions deletes sessions that have expired, in batches, passing over rows that others hold.
// It returns how many went.
func (st *store) sweepSessions() (total int64, err error) {
	for {
		swept, err := alter(st.once, `
			DELETE FROM sessions WHERE id IN
			    (SELECT id FROM sessions WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)`, sweepBatch)
		if total += swept; err != nil || swept < sweepBatch {
			return total, err
		}
	}
}
