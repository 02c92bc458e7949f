// Latch is the back end that every product starts with: accounts, tokens and administration on
// PostgreSQL, and vector search, in one program. "latch -h" lists its commands and settings. Exit
// status: 0 done, 1 failed, 2 wrong usage or settings.
//
// A request goes one way: server.go (the route table, and what every request passes), handler.go
// (authenticate, decode, call, encode; all errors), auth.go, users.go and documents.go (what it
// means), store.go and store_documents.go (all SQL), postgres.go (the pool). Beside that way stand
// input.go and decode.go (strict reading), token.go, password.go, embeddings.go, limiter.go,
// openapi.go, metrics.go, config.go and migrate.go with schema.sql.
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
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"latch/internal/devdb"
)

const version = "0.1.0"

// drainTimeout bounds the wait for requests in progress: the longest that one may take.
const drainTimeout = largeTimeout + writeTimeout

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := program{os.Getenv, os.Stdin, os.Stdout, os.Stderr}.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// program is what the commands use of the process.
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
	case len(args) == 0 || command == "migrate" || command == "migrate\x00-check" ||
		command == "healthcheck" || len(args) == 2 && args[0] == "admin":
	default:
		fmt.Fprintln(p.stderr, "latch: unknown command or flag; see latch -h")
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
	var dev *devdb.DB
	if cfg.DatabaseURL == "" {
		if dev, err = devdb.Start(".data"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, dev.Stop()) }()
		cfg.DatabaseURL = dev.URL
		if len(cfg.SecretKeys) == 0 {
			cfg.SecretKeys = []string{dev.Secret}
		}
	}
	check := len(args) == 2 && args[1] == "-check"
	err = migrate(ctx, cfg.DatabaseURL, migrations(cfg), check, log)
	if err != nil || len(args) > 0 && args[0] == "migrate" {
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
	s := newServer(cfg, st, newHasher(currentParams), log)
	if len(args) > 0 {
		return p.admin(ctx, s, args[1])
	}
	return p.serve(ctx, s, dev)
}

// newLogger returns the log in the form and from the level that the settings say.
func newLogger(cfg *config, w io.Writer) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(cfg.LogLevel)) // config has only the names that slog knows
	options := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

const firstScreen = `
  %s %s, development

  API    %s%s
  Docs   %s/docs
  Data   %s
  Admin  go run . admin you@example.com   (in another terminal)

  Ctrl-C stops it all.

`

// serve answers requests until ctx ends, then drains: /health/db fails, so that load balancers
// stop sending requests, SHUTDOWN_DELAY passes, and the requests in progress are finished. A
// second signal ends at once.
func (p program) serve(ctx context.Context, s *server, dev *devdb.DB) error {
	listener, err := listen(s.cfg, dev != nil)
	if err != nil {
		return err
	}
	if dev != nil {
		base := "http://" + listener.Addr().String()
		fmt.Fprintf(p.stdout, firstScreen, s.cfg.AppName, version, base, s.cfg.APIPrefix, base,
			dev.Where)
	}
	if s.cfg.MetricsAddr != "" {
		ms, err := s.serveMetrics()
		if err != nil {
			return err
		}
		defer ms.Close()
	}
	debug.FreeOSMemory() // the first hash took 19 MiB, which would stay for minutes
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
	limited, cancel := context.WithTimeout(again, drainTimeout)
	defer cancel()
	if err := hs.Shutdown(limited); err != nil {
		hs.Close()
		return fmt.Errorf("stopped with requests in progress: %w", err)
	}
	s.log.Info("stopped")
	return nil
}

// defaultPort is that of the common frameworks for development, and of their tutorials.
const defaultPort = 8000

// listen opens the port. In development, where PORT is not set, it tries the next nine if it is
// taken, so that two checkouts run side by side.
func listen(cfg *config, development bool) (net.Listener, error) {
	for port := cmp.Or(cfg.Port, defaultPort); ; port++ {
		l, err := net.Listen("tcp", net.JoinHostPort(cfg.Host, strconv.FormatInt(port, 10)))
		taken := errors.Is(err, syscall.EADDRINUSE)
		if taken && development && cfg.Port == 0 && port < defaultPort+9 {
			continue
		}
		if taken {
			err = fmt.Errorf("port %d is in use by another program; set PORT to a free one", port)
		}
		return l, err
	}
}

// admin makes email an active admin. Where there is no account it creates one, with the password
// that is piped in, or with one that it prints. Where there is one, its owner may be a stranger who
// registered the address, so it says since when the account exists and how to undo the change.
func (p program) admin(ctx context.Context, s *server, address string) error {
	email, refusal := parseEmail(strings.TrimSpace(address))
	if refusal != "" {
		return errors.New("EMAIL " + refusal)
	}
	before, err := s.store.promote(ctx, email)
	if err == nil {
		p.reportPromotion(before)
		return nil
	}
	if !errors.Is(err, errNotFound) {
		return err
	}
	password := p.pipedPassword()
	generated := password == ""
	if generated {
		password = rand.Text()
	}
	if refusal := checkPasswordChoice(password, email, s.cfg.AppName); refusal != "" {
		return errors.New("the password " + refusal)
	}
	n := newUser{Email: email, IsActive: true, IsAdmin: true}
	if _, err := s.addUser(ctx, &caller{}, n, password); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, email, "is a new admin.")
	if generated {
		fmt.Fprintln(p.stdout, "Password:", password)
	}
	return nil
}

func (p program) reportPromotion(before user) {
	fmt.Fprintln(p.stdout, before.Email, "is an active admin; the password is unchanged.")
	if before.IsAdmin && before.IsActive {
		return
	}
	was := "an account"
	if !before.IsActive {
		was = "a deactivated account"
	}
	fmt.Fprintf(p.stdout, "It was %s that exists since %s; its password is known to whoever "+
		"registered it.\nTo undo this, another admin sends PUT /users/%d with %s.\n", was,
		before.CreatedAt.Format(time.RFC3339), before.ID,
		fmt.Sprintf(`{"is_admin":%t,"is_active":%t}`, before.IsAdmin, before.IsActive))
}

// pipedPassword returns the first line of standard input, or "" where nothing is piped in.
func (p program) pipedPassword() string {
	info, err := p.stdin.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice != 0 { // a terminal, or /dev/null
		return ""
	}
	line, _ := bufio.NewReader(io.LimitReader(p.stdin, maxPasswordBytes+2)).ReadString('\n')
	return strings.TrimRight(line, "\r\n")
}

// healthcheck asks the server on this machine whether it answers.
func healthcheck(cfg *config) error {
	host := cfg.Host
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	port := strconv.FormatInt(cmp.Or(cfg.Port, defaultPort), 10)
	client := http.Client{Timeout: 3 * time.Second}
	answer, err := client.Get("http://" + net.JoinHostPort(host, port) + cfg.APIPrefix + "/health")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("health is %s", answer.Status)
	}
	return nil
}
