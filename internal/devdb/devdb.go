// Package devdb runs the private PostgreSQL of development and of the tests. It is no part of what
// runs in production.
//
// It runs the PostgreSQL that is installed on this machine, with the data and the socket in one
// directory, and without TCP. If none has pgvector, it runs a Docker image.
//
// Several processes can share a directory, such as the server and "latch admin" in another
// terminal. Each holds a shared lock on the file "lock"; Stop stops PostgreSQL if no other process
// holds it. An exclusive lock on the file "start.lock" serializes starts and stops. The kernel
// releases the locks of a process that is killed; the next Start then finds PostgreSQL running and
// uses it.
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
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// image is the Docker image, the same as in compose.yaml.
const image = "pgvector/pgvector:0.8.6-pg17-bookworm"

// maxSocketPath is the length of a socket's path on macOS, in bytes; Linux allows 107.
const maxSocketPath = 103

// DB is a PostgreSQL that Start has started.
type DB struct {
	URL    string // of the database "postgres", for its superuser "latch"
	Where  string // describes where the data is, for messages
	Dir    string // absolute
	Secret string // a signing key that is kept in Dir

	lock      *os.File
	bin       string // the directory of PostgreSQL's programs, or "" for Docker
	container string // the name of Docker's container, or "" for a local PostgreSQL
}

// Start starts the PostgreSQL whose data is in dir and creates the data if there is none. If it
// runs already, Start uses it as it is. Each of settings is a name=value of postgresql.conf.
func Start(dir string, settings ...string) (*DB, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { // under root, PostgreSQL is another user
		return nil, fmt.Errorf("there is no DATABASE_URL, and for a private PostgreSQL: %w", err)
	}
	db := &DB{Dir: dir}
	starting, err := db.lockFile("start.lock", syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer starting.Close()
	if db.Secret, err = db.loadSecret("secret_key"); err != nil {
		return nil, err
	}
	if db.lock, err = db.lockFile("lock", syscall.LOCK_SH); err != nil {
		return nil, err
	}
	if db.bin = FindPostgres(db.version()); db.bin != "" {
		err = db.startLocal(settings)
	} else {
		err = db.startDocker()
	}
	if err != nil {
		db.lock.Close()
		return nil, err
	}
	return db, nil
}

// Stop stops PostgreSQL, unless another process uses it.
func (db *DB) Stop() error {
	defer db.lock.Close()
	stopping, err := db.lockFile("start.lock", syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer stopping.Close()
	if syscall.Flock(int(db.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return nil
	}
	return run(db.StopCommand())
}

// StopCommand returns the command that stops PostgreSQL. For a DB that Start did not return, it
// stops the local PostgreSQL of Dir.
func (db *DB) StopCommand() *exec.Cmd {
	if db.container != "" {
		return exec.Command("docker", "stop", db.container)
	}
	return db.command("pg_ctl", "stop", "-D", db.DataDir(), "-m", "fast")
}

// DataDir returns the data directory of a local PostgreSQL. Its socket is there too.
func (db *DB) DataDir() string { return filepath.Join(db.Dir, "postgres") }

// lockFile opens a file in Dir and waits for a lock on it. Closing the file releases the lock.
func (db *DB) lockFile(name string, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(db.Dir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return f, syscall.Flock(int(f.Fd()), how)
}

// loadSecret returns the content of a file in Dir. The first call writes 256 random bits to it.
func (db *DB) loadSecret(name string) (string, error) {
	file := filepath.Join(db.Dir, name)
	if old, _ := os.ReadFile(file); len(old) > 0 {
		return string(old), nil
	}
	secret := rand.Text() + rand.Text()
	return secret, os.WriteFile(file, []byte(secret), 0o600)
}

// version returns the major version of the PostgreSQL that created the data, or "" without data.
func (db *DB) version() string {
	version, _ := os.ReadFile(filepath.Join(db.DataDir(), "PG_VERSION"))
	return strings.TrimSpace(string(version))
}

// FindPostgres returns the directory of the programs of the newest PostgreSQL on this machine that
// is 14 or later and has pgvector 0.7 or later. If major is not "", only that major version counts.
// It returns "" if there is none. setup.sh searches the same directories.
func FindPostgres(major string) (bin string) {
	var dirs []string
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin",
	} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	if onPath, err := exec.LookPath("pg_ctl"); err == nil {
		dirs = append(dirs, filepath.Dir(onPath))
	}
	newest := 13
	for _, dir := range dirs {
		v := usableVersion(dir)
		if v > newest && (major == "" || major == strconv.Itoa(v)) {
			bin, newest = dir, v
		}
	}
	return bin
}

var (
	pgConfigOutput = regexp.MustCompile(`^\D*(\d+).*\n(.*)\n`)
	hasHalfvec     = regexp.MustCompile(`(?m)^default_version *= *'(0\.([7-9]|[1-9][0-9])|[1-9])`)
)

// usableVersion returns the major version of the PostgreSQL in dir, or 0 if it has no server or no
// pgvector with the type halfvec, which is 0.7 or later.
func usableVersion(dir string) (major int) {
	out, _ := exec.Command(filepath.Join(dir, "pg_config"), "--version", "--sharedir").Output()
	m := pgConfigOutput.FindStringSubmatch(string(out))
	if m == nil || exec.Command(filepath.Join(dir, "initdb"), "--version").Run() != nil {
		return 0
	}
	control, _ := os.ReadFile(filepath.Join(m[2], "extension/vector.control"))
	if !hasHalfvec.Match(control) {
		return 0
	}
	major, _ = strconv.Atoi(m[1])
	return major
}

// startLocal creates the data directory if it is missing, and starts PostgreSQL unless it runs.
// Only the directory's owner can enter it, so the socket in it needs no password.
func (db *DB) startLocal(settings []string) error {
	data := db.DataDir()
	if n := len(data) + len("/.s.PGSQL.5432"); n > maxSocketPath {
		return fmt.Errorf("the path %s is %d bytes too long for PostgreSQL's socket; "+
			"use a checkout with a shorter path, or set DATABASE_URL", data, n-maxSocketPath)
	}
	db.Where = data
	db.URL = "postgresql://latch@/postgres?host=" + url.QueryEscape(data)
	if db.version() == "" {
		if err := db.createData(); err != nil {
			return err
		}
	}
	if run(db.command("pg_ctl", "status", "-D", data)) == nil {
		return nil
	}
	log := filepath.Join(data, "log")
	options := "-c listen_addresses= -c unix_socket_directories=." // relative to the data directory
	for _, s := range settings {
		options += " -c " + s
	}
	err := run(db.command("pg_ctl", "start", "-w", "-D", data, "-l", log, "-o", options))
	if err != nil {
		return fmt.Errorf("%w; its log is %s", err, log)
	}
	return nil
}

// createData runs initdb in a directory of another name and renames it, so that an interrupted
// initdb leaves nothing that looks like a data directory.
func (db *DB) createData() error {
	unfinished := db.DataDir() + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	if err := os.Mkdir(unfinished, 0o700); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		owner := serverUser()
		uid, _ := strconv.Atoi(owner.Uid)
		gid, _ := strconv.Atoi(owner.Gid)
		if err := os.Chown(unfinished, uid, gid); err != nil {
			return err
		}
	}
	locale := "C.UTF-8"
	if runtime.GOOS == "darwin" {
		locale = "en_US.UTF-8"
	}
	err := run(db.command("initdb", "-D", unfinished, "-U", "latch", "-A", "trust",
		"-E", "UTF8", "--locale="+locale))
	if err != nil {
		return err
	}
	return os.Rename(unfinished, db.DataDir())
}

// command returns a command that runs one of PostgreSQL's programs. They refuse to run as root, so
// root runs them as serverUser.
func (db *DB) command(name string, args ...string) *exec.Cmd {
	bin := db.bin
	if bin == "" {
		bin = FindPostgres(db.version())
	}
	args = append([]string{filepath.Join(bin, name)}, args...)
	if os.Geteuid() == 0 {
		owner := serverUser()
		as := []string{"setpriv", "--reuid=" + owner.Uid, "--regid=" + owner.Gid, "--init-groups"}
		if !isReachable(db.Dir) { // the capability lets PostgreSQL into a checkout below /root
			as = append(as, "--inh-caps=+dac_override", "--ambient-caps=+dac_override")
		}
		args = append(as, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

// serverUser returns the user that PostgreSQL runs as under root: its package's user, or nobody.
func serverUser() *user.User {
	if u, err := user.Lookup("postgres"); err == nil {
		return u
	}
	return &user.User{Uid: "65534", Gid: "65534"}
}

// isReachable tells whether every user may enter dir and the directories above it.
func isReachable(dir string) bool {
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode()&0o001 == 0 {
			return false
		}
	}
	return true
}

// run runs cmd in "/", because PostgreSQL's programs complain about a working directory that they
// cannot enter. The error includes the output.
func run(cmd *exec.Cmd) error {
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, bytes.TrimSpace(out))
	}
	return nil
}

// startDocker starts the image with the data in a volume and a free port on the loopback address.
// The container and the volume are named after Dir and the password: two checkouts have two
// databases, and a Dir that was emptied gets a new one, because the old one would refuse the new
// password.
func (db *DB) startDocker() error {
	if v := db.version(); v != "" {
		return fmt.Errorf("the data in %s needs PostgreSQL %s with pgvector, "+
			"which is not installed; install it, or move the data away", db.DataDir(), v)
	}
	if run(exec.Command("docker", "info")) != nil {
		return errors.New("no PostgreSQL (14 or later) with pgvector (0.7 or later) here, " +
			"and no Docker.\nInstall it with: ./setup.sh (Debian, Ubuntu and Homebrew), " +
			"or your system's packages; or set DATABASE_URL")
	}
	password, err := db.loadSecret("postgres_password")
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(db.Dir + "\n" + password))
	name := fmt.Sprintf("latch-%x", sum[:6])
	db.container, db.Where = name, "Docker volume "+name
	if run(exec.Command("docker", "start", name)) != nil {
		create := exec.Command("docker", "run", "--detach", "--name", name,
			"--publish", "127.0.0.1::5432", "--volume", name+":/var/lib/postgresql/data",
			"--env", "POSTGRES_USER=latch", "--env", "POSTGRES_DB=postgres",
			"--env", "POSTGRES_PASSWORD", image)
		create.Env = append(os.Environ(), "POSTGRES_PASSWORD="+password)
		if err := run(create); err != nil {
			return err
		}
	}
	out, err := exec.Command("docker", "port", name, "5432/tcp").Output()
	if err != nil {
		return fmt.Errorf("docker port: %w", err)
	}
	address, _, _ := strings.Cut(string(out), "\n")
	db.URL = "postgresql://latch:" + password + "@" + address + "/postgres"
	return nil
}
