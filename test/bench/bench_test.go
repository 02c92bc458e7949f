//go:build bench

// Package bench measures the program as a black box: it builds the binary as the image has it,
// loads a private PostgreSQL with fsync on, and compares the binary with the least that could do
// the same. The sides run in turn; a number is the median of the rounds, a ratio the median of the
// rounds' ratios. TestPeers compares the binary with other services.
//
//	go test -tags bench -run TestBench -timeout 60m -v ./test/bench -args -rows login -rounds 3
package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"latch/internal/devdb"
)

var (
	onlyTopics = flag.String("rows", "", "measure only the topics that match this pattern")
	rounds     = flag.Int("rounds", 5, "runs of each side")
	seconds    = flag.Int("seconds", 2, "length of a run")
	userCount  = flag.Int("users", 100_000, "accounts, each with a session; at least 30,000")
	growth     = flag.Bool("growth", false, "load a million accounts; only rows that could grow")
	profileTo  = flag.String("profile", "", "write a CPU profile to this file, and no rows")
	extraEnv   = flag.String("env", "", "settings of the program, with spaces between")
)

// root is the directory of the program's source, seen from this package.
const root = "../.."

// bench is what all rows share.
type bench struct {
	*testing.T
	db     *devdb.DB
	url    string // of the loaded database
	binary string // the program
	app    *process
	ref    *process // the reference of ./reference
	tokens *signer
	logged *capture // nil until a row asks for it
	rows   []row
}

// row is one line of the table.
type row struct {
	name, here    string  // what is measured, and the program's figure with its unit
	beside, there string  // what it is compared with, and that one's figure
	ratio         float64 // of here to there; 0: none
	goal          string  // "≥ 0.9" and "≤ 5" are of the ratio; empty: none
	reached       bool    // of goals that are not of the ratio
}

// topics are the parts of the benchmark in the order in which they run. Those that change the
// database come last.
var topics = []struct {
	name  string
	grows bool // with the number of accounts
	run   func(*bench)
}{
	{"start, binary, RSS idle", false, (*bench).measureSizes},
	{"allocations, statements", false, (*bench).countWork},
	{"GET /health", false, (*bench).measureHealth},
	{"GET /users/me", false, (*bench).measureMe},
	{"p99 of /users/me during logins", false, (*bench).measureLatency},
	{"POST /auth/login", false, (*bench).measureLogin},
	{"GET /users?limit=100", true, (*bench).measureList},
	{"POST /documents/search", false, (*bench).measureSearch},
	{"POST /documents", false, (*bench).measureInsert},
	{"POST /auth/refresh", false, (*bench).measureRefresh},
	{"sweep of expired sessions", true, (*bench).measureSweep},
	{"RSS after load", false, (*bench).measureMemory},
	{"latch index", true, (*bench).measureIndex},
}

func TestBench(t *testing.T) {
	if *growth {
		*userCount = 1_000_000
	}
	only := regexp.MustCompile(*onlyTopics)
	b := newBench(t)
	if *profileTo != "" {
		b.profile()
		return
	}
	for _, topic := range topics {
		long := topic.name == "latch index" // a quarter of an hour: with -growth, or by its name
		if only.MatchString(topic.name) && (topic.grows || !*growth) &&
			(!long || *growth || *onlyTopics != "") {
			topic.run(b)
		}
	}
	if len(b.rows) == 0 {
		t.Fatalf("no topic matches %q", *onlyTopics)
	}
	table := b.caption() + "\n\n" + tableOf(b.rows)
	fmt.Print("\n", table, "\n")
	complete := *onlyTopics == "" && *rounds >= 5 && *seconds >= 2 && *userCount >= 100_000
	if complete && *extraEnv == "" && !t.Failed() {
		section := map[bool]string{false: "table", true: "growth"}[*growth]
		if err := writeSection(filepath.Join(root, "BENCHMARKS.md"), section, table); err != nil {
			t.Fatal(err)
		}
	}
}

// add keeps a row and prints it at once. It judges goals of the ratio.
func (b *bench) add(r row) {
	var bound float64
	if _, err := fmt.Sscanf(r.goal, "≥ %f", &bound); err == nil && r.ratio > 0 {
		r.reached = r.ratio >= bound
	} else if _, err := fmt.Sscanf(r.goal, "≤ %f", &bound); err == nil && r.ratio > 0 {
		r.reached = r.ratio <= bound
	}
	b.rows = append(b.rows, r)
	fmt.Println(r)
}

// addRates adds a row that compares two rates.
func (b *bench) addRates(name string, here []load, beside string, there []load, goal string) {
	b.add(row{
		name: name, here: formatRate(here), beside: beside, there: formatRate(there),
		ratio: ratioOf(here, there, rate), goal: goal,
	})
}

// String is the row in Markdown.
func (r row) String() string {
	ratio, reached := "", ""
	if r.ratio > 0 {
		ratio = fmt.Sprintf("%.2f", r.ratio)
	}
	if r.goal != "" {
		reached = map[bool]string{true: "yes", false: "**no**"}[r.reached]
	}
	return cells(r.name, r.here, r.beside, r.there, ratio, r.goal, reached)
}

func tableOf(rows []row) string {
	var text strings.Builder
	fmt.Fprintln(&text, "| row | Latch | beside | measured | ratio | to reach | reached |")
	fmt.Fprintln(&text, rule(7))
	for _, r := range rows {
		fmt.Fprintln(&text, r)
	}
	return text.String()
}

// caption names the machine, the versions, the size and the day of a table.
func (b *bench) caption() string {
	var vector string
	b.query(&vector, `SELECT extversion FROM pg_extension WHERE extname = 'vector'`)
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		b.Fatal(err)
	}
	pgx := regexp.MustCompile(`pgx/v5 (v\S+)`).FindStringSubmatch(string(mod))[1]
	return fmt.Sprintf("%s, pgvector %s, pgx %s; %d users and sessions, "+
		"%d runs of %d s a side; %s.", b.machine(), vector, pgx, *userCount,
		*rounds, *seconds, time.Now().UTC().Format(time.DateOnly))
}

// machine names the processor, the system and the programs that take part in every row.
func (b *bench) machine() string {
	var postgres string
	b.query(&postgres, `SELECT current_setting('server_version')`)
	out, _ := exec.Command("sh", "-c", `grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-
		uname -sr; wrk -v | head -1 | cut -d[ -f1`).Output()
	var parts []string
	for line := range strings.Lines(string(out)) {
		parts = append(parts, strings.TrimSpace(line))
	}
	return fmt.Sprintf("%s, %d cores; %s; PostgreSQL %s",
		strings.Join(parts, ", "), runtime.NumCPU(), runtime.Version(), postgres)
}

// writeSection replaces the text between the markers of a section of file.
func writeSection(file, section, text string) error {
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

// alternate runs the sides in turn, after a run of each that does not count, and returns their
// results.
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
func p50(l load) float64  { return l.p50 }
func p99(l load) float64  { return l.p99 }

// medianOf is the median of one measure.
func medianOf(results []load, measure func(load) float64) float64 {
	var values []float64
	for _, l := range results {
		values = append(values, measure(l))
	}
	return median(values)
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// ratioOf is the median of the ratios of the rounds.
func ratioOf(here, there []load, measure func(load) float64) float64 {
	var ratios []float64
	for i := range here {
		ratios = append(ratios, measure(here[i])/measure(there[i]))
	}
	return median(ratios)
}

func formatRate(results []load) string {
	value := medianOf(results, rate)
	if value < 100 {
		return fmt.Sprintf("%.1f/s", value)
	}
	return fmt.Sprintf("%.0f/s", value)
}
