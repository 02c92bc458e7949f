package main

// postgres.go is the pool, and all that is known about PostgreSQL's failures: what is tried again, and
// what an error means. The methods of the store take no context: a client that hangs up must not cost a
// connection, because pgx closes the connection of a query that is cancelled. So each runs on a context of its own,
// and ends in time by itself. Errors are the problems of api.go, or internal ones whose text holds no argument and no
// row.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	pgxvector "github.com/pgvector/pgvector-go/pgx"
)

const (
	connectTimeout = 2500 * time.Millisecond // TLS refused, SCRAM and the answer: four round trips of up to 600 ms
	closeTimeout   = time.Second             // for a connection that is given up, and for its cancel request
	acquireTimeout = 500 * time.Millisecond  // a pool that is this busy is better answered with 503
	slowTimeout    = 20 * time.Second        // for a batch of documents: 16 MiB of text take some seconds to be indexed
	queryTimeout   = 4 * time.Second         // the client's patience; the server gives up first, which keeps the connection
	maxTries       = 5                       // where backends are ended one by one, the next connection may go as well
	retryPause     = 5 * time.Millisecond    // before the second try, twice as long before the third, and so on
	pingTimeout    = 800 * time.Millisecond  // /health/db promises an answer within 1 s
)

// serverSettings are PostgreSQL's own limits, in milliseconds, each below queryTimeout; and what suits
// statements that are short and many: no plans that depend on the arguments, no compiling, no parallel workers, and an
// index read at the price of a disk without moving parts.
var serverSettings = map[string]string{
	"statement_timeout": "3000", "lock_timeout": "2000", "idle_in_transaction_session_timeout": "10000",
	"plan_cache_mode": "force_generic_plan", "jit": "off", "max_parallel_workers_per_gather": "0", "random_page_cost": "1.1",
}

// store is the database, for concurrent use.
type store struct {
	pool   *pgxpool.Pool
	pooled atomic.Bool   // PgBouncer stands between
	heavy  chan struct{} // places for statements whose cost clients choose: half of the pool is kept for all others

	lookups    *gathering[*lookup]
	rotations  *gathering[*rotation]
	insertions *gathering[*insertion]
}

// openStore opens a pool for a database that has been migrated. It reports only faults of the settings.
func openStore(ctx context.Context, url string, maxConns int64, echo *slog.Logger) (*store, error) {
	conf, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("DATABASE_URL is not a PostgreSQL URL") // pgx's error would hold it
	}
	setUp(conf.ConnConfig, echo)
	conf.MaxConns = int32(maxConns)
	st := &store{heavy: make(chan struct{}, max(1, conf.MaxConns/2))}
	st.lookups = newGathering(maxLookups, st.lookUp, st.lookUpTogether)
	st.rotations = newGathering(maxRotations, nil, st.rotateTogether)
	st.insertions = newGathering(maxInsertions, nil, st.insertTogether)
	conf.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		if st.pooled.Load() {
			for name := range serverSettings {
				delete(c.RuntimeParams, name)
			}
			// In transaction mode a prepared statement is lost to the next query, but not what its types were.
			c.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		}
		return nil
	}
	conf.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout) // pgx's own ended with the handshake
		defer cancel()
		c.TypeMap().RegisterType(&pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}})
		return pgxvector.RegisterTypes(ctx, c)
	}
	// One that has long been idle is asked whether it still is one. On a slow network the answer takes longer than
	// acquire may, so those in use are not asked.
	conf.ShouldPing = func(_ context.Context, p pgxpool.ShouldPingParams) bool { return p.IdleDuration > 5*time.Second }
	conf.PrepareConn = func(_ context.Context, c *pgx.Conn) (bool, error) { return isQuiet(c.PgConn().Conn()), nil }
	if st.pool, err = pgxpool.NewWithConfig(ctx, conf); err != nil {
		return nil, describe(err)
	}
	return st, nil
}

// setUp gives every connection of the program its name, its limits and, with echo, its log.
func setUp(conf *pgx.ConnConfig, echo *slog.Logger) {
	conf.ConnectTimeout = connectTimeout
	conf.DialFunc = dial
	conf.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout) // pgx's own begins with the dialing
		defer cancel()
		return net.DefaultResolver.LookupHost(ctx, host)
	}
	conf.OnPgError = func(_ *pgconn.PgConn, err *pgconn.PgError) bool {
		return err.SeverityUnlocalized != "FATAL" && err.Severity != "FATAL" && err.Code != "25006" // read only: no primary any more
	}
	conf.RuntimeParams["application_name"] = cmp.Or(conf.RuntimeParams["application_name"], "latch")
	for name, value := range serverSettings {
		conf.RuntimeParams[name] = cmp.Or(conf.RuntimeParams[name], value)
	}
	if echo != nil {
		conf.Tracer = &echoTracer{echo}
	}
}

func (st *store) close() { st.pool.Close() }

// echoTracer logs statements and how long they took, never their arguments.
type echoTracer struct{ log *slog.Logger }

type echoKey struct{}

func (t *echoTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	sql, start := strings.Join(strings.Fields(q.SQL), " "), time.Now()
	return context.WithValue(ctx, echoKey{}, func() {
		t.log.Info("sql", "statement", sql, "duration_ms", milliseconds(time.Since(start)))
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

// work is what runs on a connection or in a transaction.
type work func(ctx context.Context, q querier) error

// runner is a way to run it: once, again, slowly or heavily.
type runner func(f work) error

// first returns the first row of a statement: errNotFound where there is none.
func first[T any](run runner, row pgx.RowToFunc[T], sql string, args ...any) (value T, err error) {
	err = run(func(ctx context.Context, q querier) error {
		rows, _ := q.Query(ctx, sql, args...)
		value, err = pgx.CollectOneRow(rows, row)
		return err
	})
	return value, err
}

// all returns the rows of a statement, for n of which there is room at once.
func all[T any](run runner, row pgx.RowToFunc[T], n int64, sql string, args ...any) (list []T, err error) {
	err = run(func(ctx context.Context, q querier) error {
		rows, _ := q.Query(ctx, sql, args...)
		list, err = pgx.AppendRows(make([]T, 0, n), rows, row)
		return err
	})
	return list, err
}

// alter returns how many rows a statement has changed.
func alter(run runner, sql string, args ...any) (changed int64, err error) {
	err = run(func(ctx context.Context, q querier) error {
		tag, err := q.Exec(ctx, sql, args...)
		changed = tag.RowsAffected()
		return err
	})
	return changed, err
}

// some makes errNotFound of a statement that has changed nothing.
func some(changed int64, err error) error {
	if err == nil && changed == 0 {
		return errNotFound
	}
	return err
}

// lostRace are the errors after which nothing of a statement was kept and another try may do: a
// serialization failure, a deadlock, a plan that a migration has outdated, a primary that is none any more, and
// prepared statements mixed up by PgBouncer. Not a lock that was waited for: the client has waited long enough.
var lostRace = []string{"40001", "40P01", "0A000", "25006", "26000", "42P05"}

// once runs f on a connection and translates its error. A lost race is run again.
func (st *store) once(f work) error { return st.attempt(queryTimeout, f, isLostRace) }

func isLostRace(err error) bool { return sqlState(err, lostRace...) || pgconn.SafeToRetry(err) }

// again is once for statements that may run twice to the same effect, reads and compare-and-set: they
// are also run again when the connection breaks, as each does when PostgreSQL restarts.
func (st *store) again(f work) error {
	return st.attempt(queryTimeout, f, func(err error) bool { return isLostRace(err) || sqlState(err, "57P") || isNetwork(err) })
}

func (st *store) attempt(timeout time.Duration, f work, retry func(error) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for tries := 1; ; tries++ {
		sent, err := st.onConn(ctx, f)
		if err == nil || !sent || tries == maxTries || !retry(err) { // acquire tries again by itself
			return translate(err)
		}
		switch {
		case sqlState(err, "25006"): // nobody may go on reading from a server that is no primary any more
			st.pool.Reset()
		case sqlState(err, betweenCodes...):
			st.pooled.Store(true)
			st.pool.Reset()
		}
		time.Sleep(time.Duration(tries) * retryPause)
	}
}

// onConn runs f on a connection. sent is false where there was none.
func (st *store) onConn(ctx context.Context, f work) (sent bool, err error) {
	c, err := st.acquire()
	if err != nil {
		return false, err
	}
	defer c.Release()
	return true, f(ctx, c)
}

// betweenCodes tell that PgBouncer is between: it refuses the limits at the start of a connection ("unsupported
// startup parameter"), or, where it was told to ignore them, mixes up prepared statements.
var betweenCodes = []string{"08P01", "26000", "42P05"}

// acquire takes a connection of the pool within acquireTimeout. One that cannot be opened is tried again,
// once: nothing was sent.
func (st *store) acquire() (*pgxpool.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), acquireTimeout) // of no parent: that is cheaper
	defer cancel()
	c, err := st.pool.Acquire(ctx)
	if err != nil && ctx.Err() == nil {
		if sqlState(err, betweenCodes...) {
			st.pooled.Store(true)
		}
		c, err = st.pool.Acquire(ctx)
	}
	return c, err
}

// inTx is f in a transaction, with settings of its own.
func inTx(f work, settings ...string) work {
	return func(ctx context.Context, q querier) error {
		return pgx.BeginFunc(ctx, q.(*pgxpool.Conn), func(tx pgx.Tx) error {
			for _, setting := range settings {
				if _, err := tx.Exec(ctx, "SET LOCAL "+setting); err != nil {
					return err
				}
			}
			return f(ctx, tx)
		})
	}
}

// take waits for a place for a heavy statement: errBusy after patience.
func (st *store) take(patience time.Duration) (leave func(), err error) {
	leave = func() { <-st.heavy }
	select {
	case st.heavy <- struct{}{}:
		return leave, nil
	default: // the timer below costs more
	}
	select {
	case st.heavy <- struct{}{}:
		return leave, nil
	case <-time.After(patience):
		return nil, errBusy.because("Too many searches or batches are under way; try again.")
	}
}

// slowly runs f in a transaction that may take slowTimeout.
func (st *store) slowly(f work) error {
	leave, err := st.take(slowTimeout)
	if err != nil {
		return err
	}
	defer leave()
	limit := fmt.Sprintf("statement_timeout = %d", (slowTimeout - time.Second).Milliseconds())
	return st.attempt(slowTimeout, inTx(f, limit), isLostRace)
}

// heavily is again for a statement that takes a place. Where words or a filter of the client's choice make it run out
// of time, or PostgreSQL's parser out of room, that is a 422: the database is not away.
func (st *store) heavily(chosen bool) runner {
	return func(f work) error {
		leave, err := st.take(acquireTimeout)
		if err != nil {
			return err
		}
		defer leave()
		return st.again(func(ctx context.Context, q querier) error {
			err := f(ctx, q)
			if chosen && sqlState(err, "57014", "54001", "54000", "XX000") {
				return invalid(fieldError{[]any{"body"}, "takes too much work: use fewer words, or a smaller filter", "value_error"})
			}
			return err
		})
	}
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
	// Lost races, cancelled, terminated or starting, out of connections, disk or memory, failing disks, broken
	// connections, a standby, and settings that no longer fit the server.
	case sqlState(err, lostRace...), sqlState(err, "55P03", "57014", "57P", "53", "58", "08", "25P03", "28", "3D000"), isNetwork(err):
		return fmt.Errorf("%w: %w", errUnavailable, describe(err))
	}
	return describe(err)
}

// sqlState tells whether err is a PostgreSQL error of one of these codes or classes.
func sqlState(err error, prefixes ...string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(pg.Code, prefix) })
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

// describe is err without what may not be logged: the connection string, arguments, and the values that
// PostgreSQL quotes in the details of every error and in the messages of classes 22 and 23.
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
	if err != nil && strings.HasPrefix(err.Error(), "failed to encode args") { // pgx's own text goes on with the value
		return errors.New("an argument cannot be encoded")
	}
	return err
}

// ping returns nil when the database answers in time.
func (st *store) ping() error {
	ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
	defer cancel()
	_, err := st.onConn(ctx, func(ctx context.Context, q querier) error { return q.(*pgxpool.Conn).Ping(ctx) })
	return describe(err)
}
