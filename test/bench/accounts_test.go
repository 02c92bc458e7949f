//go:build bench

package bench

// accounts_test.go has the rows of the program at rest, and of accounts and sessions.

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/crypto/argon2"
)

// tokenUsers is how many accounts take turns in a row.
const tokenUsers = 10_000

// What rows compare with.
const (
	leastHandler = "the least handler"
	sameSQL      = "`pgbench -M prepared`, same SQL"
)

// measureSizes measures the program at rest.
func (b *bench) measureSizes() {
	empty := filepath.Join(b.TempDir(), "empty.go")
	source := []byte("package main\n\nfunc main() {}\n")
	if err := os.WriteFile(empty, source, 0o600); err != nil {
		b.Fatal(err)
	}
	emptyBinary := b.build("empty", empty)
	var starts, emptyRuns []float64
	for range 2**rounds + 1 {
		p := b.launch(b.binary, b.env(b.url))
		p.stop()
		starts = append(starts, p.started)
		begin := time.Now()
		if err := exec.Command(emptyBinary).Run(); err != nil {
			b.Fatal(err)
		}
		emptyRuns = append(emptyRuns, milliseconds(time.Since(begin)))
	}
	start, run := median(starts), median(emptyRuns)
	b.add(row{
		name: "process start to first 200", here: fmt.Sprintf("%.1f ms", start),
		beside: "an empty Go program, start to end", there: fmt.Sprintf("%.1f ms", run),
		goal: "≤ 100 ms beyond", reached: start-run <= 100,
	})
	b.measureFiles()
	p := b.launch(b.binary, b.env(b.url)) // b.app has computed hashes
	defer p.stop()
	time.Sleep(2 * time.Second)
	b.addMB("RSS idle", p.memory(b.T, "VmRSS:"), 20)
}

// measureFiles measures the binary and the image.
func (b *bench) measureFiles() {
	info, err := os.Stat(b.binary)
	if err != nil {
		b.Fatal(err)
	}
	binary := float64(info.Size()) / 1e6
	b.addMB("binary", binary, 13)
	image, err := imageSize()
	if err != nil {
		b.add(row{name: "image", here: "not measured: docker: " + err.Error()})
		return
	}
	b.addMB("image", image/1e6, 15)
}

// addMB adds a row of a size that has a limit.
func (b *bench) addMB(name string, mb, limit float64) {
	b.add(row{
		name: name, here: fmt.Sprintf("%.1f MB", mb),
		goal: fmt.Sprintf("≤ %.0f MB", limit), reached: mb <= limit,
	})
}

// imageSize builds the image and returns its size in bytes.
func imageSize() (float64, error) {
	id, err := exec.Command("docker", "build", "-q", root).Output()
	if err != nil {
		return 0, err
	}
	image := strings.TrimSpace(string(id))
	size, err := exec.Command("docker", "image", "inspect", "-f", "{{.Size}}", image).Output()
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(size)), 64)
}

// measureHealth measures the whole chain of a request without the database.
func (b *bench) measureHealth() {
	file := requests(b.T, 1, func(int) string { return line("GET", "/health", "", "") })
	r := b.alternate(
		func(d time.Duration) load { return wrk(b.T, b.app, file, 32, d) },
		func(d time.Duration) load { return wrk(b.T, b.ref, file, 32, d) })
	b.addRates("`GET /health`, 32 clients", r[0],
		"net/http that writes the same bytes", r[1], "")
}

// tokenFile is wrk's file of one request for each of n accounts.
func (b *bench) tokenFile(method, path, body string, first int64, n int) string {
	return requests(b.T, n, func(i int) string {
		return line(method, path, b.tokens.access(first+int64(i)), body)
	})
}

// meScript is a pgbench script of the statement of GET /users/me.
func (b *bench) meScript() (file string, args []string) {
	c := b.capture()
	s := c.statement(b.T, "sessions", func() {
		c.app.must(b.T, "GET", "/users/me", c.tokens.AccessToken, nil, nil)
	})
	set := []string{
		fmt.Sprintf(`\set user random(1, %d)`, tokenUsers), `\set session ` + sessionSQL(":user"),
	}
	return s.script(b.T, set, map[string]string{c.user: "user", c.session: "session"})
}

func (b *bench) measureMe() {
	file := b.tokenFile("GET", "/users/me", "", 1, tokenUsers)
	health := requests(b.T, 1, func(int) string { return line("GET", "/health", "", "") })
	script, args := b.meScript()
	goals := map[int]string{8: "≥ 0.9", 32: "≥ 1.2", 64: "≥ 1.2"}
	for _, clients := range []int{8, 32, 64} {
		r := b.alternate(
			func(d time.Duration) load { return wrk(b.T, b.app, file, clients, d) },
			func(d time.Duration) load { return wrk(b.T, b.ref, file, clients, d) },
			func(d time.Duration) load { return b.pgbench(script, args, clients, d) },
			func(d time.Duration) load { return wrk(b.T, b.app, health, clients, d) })
		name := fmt.Sprintf("`GET /users/me`, %d clients", clients)
		b.addRates(name, r[0], "the 60-line handler", r[1], goals[clients])
		b.addRates(name, r[0], "`GET /health` of Latch", r[3], "")
		b.addRates(name, r[0], sameSQL, r[2], "")
	}
}

// loginFile is wrk's file of logins of many accounts.
func (b *bench) loginFile() string {
	return requests(b.T, tokenUsers, func(i int) string {
		email := fmt.Sprintf("user%d@example.com", i+1)
		return line("POST", "/auth/login", "", toJSON(credentials(email)))
	})
}

// measureLogin compares logins with as many hashes as the program computes at the same time.
func (b *bench) measureLogin() {
	file := b.loginFile()
	slots := max(1, runtime.NumCPU()-1)
	hash := func() (float64, error) {
		salt := make([]byte, argonSalt)
		argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonTag)
		return 1, nil
	}
	hashes := make([]func() (float64, error), slots)
	for i := range hashes {
		hashes[i] = hash
	}
	r := b.alternate(
		func(d time.Duration) load { return wrk(b.T, b.app, file, 4*slots, d) },
		func(d time.Duration) load { return load{perSecond: repeat(b.T, d, hashes)} })
	b.addRates(fmt.Sprintf("`POST /auth/login`, %d clients", 4*slots), r[0],
		fmt.Sprintf("argon2id in a loop, %d at a time", slots), r[1], "≥ 0.95")
}

// reads are requests of the first accounts.
func (b *bench) reads() (list []read) {
	for i := range tokenUsers {
		list = append(list, read{"/users/me", b.tokens.access(int64(i + 1))})
	}
	return list
}

// measureLatency compares the 99th percentile at a constant rate with and without logins.
func (b *bench) measureLatency() {
	reads, file := b.reads(), b.loginFile()
	measure := func(d time.Duration) load {
		ms := openLoop(b.T, b.app, reads, 500, d, 0.5, 0.99)
		return load{p50: ms[0], p99: ms[1]}
	}
	r := b.alternate(
		func(d time.Duration) (l load) {
			var wg sync.WaitGroup
			wg.Go(func() { wrk(b.T, b.app, file, 8, d+2*time.Second) })
			time.Sleep(time.Second)
			l = measure(d)
			wg.Wait()
			return l
		}, measure)
	b.add(row{
		name:   "p99 of `/users/me` at 500/s while 8 clients log in",
		here:   fmt.Sprintf("%.2f ms", medianOf(r[0], p99)),
		beside: "the same without logins", there: fmt.Sprintf("%.2f ms", medianOf(r[1], p99)),
		ratio: ratioOf(r[0], r[1], p99), goal: "≤ 5",
	})
}

// measureRefresh rotates each session at most once a run, on all sides. Each run is a generation
// ahead of the last.
func (b *bench) measureRefresh() {
	c := b.capture()
	for range 41 { // a generation that no other parameter equals
		c.app.must(b.T, "POST", "/auth/refresh", "", refreshBody(c.tokens.RefreshToken), &c.tokens)
	}
	s := c.statement(b.T, "UPDATE sessions", func() {
		c.app.must(b.T, "POST", "/auth/refresh", "", refreshBody(c.tokens.RefreshToken), &c.tokens)
	})
	sessions := min(*userCount, 100_000)
	set := []string{
		`\set n :n + 1`,
		fmt.Sprintf(`\set user 1 + (:client_id * %d + :n) %% %d`, sessions/8, sessions),
		`\set session ` + sessionSQL(":user"),
	}
	script, args := s.script(b.T, set,
		map[string]string{c.user: "user", c.session: "session", "41": "generation"})
	var generation int64
	refresh := func(p *process, key []byte) func(d time.Duration) load {
		return func(d time.Duration) load {
			generation++
			file := requests(b.T, sessions, func(i int) string {
				token := b.tokens.refresh(int64(i+1), generation, key)
				return line("POST", "/auth/refresh", "", toJSON(refreshBody(token)))
			})
			defer os.Remove(file)
			l := wrk(b.T, p, file, 8, d)
			if l.perSecond*d.Seconds() > float64(sessions) {
				b.Fatal("there were not enough tokens; give it shorter runs")
			}
			return l
		}
	}
	b.exec(`CHECKPOINT`)
	r := b.alternate(refresh(b.app, b.tokens.refreshKey), refresh(b.ref, []byte(secret)),
		func(d time.Duration) load {
			generation++
			more := append(args, "-D", "n=0", "-D", fmt.Sprintf("generation=%d", generation))
			return b.pgbench(script, more, 8, d)
		})
	b.addRates("`POST /auth/refresh`, 8 clients", r[0], leastHandler, r[1], "")
	b.addRates("`POST /auth/refresh`, 8 clients", r[0], sameSQL, r[2], "")
}

func refreshBody(token string) map[string]string {
	return map[string]string{"refresh_token": token}
}

// measureList compares the first page of accounts, one at depth, and PostgreSQL alone.
func (b *bench) measureList() {
	deep := *userCount * 9 / 10
	page := func(query string) string {
		return b.tokenFile("GET", "/users?limit=100"+query, "", adminID, 1)
	}
	first, last := page(""), page(fmt.Sprintf("&after=%d", deep))
	r := b.alternate(
		func(d time.Duration) load { return wrk(b.T, b.app, first, 8, d) },
		func(d time.Duration) load { return wrk(b.T, b.app, last, 8, d) },
		func(d time.Duration) load { return load{bytesPerSecond: b.copyUsers(deep, d)} })
	b.add(row{
		name: fmt.Sprintf("`GET /users?limit=100`, 8 clients, cost of depth %d", deep),
		here: formatRate(r[1]), beside: "the first page", there: formatRate(r[0]),
		ratio: ratioOf(r[0], r[1], rate), goal: "≤ 1.2",
	})
	bytesRate := func(l load) float64 { return l.bytesPerSecond }
	formatMB := func(list []load) string {
		return fmt.Sprintf("%.0f MB/s", medianOf(list, bytesRate)/1e6)
	}
	b.add(row{
		name: "the same, bytes", here: formatMB(r[1]),
		beside: "`COPY … TO STDOUT` of the rows as JSON", there: formatMB(r[2]),
		ratio: ratioOf(r[1], r[2], bytesRate),
	})
	var name string
	b.query(&name, `SELECT full_name FROM users WHERE id = $1`, deep)
	q := wrk(b.T, b.app, page("&q="+name[:6]), 1, time.Duration(*seconds)*time.Second)
	b.add(row{
		name: "`GET /users?q=` of 6 letters, 1 client, p50 and p99",
		here: fmt.Sprintf("%.1f, %.1f ms", q.p50, q.p99), goal: "≤ 20 ms", reached: q.p99 <= 20,
	})
}

// copyUsers reads the same rows as JSON from PostgreSQL over 8 connections, and returns the bytes a
// second.
func (b *bench) copyUsers(after int, d time.Duration) float64 {
	sql := fmt.Sprintf(`COPY (SELECT row_to_json(t) FROM (
		SELECT id, email, full_name, is_active, is_admin, created_at, updated_at
		FROM users WHERE id > %d ORDER BY id LIMIT 100) t) TO STDOUT`, after)
	return b.repeatSQL(8, d, func(conn *pgx.Conn) (float64, error) {
		var text bytes.Buffer
		_, err := conn.PgConn().CopyTo(b.Context(), &text, sql)
		return float64(text.Len()), err
	})
}

// repeatSQL is repeat for functions that have a connection each.
func (b *bench) repeatSQL(
	n int, d time.Duration, f func(conn *pgx.Conn) (float64, error),
) float64 {
	b.Helper()
	var functions []func() (float64, error)
	for range n {
		conn, err := pgx.Connect(b.Context(), b.url)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close(b.Context())
		functions = append(functions, func() (float64, error) { return f(conn) })
	}
	return repeat(b.T, d, functions)
}

// sweepSQL is what the program runs over and over every 10 minutes, until nothing is left.
const sweepSQL = `DELETE FROM sessions WHERE id IN (
	SELECT id FROM sessions WHERE expires_at <= now()
	ORDER BY expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED)`

// sweep deletes expired sessions until nothing is left, and returns how many and how long it took.
func (b *bench) sweep() (swept int64, took time.Duration, err error) {
	conn, err := pgx.Connect(b.Context(), b.url)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close(b.Context())
	for begin := time.Now(); ; {
		tag, err := conn.Exec(b.Context(), sweepSQL)
		if err != nil || tag.RowsAffected() == 0 {
			return swept, time.Since(begin), err
		}
		swept += tag.RowsAffected()
	}
}

// measureSweep measures requests while another connection deletes expired sessions as the program
// does: half as many as there are accounts.
func (b *bench) measureSweep() {
	reads := b.reads()
	measure := func() []float64 {
		d := time.Duration(*seconds) * time.Second
		return openLoop(b.T, b.app, reads, 500, d, 0.99, 1)
	}
	quiet := measure()
	b.exec(`INSERT INTO sessions (id, user_id, expires_at, user_agent) OVERRIDING SYSTEM VALUE
		SELECT 3000000000 + id, id, now() - '1 hour'::interval, '' FROM users WHERE id % 2 = 0`)
	var swept int64
	var took time.Duration
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { swept, took, err = b.sweep() })
	busy := measure()
	wg.Wait()
	if err != nil || swept != int64(*userCount/2) {
		b.Errorf("swept %d sessions, want %d: %v", swept, *userCount/2, err)
	}
	b.add(row{
		name: fmt.Sprintf("`/users/me` at 500/s while %d expired sessions are swept in %.1f s, "+
			"p99 and worst", swept, took.Seconds()),
		here:   fmt.Sprintf("%.1f, %.1f ms", busy[0], busy[1]),
		beside: "the same without the sweep",
		there:  fmt.Sprintf("%.1f, %.1f ms", quiet[0], quiet[1]),
		goal:   "worst ≤ 100 ms", reached: busy[1] <= 100,
	})
}

// measureMemory measures the program after a minute of requests and logins.
func (b *bench) measureMemory() {
	me, logins := b.tokenFile("GET", "/users/me", "", 1, tokenUsers), b.loginFile()
	var wg sync.WaitGroup
	wg.Go(func() { wrk(b.T, b.app, logins, 8, time.Minute) })
	wrk(b.T, b.app, me, 64, time.Minute)
	mb := b.app.memory(b.T, "VmRSS:")
	wg.Wait()
	b.addMB("RSS after 60 s of 64 clients and 8 that log in", mb, 60)
}
