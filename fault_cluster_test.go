//go:build fault

package main

// fault_cluster_test.go is what the fault tests break: the built program as several processes, a
// PostgreSQL of their own on a port of the loopback address, and a TCP proxy between the two.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const faultKey = "a key of the fault tests 0123456789abcdef"

// buildOnce builds the program once, as "make build" does, and returns its path. The short form saves the time: these
// tests hold the program as well, as LATCH_TEST_MAIN says.
var buildOnce = sync.OnceValues(func() (string, error) {
	if testing.Short() {
		return os.Executable()
	}
	return build("latch")
})

// build builds the program with further arguments of go build.
func build(name string, args ...string) (path string, err error) {
	path = filepath.Join(suite.dir, name)
	cmd := exec.Command("go", append(append([]string{"build", "-o", path}, args...), ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, os.Chmod(path, 0o755)
}

// postgres is a PostgreSQL with a port.
type postgres struct {
	*devDB
	t        testing.TB
	port     int
	settings []string
}

// startPostgres makes one in a directory of this name. What PostgreSQL has acknowledged survives its
// crash: without fsync, which only guards against a crash of the machine, that is still so.
func startPostgres(t testing.TB, name string, settings ...string) *postgres {
	t.Helper()
	p := &postgres{t: t, port: freePort(t)}
	p.settings = append([]string{"listen_addresses=127.0.0.1", "port=" + strconv.Itoa(p.port), "fsync=off", "max_connections=100"}, settings...)
	db, err := startDevDB(filepath.Join(suite.dir, name), p.settings...)
	if err != nil {
		t.Fatal(err)
	}
	p.devDB = db
	t.Cleanup(func() { p.pg("pg_ctl", "stop", "-D", p.data(), "-m", "immediate"); db.lock.Close() })
	return p
}

func (p *postgres) halt(mode string) {
	p.t.Helper()
	if err := p.pg("pg_ctl", "stop", "-D", p.data(), "-m", mode); err != nil {
		p.t.Fatal(err)
	}
}

// restart starts a halted one and returns when it accepted connections.
func (p *postgres) restart() time.Time {
	p.t.Helper()
	if err := p.startLocal(p.settings); err != nil {
		p.t.Fatal(err)
	}
	return time.Now()
}

// processes are the process ids of PostgreSQL's own processes, the postmaster first.
func (p *postgres) processes() (pids []int) {
	text, err := os.ReadFile(filepath.Join(p.data(), "postmaster.pid"))
	if err != nil {
		p.t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, _ := strconv.Atoi(first)
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	pids = []int{pid}
	for _, child := range strings.Fields(string(children)) {
		n, _ := strconv.Atoi(child)
		pids = append(pids, n)
	}
	return pids
}

func (p *postgres) address() string { return "127.0.0.1:" + strconv.Itoa(p.port) }

func urlOf(address, database string) string { return "postgresql://latch@" + address + "/" + database }

// sql runs statements directly, beside the proxy.
func (p *postgres) sql(database string, statements ...string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, urlOf(p.address(), database))
	if err != nil {
		p.t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			p.t.Fatalf("%s: %v", s, err)
		}
	}
}

// proxy is a TCP proxy that can do to a connection what networks do.
type proxy struct {
	listener net.Listener
	target   string
	mode     atomic.Value // pass, hold (what is sent arrives when it heals), swallow (it never does, nor anything later)
	delay    atomic.Int64 // nanoseconds each way
	mu       sync.Mutex
	conns    map[net.Conn]bool
}

func startProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, conns: map[net.Conn]bool{}}
	p.mode.Store("pass")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	t.Cleanup(func() { l.Close(); p.reset() })
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) serve(client net.Conn) {
	if p.mode.Load() == "swallow" {
		io.Copy(io.Discard, client) // until the client gives up
		client.Close()
		return
	}
	p.hold()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		client.(*net.TCPConn).SetLinger(0) // what comes nearest to a refusal
		client.Close()
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = true, true
	p.mu.Unlock()
	var wg sync.WaitGroup
	var dead atomic.Bool
	wg.Go(func() { p.pump(server, client, &dead) })
	wg.Go(func() { p.pump(client, server, &dead) })
	wg.Wait()
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
	client.Close()
	server.Close()
}

// hold waits until the network is no hole any more.
func (p *proxy) hold() {
	for p.mode.Load() == "hold" || p.mode.Load() == "swallow" {
		time.Sleep(5 * time.Millisecond)
	}
}

type chunk struct {
	data []byte
	due  time.Time
}

func (p *proxy) pump(to, from net.Conn, dead *atomic.Bool) {
	chunks := make(chan chunk, 10000)
	go func() {
		defer close(chunks)
		for {
			buf := make([]byte, 32<<10)
			n, err := from.Read(buf)
			if p.mode.Load() == "swallow" {
				dead.Store(true)
			}
			if n > 0 && !dead.Load() {
				chunks <- chunk{buf[:n], time.Now().Add(time.Duration(p.delay.Load()))}
			}
			if err != nil {
				return
			}
		}
	}()
	for c := range chunks {
		time.Sleep(time.Until(c.due))
		p.hold()
		if _, err := to.Write(c.data); err != nil {
			break
		}
	}
	p.hold()
	if !dead.Load() {
		to.(*net.TCPConn).CloseWrite()
	}
}

// reset breaks all connections.
func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

// replica is one process of the program.
type replica struct {
	t       testing.TB
	binary  string
	env     []string
	port    int
	cmd     *exec.Cmd
	out     string // file of its log
	exited  chan struct{}
	allowed atomic.Bool // to exit
}

var replicaCount atomic.Int64

// startReplica starts a process. It is ready when ready says so.
func startReplica(t testing.TB, databaseURL string, env ...string) *replica {
	t.Helper()
	binary, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return startBinary(t, binary, databaseURL, env...)
}

// startBinary is startReplica for a program that was built otherwise.
func startBinary(t testing.TB, binary, databaseURL string, env ...string) *replica {
	t.Helper()
	r := &replica{t: t, binary: binary, port: freePort(t), env: append([]string{"LATCH_TEST_MAIN=1", "DATABASE_URL=" + databaseURL, "SECRET_KEY=" + faultKey, "EMBEDDING_DIMENSIONS=3", "LOG_FORMAT=json"}, env...)}
	r.start()
	t.Cleanup(func() { r.allowed.Store(true); r.cmd.Process.Kill(); <-r.exited })
	return r
}

func (r *replica) start() {
	r.t.Helper()
	r.out = filepath.Join(suite.dir, fmt.Sprintf("replica-%d.log", replicaCount.Add(1)))
	file, err := os.Create(r.out)
	if err != nil {
		r.t.Fatal(err)
	}
	defer file.Close()
	r.cmd = exec.Command(r.binary)
	r.cmd.Dir = r.t.TempDir()
	r.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "PORT=" + strconv.Itoa(r.port)}, r.env...)
	r.cmd.Stdout, r.cmd.Stderr = file, file
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	exited, cmd := make(chan struct{}), r.cmd
	r.exited = exited
	r.allowed.Store(false)
	go func() { cmd.Wait(); close(exited) }()
}

func (r *replica) log() string {
	text, _ := os.ReadFile(r.out)
	return string(text)
}

func (r *replica) alive() bool {
	select {
	case <-r.exited:
		return false
	default:
		return true
	}
}

func (r *replica) address() string { return "127.0.0.1:" + strconv.Itoa(r.port) }

// health asks /health or /health/db: 0 where there is no answer within 2 s.
func (r *replica) health(path string) (status int, took time.Duration) {
	start := time.Now()
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + r.address() + "/api/v1" + path)
	if err != nil {
		return 0, time.Since(start)
	}
	res.Body.Close()
	return res.StatusCode, time.Since(start)
}

// ready waits until the replica serves.
func (r *replica) ready() {
	r.t.Helper()
	for start := time.Now(); time.Since(start) < 30*time.Second; time.Sleep(20 * time.Millisecond) {
		if status, _ := r.health("/health/db"); status == 200 {
			return
		}
		if !r.alive() {
			break
		}
	}
	r.t.Fatalf("a replica is not ready:\n%s", r.log())
}

// terminate sends SIGTERM and waits for the end.
func (r *replica) terminate() {
	r.t.Helper()
	r.allowed.Store(true)
	r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.exited:
	case <-time.After(30 * time.Second):
		r.t.Error("a replica does not stop on SIGTERM")
	}
}

// goroutines ends the replica with a dump of its goroutines, and counts them.
func (r *replica) goroutines() int {
	r.t.Helper()
	r.allowed.Store(true)
	r.cmd.Process.Signal(syscall.SIGQUIT)
	<-r.exited
	return strings.Count(r.log(), "\ngoroutine ")
}

// rss is the resident memory in MiB, now or at its peak.
func (r *replica) rss(field string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	_, after, found := bytes.Cut(status, []byte(field+":"))
	if err != nil || !found {
		r.t.Fatalf("no %s of a replica: %v", field, err)
	}
	kib, _ := strconv.ParseFloat(string(bytes.Fields(after)[0]), 64)
	return kib / 1024
}

func (r *replica) descriptors() int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.cmd.Process.Pid))
	return len(entries)
}
