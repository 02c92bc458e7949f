package main

// devdb.go is the database of "go run .": a private PostgreSQL from this machine's own programs, with its
// data and its socket under .data/, or, where there is none with pgvector, from Docker's image.
//
// Several processes may use it at once (the server, and "admin" in another terminal): each holds a shared
// lock on .data/lock, and the last one out stops it. Starting and stopping take turns by .data/turn. The
// kernel drops the locks of a process that was killed; the PostgreSQL that it leaves running is found by
// the next start and used.

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// devImage is used where no local PostgreSQL has pgvector.
const devImage = "pgvector/pgvector:pg17"

// devDB is a running private PostgreSQL.
type devDB struct {
	url, where string // where: for people, what holds the data
	dir        string // absolute
	bin        string // PostgreSQL's programs; empty: Docker
	password   string // Docker's
	secret     string // the signing key of this directory
	lock       *os.File
}

// startDevDB starts the PostgreSQL whose data is in dir, made at need, or joins it where it runs already.
// settings are further ones of postgresql.conf, as name=value.
func startDevDB(dir string, settings ...string) (*devDB, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { // root's PostgreSQL is another user, and must get in
		return nil, err
	}
	db := &devDB{dir: dir}
	turn, err := db.openLock("turn", syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer turn.Close()
	if db.secret, err = db.keep("secret_key"); err != nil {
		return nil, err
	}
	if db.lock, err = db.openLock("lock", syscall.LOCK_SH); err != nil {
		return nil, err
	}
	if db.bin = findPostgres(db.dataVersion()); db.bin != "" {
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

// openLock opens a file of the data directory and waits for a lock on it, which Close ends.
func (db *devDB) openLock(name string, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(db.dir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return f, syscall.Flock(int(f.Fd()), how)
}

// stop stops PostgreSQL, unless another process uses it.
func (db *devDB) stop() error {
	defer db.lock.Close()
	turn, err := db.openLock("turn", syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer turn.Close()
	if syscall.Flock(int(db.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return nil
	}
	return run(db.stopCommand())
}

func (db *devDB) stopCommand() *exec.Cmd {
	if db.bin == "" {
		return exec.Command("docker", "stop", db.container())
	}
	return db.command("pg_ctl", "stop", "-D", db.data(), "-m", "fast")
}

// keep returns the secret of this name, which is made at the first call: 256 bits.
func (db *devDB) keep(name string) (secret string, err error) {
	file := filepath.Join(db.dir, name)
	if old, _ := os.ReadFile(file); len(old) > 0 {
		return string(old), nil
	}
	secret = rand.Text() + rand.Text()
	return secret, os.WriteFile(file, []byte(secret), 0o600)
}

func (db *devDB) data() string { return filepath.Join(db.dir, "postgres") }

// dataVersion is the major version that the data was made by, or "" where there is none yet.
func (db *devDB) dataVersion() string {
	version, _ := os.ReadFile(filepath.Join(db.data(), "PG_VERSION"))
	return strings.TrimSpace(string(version))
}

var (
	pgConfig = regexp.MustCompile(`^\D*(\d+).*\n(.*)\n`) // the major version, and the directory of extensions
	halfvec  = regexp.MustCompile(`(?m)^default_version *= *'(0\.([7-9]|[1-9][0-9])|[1-9])`)
)

// findPostgres returns the directory of the newest PostgreSQL's programs, 14 or later and of this major version
// if it is not "", that has pgvector 0.7 or later, the first with halfvec; "" where there is none.
func findPostgres(major string) (bin string) {
	var dirs []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin"} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	if onPath, err := exec.LookPath("pg_ctl"); err == nil {
		dirs = append(dirs, filepath.Dir(onPath))
	}
	best := 13
	for _, dir := range dirs {
		out, _ := exec.Command(filepath.Join(dir, "pg_config"), "--version", "--sharedir").Output()
		m := pgConfig.FindStringSubmatch(string(out))
		if m == nil || major != "" && m[1] != major {
			continue
		}
		control, _ := os.ReadFile(filepath.Join(m[2], "extension", "vector.control"))
		if n, _ := strconv.Atoi(m[1]); n > best && halfvec.Match(control) && exec.Command(filepath.Join(dir, "initdb"), "--version").Run() == nil {
			bin, best = dir, n
		}
	}
	return bin
}

// startLocal makes the data directory if there is none and starts PostgreSQL on it if it does not run.
// The socket lies in the data directory, which only its owner can enter; there is no TCP.
func (db *devDB) startLocal(settings []string) error {
	if n := len(db.data()) + len("/.s.PGSQL.5432"); n > 103 { // what a socket's address holds on macOS; Linux has 107
		return fmt.Errorf("the path %s is %d bytes too long for PostgreSQL's socket; use a checkout with a shorter path, or set DATABASE_URL", db.data(), n-103)
	}
	db.where = db.data()
	db.url = "postgresql://latch@/postgres?host=" + url.QueryEscape(db.data())
	if db.dataVersion() == "" {
		if err := db.initData(); err != nil {
			return err
		}
	}
	if db.pg("pg_ctl", "status", "-D", db.data()) == nil {
		return nil
	}
	settings = append([]string{"listen_addresses=", "unix_socket_directories=."}, settings...) // relative: a socket's path has at most 103 bytes
	log := filepath.Join(db.data(), "log")
	if err := db.pg("pg_ctl", "start", "-w", "-D", db.data(), "-l", log, "-o", "-c "+strings.Join(settings, " -c ")); err != nil {
		return fmt.Errorf("%w; its log is %s", err, log)
	}
	return nil
}

// initData makes the data directory beside its place and renames it, so that an interrupted
// initdb leaves nothing that looks like data.
func (db *devDB) initData() error {
	unfinished := db.data() + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	if err := os.Mkdir(unfinished, 0o700); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		uid, _ := strconv.Atoi(postgresUser().Uid)
		gid, _ := strconv.Atoi(postgresUser().Gid)
		if err := os.Chown(unfinished, uid, gid); err != nil {
			return err
		}
	}
	locale := "C.UTF-8"
	if runtime.GOOS == "darwin" {
		locale = "en_US.UTF-8"
	}
	if err := db.pg("initdb", "-D", unfinished, "-U", "latch", "-A", "trust", "-E", "UTF8", "--locale="+locale); err != nil {
		return err
	}
	return os.Rename(unfinished, db.data())
}

// pg runs one of PostgreSQL's programs.
func (db *devDB) pg(name string, args ...string) error { return run(db.command(name, args...)) }

// command is how one of PostgreSQL's programs is run. They refuse to run as root, so root runs them as
// another user.
func (db *devDB) command(name string, args ...string) *exec.Cmd {
	args = append([]string{filepath.Join(db.bin, name)}, args...)
	if os.Geteuid() == 0 {
		as := []string{"setpriv", "--reuid=" + postgresUser().Uid, "--regid=" + postgresUser().Gid, "--init-groups"}
		if !reachable(db.dir) { // a checkout in /root: let it pass the closed directories above its own
			as = append(as, "--inh-caps=+dac_override", "--ambient-caps=+dac_override")
		}
		args = append(as, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

// postgresUser is whom root starts PostgreSQL as: the user that its package makes, or else nobody.
func postgresUser() *osuser.User {
	if u, err := osuser.Lookup("postgres"); err == nil {
		return u
	}
	return &osuser.User{Uid: "65534", Gid: "65534"}
}

// reachable tells whether everybody may pass through the directories above dir.
func reachable(dir string) bool {
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode()&0o001 == 0 {
			return false
		}
	}
	return true
}

// run runs a command; the error has what it printed.
func run(cmd *exec.Cmd) error {
	cmd.Dir = "/" // PostgreSQL's programs complain where they cannot enter the working directory
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, bytes.TrimSpace(out))
	}
	return nil
}

// container names Docker's container and volume after the directory, so that two checkouts have two, and
// after the password, so that with a new .data/ there is a new database, not one that refuses it.
func (db *devDB) container() string {
	sum := sha256.Sum256([]byte(db.dir + "\n" + db.password))
	return fmt.Sprintf("latch-%x", sum[:6])
}

// startDocker starts the image, with the data in a volume and a random port on the loopback address.
func (db *devDB) startDocker() error {
	if v := db.dataVersion(); v != "" {
		return fmt.Errorf("the data in %s needs PostgreSQL %s with pgvector, which is gone; install it again, or move the data away", db.data(), v)
	}
	if run(exec.Command("docker", "info")) != nil {
		return errors.New("no PostgreSQL (14 or later) with pgvector (0.7 or later) here, and no Docker.\nInstall it with: ./setup.sh (Debian, Ubuntu and Homebrew), or your system's packages; or set DATABASE_URL")
	}
	var err error
	if db.password, err = db.keep("postgres_password"); err != nil {
		return err
	}
	name := db.container()
	if run(exec.Command("docker", "start", name)) != nil {
		create := exec.Command("docker", "run", "--detach", "--name", name, "--publish", "127.0.0.1::5432", "--volume", name+":/var/lib/postgresql/data",
			"--env", "POSTGRES_USER=latch", "--env", "POSTGRES_DB=postgres", "--env", "POSTGRES_PASSWORD", devImage)
		create.Env = append(os.Environ(), "POSTGRES_PASSWORD="+db.password)
		if err := run(create); err != nil {
			return err
		}
	}
	out, err := exec.Command("docker", "port", name, "5432/tcp").Output()
	if err != nil {
		return fmt.Errorf("docker port: %w", err)
	}
	address, _, _ := strings.Cut(string(out), "\n")
	db.url, db.where = "postgresql://latch:"+db.password+"@"+address+"/postgres", "Docker volume "+name
	return nil
}
