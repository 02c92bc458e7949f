package faults

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestStalledUploads has a user announce uploads of 16 MiB that then stall. Another user's upload
// of 1 MiB is stored meanwhile.
func TestStalledUploads(t *testing.T) {
	g := newTarget(t, "stalled-uploads")
	body := []byte(fmt.Sprintf(`{"content":"x","embedding":[1,0,0]%s}`, strings.Repeat(" ", 1<<20)))
	for _, n := range pick([]int{4, 32}, []int{4}) {
		for name, atOnce := range map[string]int{"head": 0, "part": 300 << 10, "most": 16<<20 - 1} {
			ctx, cancel := context.WithCancel(t.Context())
			var stalls sync.WaitGroup
			for i := range n {
				stalls.Go(func() { g.stall(ctx, i%2 == 1, atOnce) })
			}
			time.Sleep(pick(2*time.Second, 500*time.Millisecond))
			var slowest time.Duration
			for range pick(3, 1) {
				start := time.Now()
				a := g.client.do("POST", "/documents", g.other.AccessToken, body)
				slowest = max(slowest, time.Since(start))
				if g.count(a); a.status() != 201 && !isSlow(a) {
					g.fault("%d uploads stalled after the %s: %v", n, name, a)
				}
			}
			g.atMost(fmt.Sprintf("upload_%d_%s_s", n, name), slowest.Seconds(), 3)
			cancel()
			stalls.Wait()
		}
	}
}

// stall announces a document of 16 MiB, in chunks or not, sends so many bytes of it, and waits
// until ctx ends.
func (g *target) stall(ctx context.Context, chunked bool, atOnce int) {
	c, err := dial(g.address())
	if err != nil {
		g.fault("%v", err)
		return
	}
	defer c.Close()
	length := 16 << 20
	if chunked {
		length = -1
	}
	request := head("POST", "/documents", g.user.AccessToken, jsonMedia, length)
	if chunked {
		request = fmt.Appendf(request, "%x\r\n", 16<<20)
	}
	context.AfterFunc(ctx, func() { c.Close() })
	c.Write(append(request, strings.Repeat(" ", atOnce)...))
	<-ctx.Done()
}

// TestExpensiveSearches has one user search texts with 64 words in documents that hold them all,
// which is as much work as a search can be, while another user searches vectors.
func TestExpensiveSearches(t *testing.T) {
	g := newTarget(t, "expensive-searches")
	var words []string
	for i := range 64 {
		words = append(words, fmt.Sprintf("word%d", i))
	}
	g.db.sql(g.database, fmt.Sprintf(`INSERT INTO documents (owner_id, content, metadata, embedding)
		SELECT %d, repeat('%s ', 60) || d, '{}', '[1,0,0]' FROM generate_series(1, %d) d`,
		g.user.id, strings.Join(words, " "), pick(200, 100)))
	g.db.sql(g.database, fmt.Sprintf(`INSERT INTO documents (owner_id, content, metadata, embedding)
		SELECT %d, 'x', '{}', ('[1,' || random() || ',' || random() || ']')::halfvec
		FROM generate_series(1, 500)`, g.other.id))
	for _, n := range pick([]int{8, 32}, []int{8}) {
		g.end = time.Now().Add(pick(10*time.Second, 3*time.Second))
		var expensive sync.WaitGroup
		for i := range n {
			expensive.Go(func() { g.searchTexts(i, strings.Join(words, " ")) })
		}
		samples := g.searchVectors()
		expensive.Wait()
		g.figure(fmt.Sprintf("searches_beside_%d", n), float64(len(samples)))
		g.figure(fmt.Sprintf("p99_beside_%d_ms", n), milliseconds(quantile(samples, .99)))
		g.atMost(fmt.Sprintf("refused_beside_%d", n), float64(refused(samples)), 0)
	}
}

// searchTexts searches one text after another for the user.
func (g *target) searchTexts(i int, words string) {
	cl := &client{address: g.address()}
	defer cl.closeIdle()
	body := map[string]any{"mode": "text", "query": words, "limit": 100}
	if i%2 == 1 {
		body["mode"], body["embedding"] = "hybrid", []int{1, 2, 3}
	}
	for g.attacked() {
		a := cl.do("POST", "/documents/search", g.user.AccessToken, body)
		g.count(a)
		if a.status() != 200 {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// searchVectors searches vectors for the other user, 20 a second, and returns the outcomes.
func (g *target) searchVectors() (samples []sample) {
	cl := &client{address: g.address()}
	defer cl.closeIdle()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for ; g.attacked(); time.Sleep(50 * time.Millisecond) {
		wg.Go(func() {
			body := map[string]any{"embedding": []float64{1, rand.Float64(), rand.Float64()}}
			s := sample{start: time.Now(), op: "search"}
			a := cl.do("POST", "/documents/search", g.other.AccessToken, body)
			s.end, s.status = time.Now(), a.status()
			mu.Lock()
			samples = append(samples, s)
			mu.Unlock()
			if g.count(a); s.status != 200 && !isSlow(a) {
				g.fault("a search of the other user: %v", a)
			}
		})
	}
	wg.Wait()
	return samples
}

// uploader keeps batches of 500 documents under way for one account.
type uploader struct {
	*target
	member
	batch    []byte
	underWay atomic.Int64
	stored   atomic.Int64 // batches
	stop     atomic.Bool
	wg       sync.WaitGroup
}

// startUploader makes an account and returns when a batch is stored and others are under way.
func (g *target) startUploader(email string) *uploader {
	g.row.t.Helper()
	docs := make([]string, 500)
	for i := range docs {
		text := &strings.Builder{}
		for range 200 {
			fmt.Fprintf(text, "word%d ", rand.IntN(20_000))
		}
		docs[i] = fmt.Sprintf(`{"content":%q,"embedding":[1,2,%d]}`, text, i)
	}
	u := &uploader{target: g, member: g.client.signUp(g.row.t, email)}
	u.batch = []byte(`{"documents":[` + strings.Join(docs, ",") + `]}`)
	for range pick(6, 4) {
		u.wg.Go(u.upload)
	}
	eventually(20*time.Second, func() bool { return u.stored.Load() > 0 && u.underWay.Load() > 1 })
	return u
}

// upload sends one batch after another.
func (u *uploader) upload() {
	cl := &client{address: u.address(), timeout: time.Minute}
	defer cl.closeIdle()
	for !u.stop.Load() {
		u.underWay.Add(1)
		a := cl.do("POST", "/documents", u.AccessToken, u.batch)
		u.underWay.Add(-1)
		u.count(a)
		if a.status() == 201 {
			u.stored.Add(1)
		} else {
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// end stops the uploads.
func (u *uploader) end() {
	u.stop.Store(true)
	u.wg.Wait()
}

// revocation is a request that takes rights from an account.
type revocation struct {
	name   string
	admin  bool // sent by an admin to /users/{id}, else by the account itself
	method string
	path   string // "" for an admin's
	body   string // EMAIL stands for the account's e-mail
	want   int
	other  bool   // the effect is on another session of the account
	probe  string // a path for which the account's token is good before
	after  int    // the status of GET probe with that token afterwards
	shows  string // what its answer holds, afterwards only
}

const newPassword = "another good passphrase"

var revocations = []revocation{
	{"deactivation", true, "PUT", "", `{"is_active":false}`, 200, false, "/users/me", 401, ""},
	{"email", true, "PUT", "", `{"email":"new-EMAIL"}`, 200, false, "/users/me", 200, `"new-`},
	{"password", true, "PUT", "", `{"password":"` + newPassword + `"}`, 200,
		false, "/users/me", 401, ""},
	{"demotion", true, "PUT", "", `{"is_admin":false}`, 200, false, "/users", 403, ""},
	{"own_password", false, "PUT", "/users/me", `{"password":"` + newPassword +
		`","current_password":"` + password + `"}`, 200, true, "/users/me", 401, ""},
	{"logout", false, "POST", "/auth/logout", "", 204, false, "/users/me", 401, ""},
	{"deletion", true, "DELETE", "", "", 204, false, "/users/me", 401, ""},
	{"own_deletion", false, "DELETE", "/users/me", `{"current_password":"` + password + `"}`, 204,
		false, "/users/me", 401, ""},
}

// revocationLimit is the time within which a revocation is answered and effective, whatever the
// account does. A deletion is effective within it, and is answered when the documents are gone.
const (
	revocationLimit = time.Second
	deletionLimit   = 30 * time.Second
)

// TestRevocation revokes an account that keeps batches of 500 documents under way.
func TestRevocation(t *testing.T) {
	g := newTarget(t, "revocation")
	g.db.makeAdmin(g.database, g.other.id)
	for round := range pick(3, 1) {
		for _, r := range revocations {
			if !full && r.name != "deactivation" && r.name != "email" && r.name != "deletion" {
				continue
			}
			g.revoke(r, round)
		}
	}
}

// revoke starts an account's uploads, revokes it, and checks the time and the effect.
func (g *target) revoke(r revocation, round int) {
	u := g.startUploader(fmt.Sprintf("%s%d@example.com", r.name, round))
	defer u.end()
	if r.name == "demotion" {
		g.db.makeAdmin(g.database, u.id)
	}
	token := u.AccessToken
	if r.other {
		token = g.client.login(g.row.t, u.email, password).AccessToken
	}
	g.must(200, "GET", r.probe, token, nil)
	if u.underWay.Load() == 0 {
		g.fault("%s: no upload was under way", r.name)
	}
	start := time.Now()
	answered := make(chan answer, 1)
	go func() { answered <- g.sendRevocation(r, u.member) }()
	took, ok := eventually(deletionLimit, func() bool {
		a := g.client.do("GET", r.probe, token, nil)
		return a.status() == r.after && bytes.Contains(a.body, []byte(r.shows))
	})
	g.atMost(r.name+"_effective_s", took.Seconds(), revocationLimit.Seconds())
	if !ok {
		g.fault("%s: GET %s never was %d", r.name, r.probe, r.after)
	}
	a := <-answered
	limit := revocationLimit
	if r.method == "DELETE" {
		limit = deletionLimit
	}
	g.atMost(r.name+"_answered_s", time.Since(start).Seconds(), limit.Seconds())
	if a.status() != r.want {
		g.fault("%v, want %d", a, r.want)
	}
	u.end()
	if r.method == "DELETE" {
		rows := `SELECT (SELECT count(*) FROM users WHERE id = $1) +
			(SELECT count(*) FROM documents WHERE owner_id = $1)`
		g.atMost(r.name+"_rows_left", float64(g.db.count(g.database, rows, u.id)), 0)
	}
}

// sendRevocation sends the request of a revocation of an account.
func (g *target) sendRevocation(r revocation, m member) answer {
	token, path := m.AccessToken, r.path
	if r.admin {
		token, path = g.other.AccessToken, fmt.Sprintf("/users/%d", m.id)
	}
	var body any
	if r.body != "" {
		body = []byte(strings.ReplaceAll(r.body, "EMAIL", m.email))
	}
	cl := &client{address: g.address(), timeout: deletionLimit}
	return cl.do(r.method, path, token, body)
}
