package main

// process_test.go runs the program itself: its commands, its start and end, and development mode.

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	osexec "os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"latch/internal/devdb"
)

// child is the program, running.
type child struct {
	t           testing.TB
	cmd         *osexec.Cmd
	out, stderr logBuffer
	done        chan struct{}
}

// start runs the program in a process group of its own, as a terminal does.
func start(t testing.TB, dir string, env []string, args ...string) *child {
	t.Helper()
	return startCommand(t, latch(t, dir, env, args...))
}

func startCommand(t testing.TB, cmd *osexec.Cmd) *child {
	t.Helper()
	c := &child{t: t, cmd: cmd, done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { c.cmd.Wait(); close(c.done) }()
	t.Cleanup(func() {
		c.cmd.Process.Kill()
		<-c.done
		keepLog(c.out.text(), c.stderr.text())
	})
	return c
}

// keepLog hands what a child logged to the suite's search for secrets: all of its standard error,
// and of its standard output the lines of the log, not the first screen and a generated password.
func keepLog(stdout, stderr string) {
	for line := range strings.Lines(stdout) {
		if line[0] == '{' || strings.HasPrefix(line, "time=") {
			io.WriteString(&suiteLog, line)
		}
	}
	ours := strings.NewReplacer( // the examples that messages give
		"postgresql://user:password@host", "…", "name@example.com", "…")
	ours.WriteString(&suiteLog, stderr)
}

// runLatch runs the program to its end, with input piped in.
func runLatch(
	t testing.TB, dir string, env []string, input string, args ...string,
) (exit int, stdout, stderr string) {
	t.Helper()
	var out, log bytes.Buffer
	cmd := latch(t, dir, env, args...)
	limit := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() }) // one that hangs fails
	defer limit.Stop()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &log
	err := cmd.Run()
	if _, failed := errors.AsType[*osexec.ExitError](err); err != nil && !failed {
		t.Fatal(err)
	}
	keepLog(out.String(), log.String())
	return cmd.ProcessState.ExitCode(), out.String(), log.String()
}

var servingLine = regexp.MustCompile(`"address":"([^"]+)"|address=(\S+)`)

// app waits until the child serves, and returns a client of it.
func (c *child) app() *app {
	c.t.Helper()
	var m []string
	eventually(c.t, "the child to serve", func() bool {
		select {
		case <-c.done:
			c.t.Fatalf("the child ended: %s%s", c.out.text(), c.stderr.text())
		default:
		}
		m = servingLine.FindStringSubmatch(c.out.text())
		return m != nil
	})
	return &app{t: c.t, web: &httptest.Server{URL: "http://" + m[1] + m[2]}}
}

// signal sends to the child's whole group, as Ctrl-C does.
func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := syscall.Kill(-c.cmd.Process.Pid, s); err != nil {
		c.t.Errorf("kill: %v", err)
	}
}

// exit waits for the child's end and returns its status, -1 when it was killed.
func (c *child) exit() int {
	c.t.Helper()
	eventually(c.t, "the child to end", func() bool {
		select {
		case <-c.done:
			return true
		default:
			return false
		}
	})
	return c.cmd.ProcessState.ExitCode()
}

// freePort is a port that nothing listened on a moment ago.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// production are the settings of a server on a database of its own, with as much log as there is.
func production(t testing.TB, from string, more ...string) []string {
	t.Helper()
	return append([]string{"DATABASE_URL=" + newDatabase(t, from), "SECRET_KEY=" + testKey,
		"PORT=" + strconv.Itoa(freePort(t)), "DEBUG=true", "DATABASE_ECHO=true"}, more...)
}

// halfRequest begins a login and holds back the end of its body, until finish sends it and returns
// the answer. The server has asked for the body: the request is under way.
func halfRequest(a *app, email string) (finish func() (*http.Response, error)) {
	a.t.Helper()
	body := url.Values{"username": {email}, "password": {goodPass}}.Encode()
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.web.URL, "http://"))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\n"+
		"Content-Type: application/x-www-form-urlencoded\r\nExpect: 100-continue\r\n"+
		"Content-Length: %d\r\n\r\n", len(body))
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, "100") {
		a.t.Fatalf("the server says %q, %v", line, err)
	}
	r.ReadString('\n')
	return func() (*http.Response, error) {
		io.WriteString(conn, body)
		return http.ReadResponse(r, nil)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	env, dir := production(t, "", "SHUTDOWN_DELAY=1"), t.TempDir()
	exit, _, stderr := runLatch(t, dir, env, "", "healthcheck")
	if exit != 1 || !strings.HasPrefix(stderr, "latch: ") {
		t.Errorf("latch healthcheck without a server exits with %d, want 1: %s", exit, stderr)
	}
	c := start(t, dir, env)
	a := c.app()
	if exit, _, stderr := runLatch(t, dir, env, "", "healthcheck"); exit != 0 || stderr != "" {
		t.Errorf("latch healthcheck exits with %d, want 0: %s", exit, stderr)
	}
	a.want(a.do("GET", "/api/v1/health/db", "", nil), 200, "")
	m := a.signUp("ada")
	a.want(a.refresh(m.RefreshToken), 200, "")
	a.want(a.tryLogin(m.Email, "a wrong canary"), 401, "invalid_credentials")
	exit, _, stderr = runLatch(t, dir, env, "")
	if exit != 1 || !matches(stderr, `^latch: port \d+ is in use[^\n]+\n$`) {
		t.Errorf("a second server on the port exits with %d, want 1: %s", exit, stderr)
	}
	finish := halfRequest(a, m.Email)
	c.signal(syscall.SIGTERM)
	eventually(t, "the port to be closed", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(a.web.URL, "http://"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if res, err := finish(); err != nil || res.StatusCode != 200 {
		t.Errorf("a request under way at the signal gives %v, %v, want 200", res, err)
	}
	if exit := c.exit(); exit != 0 || c.stderr.text() != "" {
		t.Errorf("exit %d, want 0: %s", exit, c.stderr.text())
	}
	for _, event := range []string{`"msg":"migrated"`, `"msg":"serving"`, `"msg":"sql"`,
		`"msg":"login_ok"`, `"msg":"draining"`, `"msg":"stopped"`,
		`"version":"` + version + `","commit":"unknown"`} {
		if !strings.Contains(c.out.text(), event) {
			t.Errorf("the log has no %s:\n%s", event, c.out.text())
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("with DATABASE_URL latch left %v", entries)
	}
}

// TestListen: a port that is set, wherever, is the port or an error, in development too.
func TestListen(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := strconv.Itoa(taken.Addr().(*net.TCPAddr).Port)
	file := filepath.Join(t.TempDir(), "port")
	if err := os.WriteFile(file, []byte(port+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ variable, value, dotenv string }{{"PORT", port, ""},
		{"PORT_FILE", file, ""}, {"", "", "PORT=" + port}, {"", "", "PORT_FILE=" + file}} {
		cfg, err := loadFrom(map[string]string{row.variable: row.value}, row.dotenv)
		if err != nil {
			t.Fatal(err)
		}
		l, err := listen(cfg, true)
		if err == nil || !strings.HasPrefix(err.Error(), "port "+port+" is in use") {
			t.Errorf("listen with %+v = %v, %v", row, l, err)
		}
	}
	for range 2 { // side by side
		l, err := listen(&config{Host: "127.0.0.1"}, true)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if port := l.Addr().(*net.TCPAddr).Port; port < 8000 || port > 8009 {
			t.Errorf("listen without PORT takes %d, want 8000, or one of the next nine", port)
		}
	}
}

// TestDrainAndSecondSignal: readiness fails first while all else is served; a second signal waits
// for nothing.
func TestDrainAndSecondSignal(t *testing.T) {
	t.Parallel()
	c := start(t, t.TempDir(), production(t, template, "SHUTDOWN_DELAY=300"))
	a := c.app()
	m := a.signUp("ada")
	finish := halfRequest(a, m.Email)
	c.signal(syscall.SIGTERM)
	eventually(t, "readiness to fail", func() bool {
		return a.do("GET", "/api/v1/health/db", "", nil).code() == "shutting_down"
	})
	a.want(a.do("GET", "/api/v1/health", "", nil), 200, "")
	a.want(a.tryLogin(m.Email, goodPass), 200, "")
	c.signal(syscall.SIGTERM)
	if exit := c.exit(); exit != 1 || !strings.Contains(c.stderr.text(), "requests in progress") {
		t.Errorf("exit %d, want 1: %s", exit, c.stderr.text())
	}
	if res, err := finish(); err == nil {
		t.Errorf("the request under way gives %d, want a cut connection", res.StatusCode)
	}
}

// inShell makes cmd a shell's, which runs script first.
func inShell(cmd *osexec.Cmd, script string) *osexec.Cmd {
	args := append([]string{"-c", script + `; exec "$@"`, "sh"}, cmd.Args...)
	shell := osexec.Command("sh", args...)
	shell.Dir, shell.Env, shell.ExtraFiles = cmd.Dir, cmd.Env, cmd.ExtraFiles
	return shell
}

// TestHangup: a closed terminal, which sends SIGHUP twice, drains; under nohup it means nothing.
func TestHangup(t *testing.T) {
	t.Parallel()
	if signal.Ignored(syscall.SIGHUP) { // by nohup: a child inherits that, but no handler
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	c := start(t, t.TempDir(), production(t, template))
	a := c.app()
	m := a.signUp("ada")
	finish := halfRequest(a, m.Email)
	c.signal(syscall.SIGHUP)
	eventually(t, "draining", func() bool { return strings.Contains(c.out.text(), "draining") })
	c.signal(syscall.SIGHUP)
	if res, err := finish(); err != nil || res.StatusCode != 200 {
		t.Errorf("a request under way at SIGHUP gives %v, %v, want 200", res, err)
	}
	if exit := c.exit(); exit != 0 || !strings.Contains(c.out.text(), `"msg":"stopped"`) {
		t.Errorf("exit %d after SIGHUP, want 0 and a drain: %s", exit, c.out.text())
	}

	c = startCommand(t, inShell(latch(t, t.TempDir(), production(t, template)), `trap "" HUP`))
	a = c.app()
	c.signal(syscall.SIGHUP)
	c.signal(syscall.SIGHUP)
	a.want(a.do("GET", "/api/v1/health/db", "", nil), 200, "")
	c.signal(syscall.SIGTERM)
	if exit := c.exit(); exit != 0 {
		t.Errorf("exit %d after SIGTERM, want 0", exit)
	}
}

// TestUnit: systemd understands each line of the unit, and rates the service as little exposed. It
// waits for the longest drain, as Compose does.
func TestUnit(t *testing.T) {
	t.Parallel()
	unit, err := os.ReadFile("deploy/latch.service")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "latch.service") // with a program that exists
	unit = bytes.Replace(unit, []byte("=/usr/local/bin/latch\n"), []byte("=/bin/true\n"), 1)
	if err := os.WriteFile(file, unit, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, delay := range map[string]float64{"latch.service": 10, "../compose.yaml": 10,
		"compose.yaml": 20} {
		text, err := os.ReadFile("deploy/" + file)
		wait := fmt.Sprintf(`(TimeoutStopSec=|stop_grace_period: )%vs?\b`,
			drainTimeout.Seconds()+delay)
		if err != nil || !matches(string(text), wait) {
			t.Errorf("%s does not wait %v and %v s (%v)", file, drainTimeout, delay, err)
		}
	}
	out := runTool(t, "systemd-analyze", "", "verify", "--man=no", file)
	if strings.Contains(out, "latch.service") { // other lines are about the machine's own units
		t.Errorf("systemd-analyze verify: %s", out)
	}
	runTool(t, "systemd-analyze", "", "security", "--offline=yes", "--threshold=15", file)
}

// TestUnreadableDotEnv: in a directory that may not be entered there is no .env; one that is there
// and may not be read is an error.
func TestUnreadableDotEnv(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]string{
		"chmod 0 .":    `^latch: Get "http://127.0.0.1:\d+/api/v1/health": [^\n]+refused\n$`,
		"chmod 0 .env": `^latch: \.env cannot be read: [^\n]+ permission denied\n$`,
	} {
		dir := t.TempDir()
		err := os.WriteFile(filepath.Join(dir, ".env"), []byte("PORT=canary"), 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(dir, 0o700) })
		env := []string{"PORT=" + strconv.Itoa(freePort(t))}
		cmd := latch(t, dir, env, "healthcheck")
		if os.Geteuid() == 0 { // who may read all; nobody may not enter the program's directory
			program, err := os.Open(cmd.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			cmd.ExtraFiles = []*os.File{program}
			cmd.Args = []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
				"/proc/self/fd/3", "healthcheck"}
		}
		out, _ := inShell(cmd, script).CombinedOutput()
		if !matches(string(out), want) {
			t.Errorf("after %s, latch healthcheck prints %s, want %s", script, out, want)
		}
	}
}

// TestIndexCommand builds, lists and drops an index, and tries all that is refused.
func TestIndexCommand(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m, poor := a.signUp("ada"), a.signUp("bob")
	a.fill(m.ID, 60)
	index := func(want int, args ...string) string {
		t.Helper()
		env := []string{"DATABASE_URL=" + a.url, "SECRET_KEY=" + testKey, "EMBEDDING_DIMENSIONS=3"}
		args = append([]string{"index"}, args...)
		exit, stdout, stderr := runLatch(t, t.TempDir(), env, "", args...)
		if exit != want {
			t.Errorf("latch %v exits with %d: %s%s", args, exit, stdout, stderr)
		}
		return stdout + stderr
	}
	for _, args := range [][]string{{}, {"-drop"}, {"-list", m.Email}, {"ada"}, {"-x", m.Email}} {
		index(2, args...)
	}
	for email, want := range map[string]string{
		"eve@example.com": "no account has this e-mail address",
		poor.Email:        "the account has no documents",
	} {
		if out := index(1, email); !strings.Contains(out, want) {
			t.Errorf("latch index %s prints %s, want %s", email, out, want)
		}
	}
	a.sql(`UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'`)
	if out := index(1, m.Email); !strings.Contains(out, "needs pgvector 0.8 or later") {
		t.Errorf("with pgvector 0.7 it prints %s", out)
	}
	a.sql(`UPDATE pg_extension SET extversion = '0.8.0' WHERE extname = 'vector'`)
	out := index(0, m.Email)
	if !matches(out, `(?s)^Building documents_hnsw_\d+ for 60 documents, .*\n        0     1.0000 `+
		`.*\n       40     [01]\..*\nSearches of ada@example.com use it with ef_search \d+\.\n$`) {
		t.Errorf("latch index prints %s", out)
	}
	if out := index(0, "-list"); !matches(out, `^owner .*\nada@example.com +60 +0 +\d+ .* ago\n$`) {
		t.Errorf("latch index -list prints %s", out)
	}
	index(0, "-drop", m.Email)
	index(0, "-drop", m.Email)
	if out := index(0, "-list"); strings.Count(out, "\n") != 1 {
		t.Errorf("after -drop, latch index -list prints %s", out)
	}
	role := fmt.Sprintf("stranger%d", dbCount.Add(1)) // for -count=2
	a.sql(`CREATE ROLE ` + role + ` LOGIN`)
	a.sql(`GRANT ALL ON ALL TABLES IN SCHEMA public TO ` + role)
	a.url = strings.Replace(a.url, "postgres@", role+"@", 1)
	if out := index(1, m.Email); !strings.Contains(out, "must own the table documents") {
		t.Errorf("as another role it prints %s", out)
	}
}

// TestIndexBehindPgBouncer: one that refuses a parameter of the start, as PgBouncer does, is told.
func TestIndexBehindPgBouncer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 4096))
			fields := "SFATAL\x00C08P01\x00Munsupported startup parameter\x00\x00"
			fmt.Fprintf(conn, "E\x00\x00\x00%c%s", len(fields)+4, fields)
			conn.Close()
		}
	}()
	err = buildIndex(t.Context(), "postgresql://u@"+l.Addr().String()+"/x?sslmode=disable", 1, 0)
	if err == nil || !strings.HasSuffix(err.Error(), "not to PgBouncer") {
		t.Errorf("buildIndex behind PgBouncer = %v", err)
	}
}

// TestIndexInterrupted kills and cancels builds that wait for a transaction. After both, and where
// there are two at once, the index is built.
func TestIndexInterrupted(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	a.fill(m.ID, 60)
	env := []string{"DATABASE_URL=" + a.url, "SECRET_KEY=" + testKey, "EMBEDDING_DIMENSIONS=3"}
	state := func() string { // statements that wait for the transaction, and the state of the index
		return one[string](t, a.url, `SELECT concat_ws(', ',
			(SELECT string_agg(split_part(query, ' ', 1), ', ') FROM pg_stat_activity
			 WHERE datname = current_database() AND wait_event_type = 'Lock'),
			(SELECT 'valid ' || indisvalid FROM pg_index
			 WHERE indexrelid = to_regclass('`+indexName(m.ID)+`')))`)
	}
	until := func(want string) {
		t.Helper()
		eventually(t, want, func() bool { return state() == want })
	}
	writer, err := pgx.Connect(t.Context(), a.url)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close(t.Context())
	lock := func(sql string) {
		if _, err := writer.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	lock(`BEGIN; DELETE FROM documents WHERE id = 0`) // the build waits for its end
	build := func() *child { return start(t, t.TempDir(), env, "index", m.Email) }
	c := build()
	until("CREATE, valid false")
	text, err := a.store.indexProgress(t.Context(), m.ID)
	if err != nil || !strings.HasPrefix(text, "waiting for writers") {
		t.Errorf("progress is %q, %v", text, err)
	}
	c.signal(syscall.SIGTERM)
	if exit := c.exit(); exit != 1 || state() != "valid false" {
		t.Errorf("after SIGTERM: exit %d, %s: %s", exit, state(), c.stderr.text())
	}
	lock(`COMMIT`)
	if c = build(); c.exit() != 0 || state() != "valid true" {
		t.Errorf("after a cancelled build: %s, %s", state(), c.stderr.text())
	}
	if err := a.store.dropIndex(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	lock(`BEGIN; DELETE FROM documents WHERE id = 0`)
	c = build()
	until("CREATE, valid false")
	c.signal(syscall.SIGKILL)
	c.exit()
	again, other := build(), build()
	if !a.searchExact(m) {
		t.Error("a search uses an index that is not built")
	}
	lock(`COMMIT`)
	for _, c := range []*child{again, other} {
		if exit := c.exit(); exit != 0 {
			t.Errorf("after a kill: exit %d: %s", exit, c.stderr.text())
		}
	}
	if state() != "valid true" || a.searchExact(m) {
		t.Errorf("in the end: %s", state())
	}
}

func TestAdminCommand(t *testing.T) {
	t.Parallel()
	env, dir := production(t, template), t.TempDir()
	a := newAppOn(t, strings.TrimPrefix(env[0], "DATABASE_URL="), cheap)
	m := a.signUp("carl")
	a.sql(`UPDATE users SET is_active = false WHERE id = $1`, m.ID)
	admin := func(email, input string) (stdout string) {
		exit, stdout, stderr := runLatch(t, dir, env, input, "admin", email)
		if exit != 0 || stderr != "" {
			t.Errorf("latch admin %s exits with %d: %s", email, exit, stderr)
		}
		return stdout
	}
	may := func(email, password string) {
		t.Helper()
		a.want(a.do("GET", "/api/v1/users", a.login(email, password).AccessToken, nil), 200, "")
	}
	line := regexp.MustCompile(`(?m)^ada@example\.com is a new admin\.\nPassword: (\S{20,})$`)
	generated := line.FindStringSubmatch(admin("Ada@Example.com", ""))
	if generated == nil {
		t.Fatal("latch admin prints no password")
	}
	may("ada@example.com", generated[1])
	for email, end := range map[string]string{
		"bob@example.com": "\r\n", "eve@example.com": "", "dan@example.com": "\nmore"} {
		out := admin(email, goodPass+end)
		if !strings.Contains(out, email+" is a new admin.\n") ||
			strings.Contains(out, "Password") || strings.Contains(out, goodPass) {
			t.Errorf("latch admin %s prints %s", email, out)
		}
		may(email, goodPass)
	}
	out := admin(" new@example.com\t", "")
	if !strings.Contains(out, `"level":"AUDIT","msg":"user_created"`) {
		t.Errorf("the log of latch admin lacks user_created: %s", out)
	}
	out = admin("CARL@example.com", "another canary passphrase")
	for _, event := range []string{"role_changed", "reactivated"} {
		if !strings.Contains(out, `"level":"AUDIT","msg":"`+event+`"`) {
			t.Errorf("the log of latch admin lacks %s: %s", event, out)
		}
	}
	undo := fmt.Sprintf("It was a deactivated account that exists since %s; its password is known "+
		"to whoever registered it.\nTo undo this, another admin sends PUT /users/%d with "+
		`{"is_admin":false,"is_active":false}.`+"\n", m.CreatedAt.Format(time.RFC3339), m.ID)
	const done = "carl@example.com is an active admin; the password is unchanged.\n"
	if !strings.HasSuffix(out, done+undo) {
		t.Errorf("latch admin of an account prints %s", out)
	}
	may(m.Email, goodPass)
	const length = "the password must have 8 characters to 1024 bytes of UTF-8, without U+0000"
	for _, row := range []struct{ email, input, stderr string }{
		{"f@example.com", "password1\n",
			"the password is one of the most common passwords; choose another"},
		{"f@example.com", "canary7\n", length},
		{"f@example.com", strings.Repeat("canary.", 150) + "\n", length},
		{"f@example.com", "F@example.com\n",
			"the password must not be the e-mail address or its first part"},
	} {
		exit, stdout, stderr := runLatch(t, dir, env, row.input, "admin", row.email)
		if exit != 1 || stderr != "latch: "+row.stderr+"\n" {
			t.Errorf("latch admin %s with %.20q exits with %d, want 1 and %q: %s%s", row.email,
				row.input, exit, row.stderr, stdout, stderr)
		}
	}
	if got := one[int](t, a.url, `SELECT count(*) FROM users`); got != 6 {
		t.Errorf("%d accounts, want 6", got)
	}
}

// checkout is an empty directory to run development mode in. Its PostgreSQL is stopped at the end.
func checkout(t testing.TB) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "latch-dev-")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir) // as the child sees it
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch(&devdb.DB{Dir: filepath.Join(dir, ".data")}, dir))
	return dir
}

// postmaster is the process of the PostgreSQL of a checkout, 0 where there is none.
func postmaster(dir string) (pid int) {
	text, _ := os.ReadFile(filepath.Join(dir, ".data/postgres/postmaster.pid"))
	line, _, _ := strings.Cut(string(text), "\n")
	pid, _ = strconv.Atoi(line)
	return pid
}

// running reports whether pid is a process that has not ended. A zombie has no command line.
func running(pid int) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return pid > 0 && syscall.Kill(pid, 0) == nil && (err != nil || len(cmdline) > 0)
}

// TestDevelopment is a developer's day: start, stop, start again, and all that can be killed in
// between.
func TestDevelopment(t *testing.T) {
	t.Parallel()
	if devdb.FindPostgres("") == "" {
		t.Skip("looks at the processes of a local PostgreSQL")
	}
	dir, other := checkout(t), checkout(t)
	if l, err := net.Listen("tcp", "127.0.0.1:8000"); err == nil { // else it is taken already
		defer l.Close()
	}
	c, beside := start(t, dir, nil), start(t, other, nil)
	a, b := c.app(), beside.app()
	if a.web.URL == b.web.URL {
		t.Errorf("two checkouts both serve at %s", a.web.URL)
	}
	for _, c := range []*child{c, beside} {
		root := c.app().web.URL
		want := "\n  PORT 8000 IS TAKEN: THIS SERVER IS ON PORT " + root[len(root)-4:] +
			". For the examples of the README:\n\napi=" + root + "/api/v1\n"
		if !strings.Contains(c.out.text(), want) {
			t.Errorf("the first screen has no %q:\n%s", want, c.out.text())
		}
	}
	for _, line := range []string{"Latch " + version + ", development",
		"API    " + a.web.URL + "/api/v1", "Docs   " + a.web.URL + "/docs",
		"Data   " + dir + "/.data/postgres", "Admin  go run . admin you@example.com "} {
		if !strings.Contains(c.out.text(), "\n  "+line) {
			t.Errorf("the first screen has no %q:\n%s", line, c.out.text())
		}
	}
	u := "postgresql://postgres@/postgres?host=" + url.QueryEscape(dir+"/.data/postgres")
	if got := one[string](t, u, `SHOW listen_addresses`); got != "" {
		t.Errorf("the private PostgreSQL listens on %s", got)
	}
	for name, want := range map[string]os.FileMode{
		".data/secret_key": 0o600, ".data/postgres": 0o700 | os.ModeDir} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%s has %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	exit, out, stderr := runLatch(t, dir, nil, goodPass+"\n", "admin", "root@example.com")
	if exit != 0 || !strings.Contains(out, "is a new admin") {
		t.Errorf("latch admin beside the server exits with %d: %s%s", exit, out, stderr)
	}
	exit, out, stderr = runLatch(t, dir, nil, "SELECT 'an ' || email FROM users;", "psql")
	if exit != 0 || !strings.Contains(out, "an root@example.com") {
		t.Errorf("latch psql exits with %d: %s%s", exit, out, stderr)
	}
	token := a.login("root@example.com", goodPass)
	a.want(a.do("GET", "/api/v1/users", token.AccessToken, nil), 200, "")
	b.want(b.tryLogin("root@example.com", goodPass), 401, "invalid_credentials")
	b.want(b.do("GET", "/api/v1/users/me", token.AccessToken, nil), 401, "invalid_token")

	stop := func(c *child, dir string) {
		t.Helper()
		pid := postmaster(dir)
		if !running(pid) {
			t.Errorf("no PostgreSQL runs in %s", dir)
		}
		c.signal(syscall.SIGINT)
		if exit := c.exit(); exit != 0 || c.stderr.text() != "" {
			t.Errorf("exit %d after Ctrl-C, want 0: %s", exit, c.stderr.text())
		}
		gone := func() bool { return !running(pid) && postmaster(dir) == 0 }
		eventually(t, "PostgreSQL to be gone", gone)
	}
	stop(beside, other)
	stop(c, dir)

	c = start(t, dir, nil)
	a = c.app()
	a.login("root@example.com", goodPass)
	a.want(a.do("GET", "/api/v1/users", token.AccessToken, nil), 200, "") // the secret was kept

	pid := postmaster(dir)
	c.signal(syscall.SIGKILL)
	c.exit()
	if c = start(t, dir, nil); !running(pid) {
		t.Error("PostgreSQL died with latch")
	}
	c.app().login("root@example.com", goodPass)
	if got := postmaster(dir); got != pid {
		t.Errorf("PostgreSQL is process %d, and %d was running", got, pid)
	}

	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	a = c.app()
	eventually(t, "latch to notice", func() bool {
		return a.do("GET", "/api/v1/health/db", "", nil).status == 503
	})
	a.want(a.do("GET", "/api/v1/health", "", nil), 200, "")
	a.want(a.tryLogin("root@example.com", goodPass), 503, "database_unavailable")
	c.signal(syscall.SIGINT)
	c.exit()
	c = start(t, dir, nil)
	c.app().login("root@example.com", goodPass)
	stop(c, dir)
}

// TestReportPanic: a wrong row ends the start by its sentence; a bug goes on with its stack.
func TestReportPanic(t *testing.T) {
	t.Parallel()
	end := func(cause any) (code int) {
		defer reportPanic(&code)
		panic(cause)
	}
	if got := end("TestReportPanic prints this, and nothing is wrong."); got != 1 {
		t.Errorf("a wrong row ends with %d, want 1", got)
	}
	defer func() {
		if recover() == nil {
			t.Error("a bug is no panic any more")
		}
	}()
	end(errors.New("a bug"))
}

// scriptDir returns an empty directory with a script of internal/devdb, and a .data/.
func scriptDir(t *testing.T, script string) (dir string) {
	t.Helper()
	text, err := os.ReadFile(script)
	dir = t.TempDir()
	err = errors.Join(err, os.MkdirAll(filepath.Join(dir, "internal/devdb"), 0o755),
		os.MkdirAll(filepath.Join(dir, ".data/postgres"), 0o755),
		os.WriteFile(filepath.Join(dir, script), text, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestReset deletes .data/ where the answer is yes, and no database runs.
func TestReset(t *testing.T) {
	t.Parallel()
	const script = "internal/devdb/reset.sh"
	dir := scriptDir(t, script)
	for _, row := range []struct {
		answer, running, says string
		kept                  bool
	}{
		{"", "", "Kept.", true}, {"\n", "", "Kept.", true}, {"no\n", "", "Kept.", true},
		{"y\n", strconv.Itoa(os.Getpid()), "The database is running", true},
		{"y\n", "99999999", "Deleted.", false}, {"y\n", "", "nothing to delete", false},
	} {
		pid := filepath.Join(dir, ".data/postgres/postmaster.pid")
		if os.Remove(pid); row.running != "" {
			os.WriteFile(pid, []byte(row.running+"\n"), 0o600)
		}
		cmd := osexec.Command(filepath.Join(dir, script))
		cmd.Stdin = strings.NewReader(row.answer)
		out, _ := cmd.CombinedOutput()
		_, err := os.Stat(filepath.Join(dir, ".data"))
		if (err == nil) != row.kept || !strings.Contains(string(out), row.says) {
			t.Errorf("reset with %q and process %q: %v, %s", row.answer, row.running, err, out)
		}
	}
}

// TestWatch changes a source, with a go that builds a shell script: the old program ends before the
// new one starts, goes on where the new one does not build, and Ctrl-C ends all.
func TestWatch(t *testing.T) {
	t.Parallel()
	const script = "internal/devdb/watch.sh"
	dir := scriptDir(t, script)
	write := func(name, text string) {
		t.Helper()
		time.Sleep(20 * time.Millisecond) // the times of files may count in steps of 4 or 10 ms
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("go", "#!/bin/sh\ngrep error main.go && exit 1; cp main.go $3")
	program := func(name string) {
		write("main.go", "#!/bin/sh\ntrap 'echo "+name+" ends; exit' INT TERM\n"+
			"echo "+name+" starts\nwhile :; do sleep .1; done")
	}
	program("one")
	cmd := osexec.Command(filepath.Join(dir, script), "program")
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	c := startCommand(t, cmd)
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // the program too
	says := func(want string) {
		t.Helper()
		eventually(t, want, func() bool { return strings.HasSuffix(c.out.text(), want+"\n") })
	}
	says("one starts")
	write("main.go", "error")
	says("A source has changed.\nerror")
	program("two")
	says("A source has changed.\none ends\ntwo starts")
	os.RemoveAll(filepath.Join(dir, ".data")) // as make reset-dev does
	says("A source has changed.\ntwo ends\ntwo starts")
	c.signal(syscall.SIGINT)
	if exit := c.exit(); exit != 0 || !strings.HasSuffix(c.out.text(), "two ends\n") {
		t.Errorf("exit %d after Ctrl-C:\n%s%s", exit, c.out.text(), c.stderr.text())
	}
}

// product is a copy of the sources, of which a product is made.
type product struct {
	t   *testing.T
	dir string
}

// copySources copies what Git has or would add.
func copySources(t *testing.T) *product {
	p := &product{t, t.TempDir()}
	list, err := osexec.Command("git", "ls-files", "-co", "--exclude-standard").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.Lines(string(list)) {
		name = strings.TrimSuffix(name, "\n")
		text, err := os.ReadFile(name)
		if err != nil {
			continue // deleted, and not yet committed
		}
		info, _ := os.Stat(name)
		to := filepath.Join(p.dir, name)
		err = errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, text, info.Mode()))
		if err != nil {
			t.Fatal(err)
		}
	}
	p.run(true, "git", "init", "-q")
	return p
}

// run runs a command in the copy, and returns its output.
func (p *product) run(ok bool, name string, args ...string) string {
	p.t.Helper()
	cmd := osexec.Command(name, args...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=auto")
	out, err := cmd.CombinedOutput()
	if ok != (err == nil) {
		p.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// form returns what the check of the form says, which may be of a product's own files.
func (p *product) form() string {
	cmd := osexec.Command("make", "-s", "form")
	cmd.Dir = p.dir
	out, _ := cmd.CombinedOutput()
	return string(out)
}

// files returns the texts of the copy by name.
func (p *product) files() map[string]string {
	all := map[string]string{}
	for name := range strings.Lines(p.run(true, "git", "ls-files", "-co", "--exclude-standard")) {
		name = strings.TrimSuffix(name, "\n")
		text, err := os.ReadFile(filepath.Join(p.dir, name))
		if err != nil {
			p.t.Fatal(err)
		}
		all[name] = string(text)
	}
	return all
}

// apply does what the steps of a page say: New file `x`, At the end of `x`, In `x`, below `y`.
func (p *product) apply(page string) {
	p.t.Helper()
	steps := regexp.MustCompile("(?ms)^(New file|At the end of|In) `([^`\n]+)`"+
		"(?:, below `([^`\n]+)`)?:\n\n```\\w+\n(.*?)^```$").FindAllStringSubmatch(page, -1)
	blocks := regexp.MustCompile("(?m)^```(go|sql|json)$").FindAllString(page, -1)
	if len(steps) < 7 || len(steps) != len(blocks) {
		p.t.Fatalf("of %d blocks of the page, %d say where they belong", len(blocks), len(steps))
	}
	for _, m := range steps {
		file, block := filepath.Join(p.dir, m[2]), m[4]
		old, err := os.ReadFile(file)
		if (err != nil) != (m[1] == "New file") {
			p.t.Fatalf("%s %s: %v", m[1], m[2], err)
		}
		text := string(old)
		next := fmt.Sprint("-- migration ", strings.Count(text, "\n-- migration ")+1, ":")
		block = strings.Replace(block, "-- migration N:", next, 1)
		before, after := text, ""
		if m[3] != "" {
			if strings.Count(text, m[3]) != 1 {
				p.t.Fatalf("%s has %d lines with %s", m[2], strings.Count(text, m[3]), m[3])
			}
			at := strings.Index(text, m[3])
			at += strings.Index(text[at:], "\n") + 1
			before, after = text[:at], text[at:]
		}
		if err := os.WriteFile(file, []byte(before+block+after), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
}

// unnamed are the files that a rename leaves as they are.
var unnamed = regexp.MustCompile(`^(passwords\.txt|go\.sum|schema\.sql|test/judged/.*)$`)

// TestRename gives a copy of the sources names that are refused, one of the greatest length, the
// old one again, which gives back each byte, and the one of the page.
func TestRename(t *testing.T) {
	t.Parallel()
	p := copySources(t)
	original, form := p.files(), p.form()
	_, old, _ := strings.Cut(strings.SplitN(original["go.mod"], "\n", 2)[0], " ")
	for name, why := range map[string]string{
		"": "Say the name", "Upper": "lower-case", "my-name": "lower-case", "2name": "lower-case",
		"ab": "lower-case", "name\nx": "lower-case", "$(id)": "lower-case", "a/b": "lower-case",
		"na me": "lower-case", "' ; id": "lower-case", strings.Repeat("q", 21): "lower-case",
		old + "s": "not contain", "ocumen": "sources contain ocumen",
		"ven" + "dor": "word of Go", "fall" + "through": "word of Go",
	} {
		out := p.run(false, "docs/rename.sh", name)
		if !strings.Contains(out, why) || strings.Contains(out, "uid=") {
			t.Errorf("rename to %q says %s", name, out)
		}
	}
	if !maps.Equal(p.files(), original) {
		t.Fatal("a refusal has changed the sources")
	}
	name := strings.Repeat("q", 20)
	p.run(true, "make", "-s", "rename", "NAME="+name)
	renamed := p.files()
	for file, text := range renamed {
		if strings.Contains(file, old) {
			t.Errorf("%s keeps its name", file)
		}
		if unnamed.MatchString(file) {
			if text != original[file] {
				t.Errorf("%s is another after a rename", file)
			}
			continue
		}
		for line := range strings.Lines(strings.ToLower(text)) {
			if strings.Contains(line, old) && !strings.Contains(line, "never renamed") {
				t.Errorf("%s keeps the name: %s", file, line)
			}
		}
	}
	if !slices.Equal(parseMigrations(renamed["schema.sql"]), parseMigrations(schemaSQL)) {
		t.Error("databases that exist refuse the renamed schema: its checksums are others")
	}
	if got := p.form(); got != form {
		t.Errorf("the check of the form says %s, and said %s", got, form)
	}
	p.run(true, "make", "-s", "rename", "NAME="+name)
	if !maps.Equal(p.files(), renamed) {
		t.Error("a second run changes something")
	}
	p.run(true, "make", "-s", "rename", "NAME="+old)
	back := p.files()
	for file, text := range original {
		if text != back[file] {
			t.Errorf("%s is another after a rename there and back", file)
		}
	}
	documented := submatches(`make rename NAME=(\w+)`, original["docs/your-product.md"])
	p.run(true, "make", "-s", "rename", "NAME="+documented[0])
	if got := p.form(); got != form {
		t.Errorf("the check of the form says %s, and said %s", got, form)
	}
}

// TestProduct renames a copy of the sources, gives it a README of its own, and adds the entity of
// docs/entity.md as a reader would. What comes out is formatted and passes its tests.
func TestProduct(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/entity.md")
	if _, has := os.Stat("projects.go"); err != nil || has == nil {
		t.Skip("there is no docs/entity.md, or its entity is here already")
	}
	p := copySources(t)
	p.run(true, "docs/rename.sh", "q"+"xz") // of the least length
	err = os.WriteFile(filepath.Join(p.dir, "README.md"), []byte("# Our own\n"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	form := p.form()
	p.apply(string(page))
	if got := p.form(); got != form {
		t.Errorf("the check of the form says %s, and said %s", got, form)
	}
	p.run(true, "nice", "go", "vet", ".") // compiling must not slow down the other tests
	p.run(true, "nice", "go", "test", "-c", "-o", "product.test", ".")
	out := p.run(true, filepath.Join(p.dir, "product.test"), "-test.v", "-test.run",
		"^Test(Projects|Access|Document|FieldTexts|ClientRules|Readme|SettingsNamed|Operations|"+
			"ChangingTheEmbeddings|Metrics|PasswordChoice|Defaults|AccessTokenForOthers|"+
			"MigrateAtOnce)$")
	for _, test := range []string{"Projects", "Access", "Document", "Operations"} {
		if !strings.Contains(out, "--- PASS: Test"+test+" ") {
			t.Errorf("Test%s did not run:\n%s", test, out)
		}
	}
}

func TestDevelopmentPathTooLong(t *testing.T) {
	t.Parallel()
	if devdb.FindPostgres("") == "" {
		t.Skip("Docker's image has no socket here")
	}
	_, err := devdb.Start(filepath.Join(t.TempDir(), strings.Repeat("x", 100)))
	if err == nil || !strings.Contains(err.Error(), "too long for PostgreSQL's socket") {
		t.Errorf("Start on a long path = %v", err)
	}
}

// TestWindows: a build for Windows stops with a sentence.
func TestWindows(t *testing.T) {
	t.Parallel()
	list := osexec.Command("go", "list", "-f", "{{.SFiles}}", "./internal/devdb")
	list.Env = append(os.Environ(), "GOOS=windows")
	file := "internal/devdb/unsupported_windows.s"
	out, err := list.CombinedOutput()
	if string(out) != "["+filepath.Base(file)+"]\n" || err != nil {
		t.Errorf("for Windows go list gives %s, %v", out, err)
	}
	out, err = osexec.Command("go", "tool", "asm", "-o", t.TempDir()+"/x", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not run on Windows: use WSL or Docker") {
		t.Errorf("the build gives %s, %v", out, err)
	}
}
