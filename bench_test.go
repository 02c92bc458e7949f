//go:build bench

package main

// bench_test.go is "make bench": it loads a PostgreSQL that keeps its promises (fsync on) and measures the
// program, built as the image builds it, beside the least that could do the same, in alternating runs. Each
// number is the median of the rounds, each ratio the median of the ratios of the rounds.
//
//	go test -tags bench -run TestBench -timeout 60m -v -args -rows '/users/me' -seconds 2 -rounds 5

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

var (
	onlyRows    = flag.String("rows", "", "run only the rows whose name matches this regular expression, and print them only")
	rounds      = flag.Int("rounds", 5, "alternating runs of each side")
	seconds     = flag.Int("seconds", 2, "length of a run")
	userCount   = flag.Int("users", 100_000, "accounts, each with a session")
	profileTo   = flag.String("profile", "", "profile the server under a mix of requests to this file, and measure nothing")
	pgoProfile  = flag.String("pgo", "", "build with this profile")
	extraEnv    = flag.String("env", "", "settings of the program under test, with spaces between")
	benchSecret = "a key for the benchmark: 0123456789abcdef"
)

// bench is what all rows share.
type bench struct {
	*testing.T
	url    string // of the loaded database
	binary string
	app    *process // Latch
	ref    *process // testdata/reference
	keys   *keyring
	docs   int64 // the id of the first user that owns documents
	rows   []row
}

// row is one line of the table.
type row struct {
	name, beside string
	here, there  string  // what was measured, with units
	ratio        float64 // NaN: there is none
	goal         string
	reached      bool
}

// topics are the parts of the benchmark in the order in which they run. What changes the database comes last.
var topics = []struct {
	name string
	run  func(*bench)
}{
	{"start, binary, RSS idle", (*bench).sizes},
	{"counts", (*bench).counts},
	{"GET /health", (*bench).health},
	{"GET /users/me", (*bench).me},
	{"p99 of /users/me during logins", (*bench).latency},
	{"POST /auth/login", (*bench).login},
	{"GET /users?limit=100", (*bench).listUsers},
	{"POST /documents/search", (*bench).search},
	{"POST /documents", (*bench).insert},
	{"POST /auth/refresh", (*bench).refresh},
	{"sweep of dead sessions", (*bench).sweep},
	{"RSS after load", (*bench).memory},
}

func TestBench(t *testing.T) {
	only := regexp.MustCompile(*onlyRows)
	b := newBench(t)
	if *profileTo != "" {
		b.profile()
		return
	}
	for _, topic := range topics {
		if only.MatchString(topic.name) {
			topic.run(b)
		}
	}
	table := b.table()
	fmt.Print("\n", table, "\n")
	if *onlyRows == "" && *userCount == 100_000 && !t.Failed() {
		if err := keep("BENCHMARKS.md", "table", table); err != nil {
			t.Fatal(err)
		}
	}
}

// add notes a row and prints it at once. goal is as "≥ 0.85" or "≤ 5", of the ratio; other goals are prose.
func (b *bench) add(r row) {
	var bound float64
	if _, err := fmt.Sscanf(r.goal, "≥ %f", &bound); err == nil {
		r.reached = r.ratio >= bound
	} else if _, err := fmt.Sscanf(r.goal, "≤ %f", &bound); err == nil && !math.IsNaN(r.ratio) {
		r.reached = r.ratio <= bound
	}
	b.rows = append(b.rows, r)
	fmt.Println(r)
}

func (r row) String() string {
	ratio, reached := "", map[bool]string{true: "yes", false: "**no**"}[r.reached]
	if !math.IsNaN(r.ratio) {
		ratio = fmt.Sprintf("%.2f", r.ratio)
	}
	if r.goal == "" {
		reached = ""
	}
	return "| " + strings.Join([]string{r.name, r.here, r.beside, r.there, ratio, r.goal, reached}, " | ") + " |"
}

func (b *bench) table() string {
	out, _ := exec.Command("sh", "-c", `grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-; uname -sr; postgres=$(ls /usr/lib/postgresql/*/bin/postgres | tail -1); $postgres --version; wrk -v | head -1 | cut -d[ -f1`).Output()
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s, %d cores; %s. %s, %d users and sessions, %d runs of %d s a side, %s.\n\n", strings.TrimSpace(strings.Join(strings.Split(strings.TrimSpace(string(out)), "\n"), "; ")),
		runtime.NumCPU(), runtime.Version(), b.version(), *userCount, *rounds, *seconds, time.Now().UTC().Format(time.DateOnly))
	fmt.Fprintln(&text, "| row | Latch | beside | measured | ratio | to reach | reached |\n|---|---|---|---|---|---|---|")
	for _, r := range b.rows {
		fmt.Fprintln(&text, r)
	}
	return text.String()
}

// version is pgvector's and pgx's.
func (b *bench) version() string {
	var vector string
	b.query(&vector, `SELECT extversion FROM pg_extension WHERE extname = 'vector'`)
	mod, _ := os.ReadFile("go.mod")
	return "pgvector " + vector + ", pgx " + regexp.MustCompile(`pgx/v5 (v\S+)`).FindStringSubmatch(string(mod))[1]
}

// keep puts text between the markers of a section of file.
func keep(file, section, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := "<!-- begin: "+section+" -->\n", "<!-- end: "+section+" -->"
	head, rest, ok := strings.Cut(string(old), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no section %q", file, section)
	}
	return os.WriteFile(file, []byte(head+begin+text+end+tail), 0o644)
}

// newBench builds the programs, starts PostgreSQL and loads it.
func newBench(t *testing.T) *bench {
	dir, err := os.MkdirTemp("", "latch-bench-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // root's PostgreSQL is another user
	}
	if err != nil {
		t.Fatal(err)
	}
	db, err := startDevDB(dir, "shared_buffers=512MB", "max_connections=200", "max_wal_size=8GB")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch(db, dir))
	b := &bench{T: t, url: strings.Replace(db.url, "/postgres?", "/bench?", 1), keys: newKeyring([]string{benchSecret}, 24*time.Hour), docs: 20_001}
	conn, err := connectPatiently(t.Context(), db.url, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `CREATE DATABASE bench`); err != nil {
		t.Fatal(err)
	}
	b.binary = b.build("latch", ".", "-pgo="+map[bool]string{true: "off", false: *pgoProfile}[*pgoProfile == ""])
	reference := b.build("reference", "./testdata/reference")
	if err := migrate(t.Context(), b.url, migrations(&config{EmbeddingDimensions: 384, TextSearch: "simple"}), false, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	b.loadUsers()
	b.loadDocuments()
	b.exec(`VACUUM ANALYZE`)
	b.exec(`CHECKPOINT`)
	fmt.Printf("loaded in %.0f s\n", time.Since(begin).Seconds())
	b.app = launch(t, b.binary, b.env()...)
	t.Cleanup(func() { b.app.stop() })
	statement := captured(t, b.url, "FROM sessions", func(st *store) { st.authenticate(ticket{1, 1, 1}, &user{}) })
	// The settings are those of the store's connections: without them, PostgreSQL plans each search anew.
	url := b.url + "&pool_max_conns=8"
	for name, value := range serverSettings {
		url += "&" + name + "=" + value
	}
	b.ref = launch(t, reference, "DATABASE_URL="+url, "SECRET_KEY="+benchSecret, "STATEMENT="+statement, "SEARCH="+b.searchStatement())
	t.Cleanup(func() { b.ref.stop() })
	return b
}

// env are the settings of the program under test.
func (b *bench) env() []string {
	return append([]string{"DATABASE_URL=" + b.url, "SECRET_KEY=" + benchSecret}, strings.Fields(*extraEnv)...)
}

// build builds a program as the image does.
func (b *bench) build(name, pkg string, flags ...string) (binary string) {
	b.Helper()
	binary = filepath.Join(b.TempDir(), name)
	cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-tags=nethttpomithttp2", "-ldflags=-s -w", "-o", binary}, flags...), pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	return binary
}

func (b *bench) exec(sql string, args ...any) {
	b.Helper()
	b.connected(func(conn *pgx.Conn) error {
		_, err := conn.Exec(b.Context(), sql, args...)
		return err
	})
}

func (b *bench) query(dst any, sql string, args ...any) {
	b.Helper()
	b.connected(func(conn *pgx.Conn) error { return conn.QueryRow(b.Context(), sql, args...).Scan(dst) })
}

// connected calls f with a connection.
func (b *bench) connected(f func(conn *pgx.Conn) error) {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), b.url)
	if err == nil {
		defer conn.Close(context.Background())
		err = f(conn)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// loadUsers makes the accounts and a session of each, with the same id.
func (b *bench) loadUsers() {
	hash := newHasher(todaysParams).compute(goodPass)
	b.exec(`INSERT INTO users (email, password_hash, full_name)
		SELECT format('user%s@example.com', i), $1, format('%s %s', initcap(substr(md5(i::text), 1, 6)), initcap(substr(md5((-i)::text), 1, 9)))
		FROM generate_series(1, $2::int) i`, hash, *userCount)
	b.exec(`UPDATE users SET is_admin = true WHERE id = 10001`)
	b.exec(`INSERT INTO sessions (user_id, expires_at, user_agent, ip) SELECT id, now() + '7 days', 'wrk', '192.0.2.1' FROM users ORDER BY id`)
}

// token is an access token of the user and session with this id.
func (b *bench) token(id int64) string {
	now := time.Now()
	return b.keys.issue(session{ID: id, UserID: id, RotatedAt: now, ExpiresAt: now.Add(24 * time.Hour)}).AccessToken
}

// alternate runs each side in turn, after a short run of each that does not count, and returns the results by side.
func (b *bench) alternate(sides ...func(d time.Duration) load) [][]load {
	b.Helper()
	results := make([][]load, len(sides))
	for _, side := range sides {
		side(time.Second)
	}
	for range *rounds {
		for i, side := range sides {
			results[i] = append(results[i], side(time.Duration(*seconds)*time.Second))
		}
	}
	return results
}

func rate(l load) float64 { return l.perSecond }

// medianOf is the median of one measure.
func medianOf(results []load, of func(load) float64) float64 {
	var values []float64
	for _, l := range results {
		values = append(values, of(l))
	}
	return median(values)
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// ratioOf is the median of the ratios of the rounds.
func ratioOf(a, b []load, of func(load) float64) float64 {
	var ratios []float64
	for i := range a {
		ratios = append(ratios, of(a[i])/of(b[i]))
	}
	return median(ratios)
}

// perSecond prints a rate.
func perSecond(results []load) string { return fmt.Sprintf("%.0f/s", medianOf(results, rate)) }
