//go:build fault

package faults

import (
	"testing"
	"time"

	"latch/test/pgbouncer"
)

// bouncerSettings are further lines of PgBouncer's configuration. A tolerant one ignores settings
// that it does not know: only its mistakes show that it is there.
var bouncerSettings = map[string][]string{
	"strict": nil,
	"tolerant": {"ignore_startup_parameters = statement_timeout,lock_timeout," +
		"idle_in_transaction_session_timeout,plan_cache_mode,jit," +
		"max_parallel_workers_per_gather,random_page_cost"},
}

// TestPgBouncer puts PgBouncer in transaction mode between the replicas and PostgreSQL, and
// restarts it.
func TestPgBouncer(t *testing.T) {
	for name, settings := range bouncerSettings {
		t.Run(name, func(t *testing.T) {
			name := "pgbouncer-" + name
			s := &site{row: newRow(t, name), database: "latch", db: startPostgres(t, name)}
			s.db.createDatabase(s.database)
			bouncer, err := pgbouncer.Start(workDir, "127.0.0.1", s.db.port, settings...)
			if err != nil {
				t.Fatal(err)
			}
			defer bouncer.Stop()
			s.startReplicas(program, databaseURL(bouncer.Address, s.database), nil, nil)
			s.begin()
			bouncer.Stop()
			time.Sleep(500 * time.Millisecond)
			if err := bouncer.Restart(); err != nil {
				t.Fatal(err)
			}
			s.end(time.Now(), time.Second)
		})
	}
}

// TestOperationsThroughPgBouncer calls all operations through PgBouncer, by several clients at
// once, so that each statement meets connections that others have used.
func TestOperationsThroughPgBouncer(t *testing.T) {
	for name, settings := range bouncerSettings {
		t.Run(name, func(t *testing.T) {
			name := "operations-" + name
			r, db := newRow(t, name), startPostgres(t, name)
			db.createDatabase("latch")
			bouncer, err := pgbouncer.Start(workDir, "127.0.0.1", db.port, settings...)
			if err != nil {
				t.Fatal(err)
			}
			defer bouncer.Stop()
			target := startReplica(t, databaseURL(bouncer.Address, "latch"))
			callOperations(r, db, "latch", target)
		})
	}
}
