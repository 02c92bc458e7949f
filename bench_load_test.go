//go:build bench

package main

// bench_load_test.go makes the load of the benchmark: wrk for throughput, pgbench for what PostgreSQL alone
// can do, and an open loop for latencies.

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// process is a program under load.
type process struct {
	cmd     *exec.Cmd
	url     string
	started float64 // ms from its start to its first answer
}

// launch runs a server that listens on a free port, and waits for its first answer.
func launch(t *testing.T, binary string, env ...string) *process {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	p := &process{cmd: exec.Command(binary), url: "http://127.0.0.1:" + port}
	p.cmd.Dir = t.TempDir()
	p.cmd.Env = append([]string{"PORT=" + port, "GODEBUG=" + os.Getenv("GODEBUG")}, env...)
	p.cmd.Stderr = os.Stderr
	begin := time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for ; ; time.Sleep(500 * time.Microsecond) {
		if res, err := http.Get(p.url + "/api/v1/health"); err == nil {
			res.Body.Close()
			p.started = milliseconds(time.Since(begin))
			return p
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatal(binary, "does not answer")
		}
	}
}

// stop ends the program as an orchestrator would, so that it closes its connections.
func (p *process) stop() {
	p.cmd.Process.Signal(os.Interrupt)
	p.cmd.Wait()
}

// memory is what the kernel counts under name in MB: VmRSS, or VmHWM for the highest so far.
func (p *process) memory(t *testing.T, name string) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), name)
	kb, _ := strconv.ParseFloat(strings.Fields(after)[0], 64)
	return kb * 1024 / 1e6
}

// forgetPeak begins anew with the highest memory: clear_refs of proc(5).
func (p *process) forgetPeak(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// line is a request in wrk's file: see testdata/wrk.lua.
func line(method, path, token, body string) string {
	return method + "\t/api/v1" + path + "\t" + token + "\t" + body
}

// requests writes wrk's file of n requests.
func requests(t *testing.T, n int, request func(i int) string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "requests"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	for i := range n {
		fmt.Fprintln(w, request(i))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// load is what a load generator saw.
type load struct{ perSecond, p50, p99, bytesPerSecond float64 } // latencies in ms

// wrk sends the requests of a file, on so many connections, for d. An answer that is no success fails the test.
func wrk(t *testing.T, p *process, file string, connections int, d time.Duration) load {
	t.Helper()
	threads := min(2, connections)
	out, err := exec.Command("wrk", "-t", fmt.Sprint(threads), "-c", fmt.Sprint(connections), "-d", fmt.Sprintf("%ds", int(math.Ceil(d.Seconds()))), "--timeout", "10s",
		"-s", "testdata/wrk.lua", p.url, "--", file, fmt.Sprint(threads)).CombinedOutput()
	_, after, ok := strings.Cut(string(out), "RESULT ")
	var n, took, errors, p50, p99, bytes float64
	if ok {
		_, err = fmt.Sscan(after, &n, &took, &errors, &p50, &p99, &bytes)
	}
	if !ok || err != nil || errors > 0 || n == 0 {
		t.Fatalf("wrk: %v\n%s", err, out)
	}
	return load{n / took * 1e6, p50 / 1000, p99 / 1000, bytes / took * 1e6}
}

var parameter = regexp.MustCompile(`\$\d+`)

// captured is the statement, of those that f makes through a store, that contains part.
func captured(t *testing.T, url, part string, f func(st *store)) string {
	t.Helper()
	var log logBuffer
	st, err := openStore(t.Context(), url, 1, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	f(st)
	for entry := range strings.Lines(log.text()) {
		_, after, found := strings.Cut(entry, "statement=")
		quoted, err := strconv.QuotedPrefix(after)
		if sql, _ := strconv.Unquote(quoted); found && err == nil && strings.Contains(sql, part) {
			return sql
		}
	}
	t.Fatalf("no statement with %q in:\n%s", part, log.text())
	return ""
}

// script makes a pgbench script of a statement of the store. pgbench numbers its variables as they come, each time
// anew; so that one which comes twice is sent once, as pgx does, only its first place is written as a variable.
func script(t *testing.T, set, sql string) string {
	t.Helper()
	place := map[string]int{}
	sql = parameter.ReplaceAllStringFunc(sql, func(p string) string {
		if n := place[p]; n > 0 {
			return fmt.Sprintf("$%d", n)
		}
		place[p] = len(place) + 1
		return ":p" + p[1:]
	})
	file := filepath.Join(t.TempDir(), "script.sql")
	if err := os.WriteFile(file, []byte(set+"\n"+sql+";\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// pgbench runs a script with prepared statements and with the settings of the store's connections. variables
// are name=value; the rate is of transactions that did not fail.
func pgbench(t *testing.T, url, file string, clients int, d time.Duration, variables ...string) load {
	t.Helper()
	args := []string{"-n", "-M", "prepared", "-c", fmt.Sprint(clients), "-j", fmt.Sprint(min(2, clients)), "-T", fmt.Sprint(int(math.Ceil(d.Seconds()))), "-f", file}
	for _, v := range variables {
		args = append(args, "-D", v)
	}
	cmd := exec.Command("pgbench", append(args, url)...)
	var options []string
	for name, value := range serverSettings {
		options = append(options, "-c "+name+"="+value)
	}
	cmd.Env = append(os.Environ(), "PGOPTIONS="+strings.Join(options, " "))
	out, err := cmd.CombinedOutput()
	text := string(out)
	tps, latency := between(text, "tps = ", " "), between(text, "latency average = ", " ")
	if err != nil || tps == 0 || strings.Contains(text, "ERROR") {
		t.Fatalf("pgbench: %v\n%s", err, out)
	}
	return load{perSecond: tps, p50: latency}
}

// between is the number in text after the first mark and before end.
func between(text, mark, end string) float64 {
	_, after, _ := strings.Cut(text, mark)
	number, _, _ := strings.Cut(after, end)
	x, _ := strconv.ParseFloat(number, 64)
	return x
}

// openLoop sends GET requests of path at a constant rate for d, whether or not the answers keep up, and returns the
// p-th quantiles of the latencies in ms. Each is counted from the time at which the request was due.
func openLoop(t *testing.T, p *process, path string, tokens []string, rate float64, d time.Duration, quantiles ...float64) (ms []float64) {
	t.Helper()
	const connections = 64
	n := int(rate * d.Seconds())
	latencies := make([]float64, n)
	begin := time.Now().Add(50 * time.Millisecond)
	var wg sync.WaitGroup
	for c := range connections {
		wg.Go(func() {
			conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			answers := bufio.NewReader(conn)
			for i := c; i < n; i += connections {
				due := begin.Add(time.Duration(float64(i) / rate * 1e9))
				time.Sleep(time.Until(due))
				fmt.Fprintf(conn, "GET /api/v1%s HTTP/1.1\r\nHost: latch\r\nAuthorization: Bearer %s\r\n\r\n", path, tokens[i%len(tokens)])
				res, err := http.ReadResponse(answers, nil)
				if err != nil || res.StatusCode != 200 {
					t.Errorf("request %d: %v %v", i, err, res)
					return
				}
				io.Copy(io.Discard, res.Body)
				latencies[i] = milliseconds(time.Since(due))
			}
		})
	}
	wg.Wait()
	slices.Sort(latencies)
	for _, q := range quantiles {
		ms = append(ms, latencies[min(n-1, int(q*float64(n)))])
	}
	return ms
}

// repeated runs f on so many goroutines, each of which has its own connection, for d, and returns the sum of
// what the calls returned per second.
func repeated(t *testing.T, url string, goroutines int, d time.Duration, f func(ctx context.Context, conn *pgx.Conn) (float64, error)) float64 {
	t.Helper()
	var mu sync.Mutex
	total, begin := 0.0, time.Now()
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			var conn *pgx.Conn
			var err error
			if url != "" {
				if conn, err = pgx.Connect(t.Context(), url); err != nil {
					t.Error(err)
					return
				}
				defer conn.Close(t.Context())
			}
			sum := 0.0
			for time.Since(begin) < d {
				x, err := f(t.Context(), conn)
				if err != nil {
					t.Error(err)
					return
				}
				sum += x
			}
			mu.Lock()
			total += sum
			mu.Unlock()
		})
	}
	wg.Wait()
	return total / time.Since(begin).Seconds()
}
