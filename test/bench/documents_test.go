//go:build bench

package bench

// documents_test.go has the rows of documents and of vector search.

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

type document struct {
	Content   string            `json:"content"`
	Metadata  map[string]string `json:"metadata"`
	Embedding []float32         `json:"embedding"`
}

func newDocument() document {
	return document{text, map[string]string{"lang": "en"}, randomVector()}
}

func searchBody(embedding []float32) map[string]any {
	return map[string]any{"embedding": embedding}
}

// searchFile is wrk's file of searches by owner.
func (b *bench) searchFile(owner int64) string {
	return requests(b.T, 50, func(int) string {
		body := toJSON(searchBody(randomVector()))
		return line("POST", "/documents/search", b.tokens.access(owner), body)
	})
}

// measureSearch compares searches with the same statement in pgbench and with the least handler, by
// how many documents the owner has.
func (b *bench) measureSearch() {
	const clients = 8
	b.app.resetPeak(b.T)
	c := b.capture()
	s := c.statement(b.T, "cosine_distance", func() {
		body := searchBody(randomVector())
		c.app.must(b.T, "POST", "/documents/search", c.tokens.AccessToken, body, nil)
	})
	for i, n := range ownerSizes {
		owner := firstOwner + int64(i)
		file := b.searchFile(owner)
		set := []string{
			fmt.Sprintf(`\set user %d`, owner), `\set session ` + sessionSQL(":user"),
		}
		script, args := s.script(b.T, set, map[string]string{c.user: "user", c.session: "session"})
		r := b.alternate(
			func(d time.Duration) load { return wrk(b.T, b.app, file, clients, d) },
			func(d time.Duration) load { return wrk(b.T, b.ref, file, clients, d) },
			func(d time.Duration) load { return b.pgbench(script, args, clients, d) })
		name := fmt.Sprintf("`POST /documents/search`, owner of %d, %d clients", n, clients)
		latencies := fmt.Sprintf("; p50 %.1f ms, p99 %.1f ms",
			medianOf(r[0], p50), medianOf(r[0], p99))
		b.addRates(name+latencies, r[0], leastHandler, r[1], "")
		b.addRates(name, r[0], sameSQL, r[2], "")
	}
}

// measureInsert compares single inserts with the same statement in pgbench and with the least
// handler, and batches with COPY.
func (b *bench) measureInsert() {
	const clients, owners = 8, 1000
	c, item := b.capture(), newDocument()
	s := c.statement(b.T, "INSERT INTO documents", func() {
		c.app.must(b.T, "POST", "/documents", c.tokens.AccessToken, item, nil)
	})
	set := []string{
		fmt.Sprintf(`\set user random(%d, %d)`, inserters, inserters+owners-1),
		`\set session ` + sessionSQL(":user"),
	}
	script, args := s.script(b.T, set, map[string]string{c.user: "user", c.session: "session"})
	file := b.tokenFile("POST", "/documents", toJSON(item), inserters, owners)
	r := b.alternate(
		func(d time.Duration) load { return wrk(b.T, b.app, file, clients, d) },
		func(d time.Duration) load { return wrk(b.T, b.ref, file, clients, d) },
		func(d time.Duration) load { return b.pgbench(script, args, clients, d) })
	name := fmt.Sprintf("`POST /documents`, one, %d clients", clients)
	b.addRates(name, r[0], leastHandler, r[1], "")
	b.addRates(name, r[0], sameSQL, r[2], "")
	b.measureBatches(inserters, owners)
	b.addMB("highest RSS in the rows of documents", b.app.memory(b.T, "VmHWM:"), 60)
}

// measureBatches compares batches of documents with COPY of as many.
func (b *bench) measureBatches(first, owners int64) {
	const batch, clients = 100, 2
	file := requests(b.T, 40, func(i int) string {
		items := make([]string, batch)
		for j := range items {
			items[j] = toJSON(newDocument())
		}
		body := `{"documents":[` + strings.Join(items, ",") + `]}`
		return line("POST", "/documents", b.tokens.access(first+int64(i)), body)
	})
	vector := randomVector()
	r := b.alternate(
		func(d time.Duration) load {
			l := wrk(b.T, b.app, file, clients, d)
			l.perSecond *= batch
			return l
		},
		func(d time.Duration) load {
			copied := func(conn *pgx.Conn) (float64, error) {
				return batch, copyDocuments(b.Context(), conn, first+rand.Int64N(owners), batch,
					func() []float32 { return vector })
			}
			return load{perSecond: b.repeatSQL(clients, d, copied)}
		})
	b.addRates(
		fmt.Sprintf("`POST /documents`, batches of %d, %d clients, documents", batch, clients),
		r[0], fmt.Sprintf("COPY, %d rows at a time, %d clients", batch, clients), r[1], "")
}
