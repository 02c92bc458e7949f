package faults

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// TestOperations calls all operations. Others do so through what stands between.
func TestOperations(t *testing.T) {
	r, db := newRow(t, "operations"), sharedPostgres(t)
	db.createDatabase("operations")
	callOperations(r, db, "operations", startReplica(t, db.url("operations")))
}

// callOperations calls every operation of the OpenAPI document, by several clients at once.
func callOperations(r *row, db *postgres, database string, target *replica) {
	root := (&client{address: target.address()}).signUp(r.t, "root@example.com")
	db.makeAdmin(database, root.id) // the others delete their accounts
	walks := make([]*walk, 4)
	parallel(len(walks), func(i int) {
		walks[i] = &walk{row: r, db: db, database: database, called: map[string]bool{}}
		walks[i].client = &client{address: target.address()}
		for round := range pick(5, 1) {
			walks[i].run(fmt.Sprintf("walk%d.%d", i, round))
		}
	})
	for _, operation := range documentedOperations(r.t, target) {
		if !walks[0].called[operation] {
			r.fault("%s is not called: add it to walk.run", operation)
		}
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
	db       *postgres
	database string
	called   map[string]bool
	token    string
	id       int64 // stands for {id}
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
	w.db.makeAdmin(w.database, m.id)
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
	w.db.sql(w.database, "INSERT INTO documents (owner_id, content, metadata, embedding) "+
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
