// Latch is the back end that every product starts with: accounts, tokens and administration on
// PostgreSQL, and vector search, in one program. "latch -h" lists its commands and settings. Exit
// status: 0 done, 1 failed, 2 wrong usage or settings.
//
// A request goes one way: server.go (the route table), handler.go (authenticate, decode, call,
// encode; all errors), auth.go, users.go and documents.go (what it means), store.go and
// store_documents.go (all SQL), postgres.go (the pool).
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
	"strings"
	"syscall"
	"time"

	"latch/internal/devdb"
)

const version = "0.1.0"

// revision is the commit of a build without a repository, as the image's: set by its linker.
var revision string

// commit returns the revision that "go build" recorded; "go run" records none.
func commit(info *debug.BuildInfo, ok bool) string {
	for i := 0; ok && i < len(info.Settings); i++ {
		if info.Settings[i].Key == "vcs.revision" {
			return info.Settings[i].Value
		}
	}
	return cmp.Or(revision, "unknown")
}

// drainTimeout bounds the wait for requests in progress: a large body, and its answer.
const drainTimeout = largeTimeout + writeTimeout

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, _ := signal.NotifyContext(context.Background(), signals...)
	os.Exit(run(ctx, os.Args[1:]))
}

const usage = `Latch %s: accounts, tokens and administration on PostgreSQL.

  latch                  serve; migrates first
  latch migrate [-check] apply pending migrations; -check: only exit 1 if there are any
  latch admin EMAIL      make EMAIL an admin, creating the account where there is none
  latch index EMAIL      give a large owner of documents an HNSW index, for fast searches that may
                         miss some; the table that it prints says how many
  latch index -drop EMAIL | -list
  latch psql             open the private database of development
  latch healthcheck      exit 0 when the server on this machine answers
  latch -h | -version

Settings, from the environment or .env, each also as NAME_FILE and in lower case; with defaults:

`

// run executes one command and returns the exit status.
func run(ctx context.Context, args []string) (code int) {
	defer reportPanic(&code)
	command, email, refusal := strings.Join(append([]string{"latch"}, args...), " "), "", ""
	switch {
	case matches(command, `^latch (-h|--?help|help)$`):
		fmt.Printf(usage, version)
		printSettings(os.Stdout)
		return 0
	case matches(command, `^latch --?version$`):
		fmt.Printf("latch %s (commit %s)\n", version, commit(debug.ReadBuildInfo()))
		return 0
	case matches(command, `^latch( migrate( -check)?| index -list| psql| healthcheck)?$`):
	case matches(command, `^latch (admin|index( -drop)?) \s*\S+\s*$`):
		email, refusal = parseEmail(strings.TrimSpace(args[len(args)-1]))
		if refusal != "" {
			fmt.Fprintln(os.Stderr, "latch: EMAIL", refusal)
			return 2
		}
	default:
		fmt.Fprintln(os.Stderr, "latch: unknown command or flag; see latch -h")
		return 2
	}
	dotenv, err := os.ReadFile(".env")
	if _, statErr := os.Lstat(".env"); err != nil && statErr == nil {
		fmt.Fprintln(os.Stderr, "latch: .env cannot be read:", err)
		return 2
	}
	cfg, err := loadConfig(os.Environ(), string(dotenv))
	for _, warning := range cfg.warnings {
		fmt.Fprintln(os.Stderr, "latch: warning:", warning)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if err := execute(ctx, cfg, strings.TrimPrefix(command, "latch "), email); err != nil {
		fmt.Fprintln(os.Stderr, "latch:", err)
		return 1
	}
	return 0
}

// reportPanic prints the text of a panic, which is about a row of the route table, a tag of an
// input or a section of the schema, and sets code. Others panic again.
func reportPanic(code *int) {
	switch cause := recover().(type) {
	case nil:
	case string:
		fmt.Fprintln(os.Stderr, "latch:", cause)
		*code = 1
	default:
		panic(cause)
	}
}

// execute runs a command, of which "latch" is to serve, for the account of email if it is about
// one. In development it starts the database.
func execute(ctx context.Context, cfg *config, command, email string) (err error) {
	command, argument, _ := strings.Cut(command, " ")
	if command == "healthcheck" {
		return healthcheck(cfg)
	}
	log := newLogger(cfg, os.Stdout)
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
	if command == "psql" {
		if dev == nil {
			return errors.New("psql is for the private database; DATABASE_URL names another")
		}
		return dev.Psql()
	}
	err = migrate(ctx, cfg.DatabaseURL, migrations(cfg), argument == "-check", log)
	if err != nil || command == "migrate" {
		return err
	}
	slow := time.Duration(cfg.SlowStatement) * time.Millisecond
	if command != "latch" {
		slow = 0 // commands log none
	}
	st, err := openStore(ctx, cfg.DatabaseURL, cfg.DatabaseMaxConns,
		&statementLog{log, cfg.DatabaseEcho, slow})
	if err != nil {
		return err
	}
	defer st.close()
	if err := st.checkChoices(ctx, cfg); err != nil {
		return err
	}
	s := newServer(cfg, st, newHasher(currentParams), log)
	switch {
	case command == "latch":
		return s.listenAndServe(ctx, dev)
	case command == "index" && argument == "-list":
		return s.printIndexes(ctx)
	case command == "admin":
		return s.makeAdmin(ctx, email)
	}
	return s.changeIndex(ctx, email, strings.HasPrefix(argument, "-drop "))
}

// levelAudit, written as AUDIT, is for events of accounts and sessions, whatever LOG_LEVEL is.
const levelAudit = slog.LevelError + 4

func newLogger(cfg *config, w io.Writer) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(cfg.LogLevel)) // config has only the names that slog knows
	nameAudit := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.LevelKey && a.Value.Any() == levelAudit {
			a.Value = slog.StringValue("AUDIT")
		}
		return a
	}
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: nameAudit}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

const firstScreen = `
  %s %s, development

  API    %[3]s%[4]s
  Docs   %[3]s/docs
  Data   %[5]s
  Admin  go run . admin you@example.com   (in another terminal)

  Ctrl-C stops it all.

`

const otherPort = `  PORT %d IS TAKEN: THIS SERVER IS ON PORT %d. For the examples of the README:

api=%s

`

// listenAndServe answers requests until ctx ends, then drains: /health/db fails, so that load
// balancers stop sending requests, SHUTDOWN_DELAY passes, and requests in progress are finished.
// A second signal ends it at once, except SIGHUP: a closed terminal and its shell send it.
func (s *server) listenAndServe(ctx context.Context, dev *devdb.DB) error {
	listener, err := listen(s.cfg, dev != nil)
	if err != nil {
		return err
	}
	if dev != nil {
		port := int64(listener.Addr().(*net.TCPAddr).Port)
		root := s.cfg.localURL(port)
		fmt.Printf(firstScreen, s.cfg.AppName, version, root, s.cfg.APIPrefix, dev.Where)
		if s.cfg.Port == 0 && port != defaultPort {
			fmt.Printf(otherPort, defaultPort, port, root+s.cfg.APIPrefix)
		}
	}
	if s.cfg.MetricsAddr != "" {
		if _, err := s.serveMetrics(); err != nil {
			return err
		}
	}
	debug.FreeOSMemory() // the first hash took 19 MiB, which would stay for minutes
	s.log.Info("serving", "address", listener.Addr().String(), "version", version,
		"commit", commit(debug.ReadBuildInfo()))
	go s.sweep(ctx)
	hs := s.httpServer()
	served := make(chan error, 1)
	go func() { served <- hs.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	secondSignal, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s.draining.Store(true)
	s.log.Info("draining", "delay_s", s.cfg.ShutdownDelay)
	select {
	case <-secondSignal.Done():
	case <-time.After(time.Duration(s.cfg.ShutdownDelay) * time.Second):
	}
	drainCtx, cancel := context.WithTimeout(secondSignal, drainTimeout)
	defer cancel()
	if err := hs.Shutdown(drainCtx); err != nil {
		hs.Close()
		return fmt.Errorf("stopped with requests in progress: %w", err)
	}
	s.log.Info("stopped")
	return nil
}

// defaultPort is that of common frameworks and their tutorials.
const defaultPort = 8000

// listen opens the port. In development, without PORT, it tries the next nine where it is taken, so
// that two checkouts run side by side.
func listen(cfg *config, development bool) (net.Listener, error) {
	for port := cmp.Or(cfg.Port, defaultPort); ; port++ {
		l, err := net.Listen("tcp", net.JoinHostPort(cfg.Host, fmt.Sprint(port)))
		if !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
		if !development || cfg.Port != 0 || port == defaultPort+9 {
			return nil, fmt.Errorf(
				"port %d is in use by another program; set PORT to a free one", port)
		}
	}
}

// localURL returns the root of the server's URLs on this machine.
func (c *config) localURL(port int64) string {
	host := c.Host
	if net.ParseIP(host).IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, fmt.Sprint(port))
}

// makeAdmin makes email's account an active admin. Where there is none it creates one, with the
// password that is piped in, or with one that it prints.
func (s *server) makeAdmin(ctx context.Context, email string) error {
	u, err := s.store.userByEmail(ctx, email)
	if err == nil {
		err = s.promote(ctx, u.user)
	}
	if !errors.Is(err, errNotFound) {
		return err // nil: promoted
	}
	piped := pipedPassword()
	password := cmp.Or(piped, rand.Text())
	if refusal := checkPasswordChoice(password, email, s.cfg.AppName); refusal != "" {
		return errors.New("the password " + refusal)
	}
	n := newUser{Email: email, IsActive: true, IsAdmin: true}
	added, err := s.addUser(ctx, &caller{}, n, password)
	if err != nil {
		return err
	}
	s.event(&caller{}, "user_created", added.ID, "is_admin", true)
	fmt.Println(email, "is a new admin.")
	if piped == "" {
		fmt.Println("Password:", password)
	}
	return nil
}

// promote makes an account an active admin, and prints since when it exists and how to undo it:
// its owner may be a stranger who registered the address.
func (s *server) promote(ctx context.Context, before user) error {
	admin := userChange{IsActive: new(true), IsAdmin: new(true)}
	if _, err := s.change(ctx, &caller{}, before, admin, nil); err != nil {
		return err
	}
	fmt.Println(before.Email, "is an active admin; the password is unchanged.")
	if before.IsAdmin && before.IsActive {
		return nil
	}
	was := "an account"
	if !before.IsActive {
		was = "a deactivated account"
	}
	fmt.Printf("It was %s that exists since %s; its password is known to whoever registered it.\n"+
		"To undo this, another admin sends PUT /users/%d with "+
		`{"is_admin":%t,"is_active":%t}.`+"\n", was,
		before.CreatedAt.Format(time.RFC3339), before.ID, before.IsAdmin, before.IsActive)
	return nil
}

// pipedPassword returns the first line of standard input, or "" where nothing is piped in.
func pipedPassword() string {
	info, err := os.Stdin.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice != 0 { // a terminal, or /dev/null
		return ""
	}
	line, _ := bufio.NewReader(io.LimitReader(os.Stdin, maxPasswordBytes+2)).ReadString('\n')
	return strings.TrimRight(line, "\r\n")
}

const (
	graphBytes       = 900 // memory of a document in a build, beside its vector: 772 were measured
	progressInterval = 10 * time.Second
	measureSearches  = 200 // of each kind
	measureLimit     = 10 * time.Minute
)

// changeIndex drops the HNSW index of email's account, or builds it unless there is one, and
// measures it. Searches use the least ef_search of enough recall; without one it is dropped.
func (s *server) changeIndex(ctx context.Context, email string, drop bool) error {
	u, err := s.store.userByEmail(ctx, email)
	switch {
	case errors.Is(err, errNotFound):
		return errors.New("no account has this e-mail address")
	case err == nil && drop:
		return s.store.dropIndex(ctx, u.ID)
	case err == nil:
		err = s.store.checkPgvector(ctx)
	}
	if err != nil {
		return err
	}
	n, err := s.store.countDocuments(ctx, u.ID, selection{})
	if err != nil || n == 0 {
		return cmp.Or(err, errors.New("the account has no documents"))
	}
	memory := n * (2*s.cfg.EmbeddingDimensions + graphBytes)
	fmt.Printf("Building %s for %d documents, with up to %d MB of PostgreSQL's memory.\n",
		indexName(u.ID), n, memory>>20)
	building, stop := context.WithCancel(ctx)
	go s.printProgress(building, u.ID)
	err = buildIndex(ctx, s.cfg.DatabaseURL, u.ID, memory)
	stop()
	if err != nil {
		return err
	}
	fmt.Printf("Measuring it, which takes up to %v.\n", measureLimit)
	efSearches := []int{40, 80, 160, 320, 640, 1000} // 1000 is pgvector's limit
	list, err := s.measureIndex(ctx, u.ID, efSearches, min(measureSearches, n), measureLimit)
	if err != nil {
		return err
	}
	fmt.Println("ef_search  recall@10  of mixtures    p50 ms    p99 ms   (0: the exact search)")
	for _, m := range list {
		fmt.Printf("%9d  %9.4f  %11.4f  %8.1f  %8.1f\n", m.efSearch, m.recalls[0], m.recalls[1],
			m.within(50), m.within(99))
	}
	for _, m := range list[1:] { // the first is exact
		if m.recall() >= enoughRecall {
			fmt.Printf("Searches of %s use it with ef_search %d.\n", email, m.efSearch)
			return s.store.saveIndex(ctx, vectorIndex{Owner: u.ID, EfSearch: m.efSearch,
				Recall: m.recall(), Documents: n})
		}
	}
	return errors.Join(s.store.dropIndex(ctx, u.ID), fmt.Errorf(
		"no ef_search reaches %.2f: the index is dropped, and searches stay exact", enoughRecall))
}

// printProgress prints how far the build of an index is, until ctx ends.
func (s *server) printProgress(ctx context.Context, owner int64) {
	for range time.Tick(progressInterval) {
		if text, err := s.store.indexProgress(ctx, owner); err == nil {
			fmt.Println(" ", text)
		} else if ctx.Err() != nil {
			return
		}
	}
}

// printIndexes prints the HNSW indexes of all owners.
func (s *server) printIndexes(ctx context.Context) error {
	list, err := s.store.listIndexes(ctx)
	const line = "%-40s  %9v  %6v  %9v  %6v  %v\n"
	fmt.Printf(line, "owner", "documents", "MB", "ef_search", "recall", "measured")
	for _, x := range list {
		owner, measured := "(deleted: the server drops it)", "no: run latch index again"
		if x.Email != nil {
			owner = *x.Email
		}
		if x.MeasuredAt != nil {
			measured = time.Since(*x.MeasuredAt).Round(time.Second).String() + " ago"
		}
		fmt.Printf(line, owner, x.Documents, x.Bytes>>20, x.EfSearch,
			fmt.Sprintf("%.4f", x.Recall), measured)
	}
	return err
}

// healthcheck asks the server on this machine whether it answers.
func healthcheck(cfg *config) error {
	client := http.Client{Timeout: 3 * time.Second}
	root := cfg.localURL(cmp.Or(cfg.Port, defaultPort))
	answer, err := client.Get(root + cfg.APIPrefix + "/health")
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("health is %s", answer.Status)
	}
	return err
}
