package main

// migrate.go applies the sections of schema.sql. Any number of processes may start at once on one
// database: each section is applied by one of them, under an advisory lock that ends with its
// transaction, so that neither a killed process nor PgBouncer's transaction mode can leave it
// behind. The lock is polled, each time in a new transaction: one that waits would hold a
// snapshot, for whose end CREATE INDEX CONCURRENTLY waits in turn.

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
)

// migration is one section.
type migration struct {
	version        int
	name, sql, sum string
	outsideTx      bool
}

// parseMigrations splits a schema file into its sections. It panics unless they are headed "--
// migration 1: name", 2, 3 and so on: the file is part of the program.
func parseMigrations(schema string) (all []migration) {
	schema = strings.ReplaceAll(schema, "\r\n", "\n") // a checkout on Windows has the same checksums
	for i, section := range strings.Split("\n"+schema, "\n-- migration ")[1:] {
		head, sql, _ := strings.Cut(section, "\n")
		name, numbered := strings.CutPrefix(head, fmt.Sprintf("%d: ", i+1))
		if !numbered {
			panic(fmt.Sprintf("schema.sql: section %d is headed migration %s", i+1, head))
		}
		name, outsideTx := strings.CutSuffix(name, " (no transaction)")
		sql = strings.TrimSpace(sql)
		all = append(all, migration{i + 1, name, sql, fmt.Sprintf("%x", sha256.Sum256([]byte(sql))), outsideTx})
	}
	return all
}

// migrations are the program's own, with the settings that they take filled in. The checksums are
// those of the text without them.
func migrations(cfg *config) []migration {
	all := parseMigrations(schemaSQL)
	for i := range all {
		all[i].sql = strings.NewReplacer("{dimensions}", strconv.FormatInt(cfg.EmbeddingDimensions, 10), "{text_search}", cfg.TextSearch).Replace(all[i].sql)
	}
	return all
}

// errPending says that migrations have to be applied.
var errPending = errors.New("migrations are pending")

// migrate brings the database at url up to all. It waits for a database that is still starting.
// With checkOnly it changes nothing and returns errPending where something is to be done. An
// edited section and a database that is newer than this program are errors.
func migrate(ctx context.Context, url string, all []migration, checkOnly bool, log *slog.Logger) error {
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
		applied, err := apply(ctx, conn, all, next.version)
		if err != nil {
			return fmt.Errorf("migration %d (%s): %w", next.version, next.name, describe(err))
		}
		if applied {
			log.Info("migrated", "version", next.version, "name", next.name)
		} else {
			time.Sleep(lockPoll)
		}
	}
}

// connectWhenReady connects outside the pool, whose connections need types that the first
// migration makes. Only a database that is not there yet is waited for, not one that refuses the
// password.
func connectWhenReady(ctx context.Context, url string, log *slog.Logger) (*pgx.Conn, error) {
	conf, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, errors.New("DATABASE_URL: is not a PostgreSQL URL") // pgx's error would hold it
	}
	conf.ConnectTimeout = connectTimeout
	conf.DefaultQueryExecMode = pgx.QueryExecModeExec
	for start := time.Now(); ; time.Sleep(databasePoll) {
		conn, err := pgx.ConnectConfig(ctx, conf)
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() != nil || time.Since(start) > databaseWait || !isNetwork(err) && !sqlState(err, "57P03", "53300"):
			return nil, fmt.Errorf("cannot connect to the database: %w", describe(err))
		}
		log.Warn("waiting_for_database", "error", describe(err).Error())
	}
}

// nextMigration compares what was applied with all, and returns the first that is missing, or nil.
// It takes no lock, so a start on a current database waits for nobody.
func nextMigration(ctx context.Context, q querier, all []migration) (*migration, error) {
	var exists bool
	// Not to_regclass: that may answer from a cache which is older than the lock that was just
	// taken.
	if err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'schema_migrations')`).Scan(&exists); err != nil {
		return nil, describe(err)
	}
	if !exists {
		return &all[0], nil
	}
	rows, _ := q.Query(ctx, `SELECT checksum FROM schema_migrations ORDER BY version`)
	sums, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, describe(err)
	}
	for i, sum := range sums {
		if i >= len(all) {
			return nil, fmt.Errorf("the database is at migration %d, and this program knows only %d: run a newer latch", len(sums), len(all))
		}
		if sum != all[i].sum {
			return nil, fmt.Errorf("migration %d (%s) was edited after it was applied: restore its text, and put the change into a new section", i+1, all[i].name)
		}
	}
	if len(sums) == len(all) {
		return nil, nil
	}
	return &all[len(sums)], nil
}

// apply applies the migration of this version, unless another process has the lock or was faster.
func apply(ctx context.Context, conn *pgx.Conn, all []migration, version int) (applied bool, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var locked bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, int64(migrationLock)).Scan(&locked); err != nil || !locked {
			return err
		}
		next, err := nextMigration(ctx, tx, all)
		if err != nil || next == nil || next.version != version {
			return err
		}
		if _, err := tx.Exec(ctx, `
			CREATE TABLE IF NOT EXISTS schema_migrations (
			    version    integer     PRIMARY KEY,
			    name       text        NOT NULL,
			    checksum   text        NOT NULL, -- SHA-256 of the section, hexadecimal
			    applied_at timestamptz NOT NULL DEFAULT now()
			)`); err != nil {
			return err
		}
		if err := next.run(ctx, tx.Conn()); err != nil {
			return err
		}
		applied = true
		_, err = tx.Exec(ctx, `INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)`, version, next.name, next.sum)
		return err
	})
	return applied && err == nil, err
}

// run executes the section on the connection that holds the lock, or, where it must be outside a
// transaction, on a second one beside it.
func (m *migration) run(ctx context.Context, conn *pgx.Conn) error {
	if !m.outsideTx {
		return conn.PgConn().Exec(ctx, m.sql).Close()
	}
	second, err := pgx.ConnectConfig(ctx, conn.Config())
	if err != nil {
		return err
	}
	defer second.Close(context.WithoutCancel(ctx))
	for statement := range strings.SplitSeq(m.sql, ";\n") {
		if err := second.PgConn().Exec(ctx, statement).Close(); err != nil {
			return err
		}
	}
	return nil
}

// checkChoices compares the settings that were fixed when the documents table was made, or with
// the first embedding, with the current ones: a different one is an error that says what to do. It
// is the first to need the pool, and waits for a database that is slow or has just gone.
func (st *store) checkChoices(ctx context.Context, cfg *config) (err error) {
	for start := time.Now(); ; time.Sleep(databasePoll) {
		err = st.readChoices(ctx, cfg)
		if !errors.Is(err, errUnavailable) || ctx.Err() != nil || time.Since(start) > databaseWait {
			return err
		}
	}
}

func (st *store) readChoices(ctx context.Context, cfg *config) error {
	current := map[string]string{
		"EMBEDDING_DIMENSIONS": strconv.FormatInt(cfg.EmbeddingDimensions, 10),
		"EMBEDDINGS_MODEL":     cfg.EmbeddingsModel,
		"TEXT_SEARCH_CONFIG":   cfg.TextSearch,
	}
	return st.run(ctx, func(ctx context.Context, q querier) error {
		if cfg.EmbeddingsModel != "" {
			if _, err := q.Exec(ctx, `
				INSERT INTO choices (name, value) VALUES ('EMBEDDINGS_MODEL', $1)
				ON CONFLICT DO NOTHING`, cfg.EmbeddingsModel); err != nil {
				return err
			}
		}
		rows, _ := q.Query(ctx, `SELECT name, value FROM choices ORDER BY name`)
		var problems []error
		var name, value string
		_, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error {
			if current[name] != "" && current[name] != value {
				problems = append(problems, fmt.Errorf("%s is %s, but the documents table was "+
					"made with %s: set it back to %s, or see \"Changing the embeddings\" in the "+
					"README", name, current[name], value, value))
			}
			return nil
		})
		return errors.Join(append(problems, err)...)
	})
}
