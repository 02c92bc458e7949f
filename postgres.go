package main

// postgres.go is the pool and what is known about PostgreSQL's failures: what is retried, and what
// an error means. Errors are the problems of handler.go, or internal ones whose text holds no
// argument and no row.
//
// Threats and answers. A client that hangs up: its statement runs to its end, because pgx closes
// the connection of one that is cancelled, and opening another costs more. A client that asks for
// expensive statements: limiters, in total and per user. A network that swallows packets: every
// wait has a deadline. A password in an error: describe.

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
	connectTimeout = 2500 * time.Millisecond // four round trips of TLS and SCRAM of up to 600 ms
	closeTimeout   = time.Second             // for a connection that is given up, and its cancel
	acquireTimeout = 500 * time.Millisecond  // a pool that is busier is better answered with 503
	openTimeout    = time.Second             // seven round trips to a region of some 100 ms
	queryTimeout   = 4 * time.Second         // PostgreSQL gives up first: that keeps the connection
	bulkTimeout    = 20 * time.Second        // a batch of 16 MiB takes some seconds to be indexed
	pingTimeout    = 800 * time.Millisecond  // /health/db promises an answer within 1 s
	maxTries       = 5                       // backends may end one by one
	retryDelay     = 5 * time.Millisecond    // before the second try; longer before the others
)

// serverSettings are PostgreSQL's own limits, in milliseconds, and what suits short and frequent
// statements: plans for any arguments, no compiling, no parallel workers, the costs of an SSD.
var serverSettings = map[string]string{
	"statement_timeout": "3000", "lock_timeout": "2000",
	"idle_in_transaction_session_timeout": "10000", "plan_cache_mode": "force_generic_plan",
	"jit": "off", "max_parallel_workers_per_gather": "0", "random_page_cost": "1.1",
}

// bulkSettings are those of a transaction that may take bulkTimeout. A wait for a lock ends before
// the statement does, so that it is told from too much work.
var bulkSettings = []string{
	fmt.Sprintf("statement_timeout = %d", (bulkTimeout - time.Second).Milliseconds()),
	fmt.Sprintf("lock_timeout = %d", (bulkTimeout - 3*time.Second).Milliseconds())}

// store is the database. It is safe for concurrent use.
type store struct {
	pool      *pgxpool.Pool
	pgbouncer atomic.Bool // PgBouncer stands between
	lookups   *batcher
	conns     limiter // connections; look-ups find one, whatever one client does
	expensive limiter // statements whose cost clients choose; the rest of the pool is for others
	bulk      limiter // statements that may take bulkTimeout
	deletions limiter // of accounts: these need not wait for their own batches in bulk

	run           runner // see retry
	runIdempotent runner // for statements that may run twice to the same effect
	runTx         runner // in a transaction
	runLong       runner // in a transaction that may take bulkTimeout
}

// openStore opens a pool for a migrated database. It reports only faults of the settings.
func openStore(
	ctx context.Context, url string, maxConns int64, tracer pgx.QueryTracer,
) (*store, error) {
	conf, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	st := &store{
		conns: limiter{total: maxConns, share: max(1, maxConns/2), queue: 256,
			timeout: acquireTimeout, detail: "Too many requests wait for the database; try again."},
		expensive: limiter{total: max(1, maxConns/2), share: max(1, maxConns/4), queue: 256,
			timeout: acquireTimeout, detail: "Too many searches are in progress; try again."},
		bulk: limiter{total: max(1, maxConns/4), share: max(1, maxConns/8), queue: 64,
			timeout: bulkTimeout, detail: "Too many batches are in progress; try again."},
		deletions: limiter{total: max(1, maxConns/8), share: 1, queue: 64, timeout: queryTimeout,
			detail: "Too many deletions are in progress; try again."},
	}
	st.run = st.retry(queryTimeout, false)
	st.runIdempotent = st.retry(queryTimeout, true)
	st.runTx = inTx(st.run)
	st.runLong = inTx(st.retry(bulkTimeout, false), bulkSettings...)
	st.lookups = newBatcher(st.runLookups)
	conf.MaxConns = int32(maxConns)
	for name, value := range serverSettings {
		conf.ConnConfig.RuntimeParams[name] = cmp.Or(conf.ConnConfig.RuntimeParams[name], value)
	}
	conf.ConnConfig.Tracer = tracer
	conf.ConnConfig.OnPgError = func(_ *pgconn.PgConn, err *pgconn.PgError) (keep bool) {
		if sqlState(err, pgbouncerCodes...) {
			st.pgbouncer.Store(true)
		}
		return !isLostConnection(err) && err.Code != "25006" // read only: no longer the primary
	}
	conf.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		if st.pgbouncer.Load() {
			for name := range serverSettings {
				delete(c.RuntimeParams, name)
			}
			// In transaction mode the next query loses a prepared statement, but not its types.
			c.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		}
		return nil
	}
	conf.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout) // pgx's own has ended
		defer cancel()
		c.TypeMap().RegisterType(&pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID,
			Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}})
		return pgxvector.RegisterTypes(ctx, c)
	}
	st.pool, err = pgxpool.NewWithConfig(ctx, conf)
	return st, err
}

// parseURL reads DATABASE_URL and gives its connections the program's name and time-outs.
func parseURL(url string) (*pgxpool.Config, error) {
	conf, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("DATABASE_URL is not a PostgreSQL URL") // pgx's error would hold it
	}
	c := conf.ConnConfig
	c.ConnectTimeout = connectTimeout
	c.DialFunc = dial
	c.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout) // pgx's own begins with dialing
		defer cancel()
		return net.DefaultResolver.LookupHost(ctx, host)
	}
	c.RuntimeParams["application_name"] = cmp.Or(c.RuntimeParams["application_name"], "latch")
	c.RuntimeParams["client_encoding"] = "UTF8" // a role or the URL may have another one
	return conf, nil
}

func (st *store) close() { st.pool.Close() }

// dial opens a connection whose deadlines are capped. pgx spends up to 15 s on closing a broken
// connection, and on its cancel request, which has that deadline, and keeps its pool slot
// meanwhile, also when the network has healed. boundedConn limits both to closeTimeout.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	bounded := boundedConn{c}
	if end, ok := ctx.Deadline(); ok && time.Until(end) > 2*connectTimeout {
		bounded.SetDeadline(end)
	}
	return bounded, nil
}

// boundedConn closes within closeTimeout: pgx sets deadlines in the future for closing only.
type boundedConn struct{ net.Conn }

func (c boundedConn) SetDeadline(t time.Time) error {
	if last := time.Now().Add(closeTimeout); t.After(last) {
		t = last
	}
	return c.Conn.SetDeadline(t)
}

// statementLog is a pgx.QueryTracer. It logs statements with their request, never with arguments.
type statementLog struct {
	log  *slog.Logger
	echo bool          // log all
	slow time.Duration // log those that take so long; 0: none
}

// statement is one in progress, under statementKey in a context.
type statement struct {
	sql   string
	start time.Time
}
type statementKey struct{}

func (l *statementLog) TraceQueryStart(
	ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData,
) context.Context {
	return context.WithValue(ctx, statementKey{}, statement{data.SQL, time.Now()})
}

func (l *statementLog) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	s := ctx.Value(statementKey{}).(statement)
	took := time.Since(s.start)
	level, event := slog.LevelInfo, "sql"
	if l.slow > 0 && took >= l.slow {
		level, event = slog.LevelWarn, "slow_statement"
	} else if !l.echo {
		return
	}
	r := requestOf(ctx)
	l.log.Log(ctx, level, event, "request_id", r.id, "route", r.route, "duration_ms",
		milliseconds(took), "statement", strings.Join(strings.Fields(s.sql), " "))
}

// querier is a connection or a transaction. A queryFunc executes statements on one. A runner calls
// a queryFunc, with a connection of the pool (retry, perhaps repeatedly), a transaction (inTx),
// or what the caller has (onConn).
type (
	querier interface {
		Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
		Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	}
	queryFunc func(ctx context.Context, q querier) error
	runner    func(ctx context.Context, f queryFunc) error
)

func onConn(q querier) runner {
	return func(ctx context.Context, f queryFunc) error { return f(ctx, q) }
}

// queryAll returns the rows of a statement.
func queryAll[T any](
	ctx context.Context, run runner, row pgx.RowToFunc[T], sql string, args ...any,
) (list []T, err error) {
	err = run(ctx, func(ctx context.Context, q querier) (err error) {
		rows, _ := q.Query(ctx, sql, args...) // CollectRows returns its error
		list, err = pgx.CollectRows(rows, row)
		return err
	})
	return list, err
}

// queryOne returns the first row of a statement, or errNotFound.
func queryOne[T any](
	ctx context.Context, run runner, row pgx.RowToFunc[T], sql string, args ...any,
) (value T, err error) {
	list, err := queryAll(ctx, run, row, sql, args...)
	if err != nil || len(list) == 0 {
		return value, cmp.Or(err, error(errNotFound))
	}
	return list[0], nil
}

// exec returns how many rows a statement affected.
func exec(ctx context.Context, run runner, sql string, args ...any) (affected int64, err error) {
	err = run(ctx, func(ctx context.Context, q querier) error {
		tag, err := q.Exec(ctx, sql, args...)
		affected = tag.RowsAffected()
		return err
	})
	return affected, err
}

// requireRow returns errNotFound if the statement affected no row.
func requireRow(affected int64, err error) error {
	if err == nil && affected == 0 {
		return errNotFound
	}
	return err
}

// retry returns a runner on a connection of the pool, which translates errors. It repeats what
// isRetryable allows; what is idempotent, reads and compare-and-set, also after a lost connection:
// a restart of PostgreSQL ends all. A client that goes ends only the wait for a connection:
// statements have a context of their own, with one time-out for all tries, from the first on.
func (st *store) retry(timeout time.Duration, idempotent bool) runner {
	return func(ctx context.Context, f queryFunc) error {
		release, err := st.conns.acquire(ctx, requestOf(ctx).client, 1)
		if err != nil {
			return err
		}
		defer release()
		conn, err := st.acquire(ctx)
		if err != nil {
			return err
		}
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		defer cancel()
		for tries := 1; ; tries++ {
			err := func() error {
				defer conn.Release() // also after a panic
				return f(detached, conn)
			}()
			retryable := err != nil && (isRetryable(err) || idempotent && isLostConnection(err))
			if !retryable || tries == maxTries || detached.Err() != nil {
				return translate(err)
			}
			if sqlState(err, staleCodes...) {
				st.pool.Reset()
			}
			time.Sleep(time.Duration(tries) * retryDelay)
			if conn, err = st.acquire(context.WithoutCancel(ctx)); err != nil {
				return err
			}
		}
	}
}

// requestInfo is what statements know of their request, if any: a pointer under requestKey.
type requestInfo struct {
	client    clientKey // whose shares of the limiters count; until it is known, nobody's
	id, route string    // for the log
}
type requestKey struct{}

func requestOf(ctx context.Context) requestInfo {
	if r, ok := ctx.Value(requestKey{}).(*requestInfo); ok {
		return *r
	}
	return requestInfo{}
}

// acquire takes a connection of the pool, and tries twice to open one. It waits for that alone: the
// pool has one for each unit of st.conns. Whatever fails here, the database is not available.
func (st *store) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	opening, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	conn, err := st.pool.Acquire(opening)
	if err != nil && opening.Err() == nil {
		conn, err = st.pool.Acquire(opening)
	}
	if err != nil {
		return nil, cmp.Or(ctx.Err(), fmt.Errorf("%w: %w", errUnavailable, describe(err)))
	}
	return conn, nil
}

// inSlot returns run in a slot of l.
func inSlot(l *limiter, run runner) runner {
	return func(ctx context.Context, f queryFunc) error {
		release, err := l.acquire(ctx, requestOf(ctx).client, 1)
		if err != nil {
			return err
		}
		defer release()
		return run(ctx, f)
	}
}

// inTx returns run, whose querier is a connection of the pool, in a transaction with settings.
func inTx(run runner, settings ...string) runner {
	begin := "BEGIN ISOLATION LEVEL READ COMMITTED" // which the locks need, whatever a role's is
	for _, setting := range settings {
		begin += "; SET LOCAL " + setting
	}
	return func(ctx context.Context, f queryFunc) error {
		return run(ctx, func(ctx context.Context, q querier) error {
			return pgx.BeginTxFunc(ctx, q.(*pgxpool.Conn), pgx.TxOptions{BeginQuery: begin},
				func(tx pgx.Tx) error { return f(ctx, tx) })
		})
	}
}

// violation is that of a constraint, without the values that PostgreSQL quotes.
type violation struct{ code, constraint string }

func (v violation) Error() string {
	return fmt.Sprintf("SQLSTATE %s, constraint %q", v.code, v.constraint)
}

// onConstraint returns p where err is the violation of this constraint, else err. On a shard of
// Citus the name ends with the shard's number.
func onConstraint(err error, constraint string, p *problem) error {
	v, ok := errors.AsType[violation](err)
	if ok && strings.TrimRight(v.constraint, "_0123456789") == constraint {
		return p
	}
	return err
}

// translate maps an error of pgx to a problem where clients can be told, else to an internal error.
func translate(err error) error {
	if _, ok := errors.AsType[*problem](err); ok || err == nil {
		return err
	}
	pg, _ := errors.AsType[*pgconn.PgError](err)
	switch {
	case isLostConnection(err) || isRetryable(err) ||
		sqlState(err, "55P03", "57", "53", "58", "08", "XX000") ||
		sqlState(err, "54000") && pg.ConstraintName == "":
		// Not the statement's fault: a lock, cancelled, terminated or starting, out of connections,
		// disk, memory or transaction ids, a failing disk, a lost server of a cluster.
		return fmt.Errorf("%w: %w", errUnavailable, describe(err))
	case sqlState(err, "23503"): // the row that it refers to has gone
		return fmt.Errorf("%w: %w", errNotFound, describe(err))
	case sqlState(err, "22", "54000"):
		// A value that the input should have refused, or one that is too large for an index.
		p := invalid(fieldError{[]any{"body"}, "has a value that cannot be stored", "value_error"})
		return fmt.Errorf("%w: %w", p, describe(err))
	}
	return describe(err)
}

// sqlState reports whether err is a PostgreSQL error of one of these codes or classes.
func sqlState(err error, prefixes ...string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.ContainsFunc(prefixes, func(prefix string) bool {
		return strings.HasPrefix(pg.Code, prefix)
	})
}

// isRetryable reports whether nothing of a statement was kept and another try may succeed: it was
// not sent, or failed by a serialization failure, a deadlock, a plan that a migration has outdated,
// or one of staleCodes. After a lock time-out the client has waited long enough.
func isRetryable(err error) bool {
	return pgconn.SafeToRetry(err) || sqlState(err, "40001", "40P01", "0A000") ||
		sqlState(err, staleCodes...)
}

// staleCodes tell that the other connections are as bad: the server is no longer the primary, or
// PgBouncer mixes up prepared statements. pgbouncerCodes tell of PgBouncer: the same, or it refuses
// serverSettings ("unsupported startup parameter").
var (
	staleCodes     = []string{"25006", "26000", "42P05"}
	pgbouncerCodes = []string{"08P01", "26000", "42P05"}
)

// isLostConnection reports whether the server, a pooler before it or the network has ended the
// session, as far as pgx tells: no statement is the reason for that.
func isLostConnection(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		severity := cmp.Or(pg.SeverityUnlocalized, pg.Severity)
		return severity == "FATAL" || severity == "PANIC" || strings.HasPrefix(pg.Code, "57P")
	}
	_, connect := errors.AsType[*pgconn.ConnectError](err)
	_, network := errors.AsType[net.Error](err) // also a deadline
	return connect || network || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, pgconn.ErrConnClosed)
}

// describe returns err without what may not be logged: the connection string, arguments, and the
// values that PostgreSQL quotes in all details, and in the messages of classes 22 and 23.
func describe(err error) error {
	pg, answered := errors.AsType[*pgconn.PgError](err)
	connect, unconnected := errors.AsType[*pgconn.ConnectError](err)
	switch {
	case sqlState(err, "22", "23"):
		return violation{pg.Code, pg.ConstraintName}
	case answered && pg.Hint != "":
		return fmt.Errorf("SQLSTATE %s: %s. %s", pg.Code, pg.Message, pg.Hint)
	case answered:
		return fmt.Errorf("SQLSTATE %s: %s", pg.Code, pg.Message)
	case unconnected: // with a line for each try, with TLS and without
		lines := strings.Split(errors.Unwrap(connect).Error(), "\n")
		return errors.New(strings.Join(slices.Compact(lines), "; "))
	case err != nil && strings.HasPrefix(err.Error(), "failed to encode args"): // the value follows
		return errors.New("an argument cannot be encoded")
	}
	return err
}

// ping returns nil when the database answers in time. It counts for no client, and one deadline
// bounds the wait for a connection and the statement.
func (st *store) ping(ctx context.Context) error {
	r := requestOf(ctx)
	r.client = clientKey{}
	ctx = context.WithValue(context.WithoutCancel(ctx), requestKey{}, &r)
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	return st.retry(pingTimeout, false)(ctx, func(_ context.Context, q querier) error {
		_, err := q.Exec(ctx, `SELECT 1`)
		return err
	})
}
