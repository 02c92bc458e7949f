package main

// migrate.go applies the sections of schema.sql, and builds and measures the HNSW indexes of large
// owners. Any number of processes may start at once: one of them applies a section, under an
// advisory lock that ends with its transaction, so that neither a killed process nor PgBouncer's
// transaction mode leaves it behind. The others poll the lock: a statement that waits for it would
// hold a snapshot, for whose end CREATE INDEX CONCURRENTLY waits.

import (
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed schema.sql
var schemaSQL string

const (
	migrationLock = int64(0x6c61746368) // the key of the advisory lock: five letters in ASCII
	lockPoll      = 50 * time.Millisecond
	databaseWait  = 60 * time.Second // for a database that is still starting, as in compose
	databasePoll  = 250 * time.Millisecond
	databaseLog   = 5 * time.Second // between two lines of the log that say so
	tablePoll     = 2 * time.Second // for a table that others use: requests go on meanwhile
)

// noTimeouts turns off the time-outs that a role or the URL may set and a section may exceed: for
// the transaction where %t is true, else for the session.
const noTimeouts = `SELECT set_config(name, '0', %t) FROM pg_settings WHERE name IN ('lock_timeout',
	'statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout');
`

// migration is one section.
type migration struct {
	version        int
	name, sql, sum string
	outsideTx      bool
}

// parseMigrations splits a schema into its sections. It panics unless they are headed
// "-- migration 1: name", 2, 3 and so on.
func parseMigrations(schema string) (all []migration) {
	schema = strings.ReplaceAll(schema, "\r\n", "\n") // as a checkout on Windows has
	for i, section := range strings.Split("\n"+schema, "\n-- migration ")[1:] {
		head, sql, _ := strings.Cut(section, "\n")
		name, numbered := strings.CutPrefix(head, fmt.Sprintf("%d: ", i+1))
		if !numbered {
			panic(fmt.Sprintf("schema.sql: section %d is headed migration %s", i+1, head))
		}
		name, outsideTx := strings.CutSuffix(name, " (no transaction)")
		sql = strings.TrimSpace(sql)
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(sql)))
		all = append(all, migration{i + 1, name, sql, sum, outsideTx})
	}
	return all
}

// migrations returns those of schema.sql, with settings filled in; their checksums are without.
func migrations(cfg *config) []migration {
	all := parseMigrations(schemaSQL)
	values := strings.NewReplacer("{text_search}", cfg.TextSearch,
		"{dimensions}", fmt.Sprint(cfg.EmbeddingDimensions))
	for i := range all {
		all[i].sql = values.Replace(all[i].sql)
	}
	return all
}

// requirements is what to do where a right, an extension or a type is missing.
const requirements = "Latch needs PostgreSQL 14 or later with btree_gin and pg_trgm of its " +
	"contrib modules, pgvector 0.7 or later, and a role that owns the database. CREATE EXTENSION " +
	"vector may need a superuser, once in this database; an older pgvector needs ALTER EXTENSION " +
	"vector UPDATE"

var errPending = errors.New("migrations are pending")

// migrate applies what the database at url lacks of all, or with check returns errPending instead.
// It waits for a database that is still starting, and for tables that others use.
func migrate(ctx context.Context, url string, all []migration, check bool, log *slog.Logger) error {
	conn, err := connectWhenReady(ctx, url, log)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := checkEncoding(ctx, conn, log); err != nil {
		return err
	}
	for {
		next, err := nextMigration(ctx, conn, all)
		if err != nil || next == nil {
			return err
		}
		if check {
			return fmt.Errorf("%w: from %d (%s) on", errPending, next.version, next.name)
		}
		switch err := next.apply(ctx, conn); {
		case err == nil:
			log.Info("migrated", "version", next.version, "name", next.name)
		case errors.Is(err, errNotFound): // another process has the lock, or was faster
			time.Sleep(lockPoll)
		case sqlState(err, "55P03", "40P01"): // lock_timeout, or a deadlock with requests
			log.Warn("migration_waits", "version", next.version, "error", describe(err))
			time.Sleep(tablePoll)
		default:
			hint := "" // where a right, the schema, an extension or its type is missing
			if next.version <= 3 && sqlState(err, "42501", "3F000", "0A000", "42704") {
				hint = "\n" + requirements
			}
			return fmt.Errorf("migration %d (%s): %w%s",
				next.version, next.name, describe(err), hint)
		}
	}
}

// connectWhenReady connects outside the pool, which needs types of the first migration. It waits
// for a database that is not there yet, also behind a pooler, but not for one that refuses the
// password, the name or a setting.
func connectWhenReady(ctx context.Context, url string, log *slog.Logger) (*pgx.Conn, error) {
	conf, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	conf.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	for start, logged := time.Now(), (time.Time{}); ; time.Sleep(databasePoll) {
		conn, err := pgx.ConnectConfig(ctx, conf.ConnConfig)
		if err == nil {
			return conn, nil
		}
		refused := sqlState(err, "22", "28", "3D", "42")
		if refused || ctx.Err() != nil || time.Since(start) > databaseWait {
			return nil, fmt.Errorf("cannot connect to the database: %w", describe(err))
		}
		if time.Since(logged) >= databaseLog {
			log.Warn("waiting_for_database", "error", describe(err))
			logged = time.Now()
		}
	}
}

// checkEncoding refuses a database that does not keep UTF-8, and warns where only ASCII letters
// have upper and lower case.
func checkEncoding(ctx context.Context, q querier, log *slog.Logger) error {
	encoding, err := queryOne(ctx, onConn(q), pgx.RowTo[string], `SHOW server_encoding`)
	if err != nil {
		return describe(err)
	}
	if encoding != "UTF8" {
		return fmt.Errorf("the database has the encoding %s: restore it into a new one, made with "+
			"CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0", encoding)
	}
	folds, err := queryOne(ctx, onConn(q), pgx.RowTo[bool], `
		SELECT 'Ä' ILIKE 'ä' AND to_tsvector('simple', 'Ä') = to_tsvector('simple', 'ä')`)
	if err == nil && !folds {
		log.Warn("ascii_case", "detail", "LC_CTYPE of the database knows only ASCII: searches "+
			"tell Ä from ä; a database made with another, such as C.UTF-8, does not")
	}
	return err
}

// nextMigration returns the first of all that was not applied, or nil. Edited sections, a database
// that is newer than this program and tables of another program are errors. It takes no lock, so a
// start on a current database does not wait.
func nextMigration(ctx context.Context, q querier, all []migration) (*migration, error) {
	tables, err := queryAll(ctx, onConn(q), pgx.RowTo[string], `
		SELECT relname FROM pg_class c
		WHERE relnamespace = quote_ident(current_schema())::regnamespace
		  AND relkind IN ('r', 'p', 'v', 'm', 'f') AND (relname <> 'schema_migrations'
		    OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'checksum'))
		  AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype = 'e'
		    AND classid = 'pg_class'::regclass)
		ORDER BY relname`) // not those of extensions, and no other program's schema_migrations
	var sums []string
	if slices.Contains(tables, "schema_migrations") {
		sums, err = queryAll(ctx, onConn(q), pgx.RowTo[string],
			`SELECT checksum FROM schema_migrations ORDER BY version`)
	} else if n := len(tables); n > 0 {
		return nil, fmt.Errorf("the database has tables that are not Latch's (%s), so nothing was "+
			"changed: docs/from-fastapi.md says how to move the accounts of a FastAPI "+
			"application; otherwise use an empty database", strings.Join(tables[:min(5, n)], ", "))
	}
	if err != nil {
		return nil, describe(err)
	}
	for i, sum := range sums {
		switch {
		case i >= len(all):
			return nil, fmt.Errorf("the database is at migration %d, and this program knows "+
				"only %d: run a newer latch", len(sums), len(all))
		case sum != all[i].sum:
			return nil, fmt.Errorf("migration %d (%s) was edited after it was applied: restore "+
				"its text, and put the change into a new section; or, where it was never "+
				"released, begin anew with make reset-dev", i+1, all[i].name)
		}
	}
	if len(sums) == len(all) {
		return nil, nil
	}
	return &all[len(sums)], nil
}

// apply applies m, or returns errNotFound where another process has the lock or was faster.
func (m *migration) apply(ctx context.Context, conn *pgx.Conn) error {
	// Read committed, whatever a role's isolation is: a snapshot would hide what others applied.
	options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
	return pgx.BeginTxFunc(ctx, conn, options, func(tx pgx.Tx) error {
		err := requireRow(exec(ctx, onConn(tx),
			`SELECT WHERE pg_try_advisory_xact_lock($1)`, migrationLock))
		if err == nil { // lock_timeout: while a statement waits for a table, so do requests
			err = requireRow(exec(ctx, onConn(tx), fmt.Sprintf(noTimeouts, true)+`
				SET LOCAL lock_timeout = '2s';
				CREATE TABLE IF NOT EXISTS schema_migrations (
				    version integer PRIMARY KEY, name text NOT NULL,
				    checksum text NOT NULL, -- SHA-256 of the section, hexadecimal
				    applied_at timestamptz NOT NULL DEFAULT now());
				INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)
				ON CONFLICT DO NOTHING`, pgx.QueryExecModeSimpleProtocol, m.version, m.name, m.sum))
		}
		switch {
		case err != nil:
			return err
		case m.outsideTx:
			return m.applyOutside(ctx, conn.Config())
		}
		_, err = tx.Exec(ctx, m.sql)
		return err
	})
}

// applyOutside executes the statements of m outside a transaction, on a connection beside the one
// that holds the lock. They have no lock_timeout: CREATE INDEX CONCURRENTLY waits for all
// transactions, but nobody waits for it.
func (m *migration) applyOutside(ctx context.Context, conf *pgx.ConnConfig) error {
	conn, err := pgx.ConnectConfig(ctx, conf)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for statement := range strings.SplitSeq(fmt.Sprintf(noTimeouts, false)+m.sql, ";\n") {
		if err == nil {
			_, err = conn.Exec(ctx, statement)
		}
	}
	return err
}

// checkChoices returns an error where a setting differs from its first value, in the table choices,
// which also gets the first EMBEDDINGS_MODEL. It is the first to need the pool, and waits for a
// database that is slow or has just gone.
func (st *store) checkChoices(ctx context.Context, cfg *config) error {
	start := time.Now()
	runReady := func(ctx context.Context, f queryFunc) error {
		err := st.run(ctx, f)
		for errors.Is(err, errUnavailable) && ctx.Err() == nil && time.Since(start) < databaseWait {
			time.Sleep(databasePoll)
			err = st.run(ctx, f)
		}
		return err
	}
	_, err := exec(ctx, runReady, `INSERT INTO choices SELECT 'EMBEDDINGS_MODEL', $1 WHERE $1 <> ''
		ON CONFLICT DO NOTHING`, cfg.EmbeddingsModel)
	if err != nil {
		return err
	}
	current := map[string]string{"EMBEDDINGS_MODEL": cfg.EmbeddingsModel,
		"EMBEDDING_DIMENSIONS": fmt.Sprint(cfg.EmbeddingDimensions),
		"TEXT_SEARCH_CONFIG":   cfg.TextSearch}
	type choice struct{ Name, Value string }
	choices, err := queryAll(ctx, runReady, pgx.RowToStructByPos[choice],
		`SELECT name, value FROM choices ORDER BY name`)
	var problems []error
	for _, c := range choices {
		if now := current[c.Name]; now != "" && now != c.Value {
			problems = append(problems, fmt.Errorf("%s is %s, but the documents table was "+
				"made with %s: set it back to %s, or see \"Changing the embeddings\" in "+
				"deploy/OPERATIONS.md", c.Name, now, c.Value, c.Value))
		}
	}
	return errors.Join(append(problems, err)...)
}

// ---- HNSW indexes of large owners ----

// buildIndex builds owner's index, unless there is a valid one, on a connection without time-outs.
// The graph should fit into memory, in bytes: else a build takes several times as long. PostgreSQL
// goes on with a build whose client was killed, and keeps its lock, so that another call waits for
// it; the index of one that failed is dropped first. One process builds: several need shared memory
// that containers seldom have, and pgvector before 0.8.2 has a fault there.
func buildIndex(ctx context.Context, url string, owner, memory int64) error {
	conf, err := parseURL(url)
	if err != nil {
		return err
	}
	params, name := conf.ConnConfig.RuntimeParams, indexName(owner)
	params["max_parallel_maintenance_workers"] = "0"
	params["maintenance_work_mem"] = cmp.Or(params["maintenance_work_mem"],
		fmt.Sprintf("%dkB", max(memory>>10, 64<<10)))
	conf.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, conf.ConnConfig)
	if sqlState(err, pgbouncerCodes...) {
		return errors.New("DATABASE_URL must lead to PostgreSQL itself, not to PgBouncer")
	} else if err != nil {
		return describe(err)
	}
	defer func() {
		conn.Close(context.WithoutCancel(ctx))
		<-conn.PgConn().CleanupDone() // where ctx has ended, the build is cancelled
	}()
	_, err = conn.Exec(ctx, fmt.Sprintf(noTimeouts, false))
	for locked := false; err == nil && !locked; time.Sleep(lockPoll) {
		locked, err = queryOne(ctx, onConn(conn), pgx.RowTo[bool],
			`SELECT pg_try_advisory_lock(hashtextextended($1, 0))`, name)
	}
	valid := false
	if err == nil {
		valid, err = queryOne(ctx, onConn(conn), pgx.RowTo[bool], `SELECT EXISTS (
			SELECT FROM pg_index WHERE indexrelid = to_regclass($1) AND indisvalid)`, name)
	}
	if err == nil && !valid {
		_, err = conn.Exec(ctx, "DROP INDEX CONCURRENTLY IF EXISTS "+name)
	}
	if err == nil && !valid {
		_, err = conn.Exec(ctx, fmt.Sprintf(`CREATE INDEX CONCURRENTLY %s ON documents USING hnsw
			(embedding halfvec_cosine_ops) WITH (ef_construction = 128) WHERE owner_id = %d`,
			name, owner))
	}
	if sqlState(err, "42501") {
		return errors.New("the role of DATABASE_URL must own the table documents")
	}
	return describe(err)
}

// indexProgress returns the phase and the documents of owner's build, or errNotFound without one.
func (st *store) indexProgress(ctx context.Context, owner int64) (string, error) {
	return queryOne(ctx, st.run, pgx.RowTo[string], `
		SELECT concat_ws(' ', phase, nullif(tuples_done, 0))
		FROM pg_stat_progress_create_index WHERE index_relid = to_regclass($1)`, indexName(owner))
}

// checkPgvector returns an error where pgvector is too old for searchIndex.
func (st *store) checkPgvector(ctx context.Context) error {
	err := requireRow(exec(ctx, st.run, `SELECT FROM pg_extension
		WHERE extname = 'vector' AND string_to_array(extversion, '.')::int[] >= '{0,8}'`))
	if errors.Is(err, errNotFound) {
		return errors.New("an index needs pgvector 0.8 or later: install it, and then run " +
			"ALTER EXTENSION vector UPDATE")
	}
	return err
}

const (
	enoughRecall  = 0.99             // of the ef_search that is chosen
	lowRecall     = 0.97             // of an owner who has grown: below it the operator is warned
	checkSearches = 25               // of each kind, on a server at work,
	checkLimit    = 20 * time.Second // and when there are no more
)

// measurement compares searches with one ef_search with exact ones.
type measurement struct {
	efSearch int        // 0: exact ones
	recalls  [2]float64 // recall@10 for vectors that the owner has, and for mixtures of two
	took     []time.Duration
}

// recall returns the lower of the two: queries are seldom like a document.
func (m measurement) recall() float64 { return min(m.recalls[0], m.recalls[1]) }

// within returns the time in ms within which p percent of the searches were answered.
func (m measurement) within(p int) float64 {
	return milliseconds(slices.Sorted(slices.Values(m.took))[(len(m.took)-1)*p/100])
}

// measureIndex searches for n random vectors of owner, and n mixtures (3:1) of one and the next,
// or as many as limit allows: exactly, and by the index with each of efSearches.
func (s *server) measureIndex(
	ctx context.Context, owner int64, efSearches []int, n int64, limit time.Duration,
) ([]measurement, error) {
	vectors, err := s.store.sampleVectors(ctx, owner, n)
	list := []measurement{{}}
	for _, ef := range efSearches {
		list = append(list, measurement{efSearch: ef})
	}
	slow, start := inSlot(&s.store.bulk, s.store.runLong), time.Now()
	for i := 0; i < 2*len(vectors) && (i < 2 || time.Since(start) < limit); i++ {
		kind := i % 2 // 0: one vector, 1: a mixture
		other := vectors[(i/2+kind)%len(vectors)].Slice()
		in := searchInput{Mode: "vector", Limit: 10}
		for k, x := range vectors[i/2].Slice() {
			in.Embedding = append(in.Embedding, 0.75*x+0.25*other[k])
		}
		farthest := 0.0 // of the true nearest
		for k := range list {
			var got []match
			m, begin := &list[k], time.Now()
			if m.efSearch == 0 {
				got, err = searchDocuments(ctx, slow, owner, in, "")
			} else {
				got, err = s.store.searchIndex(ctx, owner, in, m.efSearch)
			}
			if err != nil {
				return nil, err
			}
			m.took = append(m.took, time.Since(begin))
			for _, found := range got {
				if m.efSearch == 0 {
					farthest = *found.Distance
				}
				if *found.Distance <= farthest {
					m.recalls[kind]++ // a count, until the end
				}
			}
		}
	}
	for kind, exact := range list[0].recalls { // a copy
		for k := range list {
			list[k].recalls[kind] /= exact
		}
	}
	return list, err
}

// checkIndexes drops the indexes of accounts that are gone, measures again those of owners who have
// grown by a tenth, and keeps what is known of all for the metrics.
func (s *server) checkIndexes(ctx context.Context) error {
	list, err := s.store.listIndexes(ctx)
	for i := range list {
		switch x := &list[i]; {
		case err != nil: // the next sweep goes on
		case x.Email == nil:
			err = s.store.dropIndex(ctx, x.Owner)
		case x.EfSearch > 0:
			err = s.checkIndex(ctx, x)
		}
	}
	s.stats.indexes.Store(&list)
	return err
}

// checkIndex measures an index whose owner has grown by a tenth, unless another server does.
func (s *server) checkIndex(ctx context.Context, x *vectorIndex) error {
	n, err := s.store.countDocuments(ctx, x.Owner, selection{})
	if err != nil || 10*n < 11*x.Documents {
		return err
	}
	if err := s.store.claimIndex(ctx, *x, n); errors.Is(err, errNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	list, err := s.measureIndex(ctx, x.Owner, []int{x.EfSearch}, checkSearches, checkLimit)
	if err != nil {
		return err
	}
	if x.Documents, x.Recall = n, list[1].recall(); x.Recall < lowRecall {
		s.log.Warn("recall_low", "user_id", x.Owner, "recall", x.Recall, "documents", n)
	}
	return s.store.saveIndex(ctx, *x)
}
