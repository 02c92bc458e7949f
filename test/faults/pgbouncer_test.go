//go:build fault

package faults

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"latch/test/pgbouncer"
)

// TestPgBouncer puts PgBouncer in transaction mode between the replicas and PostgreSQL, and
// restarts it.
func TestPgBouncer(t *testing.T) {
	for name, settings := range map[string][]string{
		"pgbouncer-restart": nil,
		// One that ignores the settings which it does not know shows only by its mistakes.
		"pgbouncer-tolerant": {"ignore_startup_parameters = statement_timeout,lock_timeout," +
			"idle_in_transaction_session_timeout,plan_cache_mode,jit," +
			"max_parallel_workers_per_gather,random_page_cost"},
	} {
		t.Run(name, func(t *testing.T) {
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

// TestSuiteThroughPgBouncer runs the tests of the program with PgBouncer before their databases.
func TestSuiteThroughPgBouncer(t *testing.T) {
	r := newRow(t, "suite-through-pgbouncer")
	start := time.Now()
	cmd := exec.Command("go", "test", "-count=1", "-timeout=120s", ".")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "LATCH_TEST_PGBOUNCER=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.fault("%v\n%.4000s", err, out)
	}
	r.figure("took_s", time.Since(start).Seconds())
}
