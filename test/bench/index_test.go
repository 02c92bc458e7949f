//go:build bench

package bench

// index_test.go has the rows of "latch index": one account with a million documents beside a
// thousand with a hundred.

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"
	pgxvector "github.com/pgvector/pgvector-go/pgx"
)

const (
	largeOwner  = 24_001 // the account with *largeSize documents
	largeIndex  = "documents_hnsw_24001"
	smallOwners = 25_001 // the first of smallCount accounts with smallSize documents each
	smallCount  = 1000
	smallSize   = 100
	indexProbes = 40 // searches of each kind
)

var (
	largeSize = flag.Int("documents", 1_000_000, "documents of the account with an index")
	centres   = flag.Int("centres", 1000, "of its vectors")
)

// clustered makes vectors like those of a model: of few degrees of freedom, around some centres.
type clustered struct{ centres, axes [][]float32 }

func newClustered() clustered {
	normal := func(rows, columns int) (m [][]float32) {
		for range rows {
			m = append(m, make([]float32, columns))
			for i := range m[len(m)-1] {
				m[len(m)-1][i] = float32(rand.NormFloat64())
			}
		}
		return m
	}
	return clustered{normal(*centres, 32), normal(32, dimensions)}
}

func (c clustered) vector() []float32 {
	v := make([]float32, dimensions)
	for i := range v {
		v[i] = 0.5 * float32(rand.NormFloat64())
	}
	for k, x := range c.centres[rand.IntN(len(c.centres))] {
		x += 0.5 * float32(rand.NormFloat64())
		for i, y := range c.axes[k] {
			v[i] += x * y
		}
	}
	return v
}

// copyClustered copies n documents of owner, whose metadata 50, 5 and 0.5 % share.
func (b *bench) copyClustered(c clustered, owner int64, n int) {
	b.Helper()
	b.connect(b.url, func(conn *pgx.Conn) error {
		if err := pgxvector.RegisterTypes(b.Context(), conn); err != nil {
			return err
		}
		columns := []string{"owner_id", "content", "metadata", "embedding"}
		_, err := conn.CopyFrom(b.Context(), pgx.Identifier{"documents"}, columns,
			pgx.CopyFromSlice(n, func(i int) ([]any, error) {
				metadata := fmt.Sprintf(`{"half":%d,"twentieth":%d,"rare":%d}`, i%2, i%20, i%200)
				return []any{owner, text, []byte(metadata), pgvector.NewHalfVector(c.vector())}, nil
			}))
		return err
	})
}

// probe is a search whose true nearest are known.
type probe struct {
	body     map[string]any
	farthest float64 // distance of the last of the 10 nearest
}

// probes returns searches with a filter, or without one where it is empty.
func (b *bench) probes(c clustered, filter string) (list []probe) {
	b.Helper()
	b.connect(b.url, func(conn *pgx.Conn) error {
		if err := pgxvector.RegisterTypes(b.Context(), conn); err != nil {
			return err
		}
		for range indexProbes {
			v := c.vector()
			p := probe{body: searchBody(v)}
			args, where := []any{pgvector.NewHalfVector(v), largeOwner}, ""
			if filter != "" {
				p.body["filter"] = map[string]int{filter: 1}
				args, where = append(args, toJSON(p.body["filter"])), " AND metadata @> $3"
			}
			err := conn.QueryRow(b.Context(), `SELECT max(d) FROM (
				SELECT cosine_distance(embedding, $1) AS d FROM documents
				WHERE owner_id = $2`+where+` ORDER BY d LIMIT 10) AS nearest`,
				args...).Scan(&p.farthest)
			if err != nil {
				return err
			}
			list = append(list, p)
		}
		return nil
	})
	return list
}

// runProbes returns quantiles of the time that the searches take, in milliseconds, and which share
// of the true nearest they find. Each must have 10 results.
func (b *bench) runProbes(list []probe, exact bool) (p50, p99, recall float64) {
	b.Helper()
	var took []float64
	hits := 0
	for _, p := range list {
		p.body["exact"] = exact
		var answer struct {
			Exact   bool
			Results []struct{ Distance float64 }
		}
		begin := time.Now()
		b.app.must(b.T, "POST", "/documents/search", b.tokens.access(largeOwner), p.body, &answer)
		took = append(took, milliseconds(time.Since(begin)))
		if len(answer.Results) != 10 {
			b.Errorf("a search has %d results, want 10", len(answer.Results))
		}
		for _, r := range answer.Results {
			if r.Distance <= p.farthest {
				hits++
			}
		}
	}
	q := quantilesOf(took, 0.5, 0.99)
	return q[0], q[1], float64(hits) / float64(10*len(list))
}

// measureIndex builds an index for a large owner, and measures its searches and inserts, and those
// of the others, before and after.
func (b *bench) measureIndex() {
	c := newClustered()
	b.copyClustered(c, largeOwner, *largeSize)
	for i := range int64(smallCount) {
		b.copyClustered(c, smallOwners+i, smallSize)
	}
	b.exec(`VACUUM ANALYZE documents`)
	b.exec(`CHECKPOINT`)
	b.buildIndex()
	names := []string{"no filter", "a filter of 50 %", "of 5 %", "of 0.5 %"}
	for i, filter := range []string{"", "half", "twentieth", "rare"} {
		list := b.probes(c, filter)
		p50, p99, recall := b.runProbes(list, false)
		r := row{name: "search of its owner, " + names[i],
			here: fmt.Sprintf("p50 %.1f, p99 %.1f ms; recall@10 %.4f", p50, p99, recall)}
		if i == 0 {
			exact, _, _ := b.runProbes(list, true)
			r.beside, r.there = "the exact search", fmt.Sprintf("p50 %.0f ms", exact)
			r.goal, r.reached = "≤ 15 ms, ≥ 0.99", p50 <= 15 && recall >= 0.99
		}
		b.add(r)
	}
	b.measureIndexCost(c)
}

// measureIndexCost compares searches and inserts of the small owners, and inserts of the large one,
// with and without the index, which PostgreSQL is told in turn not to keep.
func (b *bench) measureIndexCost(c clustered) {
	search := requests(b.T, 200, func(i int) string {
		return line("POST", "/documents/search", b.tokens.access(smallOwners+int64(i)),
			toJSON(searchBody(c.vector())))
	})
	insert := func(owner func(i int) int64) string {
		return requests(b.T, 4000, func(i int) string { // enough that few vectors come again
			item := document{text, map[string]string{"lang": "en"}, c.vector()}
			return line("POST", "/documents", b.tokens.access(owner(i)), toJSON(item))
		})
	}
	run := func(file string) func(d time.Duration) load {
		return func(d time.Duration) load { return wrk(b.T, b.app, file, 8, d) }
	}
	batch := func(time.Duration) load {
		items := make([]document, 100)
		for i := range items {
			items[i] = document{text, map[string]string{"lang": "en"}, c.vector()}
		}
		begin := time.Now()
		b.app.must(b.T, "POST", "/documents", b.tokens.access(largeOwner),
			map[string]any{"documents": items}, nil)
		return load{perSecond: 100 / time.Since(begin).Seconds()}
	}
	small := insert(func(i int) int64 { return smallOwners + int64(i%smallCount) })
	for _, side := range []struct {
		name, goal string
		run        func(d time.Duration) load
	}{
		{"searches of the others, 8 clients", "≤ 1.1", run(search)},
		{"inserts of the others, 8 clients", "≤ 1.1", run(small)},
		{"inserts of its owner, 8 clients", "", run(insert(func(int) int64 { return largeOwner }))},
		{"documents of its owner, batches of 100, 1 client", "", batch},
	} {
		with := func(index bool) func(d time.Duration) load {
			return func(d time.Duration) load {
				b.exec(`UPDATE pg_index SET indisready = $1, indisvalid = $1
					WHERE indexrelid = $2::regclass`, index, largeIndex)
				return side.run(d)
			}
		}
		r := b.alternate(with(false), with(true))
		b.addRates(side.name+", without the index", r[0], "with it", r[1], side.goal)
	}
}

// buildIndex runs "latch index", prints what it prints, and adds the rows of the build.
func (b *bench) buildIndex() {
	b.Helper()
	cmd := exec.Command(b.binary, "index", fmt.Sprintf("user%d@example.com", largeOwner))
	cmd.Dir, cmd.Env = b.TempDir(), b.env(b.url)
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(begin)
	fmt.Printf("%s", out)
	if err != nil {
		b.Fatal(err)
	}
	var size float64
	b.query(&size, `SELECT pg_relation_size($1::regclass)`, largeIndex)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	b.add(row{name: fmt.Sprintf("`latch index` of %d documents, and measuring", *largeSize),
		here:   fmt.Sprintf("%.0f s; %.0f MB", took.Seconds(), size/1e6),
		beside: "it says", there: lines[len(lines)-1]})
}
