package faults

import (
	"context"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The criteria of the rows of abuse: resident memory in MiB, and the p99 of another user. In the
// short selection, which other rows disturb, there only has to be an answer.
const memoryLimit = 256

var otherLimit = pick(100*time.Millisecond, clientTimeout)

// runawayMemory is the resident memory in MiB at which a row kills the service, to save the
// machine.
const runawayMemory = 1024

// target is one replica that some clients misuse while another user goes on working.
type target struct {
	*row
	*replica
	db       *postgres
	database string
	limit    float64 // MiB of resident memory
	before   float64 // MiB of resident memory before the first misuse
	client   *client // of the test's own requests
	user     member  // an ordinary user, whose tokens the misuse may have
	other    member  // another user, who must hardly notice
	end      time.Time
}

// newTarget starts a replica on a database of its own.
func newTarget(t *testing.T, name string) *target {
	t.Helper()
	g := &target{row: newRow(t, name), db: sharedPostgres(t), limit: memoryLimit}
	g.database = strings.ReplaceAll(name, "-", "_")
	g.db.createDatabase(g.database)
	g.replica = startReplica(t, g.db.url(g.database))
	g.client = &client{address: g.address(), timeout: time.Minute}
	g.user = g.client.signUp(t, "user@example.com")
	g.other = g.client.signUp(t, "other@example.com")
	return g
}

// attacked says that the misuse goes on.
func (g *target) attacked() bool { return time.Now().Before(g.end) && g.running() }

// under runs a misuse for length, while the other user sends requests, and checks the memory and
// the other user's latency. The name is that of the figures. A latency over the limit is measured
// again, twice at most: the machine may have done other work, whereas a defect is there each time.
func (g *target) under(name string, length time.Duration, misuse func()) {
	g.row.t.Helper()
	if g.before == 0 {
		g.before = g.memory("VmRSS")
	}
	var p99 time.Duration
	for range 3 {
		waitForQuiet(g.row.t)
		if !g.running() {
			return // it has been killed: the row has failed
		}
		p99 = quantile(g.measure(name, length, misuse), .99)
		if p99 <= otherLimit {
			break
		}
	}
	g.figure(name+"_p99_ms", milliseconds(p99))
	if p99 > otherLimit {
		g.fault("%s: the other user's p99 is %v, at most %v is allowed", name, p99, otherLimit)
	}
}

// measure runs a misuse and returns the outcomes of the other user's requests.
func (g *target) measure(name string, length time.Duration, misuse func()) []sample {
	g.row.t.Helper()
	g.resetPeak()
	ctx, cancel := context.WithCancel(context.Background())
	var guard sync.WaitGroup
	guard.Go(func() { g.killRunaway(ctx, name) })
	g.end = time.Now().Add(length)
	samples := g.probed(g.replica, g.other.AccessToken, misuse)
	cancel()
	guard.Wait()
	if g.running() {
		g.atMost(name+"_rss_mib", g.memory("VmHWM"), g.limit)
		g.settle(g.replica, g.other.AccessToken, g.before)
	}
	g.atMost(name+"_other_refused", float64(refused(samples)), 0)
	return samples
}

// killRunaway kills the service when its memory gets out of hand, until ctx ends.
func (g *target) killRunaway(ctx context.Context, name string) {
	for ctx.Err() == nil {
		if mib := g.memory("VmRSS"); mib > runawayMemory {
			g.replica.kill()
			g.figure(name+"_rss_mib", mib)
			g.fault("%s: the service had %.0f MiB and was killed; at most %.0f is allowed",
				name, mib, g.limit)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// waitForQuiet waits until half of the processors' time is idle, for two minutes at most: a latency
// that is measured beside other work says nothing. The short selection does not wait.
func waitForQuiet(t *testing.T) {
	t.Helper()
	quiet := func() bool {
		idle, total := processorTime()
		time.Sleep(500 * time.Millisecond)
		idleAfter, totalAfter := processorTime()
		return totalAfter == total || (idleAfter-idle)/(totalAfter-total) > .5
	}
	if full {
		if took, ok := eventually(2*time.Minute, quiet); !ok {
			t.Logf("after %v the machine is still busy: latencies may be those of other work", took)
		}
	}
}

// processorTime returns how long the processors have been idle, and altogether, in ticks (proc(5)).
func processorTime() (idle, total float64) {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line) {
		n, _ := strconv.ParseFloat(field, 64)
		if total += n; i == 4 || i == 5 { // idle, and waiting for a disk
			idle += n
		}
	}
	return idle, total
}

// each runs f for n clients, which begin one after another within ramp.
func each(n int, ramp time.Duration, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			time.Sleep(ramp * time.Duration(i) / time.Duration(n))
			f(i)
		})
	}
	wg.Wait()
}

// must sends a request of the test's own and fails the test where the status is not want.
func (g *target) must(want int, method, path, token string, body any) answer {
	g.row.t.Helper()
	return g.client.must(g.row.t, want, method, path, token, body)
}

// readHead reads the status line and the headers of an answer, and the body only where it is a
// refusal. The rest of another answer stays unread.
func (c *conn) readHead(call string) (a answer) {
	a.call = call
	var res *http.Response
	if res, a.err = http.ReadResponse(c.r, nil); a.err != nil {
		return a
	}
	a.Response = res
	if res.StatusCode >= 300 {
		buf := make([]byte, min(max(res.ContentLength, 0), 2048))
		n, _ := res.Body.Read(buf)
		a.body = buf[:n]
	}
	return a
}
