package faults

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// replica is one process of the program.
type replica struct {
	t      testing.TB
	binary string
	env    []string
	port   int
	cmd    *exec.Cmd
	out    string // file of the log
	exited chan struct{}
}

var replicaCount atomic.Int64

// startReplica starts the program on a database and waits until it serves.
func startReplica(t testing.TB, databaseURL string, env ...string) *replica {
	t.Helper()
	r := newReplica(t, program, databaseURL, env...)
	r.ready()
	return r
}

// newReplica starts a binary on a database and does not wait.
func newReplica(t testing.TB, binary, databaseURL string, env ...string) *replica {
	t.Helper()
	r := &replica{t: t, binary: binary, port: freePort(t)}
	r.env = append([]string{"PATH=" + os.Getenv("PATH"), "PORT=" + strconv.Itoa(r.port),
		"DATABASE_URL=" + databaseURL, "SECRET_KEY=" + secretKey, "EMBEDDING_DIMENSIONS=3",
		"LOG_FORMAT=json"}, env...)
	r.start()
	t.Cleanup(r.kill)
	return r
}

func (r *replica) start() {
	r.t.Helper()
	r.out = filepath.Join(workDir, fmt.Sprintf("replica-%d.log", replicaCount.Add(1)))
	file, err := os.Create(r.out)
	if err != nil {
		r.t.Fatal(err)
	}
	defer file.Close()
	r.cmd = exec.Command(r.binary)
	r.cmd.Dir = r.t.TempDir()
	r.cmd.Env = r.env
	r.cmd.Stdout, r.cmd.Stderr = file, file
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	exited, cmd := make(chan struct{}), r.cmd
	r.exited = exited
	go func() { cmd.Wait(); close(exited) }()
}

func (r *replica) kill() {
	r.cmd.Process.Kill()
	<-r.exited
}

// log returns what the process has printed since its last start.
func (r *replica) log() string {
	text, _ := os.ReadFile(r.out)
	return string(text)
}

func (r *replica) running() bool {
	select {
	case <-r.exited:
		return false
	default:
		return true
	}
}

func (r *replica) address() string { return localAddress(r.port) }

// health asks a path for its status: 0 where no answer comes within 2 s.
func (r *replica) health(path string) (status int, took time.Duration) {
	start := time.Now()
	transport := &http.Transport{DisableKeepAlives: true}
	client := http.Client{Timeout: 2 * time.Second, Transport: transport}
	res, err := client.Get("http://" + r.address() + apiPrefix + path)
	if err != nil {
		return 0, time.Since(start)
	}
	res.Body.Close()
	return res.StatusCode, time.Since(start)
}

// ready waits until the replica serves.
func (r *replica) ready() {
	r.t.Helper()
	_, ok := eventually(time.Minute, func() bool {
		status, _ := r.health("/health/db")
		return status == 200 || !r.running()
	})
	if !ok || !r.running() {
		r.t.Fatalf("a replica is not ready:\n%.4000s", r.log())
	}
}

// terminate sends SIGTERM and waits for the end.
func (r *replica) terminate() {
	r.t.Helper()
	r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.exited:
	case <-time.After(60 * time.Second):
		r.t.Error("a replica does not stop on SIGTERM")
	}
}

// memory returns a field of /proc/PID/status in MiB: VmRSS, or VmHWM for the peak of VmRSS. It
// returns 0 where the process has ended.
func (r *replica) memory(field string) float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	_, after, found := bytes.Cut(status, []byte(field+":"))
	if !found {
		return 0
	}
	kib, _ := strconv.ParseFloat(string(bytes.Fields(after)[0]), 64)
	return kib / 1024
}

// resetPeak makes VmHWM start again from VmRSS.
func (r *replica) resetPeak() {
	file := fmt.Sprintf("/proc/%d/clear_refs", r.cmd.Process.Pid)
	if err := os.WriteFile(file, []byte("5"), 0); err != nil {
		r.t.Fatal(err)
	}
}

// TestVersion: where there is no repository, the linker sets the commit, as in the Dockerfile.
func TestVersion(t *testing.T) {
	if testing.Short() {
		t.Skip("not in short mode")
	}
	out, err := exec.Command(program, "-version").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(" (commit 0e647f6)\n")) {
		t.Errorf("latch -version prints %q, %v, want the commit 0e647f6", out, err)
	}
}
