// Package pgbouncer runs PgBouncer for tests.
package pgbouncer

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"
)

// Server is a PgBouncer in transaction mode.
type Server struct {
	Address string // host:port
	argv    []string
	cmd     *exec.Cmd
}

// Start starts PgBouncer before the PostgreSQL at host, a name or the directory of a socket, and
// port. settings are further lines of its configuration, which is written to dir.
func Start(dir, host string, port int, settings ...string) (*Server, error) {
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/pgbouncer") // which is not in every PATH
	}
	if err != nil {
		return nil, fmt.Errorf("%w; .ci/setup.sh pgbouncer installs it", err)
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	_, own, _ := net.SplitHostPort(address)
	config := append([]string{
		"[databases]", fmt.Sprintf("* = host=%s port=%d user=postgres", host, port),
		"[pgbouncer]", "listen_addr = 127.0.0.1", "listen_port = " + own, "unix_socket_dir =",
		"auth_type = any", "pool_mode = transaction", "max_client_conn = 1000",
		"default_pool_size = 10", "server_idle_timeout = 5",
	}, settings...)
	file := filepath.Join(dir, "pgbouncer-"+own+".ini")
	text := strings.Join(config, "\n") + "\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	s := &Server{Address: address, argv: []string{path, "-q", file}}
	if os.Geteuid() == 0 { // it refuses to be root, and must enter PostgreSQL's directory
		s.argv = append(s.argv, "-u", postgresUser())
	}
	return s, s.Restart()
}

// freeAddress returns an address of the loopback interface on which nothing listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// postgresUser returns the user as whom root's PostgreSQL runs (package devdb).
func postgresUser() string {
	if _, err := user.Lookup("postgres"); err != nil {
		return "nobody"
	}
	return "postgres"
}

// Restart starts a stopped PgBouncer and waits until it listens.
func (s *Server) Restart() error {
	var stderr bytes.Buffer
	s.cmd = exec.Command(s.argv[0], s.argv[1:]...)
	s.cmd.Dir = "/"
	s.cmd.Stderr = &stderr
	if err := s.cmd.Start(); err != nil {
		return err
	}
	for range 200 {
		if c, err := net.Dial("tcp", s.Address); err == nil {
			return c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.Stop()
	return errors.New("PgBouncer does not listen: " + stderr.String())
}

// Stop kills PgBouncer.
func (s *Server) Stop() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}
