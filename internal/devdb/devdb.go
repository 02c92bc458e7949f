// Package devdb runs the private PostgreSQL of development and of the tests: the one installed on
// this machine, with data and socket in one directory and without TCP, or else a Docker image.
//
// Processes may share the directory. Each holds a shared lock on the file "lock"; Stop stops
// PostgreSQL if no other process does. "start.lock" serializes starts and stops. The kernel
// releases the locks of a process that is killed; PostgreSQL then runs on, for the next Start.
package devdb

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

const image = "pgvector/pgvector:0.8.6-pg17-bookworm" // as in compose.yaml

// DB is a PostgreSQL that Start started.
type DB struct {
	URL    string // of the database "postgres", for its superuser
	Where  string // the data directory or Docker volume, for messages
	Dir    string // absolute
	Secret string // a signing key that is kept in Dir

	lock      *os.File
	bin       string // the directory of PostgreSQL's programs
	container string // Docker's, or ""
}

// Start starts the PostgreSQL whose data is in dir, unless it runs, and creates the data if there
// is none. Each of settings is a name=value of postgresql.conf.
func Start(dir string, settings ...string) (*DB, error) {
	dir, err := filepath.Abs(dir)
	if err := errors.Join(err, os.MkdirAll(dir, 0o755)); err != nil { // for serverID
		return nil, fmt.Errorf("there is no DATABASE_URL, and for a private PostgreSQL: %w", err)
	}
	db := &DB{Dir: dir}
	starting, err := db.lockFile("start.lock", syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer starting.Close()
	if db.Secret, err = db.loadSecret(); err != nil {
		return nil, err
	}
	if db.lock, err = db.lockFile("lock", syscall.LOCK_SH); err != nil {
		return nil, err
	}
	if db.bin = FindPostgres(db.version()); db.bin == "" {
		return db, db.startDocker()
	}
	return db, db.startLocal(settings)
}

// Stop stops PostgreSQL, unless another process uses it.
func (db *DB) Stop() error {
	stopping, err := db.lockFile("start.lock", syscall.LOCK_EX)
	if err == nil && syscall.Flock(int(db.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		err = run(db.StopCommand())
	}
	return errors.Join(err, stopping.Close(), db.lock.Close())
}

// StopCommand returns the command that stops PostgreSQL. A local one needs no more than Dir.
func (db *DB) StopCommand() *exec.Cmd {
	if db.container != "" {
		return exec.Command("docker", "stop", db.container)
	}
	return db.command("pg_ctl", "stop", "-D", db.DataDir(), "-m", "fast")
}

// Psql runs psql in this terminal.
func (db *DB) Psql() error {
	cmd := exec.Command(filepath.Join(db.bin, "psql"), db.URL)
	if db.container != "" {
		cmd = exec.Command("docker", "exec", "-it", db.container, "psql", "-U", "postgres")
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// DataDir returns the data directory of a local PostgreSQL, which holds its socket too.
func (db *DB) DataDir() string { return filepath.Join(db.Dir, "postgres") }

// lockFile opens a file in Dir and waits for a lock on it, which closing the file releases.
func (db *DB) lockFile(name string, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(db.Dir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(f.Fd()), how)
	}
	return f, err
}

// loadSecret returns the 256 random bits that are kept in Dir.
func (db *DB) loadSecret() (string, error) {
	file := filepath.Join(db.Dir, "secret_key")
	if old, _ := os.ReadFile(file); len(old) > 0 {
		return string(old), nil
	}
	secret := rand.Text() + rand.Text()
	return secret, os.WriteFile(file, []byte(secret), 0o600)
}

// version returns the major version of the PostgreSQL that created the data, or "".
func (db *DB) version() string {
	version, _ := os.ReadFile(filepath.Join(db.DataDir(), "PG_VERSION"))
	return strings.TrimSpace(string(version))
}

// FindPostgres returns the bin directory of the newest PostgreSQL, from 14 on or of this major
// version, with pgvector from 0.7 on, which has halfvec; or "". setup.sh has the same list.
func FindPostgres(major string) (bin string) {
	onPath, _ := exec.LookPath("initdb")
	newest := 13
	for _, pattern := range []string{onPath, "/usr/lib/postgresql/*/bin/initdb",
		"/usr/pgsql-*/bin/initdb", "/usr/local/pgsql/bin/initdb", // RPMs, and own builds
		"/opt/homebrew/opt/postgresql@*/bin/initdb", "/usr/local/opt/postgresql@*/bin/initdb"} {
		paths, _ := filepath.Glob(pattern)
		for _, initdb := range paths {
			dir, v := filepath.Dir(initdb), 0
			out, _ := exec.Command(dir+"/pg_config", "--version", "--sharedir").Output()
			fmt.Sscanf(string(out), "PostgreSQL %d", &v)
			_, share, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
			_, err := os.Stat(share + "/extension/vector--0.6.2--0.7.0.sql")
			if err == nil && v > newest && (major == "" || major == strconv.Itoa(v)) {
				bin, newest = dir, v
			}
		}
	}
	return bin
}

// startLocal starts PostgreSQL unless it runs. Only the owner of the data directory can enter it,
// so the socket in it needs no password.
func (db *DB) startLocal(settings []string) error {
	data := db.DataDir()
	if n := len(data) + len("/.s.PGSQL.5432") - 103; n > 0 { // bytes, on macOS; Linux allows 107
		return fmt.Errorf("the path %s is %d bytes too long for PostgreSQL's socket; "+
			"use a checkout with a shorter path, or set DATABASE_URL", data, n)
	}
	db.Where, db.URL = data, "postgresql://postgres@/postgres?host="+url.QueryEscape(data)
	if err := db.createData(data); err != nil {
		return err
	}
	if run(db.command("pg_ctl", "status", "-D", data)) == nil {
		return nil
	}
	log, options := data+"/log", "-c listen_addresses= -c unix_socket_directories=."
	for _, s := range settings {
		options += " -c " + s
	}
	err := run(db.command("pg_ctl", "start", "-w", "-D", data, "-l", log, "-o", options))
	if err != nil {
		err = fmt.Errorf("%w; its log is %s", err, log)
	}
	return err
}

// createData runs initdb, unless there is data, in a directory of another name and renames it, so
// that an interrupted initdb leaves nothing that looks like a data directory.
func (db *DB) createData(data string) error {
	if db.version() != "" {
		return nil
	}
	tmp, locale := data+".new", "C.UTF-8"
	if runtime.GOOS == "darwin" {
		locale = "en_US.UTF-8"
	}
	err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o700), os.Chown(tmp, serverID(), -1))
	if err == nil {
		err = run(db.command("initdb", "-D", tmp, "-U", "postgres", "-A", "trust", "-E", "UTF8",
			"--locale="+locale))
	}
	if err == nil {
		err = os.Rename(tmp, data)
	}
	return err
}

// command returns a command that runs one of PostgreSQL's programs, as serverID.
func (db *DB) command(name string, args ...string) *exec.Cmd {
	if db.bin == "" {
		db.bin = FindPostgres(db.version())
	}
	args = append([]string{filepath.Join(db.bin, name)}, args...)
	if id := strconv.Itoa(serverID()); os.Geteuid() == 0 {
		setpriv := []string{"setpriv", "--reuid=" + id, "--regid=65534", "--clear-groups"}
		if !isReachable(db.Dir) { // the capability lets PostgreSQL into a checkout below /root
			setpriv = append(setpriv, "--inh-caps=+dac_override", "--ambient-caps=+dac_override")
		}
		args = append(setpriv, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

// serverID returns the user that PostgreSQL, which refuses root, runs as: under root its package's
// user, or nobody.
func serverID() int {
	if id := os.Geteuid(); id != 0 {
		return id
	}
	if u, err := user.Lookup("postgres"); err == nil {
		id, _ := strconv.Atoi(u.Uid)
		return id
	}
	return 65534
}

// isReachable reports whether every user may enter dir and the directories above it.
func isReachable(dir string) bool {
	info, err := os.Stat(dir)
	return err == nil && info.Mode()&0o001 != 0 && (dir == "/" || isReachable(filepath.Dir(dir)))
}

// run runs cmd in "/", which every user may enter. The error includes the output.
func run(cmd *exec.Cmd) error {
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, bytes.TrimSpace(out))
	}
	return nil
}

// startDocker starts the image, with the data in a volume and a free port on the loopback address.
// Their name depends on the password too: the data of an emptied Dir would refuse the new one.
func (db *DB) startDocker() error {
	if v := db.version(); v != "" {
		return fmt.Errorf("the data in %s needs PostgreSQL %s with pgvector, which is not "+
			"installed; install it, or move the data away", db.DataDir(), v)
	}
	name := fmt.Sprintf("development-%.6x", sha256.Sum256([]byte(db.Dir+db.Secret)))
	db.container, db.Where = name, "Docker volume "+name
	if run(exec.Command("docker", "start", name)) != nil {
		create := exec.Command("docker", "run", "--detach", "--name", name,
			"--publish", "127.0.0.1::5432", "--volume", name+":/var/lib/postgresql/data",
			"--env", "POSTGRES_PASSWORD", image)
		create.Env = append(os.Environ(), "POSTGRES_PASSWORD="+db.Secret)
		if err := run(create); err != nil {
			return fmt.Errorf("no PostgreSQL (14 or later) with pgvector (0.7 or later) here, and "+
				"no Docker.\nInstall it with: ./setup.sh (Debian, Ubuntu and Homebrew), or your "+
				"system's packages; or set DATABASE_URL\n%w", err)
		}
	}
	out, err := exec.Command("docker", "port", name, "5432/tcp").Output()
	address, _, _ := strings.Cut(string(out), "\n")
	db.URL = "postgresql://postgres:" + db.Secret + "@" + address + "/postgres"
	return err
}
