//go:build bench

package bench

// load_test.go makes the load: wrk for throughput, an open loop for latencies, and goroutines for
// what the program is compared with.

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// load is the result of a run: a rate, and latencies in milliseconds.
type load struct{ perSecond, p50, p99, bytesPerSecond float64 }

// line is a request in wrk's file: see wrk.lua.
func line(method, path, token, body string) string {
	return method + "\t" + path + "\t" + token + "\t" + body
}

// requests writes wrk's file of n requests.
func requests(t *testing.T, n int, request func(i int) string) (file string) {
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

// wrk sends the requests of a file over so many connections for d, each as soon as the last is
// answered. An answer other than 2xx or 3xx fails the benchmark.
func wrk(t *testing.T, p *process, file string, connections int, d time.Duration) load {
	t.Helper()
	threads := fmt.Sprint(min(2, connections))
	duration := fmt.Sprintf("%ds", int(math.Ceil(d.Seconds())))
	cmd := exec.Command("wrk", "-t", threads, "-c", fmt.Sprint(connections), "-d", duration,
		"--timeout", "10s", "-s", "wrk.lua", "http://"+p.address, "--", file, threads, p.prefix)
	out, err := cmd.CombinedOutput()
	_, after, found := strings.Cut(string(out), "RESULT ")
	var n, took, errors, p50, p99, bytes float64
	if found {
		_, err = fmt.Sscan(after, &n, &took, &errors, &p50, &p99, &bytes)
	}
	if !found || err != nil || errors > 0 || n == 0 {
		t.Fatalf("wrk on %s: %v\n%s", file, err, out)
	}
	return load{n / took * 1e6, p50 / 1000, p99 / 1000, bytes / took * 1e6}
}

// read is a GET request.
type read struct{ path, token string }

// openLoop sends the requests in turn at a constant rate for d, whether or not the answers keep up,
// and returns quantiles of the latencies in milliseconds. A latency counts from the time at which
// the request was due.
func openLoop(
	t *testing.T, p *process, reads []read, rate float64, d time.Duration, quantiles ...float64,
) (ms []float64) {
	t.Helper()
	const connections = 64
	n := int(rate * d.Seconds())
	latencies := make([]float64, n)
	begin := time.Now().Add(50 * time.Millisecond)
	var wg sync.WaitGroup
	for first := range connections {
		wg.Go(func() {
			c, err := dial(p)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.conn.Close()
			for i := first; i < n; i += connections {
				due := begin.Add(time.Duration(float64(i) / rate * 1e9))
				time.Sleep(time.Until(due))
				r := reads[i%len(reads)]
				if _, err := c.do("GET", r.path, r.token, ""); err != nil {
					t.Errorf("request %d: %v", i, err)
					return
				}
				latencies[i] = milliseconds(time.Since(due))
			}
		})
	}
	wg.Wait()
	return quantilesOf(latencies, quantiles...)
}

// quantilesOf sorts values.
func quantilesOf(values []float64, quantiles ...float64) (list []float64) {
	slices.Sort(values)
	for _, q := range quantiles {
		list = append(list, values[min(len(values)-1, int(q*float64(len(values))))])
	}
	return list
}

// client is one connection to a server. It costs a fifth of the time of http.Client.
type client struct {
	conn    net.Conn
	answers *bufio.Reader
	prefix  string
}

func dial(p *process) (*client, error) {
	conn, err := net.Dial("tcp", p.address)
	if err != nil {
		return nil, err
	}
	return &client{conn, bufio.NewReader(conn), p.prefix}, nil
}

// do sends a request and returns the body of the answer. A status other than 2xx is an error. The
// request's body is JSON or a form.
func (c *client) do(method, path, token, body string) ([]byte, error) {
	var b []byte
	b = fmt.Appendf(b, "%s %s%s HTTP/1.1\r\nHost: 127.0.0.1\r\n", method, c.prefix, path)
	if token != "" {
		b = fmt.Appendf(b, "Authorization: Bearer %s\r\n", token)
	}
	if body != "" {
		contentType := "application/x-www-form-urlencoded"
		if body[0] == '{' {
			contentType = "application/json"
		}
		b = fmt.Appendf(b, "Content-Type: %s\r\nContent-Length: %d\r\n", contentType, len(body))
	} else if method == "POST" {
		b = append(b, "Content-Length: 0\r\n"...)
	}
	if _, err := c.conn.Write(append(append(b, "\r\n"...), body...)); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode < 200 || res.StatusCode > 299) {
		err = fmt.Errorf("%s %s: %s: %s", method, path, res.Status, answer)
	}
	return answer, err
}

// repeat calls each function over and over in a goroutine of its own for d, and returns the sum of
// what the calls returned per second.
func repeat(t *testing.T, d time.Duration, functions []func() (float64, error)) float64 {
	t.Helper()
	var mu sync.Mutex
	total, begin := 0.0, time.Now()
	var wg sync.WaitGroup
	for _, f := range functions {
		wg.Go(func() {
			sum := 0.0
			for time.Since(begin) < d {
				x, err := f()
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
