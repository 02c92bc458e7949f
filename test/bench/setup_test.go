//go:build bench

package bench

// setup_test.go builds the programs, starts PostgreSQL and loads it. Accounts and documents are
// loaded by SQL: through the API a million accounts would take hours.

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"
	pgxvector "github.com/pgvector/pgvector-go/pgx"
	"golang.org/x/crypto/argon2"

	"latch/internal/devdb"
)

const (
	secret     = "a key for the benchmark: 0123456789abcdef"
	password   = "a password for the benchmark"
	dimensions = 384
	text       = "The quick brown fox jumps over the lazy dog, and the dog, which slept, barks."

	adminID    = 10_001 // the account that may list accounts
	firstOwner = 20_001 // the first account of those with documents; see ownerSizes
	inserters  = 21_001 // the first of 1,000 accounts that insert documents
)

// connectionSettings are those that the program sets on its connections and that change plans.
// The reference and pgbench have them too.
var connectionSettings = map[string]string{
	"plan_cache_mode": "force_generic_plan", "jit": "off",
	"max_parallel_workers_per_gather": "0", "random_page_cost": "1.1",
}

func newBench(t *testing.T) *bench {
	b := &bench{T: t, db: startPostgres(t)}
	b.url = b.createDatabase("bench")
	b.binary = b.buildProgram()
	reference := b.build("reference", "./reference", "-tags=bench,nethttpomithttp2")
	b.migrate(b.url)
	begin := time.Now()
	b.loadUsers()
	b.loadDocuments()
	b.exec(`VACUUM ANALYZE`)
	b.exec(`CHECKPOINT`)
	fmt.Printf("loaded in %.0f s\n", time.Since(begin).Seconds())
	b.app = b.launch(b.binary, b.env(b.url))
	b.tokens = newSigner(t, b.app.login(t, "user1@example.com"))
	url := b.url + "&pool_max_conns=8"
	for name, value := range connectionSettings {
		url += "&" + name + "=" + value
	}
	b.ref = b.launch(reference, []string{"DATABASE_URL=" + url, "SECRET_KEY=" + secret})
	return b
}

// startPostgres starts a PostgreSQL that ends with this process, also where this one is killed.
func startPostgres(t *testing.T, settings ...string) *devdb.DB {
	dir, err := os.MkdirTemp("", "latch-bench-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // PostgreSQL does not run as root
	}
	if err != nil {
		t.Fatal(err)
	}
	db, err := devdb.Start(dir, append([]string{
		"shared_buffers=512MB", "max_connections=200", "max_wal_size=8GB", "log_line_prefix=%d:",
	}, settings...)...)
	if err != nil {
		t.Fatal(err)
	}
	stop := db.StopCommand().Args
	script := `cat >/dev/null; "$@" >/dev/null 2>&1; rm -rf "$0"` // cat ends with the pipe
	guard := exec.Command("sh", append([]string{"-c", script, dir}, stop...)...)
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not for it
	pipe, err := guard.StdinPipe()
	if err == nil {
		err = guard.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pipe.Close()
		guard.Wait()
	})
	return db
}

// createDatabase creates a database and returns its URL.
func (b *bench) createDatabase(name string) string {
	b.Helper()
	b.connect(b.db.URL, func(conn *pgx.Conn) error {
		_, err := conn.Exec(b.Context(), "CREATE DATABASE "+name)
		return err
	})
	u, err := url.Parse(b.db.URL)
	if err != nil {
		b.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// env returns the settings of the program under test. Tokens last longer than the benchmark.
func (b *bench) env(databaseURL string) []string {
	env := []string{"DATABASE_URL=" + databaseURL, "SECRET_KEY=" + secret,
		"ACCESS_TOKEN_EXPIRE_MINUTES=1440"}
	return append(env, strings.Fields(*extraEnv)...)
}

// buildProgram builds the program as the image has it.
func (b *bench) buildProgram() (binary string) {
	b.Helper()
	if out, err := exec.Command("make", "-s", "-C", root, "build").CombinedOutput(); err != nil {
		b.Fatalf("make build: %v\n%s", err, out)
	}
	binary, err := filepath.Abs(filepath.Join(root, "latch"))
	if err != nil {
		b.Fatal(err)
	}
	return binary
}

// build builds another package with the flags of "make build".
func (b *bench) build(name, pkg string, flags ...string) (binary string) {
	b.Helper()
	binary = filepath.Join(b.TempDir(), name)
	args := append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", binary}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return binary
}

// migrate creates the program's tables.
func (b *bench) migrate(url string) {
	b.Helper()
	cmd := exec.Command(b.binary, "migrate")
	cmd.Dir, cmd.Env = b.TempDir(), b.env(url)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("migrate: %v\n%s", err, out)
	}
}

func (b *bench) exec(sql string, args ...any) {
	b.Helper()
	b.connect(b.url, func(conn *pgx.Conn) error {
		_, err := conn.Exec(b.Context(), sql, args...)
		return err
	})
}

func (b *bench) query(dst any, sql string, args ...any) {
	b.Helper()
	b.connect(b.url, func(conn *pgx.Conn) error {
		return conn.QueryRow(b.Context(), sql, args...).Scan(dst)
	})
}

// connect calls f with a connection of its own.
func (b *bench) connect(url string, f func(conn *pgx.Conn) error) {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), url)
	if err == nil {
		defer conn.Close(context.Background())
		err = f(conn)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// sessionID is the id of the session of a loaded account, for ids below 2³¹. They are scattered,
// as the program's random ones are. pgbench and SQL compute the same.
func sessionID(user int64) int64 { return user * 1103515245 % 2147483647 }

// sessionSQL is sessionID of the expression user.
func sessionSQL(user string) string { return user + " * 1103515245 % 2147483647" }

// loadUsers creates the accounts, all with the same password, and a session of each.
func (b *bench) loadUsers() {
	b.exec(`INSERT INTO users (email, password_hash, full_name)
		SELECT format('user%s@example.com', i), $1, format('%s %s',
		    initcap(substr(md5(i::text), 1, 6)), initcap(substr(md5((-i)::text), 1, 9)))
		FROM generate_series(1, $2::int) i`, hashPassword(), *userCount)
	b.exec(`UPDATE users SET is_admin = true WHERE id = $1`, adminID)
	b.exec(`INSERT INTO sessions (id, user_id, expires_at, user_agent, ip) OVERRIDING SYSTEM VALUE
		SELECT ` + sessionSQL("id") + `, id, now() + '7 days', 'wrk', '192.0.2.1'
		FROM users ORDER BY id`)
}

// The service's parameters of Argon2id: memory in KiB, passes, threads, and bytes of salt and tag.
const (
	argonMemory  = 19456
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16
	argonTag     = 32
)

// hashPassword is the stored form of password.
func hashPassword() string {
	salt := make([]byte, argonSalt)
	tag := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonTag)
	encode := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s",
		argonMemory, argonTime, argonThreads, encode(salt), encode(tag))
}

// ownerSizes are how many documents the accounts from firstOwner on have.
var ownerSizes = []int{50, 550, 3000, 20_000, 100_000}

func (b *bench) loadDocuments() {
	b.connect(b.url, func(conn *pgx.Conn) error {
		for i, n := range ownerSizes {
			owner := firstOwner + int64(i)
			if err := copyDocuments(b.Context(), conn, owner, n, randomVector); err != nil {
				return err
			}
		}
		return nil
	})
}

// copyDocuments copies n documents of owner over a connection.
func copyDocuments(
	ctx context.Context, conn *pgx.Conn, owner int64, n int, embedding func() []float32,
) error {
	if _, known := conn.TypeMap().TypeForName("halfvec"); !known {
		if err := pgxvector.RegisterTypes(ctx, conn); err != nil {
			return err
		}
	}
	columns := []string{"owner_id", "content", "metadata", "embedding"}
	_, err := conn.CopyFrom(ctx, pgx.Identifier{"documents"}, columns,
		pgx.CopyFromSlice(n, func(int) ([]any, error) {
			vector := pgvector.NewHalfVector(embedding())
			return []any{owner, text, []byte(`{"lang":"en"}`), vector}, nil
		}))
	return err
}

func randomVector() []float32 {
	v := make([]float32, dimensions)
	for i := range v {
		v[i] = float32(math.Round(rand.NormFloat64()*1e4) / 1e5)
	}
	return v
}

// toJSON is v as JSON, for values that always have one.
func toJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// pgOptions are connectionSettings as PGOPTIONS has them.
func pgOptions() string {
	var options []string
	for _, name := range slices.Sorted(maps.Keys(connectionSettings)) {
		options = append(options, "-c "+name+"="+connectionSettings[name])
	}
	return strings.Join(options, " ")
}
