//go:build fault

package faults

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"latch/test/pgbouncer"
)

// bouncerSettings are further lines of PgBouncer's configuration. A tolerant one ignores settings
// that it does not know: only its mistakes show that it is there.
var bouncerSettings = map[string][]string{
	"strict": nil,
	"tolerant": {"ignore_startup_parameters = statement_timeout,lock_timeout," +
		"idle_in_transaction_session_timeout,plan_cache_mode,jit," +
		"max_parallel_workers_per_gather,random_page_cost"},
}

// TestPgBouncer puts PgBouncer in transaction mode between the replicas and PostgreSQL, and
// restarts it.
func TestPgBouncer(t *testing.T) {
	for name, settings := range bouncerSettings {
		t.Run(name, func(t *testing.T) {
			name := "pgbouncer-" + name
			s := &site{row: newRow(t, name), database: "latch", db: startPostgres(t, name)}
			s.db.createDatabase(s.database)
			bouncer, err := pgbouncer.Start(workDir, "127.0.0.1", s.db.port, settings...)
			if err != nil {
				t.Fatal(err)
			}
			defer bouncer.Stop()
			s.startReplicas(program, databaseURL(bouncer.Address, s.database), nil, nil)
			s.begin()
			bouncer.Stop()
			time.Sleep(500 * time.Millisecond)
			if err := bouncer.Restart(); err != nil {
				t.Fatal(err)
			}
			s.end(time.Now(), time.Second)
		})
	}
}

// TestOperationsThroughPgBouncer calls every operation of the OpenAPI document through PgBouncer,
// by several clients at once, so that each statement meets connections that others have used.
func TestOperationsThroughPgBouncer(t *testing.T) {
	for name, settings := range bouncerSettings {
		t.Run(name, func(t *testing.T) {
			name := "operations-" + name
			r, db := newRow(t, name), startPostgres(t, name)
			db.createDatabase("latch")
			bouncer, err := pgbouncer.Start(workDir, "127.0.0.1", db.port, settings...)
			if err != nil {
				t.Fatal(err)
			}
			defer bouncer.Stop()
			target := startReplica(t, databaseURL(bouncer.Address, "latch"))
			root := (&client{address: target.address()}).signUp(t, "root@example.com")
			db.makeAdmin("latch", root.id) // the others delete their accounts
			walks := make([]*walk, 4)
			parallel(len(walks), func(i int) {
				walks[i] = &walk{row: r, db: db, called: map[string]bool{}}
				walks[i].client = &client{address: target.address()}
				for round := range 5 {
					walks[i].run(fmt.Sprintf("walk%d.%d", i, round))
				}
			})
			for _, operation := range documentedOperations(t, target) {
				if !walks[0].called[operation] {
					r.fault("%s is not called: add it to walk.run", operation)
				}
			}
		})
	}
}

// documentedOperations returns the method and path of each operation of /openapi.json.
func documentedOperations(t *testing.T, r *replica) (operations []string) {
	t.Helper()
	res, err := http.Get("http://" + r.address() + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	document := decode[struct{ Paths map[string]map[string]any }](text)
	for path, methods := range document.Paths {
		for method := range methods {
			path, ok := strings.CutPrefix(path, apiPrefix)
			if ok && method != "parameters" {
				operations = append(operations, strings.ToUpper(method)+" "+path)
			}
		}
	}
	if len(operations) < 20 {
		t.Fatalf("/openapi.json has only the operations %q", operations)
	}
	return operations
}

// walk is a client that calls all operations for one account after another.
type walk struct {
	*row
	*client
	db     *postgres
	called map[string]bool
	token  string
	id     int64 // stands for {id}
}

// call calls an operation with a JSON body, "" for none, and fails the row where its status is not
// want. It returns the id in the answer and keeps it for later calls.
func (w *walk) call(want int, method, path, body string) (id int64) {
	route, _, _ := strings.Cut(path, "?")
	w.called[method+" "+route] = true
	var text any
	if body != "" {
		text = []byte(body)
	}
	path = strings.ReplaceAll(path, "{id}", strconv.FormatInt(w.id, 10))
	a := w.do(method, path, w.token, text)
	if w.count(a); a.status() != want {
		w.fault("%v, want %d", a, want)
	}
	if id := decode[struct{ ID int64 }](a.body).ID; id != 0 {
		w.id = id
	}
	return w.id
}

// run calls all operations as a new admin.
func (w *walk) run(name string) {
	m := w.signUp(w.t, name+"@example.com")
	w.called["POST /auth/register"], w.called["POST /auth/login"] = true, true
	w.db.makeAdmin("latch", m.id)
	w.token = m.AccessToken
	w.call(200, "GET", "/health", "")
	w.call(200, "GET", "/health/db", "")
	w.call(200, "POST", "/auth/refresh", `{"refresh_token":"`+m.RefreshToken+`"}`)
	second := w.login(w.t, m.email, password)
	w.call(200, "POST", "/auth/revoke", `{"token":"`+second.RefreshToken+`"}`)
	w.login(w.t, m.email, password)
	w.useDocuments()

	w.call(201, "POST", "/users", `{"email":"x`+m.email+`","password":"`+password+`"}`)
	w.call(200, "GET", "/users?q=x"+name, "")
	w.call(200, "GET", "/users/{id}", "")
	w.call(200, "PUT", "/users/{id}", `{"full_name":"n"}`)
	w.call(200, "PATCH", "/users/{id}", `{"is_active":false}`)
	w.call(204, "DELETE", "/users/{id}", "")
	w.call(200, "GET", "/users/me", "")
	w.call(200, "PUT", "/users/me", `{"full_name":null}`)
	w.call(200, "PATCH", "/users/me", `{"full_name":"n"}`)

	sessions := w.do("GET", "/auth/sessions", w.token, nil)
	w.called["GET /auth/sessions"] = true
	for _, s := range decode[[]struct {
		ID      int64
		Current bool
	}](sessions.body) {
		if w.id = s.ID; !s.Current {
			w.call(204, "DELETE", "/auth/sessions/{id}", "")
		}
	}
	w.token = w.login(w.t, m.email, password).AccessToken
	w.call(204, "POST", "/auth/logout?scope=others", "")
	w.db.sql("latch", "INSERT INTO documents (owner_id, content, metadata, embedding) "+
		fmt.Sprintf("VALUES (%d, 'x', '{}', '[1,2,3]')", m.id))
	w.call(204, "DELETE", "/users/me", `{"current_password":"`+password+`"}`)
}

// useDocuments calls the operations of documents.
func (w *walk) useDocuments() {
	document := `{"content":"some words","metadata":{"a":1},"embedding":[1,2,3]}`
	w.call(201, "POST", "/documents/batch", `{"documents":[`+document+`,`+document+`]}`)
	w.call(201, "POST", "/documents", document)
	w.call(200, "GET", `/documents?limit=2&filter={"a":1}&include=embedding`, "")
	w.call(200, "GET", "/documents/{id}", "")
	w.call(200, "PUT", "/documents/{id}", `{"metadata":{"a":2}}`)
	w.call(200, "POST", "/documents/search", `{"embedding":[3,2,1],"filter":{"a":1}}`)
	w.call(200, "POST", "/documents/search", `{"query":"words","mode":"text"}`)
	hybrid := `{"query":"words","mode":"hybrid","embedding":[1,1,1]}`
	w.call(200, "POST", "/documents/search", hybrid)
	w.call(204, "DELETE", "/documents/{id}", "")
	keyed := `{"key":"k","content":"words","metadata":{"a":3},"embedding":[1,2,3]}`
	w.call(201, "POST", "/documents?upsert=true", keyed)
	w.call(201, "POST", "/documents?upsert=true", keyed)
	w.call(200, "GET", `/documents?keys=k&filter={"a":{"$gt":2}}`, "")
	w.call(200, "GET", `/documents/count?filter={"a":{"$gt":2}}`, "")
	w.call(200, "DELETE", `/documents?filter={"a":{"$gt":2}}`, "")
}
