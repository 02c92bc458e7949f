package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// scrape returns the metrics as Prometheus gets them.
func (a *app) scrape() string {
	a.t.Helper()
	hs, err := a.serveMetrics()
	if err != nil {
		a.t.Fatal(err)
	}
	defer hs.Close()
	res, err := http.Get("http://" + hs.Addr + "/metrics")
	if err != nil {
		a.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 ||
		!strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		a.t.Fatalf("GET /metrics = %d, %v, %v", res.StatusCode, res.Header, err)
	}
	return string(text)
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(c *config) { c.MetricsAddr = "0" })
	m := a.signUp("ada")
	for range 3 {
		a.do("GET", "/api/v1/users/me", m.AccessToken, nil)
	}
	a.do("GET", "/api/v1/users/me", "x", nil)
	a.do("GET", "/nothing", "", nil)
	token := m.RefreshToken
	for range 3 {
		token = decode[tokens](a.refresh(token)).RefreshToken
	}
	a.want(a.refresh(m.RefreshToken), 401, "refresh_reused")
	text := a.scrape()
	for _, want := range []string{
		`latch_http_requests_total{method="GET",route="/users/me",status="200"} 3`,
		`latch_http_requests_total{method="GET",route="/users/me",status="401"} 1`,
		`latch_http_requests_total{method="",route="",status="404"} 1`,
		`latch_http_request_duration_seconds_bucket{method="GET",route="/users/me",le="+Inf"} 4`,
		`latch_http_request_duration_seconds_count{method="GET",route="/users/me"} 4`,
		`latch_http_requests_in_flight 0`,
		fmt.Sprintf(`latch_limiter_units{limiter="passwords"} %d`, a.hasher.slots.total),
		`latch_limiter_refused_total{limiter="passwords"} 0`,
		`latch_refresh_reuse_total 1`,
		`latch_db_connections_max 8`,
		`latch_draining 0`,
		`latch_http_requests_total{method="GET",route="/users/me",status="500"} 0`,
		`latch_http_requests_total{method="",route="",status="500"} 0`,
		fmt.Sprintf(`latch_build_info{version=%q,commit="unknown",go=%q} 1`, version,
			runtime.Version()),
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the metrics lack %s", want)
		}
	}
	for _, row := range a.table {
		want := fmt.Sprintf("latch_http_requests_total{method=%q,route=%q,status=\"500\"} 0\n",
			row.method, row.path)
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	for name, lowest := range map[string]float64{ // what the process has at least
		"process_cpu_seconds_total": .001, "process_resident_memory_bytes": 1 << 20,
		"process_open_fds": 3, "process_start_time_seconds": float64(a.start.Unix()),
		"go_goroutines": 2, "go_memstats_sys_bytes": 1 << 20,
		"go_memstats_heap_alloc_bytes": 1 << 16, "go_gc_cycles_total_gc_cycles_total": 0,
	} {
		var got float64
		_, after, _ := strings.Cut(text, "\n"+name+" ")
		_, err := fmt.Sscan(after, &got)
		if onLinux := runtime.GOOS == "linux"; err != nil && onLinux || err == nil && got < lowest {
			t.Errorf("%s is %v, %v, want at least %v", name, got, err, lowest)
		}
	}
	line := regexp.MustCompile(`^(# HELP [a-z_]+ [A-Z1].+[.]|` +
		`# TYPE [a-z_]+ (counter|gauge|histogram)|` +
		`[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+)$`)
	for l := range strings.Lines(text) {
		if !line.MatchString(strings.TrimSuffix(l, "\n")) {
			t.Errorf("no line of the format: %s", l)
		}
	}
	promtool, err := osexec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("promtool is missing: .ci/setup.sh promtool installs it")
		}
		fmt.Fprintln(os.Stderr, "SKIPPED: promtool's check of the metrics (Debian: prometheus)")
		return
	}
	check := osexec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// TestMetricsAddress: without a host, the metrics are for this machine alone.
func TestMetricsAddress(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{"0": "127.0.0.1:", ":0": "127.0.0.1:",
		"127.0.0.1:0": "127.0.0.1:", "0.0.0.0:0": "[::]:", "[::1]:0": "[::1]:"} {
		a := newApp(t, func(c *config) { c.MetricsAddr = given })
		hs, err := a.serveMetrics()
		if err != nil {
			t.Errorf("METRICS_ADDR %s: %v", given, err)
			continue
		}
		if !strings.HasPrefix(hs.Addr, want) &&
			!(given == "0.0.0.0:0" && strings.HasPrefix(hs.Addr, "0.0.0.0:")) {
			t.Errorf("METRICS_ADDR %s listens on %s, want %s", given, hs.Addr, want)
		}
		hs.Close()
	}
}

// sources returns the text of all Go files that match a pattern, tests or not.
func sources(t *testing.T, tests bool) string {
	t.Helper()
	var text strings.Builder
	for _, pattern := range []string{"*.go", "test/*/*.go", "internal/*/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") != tests {
				continue
			}
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text.Write(source)
		}
	}
	return text.String()
}

var named = regexp.MustCompile("`(?:(?:Test|Fuzz)[A-Za-z]+…?|[a-z_/]+\\.(?:go|sql|html|md)|" +
	"[a-z]+/[a-z]+|[A-Z]+\\.md|deploy/[A-Z]+\\.md|\\.env\\.example)`")

// TestReadme: the tests and the files that the README names exist.
func TestReadme(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, names := sources(t, true), named.FindAllString(string(text), -1)
	for _, name := range names {
		name = strings.Trim(name, "`")
		if strings.HasPrefix(name, "Test") || strings.HasPrefix(name, "Fuzz") {
			function := "func " + strings.TrimSuffix(name, "…")
			if !strings.HasSuffix(name, "…") {
				function += "("
			}
			if !strings.Contains(tests, function) {
				t.Errorf("the README names %s, which is no test", name)
			}
		} else if _, err := os.Stat(name); err != nil {
			t.Errorf("the README names %s, which is no file", name)
		}
	}
}

// TestOperations looks for every metric and every event of the log in OPERATIONS.md.
func TestOperations(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("deploy/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	newApp(t).server.writeMetrics(&text)
	names := submatches(`(?m)^# TYPE (\S+)`, text.String())
	if len(names) < 15 {
		t.Errorf("metrics: %q", names)
	}
	code := sources(t, false)
	for _, pattern := range []string{
		`log\.(?:Info|Warn|Error)\("(\w+)"`, `LogAttrs\([^"]*"(\w+)"`, `\.event\(c, "(\w+)"`,
		`newProblem\(50[2-4], "(\w+)"`, // problems that are logged under their code
	} {
		found := submatches(pattern, code)
		if found == nil {
			t.Errorf("nothing matches %s", pattern)
		}
		names = append(names, found...)
	}
	for _, name := range names {
		if !strings.Contains(string(page), "`"+name) {
			t.Errorf("OPERATIONS.md does not explain %s", name)
		}
	}
}

// submatches returns what the group in pattern matches, each time.
func submatches(pattern, text string) (found []string) {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}
