package main

// migrate.go applies the sections of schema.sql. Any number of processes may start at once: each
// section is applied by one of them, under an advisory lock that ends with its transaction, so that
// neither a killed process nor PgBouncer's transaction mode leaves it behind. The lock is polled,
// each time in a new transaction: one that waits would hold a snapshot, for whose end CREATE INDEX
// CONCURRENTLY waits in turn.

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed schema.sql
var schemaSQL string

const (
	migrationLock = 0x6c61746368 // "latch" in ASCII: the key of the advisory lock
	lockPoll      = 50 * time.Millisecond
	databaseWait  = 60 * time.Second // for a database that is still starting, as in compose
	databasePoll  = 250 * time.Millisecond
	databaseLog   = 5 * time.Second // between two lines of the log that say so
	tablePoll     = 2 * time.Second // for a table that others use: requests go on meanwhile
)

// timeouts lifts the time-outs that a role or the URL may set and a section may exceed, and sets
// lock_timeout to $1: while a statement waits for a table, so do all requests that need it. Where
// $2 is true this is for the transaction.
const timeouts = `SELECT set_config(name, CASE name WHEN 'lock_timeout' THEN $1 ELSE '0' END, $2)
	FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout', 'lock_timeout',
	'idle_in_transaction_session_timeout')`

// migration is one section.
type migration struct {
	version        int
	name, sql, sum string
	outsideTx      bool
}

// parseMigrations splits a schema file, which is part of the program, into its sections. It panics
// unless they are headed "-- migration 1: name", 2, 3 and so on.
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

// migrations are the program's own, with settings filled in. The checksums are of the text without.
func migrations(cfg *config) []migration {
	all := parseMigrations(schemaSQL)
	values := strings.NewReplacer("{text_search}", cfg.TextSearch,
		"{dimensions}", strconv.FormatInt(cfg.EmbeddingDimensions, 10))
	for i := range all {
		all[i].sql = values.Replace(all[i].sql)
	}
	return all
}

// errPending says that migrations have to be applied.
var errPending = errors.New("migrations are pending")

// migrate brings the database at url up to all. It waits for a database that is still starting, and
// for tables that others use. With checkOnly it changes nothing and returns errPending where
// something is to be done. An edited section and a database that is newer than this program are
// errors.
func migrate(
	ctx context.Context, url string, all []migration, checkOnly bool, log *slog.Logger,
) error {
	conn, err := connectWhenReady(ctx, url, log)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for {
		next, err := nextMigration(ctx, conn, all)
		switch {
		case err != nil || next == nil:
			return err
		case checkOnly:
			return fmt.Errorf("%w: from %d (%s) on", errPending, next.version, next.name)
		}
		switch err := next.apply(ctx, conn); {
		case err == nil:
			log.Info("migrated", "version", next.version, "name", next.name)
		case errors.Is(err, errNotFound): // another process has the lock, or was faster
			time.Sleep(lockPoll)
		case sqlState(err, "55P03", "40P01"): // lock_timeout, or a deadlock with requests
			log.Warn("migration_waits", "version", next.version, "error", describe(err).Error())
			time.Sleep(tablePoll)
		default:
			return fmt.Errorf("migration %d (%s): %w", next.version, next.name, describe(err))
		}
	}
}

// connectWhenReady connects outside the pool, whose connections need types that the first migration
// makes. It waits for a database that is not there yet, not for one that refuses the password.
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
		waits := isNetwork(err) || sqlState(err, "57P03", "53300")
		if ctx.Err() != nil || time.Since(start) > databaseWait || !waits {
			return nil, fmt.Errorf("cannot connect to the database: %w", describe(err))
		}
		if time.Since(logged) >= databaseLog {
			log.Warn("waiting_for_database", "error", describe(err).Error())
			logged = time.Now()
		}
	}
}

// nextMigration compares what was applied with all, and returns the first that is missing, or nil.
// It takes no lock, so a start on a current database waits for nobody.
func nextMigration(ctx context.Context, q querier, all []migration) (*migration, error) {
	exists, err := queryOne(ctx, on(q), pgx.RowTo[bool], `
		SELECT to_regclass(quote_ident(current_schema()) || '.schema_migrations') IS NOT NULL`)
	var sums []string
	if exists {
		sums, err = queryAll(ctx, on(q), pgx.RowTo[string],
			`SELECT checksum FROM schema_migrations ORDER BY version`)
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
				"its text, and put the change into a new section", i+1, all[i].name)
		}
	}
	if len(sums) == len(all) {
		return nil, nil
	}
	return &all[len(sums)], nil
}

// apply applies m, or returns errNotFound where another process has the lock or was faster.
func (m *migration) apply(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		err := requireRow(exec(ctx, on(tx),
			`SELECT WHERE pg_try_advisory_xact_lock($1)`, int64(migrationLock)))
		if err == nil {
			_, err = tx.Exec(ctx, timeouts, "2s", true)
		}
		if err == nil {
			_, err = tx.Exec(ctx, `
				CREATE TABLE IF NOT EXISTS schema_migrations (
				    version integer PRIMARY KEY, name text NOT NULL,
				    checksum text NOT NULL, -- SHA-256 of the section, hexadecimal
				    applied_at timestamptz NOT NULL DEFAULT now())`)
		}
		if err == nil {
			err = requireRow(exec(ctx, on(tx), `
				INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)
				ON CONFLICT DO NOTHING`, m.version, m.name, m.sum))
		}
		if err == nil {
			err = m.run(ctx, conn)
		}
		return err
	})
}

// run executes the section on the connection that holds the lock, or where it must be outside a
// transaction on a second one.
func (m *migration) run(ctx context.Context, conn *pgx.Conn) error {
	if !m.outsideTx {
		return conn.PgConn().Exec(ctx, m.sql).Close()
	}
	second, err := pgx.ConnectConfig(ctx, conn.Config())
	if err != nil {
		return err
	}
	defer second.Close(context.WithoutCancel(ctx))
	// CREATE INDEX CONCURRENTLY waits for all transactions, but nobody waits for it.
	_, err = second.Exec(ctx, timeouts, "0", false)
	for statement := range strings.SplitSeq(m.sql, ";\n") {
		if err == nil {
			err = second.PgConn().Exec(ctx, statement).Close()
		}
	}
	return err
}

// checkChoices compares the settings that were fixed when the documents table was made, or with the
// first embedding, with the current ones: a different one is an error that says what to do. It is
// the first to need the pool, and waits for a database that is slow or has just gone.
func (st *store) checkChoices(ctx context.Context, cfg *config) error {
	start := time.Now()
	run := func(ctx context.Context, f work) error {
		err := st.run(ctx, f)
		for errors.Is(err, errUnavailable) && ctx.Err() == nil && time.Since(start) < databaseWait {
			time.Sleep(databasePoll)
			err = st.run(ctx, f)
		}
		return err
	}
	_, err := exec(ctx, run, `INSERT INTO choices SELECT 'EMBEDDINGS_MODEL', $1 WHERE $1 <> ''
		ON CONFLICT DO NOTHING`, cfg.EmbeddingsModel)
	if err != nil {
		return err
	}
	current := map[string]string{"EMBEDDINGS_MODEL": cfg.EmbeddingsModel,
		"EMBEDDING_DIMENSIONS": strconv.FormatInt(cfg.EmbeddingDimensions, 10),
		"TEXT_SEARCH_CONFIG":   cfg.TextSearch}
	type choice struct{ Name, Value string }
	choices, err := queryAll(ctx, run, pgx.RowToStructByPos[choice],
		`SELECT name, value FROM choices ORDER BY name`)
	var problems []error
	for _, c := range choices {
		if now := current[c.Name]; now != "" && now != c.Value {
			problems = append(problems, fmt.Errorf("%s is %s, but the documents table was "+
				"made with %s: set it back to %s, or see \"Changing the embeddings\" in the "+
				"README", c.Name, now, c.Value, c.Value))
		}
	}
	return errors.Join(append(problems, err)...)
}
