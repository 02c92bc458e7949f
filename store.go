package main

// store.go holds every statement of the program, in the order of schema.sql. What goes in and out are plain
// types, and pgx is not seen beyond this file and postgres.go.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"
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
			INSERT INTO sessions (user_id, expires_at, user_agent, ip) VALUES ($1, now() + $2, $3, $4)
			RETURNING id, user_id, generation, rotated_at, expires_at`,
			userID, idle, c.agent, c.client).Scan(s.targets()...)
	}))
	return s, err
}

func (s *session) targets() []any {
	return []any{&s.ID, &s.UserID, &s.Generation, &s.RotatedAt, &s.ExpiresAt}
}

// rotateSession moves a session to the generation after g, in one compare-and-set. g may be ahead of the
// row: then the database lost a rotation in a fail-over, and the token is the truth. The loser of a
// race, and a client that lost the answer, get the state that the winner made, within grace after it.
// errNotFound where the session has ended or the token has expired; errRefreshReused where g was
// replaced earlier: then somebody else has the token, and the session is ended.
func (st *store) rotateSession(c refreshClaims, userID int64, idle, absolute, grace time.Duration) (s session, err error) {
	err = st.again(func(ctx context.Context, q querier) error {
		err := q.QueryRow(ctx, `
			UPDATE sessions s SET generation = $3 + 1, rotated_at = now(), expires_at = least(now() + $5, s.created_at + $6)
			FROM users u
			WHERE s.id = $1 AND s.user_id = $2 AND s.generation <= $3 AND s.expires_at > now() AND $4 > extract(epoch FROM now())
			  AND u.id = s.user_id AND u.is_active
			RETURNING s.id, s.user_id, s.generation, s.rotated_at, s.expires_at`,
			c.Session, userID, c.Generation, c.Expires, idle, absolute).Scan(s.targets()...)
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		var recent bool
		err = q.QueryRow(ctx, `
			SELECT s.id, s.user_id, s.generation, s.rotated_at, s.expires_at, s.rotated_at > now() - $5::interval
			FROM sessions s JOIN users u ON u.id = s.user_id
			WHERE s.id = $1 AND s.user_id = $2 AND s.generation > $3 AND s.expires_at > now() AND $4 > extract(epoch FROM now())
			  AND u.is_active`,
			c.Session, userID, c.Generation, c.Expires, grace).Scan(append(s.targets(), &recent)...)
		if err != nil || recent && s.Generation == c.Generation+1 {
			return err
		}
		if _, err := q.Exec(ctx, `DELETE FROM sessions WHERE id = $1`, c.Session); err != nil {
			return err
		}
		return errRefreshReused
	})
	return s, err
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

// ---- documents ----

// alive is true while the session $3 of the user $1 lives, whose token expires at $4: with it, the statement needs no
// look-up before. It is found out once a statement.
const alive = `EXISTS (SELECT FROM sessions s JOIN users u ON u.id = s.user_id
	WHERE s.id = $3 AND s.user_id = $1 AND $4::bigint > extract(epoch FROM now()) AND ` + living + `)`

// documentColumns end with the embedding, which is null unless the parameter $2 asks for it.
const documentColumns = `d.id, d.content, d.metadata, d.created_at, d.updated_at, CASE WHEN $2::boolean THEN d.embedding END`

// toDocument makes a reader of the rows of one statement: of documentColumns, and of what follows them into more.
func toDocument(more ...any) pgx.RowToFunc[document] {
	var d document
	var embedding *pgvector.HalfVector
	columns := append([]any{&d.ID, &d.Content, (*[]byte)(&d.Metadata), &d.CreatedAt, &d.UpdatedAt, &embedding}, more...)
	return func(row pgx.CollectableRow) (document, error) {
		err := row.Scan(columns...)
		if embedding != nil {
			d.Embedding = embedding.Slice()
		}
		return d, err
	}
}

// createDocuments inserts documents of t's user and returns them in the same order: all or none. Each has an embedding.
// errNotFound where the session has ended.
func (st *store) createDocuments(t ticket, list []documentInput, embeddings bool) ([]document, error) {
	contents, metadata, vectors := make([]string, len(list)), make([][]byte, len(list)), make([]pgvector.HalfVector, len(list))
	for i, in := range list {
		contents[i], metadata[i], vectors[i] = in.Content, in.Metadata, pgvector.NewHalfVector(in.Embedding)
		if in.Metadata == nil {
			metadata[i] = []byte("{}")
		}
	}
	insert := st.once
	if len(list) > 1 {
		insert = st.slowly
	}
	docs, err := all(insert, toDocument(), int64(len(list)), `
		INSERT INTO documents AS d (owner_id, content, metadata, embedding)
		SELECT $1, content, metadata, embedding
		FROM unnest($5::text[], $6::jsonb[], $7::halfvec[]) WITH ORDINALITY AS item (content, metadata, embedding, place)
		WHERE `+alive+` ORDER BY place
		RETURNING `+documentColumns,
		t.user, embeddings, t.session, t.expires, contents, metadata, vectors)
	slices.SortFunc(docs, func(a, b document) int { return cmp.Compare(a.ID, b.ID) }) // they were numbered in the order of list
	return docs, some(int64(len(docs)), err)
}

// getDocument returns a document of owner, or errNotFound.
func (st *store) getDocument(owner, id int64, embedding bool) (document, error) {
	return first(st.again, toDocument(), `SELECT `+documentColumns+` FROM documents d WHERE d.owner_id = $1 AND d.id = $3`, owner, embedding, id)
}

// listDocuments returns up to in.Limit documents of owner in the order of ids, and one more where there is one.
func (st *store) listDocuments(owner int64, in listDocumentsInput) ([]document, error) {
	run, args := st.again, []any{owner, in.Include != nil, in.After, in.Limit + 1}
	if in.Filter != nil {
		run = st.heavily(true)
	}
	where := filterBy(in.Filter, &args)
	return all(run, toDocument(), in.Limit+1, `
		SELECT `+documentColumns+` FROM documents d
		WHERE d.owner_id = $1 AND d.id > coalesce($3::bigint, 0)`+where+`
		ORDER BY d.id LIMIT $4`, args...)
}

// filterBy is the condition for a filter, whose value it adds to args. A statement without it has another
// text, and so a plan of its own.
func filterBy(filter jsonObject, args *[]any) string {
	if filter == nil {
		return ""
	}
	*args = append(*args, []byte(filter))
	return fmt.Sprintf(" AND metadata @> $%d::jsonb", len(*args))
}

// updateDocument changes what in names and returns the document of owner, or errNotFound.
func (st *store) updateDocument(owner int64, in updateDocumentInput) (document, error) {
	var embedding any
	if in.Embedding != nil {
		embedding = pgvector.NewHalfVector(in.Embedding)
	}
	return first(st.once, toDocument(), `
		UPDATE documents d SET content = coalesce($4, d.content), metadata = coalesce($5, d.metadata),
		    embedding = coalesce($6, d.embedding), updated_at = now()
		WHERE d.owner_id = $1 AND d.id = $3 RETURNING `+documentColumns,
		owner, in.Include != nil, in.ID, in.Content, []byte(in.Metadata), embedding)
}

// deleteDocument removes a document of owner, or returns errNotFound.
func (st *store) deleteDocument(owner, id int64) error {
	return some(alter(st.once, `DELETE FROM documents WHERE owner_id = $1 AND id = $2`, owner, id))
}

// fuseDepth is how many of each ranking mode hybrid fuses: more than the largest limit, so that a document at
// the end of one list has had its chance in the other.
const fuseDepth = "200"

// search returns the in.Limit documents of t's user that fit best, and none where the session has ended. The ids and
// scores are found in a step of their own, so that only the few that are found are read whole. Equals go by id.
// textSearch is the configuration that the words were made with.
func (st *store) search(t ticket, in searchInput, textSearch string) ([]found, error) {
	args := []any{t.user, in.Include != nil, t.session, t.expires, in.Limit}
	arg := func(v any) string { args = append(args, v); return fmt.Sprintf("$%d", len(args)) }
	where := "owner_id = $1 AND " + alive + filterBy(in.Filter, &args)
	var nearest, matching, sql string
	if in.Mode != "text" {
		distance := "embedding <=> " + arg(pgvector.NewHalfVector(in.Embedding))
		nearest = "AS MATERIALIZED (SELECT id, " + distance + " AS distance, 1 - (" + distance + ") AS score FROM documents WHERE " + where + " ORDER BY distance, id LIMIT "
	}
	if in.Mode != "vector" {
		query := "websearch_to_tsquery(" + arg(textSearch) + "::text::regconfig, " + arg(wordsOf(*in.Query)) + ")"
		matching = "AS MATERIALIZED (SELECT id, NULL::float8 AS distance, ts_rank(words, " + query + ")::float8 AS score FROM documents WHERE " + where + " AND words @@ " + query + " ORDER BY score DESC, id LIMIT "
	}
	switch in.Mode {
	case "vector":
		sql = "WITH found " + nearest + "$5)"
	case "text":
		sql = "WITH found " + matching + "$5)"
	case "hybrid":
		sql = "WITH nearest " + nearest + fuseDepth + "), matching " + matching + fuseDepth + `), found AS MATERIALIZED (
			SELECT id, NULL::float8 AS distance, sum(1.0::float8 / (60 + place)) AS score FROM (
			    SELECT id, row_number() OVER (ORDER BY distance, id) AS place FROM nearest UNION ALL
			    SELECT id, row_number() OVER (ORDER BY score DESC, id) FROM matching) AS places
			GROUP BY id ORDER BY score DESC, id LIMIT $5)`
	}
	var f found
	read := toDocument(&f.Score, &f.Distance)
	toFound := func(row pgx.CollectableRow) (_ found, err error) {
		f.Document, err = read(row)
		return f, err
	}
	return all(st.heavily(in.Mode != "vector" || in.Filter != nil), toFound, in.Limit, sql+`
		SELECT `+documentColumns+`, f.score, f.distance FROM found f JOIN documents d ON d.owner_id = $1 AND d.id = f.id
		ORDER BY f.distance, f.score DESC, f.id`, args...)
}
