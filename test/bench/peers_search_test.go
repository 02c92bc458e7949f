//go:build bench

package bench

// peers_search_test.go compares vector search through each HTTP API: the nearest 10 of one
// owner's documents, over 8 connections, and how many of the true nearest are found.

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	searchLimit   = 10
	searchQueries = 100
	searchBatch   = 500 // documents in a request
	clusters      = 50
)

// searchSizes are how many documents the owners have.
var searchSizes = []int{500, 5000, 20_000}

// searcher is a service with documents.
type searcher struct {
	name, database string // database: in PostgreSQL, to be vacuumed after loading
	index          string // built after loading
	process        *process
	add            func(owner int, first int, vectors [][]float32) // documents from number first on
	query          func(owner int, vector []float32) string        // a line of wrk's file
	numbers        func(answer []byte) ([]int, error)              // of the documents found
}

// collection is an owner's documents, and queries with the numbers of the true nearest.
type collection struct {
	vectors, queries [][]float32
	nearest          [][]int
}

// compareSearch measures all services and returns the table.
func (c *peers) compareSearch() string {
	c.notes = nil
	collections := makeCollections()
	sides := []*searcher{c.latchSearch()}
	sides = append(sides, c.fastAPISearch()...)
	sides = append(sides, c.chroma()...)
	for _, s := range sides {
		begin := time.Now()
		for owner, list := range collections {
			for first := 0; first < len(list.vectors); first += searchBatch {
				s.add(owner, first, list.vectors[first:min(first+searchBatch, len(list.vectors))])
			}
		}
		fmt.Printf("%s: loaded in %.0f s\n", s.name, time.Since(begin).Seconds())
	}
	c.finishLoading(sides)
	names := []string{"documents of the owner"}
	for _, s := range sides {
		names = append(names, s.name)
	}
	lines := []string{c.searchCaption(), "", cells(names...), rule(len(names))}
	for owner, list := range collections {
		lines = append(lines, c.compareOwner(sides, owner, list))
		fmt.Println(lines[len(lines)-1])
	}
	return strings.Join(lines, "\n") + "\n"
}

func (c *peers) searchCaption() string {
	text := fmt.Sprintf("%s; %d dimensions, %d clusters, %d queries, %d runs of %d s a side; %s.",
		c.machine(), dimensions, clusters, searchQueries, *rounds, *seconds,
		time.Now().UTC().Format(time.DateOnly))
	return strings.Join(append([]string{text}, c.notes...), " ")
}

// compareOwner measures the searches of one owner: a line of the table.
func (c *peers) compareOwner(sides []*searcher, owner int, list collection) string {
	line := []string{fmt.Sprint(len(list.vectors))}
	var runs []func(d time.Duration) load
	for _, s := range sides {
		file := requests(c.T, searchQueries, func(i int) string {
			return s.query(owner, list.queries[i])
		})
		runs = append(runs, func(d time.Duration) load { return wrk(c.T, s.process, file, 8, d) })
	}
	for i, r := range c.alternate(runs...) {
		recall := c.recall(sides[i], owner, list)
		line = append(line, fmt.Sprintf("%s, recall %.3f", formatRate(r), recall))
	}
	return cells(line...)
}

// recall returns the share of the true nearest that a service finds.
func (c *peers) recall(s *searcher, owner int, list collection) float64 {
	c.Helper()
	conn, err := dial(s.process)
	if err != nil {
		c.Fatal(err)
	}
	defer conn.conn.Close()
	found := 0
	for i, query := range list.queries {
		parts := strings.SplitN(s.query(owner, query), "\t", 4)
		answer, err := conn.do(parts[0], parts[1], parts[2], parts[3])
		var numbers []int
		if err == nil {
			numbers, err = s.numbers(answer)
		}
		if err != nil {
			c.Fatalf("%s: %v", s.name, err)
		}
		for _, n := range numbers {
			if slices.Contains(list.nearest[i], n) {
				found++
			}
		}
	}
	return float64(found) / float64(searchQueries*searchLimit)
}

// makeCollections makes clustered vectors, the same at each call.
func makeCollections() (list []collection) {
	r := rand.New(rand.NewPCG(1, 2))
	near := func(center []float32, spread float64) []float32 {
		v := make([]float32, dimensions)
		for i := range v {
			v[i] = float32(spread * r.NormFloat64())
			if center != nil {
				v[i] += center[i]
			}
		}
		return v
	}
	centers := make([][]float32, clusters)
	for i := range centers {
		centers[i] = near(nil, 1)
	}
	sample := func(n int) (vectors [][]float32) {
		for range n {
			vectors = append(vectors, near(centers[r.IntN(clusters)], 0.7))
		}
		return vectors
	}
	for _, n := range searchSizes {
		c := collection{vectors: sample(n), queries: sample(searchQueries)}
		for _, query := range c.queries {
			c.nearest = append(c.nearest, nearestTo(query, c.vectors))
		}
		list = append(list, c)
	}
	return list
}

// nearestTo returns the numbers of the vectors with the least cosine distance, by brute force.
func nearestTo(query []float32, vectors [][]float32) []int {
	distances, numbers := make([]float64, len(vectors)), make([]int, len(vectors))
	for n, v := range vectors {
		var dot, norm float64
		for i := range v {
			dot += float64(v[i]) * float64(query[i])
			norm += float64(v[i]) * float64(v[i])
		}
		distances[n], numbers[n] = -dot/math.Sqrt(norm), n
	}
	slices.SortFunc(numbers, func(a, b int) int {
		if distances[a] < distances[b] {
			return -1
		}
		return 1
	})
	return numbers[:searchLimit]
}

// contentOf is the content of a document; numberOf reads its number.
func contentOf(number int) string { return fmt.Sprintf("document %d: %s", number, text) }

func numberOf(content string) (n int, err error) {
	_, err = fmt.Sscanf(content, "document %d:", &n)
	return n, err
}

// documentBatch is a request of the services with this API.
func documentBatch(first int, vectors [][]float32) map[string]any {
	var list []document
	for i, v := range vectors {
		list = append(list, document{contentOf(first + i), map[string]string{"lang": "en"}, v})
	}
	return map[string]any{"documents": list}
}

// documentSearch is a searcher of the services with this API, with an account for each owner.
func (c *peers) documentSearch(name, database string, side *peer) *searcher {
	c.Helper()
	c.start(side)
	p := side.process
	conn, err := dial(p)
	if err != nil {
		c.Fatal(err)
	}
	defer conn.conn.Close()
	owners := make([]account, len(searchSizes))
	for i := range owners {
		email := fmt.Sprintf("owner%d@example.com", i+1)
		if err = side.register(conn, email); err == nil {
			owners[i], err = side.login(conn, email)
		}
		if err != nil {
			c.Fatalf("%s: %v", name, err)
		}
	}
	return &searcher{
		name: name, database: database, process: p,
		add: func(owner, first int, vectors [][]float32) {
			body := documentBatch(first, vectors)
			p.must(c.T, "POST", "/documents", owners[owner].access, body, nil)
		},
		query: func(owner int, vector []float32) string {
			body := toJSON(searchBody(vector))
			return line("POST", "/documents/search", owners[owner].access, body)
		},
		numbers: documentNumbers,
	}
}

func documentNumbers(answer []byte) (list []int, err error) {
	var found struct{ Results []struct{ Document document } }
	if err := json.Unmarshal(answer, &found); err != nil {
		return nil, err
	}
	for _, r := range found.Results {
		n, err := numberOf(r.Document.Content)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}

func (c *peers) latchSearch() *searcher {
	return c.documentSearch("Latch", "search_latch", c.latch("search_latch"))
}

// fastAPISearch is the same API in Python with pgvector, once exact and once with an HNSW index of
// pgvector's default parameters over the documents of all owners.
func (c *peers) fastAPISearch() []*searcher {
	if !c.installed("FastAPI", "fastapi/installed") {
		return nil
	}
	start := func(name, database string) *searcher {
		return c.documentSearch(name, database, c.fastAPISide(database))
	}
	exact := start("FastAPI, pgvector exact", "search_exact")
	hnsw := start("FastAPI, pgvector HNSW", "search_hnsw")
	hnsw.index = `CREATE INDEX ON documents USING hnsw (embedding vector_cosine_ops)`
	return []*searcher{exact, hnsw}
}

// finishLoading does what an operator would do after a bulk load.
func (c *peers) finishLoading(sides []*searcher) {
	c.Helper()
	for _, s := range sides {
		if s.database == "" {
			continue
		}
		url := strings.Replace(c.url, "/postgres?", "/"+s.database+"?", 1)
		c.connect(url, func(conn *pgx.Conn) (err error) {
			if s.index != "" {
				_, err = conn.Exec(c.Context(), s.index)
			}
			if err == nil {
				_, err = conn.Exec(c.Context(), `VACUUM ANALYZE`)
			}
			return err
		})
	}
}

// chroma is Chroma's server, with a collection for each owner. It has no accounts.
func (c *peers) chroma() []*searcher {
	if !c.installed("Chroma", "chroma/installed") {
		return nil
	}
	port := freePort(c.T)
	cmd := exec.Command(filepath.Join(c.dir, "chroma/bin/chroma"),
		"run", "--path", c.TempDir(), "--host", "127.0.0.1", "--port", port)
	cmd.Env = []string{"ANONYMIZED_TELEMETRY=False", "HOME=" + c.TempDir()}
	p := launch(c.T, cmd, port, "/api/v2", "/heartbeat")
	c.Cleanup(p.stop)
	const collections = "/tenants/default_tenant/databases/default_database/collections"
	paths := make([]string, len(searchSizes))
	for i := range paths {
		var created struct{ ID string }
		p.must(c.T, "POST", collections, "", map[string]any{
			"name":          fmt.Sprintf("owner%d", i+1),
			"configuration": map[string]any{"hnsw": map[string]string{"space": "cosine"}},
		}, &created)
		paths[i] = collections + "/" + created.ID
	}
	return []*searcher{{
		name: "Chroma " + c.pinned("chroma.txt", "chromadb"), process: p,
		add: func(owner, first int, vectors [][]float32) {
			p.must(c.T, "POST", paths[owner]+"/add", "", chromaBatch(first, vectors), nil)
		},
		query: func(owner int, vector []float32) string {
			return line("POST", paths[owner]+"/query", "", toJSON(map[string]any{
				"query_embeddings": [][]float32{vector}, "n_results": searchLimit,
				"include": []string{"documents", "metadatas", "distances"},
			}))
		},
		numbers: chromaNumbers,
	}}
}

func chromaBatch(first int, vectors [][]float32) map[string]any {
	var ids, contents []string
	var metadata []map[string]string
	for i := range vectors {
		ids = append(ids, fmt.Sprint(first+i))
		contents = append(contents, contentOf(first+i))
		metadata = append(metadata, map[string]string{"lang": "en"})
	}
	return map[string]any{
		"ids": ids, "documents": contents, "metadatas": metadata, "embeddings": vectors,
	}
}

func chromaNumbers(answer []byte) (list []int, err error) {
	var found struct{ Documents [][]string }
	if err := json.Unmarshal(answer, &found); err != nil {
		return nil, err
	}
	for _, content := range found.Documents[0] {
		n, err := numberOf(content)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}
