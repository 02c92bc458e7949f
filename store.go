package main

// store.go holds every statement of the program, in the order of schema.sql. What goes in and out are plain
// types, and pgx is not seen beyond this file and postgres.go.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
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
func (st *store) createUser(ctx context.Context, n newUser) (u user, err error) {
	err = st.once(ctx, func(ctx context.Context, q querier) error {
		return q.QueryRow(ctx, `
			INSERT INTO users AS u (email, password_hash, full_name, is_active, is_admin)
			VALUES ($1, $2, $3, $4, $5)
			RETURNING `+userColumns,
			n.Email, n.PasswordHash, n.FullName, n.IsActive, n.IsAdmin).Scan(u.targets()...)
	})
	return u, err
}

// credentials is what a login is checked against: errNotFound where nobody has this e-mail.
func (st *store) credentials(ctx context.Context, email string) (u user, hash string, err error) {
	err = st.again(ctx, func(ctx context.Context, q querier) error {
		return q.QueryRow(ctx, `SELECT `+userColumns+`, u.password_hash FROM users u WHERE u.email = $1`, email).Scan(u.targets(&hash)...)
	})
	return u, hash, err
}

// passwordHash returns an account's hash, or errNotFound.
func (st *store) passwordHash(ctx context.Context, id int64) (hash string, err error) {
	err = st.again(ctx, func(ctx context.Context, q querier) error {
		return q.QueryRow(ctx, `SELECT password_hash FROM users WHERE id = $1`, id).Scan(&hash)
	})
	return hash, err
}

// getUser returns an account, or errNotFound.
func (st *store) getUser(ctx context.Context, id int64) (u user, err error) {
	err = st.again(ctx, func(ctx context.Context, q querier) error {
		return q.QueryRow(ctx, `SELECT `+userColumns+` FROM users u WHERE u.id = $1`, id).Scan(u.targets()...)
	})
	return u, err
}

// listUsers returns up to f.Limit accounts in the order of ids; f's nil fields do not restrict. How to look for
// f.Q depends on how rare it is, so that is planned for each: the index for a rare one, the order of ids for
// one that most have.
func (st *store) listUsers(ctx context.Context, f userFilter) (list []user, err error) {
	args := []any{f.After, f.IsActive, f.IsAdmin, f.Skip, f.Limit}
	find := func(ctx context.Context, q querier, where string) error {
		rows, _ := q.Query(ctx, `
			SELECT `+userColumns+` FROM users u
			WHERE u.id > coalesce($1::bigint, 0)
			  AND ($2::boolean IS NULL OR u.is_active = $2)
			  AND ($3::boolean IS NULL OR u.is_admin = $3)`+where+`
			ORDER BY u.id OFFSET $4 LIMIT $5`, args...)
		list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[user])
		return err
	}
	if f.Q == nil {
		return list, st.again(ctx, func(ctx context.Context, q querier) error { return find(ctx, q, "") })
	}
	args = append(args, "%"+strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(*f.Q)+"%")
	err = st.inTx(ctx, func(ctx context.Context, q querier) error {
		if _, err := q.Exec(ctx, `SET LOCAL plan_cache_mode = force_custom_plan`); err != nil {
			return err
		}
		return find(ctx, q, ` AND (u.email ILIKE $6 OR u.full_name ILIKE $6)`)
	})
	return list, err
}

// updateUser changes what c names and returns the account before and after: errNotFound, errEmailTaken,
// errLastAdmin, or errWrongPassword where c.OldHash is no longer the account's. A new password and a
// deactivation end the account's sessions but c.KeepSession.
func (st *store) updateUser(ctx context.Context, id int64, c userChange) (before, after user, err error) {
	err = st.inTx(ctx, func(ctx context.Context, q querier) error {
		var hash string
		leaves := c.IsActive != nil && !*c.IsActive || c.IsAdmin != nil && !*c.IsAdmin
		if err := lockUser(ctx, q, id, leaves, &before, &hash); err != nil {
			return err
		}
		if c.OldHash != "" && c.OldHash != hash {
			return errWrongPassword
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
	})
	return before, after, err
}

// deleteUser removes an account and all that belongs to it: errNotFound, errLastAdmin, or
// errWrongPassword where oldHash is not empty and no longer the account's. A million documents take some seconds.
func (st *store) deleteUser(ctx context.Context, id int64, oldHash string) error {
	return st.slowly(ctx, func(ctx context.Context, q querier) error {
		var u user
		var hash string
		if err := lockUser(ctx, q, id, true, &u, &hash); err != nil {
			return err
		}
		if oldHash != "" && oldHash != hash {
			return errWrongPassword
		}
		_, err := q.Exec(ctx, `DELETE FROM users WHERE id = $1`, id)
		return err
	})
}

// lockUser locks an account and reads it. Where it is about to leave the active admins, those are locked
// first, all of them and in the order of ids, so that two who remove each other wait for one another,
// and the second finds itself to be the last: errLastAdmin. A count without the lock lets both go.
func lockUser(ctx context.Context, q querier, id int64, leaves bool, u *user, hash *string) error {
	var admins []int64
	if leaves {
		rows, _ := q.Query(ctx, `SELECT id FROM users WHERE is_admin AND is_active ORDER BY id FOR UPDATE`)
		var err error
		if admins, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
			return err
		}
	}
	err := q.QueryRow(ctx, `SELECT `+userColumns+`, u.password_hash FROM users u WHERE u.id = $1 FOR UPDATE`, id).Scan(u.targets(hash)...)
	if err == nil && leaves && len(admins) == 1 && admins[0] == id {
		return errLastAdmin
	}
	return err
}

// promote makes the account of email an active admin: errNotFound where there is none.
func (st *store) promote(ctx context.Context, email string) error {
	return st.once(ctx, func(ctx context.Context, q querier) error {
		tag, err := q.Exec(ctx, `UPDATE users SET is_admin = true, is_active = true, updated_at = now() WHERE email = $1`, email)
		if err == nil && tag.RowsAffected() == 0 {
			return errNotFound
		}
		return err
	})
}

// rehash replaces a password's hash by a costlier one of the same password, unless it has changed since.
func (st *store) rehash(ctx context.Context, id int64, oldHash, newHash string) error {
	return st.once(ctx, func(ctx context.Context, q querier) error {
		_, err := q.Exec(ctx, `UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2`, id, oldHash, newHash)
		return err
	})
}

// ---- sessions ----

// createSession starts a session, provided that the account is still active and its password is still the
// one with this hash: errNotFound otherwise. The lock on the account makes it wait for a change
// under way, and the delete, a statement of its own, sees what that change left.
func (st *store) createSession(ctx context.Context, userID int64, hash string, c *caller, idle time.Duration) (s session, err error) {
	err = st.inTx(ctx, func(ctx context.Context, q querier) error {
		if err := q.QueryRow(ctx, `SELECT id FROM users WHERE id = $1 AND password_hash = $2 AND is_active FOR NO KEY UPDATE`, userID, hash).Scan(new(int64)); err != nil {
			return err
		}
		if _, err := q.Exec(ctx, `
			DELETE FROM sessions WHERE user_id = $1 AND (expires_at <= now() OR id IN
			    (SELECT id FROM sessions WHERE user_id = $1 AND expires_at > now() ORDER BY id DESC OFFSET $2))`,
			userID, maxSessions-1); err != nil {
			return err
		}
		var ip *netip.Addr
		if c.client.IsValid() {
			ip = &c.client
		}
		return q.QueryRow(ctx, `
			INSERT INTO sessions (user_id, expires_at, user_agent, ip) VALUES ($1, now() + $2, $3, $4)
			RETURNING id, user_id, generation, rotated_at, expires_at`,
			userID, idle, c.agent, ip).Scan(s.targets()...)
	})
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
func (st *store) rotateSession(ctx context.Context, c refreshClaims, userID int64, idle, absolute, grace time.Duration) (s session, err error) {
	err = st.again(ctx, func(ctx context.Context, q querier) error {
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
func (st *store) listSessions(ctx context.Context, userID, current int64) (list []sessionInfo, err error) {
	err = st.again(ctx, func(ctx context.Context, q querier) error {
		rows, _ := q.Query(ctx, `
			SELECT id, created_at, rotated_at, expires_at, user_agent, host(ip), id = $2
			FROM sessions WHERE user_id = $1 AND expires_at > now() ORDER BY id DESC`, userID, current)
		list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[sessionInfo])
		return err
	})
	return list, err
}

// endSession ends one session of a user: errNotFound where it has none of that id.
func (st *store) endSession(ctx context.Context, userID, id int64) error {
	return st.once(ctx, func(ctx context.Context, q querier) error {
		tag, err := q.Exec(ctx, `DELETE FROM sessions WHERE id = $1 AND user_id = $2 AND expires_at > now()`, id, userID)
		if err == nil && tag.RowsAffected() == 0 {
			return errNotFound
		}
		return err
	})
}

// endSessions ends all sessions of a user but keep, which is 0 for none.
func (st *store) endSessions(ctx context.Context, userID, keep int64) error {
	return st.again(ctx, func(ctx context.Context, q querier) error {
		_, err := q.Exec(ctx, `DELETE FROM sessions WHERE user_id = $1 AND id <> $2`, userID, keep)
		return err
	})
}

// sweepSessions deletes sessions that have expired, in batches, passing over rows that others hold.
// It returns how many went.
func (st *store) sweepSessions(ctx context.Context) (total int64, err error) {
	for {
		var swept int64
		err := st.once(ctx, func(ctx context.Context, q querier) error {
			tag, err := q.Exec(ctx, `
				DELETE FROM sessions WHERE id IN
				    (SELECT id FROM sessions WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)`, sweepBatch)
			swept = tag.RowsAffected()
			return err
		})
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

// readDocuments reads rows of documentColumns, and of what follows them into more: up to n of some 200 bytes, for
// which there is room at once. item makes of a document what is wanted.
func readDocuments[T any](rows pgx.Rows, n int64, item func(document) T, more ...any) ([]T, error) {
	list := make([]T, 0, n)
	var d document
	var embedding *pgvector.HalfVector
	columns := append([]any{&d.ID, &d.Content, (*[]byte)(&d.Metadata), &d.CreatedAt, &d.UpdatedAt, &embedding}, more...)
	_, err := pgx.ForEachRow(rows, columns, func() error {
		if embedding != nil {
			d.Embedding = embedding.Slice()
		}
		list = append(list, item(d))
		return nil
	})
	return list, err
}

// readDocument reads the row of one document: errNotFound where there is none.
func readDocument(rows pgx.Rows) (d document, err error) {
	list, err := readDocuments(rows, 1, itself)
	if err == nil && len(list) == 0 {
		err = errNotFound
	}
	if err != nil {
		return d, err
	}
	return list[0], nil
}

func itself(d document) document { return d }

// createDocuments inserts documents of t's user and returns them in the same order: all or none. Each has an embedding.
// errNotFound where the session has ended.
func (st *store) createDocuments(ctx context.Context, t ticket, list []documentInput, embeddings bool) (docs []document, err error) {
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
	err = insert(ctx, func(ctx context.Context, q querier) error {
		rows, _ := q.Query(ctx, `
			INSERT INTO documents AS d (owner_id, content, metadata, embedding)
			SELECT $1, content, metadata, embedding
			FROM unnest($5::text[], $6::jsonb[], $7::halfvec[]) WITH ORDINALITY AS item (content, metadata, embedding, place)
			WHERE `+alive+` ORDER BY place
			RETURNING `+documentColumns,
			t.user, embeddings, t.session, t.expires, contents, metadata, vectors)
		docs, err = readDocuments(rows, int64(len(list)), itself)
		if err == nil && len(docs) == 0 {
			return errNotFound
		}
		slices.SortFunc(docs, func(a, b document) int { return cmp.Compare(a.ID, b.ID) }) // they were numbered in the order of list
		return err
	})
	return docs, err
}

// getDocument returns a document of owner, or errNotFound.
func (st *store) getDocument(ctx context.Context, owner, id int64, embedding bool) (d document, err error) {
	err = st.again(ctx, func(ctx context.Context, q querier) error {
		rows, _ := q.Query(ctx, `SELECT `+documentColumns+` FROM documents d WHERE d.owner_id = $1 AND d.id = $3`, owner, embedding, id)
		d, err = readDocument(rows)
		return err
	})
	return d, err
}

// listDocuments returns up to in.Limit documents of owner in the order of ids.
func (st *store) listDocuments(ctx context.Context, owner int64, in listDocumentsInput) (list []document, err error) {
	if in.Filter != nil {
		leave, err := st.take(acquireTimeout)
		if err != nil {
			return nil, err
		}
		defer leave()
	}
	args := []any{owner, in.Include != nil, in.After, in.Limit}
	err = st.again(ctx, func(ctx context.Context, q querier) error {
		rows, _ := q.Query(ctx, `
			SELECT `+documentColumns+` FROM documents d
			WHERE d.owner_id = $1 AND d.id > coalesce($3::bigint, 0)`+filterBy(in.Filter, &args)+`
			ORDER BY d.id LIMIT $4`, args...)
		list, err = readDocuments(rows, in.Limit, itself)
		return tooMuchWork(err, in.Filter != nil)
	})
	return list, err
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
func (st *store) updateDocument(ctx context.Context, owner int64, in updateDocumentInput) (d document, err error) {
	var embedding *pgvector.HalfVector
	if in.Embedding != nil {
		v := pgvector.NewHalfVector(in.Embedding)
		embedding = &v
	}
	err = st.once(ctx, func(ctx context.Context, q querier) error {
		rows, _ := q.Query(ctx, `
			UPDATE documents d SET content = coalesce($4, d.content), metadata = coalesce($5, d.metadata),
			    embedding = coalesce($6, d.embedding), updated_at = now()
			WHERE d.owner_id = $1 AND d.id = $3 RETURNING `+documentColumns,
			owner, in.Include != nil, in.ID, in.Content, []byte(in.Metadata), embedding)
		d, err = readDocument(rows)
		return err
	})
	return d, err
}

// deleteDocument removes a document of owner, or returns errNotFound.
func (st *store) deleteDocument(ctx context.Context, owner, id int64) error {
	return st.once(ctx, func(ctx context.Context, q querier) error {
		tag, err := q.Exec(ctx, `DELETE FROM documents WHERE owner_id = $1 AND id = $2`, owner, id)
		if err == nil && tag.RowsAffected() == 0 {
			return errNotFound
		}
		return err
	})
}

// fuseDepth is how many of each ranking mode hybrid fuses: more than the largest limit, so that a document at
// the end of one list has had its chance in the other.
const fuseDepth = "200"

// search returns the in.Limit documents of t's user that fit best, and none where the session has ended. The ids and
// scores are found in a step of their own, so that only the few that are found are read whole. Equals go by id.
// textSearch is the configuration that the words were made with.
func (st *store) search(ctx context.Context, t ticket, in searchInput, textSearch string) (results []found, err error) {
	leave, err := st.take(acquireTimeout)
	if err != nil {
		return nil, err
	}
	defer leave()
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
	sql += `
		SELECT ` + documentColumns + `, f.score, f.distance FROM found f JOIN documents d ON d.owner_id = $1 AND d.id = f.id
		ORDER BY f.distance, f.score DESC, f.id`
	err = st.again(ctx, func(ctx context.Context, q querier) error {
		var score float64
		var distance *float64
		rows, _ := q.Query(ctx, sql, args...)
		results, err = readDocuments(rows, in.Limit, func(d document) found { return found{d, score, distance} }, &score, &distance)
		return tooMuchWork(err, in.Mode != "vector" || in.Filter != nil)
	})
	return results, err
}
