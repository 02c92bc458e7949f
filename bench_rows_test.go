//go:build bench

package main

// bench_rows_test.go are the rows of accounts and sessions.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/crypto/argon2"
)

// sizes are the rows about the program at rest, and counts.
func (b *bench) sizes() {
	empty := filepath.Join(b.TempDir(), "empty.go")
	if err := os.WriteFile(empty, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	nothing := b.build("empty", empty)
	var latch, none []float64
	for range 2**rounds + 1 {
		p := launch(b.T, b.binary, b.env()...)
		p.stop()
		latch = append(latch, p.started)
		begin := time.Now()
		exec.Command(nothing).Run()
		none = append(none, milliseconds(time.Since(begin)))
	}
	beyond := median(latch) - median(none)
	b.add(row{"process start to first 200", "an empty Go program, start to end", fmt.Sprintf("%.1f ms", median(latch)), fmt.Sprintf("%.1f ms", median(none)), math.NaN(), "≤ 100 ms beyond", beyond <= 100})

	info, err := os.Stat(b.binary)
	if err != nil {
		b.Fatal(err)
	}
	mb := float64(info.Size()) / 1e6
	b.add(row{"binary", "", fmt.Sprintf("%.1f MB", mb), "", math.NaN(), "≤ 12 MB", mb <= 12})
	if size, err := imageSize(); err == nil {
		b.add(row{"image", "its base", fmt.Sprintf("%.1f MB", size/1e6), fmt.Sprintf("%.1f MB", size/1e6-mb), math.NaN(), "≤ 15 MB", size <= 15e6})
	} else {
		b.add(row{"image", "", "not measured: docker says " + err.Error(), "", math.NaN(), "≤ 15 MB", false})
	}
	idle := b.app.memory(b.T, "VmRSS:")
	b.add(row{"RSS idle", "", fmt.Sprintf("%.1f MB", idle), "", math.NaN(), "≤ 20 MB", idle <= 20})
}

// imageSize is the size in bytes of the image that docker makes here.
func imageSize() (float64, error) {
	id, err := exec.Command("docker", "build", "-q", ".").Output()
	if err != nil {
		return 0, err
	}
	size, err := exec.Command("docker", "image", "inspect", "-f", "{{.Size}}", strings.TrimSpace(string(id))).Output()
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(size)), 64)
}

// counts are the rows that do not depend on the machine.
func (b *bench) counts() {
	a := newApp(b.T)
	n := allocations(b.T, a, "/api/v1/users/me", a.signUp("ada").AccessToken)
	b.add(row{"allocations of `GET /users/me`", "", fmt.Sprintf("%.0f", n), "", math.NaN(), "≤ 40 of them", n <= 40})
	var list []string
	for _, c := range countQueries(b.T) {
		list = append(list, fmt.Sprintf("`%s` %d", c.request, c.got))
	}
	b.add(row{"statements, BEGIN and COMMIT counted", "", strings.Join(list, ", "), "", math.NaN(), "", false})
}

// health is the whole chain without the database.
func (b *bench) health() {
	file := requests(b.T, 1, func(int) string { return line("GET", "/health", "", "") })
	r := b.alternate(
		func(d time.Duration) load { return wrk(b.T, b.app, file, 32, d) },
		func(d time.Duration) load { return wrk(b.T, b.ref, file, 32, d) })
	b.add(row{"`GET /health`, 32 clients", "net/http that writes the same bytes", perSecond(r[0]), perSecond(r[1]), ratioOf(r[0], r[1], rate), "≥ 0.85", false})
}

const tokenUsers = 10_000 // whose tokens are used in turn

// tokenFile is wrk's file of one request for each of these users.
func (b *bench) tokenFile(method, path, body string, first int64, n int) string {
	return requests(b.T, n, func(i int) string { return line(method, path, b.token(first+int64(i)), body) })
}

func (b *bench) me() {
	file := b.tokenFile("GET", "/users/me", "", 1, tokenUsers)
	health := requests(b.T, 1, func(int) string { return line("GET", "/health", "", "") })
	statement := captured(b.T, b.url, "FROM sessions", func(st *store) { st.authenticate(ticket{1, 1, 1}, &user{}) })
	sql := script(b.T, fmt.Sprintf(`\set p1 random(1, %d)`+"\n"+`\set p2 :p1`, tokenUsers), statement)
	for _, clients := range []int{8, 32, 64} {
		r := b.alternate(
			func(d time.Duration) load { return wrk(b.T, b.app, file, clients, d) },
			func(d time.Duration) load { return wrk(b.T, b.ref, file, clients, d) },
			func(d time.Duration) load { return pgbench(b.T, b.url, sql, clients, d, "p3=99999999999") },
			func(d time.Duration) load { return wrk(b.T, b.app, health, clients, d) })
		name := fmt.Sprintf("`GET /users/me`, %d clients", clients)
		b.add(row{name, "the 60-line handler", perSecond(r[0]), perSecond(r[1]), ratioOf(r[0], r[1], rate), "≥ 1.0", false})
		b.add(row{name, "`GET /health` of Latch", perSecond(r[0]), perSecond(r[3]), ratioOf(r[0], r[3], rate), "≥ 0.5", false})
		b.add(row{name, "`pgbench -M prepared`, same SQL", perSecond(r[0]), perSecond(r[2]), ratioOf(r[0], r[2], rate), "", false})
	}
}

// loginFile is wrk's file of logins of many users.
func (b *bench) loginFile() string {
	return requests(b.T, tokenUsers, func(i int) string {
		return line("POST", "/auth/login", "", fmt.Sprintf(`{"username":"user%d@example.com","password":%q}`, i+1, goodPass))
	})
}

func (b *bench) login() {
	file := b.loginFile()
	slots := cap(newHasher(cheap).slots)
	p, salt := todaysParams, make([]byte, saltBytes)
	r := b.alternate(
		func(d time.Duration) load { return wrk(b.T, b.app, file, 4*slots, d) },
		func(d time.Duration) load {
			return load{perSecond: repeated(b.T, "", slots, d, func(context.Context, *pgx.Conn) (float64, error) {
				argon2.IDKey([]byte(goodPass), salt, p.time, p.memory, p.threads, tagBytes)
				return 1, nil
			})}
		})
	b.add(row{fmt.Sprintf("`POST /auth/login`, %d clients", 4*slots), fmt.Sprintf("argon2id in a loop, %d at once", slots), perSecond(r[0]), perSecond(r[1]), ratioOf(r[0], r[1], rate), "≥ 0.95", false})
}

// latency compares the 99th percentile at a constant rate with and without logins.
func (b *bench) latency() {
	const perSecond = 500
	tokens := make([]string, tokenUsers)
	for i := range tokens {
		tokens[i] = b.token(int64(i + 1))
	}
	file := b.loginFile()
	p99 := func(l load) float64 { return l.p99 }
	measure := func(d time.Duration) load {
		ms := openLoop(b.T, b.app, "/users/me", tokens, perSecond, d, 0.5, 0.99)
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
	b.add(row{fmt.Sprintf("p99 of `/users/me` at %d/s while 8 clients log in", perSecond), "the same without logins", fmt.Sprintf("%.2f ms", medianOf(r[0], p99)), fmt.Sprintf("%.2f ms", medianOf(r[1], p99)), ratioOf(r[0], r[1], p99), "≤ 5", false})
}

// refresh rotates each session once a run, on both sides: tokens are of a generation ahead of the row, which is as
// good as the row's own.
func (b *bench) refresh() {
	statement := captured(b.T, b.url, "UPDATE sessions", func(st *store) { st.rotateAlone(&rotation{}) })
	sessions := min(*userCount, 100_000)
	sql := script(b.T, fmt.Sprintf("\\set n :n + 1\n\\set p1 1 + (:client_id * %d + :n) %% %d\n\\set p2 :p1", sessions/8, sessions), statement)
	var generation int64
	next := func() int64 { generation++; return generation }
	b.exec(`CHECKPOINT`)
	r := b.alternate(
		func(d time.Duration) load {
			g, now := next(), time.Now()
			file := requests(b.T, sessions, func(i int) string {
				id := int64(i + 1)
				refresh := b.keys.issue(session{ID: id, UserID: id, Generation: g, RotatedAt: now, ExpiresAt: now.Add(24 * time.Hour)}).RefreshToken
				return line("POST", "/auth/refresh", "", fmt.Sprintf(`{"refresh_token":%q}`, refresh))
			})
			l := wrk(b.T, b.app, file, 8, d)
			if l.perSecond*d.Seconds() > float64(sessions) {
				b.Fatal("the tokens did not last; give it shorter runs")
			}
			os.Remove(file)
			return l
		},
		func(d time.Duration) load {
			return pgbench(b.T, b.url, sql, 8, d, "n=0", fmt.Sprintf("p3=%d", next()), "p4=99999999999", "p5=7 days", "p6=30 days")
		})
	b.add(row{"`POST /auth/refresh`, 8 clients", "`pgbench -M prepared`, same SQL, same commits", perSecond(r[0]), perSecond(r[1]), ratioOf(r[0], r[1], rate), "≥ 0.6", false})
}

// listUsers compares the first page, one at depth, and PostgreSQL alone.
func (b *bench) listUsers() {
	deep := *userCount * 9 / 10
	page := func(query string) string { return b.tokenFile("GET", "/users?limit=100"+query, "", 10_001, 1) }
	first, last := page(""), page(fmt.Sprintf("&after=%d", deep))
	copySQL := fmt.Sprintf(`COPY (SELECT row_to_json(t) FROM (SELECT %s FROM users u WHERE u.id > %d ORDER BY u.id LIMIT 100) t) TO STDOUT`, userColumns, deep)
	bytesRate := func(l load) float64 { return l.bytesPerSecond }
	r := b.alternate(
		func(d time.Duration) load { return wrk(b.T, b.app, first, 8, d) },
		func(d time.Duration) load { return wrk(b.T, b.app, last, 8, d) },
		func(d time.Duration) load {
			return load{bytesPerSecond: repeated(b.T, b.url, 8, d, func(ctx context.Context, conn *pgx.Conn) (float64, error) {
				var text bytes.Buffer
				_, err := conn.PgConn().CopyTo(ctx, &text, copySQL)
				return float64(text.Len()), err
			})}
		})
	mb := func(l []load) string { return fmt.Sprintf("%.0f MB/s", medianOf(l, bytesRate)/1e6) }
	b.add(row{fmt.Sprintf("`GET /users?limit=100`, 8 clients, cost of depth %d", deep), "the first page", perSecond(r[1]), perSecond(r[0]), ratioOf(r[0], r[1], rate), "≤ 1.2", false})
	b.add(row{"the same, bytes", "`COPY … TO STDOUT` of the rows as JSON", mb(r[1]), mb(r[2]), ratioOf(r[1], r[2], bytesRate), "", false})

	var name string
	b.query(&name, `SELECT full_name FROM users WHERE id = $1`, deep)
	search := page("&q=" + name[:6])
	q := wrk(b.T, b.app, search, 1, time.Duration(*seconds)*time.Second)
	b.add(row{"`GET /users?q=` of 6 letters, 1 client, p50 and p99", "", fmt.Sprintf("%.1f, %.1f ms", q.p50, q.p99), "", math.NaN(), "≤ 20 ms", q.p99 <= 20})
}

// sweep measures requests while dead sessions are deleted: half as many as there are users.
func (b *bench) sweep() {
	var tokens []string
	for id := range int64(tokenUsers) {
		tokens = append(tokens, b.token(id+1))
	}
	quiet := openLoop(b.T, b.app, "/users/me", tokens, 500, time.Duration(*seconds)*time.Second, 0.99, 1)
	b.exec(`INSERT INTO sessions (user_id, expires_at, user_agent) SELECT id, now() - '1 hour'::interval, '' FROM users WHERE id % 2 = 0`)
	st, err := openStore(b.Context(), b.url, 1, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer st.close()
	var swept int64
	var took time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		begin := time.Now()
		swept, err = st.sweepSessions()
		took = time.Since(begin)
	})
	busy := openLoop(b.T, b.app, "/users/me", tokens, 500, time.Duration(*seconds)*time.Second, 0.99, 1)
	wg.Wait()
	if err != nil || swept != int64(*userCount/2) {
		b.Errorf("swept %d: %v", swept, err)
	}
	b.add(row{fmt.Sprintf("`/users/me` at 500/s while %d dead sessions are swept in %.1f s, p99 and worst", swept, took.Seconds()), "the same without the sweep",
		fmt.Sprintf("%.1f, %.1f ms", busy[0], busy[1]), fmt.Sprintf("%.1f, %.1f ms", quiet[0], quiet[1]), math.NaN(), "worst ≤ 100 ms", busy[1] <= 100})
}

// memory is the program after a minute of everything.
func (b *bench) memory() {
	me, logins := b.tokenFile("GET", "/users/me", "", 1, tokenUsers), b.loginFile()
	var wg sync.WaitGroup
	wg.Go(func() { wrk(b.T, b.app, logins, 8, time.Minute) })
	wrk(b.T, b.app, me, 64, time.Minute)
	mb := b.app.memory(b.T, "VmRSS:")
	wg.Wait()
	b.add(row{"RSS after 60 s of 64 clients and 8 that log in", "", fmt.Sprintf("%.0f MB", mb), "", math.NaN(), "≤ 60 MB", mb <= 60})
}

// profile writes the profile of a server in this process, under the reads that a service sees most.
func (b *bench) profile() {
	cfg, err := loadConfig(func(name string) string {
		return map[string]string{"DATABASE_URL": b.url, "SECRET_KEY": benchSecret}[name]
	}, "")
	if err != nil {
		b.Fatal(err)
	}
	st, err := openStore(b.Context(), b.url, cfg.DatabaseMaxConns, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer st.close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	web := httptest.NewUnstartedServer(nil)
	web.Config = newServer(cfg, st, newHasher(todaysParams), newLogger(cfg, null)).httpServer()
	web.Start()
	defer web.Close()
	f, err := os.Create(*profileTo)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	in := &process{url: web.URL}
	me := b.tokenFile("GET", "/users/me", "", 1, tokenUsers)
	search := b.searchFile(b.docs)
	if err := pprof.StartCPUProfile(f); err != nil {
		b.Fatal(err)
	}
	defer pprof.StopCPUProfile()
	fmt.Println("GET /users/me", wrk(b.T, in, me, 32, 10*time.Second))
	fmt.Println("POST /documents/search", wrk(b.T, in, search, 8, 10*time.Second))
}

// toJSON is v as JSON.
func toJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}
