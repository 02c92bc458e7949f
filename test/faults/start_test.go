//go:build fault

package faults

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestStart starts 8 replicas at once on an empty database, every other time before PostgreSQL has
// started. Each migration is applied by one of them.
func TestStart(t *testing.T) {
	r := newRow(t, "eight-replicas-start")
	db := startPostgres(t, "eight-replicas")
	var slowest time.Duration
	for round := range 10 {
		name := fmt.Sprintf("round%d", round)
		db.createDatabase(name)
		took, migrated := startEight(t, db, name, round%2 == 1)
		slowest = max(slowest, took)
		want := db.count(name, `SELECT count(*) FROM schema_migrations`)
		if want == 0 || int64(len(migrated)) != want {
			r.fault("round %d: %d migrations were logged, want %d", round, len(migrated), want)
		}
		for version, n := range migrated {
			if n != 1 {
				r.fault("round %d: migration %s was applied %d times", round, version, n)
			}
		}
	}
	r.figure("slowest_s", slowest.Seconds())
}

// startEight starts 8 replicas and ends them when all have served. It returns how long that took
// and how often each migration was logged. With late, PostgreSQL starts after the replicas.
func startEight(t *testing.T, db *postgres, name string, late bool) (
	took time.Duration, migrated map[string]int,
) {
	t.Helper()
	if late {
		db.halt("immediate")
	}
	start := time.Now()
	var replicas []*replica
	for range 8 {
		replicas = append(replicas, newReplica(t, program, db.url(name), "LOG_LEVEL=info"))
	}
	if late {
		time.Sleep(300 * time.Millisecond)
		db.restart()
	}
	migrated = map[string]int{}
	for _, r := range replicas {
		r.ready()
		for line := range strings.Lines(r.log()) {
			if strings.Contains(line, `"msg":"migrated"`) {
				_, version, _ := strings.Cut(line, `"version":`)
				migrated[strings.SplitN(version, ",", 2)[0]]++
			}
		}
	}
	took = time.Since(start)
	for _, r := range replicas {
		r.kill()
	}
	return took, migrated
}
