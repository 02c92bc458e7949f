//go:build fault

package faults

import (
	"os"
	"testing"
	"time"
)

// TestSoak runs the load for ten minutes, or for as long as SOAK says: memory and goroutines stay
// as they are. "make soak" runs it alone.
func TestSoak(t *testing.T) {
	length := 10 * time.Minute
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	s := newSite(newRow(t, "soak"), sharedPostgres(t))
	s.begin()
	idle := startReplica(t, databaseURL(s.proxy.address(), s.database))
	time.Sleep(length / 5) // until everything that is made at first use is there
	before := s.replicas[0].memory("VmRSS")
	time.Sleep(length * 4 / 5)
	after := s.replicas[0].memory("VmRSS")
	s.end(time.Now(), 0)
	s.figure("rss_mib", before)
	s.atMost("rss_more_mib", after-before, 16)
	s.atMost("refused", float64(s.Statuses[503]), 0)
	s.sameGoroutines(idle)
}
