package main

// fault_short_test.go is the part of the fault tests that every "go test" runs: some of their rows, as a
// process of its own because of the build tag, and PgBouncer, which the whole suite can run through.

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestShortFaults breaks things for real, for some 20 s; "make fault" does so at length. What fails gets a second try:
// the limits are those of a machine that has nothing else to do.
func TestShortFaults(t *testing.T) {
	if testing.Short() || os.Getenv("LATCH_TEST_PGBOUNCER") != "" {
		t.Skip("not in short mode")
	}
	t.Parallel()
	for try := 1; ; try++ {
		cmd := exec.Command("go", "test", "-tags", "fault", "-vet=off", "-short", "-count=1", "-run", "^TestFault(Crash|Blackhole|KeepAlive)$", ".")
		out, err := cmd.CombinedOutput()
		for line := range bytes.Lines(out) {
			if !bytes.HasPrefix(line, []byte("fault-json")) {
				t.Logf("%s", bytes.TrimSpace(line))
			}
		}
		if err == nil {
			return
		}
		if try == 2 {
			t.Fatal(err)
		}
	}
}

// suiteBouncer is the address of a PgBouncer before the suite's databases, or "".
var suiteBouncer string

// pgBouncer is a running PgBouncer in transaction mode.
type pgBouncer struct {
	argv    []string
	address string
	cmd     *exec.Cmd
}

// startPgBouncer starts one before the PostgreSQL at host, a directory or an address, and port. settings are lines
// of pgbouncer.ini.
func startPgBouncer(dir, host string, port int, settings ...string) (*pgBouncer, error) {
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/pgbouncer") // on no ordinary PATH
	}
	if err != nil {
		return nil, fmt.Errorf("%w; ./setup.sh fault installs it", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &pgBouncer{address: l.Addr().String()}
	l.Close()
	_, own, _ := net.SplitHostPort(b.address)
	ini := append([]string{"[databases]", fmt.Sprintf("* = host=%s port=%d user=latch", host, port), "[pgbouncer]",
		"listen_addr = 127.0.0.1", "listen_port = " + own, "unix_socket_dir =", "auth_type = any", "pool_mode = transaction",
		"max_client_conn = 1000", "default_pool_size = 10", "server_idle_timeout = 5"}, settings...)
	file := filepath.Join(dir, "pgbouncer-"+own+".ini")
	if err := os.WriteFile(file, []byte(strings.Join(ini, "\n")+"\n"), 0o644); err != nil {
		return nil, err
	}
	b.argv = []string{path, "-q", file}
	if os.Geteuid() == 0 { // as PostgreSQL, it refuses to be root
		b.argv = append([]string{"setpriv", "--reuid=" + postgresUser().Uid, "--regid=" + postgresUser().Gid, "--init-groups"}, b.argv...)
	}
	return b, b.start()
}

// start starts it, or starts it again, and waits until it listens.
func (b *pgBouncer) start() error {
	b.cmd = exec.Command(b.argv[0], b.argv[1:]...)
	b.cmd.Dir = "/"
	stderr, err := b.cmd.StderrPipe()
	if err == nil {
		err = b.cmd.Start()
	}
	if err != nil {
		return err
	}
	var said []string
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			said = append(said, lines.Text())
		}
	}()
	for range 200 {
		if c, err := net.Dial("tcp", b.address); err == nil {
			return c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	b.stop()
	return fmt.Errorf("PgBouncer does not listen: %s", strings.Join(said, "; "))
}

func (b *pgBouncer) stop() {
	b.cmd.Process.Kill()
	b.cmd.Wait()
}
