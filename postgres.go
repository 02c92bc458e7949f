package main

// postgres.go is the pool, and all that is known about PostgreSQL's failures: what is tried again, and
// what an error means. Statements run on a context of their own: a client that hangs up must not cost a
// connection, because pgx closes the connection of a query that is cancelled. Errors are the problems of
// api.go, or internal ones whose text holds no argument and no row.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	pgxvector "github.com/pgvector/pgvector-go/pgx"
)

const (
	connectTimeout = 2 * time.Second
	acquireTimeout = 500 * time.Millisecond // a pool that is this busy is better answered with 503
	slowTimeout    = 20 * time.Second       // for a batch of documents: 16 MiB of text take some seconds to be indexed
	queryTimeout   = 4 * time.Second        // the client's patience; the server gives up first, which keeps the connection
	pingTimeout    = 800 * time.Millisecond // /health/db promises an answer within 1 s
)

// serverSettings are PostgreSQL's own limits, in milliseconds, each below queryTimeout; and what suits
// statements that are short and many: no plans that depend on the arguments, no compiling, no parallel workers, and an
// index read at the price of a disk without moving parts.
var serverSettings = map[string]string{
	"statement_timeout": "3000", "lock_timeout": "2000", "idle_in_transaction_session_timeout": "10000",
	"plan_cache_mode": "force_generic_plan", "jit": "off", "max_parallel_workers_per_gather": "0", "random_page_cost": "1.1",
}

// store is the database. It is safe for concurrent use.
type store struct{ pool *pgxpool.Pool }

// openStore opens a pool for a database that has been migrated. maxConns 0 means 8, which is
// enough for a few cores: more made PostgreSQL slower. It reports only faults of the settings.
func openStore(ctx context.Context, url string, maxConns int64, echo *slog.Logger) (*store, error) {
	conf, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("DATABASE_URL is not a PostgreSQL URL") // pgx's error would hold it
	}
	setUp(conf.ConnConfig, echo)
	if behindPgBouncer(ctx, conf.ConnConfig) {
		for name := range serverSettings {
			delete(conf.ConnConfig.RuntimeParams, name)
		}
		conf.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	conf.MaxConns = 8
	if maxConns > 0 {
		conf.MaxConns = int32(maxConns)
	}
	conf.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		c.TypeMap().RegisterType(&pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}})
		return pgxvector.RegisterTypes(ctx, c)
	}
	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return nil, describe(err)
	}
	return &store{pool}, nil
}

// setUp gives every connection of the program its name, its limits and, with echo, its log.
func setUp(conf *pgx.ConnConfig, echo *slog.Logger) {
	conf.ConnectTimeout = connectTimeout
	if conf.RuntimeParams["application_name"] == "" {
		conf.RuntimeParams["application_name"] = "latch"
	}
	for name, value := range serverSettings {
		if conf.RuntimeParams[name] == "" {
			conf.RuntimeParams[name] = value
		}
	}
	if echo != nil {
		conf.Tracer = &echoTracer{echo}
	}
}

// behindPgBouncer tells whether the limits are refused at the start of a connection, as PgBouncer does
// ("unsupported startup parameter", 08P01). In its transaction mode prepared statements would be
// lost between queries, so none are used then.
func behindPgBouncer(ctx context.Context, conf *pgx.ConnConfig) bool {
	c, err := pgx.ConnectConfig(ctx, conf)
	if err == nil {
		c.Close(ctx)
	}
	pg, refused := errors.AsType[*pgconn.PgError](err)
	return refused && pg.Code == "08P01"
}

func (st *store) close() { st.pool.Close() }

// echoTracer logs statements and how long they took, never their arguments.
type echoTracer struct{ log *slog.Logger }

type echoKey struct{}

func (t *echoTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	sql, start := strings.Join(strings.Fields(q.SQL), " "), time.Now()
	return context.WithValue(ctx, echoKey{}, func() {
		t.log.Info("sql", "statement", sql, "duration_ms", float64(time.Since(start).Microseconds())/1000)
	})
}

func (t *echoTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	ctx.Value(echoKey{}).(func())()
}

// querier is what a connection and a transaction have in common.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// once runs f on a connection and translates its error. A lost race for a lock is run again, once:
// nothing of it was kept.
func (st *store) once(ctx context.Context, f func(ctx context.Context, q querier) error) error {
	return st.attempt(ctx, queryTimeout, f, func(err error) bool { return sqlState(err, "40001", "40P01", "55P03") || pgconn.SafeToRetry(err) })
}

// again is once for statements that may run twice to the same effect, reads and compare-and-set: they
// are also run again when the connection breaks, as each does when PostgreSQL restarts.
func (st *store) again(ctx context.Context, f func(ctx context.Context, q querier) error) error {
	return st.attempt(ctx, queryTimeout, f, func(err error) bool { return sqlState(err, "40001", "40P01", "55P03", "57P01") || isNetwork(err) })
}

func (st *store) attempt(ctx context.Context, timeout time.Duration, f func(ctx context.Context, q querier) error, retry func(error) bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	run := func() error {
		acquire, cancel := context.WithTimeout(ctx, acquireTimeout)
		defer cancel()
		c, err := st.pool.Acquire(acquire)
		if err != nil {
			return err
		}
		defer c.Release()
		return f(ctx, c)
	}
	err := run()
	if err != nil && retry(err) {
		err = run()
	}
	return translate(err)
}

// inTx runs f in a transaction, as once does.
func (st *store) inTx(ctx context.Context, f func(ctx context.Context, q querier) error) error {
	return st.once(ctx, func(ctx context.Context, q querier) error {
		return pgx.BeginFunc(ctx, q.(*pgxpool.Conn), func(tx pgx.Tx) error { return f(ctx, tx) })
	})
}

// slowly runs f in a transaction that may take slowTimeout.
func (st *store) slowly(ctx context.Context, f func(ctx context.Context, q querier) error) error {
	return st.attempt(ctx, slowTimeout, func(ctx context.Context, q querier) error {
		return pgx.BeginFunc(ctx, q.(*pgxpool.Conn), func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d`, (slowTimeout-time.Second).Milliseconds())); err != nil {
				return err
			}
			return f(ctx, tx)
		})
	}, func(err error) bool { return sqlState(err, "40001", "40P01", "55P03") || pgconn.SafeToRetry(err) })
}

// translate maps an error of pgx to a problem where clients can be told, else to an internal error.
func translate(err error) error {
	if _, ok := errors.AsType[*problem](err); ok || err == nil {
		return err
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return errNotFound
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case ok && pg.ConstraintName == "users_email_key":
		return errEmailTaken
	case ok && pg.Code == "23503": // the row that this one belongs to has just gone
		return errNotFound
	case ok && pg.ConstraintName == "documents_metadata_check":
		return invalid(fieldError{[]any{"body", "metadata"}, "must have at most 32 KiB as it is stored, with its numbers written out", "too_long"})
	case ok && (strings.HasPrefix(pg.Code, "22") || pg.Code == "54000"): // a value that the gate should have refused, or too large for an index
		return fmt.Errorf("%w: %w", invalid(fieldError{[]any{"body"}, "holds a value that cannot be stored", "value_error"}), describe(err))
	// Lost races, cancelled, terminated or starting, out of connections, disk or memory, broken
	// connections, a standby, and settings that no longer fit the server.
	case sqlState(err, "40001", "40P01", "55P03", "57014", "57P", "53", "08", "25006", "28", "3D000"), isNetwork(err):
		return fmt.Errorf("%w: %w", errUnavailable, describe(err))
	}
	return describe(err)
}

// sqlState tells whether err is a PostgreSQL error of one of these codes or classes.
func sqlState(err error, prefixes ...string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	for _, prefix := range prefixes {
		if ok && strings.HasPrefix(pg.Code, prefix) {
			return true
		}
	}
	return false
}

// isNetwork tells whether the connection failed, as far as pgx lets one know.
func isNetwork(err error) bool {
	if _, ok := errors.AsType[*pgconn.PgError](err); ok {
		return false
	}
	_, dial := errors.AsType[*pgconn.ConnectError](err)
	_, wire := errors.AsType[net.Error](err)
	return dial || wire || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, context.DeadlineExceeded) || err != nil && strings.Contains(err.Error(), "conn closed")
}

// describe is err without what may not be logged: the connection string, and the values that PostgreSQL
// quotes in the details of every error and in the messages of classes 22 and 23.
func describe(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		if strings.HasPrefix(pg.Code, "22") || strings.HasPrefix(pg.Code, "23") {
			return fmt.Errorf("SQLSTATE %s, constraint %q", pg.Code, pg.ConstraintName)
		}
		return fmt.Errorf("SQLSTATE %s: %s", pg.Code, pg.Message)
	}
	if dial, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return errors.Unwrap(dial)
	}
	return err
}

// ping returns nil when the database answers in time.
func (st *store) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if err := st.pool.Ping(ctx); err != nil {
		return describe(err)
	}
	return nil
}
