//go:build fault

package faults

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestRollingRestart restarts both replicas in turn, twice, while clients that know both addresses
// send to each. Requests to the one that is away are refused or reset; nothing else breaks.
func TestRollingRestart(t *testing.T) {
	s := newSite(newRow(t, "rolling-restart"), sharedPostgres(t))
	s.begin()
	for range 2 {
		for i, r := range s.replicas {
			from := time.Now()
			r.terminate()
			r.start()
			r.ready()
			s.load.mu.Lock()
			s.restarts = append(s.restarts, restart{i, from, time.Now()})
			s.load.mu.Unlock()
			time.Sleep(300 * time.Millisecond)
		}
	}
	s.end(time.Now(), 0)
	s.atMost("refused", float64(s.Statuses[503]), 0)
}

// TestRollingHAProxy restarts both replicas in turn, twice, behind HAProxy as deploy/ sets it up:
// clients notice nothing.
func TestRollingHAProxy(t *testing.T) {
	s, balancer := newBalancedSite(t, "rolling-haproxy")
	s.begin()
	for range 2 {
		s.roll(balancer)
	}
	s.endUnnoticed()
}

// TestKeyRotation changes the key in two steps, each a rolling restart behind HAProxy.
func TestKeyRotation(t *testing.T) {
	const newKey = "another key of the fault tests 9876543210fedcba"
	s, balancer := newBalancedSite(t, "key-rotation")
	s.begin()
	s.roll(balancer, "SECRET_KEY="+secretKey+","+newKey)
	s.roll(balancer, "SECRET_KEY="+newKey+","+secretKey)
	for _, a := range s.accounts { // the last refresh before the old key goes
		s.change(a, s.refresh)
	}
	s.endUnnoticed()
	for _, a := range s.accounts {
		i := strings.LastIndexByte(a.access(), '.')
		if a.access()[i+1:] != signature(newKey, a.access()[:i]) {
			s.fault("a token is not signed with the new key")
		}
	}
}

// endUnnoticed ends a site whose clients must not have noticed anything.
func (s *site) endUnnoticed() {
	s.row.t.Helper()
	s.end(time.Now(), 0)
	s.atMost("refused", float64(s.Statuses[503]), 0)
}

// roll restarts both replicas in turn, with further settings, and lets HAProxy see each come back.
func (s *site) roll(h *haproxy, env ...string) {
	s.row.t.Helper()
	for _, r := range s.replicas {
		r.terminate()
		r.env = append(r.env, env...)
		r.start()
		r.ready()
		h.waitFor(2)
	}
}

// haproxy is a running HAProxy.
type haproxy struct {
	t        testing.TB
	address  string
	internal string // address of its metrics
}

// newBalancedSite starts a site whose load goes through HAProxy. SHUTDOWN_DELAY is longer than the
// 2 s within which HAProxy notices a failing check.
func newBalancedSite(t *testing.T, name string) (*site, *haproxy) {
	t.Helper()
	s := newSite(newRow(t, name), sharedPostgres(t), "SHUTDOWN_DELAY=4")
	h := startHAProxy(t, s.replicas)
	s.load.clients = []*client{{address: h.address}}
	return s, h
}

// startHAProxy starts HAProxy with deploy/haproxy.cfg. Of that file the addresses are replaced, and
// the limit of logins is removed: the load logs in more often than people do.
func startHAProxy(t testing.TB, replicas []*replica) *haproxy {
	t.Helper()
	path, err := exec.LookPath("haproxy")
	if err != nil {
		path = "/usr/sbin/haproxy" // which is not in every PATH
	}
	config, err := os.ReadFile("../../deploy/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	h := &haproxy{t, localAddress(freePort(t)), localAddress(freePort(t))}
	servers := ""
	for i, r := range replicas {
		servers += fmt.Sprintf("    server app%d %s\n", i, r.address())
	}
	text := string(config)
	for pattern, with := range map[string]string{
		`(?m)^resolvers docker\n(    .*\n)+`:              "",
		` resolvers docker init-addr none`:                "",
		`(?m)^    server-template app .*\n`:               servers,
		`(?m)^    http-request deny deny_status 429 .*\n`: "",
		`(?m)^    bind :8000$`:                            "    bind " + h.address,
		`(?m)^    bind :8404$`:                            "    bind " + h.internal,
	} {
		re := regexp.MustCompile(pattern)
		if !re.MatchString(text) {
			t.Fatalf("deploy/haproxy.cfg has nothing that matches %s", pattern)
		}
		text = re.ReplaceAllLiteralString(text, with)
	}
	file := filepath.Join(workDir, "haproxy-"+strings.ReplaceAll(h.address, ":", "-")+".cfg")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h.run(path, file)
	return h
}

// run starts HAProxy and waits until it has found the replicas.
func (h *haproxy) run(path, file string) {
	h.t.Helper()
	cmd := exec.Command(path, "-db", "-f", file)
	log, err := os.Create(file + ".log")
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		h.t.Fatalf("%v; .ci/setup.sh haproxy installs HAProxy", err)
	}
	h.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	h.waitFor(2)
}

// waitFor waits until HAProxy finds n replicas fit.
func (h *haproxy) waitFor(n int) {
	h.t.Helper()
	line := fmt.Appendf(nil, "\nhaproxy_backend_active_servers{proxy=\"app\"} %d\n", n)
	if _, ok := eventually(20*time.Second, func() bool {
		return bytes.Contains(h.metrics(), line)
	}); !ok {
		h.t.Fatalf("HAProxy does not find %d replicas:\n%s", n, h.metrics())
	}
}

func (h *haproxy) metrics() []byte {
	res, err := http.Get("http://" + h.internal + "/metrics")
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return text
}
