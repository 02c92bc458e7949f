// Package faults breaks what Latch depends on, and misuses what Latch offers, while other clients
// go on working, and judges the answers. It builds and starts the program as an operator does, and
// knows it only by its settings, its HTTP interface, its log and its tables.
//
// Each test is a row of the report: "make fault" runs all of them at full size and one after
// another. "go test" runs a selection, in parallel and smaller, in which times only have to be of
// the right order: the machine is doing other work.
package faults

import (
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	secretKey = "a key of the fault tests 0123456789abcdef"
	password  = "a good fault passphrase"
)

var (
	workDir string // of this run: binaries, logs, and the data of each PostgreSQL
	program string // the binary under test
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "16") // unless the command line says otherwise: rows mostly wait
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	var err error
	if workDir, err = os.MkdirTemp("", "latch-faults-"); err == nil {
		err = os.Chmod(workDir, 0o755) // root's PostgreSQL runs as another user
	}
	var cleanUp func()
	if err == nil {
		cleanUp, err = watchDir(workDir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer cleanUp()
	if !testing.Short() {
		program, err = build("go", "latch", "-buildvcs=false", "-ldflags=-X main.revision=0e647f6")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// watchDir returns a function that stops each PostgreSQL below dir and removes dir. The same
// happens when this process is killed: the shell waits for the end of a pipe that only this process
// holds.
func watchDir(dir string) (cleanUp func(), err error) {
	script := `cat >/dev/null
for pid in "$0"/*/postgres/postmaster.pid; do
	[ ! -e "$pid" ] || kill -QUIT "$(head -n 1 "$pid")"
done
for mount in "$0"/*/; do umount -l "$mount"; done
sleep 0.2
rm -rf "$0"`
	cmd := exec.Command("sh", "-c", script, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the tests alone
	pipe, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	return func() { pipe.Close(); cmd.Wait() }, err
}

// build builds the program by a go command and returns the path of the binary. args are further
// arguments of go build.
func build(command, name string, args ...string) (path string, err error) {
	path = filepath.Join(workDir, name)
	cmd := exec.Command(command, append(append([]string{"build", "-o", path}, args...), ".")...)
	cmd.Dir = "../.." // the module's root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, os.Chmod(path, 0o755)
}

// pick returns whole in a full run and small in the short selection.
func pick[T any](whole, small T) T {
	if full {
		return whole
	}
	return small
}

// parallel runs f n times at once.
func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() { <-start; f(i) })
	}
	close(start)
	wg.Wait()
}

// eventually waits until f is true, for limit at most, and returns how long that took.
func eventually(limit time.Duration, f func() bool) (took time.Duration, ok bool) {
	start := time.Now()
	for !f() {
		if time.Since(start) > limit {
			return time.Since(start), false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start), true
}

// lastPort is the last port that freePort returned. The range lies below the one from which Linux
// takes the ports of outgoing connections: the rows open thousands, also while a server restarts.
var lastPort atomic.Int64

// freePort returns a port that no other test gets and on which nothing listens.
func freePort(t testing.TB) int {
	t.Helper()
	lastPort.CompareAndSwap(0, int64(15000+os.Getpid()%100*100))
	for range 1000 {
		port := int(lastPort.Add(1))
		l, err := net.Listen("tcp", localAddress(port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func localAddress(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }
