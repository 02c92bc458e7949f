package main

// main_test.go starts a private PostgreSQL for the tests, gives each test a database of its own,
// and holds the client that all tests of the API use. At the end, the log of the whole suite is
// searched for secrets.

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"latch/internal/devdb"
)

const (
	testKey        = "a test key of the suite: canary 0123456789"
	goodPass       = "a good canary passphrase" // the word canary must never reach a log
	template       = "latch_template"           // a migrated database to copy
	testDimensions = 3                          // of the template's embeddings
)

var (
	suite    *devdb.DB // the PostgreSQL of this run
	suiteLog logBuffer
	dbCount  atomic.Int64
	cheap    = argonParams{memory: 64, time: 1, threads: 1}
)

// logBuffer gathers what all servers of the suite log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // not embedded: its other methods take no lock
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestMain(m *testing.M) {
	if os.Getenv("LATCH_TEST_MAIN") == "1" { // the suite runs the program itself as a child
		main()
	}
	// Unless the command line says otherwise: most tests wait for PostgreSQL, a process or a clock.
	flag.Set("test.parallel", "8")
	os.Exit(runSuite(m))
}

func runSuite(m *testing.M) int {
	dir, err := os.MkdirTemp("", "latch-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // root's PostgreSQL is another user
	}
	if err == nil {
		suite, err = devdb.Start(dir, "fsync=off", "synchronous_commit=off",
			"full_page_writes=off", "max_connections=400")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the tests need a PostgreSQL:", err)
		return 1
	}
	defer watch(suite, dir)()
	ctx := context.Background()
	if err := makeTemplate(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if !checkSuite(code == 0) {
		code = 1
	}
	return code
}

// checkSuite searches the log for secrets and, if all tests passed and all ran, the document for
// problems that no test received. It reports whether all is well.
func checkSuite(passed bool) (ok bool) {
	ok = true
	log := suiteLog.buf.Bytes()
	for _, secret := range []string{"canary", "eyJ", "argon2", "postgresql://", "password=",
		"@example"} {
		if i := bytes.Index(log, []byte(secret)); i >= 0 {
			from := bytes.LastIndexByte(log[:i], '\n') + 1
			line, _, _ := bytes.Cut(log[from:], []byte("\n"))
			fmt.Fprintf(os.Stderr, "FAIL: the log of the suite holds %q: %s\n", secret, line)
			ok = false
		}
	}
	if !passed || !ok || testing.Short() || !noFilter() {
		return ok
	}
	if unseen := theDocument().unseen(); unseen != nil {
		fmt.Fprintln(os.Stderr, "FAIL: the document promises problems that no test received:",
			unseen)
		ok = false
	}
	if n := bytes.Count(log, []byte(`"msg":"request"`)); ok && n < 500 {
		fmt.Fprintf(os.Stderr, "FAIL: the log of the suite has only %d access lines: "+
			"the search for secrets proves nothing\n", n)
		ok = false
	}
	return ok
}

func noFilter() bool {
	return !slices.ContainsFunc(os.Args, func(a string) bool {
		return strings.HasPrefix(a, "-test.run") || strings.HasPrefix(a, "-test.fuzz") ||
			strings.HasPrefix(a, "-test.bench") || strings.HasPrefix(a, "-test.list")
	})
}

// watch stops db and removes dir when the returned function is called, and also when this process
// is killed: the shell below waits for the end of a pipe that only this process holds open.
func watch(db *devdb.DB, dir string) (stop func()) {
	const script = `cat >/dev/null; "$@" >/dev/null 2>&1; rm -rf "$0"`
	args := append([]string{"-c", script, dir}, db.StopCommand().Args...)
	cmd := osexec.Command("sh", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the tests, not for this
	pipe, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		panic(err)
	}
	return func() {
		pipe.Close()
		cmd.Wait()
	}
}

func makeTemplate(ctx context.Context) error {
	conn, err := connectWhenReady(ctx, suite.URL, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+template); err != nil {
		return err
	}
	steps := migrations(&config{EmbeddingDimensions: testDimensions, TextSearch: "simple"})
	return migrate(ctx, databaseURL(template), steps, false, slog.New(slog.DiscardHandler))
}

// databaseURL is the URL of another database of the suite's PostgreSQL.
func databaseURL(name string) string {
	u, err := url.Parse(suite.URL)
	if err != nil {
		panic(err)
	}
	u.Path = "/" + name
	return u.String()
}

// newDatabase makes a database, a copy of from or empty where from is "", and returns its URL.
func newDatabase(t testing.TB, from string) string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, suite.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if from == "" {
		from = "template0"
	}
	name := fmt.Sprintf("t%d", dbCount.Add(1))
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+from); err != nil {
		t.Fatal(err)
	}
	return databaseURL(name)
}

// app is a server on a database of its own, and a client of it.
type app struct {
	*server
	t   testing.TB
	url string // of the database
	web *httptest.Server
}

// newApp starts a server with cheap hashes. configure changes its settings.
func newApp(t testing.TB, configure ...func(*config)) *app {
	t.Helper()
	return newAppOn(t, newDatabase(t, template), cheap, configure...)
}

func newAppOn(t testing.TB, url string, params argonParams, configure ...func(*config)) *app {
	t.Helper()
	cfg, err := loadConfig([]string{"DATABASE_URL=" + url, "SECRET_KEY=" + testKey,
		"EMBEDDING_DIMENSIONS=" + strconv.Itoa(testDimensions)}, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range configure {
		f(cfg)
	}
	tracer := &citusTracer{}
	st, err := openStore(t.Context(), url, cfg.DatabaseMaxConns, tracer)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []*limiter{&st.conns, &st.expensive} {
		l.timeout = time.Minute // whatever else the machine does
	}
	st.ping(t.Context()) // it learns whether there is a PgBouncer
	a := &app{t: t, url: url}
	logger := newLogger(&config{LogLevel: "debug"}, &suiteLog)
	a.server = newServer(cfg, st, newHasher(params), logger)
	a.web = httptest.NewUnstartedServer(a.server)
	a.web.Config = a.server.httpServer()
	a.web.Start()
	t.Cleanup(func() {
		a.web.Close()
		st.close()
		if tracer.refused != nil {
			t.Errorf("Citus would refuse %q", tracer.refused)
		}
	})
	return a
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
	call   string
}

// do sends a request and checks what every answer must have. body is nil, a string (sent as JSON
// as it is), url.Values (sent as a form), or a value to be encoded as JSON.
func (a *app) do(method, path, token string, body any) answer {
	a.t.Helper()
	header := http.Header{}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
		header.Set("Content-Type", "application/json")
	case url.Values:
		reader = strings.NewReader(b.Encode())
		header.Set("Content-Type", "application/x-www-form-urlencoded")
	default:
		text, err := json.Marshal(b)
		if err != nil {
			a.t.Fatal(err)
		}
		reader = bytes.NewReader(text)
		header.Set("Content-Type", "application/json")
	}
	return a.send(method, path, header, reader)
}

// send is do with any header and body.
func (a *app) send(method, path string, header http.Header, body io.Reader) answer {
	a.t.Helper()
	r, err := http.NewRequest(method, a.web.URL, body)
	if err != nil {
		a.t.Fatal(err)
	}
	r.URL.Opaque = path // as it is, without cleaning
	if strings.HasPrefix(path, "//") {
		r.URL.Opaque = a.web.URL + path
	}
	r.Header = header
	transport := http.DefaultTransport
	if a.web.Config != nil { // else it is a child process
		transport = a.web.Client().Transport
	}
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client := &http.Client{Transport: transport, CheckRedirect: noRedirect}
	res, err := client.Do(r)
	if err != nil {
		a.t.Errorf("%s %s: %v", method, path, err)
		return answer{header: http.Header{}}
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Errorf("%s %s: %v", method, path, err)
	}
	ans := answer{res.StatusCode, res.Header, text, method + " " + path}
	a.check(method, ans)
	a.conforms(method, path, ans)
	return ans
}

// check holds every answer against the contract's ground rules.
func (a *app) check(method string, ans answer) {
	a.t.Helper()
	for name, want := range map[string]string{
		"Cache-Control":           "no-store",
		"X-Content-Type-Options":  "nosniff",
		"Referrer-Policy":         "no-referrer",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
	} {
		if got := ans.header.Get(name); got != want {
			a.t.Errorf("%s: %s is %q, want %q", ans.call, name, got, want)
		}
	}
	if ans.header.Get("X-Request-Id") == "" {
		a.t.Errorf("%s: no X-Request-Id", ans.call)
	}
	got := ans.header.Get("WWW-Authenticate")
	if (ans.status == 401) != strings.HasPrefix(got, "Bearer") {
		a.t.Errorf("%s: status %d with WWW-Authenticate %q", ans.call, ans.status, got)
	}
	if got := ans.header.Get("Retry-After"); (ans.status == 503) != (got != "") {
		a.t.Errorf("%s: status %d with Retry-After %q", ans.call, ans.status, got)
	}
	if ans.status < 400 || method == "HEAD" {
		return
	}
	var p struct {
		Type, Title, Detail, Code string
		Status                    int
		RequestID                 string `json:"request_id"`
		Errors                    []fieldError
	}
	if err := json.Unmarshal(ans.body, &p); err != nil {
		a.t.Errorf("%s: %d is no problem document: %v: %s", ans.call, ans.status, err, ans.body)
	}
	media, id := ans.header.Get("Content-Type"), ans.header.Get("X-Request-Id")
	if media != "application/problem+json" || p.Type != "about:blank" ||
		p.Title != http.StatusText(ans.status) || p.Status != ans.status || p.Detail == "" ||
		p.Code == "" || p.RequestID != id ||
		(ans.status == 422 || p.Code == "key_taken") != (len(p.Errors) > 0) {
		a.t.Errorf("%s: %d is no proper problem document: %s", ans.call, ans.status, ans.body)
	}
	if bytes.Contains(ans.body, []byte("canary")) {
		a.t.Errorf("%s: the problem echoes what was sent: %s", ans.call, ans.body)
	}
}

// want fails the test unless the answer has this status and, for an error, this code.
func (a *app) want(ans answer, status int, code string) answer {
	a.t.Helper()
	if got := ans.code(); ans.status != status || got != code {
		a.t.Errorf("%s = %d %q, want %d %q: %s", ans.call, ans.status, got, status, code, ans.body)
	}
	return ans
}

// code is the problem's code, "" for a success.
func (ans answer) code() string {
	if ans.status < 400 {
		return ""
	}
	return decode[struct{ Code string }](ans).Code
}

// decode reads the body of an answer; a body that does not fit gives the zero value.
func decode[T any](ans answer) (v T) {
	json.Unmarshal(ans.body, &v)
	return v
}

// member is an account with a session.
type member struct {
	user
	password string
	tokens
}

// signUp registers an account and logs in. name is the local part of its e-mail.
func (a *app) signUp(name string) member {
	a.t.Helper()
	email := name + "@example.com"
	account := map[string]any{"email": email, "password": goodPass}
	ans := a.want(a.do("POST", "/api/v1/auth/register", "", account), 201, "")
	return member{decode[user](ans), goodPass, a.login(email, goodPass)}
}

// signUpAdmin is signUp and a promotion, as "latch admin" does it.
func (a *app) signUpAdmin(name string) member {
	a.t.Helper()
	m := a.signUp(name)
	admin := userChange{IsActive: new(true), IsAdmin: new(true)}
	if _, _, err := a.store.updateUser(a.t.Context(), m.ID, admin); err != nil {
		a.t.Fatal(err)
	}
	m.IsAdmin = true
	return m
}

func (a *app) login(email, password string) tokens {
	a.t.Helper()
	return decode[tokens](a.want(a.tryLogin(email, password), 200, ""))
}

func (a *app) tryLogin(email, password string) answer {
	a.t.Helper()
	form := url.Values{"username": {email}, "password": {password}}
	return a.do("POST", "/api/v1/auth/login", "", form)
}

// create posts body to path and returns the id that Location names.
func (a *app) create(token, path, body string) (id string) {
	a.t.Helper()
	ans := a.want(a.do("POST", "/api/v1"+path, token, body), 201, "")
	id, ok := strings.CutPrefix(ans.header.Get("Location"), "/api/v1"+path+"/")
	if !ok {
		a.t.Errorf("%s: Location is %q", ans.call, ans.header.Get("Location"))
	}
	return id
}

func (a *app) refresh(token string) answer {
	a.t.Helper()
	return a.do("POST", "/api/v1/auth/refresh", "", map[string]string{"refresh_token": token})
}

// accepts reports whether an access token is still accepted.
func (a *app) accepts(token string) bool {
	a.t.Helper()
	ans := a.do("GET", "/api/v1/users/me", token, nil)
	if ans.status != 200 && ans.code() != "invalid_token" {
		a.t.Errorf("GET /users/me = %d: %s", ans.status, ans.body)
	}
	return ans.status == 200
}

// sql runs a statement on the app's database, to put it into a state that time would.
func (a *app) sql(statement string, args ...any) {
	a.t.Helper()
	if _, err := a.store.pool.Exec(a.t.Context(), statement, args...); err != nil {
		a.t.Fatal(err)
	}
}

// occupy takes all units of a limiter, for as many clients as that needs, until the returned
// function is called.
func occupy(t testing.TB, l *limiter) (release func()) {
	t.Helper()
	l.timeout = min(l.timeout, acquireTimeout)
	var releases []func()
	for user := int64(-1); ; user-- {
		if used, _ := l.state(); used == l.total {
			return func() {
				for _, f := range releases {
					f()
				}
			}
		}
		f, err := l.acquire(t.Context(), clientKey{user: user}, 1)
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, f)
	}
}

// pairs is a JSON object in order: name, value, name, value.
type pairs []any

func (p pairs) MarshalJSON() ([]byte, error) {
	object := map[string]any{}
	for i := 0; i < len(p); i += 2 {
		object[p[i].(string)] = p[i+1]
	}
	return json.Marshal(object)
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

// latch runs the program itself, as a process, in dir.
func latch(t testing.TB, dir string, env []string, args ...string) *osexec.Cmd {
	t.Helper()
	cmd := osexec.Command(os.Args[0], args...)
	cmd.Dir = dir
	cmd.Env = append([]string{"LATCH_TEST_MAIN=1",
		"EMBEDDING_DIMENSIONS=" + strconv.Itoa(testDimensions), "PATH=" + os.Getenv("PATH"),
		"HOME=" + os.Getenv("HOME"), "TMPDIR=" + filepath.Dir(suite.Dir)}, env...)
	return cmd
}

// eventually waits until f is true, at most a minute: some tests start PostgreSQL on a busy
// machine.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("gave up waiting for %s", what)
}
