//go:build bench

package bench

// statement_test.go reads from PostgreSQL's log which statements a request makes, and runs them by
// pgbench: that is what PostgreSQL alone can do.

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// capture is the program on a small database of its own, whose statements PostgreSQL logs. Nothing
// is loaded into it by SQL.
type capture struct {
	app           *process
	log           string // PostgreSQL's log file
	tokens        tokens // of the account
	user, session string // the account's id, and its session's
}

// statement is what PostgreSQL was sent.
type statement struct {
	sql        string
	parameters []string // NULL, or text in quotes, as the log has them
}

// capture returns the logged program. The first call starts it. Its ids are large, so that they are
// told from other numbers among the parameters.
func (b *bench) capture() *capture {
	b.Helper()
	if b.logged != nil {
		return b.logged
	}
	url := b.createDatabase("capture")
	b.migrate(url)
	b.connect(url, func(conn *pgx.Conn) error {
		_, err := conn.Exec(b.Context(), `ALTER DATABASE capture SET log_statement = 'all';
			SELECT setval(pg_get_serial_sequence('users', 'id'), 7000001),
			    setval(pg_get_serial_sequence('sessions', 'id'), 8000001)`)
		return err
	})
	c := &capture{log: filepath.Join(b.db.DataDir(), "log")}
	c.app = b.launch(b.binary, b.env(url))
	c.app.must(b.T, "POST", "/auth/register", "",
		map[string]string{"email": "ada@example.com", "password": password}, nil)
	b.connect(url, func(conn *pgx.Conn) error {
		_, err := conn.Exec(b.Context(), `UPDATE users SET is_admin = true`)
		return err
	})
	c.tokens = c.app.login(b.T, "ada@example.com")
	c.readSession(b.T)
	b.logged = c
	return c
}

// readSession sets the ids that belong to the tokens.
func (c *capture) readSession(t *testing.T) {
	t.Helper()
	var user struct{ ID int64 }
	c.app.must(t, "GET", "/users/me", c.tokens.AccessToken, nil, &user)
	var sessions []struct {
		ID      int64
		Current bool
	}
	c.app.must(t, "GET", "/auth/sessions", c.tokens.AccessToken, nil, &sessions)
	for _, s := range sessions {
		if s.Current {
			c.session = fmt.Sprint(s.ID)
		}
	}
	c.user = fmt.Sprint(user.ID)
}

// statements returns what PostgreSQL logs while f runs.
func (c *capture) statements(t *testing.T, f func()) []statement {
	t.Helper()
	before, err := os.ReadFile(c.log)
	if err != nil {
		t.Fatal(err)
	}
	f()
	after, err := os.ReadFile(c.log)
	if err != nil {
		t.Fatal(err)
	}
	return parseLog(string(after[len(before):]))
}

// statement returns the one statement that contains part, of those that f makes.
func (c *capture) statement(t *testing.T, part string, f func()) statement {
	t.Helper()
	var texts []string
	for _, s := range c.statements(t, f) {
		if strings.Contains(s.sql, part) {
			return s
		}
		texts = append(texts, s.sql)
	}
	t.Fatalf("no statement has %q:\n%s", part, strings.Join(texts, "\n"))
	return statement{}
}

var (
	logEntry   = regexp.MustCompile(`(?m)^capture:(\w+): +`)
	logged     = regexp.MustCompile(`(?s)^(?:statement|execute [^:]*): (.*)`)
	parameter  = regexp.MustCompile(`\$\d+`)
	loggedArgs = regexp.MustCompile(`\$\d+ = (NULL|'(?:[^']|'')*')`)
)

// parseLog reads the statements of the database capture from PostgreSQL's log, where a line that
// continues an entry begins with a tab.
func parseLog(log string) (list []statement) {
	places := logEntry.FindAllStringSubmatchIndex(log, -1)
	for i, at := range places {
		end := len(log)
		if i+1 < len(places) {
			end = places[i+1][0]
		}
		level, entry := log[at[2]:at[3]], strings.ReplaceAll(log[at[1]:end], "\n\t", "\n")
		if m := logged.FindStringSubmatch(strings.TrimSpace(entry)); level == "LOG" && m != nil {
			list = append(list, statement{sql: m[1]})
		}
		if args, found := strings.CutPrefix(entry, "parameters: "); found && len(list) > 0 {
			s := &list[len(list)-1]
			for _, m := range loggedArgs.FindAllStringSubmatch(args, -1) {
				s.parameters = append(s.parameters, m[1])
			}
		}
	}
	return list
}

// script writes a pgbench script: the lines set, and then s. variables names, by value, the
// parameters that become variables of pgbench, also where they are the only element of an array;
// the others are sent as they were logged. The arguments are for pgbench's command line.
//
// pgbench numbers its variables by occurrence. So that a parameter that occurs twice is sent once,
// as the program does, only its first occurrence is written as a variable.
func (s statement) script(
	t *testing.T, set []string, variables map[string]string,
) (file string, args []string) {
	t.Helper()
	numbers := map[string]int{}
	sql := parameter.ReplaceAllStringFunc(s.sql, func(p string) string {
		value := s.parameters[numberIn(p)-1]
		if value == "NULL" {
			return value
		}
		value = strings.ReplaceAll(value[1:len(value)-1], "''", "'")
		element := strings.Trim(value, "{}")
		variable, known := variables[element]
		n, again := numbers[p]
		written := fmt.Sprintf("$%d", n)
		if !again {
			numbers[p] = len(numbers) + 1
			written = ":" + variable
		}
		switch {
		case known && element != value:
			return "ARRAY[" + written + "::bigint]"
		case !known && !again:
			name := fmt.Sprintf("p%d", numberIn(p))
			args = append(args, "-D", name+"="+value)
			return ":" + name
		}
		return written
	})
	file = filepath.Join(t.TempDir(), "script.sql")
	text := strings.Join(append(set, sql), "\n") + ";\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, args
}

// numberIn is the number of a parameter such as $12.
func numberIn(parameter string) (n int) {
	fmt.Sscanf(parameter, "$%d", &n)
	return n
}

// pgbench runs a script over so many connections for d, with prepared statements and
// connectionSettings. A transaction that fails fails the benchmark.
func (b *bench) pgbench(file string, args []string, clients int, d time.Duration) load {
	b.Helper()
	duration := fmt.Sprint(int(math.Ceil(d.Seconds())))
	args = append(args, "-n", "-M", "prepared", "-c", fmt.Sprint(clients),
		"-j", fmt.Sprint(min(2, clients)), "-T", duration, "-f", file, b.url)
	cmd := exec.Command("pgbench", args...)
	cmd.Env = append(os.Environ(), "PGOPTIONS="+pgOptions())
	out, err := cmd.CombinedOutput()
	tps := numberAfter(string(out), "tps = ")
	if err != nil || tps == 0 || strings.Contains(string(out), "ERROR") {
		b.Fatalf("pgbench: %v\n%s", err, out)
	}
	return load{perSecond: tps, p50: numberAfter(string(out), "latency average = ")}
}
