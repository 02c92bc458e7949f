package main

// store_documents.go holds every statement about documents. Each sees those of one owner alone.

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"
)

// documentColumns end with the embedding, which is null unless the argument $2 is true.
const documentColumns = `d.id, d.key, d.content, d.metadata, d.created_at, d.updated_at,
	CASE WHEN $2::boolean THEN d.embedding END`

// searchBytes bounds the contents of a search's results: 100 documents of the longest in ASCII.
const searchBytes = 8 << 20

// errLongMetadata is the violation of documents_metadata_check, of metadata that grows when stored.
var errLongMetadata = invalidField("metadata", "too_long",
	"must have at most 32 KiB as it is stored, with its numbers written out")

var errLongResults = invalidField("limit", "value_error",
	"is too large: the results hold more than 8 MiB of content")

// scanDocument returns a reader of rows of documentColumns, and of further columns into more.
func scanDocument(more ...any) pgx.RowToFunc[document] {
	return func(row pgx.CollectableRow) (d document, err error) {
		var embedding *pgvector.HalfVector
		err = row.Scan(append([]any{&d.ID, &d.Key, &d.Content, (*[]byte)(&d.Metadata),
			&d.CreatedAt, &d.UpdatedAt, &embedding}, more...)...)
		if embedding != nil {
			d.Embedding = embedding.Slice()
		}
		return d, err
	}
}

// createDocuments inserts documents, all or none, and returns them in the same order: errNotFound
// where the account has gone. Of documents that owner has under their keys, upsert replaces all, in
// the order of keys, so that two calls do not deadlock; without upsert these are errKeyTaken. It
// calls reserve before it writes, but after it has waited for its turn.
func (st *store) createDocuments(
	ctx context.Context, owner int64, list []documentInput, upsert, embeddings bool,
	reserve func() error,
) (documents, error) {
	n := len(list)
	keys, contents, metadata := make([]*string, n), make([]string, n), make([]string, n)
	vectors := make([]pgvector.HalfVector, n)
	for i, in := range list {
		keys[i] = in.Key.Value
		contents[i], vectors[i] = in.Content, pgvector.NewHalfVector(in.Embedding)
		metadata[i] = cmp.Or(string(in.Metadata), "{}")
	}
	run := reserveFirst(reserve, st.run)
	if n > 1 { // the slot first, then the memory, then the connection
		long := tooMuchWork(st.runLong, "body", "send fewer documents at once")
		run = inSlot(&st.bulk, reserveFirst(reserve, long))
	}
	// Citus refuses parameters here.
	returning := strings.Replace(documentColumns, "$2", strconv.FormatBool(embeddings), 1)
	order, onConflict := "ordinal", ""
	if upsert {
		order = "key, ordinal"
		onConflict = `
		ON CONFLICT (owner_id, key) WHERE key IS NOT NULL DO UPDATE SET content = excluded.content,
		    metadata = excluded.metadata, embedding = excluded.embedding,
		    updated_at = greatest(excluded.updated_at,
		        d.updated_at + interval '1 microsecond')`
	}
	docs, err := queryAll(ctx, run, scanDocument(), `
		INSERT INTO documents AS d (owner_id, key, content, metadata, embedding)
		SELECT $1, key, content, metadata, embedding
		FROM unnest($2::text[], $3::text[], $4::jsonb[], $5::halfvec[])
		    WITH ORDINALITY AS item (key, content, metadata, embedding, ordinal)
		ORDER BY `+order+onConflict+` RETURNING `+returning,
		owner, keys, contents, metadata, vectors)
	// Sort as in list: its keys are unique, and the ids of those without one ascend.
	slices.SortFunc(docs, func(a, b document) int { return cmp.Compare(a.ID, b.ID) })
	byKey := map[string]documents{}
	for _, d := range docs {
		byKey[keyText(d.Key)] = append(byKey[keyText(d.Key)], d)
	}
	for i := range docs {
		key := keyText(keys[i])
		docs[i] = byKey[key][0]
		byKey[key] = byKey[key][1:]
	}
	return docs, documentRefusal(err)
}

// reserveFirst returns run after reserve.
func reserveFirst(reserve func() error, run runner) runner {
	return func(ctx context.Context, f queryFunc) error {
		if err := reserve(); err != nil {
			return err
		}
		return run(ctx, f)
	}
}

// documentRefusal returns the refusal of a document whose constraint err violates, or err.
func documentRefusal(err error) error {
	err = onConstraint(err, "documents_metadata_check", errLongMetadata)
	return onConstraint(err, "documents_key_idx", errKeyTaken)
}

// keyText returns the text of a key, "" where there is none.
func keyText(key *string) string {
	if key == nil {
		return ""
	}
	return *key
}

// storedKeys returns the indexes in list of keys that owner has already, with the stored embeddings
// where the contents are equal.
func (st *store) storedKeys(
	ctx context.Context, owner int64, list []documentInput,
) (map[int]vector, error) {
	keys, contents := make([]*string, len(list)), make([]string, len(list))
	for i, in := range list {
		keys[i], contents[i] = in.Key.Value, in.Content
	}
	type row struct {
		Index     int
		Embedding *pgvector.HalfVector
	}
	rows, err := queryAll(ctx, st.runIdempotent, pgx.RowToStructByPos[row], `
		SELECT ordinal - 1, CASE WHEN d.content = item.content THEN embedding END
		FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS item (key, content, ordinal)
		JOIN documents d ON d.owner_id = $1 AND d.key = item.key`, owner, keys, contents)
	stored := map[int]vector{}
	for _, r := range rows {
		stored[r.Index] = nil
		if r.Embedding != nil {
			stored[r.Index] = r.Embedding.Slice()
		}
	}
	return stored, err
}

// getDocument returns a document of owner, or errNotFound.
func (st *store) getDocument(
	ctx context.Context, owner, id int64, embedding bool,
) (document, error) {
	return queryOne(ctx, st.runIdempotent, scanDocument(), `
		SELECT `+documentColumns+` FROM documents d WHERE d.owner_id = $1 AND d.id = $3`,
		owner, embedding, id)
}

// pageBytes bounds the contents of a page, which has at least one document: 100 of 10 KB.
const pageBytes = 1 << 20

// listDocuments returns up to in.Limit documents of owner in the order of ids, as many as pageBytes
// allows, and reports whether there are more.
func (st *store) listDocuments(
	ctx context.Context, owner int64, in listDocumentsInput,
) (list documents, more bool, err error) {
	run := st.runIdempotent
	if in.Filter != nil {
		run = st.runLimited("query")
	}
	where, args := in.where(owner, in.Include != nil, in.After, in.Limit+1, int64(pageBytes))
	var total int64 // the same in each row
	list, err = queryAll(ctx, run, scanDocument(&total), `
		SELECT `+documentColumns+`, p.total
		FROM (SELECT id, count(*) OVER () AS total, row_number() OVER w AS number,
		          sum(octet_length(content)) OVER w AS bytes
		      FROM (SELECT id, content FROM documents
		            WHERE owner_id = $1 AND id > coalesce($3::bigint, 0)`+where+`
		            ORDER BY id LIMIT $4) AS page
		      WINDOW w AS (ORDER BY id)) AS p
		JOIN documents d ON d.owner_id = $1 AND d.id = p.id
		WHERE p.number < $4 AND (p.bytes <= $5 OR p.number = 1)
		ORDER BY d.id`, args...)
	return list, int64(len(list)) < total, err
}

// where returns the condition for a selection, and args with its values.
func (sel selection) where(args ...any) (string, []any) {
	sql := filterBy(sel.Filter, &args)
	if sel.IDs != nil {
		args = append(args, *sel.IDs)
		sql += fmt.Sprintf(" AND id = ANY ($%d)", len(args))
	}
	if sel.Keys != nil {
		args = append(args, *sel.Keys)
		sql += fmt.Sprintf(" AND key = ANY ($%d)", len(args))
	}
	if hasOperators(sel.Filter) { // clients make the text: PostgreSQL would keep many plans
		args = append([]any{pgx.QueryExecModeCacheDescribe}, args...)
	}
	return sql, args
}

// runLimited runs idempotent statements in a slot of st.expensive. source says where the client has
// chosen words or a filter, "query" or "body"; "" means that it has chosen none.
func (st *store) runLimited(source string) runner {
	run := st.runIdempotent
	if source != "" {
		run = tooMuchWork(run, source, "use fewer words, or a smaller filter")
	}
	return inSlot(&st.expensive, run)
}

// tooMuchWork returns run for statements whose cost the client has chosen: if they take too long,
// or are too much for PostgreSQL's parser, the error is a 422 for source with advice, not a 503.
func tooMuchWork(run runner, source, advice string) runner {
	return func(ctx context.Context, f queryFunc) error {
		return run(ctx, func(ctx context.Context, q querier) error {
			err := f(ctx, q)
			if sqlState(err, "57014", "54001", "54000") {
				return invalid(fieldError{[]any{source}, "takes too much work: " + advice,
					"value_error"})
			}
			return err
		})
	}
}

// countDocuments returns how many documents of owner are selected.
func (st *store) countDocuments(ctx context.Context, owner int64, sel selection) (int64, error) {
	where, args := sel.where(owner)
	source := ""
	if sel.Filter != nil {
		source = "query"
	}
	return queryOne(ctx, st.runLimited(source), pgx.RowTo[int64],
		`SELECT count(*) FROM documents WHERE owner_id = $1`+where, args...)
}

// deleteDocuments removes the selected documents of owner, all or none, and returns their number.
func (st *store) deleteDocuments(ctx context.Context, owner int64, sel selection) (int64, error) {
	where, args := sel.where(owner)
	return exec(ctx, st.runLimited("query"),
		`DELETE FROM documents WHERE owner_id = $1`+where, args...)
}

// updateDocument changes what in names and returns the document of owner, or errNotFound, also
// where in.UpdatedAt is not its time.
func (st *store) updateDocument(
	ctx context.Context, owner int64, in updateDocumentInput,
) (document, error) {
	var embedding any
	if in.Embedding != nil {
		embedding = pgvector.NewHalfVector(in.Embedding)
	}
	d, err := queryOne(ctx, st.run, scanDocument(), `
		UPDATE documents d SET content = coalesce($4, d.content),
		    metadata = coalesce($5, d.metadata), embedding = coalesce($6, d.embedding),
		    key = CASE WHEN $7::boolean THEN $8 ELSE d.key END,
		    updated_at = greatest(now(), d.updated_at + interval '1 microsecond')
		WHERE d.owner_id = $1 AND d.id = $3 AND d.updated_at = coalesce($9, d.updated_at)
		RETURNING `+documentColumns, owner, in.Include != nil, in.ID, in.Content,
		[]byte(in.Metadata), embedding, in.Key.Set, in.Key.Value, in.UpdatedAt)
	return d, documentRefusal(err)
}

// deleteDocument removes a document of owner, or returns errNotFound.
func (st *store) deleteDocument(ctx context.Context, owner, id int64) error {
	return requireRow(exec(ctx, st.run,
		`DELETE FROM documents WHERE owner_id = $1 AND id = $2`, owner, id))
}

// searchModes are the common table expressions of each mode; the last, best, has the results.
// {filter} is a condition, {embedding} a placeholder, {enough} a number of results. Hybrid is
// reciprocal rank fusion: it adds up vote / (60 + rank). A vote is 1, but for part of the words
// their share ^ 6: that is little.
var searchModes = map[string]string{
	"vector": nearestVectors + `$3), best AS (SELECT *, 1 - distance AS score FROM nearest)`,
	"text": matchingWords + `best AS MATERIALIZED (
	    SELECT id, NULL::float8 AS distance, score FROM matching
	    ORDER BY score DESC, id LIMIT $3)`,
	"hybrid": nearestVectors + fuseDepth + `), ` + matchingWords + `best AS MATERIALIZED (
	    SELECT id, NULL::float8 AS distance, sum(vote / (60 + rank)) AS score
	    FROM (SELECT id, row_number() OVER (ORDER BY distance, id) AS rank,
	              1.0::float8 AS vote FROM nearest
	          UNION ALL
	          SELECT id, row_number() OVER (ORDER BY score DESC, id),
	              least(score, 1) ^ 6 FROM matching) p
	    GROUP BY id ORDER BY score DESC, id LIMIT $3)`,
}

// fuseDepth is how many results of each ranking mode hybrid fuses: more than the largest limit, so
// that the other ranking can lift a document that is low in one.
const fuseDepth = "200"

// nearestVectors finds the documents nearest to the embedding; the limit follows. The distance is
// that of a function, not of the operator <=>: for that the planner takes an HNSW index, which
// would lose rows.
const nearestVectors = `nearest AS MATERIALIZED (
	    SELECT id, cosine_distance(embedding, {embedding}) AS distance
	    FROM documents WHERE owner_id = $1{filter} ORDER BY distance, id LIMIT `

// matchingWords finds the documents that fit a query: $4 is the configuration of their words, $5 to
// $7 are the results of searchWords. Complete ones, with all words, come first and score from 1 on.
// Where they are fewer than the limit $3, or in hybrid than fuseDepth, others follow: these have
// the required parts, and score the share of the optional words that they have, rare ones weighing
// more. Of these words the 64 longest are looked up, and for each the first 2,000 documents: that
// bounds the cost.
const matchingWords = `query AS MATERIALIZED (
	    SELECT websearch_to_tsquery(config, search_text($5)) AS whole,
	        websearch_to_tsquery(config, search_text($6)) AS required,
	        to_tsvector(config, search_text($7)) AS optional
	    FROM (SELECT $4::text::regconfig AS config) AS c),
	complete AS MATERIALIZED (
	    SELECT id, 1 + ts_rank(words, (SELECT whole FROM query))::float8 AS score
	    FROM documents WHERE owner_id = $1{filter} AND words @@ (SELECT whole FROM query)
	    ORDER BY score DESC, id LIMIT ` + fuseDepth + `),
	terms AS MATERIALIZED (
	    SELECT ids, 1 / sqrt(1 + n) AS weight
	    FROM query, LATERAL (
	        SELECT lexeme FROM unnest(optional) ORDER BY length(lexeme) DESC, lexeme LIMIT 64) AS w,
	    LATERAL (
	        SELECT count(*) AS n, array_agg(id) AS ids
	        FROM (SELECT id FROM documents WHERE owner_id = $1{filter}
	              AND words @@ (quote_literal(lexeme)::tsquery && required) LIMIT 2000) AS d) AS t
	    WHERE (SELECT count(*) FROM complete) < {enough}),
	matching AS MATERIALIZED (
	    SELECT * FROM complete
	    UNION ALL
	    (SELECT id, sum(weight) / (SELECT sum(weight) FROM terms) AS score
	     FROM terms, unnest(ids) AS id WHERE id NOT IN (SELECT id FROM complete)
	     GROUP BY id ORDER BY score DESC, id LIMIT ` + fuseDepth + `)),
	`

// searchDocuments returns the in.Limit documents of owner that fit best, equals by id. Only these
// are read whole, in a second step. textSearch is the configuration of their words.
func searchDocuments(
	ctx context.Context, run runner, owner int64, in searchInput, textSearch string,
) ([]match, error) {
	args := []any{owner, in.Include != nil, in.Limit}
	if in.Mode != "vector" {
		whole, required, optional := searchWords(*in.Query)
		args = append(args, textSearch, whole, required, optional)
	}
	if in.Mode != "text" {
		args = append(args, pgvector.NewHalfVector(in.Embedding))
	}
	embedding, enough := "$"+strconv.Itoa(len(args)), "$3"
	if in.Mode == "hybrid" {
		enough = fuseDepth
	}
	where, args := selection{Filter: in.Filter}.where(args...)
	sql := strings.NewReplacer("{embedding}", embedding, "{enough}", enough, "{filter}", where)
	return queryMatches(ctx, run, sql.Replace(searchModes[in.Mode]), args...)
}

// queryMatches returns the documents of best, a common table expression in sql, or errLongResults.
func queryMatches(
	ctx context.Context, run runner, sql string, args ...any,
) (list []match, err error) {
	err = run(ctx, func(ctx context.Context, q querier) (err error) {
		rows, _ := q.Query(ctx, `WITH `+sql+`
			SELECT `+documentColumns+`, b.score, b.distance
			FROM best b JOIN documents d ON d.owner_id = $1 AND d.id = b.id
			ORDER BY b.distance, b.score DESC, b.id`, args...)
		size := 0 // of a try
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (m match, err error) {
			m.Document, err = scanDocument(&m.Score, &m.Distance)(row)
			if size += len(m.Document.Content); err == nil && size > searchBytes {
				err = errLongResults
			}
			return m, err
		})
		return err
	})
	return list, err
}

// ---- HNSW indexes of large owners ----

// maxScan bounds how many documents a search by an index tests against its filter, in some 50 ms. A
// filter that too few pass is cheap for the exact search, which reads only those.
const maxScan = 5000

// searchIndex returns the documents nearest to in.Embedding that owner's HNSW index finds: most of
// the true ones, and fewer than in.Limit where a filter is rare. The planner takes the index only
// if it knows the owner and the limit: so both are part of the text, which is not kept prepared.
// IS TRUE hides the filter from other indexes.
func (st *store) searchIndex(
	ctx context.Context, owner int64, in searchInput, efSearch int,
) ([]match, error) {
	args := []any{owner, in.Include != nil, pgvector.NewHalfVector(in.Embedding)}
	where := fmt.Sprintf("owner_id = %d AND (true%s) IS TRUE", owner, filterBy(in.Filter, &args))
	efSearch = efSearch * int(max(10, in.Limit)) / 10 // it was measured for 10 results
	if in.Filter != nil {
		efSearch *= 10 // strict order drops what is found late
	}
	run := inTx(st.runLimited(in.source()), "hnsw.iterative_scan = strict_order",
		fmt.Sprintf("hnsw.ef_search = %d", min(efSearch, 1000)),
		fmt.Sprintf("hnsw.max_scan_tuples = %d", maxScan))
	return queryMatches(ctx, run, fmt.Sprintf(`
		best AS MATERIALIZED (
		    SELECT id, distance, 1 - distance AS score
		    FROM (SELECT id, embedding <=> $3 AS distance FROM documents WHERE %s
		          ORDER BY distance LIMIT %d) AS nearest)`, where, in.Limit),
		append([]any{pgx.QueryExecModeDescribeExec}, args...)...)
}

// vectorIndex is an owner's HNSW index and its measurement: 0 before it, when no search uses it.
type vectorIndex struct {
	Owner      int64
	Email      *string // nil: the account is gone
	Bytes      int64
	EfSearch   int
	Recall     float64
	Documents  int64 // when it was measured
	MeasuredAt *time.Time
}

func indexName(owner int64) string { return fmt.Sprintf("documents_hnsw_%d", owner) }

// listIndexes returns the HNSW indexes of all owners.
func (st *store) listIndexes(ctx context.Context) ([]vectorIndex, error) {
	return queryAll(ctx, st.runIdempotent, pgx.RowToStructByPos[vectorIndex], `
		SELECT owner, u.email, pg_relation_size(i.oid), coalesce(x.ef_search, 0),
		    coalesce(x.recall, 0), coalesce(x.documents, 0), x.measured_at
		FROM (SELECT oid, substring(relname FROM '^documents_hnsw_(\d+)$')::bigint AS owner
		      FROM pg_class JOIN pg_index ON indexrelid = oid
		      WHERE indrelid = 'documents'::regclass) AS i
		LEFT JOIN users u ON u.id = owner LEFT JOIN vector_indexes x ON x.owner_id = owner
		WHERE owner IS NOT NULL ORDER BY owner`)
}

// saveIndex makes owner's searches use the index with what was measured of it.
func (st *store) saveIndex(ctx context.Context, x vectorIndex) error {
	_, err := exec(ctx, st.run, `
		INSERT INTO vector_indexes (owner_id, ef_search, recall, documents) VALUES ($1, $2, $3, $4)
		ON CONFLICT (owner_id) DO UPDATE SET ef_search = excluded.ef_search,
		    recall = excluded.recall, documents = excluded.documents, measured_at = now()`,
		x.Owner, x.EfSearch, x.Recall, x.Documents)
	return err
}

// claimIndex sets the number of documents of an index from x.Documents to n. It returns errNotFound
// where another process did so first: that one measures the index.
func (st *store) claimIndex(ctx context.Context, x vectorIndex, n int64) error {
	return requireRow(exec(ctx, st.run, `UPDATE vector_indexes SET documents = $3
		WHERE owner_id = $1 AND documents = $2`, x.Owner, x.Documents, n))
}

// dropIndex makes owner's searches exact, and drops the index. That may run into a time-out while
// others use the table, and can be repeated.
func (st *store) dropIndex(ctx context.Context, owner int64) error {
	_, err := exec(ctx, st.run, `DELETE FROM vector_indexes WHERE owner_id = $1`, owner)
	if err == nil {
		_, err = exec(ctx, st.run, "DROP INDEX CONCURRENTLY IF EXISTS "+indexName(owner))
	}
	return err
}

// sampleVectors returns the embeddings of n documents of owner, chosen at random by their ids.
func (st *store) sampleVectors(ctx context.Context, owner, n int64) ([]pgvector.HalfVector, error) {
	return queryAll(ctx, st.runLimited(""), pgx.RowTo[pgvector.HalfVector], `
		SELECT d.embedding
		FROM (SELECT first + floor(random() * (last + 1 - first))::bigint AS target
		      FROM generate_series(1, $2), (SELECT min(id) AS first, max(id) AS last
		          FROM documents WHERE owner_id = $1) AS ids) AS chosen,
		LATERAL (SELECT embedding FROM documents WHERE owner_id = $1 AND id >= target
		         ORDER BY id LIMIT 1) AS d`, owner, n)
}
