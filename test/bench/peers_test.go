//go:build bench

package bench

// peers_test.go compares the program with other services: accounts and tokens here, vector search
// in peers_search_test.go. peers/run.sh installs the services. All run at the same time, idle but
// for the one that is measured; those that need PostgreSQL share one, over TCP on the loopback
// interface.

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

var peerAccounts = flag.Int("accounts", 200,
	"accounts of each of the compared services, a multiple of 8")

// peers is what the rows share.
type peers struct {
	*bench
	dir   string // where peers/run.sh installed the services
	sides []*peer
	lines []string // the table
	notes []string // of what is missing
}

// TestPeers compares the services. Its topics are "accounts" and "search".
func TestPeers(t *testing.T) {
	only := regexp.MustCompile(*onlyTopics)
	c, measured := newPeers(t), false
	for _, topic := range []struct {
		name string
		run  func() string
	}{{"accounts", c.compareAccounts}, {"search", c.compareSearch}} {
		if !only.MatchString(topic.name) {
			continue
		}
		table := topic.run()
		measured = true
		fmt.Print("\n", table, "\n")
		if *rounds < 5 || *seconds < 2 || t.Failed() {
			continue
		}
		section := "peers: " + topic.name
		if err := writeSection(filepath.Join(root, "BENCHMARKS.md"), section, table); err != nil {
			t.Error(err)
		}
	}
	if !measured {
		t.Errorf("no topic matches %q", *onlyTopics)
	}
}

func newPeers(t *testing.T) *peers {
	dir := os.Getenv("PEERS_DIR")
	if dir == "" {
		t.Fatal("PEERS_DIR is not set: start the comparison by peers/run.sh")
	}
	port := freePort(t)
	b := &bench{T: t, db: startPostgres(t, "listen_addresses=127.0.0.1", "port="+port)}
	b.url = "postgresql://postgres@127.0.0.1:" + port + "/postgres?sslmode=disable"
	b.db.URL = b.url
	b.binary = b.buildProgram()
	return &peers{bench: b, dir: dir}
}

// installed tells whether a file of a service exists, and notes it if not.
func (c *peers) installed(name, file string) bool {
	if _, err := os.Stat(filepath.Join(c.dir, file)); err != nil {
		c.notes = append(c.notes, name+" could not be installed.")
		return false
	}
	return true
}

// compareAccounts measures all services and returns the table.
func (c *peers) compareAccounts() string {
	c.notes = nil
	c.startSides()
	names := []string{""}
	for _, s := range c.sides {
		names = append(names, s.name)
	}
	c.lines = append(c.lines, cells(names...), rule(len(names)))
	c.row("who am I is", func(s *peer) string { return s.request })
	c.compareReads(8)
	c.compareReads(32)
	c.row("hash of passwords", func(s *peer) string { return s.hash })
	c.compareLogins()
	c.compareLatency()
	c.compareRefresh()
	c.row("memory idle, MB", func(s *peer) string { return fmt.Sprintf("%.0f", s.idle) })
	c.row("memory at the end, MB", func(s *peer) string {
		return fmt.Sprintf("%.0f", s.process.share(c.T))
	})
	c.row("start to first answer", func(s *peer) string { return fmt.Sprintf("%.0f ms", s.start) })
	c.row("on disk", func(s *peer) string { return s.size })
	for _, s := range c.sides {
		s.process.stop()
	}
	return c.peersCaption() + "\n\n" + strings.Join(c.lines, "\n") + "\n"
}

// peersCaption is caption for a comparison of services.
func (c *peers) peersCaption() string {
	text := fmt.Sprintf("%s; %d accounts, %d runs of %d s a side; %s.", c.machine(), *peerAccounts,
		*rounds, *seconds, time.Now().UTC().Format(time.DateOnly))
	return strings.Join(append([]string{text}, c.notes...), " ")
}

// row adds a line of the table. value is empty where a side has none.
func (c *peers) row(name string, value func(s *peer) string) {
	list := []string{name}
	for _, s := range c.sides {
		list = append(list, value(s))
	}
	line := cells(list...)
	c.lines = append(c.lines, line)
	fmt.Println(line)
}

func cells(list ...string) string { return "| " + strings.Join(list, " | ") + " |" }

// rule is the line below the head of a table.
func rule(columns int) string { return strings.Repeat("|---", columns) + "|" }

// alternateSides is alternate for the sides that run accepts; the results are by side.
func (c *peers) alternateSides(
	accept func(s *peer) bool, run func(s *peer, d time.Duration) load,
) map[*peer][]load {
	c.Helper()
	var sides []*peer
	var runs []func(d time.Duration) load
	for _, s := range c.sides {
		if accept(s) {
			sides = append(sides, s)
			runs = append(runs, func(d time.Duration) load { return run(s, d) })
		}
	}
	results := map[*peer][]load{}
	for i, list := range c.alternate(runs...) {
		results[sides[i]] = list
	}
	return results
}

func all(*peer) bool         { return true }
func refreshes(s *peer) bool { return s.refresh != nil }

// compareReads measures "who am I" by wrk.
func (c *peers) compareReads(clients int) {
	r := c.alternateSides(all, func(s *peer, d time.Duration) load {
		return wrk(c.T, s.process, s.readFile, clients, d)
	})
	c.row(fmt.Sprintf("who am I, %d connections, per second; p50, p99", clients),
		func(s *peer) string { return formatLoad(r[s]) })
}

func formatLoad(list []load) string {
	if list == nil {
		return "—"
	}
	return fmt.Sprintf("%s; %.1f, %.1f ms",
		strings.TrimSuffix(formatRate(list), "/s"), medianOf(list, p50), medianOf(list, p99))
}

// compareLogins measures logins over 8 connections.
func (c *peers) compareLogins() {
	r := c.alternateSides(all, c.logIn)
	c.row("logins, 8 connections, per second; p50, p99",
		func(s *peer) string { return formatLoad(r[s]) })
}

func (c *peers) logIn(s *peer, d time.Duration) load {
	return c.closedLoop(s.process, 8, d, func(conn *client, i int) error {
		_, err := s.login(conn, s.accounts[i%len(s.accounts)].email)
		return err
	})
}

// compareLatency measures "who am I" at 200 a second, alone and while 8 clients log in.
func (c *peers) compareLatency() {
	quiet := c.alternateSides(all, c.readSteadily)
	c.row("who am I at 200 a second: p50, p99", func(s *peer) string {
		return formatLatencies(quiet[s])
	})
	busy := c.alternateSides(all, func(s *peer, d time.Duration) (l load) {
		var wg sync.WaitGroup
		var logins load
		wg.Go(func() { logins = c.logIn(s, d+2*time.Second) })
		time.Sleep(time.Second)
		l = c.readSteadily(s, d)
		wg.Wait()
		l.perSecond = logins.perSecond
		return l
	})
	c.row("the same while 8 clients log in; logins a second meanwhile", func(s *peer) string {
		return formatLatencies(busy[s]) + "; " + formatRate(busy[s])
	})
}

func formatLatencies(list []load) string {
	return fmt.Sprintf("%.1f, %.1f ms", medianOf(list, p50), medianOf(list, p99))
}

// readSteadily is "who am I" in an open loop.
func (c *peers) readSteadily(s *peer, d time.Duration) load {
	var reads []read
	for _, a := range s.accounts {
		reads = append(reads, read{s.me(a), a.access})
	}
	ms := openLoop(c.T, s.process, reads, 200, d, 0.5, 0.99)
	return load{p50: ms[0], p99: ms[1]}
}

// compareRefresh measures refreshes over 8 connections. Each connection has its share of the
// accounts, and uses the tokens that the last refresh returned.
func (c *peers) compareRefresh() {
	r := c.alternateSides(refreshes, func(s *peer, d time.Duration) load {
		return c.closedLoop(s.process, 8, d, func(conn *client, i int) error {
			return s.refresh(conn, &s.accounts[i%len(s.accounts)])
		})
	})
	c.row("refreshes, 8 connections, per second; p50, p99", func(s *peer) string {
		return formatLoad(r[s])
	})
	c.row("a refresh is", func(s *peer) string { return s.refreshIs })
}

// closedLoop calls f over so many connections for d, each call as soon as the last has returned. No
// two connections pass f numbers that are equal modulo the number of connections.
func (c *peers) closedLoop(
	p *process, connections int, d time.Duration, f func(conn *client, i int) error,
) load {
	c.Helper()
	var mu sync.Mutex
	var latencies []float64
	var functions []func() (float64, error)
	for n := range connections {
		conn, err := dial(p)
		if err != nil {
			c.Fatal(err)
		}
		defer conn.conn.Close()
		i := n - connections
		functions = append(functions, func() (float64, error) {
			i += connections
			begin := time.Now()
			err := f(conn, i)
			took := milliseconds(time.Since(begin))
			mu.Lock()
			defer mu.Unlock()
			latencies = append(latencies, took)
			return 1, err
		})
	}
	perSecond := repeat(c.T, d, functions)
	quantiles := quantilesOf(latencies, 0.5, 0.99)
	return load{perSecond: perSecond, p50: quantiles[0], p99: quantiles[1]}
}

// share returns the memory of a server and its child processes in MB, pages that they share with
// others counted in parts: Pss in proc(5).
func (p *process) share(t *testing.T) (mb float64) {
	t.Helper()
	for _, pid := range descendants(p.cmd.Process.Pid) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			t.Fatal(err)
		}
		mb += numberAfter(string(text), "\nPss:") * 1024 / 1e6
	}
	return mb
}

// descendants returns a process and its children, and theirs.
func descendants(pid int) []int {
	list := []int{pid}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for field := range strings.FieldsSeq(string(text)) {
		var child int
		if _, err := fmt.Sscan(field, &child); err == nil {
			list = append(list, descendants(child)...)
		}
	}
	return list
}
