package main

// store_documents.go holds every statement about documents. Each is of one owner, or of as many as there are tickets.

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"
)

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

// shareable is up to how many bytes of content and metadata a document may share a statement: one of this size takes
// PostgreSQL a millisecond at most.
const shareable = 4 << 10

// createDocuments inserts documents of t's user and returns them in the same order: all or none. Each has an embedding.
// errNotFound where the session has ended. Short ones that come together, one each, share a statement and a commit.
func (st *store) createDocuments(t ticket, list []documentInput, embeddings bool) ([]document, error) {
	run := st.once
	if len(list) > 1 {
		run = st.slowly
	} else if len(list[0].Content)+len(list[0].Metadata) <= shareable && !embeddings {
		in := insertion{ticket: t, input: list[0]}
		if err := st.insertions.do(&in); err != errAlone {
			return []document{in.stored}, err
		}
	}
	var holder tickets
	holder.add(t)
	return insertDocuments(run, holder, list, embeddings, "")
}

// insertion is a document that may share a statement.
type insertion struct {
	ticket
	input  documentInput
	stored document // what came of it
}

// insertTogether stores one document of each call. Where one cannot be stored, by its own fault or for a lock on its
// account, none is, and each is tried alone.
func (st *store) insertTogether(calls []*call[*insertion]) error {
	var holders tickets
	var list []documentInput
	for _, c := range calls {
		holders.add(c.args.ticket)
		list = append(list, c.args.input)
	}
	docs, err := insertDocuments(st.once, holders, list, false, " SKIP LOCKED")
	for i, c := range calls {
		if err != nil {
			c.err = errAlone
		} else {
			c.args.stored = docs[i]
		}
	}
	if errors.Is(err, errUnavailable) {
		return err
	}
	return nil
}

// insertDocuments inserts documents of the holder of the one ticket, or each of the holder of its own, and returns them
// in the same order: all or none. errNotFound where a session has ended. An account that is about to be deleted is
// waited for, or, with " SKIP LOCKED", taken for one that is.
func insertDocuments(run runner, holders tickets, list []documentInput, embeddings bool, locked string) ([]document, error) {
	n := len(list)
	owners, contents, metadata, vectors := make([]int64, n), make([]string, n), make([][]byte, n), make([]pgvector.HalfVector, n)
	for i, in := range list {
		owners[i], contents[i], metadata[i], vectors[i] = holders.users[min(i, len(holders.users)-1)], in.Content, in.Metadata, pgvector.NewHalfVector(in.Embedding)
		if in.Metadata == nil {
			metadata[i] = []byte("{}")
		}
	}
	docs, err := all(run, toDocument(), int64(n), `
		INSERT INTO documents AS d (owner_id, content, metadata, embedding)
		SELECT owner, content, metadata, embedding
		FROM unnest($5::bigint[], $6::text[], $7::jsonb[], $8::halfvec[]) WITH ORDINALITY AS item (owner, content, metadata, embedding, place)
		WHERE cardinality($1::bigint[]) = (SELECT count(*) FROM (
		    SELECT FROM unnest($1::bigint[], $3::bigint[], $4::bigint[]) AS t (session, account, expires)
		    `+ofLiving+` FOR KEY SHARE OF u`+locked+`) AS alive)
		ORDER BY place
		RETURNING `+documentColumns,
		holders.sessions, embeddings, holders.users, holders.expires, owners, contents, metadata, vectors)
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
		nearest = "WITH nearest AS MATERIALIZED (SELECT id, " + distance + " AS distance FROM documents WHERE " + where + " ORDER BY distance, id LIMIT "
	}
	if in.Mode != "vector" {
		query := "websearch_to_tsquery(" + arg(textSearch) + "::text::regconfig, " + arg(wordsOf(*in.Query)) + ")"
		matching = "AS MATERIALIZED (SELECT id, NULL::float8 AS distance, ts_rank(words, " + query + ")::float8 AS score FROM documents WHERE " + where + " AND words @@ " + query + " ORDER BY score DESC, id LIMIT "
	}
	switch in.Mode {
	case "vector":
		sql = nearest + "$5), found AS (SELECT id, distance, 1 - distance AS score FROM nearest)"
	case "text":
		sql = "WITH found " + matching + "$5)"
	case "hybrid":
		sql = nearest + fuseDepth + "), matching " + matching + fuseDepth + `), found AS MATERIALIZED (
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
