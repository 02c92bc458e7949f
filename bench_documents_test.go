//go:build bench

package main

// bench_documents_test.go are the rows of vector search.

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgvector/pgvector-go"
	pgxvector "github.com/pgvector/pgvector-go/pgx"
)

// ownerSizes are how many documents the owners have, and the ratio to pgbench that is to be reached for each.
var ownerSizes = []struct {
	documents int
	goal      string
}{{50, "≥ 0.4"}, {550, "≥ 0.75"}, {3000, "≥ 0.9"}, {20_000, "≥ 0.9"}, {100_000, "≥ 0.9"}}

const text = "The quick brown fox jumps over the lazy dog, and the dog, which was asleep, asks what it was about."

func randomVector() vector {
	v := make(vector, 384)
	for i := range v {
		v[i] = float32(math.Round(rand.NormFloat64()*1e4) / 1e5)
	}
	return v
}

// copyDocuments copies n documents of owner over a connection.
func copyDocuments(ctx context.Context, conn *pgx.Conn, owner int64, n int, embedding func() vector) error {
	if _, known := conn.TypeMap().TypeForName("halfvec"); !known {
		if err := pgxvector.RegisterTypes(ctx, conn); err != nil {
			return err
		}
	}
	_, err := conn.CopyFrom(ctx, pgx.Identifier{"documents"}, []string{"owner_id", "content", "metadata", "embedding"},
		pgx.CopyFromSlice(n, func(int) ([]any, error) {
			return []any{owner, text, []byte(`{"lang":"en"}`), pgvector.NewHalfVector(embedding())}, nil
		}))
	return err
}

func (b *bench) loadDocuments() {
	b.connected(func(conn *pgx.Conn) error {
		for i, size := range ownerSizes {
			if err := copyDocuments(b.Context(), conn, b.docs+int64(i), size.documents, randomVector); err != nil {
				return err
			}
		}
		return nil
	})
}

// searchFile is wrk's file of searches by owner.
func (b *bench) searchFile(owner int64) string {
	return requests(b.T, 50, func(int) string {
		return line("POST", "/documents/search", b.token(owner), toJSON(map[string]any{"embedding": randomVector()}))
	})
}

// searchStatement is what a search by vector sends.
func (b *bench) searchStatement() string {
	return captured(b.T, b.url, "embedding <=>", func(st *store) {
		st.search(ticket{}, searchInput{Embedding: randomVector(), Mode: "vector", Limit: 10}, "simple")
	})
}

// search compares each size of owner with the same statement in pgbench, and in the least handler that could make it.
func (b *bench) search() {
	const clients = 8
	b.app.forgetPeak(b.T)
	v, statement := randomVector(), b.searchStatement()
	for i, size := range ownerSizes {
		owner := b.docs + int64(i)
		file := b.searchFile(owner)
		sql := script(b.T, "", statement)
		r := b.alternate(
			func(d time.Duration) load { return wrk(b.T, b.app, file, clients, d) },
			func(d time.Duration) load { return wrk(b.T, b.ref, file, clients, d) },
			func(d time.Duration) load {
				return pgbench(b.T, b.url, sql, clients, d, fmt.Sprintf("p1=%d", owner), fmt.Sprintf("p3=%d", owner), "p2=f", "p4=99999999999", "p5=10", "p6="+toJSON(v))
			})
		p50, p99 := medianOf(r[0], func(l load) float64 { return l.p50 }), medianOf(r[0], func(l load) float64 { return l.p99 })
		b.add(row{fmt.Sprintf("`POST /documents/search`, owner of %d, %d clients; p50 %.1f ms, p99 %.1f ms", size.documents, clients, p50, p99),
			"`pgbench -M prepared`, same SQL", perSecond(r[0]), perSecond(r[2]), ratioOf(r[0], r[2], rate), size.goal, false})
		b.add(row{fmt.Sprintf("the same, owner of %d", size.documents), "the least handler", perSecond(r[0]), perSecond(r[1]), ratioOf(r[0], r[1], rate), "", false})
	}
}

// oneHolder makes an insert of it that takes a number for the holder's session, account and documents, as pgbench has no arrays.
var oneHolder = strings.NewReplacer("$1::bigint[]", "ARRAY[$1::bigint]", "$3::bigint[]", "ARRAY[$1::bigint]", "$4::bigint[]", "ARRAY[99999999999]", "$5::bigint[]", "ARRAY[$1::bigint]")

// insert compares single documents with the same statement in pgbench, and batches with COPY.
func (b *bench) insert() {
	const clients, owners, batch = 8, 1000, 100
	first := b.docs + 1000
	v := randomVector()
	item := map[string]any{"content": text, "metadata": map[string]string{"lang": "en"}, "embedding": v}
	statement := captured(b.T, b.url, "INSERT INTO documents", func(st *store) {
		st.createDocuments(ticket{}, []documentInput{{Content: text, Embedding: v}}, false)
	})
	sql := script(b.T, fmt.Sprintf("\\set p1 random(%d, %d)", first, first+owners-1), oneHolder.Replace(statement))
	file := b.tokenFile("POST", "/documents", toJSON(item), first, owners)
	r := b.alternate(
		func(d time.Duration) load { return wrk(b.T, b.app, file, clients, d) },
		func(d time.Duration) load {
			return pgbench(b.T, b.url, sql, clients, d, "p2=f", `p6={"`+text+`"}`, `p7={"{\"lang\":\"en\"}"}`, `p8={"`+toJSON(v)+`"}`)
		})
	b.add(row{fmt.Sprintf("`POST /documents`, one, %d clients", clients), "`pgbench -M prepared`, same SQL", perSecond(r[0]), perSecond(r[1]), ratioOf(r[0], r[1], rate), "≥ 0.6", false})

	file = requests(b.T, 40, func(i int) string {
		items := make([]string, batch)
		for j := range items {
			items[j] = toJSON(map[string]any{"content": text, "metadata": map[string]string{"lang": "en"}, "embedding": randomVector()})
		}
		return line("POST", "/documents", b.token(first+int64(i)), `{"documents":[`+strings.Join(items, ",")+`]}`)
	})
	r = b.alternate(
		func(d time.Duration) load {
			l := wrk(b.T, b.app, file, 2, d)
			l.perSecond *= batch
			return l
		},
		func(d time.Duration) load {
			return load{perSecond: repeated(b.T, b.url, 2, d, func(ctx context.Context, conn *pgx.Conn) (float64, error) {
				return batch, copyDocuments(ctx, conn, first+rand.Int64N(owners), batch, func() vector { return v })
			})}
		})
	b.add(row{fmt.Sprintf("`POST /documents`, batches of %d, 2 clients, documents", batch), fmt.Sprintf("COPY, %d rows at a time, 2 clients", batch), perSecond(r[0]), perSecond(r[1]), ratioOf(r[0], r[1], rate), "≥ 0.7", false})
	peak := b.app.memory(b.T, "VmHWM:")
	b.add(row{"highest RSS in the rows of documents", "", fmt.Sprintf("%.0f MB", peak), "", math.NaN(), "≤ 60 MB", peak <= 60})
}
