//go:build bench

package bench

// process_test.go starts programs, reads their memory, and sends single requests to them.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is a running server.
type process struct {
	cmd     *exec.Cmd
	address string  // host and port
	prefix  string  // of the paths of its API
	started float64 // milliseconds from its start to its first answer
}

// freePort returns a port on which nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// launch runs a server with this API, and stops it at the end of the benchmark.
func (b *bench) launch(binary string, env []string) *process {
	b.Helper()
	port := freePort(b.T)
	cmd := exec.Command(binary)
	cmd.Env = append([]string{"PORT=" + port, "GODEBUG=" + os.Getenv("GODEBUG")}, env...)
	cmd.Stderr = os.Stderr
	p := launch(b.T, cmd, port, "/api/v1", "/health")
	b.Cleanup(p.stop)
	return p
}

// launch starts a server that listens on port, and waits until path, below prefix, answers 200.
func launch(t *testing.T, cmd *exec.Cmd, port, prefix, path string) *process {
	t.Helper()
	p := &process{cmd: cmd, address: "127.0.0.1:" + port, prefix: prefix}
	if cmd.Dir == "" {
		cmd.Dir = t.TempDir()
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for ; ; time.Sleep(500 * time.Microsecond) {
		if res, err := http.Get("http://" + p.address + prefix + path); err == nil {
			res.Body.Close()
			if res.StatusCode == 200 {
				p.started = milliseconds(time.Since(begin))
				return p
			}
		}
		if time.Since(begin) > time.Minute {
			p.stop()
			t.Fatalf("%s does not answer", cmd.Path)
		}
	}
}

// stop ends the server as an orchestrator would. A second call does nothing.
func (p *process) stop() {
	if p.cmd.ProcessState != nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	killer := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	defer killer.Stop()
	p.cmd.Wait()
}

// call sends one request of the API, with a JSON body unless it is nil, and returns the answer.
func (p *process) call(
	method, path, token string, body any,
) (status int, answer []byte, err error) {
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader([]byte(toJSON(body)))
	}
	req, err := http.NewRequest(method, "http://"+p.address+p.prefix+path, reader)
	if err != nil {
		return 0, nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	answer, err = io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

// must is call for requests that succeed. It decodes the answer into dst, unless that is nil.
func (p *process) must(t *testing.T, method, path, token string, body, dst any) {
	t.Helper()
	status, answer, err := p.call(method, path, token, body)
	if err == nil && status >= 300 {
		err = fmt.Errorf("status %d: %s", status, answer)
	}
	if err == nil && dst != nil {
		err = json.Unmarshal(answer, dst)
	}
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
}

// login logs an account of the program in.
func (p *process) login(t *testing.T, email string) (result tokens) {
	t.Helper()
	p.must(t, "POST", "/auth/login", "", credentials(email), &result)
	return result
}

// credentials is the body of a login.
func credentials(email string) map[string]string {
	return map[string]string{"username": email, "password": password}
}

// memory returns what the kernel counts under name in MB: VmRSS, or VmHWM for the highest so far.
func (p *process) memory(t *testing.T, name string) float64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return numberAfter(string(status), name) * 1024 / 1e6
}

// resetPeak makes VmHWM begin anew: clear_refs in proc(5).
func (p *process) resetPeak(t *testing.T) {
	t.Helper()
	file := fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid)
	if err := os.WriteFile(file, []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// numberAfter returns the number that follows the first mark in text, or 0.
func numberAfter(text, mark string) float64 {
	_, after, found := strings.Cut(text, mark)
	fields := strings.Fields(after)
	if !found || len(fields) == 0 {
		return 0
	}
	x, _ := strconv.ParseFloat(fields[0], 64)
	return x
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
