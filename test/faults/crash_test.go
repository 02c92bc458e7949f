package faults

import (
	"testing"
	"time"
)

// TestCrash stops PostgreSQL at once, for a second. Then a request on a connection of the pool that
// was idle finds it broken: reads are repeated, some writes are refused with 503.
func TestCrash(t *testing.T) {
	s := startSite(t, "postgres-crash")
	s.db.halt("immediate")
	time.Sleep(time.Second)
	healed := s.db.restart()
	s.end(healed, 2*time.Second)
	s.atMost("first_success_ms", s.Figures["first_success_ms"], 1000)
}

// TestBlackhole lets the network to PostgreSQL swallow what is sent, or hold it back.
func TestBlackhole(t *testing.T) {
	for _, mode := range pick([]string{"hold", "swallow"}, []string{"swallow"}) {
		t.Run(mode, func(t *testing.T) {
			r := newRow(t, "blackhole-"+mode)
			s := newSite(r, sharedPostgres(t))
			s.begin()
			s.fillPools()
			watch := watchHealth(s.replicas[0])
			s.proxy.mode.Store(mode)
			time.Sleep(pick(4*time.Second, 3500*time.Millisecond)) // about the deadline of a query
			s.proxy.mode.Store("pass")
			healed := time.Now()
			s.judgeHealth(watch)
			s.end(healed, 3*time.Second)
		})
	}
}
