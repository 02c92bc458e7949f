// Latch is the back end that every product starts with: accounts, tokens and administration on
// PostgreSQL, ready for vectors, in one program. "latch -h" lists its commands, as usage below has them, and
// its settings. Exit status: 0 done, 1 failed, 2 wrong usage or settings.
//
// Read the files in this order: server.go (the routes), api.go (the gate), input.go, read.go and json.go (strict
// reading), auth.go, users.go and documents.go (what requests mean), token.go, password.go, embeddings.go,
// store.go and store_documents.go with schema.sql (all SQL), gather.go, postgres.go, migrate.go, openapi.go, metrics.go,
// config.go, devdb.go.
package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const version = "0.1.0"

// drainTimeout bounds the wait for requests under way: the longest that one may take.
const drainTimeout = requestTimeout + writeTimeout

// lastCall passes between the end of accepting connections and the closing of idle ones: what comes on
// kept-alive connections in this time is answered with word that it was the last. A connection that is
// closed without a word breaks the request that is on its way.
const lastCall = 300 * time.Millisecond

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := program{os.Getenv, os.Stdin, os.Stdout, os.Stderr}.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// program is the world that the commands see.
type program struct {
	getenv         func(string) string
	stdin          *os.File
	stdout, stderr io.Writer
}

const usage = `Latch %s: accounts, tokens and administration on PostgreSQL.

  latch                  serve; migrates first
  latch migrate [-check] apply pending migrations; -check: only exit 1 if there are any
  latch admin EMAIL      make EMAIL an admin, creating the account where there is none
  latch healthcheck      exit 0 when the server on this machine answers
  latch -h | -version

Settings, from the environment or .env, each also as NAME_FILE; with defaults:

`

// run executes one command and returns the exit status.
func (p program) run(ctx context.Context, args []string) int {
	command := strings.Join(args, "\x00") // which no argument can hold
	switch {
	case command == "-h" || command == "-help" || command == "--help" || command == "help":
		fmt.Fprintf(p.stdout, usage, version)
		printSettings(p.stdout)
		return 0
	case command == "-version" || command == "--version":
		fmt.Fprintln(p.stdout, "latch", version)
		return 0
	case len(args) == 0 || command == "migrate" || command == "migrate\x00-check" || command == "healthcheck" || len(args) == 2 && args[0] == "admin":
	default:
		fmt.Fprintln(p.stderr, "latch: unknown command or flag; latch -h lists them")
		return 2
	}
	dotenv, err := os.ReadFile(".env")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintln(p.stderr, "latch: .env cannot be read:", err)
		return 2
	}
	cfg, err := loadConfig(p.getenv, string(dotenv))
	if err != nil {
		fmt.Fprintln(p.stderr, err)
		return 2
	}
	if command == "healthcheck" {
		err = healthcheck(cfg)
	} else {
		err = p.withDatabase(ctx, cfg, args)
	}
	if err != nil {
		fmt.Fprintln(p.stderr, "latch:", err)
		return 1
	}
	return 0
}

// withDatabase runs a command that needs the database, which in development is started for it.
func (p program) withDatabase(ctx context.Context, cfg *config, args []string) (err error) {
	log := newLogger(cfg, p.stdout)
	var dev *devDB
	if cfg.DatabaseURL == "" {
		if dev, err = startDevDB(".data"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, dev.stop()) }()
		cfg.DatabaseURL = dev.url
		if len(cfg.SecretKeys) == 0 {
			cfg.SecretKeys = []string{dev.secret}
		}
	}
	check := len(args) == 2 && args[1] == "-check"
	if err := migrate(ctx, cfg.DatabaseURL, migrations(cfg), check, log); err != nil || len(args) > 0 && args[0] == "migrate" {
		return err
	}
	var echo *slog.Logger
	if cfg.DatabaseEcho {
		echo = log
	}
	st, err := openStore(ctx, cfg.DatabaseURL, cfg.DatabaseMaxConns, echo)
	if err != nil {
		return err
	}
	defer st.close()
	if err := st.checkChoices(ctx, cfg); err != nil {
		return err
	}
	s := newServer(cfg, st, newHasher(todaysParams), log)
	if len(args) > 0 {
		return p.admin(ctx, s, args[1])
	}
	return p.serve(ctx, s, dev)
}

// serve answers requests until ctx ends, then drains: /health/db fails, so that load balancers turn
// away, SHUTDOWN_DELAY passes, and the requests under way are finished. A second signal ends at once.
func (p program) serve(ctx context.Context, s *server, dev *devDB) error {
	listener, err := listen(s.cfg, dev != nil)
	if err != nil {
		return err
	}
	if dev != nil {
		base := "http://" + listener.Addr().String()
		fmt.Fprintf(p.stdout, "\n  %s %s, development\n\n  API    %s%s\n  Docs   %s/docs\n  Data   %s\n  Admin  go run . admin you@example.com   (in another terminal)\n\n  Ctrl-C stops it all.\n\n",
			s.cfg.AppName, version, base, s.cfg.APIPrefix, base, dev.where)
	}
	if s.cfg.MetricsAddr != "" {
		ms, err := s.serveMetrics()
		if err != nil {
			return err
		}
		defer ms.Close()
	}
	defer runtime.KeepAlive(p.stretchMemory(cap(s.hasher.slots)))
	s.log.Info("serving", "address", listener.Addr().String(), "version", version)
	go s.sweep(ctx)
	hs := s.httpServer()
	failed := make(chan error, 1)
	go func() { failed <- hs.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	again, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s.draining.Store(true)
	s.log.Info("draining", "delay_s", s.cfg.ShutdownDelay)
	select {
	case <-again.Done():
	case <-time.After(time.Duration(s.cfg.ShutdownDelay) * time.Second):
	}
	closeDoor(listener)
	time.Sleep(lastCall)
	patience, cancel := context.WithTimeout(again, drainTimeout)
	defer cancel()
	if err := hs.Shutdown(patience); err != nil {
		hs.Close()
		return fmt.Errorf("stopped with requests under way: %w", err)
	}
	s.log.Info("stopped")
	return nil
}

// stretchMemory lets garbage grow, which saves work, by half of the heap, and by 24 MiB for each hash at once: those are
// the hash and 5 MiB for all else, so that Go does not collect at the beginning of each as well as at its end
// (hasher.release). For Go the floor is part of the heap; nobody writes to it, so it takes no memory. A memory limit
// would not do: where thousands of slow clients need more, Go spends half of the processors on keeping it.
// GOGC and GOMEMLIMIT come first.
func (p program) stretchMemory(hashes int) (floor []byte) {
	if p.getenv("GOMEMLIMIT") == "" && p.getenv("GOGC") == "" {
		floor = make([]byte, 48*hashes<<20)
		debug.SetGCPercent(50)
	}
	debug.FreeOSMemory() // the first hash took 19 MiB, which would stay for minutes
	return floor
}

// defaultPort is that of the common frameworks for development, and of their tutorials.
const defaultPort = 8000

// listen opens the port. In development, where PORT names none, it tries the next nine if it is taken, so that two
// checkouts run side by side.
func listen(cfg *config, development bool) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // which takes no filter: see closeDoor
	for port := cmp.Or(cfg.Port, defaultPort); ; port++ {
		l, err := lc.Listen(context.Background(), "tcp", net.JoinHostPort(cfg.Host, strconv.FormatInt(port, 10)))
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) || !development || cfg.Port != 0 || port == defaultPort+9 {
			if errors.Is(err, syscall.EADDRINUSE) {
				err = fmt.Errorf("port %d is in use by another program; set PORT to a free one", port)
			}
			return l, err
		}
	}
}

// admin makes email an active admin. Where there is no account it makes one, with the password that is
// piped in, or with one that it prints.
func (p program) admin(ctx context.Context, s *server, address string) error {
	email, refusal := parseEmail(address)
	if refusal != "" {
		return errors.New("EMAIL " + refusal)
	}
	err := s.store.promote(email)
	if err == nil {
		fmt.Fprintln(p.stdout, email, "is an active admin; the password is unchanged.")
		return nil
	}
	if !errors.Is(err, errNotFound) {
		return err
	}
	password := ""
	if info, err := p.stdin.Stat(); err == nil && info.Mode()&os.ModeCharDevice == 0 { // neither a terminal nor /dev/null
		password, _ = bufio.NewReader(io.LimitReader(p.stdin, maxPasswordBytes+2)).ReadString('\n')
		password = strings.TrimRight(password, "\r\n")
	}
	generated := password == ""
	if generated {
		password = rand.Text()
	}
	if refusal := checkPasswordChoice(password, email, s.cfg.AppName); refusal != "" {
		return errors.New("the password " + refusal)
	}
	if _, err := s.addUser(ctx, newUser{Email: email, IsActive: true, IsAdmin: true}, password); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, email, "is a new admin.")
	if generated {
		fmt.Fprintln(p.stdout, "Password:", password)
	}
	return nil
}

// healthcheck asks the server on this machine whether it lives.
func healthcheck(cfg *config) error {
	host := cfg.Host
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	client := http.Client{Timeout: 3 * time.Second}
	answer, err := client.Get("http://" + net.JoinHostPort(host, strconv.FormatInt(cmp.Or(cfg.Port, defaultPort), 10)) + cfg.APIPrefix + "/health")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("health is %s", answer.Status)
	}
	return nil
}
