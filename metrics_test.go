package main

import (
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
		fmt.Sprintf(`go_info{version=%q} 1`, runtime.Version()),
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the metrics lack %s", want)
		}
	}
	for _, row := range a.table {
		for _, status := range []int{500, 503} {
			want := fmt.Sprintf("latch_http_requests_total{method=%q,route=%q,status=\"%d\"} 0\n",
				row.method, row.path, status)
			if !strings.Contains(text, want) {
				t.Errorf("the metrics lack %s", want)
			}
		}
	}
	for name, lowest := range map[string]float64{ // what the process has at least
		"process_cpu_seconds_total": .001, "process_resident_memory_bytes": 1 << 20,
		"process_open_fds": 3, "process_max_fds": 64, "process_virtual_memory_bytes": 1 << 20,
		"process_start_time_seconds": float64(a.start.Unix()),
		"go_goroutines":              2, "go_memstats_sys_bytes": 1 << 20,
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
	if out := runTool(t, "promtool", text, "check", "metrics"); out != "" {
		t.Errorf("promtool check metrics: %s", out)
	}
}

// TestAlerts: Prometheus takes the rules, raises each when it should, and finds their metrics here.
func TestAlerts(t *testing.T) {
	t.Parallel()
	var rules, tests, page string
	for file, text := range map[string]*string{"alerts.yaml": &rules, "alerts_test.yaml": &tests,
		"OPERATIONS.md": &page} {
		content, err := os.ReadFile("deploy/" + file)
		if err != nil {
			t.Fatal(err)
		}
		*text = string(content)
	}
	var metrics strings.Builder
	a := newApp(t)
	a.server.stats.indexes.Store(&[]vectorIndex{{Owner: 7, EfSearch: 40, Recall: 1}})
	a.server.writeMetrics(&metrics)
	names := submatches(`\b((?:latch|process)_[a-z_]+)[{\[ ]`, rules)
	if len(names) < 8 {
		t.Errorf("the rules have the metrics %q", names)
	}
	for _, name := range names {
		if !strings.Contains(metrics.String(), "\n"+name) {
			t.Errorf("the rules name %s, which is no metric", name)
		}
	}
	for _, alert := range submatches(`- alert: (\w+)`, rules) {
		raised := regexp.MustCompile(`alertname: ` + alert + `\n +exp_alerts`)
		if !strings.Contains(page, "| `"+alert+"` |") || !raised.MatchString(tests) {
			t.Errorf("OPERATIONS.md or alerts_test.yaml lacks %s", alert)
		}
	}
	runTool(t, "promtool", "", "check", "rules", "deploy/alerts.yaml")
	runTool(t, "promtool", "", "test", "rules", "deploy/alerts_test.yaml")
}

// runTool runs a program that .ci/setup.sh installs and returns what it prints. Where the program
// is missing it says so, or fails the test if CI is set.
func runTool(t *testing.T, name, input string, args ...string) (output string) {
	t.Helper()
	if _, err := osexec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: .ci/setup.sh %[1]s installs it", name)
		}
		fmt.Fprintf(os.Stderr, "SKIPPED: %s without %s\n", t.Name(), name)
		return ""
	}
	cmd := osexec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
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

// TestProfiles: /debug/pprof is at METRICS_ADDR, and there only with DEBUG.
func TestProfiles(t *testing.T) {
	t.Parallel()
	for debug, want := range map[bool]int{false: 404, true: 200} {
		a := newApp(t, func(c *config) { c.MetricsAddr, c.Debug = "0", debug })
		hs, err := a.serveMetrics()
		if err != nil {
			t.Fatal(err)
		}
		defer hs.Close()
		for _, path := range []string{"", "heap", "goroutine?debug=2", "profile?seconds=1"} {
			res, err := http.Get("http://" + hs.Addr + "/debug/pprof/" + path)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if n, err := io.Copy(io.Discard, res.Body); res.StatusCode != want || err != nil ||
				n == 0 {
				t.Errorf("DEBUG=%t: GET %s = %d, %d bytes, %v, want %d", debug, path,
					res.StatusCode, n, err, want)
			}
		}
		a.want(a.do("GET", "/debug/pprof/", "", nil), 404, "not_found")
	}
}

func TestTraceID(t *testing.T) {
	t.Parallel()
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for header, want := range map[string]string{
		"00-" + id + "-" + parent + "-01":                      id,
		"00-" + id + "-" + parent + "-ff":                      id,
		"cc-" + id + "-" + parent + "-01":                      id,
		"cc-" + id + "-" + parent + "-01-more":                 id,
		"":                                                     "",
		id:                                                     "",
		"ff-" + id + "-" + parent + "-01":                      "",
		"00-" + id + "-" + parent + "-01-more":                 "",
		"00-" + id + "-" + parent + "-01 ":                     "",
		"00-" + id + "-" + parent + "-01\n":                    "",
		"00-" + id + "-" + parent:                              "",
		"00-" + id + "-" + parent + "-1":                       "",
		"cc-" + id + "-" + parent + "-01more":                  "",
		"00-" + strings.ToUpper(id) + "-" + parent + "-01":     "",
		"00-" + strings.Repeat("0", 32) + "-" + parent + "-01": "",
		"00-" + id + "-" + strings.Repeat("0", 16) + "-01":     "",
		"00-" + id[1:] + "-" + parent + "-01":                  "",
		"00-" + id + "a-" + parent + "-01":                     "",
		"00-" + id[1:] + "\u202e-" + parent + "-01":            "",
	} {
		if got := traceID([]string{header}); got != want {
			t.Errorf("traceID(%q) = %q, want %q", header, got, want)
		}
	}
	valid := "00-" + id + "-" + parent + "-01"
	if got := traceID([]string{valid, valid}); got != "" {
		t.Errorf("two headers give %q", got)
	}
}

// TestQuietLog: LOG_LEVEL=error leaves what happened to accounts and sessions, as level AUDIT, and
// a traceparent joins the access line with the caller's trace.
func TestQuietLog(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	var quiet, all logBuffer
	a.server.log = newLogger(&config{LogLevel: "error"}, &quiet)
	m := a.signUp("ada")
	a.want(a.tryLogin(m.Email, "a wrong canary"), 401, "invalid_credentials")
	a.want(a.do("PUT", "/api/v1/users/me", m.AccessToken,
		`{"password":"another canary","current_password":"wrong canary"}`), 403, "wrong_password")
	text := quiet.text()
	for _, event := range []string{"registered", "login_ok", "login_failed", "wrong_password"} {
		if !strings.Contains(text, `"level":"AUDIT","msg":"`+event+`"`) {
			t.Errorf("with LOG_LEVEL=error the log lacks %s: %s", event, text)
		}
	}
	if strings.Count(text, "\n") != strings.Count(text, "AUDIT") {
		t.Errorf("with LOG_LEVEL=error the log has more than events: %s", text)
	}
	b := newApp(t)
	b.server.log = newLogger(&config{LogLevel: "info", LogFormat: "text"}, &all)
	header := http.Header{"Traceparent": {
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}
	b.send("GET", "/api/v1/health", header, nil)
	eventually(t, "the access line", func() bool {
		return strings.Contains(all.text(), "msg=request")
	})
	if text := all.text(); !strings.Contains(text, " trace_id=4bf92f3577b34da6a3ce929d0e0e4736\n") {
		t.Errorf("the access line has no trace id: %s", text)
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

// readme returns the README of this project, or skips the test of a product that has its own.
func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil || !strings.Contains(string(text), "## What it guarantees, and the tests") {
		t.Skip("the README is the product's own")
	}
	return string(text)
}

// TestReadme: the tests and the files that the README names exist.
func TestReadme(t *testing.T) {
	t.Parallel()
	text := readme(t)
	tests, names := sources(t, true), named.FindAllString(text, -1)
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
	const events = `\.event(?:If)?\([^"\n]*"(\w+)"`
	for _, pattern := range []string{
		`log\.(?:Info|Warn|Error)\("(\w+)"`, `LogAttrs\([^"]*"(\w+)"`, events,
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
	for _, name := range submatches(events, code) {
		if !strings.Contains(string(page), "`"+name+"`*") {
			t.Errorf("OPERATIONS.md does not mark %s as AUDIT", name)
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
