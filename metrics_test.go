package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	osexec "os/exec"
	"regexp"
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
	if err != nil || res.StatusCode != 200 || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
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
	a.refresh(decode[tokens](a.refresh(decode[tokens](a.refresh(m.RefreshToken)).RefreshToken)).RefreshToken)
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
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the metrics lack %s", want)
		}
	}
	line := regexp.MustCompile(`^(# HELP [a-z_]+ [A-Z1].+[.]|# TYPE [a-z_]+ (counter|gauge|histogram)|[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+)$`)
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
		fmt.Fprintln(os.Stderr, "SKIPPED: the check of the metrics by promtool (Debian: prometheus)")
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
	for given, want := range map[string]string{"0": "127.0.0.1:", ":0": "127.0.0.1:", "127.0.0.1:0": "127.0.0.1:", "0.0.0.0:0": "[::]:", "[::1]:0": "[::1]:"} {
		a := newApp(t, func(c *config) { c.MetricsAddr = given })
		hs, err := a.serveMetrics()
		if err != nil {
			t.Errorf("METRICS_ADDR %s: %v", given, err)
			continue
		}
		if !strings.HasPrefix(hs.Addr, want) && !(given == "0.0.0.0:0" && strings.HasPrefix(hs.Addr, "0.0.0.0:")) {
			t.Errorf("METRICS_ADDR %s listens on %s, want %s", given, hs.Addr, want)
		}
		hs.Close()
	}
}
