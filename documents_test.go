package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const docsPath = "/api/v1/documents"

// newDocsApp is newApp with another number of dimensions.
func newDocsApp(t testing.TB, dimensions int64, configure ...func(*config)) *app {
	t.Helper()
	dbURL := newDatabase(t, "")
	cfg := &config{TextSearch: "simple"}
	configure = append(configure, func(c *config) { c.EmbeddingDimensions = dimensions })
	for _, f := range configure {
		f(cfg)
	}
	if err := migrate(t.Context(), dbURL, migrations(cfg), false, quiet); err != nil {
		t.Fatal(err)
	}
	return newAppOn(t, dbURL, cheap, configure...)
}

func (a *app) createDocument(token, body string) document {
	a.t.Helper()
	return decode[document](a.want(a.do("POST", docsPath, token, body), 201, ""))
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m, other := a.signUp("ada"), a.signUp("bob")
	ans := a.want(a.do("POST", docsPath, m.AccessToken,
		`{"content":"One","metadata":{"b":[1,2.50],"a":"ü"},"embedding":[1,0,0.1]}`), 201, "")
	first := decode[document](ans)
	path := fmt.Sprintf("%s/%d", docsPath, first.ID)
	if first.Content != "One" || string(first.Metadata) != `{"a":"ü","b":[1,2.50]}` ||
		first.Embedding != nil || ans.header.Get("Location") != path {
		t.Errorf("created %s, Location %s", ans.body, ans.header.Get("Location"))
	}
	ans = a.want(a.do("GET", path+"?include=embedding", m.AccessToken, nil), 200, "")
	got := decode[document](ans)
	if fmt.Sprint(got.Embedding) != "[1 0 0.099975586]" || got.Content != "One" {
		t.Errorf("GET = %+v", got)
	}
	two := a.createDocument(m.AccessToken, `{"content":"Two","embedding":[0,1,0]}`)
	if string(two.Metadata) != "{}" || two.ID <= first.ID {
		t.Errorf("without metadata: %+v", two)
	}
	ans = a.want(a.do("POST", docsPath+"?include=embedding", m.AccessToken,
		`{"documents":[{"content":"c","embedding":[1,2,3]},`+
			`{"content":"d","metadata":{"n":1},"embedding":[3,2,1]}]}`), 201, "")
	batch := decode[batch](ans)
	if docs := batch.Documents; len(docs) != 2 || docs[0].Content != "c" ||
		docs[1].Embedding[0] != 3 || docs[0].ID >= docs[1].ID {
		t.Errorf("batch = %+v", batch)
	}
	put := func(body string) answer { return a.do("PUT", path, m.AccessToken, body) }
	a.want(put(`{"content":"New"}`), 422, "embedding_required")
	got = decode[document](a.want(put(`{}`), 200, ""))
	if got.Content != "One" || !got.UpdatedAt.Equal(first.UpdatedAt) {
		t.Errorf("an empty change: %+v", got)
	}
	got = decode[document](a.want(put(`{"content":"New","embedding":[0,0,1]}`), 200, ""))
	if got.Content != "New" || string(got.Metadata) != string(first.Metadata) ||
		!got.UpdatedAt.After(first.UpdatedAt) {
		t.Errorf("content: %+v", got)
	}
	ans = a.do("PUT", path+"?include=embedding", m.AccessToken, `{"metadata":{}}`)
	got = decode[document](a.want(ans, 200, ""))
	if got.Content != "New" || string(got.Metadata) != "{}" || got.Embedding[2] != 1 {
		t.Errorf("metadata: %+v", got)
	}
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		body := map[string]any{"PUT": "{}"}[method]
		a.want(a.do(method, path, other.AccessToken, body), 404, "not_found")
		a.want(a.do(method, docsPath+"/999999", m.AccessToken, body), 404, "not_found")
	}
	a.want(a.do("PUT", path, other.AccessToken, `{"metadata":{"stolen":true}}`), 404, "not_found")
	if got := string(a.do("GET", docsPath, other.AccessToken, nil).body); got != "[]" {
		t.Errorf("another user's list is %s", got)
	}
	a.want(a.do("DELETE", path, m.AccessToken, nil), 204, "")
	a.want(a.do("DELETE", path, m.AccessToken, nil), 404, "not_found")
	password := map[string]string{"current_password": goodPass}
	a.want(a.do("DELETE", "/api/v1/users/me", m.AccessToken, password), 204, "")
	if n := one[int](t, a.url, `SELECT count(*) FROM documents`); n != 0 {
		t.Errorf("%d documents outlive their owner", n)
	}
}

func TestListDocuments(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	var items []string
	for i := range 7 {
		items = append(items, fmt.Sprintf(`{"content":"%d","metadata":{"even":%v,"deep":{"n":%d}},`+
			`"embedding":[1,0,0]}`, i, i%2 == 0, i))
	}
	a.want(a.do("POST", docsPath, m.AccessToken, `{"documents":[`+strings.Join(items, ",")+`]}`),
		201, "")
	for filter, want := range map[string]int{
		`{}`:                           7,
		`{"even":true}`:                4,
		`{"deep":{"n":3}}`:             1,
		`{"deep":{}}`:                  7,
		`{"even":true,"deep":{"n":1}}`: 0,
		`{"absent":null}`:              0,
	} {
		seen := ""
		for next := docsPath + "?limit=3&filter=" + url.QueryEscape(filter); next != ""; {
			ans := a.want(a.do("GET", next, m.AccessToken, nil), 200, "")
			for _, d := range decode[[]document](ans) {
				seen += d.Content
			}
			link := ans.header.Get("Link")
			next = strings.TrimSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
		}
		if len(seen) != want || !slices.IsSorted([]byte(seen)) {
			t.Errorf("filter %s gave %q, want %d", filter, seen, want)
		}
	}
	ans := a.do("GET", docsPath+"?after=9223372036854775807", m.AccessToken, nil)
	if got := string(a.want(ans, 200, "").body); got != "[]" {
		t.Errorf("after the largest possible id: %s", got)
	}
	for _, query := range []string{
		"filter=", "filter=x", "filter=[]", "filter=1", `filter={"a":1,"a":2}`, "filter={}x",
		`filter={"a":"\u0000"}`, "include=", "include=all", "skip=1", "limit=0", "after=0",
	} {
		name, value, _ := strings.Cut(query, "=")
		path := docsPath + "?" + name + "=" + url.QueryEscape(value)
		a.want(a.do("GET", path, m.AccessToken, nil), 422, "invalid_request")
	}
}

// TestFilters counts on each operator by name, nested and dotted, on absent, null and array values.
func TestFilters(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	var items []string
	for i, metadata := range []string{
		`{"year":2019,"lang":"en","tags":["x","y"],"deep":{"n":1}}`,
		`{"year":2020,"lang":"de","tags":["y"],"deep":{"n":2},"dc.title":"T"}`,
		`{"year":2021.5,"lang":null,"tags":[],"list":[{"n":1},{"n":[7,8]}]}`,
		`{"year":"2020","tags":"x","deep":{"er":{"yet":5}}}`,
	} {
		items = append(items,
			fmt.Sprintf(`{"content":"%d","metadata":%s,"embedding":[1,0,0]}`, i, metadata))
	}
	a.want(a.do("POST", docsPath, m.AccessToken, `{"documents":[`+strings.Join(items, ",")+`]}`),
		201, "")
	for filter, want := range map[string]string{
		`{"year":{"$gte":2020}}`:                              "12",
		`{"year":{"$gt":2019,"$lt":2021.5}}`:                  "1",
		`{"year":{"$lte":"2020"}}`:                            "3",
		`{"year":{"$eq":2.02e3}}`:                             "1",
		`{"year":{"$ne":2020}}`:                               "023",
		`{"year":{"$in":[2019,"2020",true]}}`:                 "03",
		`{"year":{"$nin":[2019,"2020"]}}`:                     "12",
		`{"year":{"$in":[]}}`:                                 "",
		`{"year":{"$nin":[]}}`:                                "0123",
		`{"year":{"$not":{"$gte":2020}}}`:                     "03",
		`{"lang":{"$exists":true}}`:                           "012",
		`{"lang":{"$exists":false}}`:                          "3",
		`{"lang":{"$eq":null}}`:                               "23",
		`{"lang":{"$ne":null}}`:                               "01",
		`{"lang":{"$in":["en",null]}}`:                        "023",
		`{"lang":{"$ne":"en"}}`:                               "123",
		`{"lang":{"$not":{"$exists":true}}}`:                  "3",
		`{"tags":{"$eq":"x"}}`:                                "03",
		`{"tags":{"$ne":"x"}}`:                                "12",
		`{"tags":{"$gt":"x"}}`:                                "01",
		`{"deep":{"n":{"$gte":2}}}`:                           "1",
		`{"deep.n":{"$gte":2}}`:                               "1",
		`{"deep.er.yet":{"$eq":5}}`:                           "3",
		`{"deep":{"er.yet":{"$in":[4,5]}}}`:                   "3",
		`{"dc.title":{"$eq":"T"}}`:                            "1",
		`{"list":{"n":{"$gt":7}}}`:                            "2",
		`{"list.n":{"$eq":8}}`:                                "2",
		`{"list":{"$exists":true}}`:                           "2",
		`{"lang":"en","year":{"$lt":2020}}`:                   "0",
		`{"deep":{"n":1,"er":{"$exists":false}}}`:             "0",
		`{"$or":[{"lang":"de"},{"year":{"$gt":2021}}]}`:       "12",
		`{"$and":[{"tags":["y"]},{"year":{"$ne":2019}}]}`:     "1",
		`{"$not":{"lang":"en"}}`:                              "123",
		`{"$not":{}}`:                                         "",
		`{"$or":[{"$and":[{"lang":"en"}]},{}]}`:               "0123",
		`{"year":{"$or":[{"$eq":2019},{"$gt":2021}]}}`:        "02",
		`{"year":{"\u0024gte":2020}}`:                         "12",
		`{"lang":"$gt"}`:                                      "",
		`{"a\"b'\\ü😀\n$1":{"$exists":false}}`:                 "0123",
		`{"lang":{"$in":["' OR 1=1 --","$1","\" ? (1==1)"]}}`: "",
	} {
		body := `{"embedding":[1,0,0],"filter":` + filter + `}`
		ans := a.want(a.do("POST", docsPath+"/search", m.AccessToken, body), 200, "")
		found := ""
		for _, f := range decode[searchResult](ans).Results {
			found += f.Document.Content
		}
		path := docsPath + "?filter=" + url.QueryEscape(filter)
		listed, ans := "", a.do("GET", path, m.AccessToken, nil)
		for _, d := range decode[[]document](a.want(ans, 200, "")) {
			listed += d.Content
		}
		if found != want || listed != want {
			t.Errorf("filter %s found %q, listed %q, want %q", filter, found, listed, want)
		}
	}
	for filter, msg := range map[string]string{
		`{"a":{"$gt":1,"$foo":2}}`:    "of the names that begin with $, only $and, $eq,",
		`{"$where":"x"}`:              "only $and, $eq,",
		`{"a":[{"$gt":1}]}`:           "objects around operators",
		`{"a":{"b":[{"c":{"$":1}}]}}`: "objects around operators",
		`{"$gt":1}`:                   "$gt in the object of a name",
		`{"$and":{}}`:                 "an array of objects for $and",
		`{"$or":[]}`:                  "an array of objects for $or, with at least one",
		`{"$or":[1]}`:                 "objects around operators",
		`{"$not":null}`:               "objects around operators",
		`{"a":{"$not":5}}`:            "objects around operators",
		`{"a":{"$exists":1}}`:         "true or false for $exists",
		`{"a":{"$in":"x"}}`:           "an array for $in",
		`{"a":{"$nin":[[1]]}}`:        "texts, numbers and booleans to compare with",
		`{"a":{"$eq":{"b":1}}}`:       "texts, numbers and booleans to compare with",
		`{"a":{"$lt":null}}`:          "texts, numbers and booleans to compare with",
	} {
		body := `{"embedding":[1,0,0],"filter":` + filter + `}`
		ans := a.want(a.do("POST", docsPath+"/search", m.AccessToken, body), 422, "invalid_request")
		p := decode[struct{ Errors []fieldError }](ans)
		if len(p.Errors) != 1 || fmt.Sprint(p.Errors[0].Loc) != "[body filter]" ||
			!strings.Contains(p.Errors[0].Msg, msg) || strings.Contains(string(ans.body), "foo") {
			t.Errorf("filter %s: %s, want %q", filter, ans.body, msg)
		}
	}
}

// TestFiltersAtRandom compares random filters on random metadata with an evaluation in Go.
func TestFiltersAtRandom(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	g := filterGenerator{rand.New(rand.NewPCG(5, 6))}
	all := map[int64]any{}
	for i := range 120 {
		text, err := json.Marshal(g.object(3))
		if err != nil {
			t.Fatal(err)
		}
		a.sql(`INSERT INTO documents (owner_id, content, metadata, embedding)
			VALUES ($1, $2, $3, '[1,0,0]')`, m.ID, fmt.Sprint(i), string(text))
		var metadata any
		if err := json.Unmarshal(text, &metadata); err != nil {
			t.Fatal(err)
		}
		all[one[int64](t, a.url, `SELECT max(id) FROM documents`)] = metadata
	}
	matched := 0
	for range 500 {
		filter := g.filter(3)
		text, err := json.Marshal(filter)
		if _, refusal := checkFilter(string(text)); err != nil || refusal != "" {
			t.Fatalf("%s: %v, %s", text, err, refusal)
		}
		var want []int64
		for id, metadata := range all {
			if holds(filter, metadata, nil) {
				want = append(want, id)
			}
		}
		slices.Sort(want)
		list, _, err := a.store.listDocuments(t.Context(), m.ID,
			listDocumentsInput{Limit: 200, Filter: text})
		var got []int64
		for _, d := range list {
			got = append(got, d.ID)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("filter %s: %v (%v), want %v", text, got, err, want)
		}
		if len(want) > 0 && len(want) < len(all) {
			matched++
		}
	}
	if matched < 200 {
		t.Errorf("only %d filters told documents apart", matched)
	}
	kept, n := a.store.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_prepared_statements`), 0
	if err := kept.Scan(&n); err != nil || n > 20 {
		t.Errorf("PostgreSQL keeps %d statements (%v)", n, err)
	}
}

// filterGenerator makes metadata and filters of few names and values, so that they meet.
type filterGenerator struct{ *rand.Rand }

func (g filterGenerator) name() string {
	return []string{"a", "b", "c", "a.b", `q"\ü`, ""}[min(g.IntN(8), 5)]
}

func (g filterGenerator) scalar() any {
	return []any{nil, true, false, 0.0, 1.0, -1.5, 1e20, "", "a", "b", "Ü", "1"}[g.IntN(12)]
}

func (g filterGenerator) value(depth int) any {
	switch n := g.IntN(10); {
	case n < 2 && depth > 0:
		return g.object(depth - 1)
	case n < 5 && depth > 0:
		list := []any{}
		for range g.IntN(3) {
			list = append(list, g.value(depth-1))
		}
		return list
	}
	return g.scalar()
}

func (g filterGenerator) object(depth int) map[string]any {
	object := map[string]any{}
	for range g.IntN(4) {
		object[g.name()] = g.value(depth)
	}
	return object
}

func (g filterGenerator) filter(depth int) map[string]any {
	filter := map[string]any{}
	for range 1 + g.IntN(2) {
		switch n := g.IntN(10); {
		case n == 0 && depth > 0:
			filter["$not"] = g.filter(depth - 1)
		case n <= 2 && depth > 0:
			filter[[]string{"$and", "$or"}[n-1]] = []any{g.filter(depth - 1), g.filter(depth - 1)}
		case n == 3:
			filter[g.name()] = g.value(2)
		case n == 4 && depth > 0:
			filter[g.name()] = g.filter(depth - 1)
		default:
			filter[g.name()] = g.operators(depth)
		}
	}
	return filter
}

func (g filterGenerator) operators(depth int) map[string]any {
	names := slices.Sorted(maps.Keys(comparisons))
	switch name := names[g.IntN(len(names))]; {
	case g.IntN(8) == 0:
		return map[string]any{"$exists": g.IntN(2) == 0}
	case g.IntN(8) == 0 && depth > 0:
		return map[string]any{"$not": g.operators(depth - 1)}
	case strings.HasSuffix(name, "in"):
		return map[string]any{name: []any{g.scalar(), g.scalar()}[:g.IntN(3)]}
	default:
		x := g.scalar()
		for x == nil && strings.ContainsAny(name, "gl") {
			x = g.scalar()
		}
		return map[string]any{name: x}
	}
}

// holds evaluates a filter on the value at path of metadata.
func holds(filter map[string]any, metadata any, path []string) bool {
	for name, operand := range filter {
		at := append(slices.Clone(path), name)
		object, _ := operand.(map[string]any)
		text, _ := json.Marshal(operand)
		list, _ := operand.([]any)
		item := func(item any) bool { return holds(item.(map[string]any), metadata, path) }
		ok := false
		switch {
		case name == "$and":
			ok = item(list[0]) && item(list[1])
		case name == "$or":
			ok = item(list[0]) || item(list[1])
		case name == "$not":
			ok = !item(operand)
		case name[:min(len(name), 1)] == "$":
			ok = compares(name, operand, metadata, path)
		case bytes.Contains(text, []byte(`"$`)):
			ok = holds(object, metadata, at)
		default:
			for _, step := range slices.Backward(at) {
				operand = map[string]any{step: operand}
			}
			ok = contains(metadata, operand)
		}
		if !ok {
			return false
		}
	}
	return true
}

func compares(name string, operand, metadata any, path []string) bool {
	values := reach(metadata, path)
	if split := strings.Split(strings.Join(path, "."), "."); len(split) > len(path) {
		values = append(values, reach(metadata, split)...)
	}
	list, isList := operand.([]any)
	if !isList {
		list = []any{operand}
	}
	found := false
	for _, x := range list {
		found = found || x == nil && len(values) == 0
		for _, v := range values {
			items, isArray := v.([]any)
			if !isArray {
				items = []any{v}
			}
			for _, item := range items {
				found = found || related(strings.TrimPrefix(name, "$"), item, x)
			}
		}
	}
	switch name {
	case "$exists":
		return operand == (len(values) > 0)
	case "$ne", "$nin":
		return !found
	}
	return found
}

// reach returns the values at path, entering arrays on the way.
func reach(v any, path []string) (values []any) {
	if len(path) == 0 {
		return []any{v}
	}
	items, isArray := v.([]any)
	if !isArray {
		items = []any{v}
	}
	for _, item := range items {
		object, _ := item.(map[string]any)
		if member, ok := object[path[0]]; ok {
			values = append(values, reach(member, path[1:])...)
		}
	}
	return values
}

func related(operator string, v, x any) bool {
	order, comparable := 0, false
	switch x := x.(type) {
	case nil:
		comparable = v == nil
	case bool:
		if b, ok := v.(bool); ok {
			number := map[bool]int{true: 1}
			order, comparable = cmp.Compare(number[b], number[x]), true
		}
	case float64:
		if f, ok := v.(float64); ok {
			order, comparable = cmp.Compare(f, x), true
		}
	case string:
		if s, ok := v.(string); ok {
			order, comparable = cmp.Compare(s, x), true
		}
	}
	switch operator {
	case "gt":
		return comparable && order > 0
	case "gte":
		return comparable && order >= 0
	case "lt":
		return comparable && order < 0
	case "lte":
		return comparable && order <= 0
	}
	return comparable && order == 0
}

// contains is PostgreSQL's @>.
func contains(v, part any) bool {
	switch part := part.(type) {
	case map[string]any:
		object, ok := v.(map[string]any)
		for name, p := range part {
			member, has := object[name]
			ok = ok && has && contains(member, p)
		}
		return ok
	case []any:
		list, ok := v.([]any)
		for _, p := range part {
			ok = ok && slices.ContainsFunc(list, func(item any) bool { return contains(item, p) })
		}
		return ok
	case nil:
		return v == nil
	}
	return related("eq", v, part)
}

// TestKeys stores, replaces, lists and changes documents by keys of the owner's own.
func TestKeys(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m, other := a.signUp("ada"), a.signUp("bob")
	post := func(query, body string) answer {
		return a.do("POST", docsPath+query, m.AccessToken, body)
	}
	first := decode[document](a.want(post("", `{"key":"a","content":"one","embedding":[1,0,0]}`),
		201, ""))
	if first.Key == nil || *first.Key != "a" {
		t.Errorf("created %+v", first)
	}
	a.want(a.do("POST", docsPath, other.AccessToken,
		`{"key":"a","content":"theirs","embedding":[1,0,0]}`), 201, "")
	bodies := map[string]string{
		`{"key":"a","content":"two","embedding":[0,1,0]}`: "[body key]",
		`{"documents":[{"content":"x","embedding":[1,0,0]},` +
			`{"key":"a","content":"x","embedding":[1,0,0]}]}`: "[body documents 1 key]",
	}
	for body, loc := range bodies {
		p := decode[struct{ Errors []fieldError }](a.want(post("", body), 409, "key_taken"))
		if len(p.Errors) != 1 || fmt.Sprint(p.Errors[0].Loc) != loc {
			t.Errorf("%s: errors %v, want one at %s", body, p.Errors, loc)
		}
	}
	twice := `{"documents":[{"key":"z","content":"x","embedding":[1,0,0]},` +
		`{"key":"z","content":"y","embedding":[1,0,0]}]}`
	for _, query := range []string{"", "?upsert=true", "/batch", "/batch?upsert=true"} {
		ans := a.want(post(query, twice), 422, "invalid_request")
		p := decode[struct{ Errors []fieldError }](ans)
		if len(p.Errors) != 1 || fmt.Sprint(p.Errors[0].Loc) != "[body documents 1 key]" {
			t.Errorf("a key twice: %v", p.Errors)
		}
	}
	second := decode[document](a.want(post("?upsert=true&include=embedding",
		`{"key":"a","content":"two","metadata":{"n":1},"embedding":[0,1,0]}`), 201, ""))
	if second.ID != first.ID || !second.CreatedAt.Equal(first.CreatedAt) ||
		!second.UpdatedAt.After(first.UpdatedAt) || second.Content != "two" ||
		string(second.Metadata) != `{"n":1}` || fmt.Sprint(second.Embedding) != "[0 1 0]" {
		t.Errorf("an upsert of %+v gave %+v", first, second)
	}
	// There is no provider: only the same content may come without an embedding.
	third := decode[document](a.want(post("?upsert=1&include=embedding",
		`{"key":"a","content":"two"}`), 201, ""))
	if third.ID != first.ID || string(third.Metadata) != "{}" ||
		fmt.Sprint(third.Embedding) != "[0 1 0]" {
		t.Errorf("an upsert of the same content: %+v", third)
	}
	a.want(post("?upsert=true", `{"key":"a","content":"three"}`), 422, "embedding_required")
	a.want(post("?upsert=true", `{"content":"two"}`), 422, "embedding_required")
	ans := a.want(post("/batch?upsert=true", `{"documents":[
		{"key":"c","content":"c","embedding":[1,0,0]}, {"content":"p","embedding":[1,0,0]},
		{"key":"a","content":"a","embedding":[1,0,0]},
		{"key":null,"content":"q","embedding":[1,0,0]},
		{"key":"b, [\"ü\"]","content":"b","embedding":[1,0,0]}]}`), 201, "")
	contents := ""
	for _, d := range decode[batch](ans).Documents {
		contents += d.Content
	}
	if contents != "cpaqb" {
		t.Errorf("a batch is answered in the order %s", contents)
	}
	path := fmt.Sprintf("%s/%d", docsPath, first.ID)
	put := func(body string) answer { return a.do("PUT", path, m.AccessToken, body) }
	ans = a.want(put(`{"key":"c"}`), 409, "key_taken")
	if !strings.Contains(string(ans.body), `"loc":["body","key"]`) {
		t.Errorf("a PUT of a taken key: %s", ans.body)
	}
	for _, body := range []string{`{"key":""}`, `{"key":1}`, `{"key":"\u0000"}`,
		`{"key":"` + strings.Repeat("ü", 256) + `"}`} {
		a.want(put(body), 422, "invalid_request")
		a.want(post("", body[:len(body)-1]+`,"content":"x","embedding":[1,0,0]}`), 422,
			"invalid_request")
	}
	for body, want := range map[string]string{`{"key":null}`: "", `{"key":"😀\t"}`: "😀\t",
		`{"key":"` + strings.Repeat("ü", 255) + `"}`: strings.Repeat("ü", 255)} {
		d := decode[document](a.want(put(body), 200, ""))
		if keyText(d.Key) != want || (d.Key == nil) != (want == "") {
			t.Errorf("PUT %s = %+v", body, d)
		}
	}
}

// TestSelections lists, counts and deletes documents by filter, ids and keys.
func TestSelections(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m, other := a.signUp("ada"), a.signUp("bob")
	for _, owner := range []member{other, m} {
		var items []string
		for i, key := range []string{"a", "b", "c,d", "[e]", "f%2C"} {
			items = append(items, fmt.Sprintf(
				`{"key":%q,"content":"%d","metadata":{"n":%d},"embedding":[1,0,0]}`, key, i, i))
		}
		a.want(a.do("POST", docsPath, owner.AccessToken,
			`{"documents":[`+strings.Join(items, ",")+`]}`), 201, "")
	}
	id := one[int64](t, a.url, `SELECT max(id) FROM documents`) - 4 // of the first
	call := func(method, path, query string) answer {
		var pairs []string
		for pair := range strings.SplitSeq(query, "&") {
			name, value, _ := strings.Cut(pair, "=")
			pairs = append(pairs, name+"="+url.QueryEscape(value))
		}
		return a.do(method, docsPath+path+"?"+strings.Join(pairs, "&"), m.AccessToken, nil)
	}
	for query, want := range map[string]string{
		fmt.Sprintf("ids=%d", id):                           "0",
		fmt.Sprintf("ids=%d,%d,%d,999", id+2, id, id):       "02",
		fmt.Sprintf("ids=[%d, %d]", id, id+1):               "01",
		fmt.Sprintf("ids=%d&keys=a,b", id):                  "0",
		fmt.Sprintf(`ids=%d&filter={"n":1}`, id):            "",
		"ids=9223372036854775807":                           "",
		"keys=b,a,none":                                     "01",
		"keys=c,d":                                          "",
		`keys=["c,d","[e]"]`:                                "23",
		"keys=f%2C":                                         "4",
		`keys=a,b&filter={"n":{"$lt":1}}`:                   "0",
		"keys=a,b,f%2C&limit=1":                             "0",
		"keys=" + strings.Repeat("a,", 99) + "b":            "01",
		"keys=" + strings.Repeat("ü", 255):                  "",
		fmt.Sprintf("keys=a,b,f%%2C&limit=2&after=%d", id):  "14",
		fmt.Sprintf(`filter={"n":{"$gte":1}}&after=%d`, id): "1234",
	} {
		found := ""
		for _, d := range decode[[]document](a.want(call("GET", "", query), 200, "")) {
			found += d.Content
		}
		if found != want {
			t.Errorf("GET ?%s = %q, want %q", query, found, want)
		}
		if !strings.Contains(query, "limit") && !strings.Contains(query, "after") {
			got := decode[counted](a.want(call("GET", "/count", query), 200, "")).Count
			if got != int64(len(want)) {
				t.Errorf("GET /count?%s = %d, want %d", query, got, len(want))
			}
		}
	}
	link := call("GET", "", `keys=["c,d","a","b"]&limit=1`).header.Get("Link")
	next := strings.TrimSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
	rest := decode[[]document](a.want(a.do("GET", next, m.AccessToken, nil), 200, ""))
	if len(rest) != 1 || rest[0].Content != "1" {
		t.Errorf("the next page, %s, has %v", next, rest)
	}
	for _, query := range []string{
		"ids=", "ids=0", "ids=-1", "ids=1,", "ids=,1", "ids=1,,2", "ids=x", "ids=1.5", "ids=[",
		"ids=[1]x", `ids=["1"]`, "ids=[[1]]", "ids=null", "ids=01", "ids=9223372036854775808",
		"ids=1]", "keys=", "keys=a,", "keys=a,,b", "keys=[1]", "keys=[]",
		`keys=["a"`, `keys=["a"],b`,
		"keys=\xff", "keys=[\"\xff\"]", "keys=a\x00", "keys=" + strings.Repeat("a,", 100) + "b",
		"ids=1" + strings.Repeat(",1", 100),
		"keys=" + strings.Repeat("ü", 256), "keys=a&keys=b", "filter=[]", "other=1",
		"keys=" + strings.Repeat("[", 5000),
	} {
		for _, method := range []string{"GET", "DELETE"} {
			a.want(call(method, "", query), 422, "invalid_request")
		}
		a.want(call("GET", "/count", query), 422, "invalid_request")
	}
	remove := func(query string, want int64) {
		t.Helper()
		got := decode[deleted](a.want(call("DELETE", "", query), 200, "")).Deleted
		if got != want {
			t.Errorf("DELETE ?%s = %d, want %d", query, got, want)
		}
	}
	a.want(a.do("DELETE", docsPath, m.AccessToken, nil), 422, "invalid_request")
	a.want(call("DELETE", "", "_=1"), 422, "invalid_request")
	remove(fmt.Sprintf("ids=%d,%d", id, id-5), 1) // the second is of another owner
	remove(fmt.Sprintf("ids=%d", id), 0)
	remove(`keys=["c,d"]`, 1)
	remove(`filter={"n":{"$in":[1,0]}}`, 1)
	remove("filter={}", 2)
	if n := one[int](t, a.url, `SELECT count(*) FROM documents`); n != 5 {
		t.Errorf("%d documents of another owner are left, want 5", n)
	}
}

// TestUpsertsAtOnce upserts and deletes the same keys from many clients at once, in other orders.
// None fails, and of each key there is one document.
func TestUpsertsAtOnce(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	parallel(8, func(client int) {
		random := rand.New(rand.NewPCG(uint64(client), 9))
		for round := range 12 {
			if client == 0 && round%4 == 3 {
				a.want(a.do("DELETE", docsPath+"?filter=%7B%7D", m.AccessToken, nil), 200, "")
			}
			var items []map[string]any
			for _, key := range random.Perm(30)[:1+random.IntN(20)] {
				content := fmt.Sprint(key, " ", client, " ", round)
				items = append(items, map[string]any{"key": fmt.Sprint(key), "content": content,
					"embedding": []int{1, key, 0}})
			}
			ans := a.do("POST", docsPath+"/batch?upsert=true", m.AccessToken,
				map[string]any{"documents": items})
			if ans.code() == "busy" {
				continue
			}
			for i, d := range decode[batch](a.want(ans, 201, "")).Documents {
				if d.Content != items[i]["content"] || *d.Key != items[i]["key"] {
					t.Errorf("document %d is %+v, want %v", i, d, items[i])
				}
			}
		}
	})
	ans := a.want(a.do("GET", docsPath, m.AccessToken, nil), 200, "")
	seen := map[string]bool{}
	for _, d := range decode[[]document](ans) {
		if key, _, _ := strings.Cut(d.Content, " "); key != *d.Key || seen[key] {
			t.Errorf("%q has the key %s", d.Content, *d.Key)
		}
		seen[*d.Key] = true
	}
}

// TestBadDocuments sends invalid documents. A batch with one invalid document stores none.
func TestBadDocuments(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	deep := strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)
	for name, row := range map[string]struct{ body, loc, code string }{
		"no content":    {`{"embedding":[1,0,0]}`, "[body content]", ""},
		"empty content": {`{"content":"","embedding":[1,0,0]}`, "[body content]", ""},
		"null content":  {`{"content":null,"embedding":[1,0,0]}`, "[body content]", ""},
		"nul":           {`{"content":"a\u0000","embedding":[1,0,0]}`, "[body content]", ""},
		"long content": {
			`{"content":"` + strings.Repeat("ü", 65537) + `","embedding":[1,0,0]}`,
			"[body content]", "",
		},
		"no embedding":       {`{"content":"a"}`, "[body embedding]", "embedding_required"},
		"null embedding":     {`{"content":"a","embedding":null}`, "[body embedding]", ""},
		"text embedding":     {`{"content":"a","embedding":"[1,0,0]"}`, "[body embedding]", ""},
		"empty embedding":    {`{"content":"a","embedding":[]}`, "[body embedding]", ""},
		"short embedding":    {`{"content":"a","embedding":[1,0]}`, "[body embedding]", ""},
		"long embedding":     {`{"content":"a","embedding":[1,0,0,0]}`, "[body embedding]", ""},
		"null element":       {`{"content":"a","embedding":[1,null,0]}`, "[body embedding]", ""},
		"text element":       {`{"content":"a","embedding":[1,"0",0]}`, "[body embedding]", ""},
		"nested element":     {`{"content":"a","embedding":[[1,0,0]]}`, "[body embedding]", ""},
		"infinite element":   {`{"content":"a","embedding":[1e999,0,0]}`, "[body embedding]", ""},
		"beyond half":        {`{"content":"a","embedding":[65504.1,0,0]}`, "[body embedding]", ""},
		"beyond half, minus": {`{"content":"a","embedding":[0,-70000,0]}`, "[body embedding]", ""},
		"zero":               {`{"content":"a","embedding":[0,0,0]}`, "[body embedding]", ""},
		"minus zero":         {`{"content":"a","embedding":[-0,0e5,0.0]}`, "[body embedding]", ""},
		"tiny":               {`{"content":"a","embedding":[1e-45,0,0]}`, "[body embedding]", ""},
		"metadata array": {
			`{"content":"a","embedding":[1,0,0],"metadata":[]}`,
			"[body metadata]", "",
		},
		"metadata null": {
			`{"content":"a","embedding":[1,0,0],"metadata":null}`,
			"[body metadata]", "",
		},
		"duplicate key": {
			`{"content":"a","embedding":[1,0,0],"metadata":{"a":{"b":1,"\u0062":2}}}`,
			"[body metadata]", "",
		},
		"nul in metadata": {
			`{"content":"a","embedding":[1,0,0],"metadata":{"a":["\u0000"]}}`,
			"[body metadata]", "",
		},
		"nul in key": {
			`{"content":"a","embedding":[1,0,0],"metadata":{"\u0000":1}}`,
			"[body metadata]", "",
		},
		"lone surrogate": {
			`{"content":"a","embedding":[1,0,0],"metadata":{"a":"\udc00"}}`,
			"[body metadata]", "",
		},
		"huge number": {
			`{"content":"a","embedding":[1,0,0],"metadata":{"a":1e400}}`,
			"[body metadata]", "",
		},
		"minute number": {
			`{"content":"a","embedding":[1,0,0],"metadata":{"a":1e-20000}}`,
			"[body metadata]", "",
		},
		"deep metadata": {
			`{"content":"a","embedding":[1,0,0],"metadata":{"a":` + deep + `}}`,
			"[body metadata]", "",
		},
		"long metadata": {
			`{"content":"a","embedding":[1,0,0],"metadata":{"a":"` +
				strings.Repeat("x", 16384) + `"}}`,
			"[body metadata]", "",
		},
		"swelling in a batch": {
			`{"documents":[{"content":"a","embedding":[1,0,0]},` +
				`{"content":"a","embedding":[1,0,0],"metadata":{"a":[1e308` +
				strings.Repeat(",1e308", 200) + `]}}]}`,
			"[body documents 1 metadata]", "",
		},
		"swelling metadata": {
			`{"content":"a","embedding":[1,0,0],"metadata":{"a":[1e308` +
				strings.Repeat(",1e308", 200) + `]}}`,
			"[body metadata]", "",
		},
		"unknown field": {`{"content":"a","embedding":[1,0,0],"owner_id":1}`, "[body]", ""},
		"both": {
			`{"content":"a","embedding":[1,0,0],"documents":[{"content":"a","embedding":[1,0,0]}]}`,
			"[body content]", "",
		},
		"empty batch":      {`{"documents":[]}`, "[body documents]", ""},
		"object for batch": {`{"documents":{}}`, "[body documents]", ""},
		"number in batch":  {`{"documents":[1]}`, "[body documents 0]", ""},
		"long batch": {
			`{"documents":[` + strings.TrimSuffix(
				strings.Repeat(`{"content":"a","embedding":[1,0,0]},`, 501), ",") + `]}`,
			"[body documents]", "",
		},
		"third of a batch": {
			`{"documents":[{"content":"a","embedding":[1,0,0]},` +
				`{"content":"b","embedding":[1,0,0]},{"content":"c","embedding":[1,0]}]}`,
			"[body documents 2 embedding]", "",
		},
		"second without": {
			`{"documents":[{"content":"a","embedding":[1,0,0]},{"content":"b"}]}`,
			"[body documents 1 embedding]", "embedding_required",
		},
		"nested batch": {`{"documents":[{"documents":[]}]}`, "[body documents 0]", ""},
	} {
		code := "invalid_request"
		if row.code != "" {
			code = row.code
		}
		ans := a.want(a.do("POST", docsPath, m.AccessToken, row.body), 422, code)
		p := decode[struct{ Errors []fieldError }](ans)
		if len(p.Errors) == 0 || fmt.Sprint(p.Errors[0].Loc) != row.loc {
			t.Errorf("%s: %.300s, want an error at %s", name, ans.body, row.loc)
		}
	}
	ans := a.do("POST", docsPath, m.AccessToken, `{"content":"a","embedding":[1,0]}`)
	if !strings.Contains(string(ans.body), "must have exactly 3 numbers, but has 2") {
		t.Errorf("a wrong number of dimensions: %s", ans.body)
	}
	tooLarge := `{"content":"` + strings.Repeat("x", maxLargeBody) + `"}`
	a.want(a.do("POST", docsPath, m.AccessToken, tooLarge), 413, "body_too_large")
	if n := one[int](t, a.url, `SELECT count(*) FROM documents`); n != 0 {
		t.Errorf("%d bad documents were stored", n)
	}
	for _, good := range []string{
		`{"content":"` + strings.Repeat("\U0001F600", 65536) + `","embedding":[1,0,0]}`,
		`{"content":"a","embedding":[65504,-65504,1e-300]}`,
		`{"content":"a","embedding":[6e-8,0,0]}`,
		`{"content":"a","embedding":[1e-9,1e-9,0]}`,
		`{"content":"a","embedding":[0,-2e-12,0]}`,
		`{"content":"a","embedding":[1,0,0],"metadata":{"a":` + deep[1:len(deep)-1] +
			`,"n":[1e308,-1e-308,0e9999,0.0000,12345678901234567890123],"":"empty name"}}`,
		`{"content":"` + strings.Repeat("a-b.c@d.ef/g ", 5000) + `","embedding":[1,0,0]}`,
		`{"content":"` + strings.Repeat("x", 65536) + `","embedding":[1,0,0]}`,
	} {
		a.want(a.do("POST", docsPath, m.AccessToken, good), 201, "")
	}
}

func TestSearch(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m, other := a.signUp("ada"), a.signUp("bob")
	a.createDocument(other.AccessToken, `{"content":"theirs","embedding":[1,0,0]}`)
	a.want(a.do("POST", docsPath, m.AccessToken, `{"documents":[
		{"content":"the red fox","metadata":{"kind":"animal"},"embedding":[1,0,0]},
		{"content":"a red car","metadata":{"kind":"thing"},"embedding":[0,1,0]},
		{"content":"red red wine","metadata":{"kind":"thing"},"embedding":[-1,0,0]},
		{"content":"the same fox","metadata":{"kind":"animal"},"embedding":[2,0,0]}]}`), 201, "")
	search := func(body string) (contents string, r searchResult) {
		t.Helper()
		ans := a.want(a.do("POST", docsPath+"/search", m.AccessToken, body), 200, "")
		r = decode[searchResult](ans)
		for _, f := range r.Results {
			contents += f.Document.Content + "|"
		}
		return contents, r
	}
	contents, r := search(`{"embedding":[3,0.5,0]}`)
	if contents != "the red fox|the same fox|a red car|red red wine|" || r.Mode != "vector" {
		t.Errorf("search = %s, %s", contents, r.Mode)
	}
	for _, f := range r.Results {
		if f.Distance == nil || math.Abs(f.Score-(1-*f.Distance)) > 1e-15 {
			t.Errorf("score %v of distance %v", f.Score, f.Distance)
		}
	}
	for _, row := range []struct{ body, want string }{
		{`{"embedding":[1,0,0],"limit":1}`, "the red fox|"},
		{`{"embedding":[1,0,0],"filter":{"kind":"thing"}}`, "a red car|red red wine|"},
		{`{"embedding":[1,0,0],"filter":{"kind":"none"}}`, ""},
		{`{"embedding":[1,0,0],"min_score":0}`, "the red fox|the same fox|a red car|"},
		{`{"embedding":[1,0,0],"min_score":1}`, "the red fox|the same fox|"},
		{
			`{"embedding":[1,0,0],"min_score":-1,"limit":100}`,
			"the red fox|the same fox|a red car|red red wine|",
		},
		{`{"mode":"text","query":"red"}`, "red red wine|the red fox|a red car|"},
		{`{"mode":"text","query":"red -fox"}`, "a red car|red red wine|"},
		{`{"mode":"text","query":"\"red fox\" OR car","limit":2}`, "the red fox|a red car|"},
		{`{"mode":"text","query":"\"red fox\""}`, "the red fox|"},
		{`{"mode":"text","query":"red or fox","limit":3}`, "the red fox|the same fox|a red car|"},
		{`{"mode":"text","query":"red\tOr fox","limit":3}`, "the red fox|the same fox|a red car|"},
		{
			`{"mode":"text","query":"red or or fox","limit":3}`,
			"the red fox|the same fox|a red car|",
		},
		{`{"mode":"text","query":"the fox is red -same"}`, "the red fox|a red car|red red wine|"},
		{`{"mode":"text","query":"the fox is red -same -\"red wine\""}`, "the red fox|a red car|"},
		{
			`{"mode":"text","query":"same colour as wine","filter":{"kind":"thing"}}`,
			"red red wine|",
		},
		{`{"mode":"text","query":"!!! ( & | ' \\ :*"}`, ""},
		{`{"mode":"text","query":"red","filter":{"kind":"animal"}}`, "the red fox|"},
		{
			`{"mode":"hybrid","query":"car","embedding":[1,0,0]}`,
			"a red car|the red fox|the same fox|red red wine|",
		},
		{
			`{"mode":"hybrid","query":"nothing","embedding":[1,0,0],"limit":2}`,
			"the red fox|the same fox|",
		},
		{
			`{"mode":"hybrid","query":"wine","embedding":[0,1,0],"filter":{"kind":"thing"}}`,
			"red red wine|a red car|",
		},
	} {
		if got, r := search(row.body); got != row.want || r.Results == nil {
			t.Errorf("search %s = %q, want %q", row.body, got, row.want)
		}
	}
	_, r = search(`{"mode":"hybrid","query":"car","embedding":[0,1,0],"limit":1}`)
	if math.Abs(r.Results[0].Score-2.0/61) > 1e-12 || r.Results[0].Distance != nil ||
		r.Mode != "hybrid" {
		t.Errorf("first in both: %+v", r)
	}
	const required = "embedding_required"
	for body, code := range map[string]string{
		`{}`:                                    required,
		`{"query":"red"}`:                       required,
		`{"mode":"hybrid","query":"red"}`:       required,
		`{"mode":"text"}`:                       "",
		`{"mode":"hybrid","embedding":[1,0,0]}`: "",
		`{"mode":"text","query":"a","embedding":[1,0,0]}`:                          "",
		`{"query":"a","embedding":[1,0,0]}`:                                        "",
		`{"mode":"text","query":"a","min_score":0.5}`:                              "",
		`{"mode":"text","query":"` + strings.Repeat("word ", 65) + `"}`:            "",
		`{"mode":"text","query":"` + strings.Repeat("word,", 65) + `"}`:            "",
		`{"mode":"text","query":"` + strings.Repeat("word²", 65) + `"}`:            "",
		`{"mode":"text","query":"` + strings.Repeat("слово—", 65) + `"}`:           "",
		`{"mode":"text","query":"` + strings.Repeat("a/b.c-d ", 17) + `"}`:         "",
		`{"mode":"text","query":"` + strings.Repeat("x", 6500) + `"}`:              "",
		`{"embedding":[1,0,0],"filter":{"a":"` + strings.Repeat("x", 1024) + `"}}`: "",
		`{"embedding":[1,0,0],"limit":0}`:                                          "",
		`{"embedding":[1,0,0],"limit":101}`:                                        "",
		`{"embedding":[1,0,0],"limit":1.5}`:                                        "",
		`{"embedding":[1,0,0],"min_score":1.01}`:                                   "",
		`{"embedding":[1,0,0],"min_score":"1"}`:                                    "",
		`{"embedding":[1,0,0],"min_score":1e999}`:                                  "",
		`{"embedding":[1,0,0],"filter":[]}`:                                        "",
		`{"embedding":[0,0,0]}`:                                                    "",
		`{"embedding":[1,0,0],"mode":"Vector"}`:                                    "",
		`{"embedding":[1,0,0],"query":""}`:                                         "",
	} {
		if code == "" {
			code = "invalid_request"
		}
		a.want(a.do("POST", docsPath+"/search", m.AccessToken, body), 422, code)
	}
	ans := a.want(a.do("POST", docsPath+"/search?include=embedding", m.AccessToken,
		`{"embedding":[1,0,0],"limit":1}`), 200, "")
	got := decode[searchResult](ans).Results[0].Document.Embedding
	if len(got) != 3 || got[0] != 1 {
		t.Errorf("include=embedding: %s", ans.body)
	}
}

// TestOwnWords checks that a text is found by all of it, by each of its words, and by each part of
// them, whatever signs join them.
func TestOwnWords(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	long := strings.Repeat("Donaudampfschiff", 20)
	for _, text := range []string{
		"see https://user@Example.com:8080/a/b_c.html?x=1&y=%20z#top, or ftp://x.org/",
		"panic in src/main.go:123:45 and C:\\Temp\\x.txt",
		"input/output and/or read/write at 10/12/2024, 3.14, 1.27.3, 1e-5 and -5",
		"a<b <b>bold</b> &amp; x<y>z <!-- not hidden --> R&D",
		"utf-8 COVID-19 e-mail 10-12 --verbose x=y; don't l'\u00e9t\u00e9",
		"snake_case_name __init__.py ada.lovelace@example.co.uk (C++) C# .NET @home #tag",
		"a/" + long + " and " + long + ".txt",
		"cafe\u0301 is caf\u00e9, \u0438\u0306 is \u0439",
		"Stra\u00dfe/Gasse \u0443\u043b\u0438\u0446\u0430/\u0434\u043e\u043c",
		`he said "yes/no" and "maybe"`,
	} {
		body := map[string]any{"content": text, "embedding": []int{1, 0, 0}}
		a.want(a.do("POST", docsPath, m.AccessToken, body), 201, "")
		queries := append(strings.Fields(text), text)
		queries = append(queries, regexp.MustCompile(`[\pL\pM\pN]+`).FindAllString(text, -1)...)
		for _, query := range queries {
			ans := a.want(a.do("POST", docsPath+"/search", m.AccessToken,
				map[string]any{"mode": "text", "query": query, "limit": 100}), 200, "")
			if !slices.ContainsFunc(decode[searchResult](ans).Results, func(m match) bool {
				return m.Document.Content == text && m.Score > 1
			}) && regexp.MustCompile(`[\pL\pN]`).MatchString(query) {
				t.Errorf("query %q does not find %q", query, text)
			}
		}
	}
}

// readJudged returns a set of test/judged: 20 questions, for each of them 10 texts on its topic, of
// which the first answers it, and the embeddings of all.
func readJudged(t testing.TB, lang, model string) (questions, texts []string, vectors [][]int8) {
	t.Helper()
	data, err := os.ReadFile("test/judged/" + lang + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		switch kind, text := line[0], strings.TrimSpace(line[1:]); kind {
		case '?':
			questions = append(questions, text)
		case '*', '-':
			texts = append(texts, text)
		}
	}
	if data, err = os.ReadFile("test/judged/" + lang + "." + model); err != nil {
		t.Fatal(err)
	}
	for row := range slices.Chunk(data, 384) {
		var v []int8
		for _, b := range row {
			v = append(v, int8(b))
		}
		vectors = append(vectors, v)
	}
	if len(questions) != 20 || len(texts) != 200 || len(vectors) != 220 {
		t.Fatalf("%s: %d, %d, %d", lang, len(questions), len(texts), len(vectors))
	}
	return questions, texts, vectors
}

// TestJudged asks the questions of test/judged in each mode: of the first 5 results, no fewer are
// on the topic in hybrid than in vector, and with TEXT_SEARCH_CONFIG=simple no fewer of the first
// answer the question. With -v -recall it prints the table of BENCHMARKS.md.
func TestJudged(t *testing.T) {
	t.Parallel()
	type figures struct{ near, first int }
	modes := []string{"vector", "text", "hybrid"}
	ask := func(a *app, lang, model string) map[string]figures {
		questions, texts, vectors := readJudged(t, lang, model)
		m := a.signUp(model)
		var batch []map[string]any
		for i, text := range texts {
			batch = append(batch, map[string]any{"content": text, "embedding": vectors[20+i]})
		}
		a.want(a.do("POST", docsPath, m.AccessToken, map[string]any{"documents": batch}), 201, "")
		all := map[string]figures{}
		for i, question := range questions {
			for _, mode := range modes {
				body := map[string]any{"mode": mode, "limit": 5}
				if mode != "vector" {
					body["query"] = question
				}
				if mode != "text" {
					body["embedding"] = vectors[i]
				}
				ans := a.want(a.do("POST", docsPath+"/search", m.AccessToken, body), 200, "")
				f := all[mode]
				results := decode[searchResult](ans).Results
				for rank, r := range results {
					place := slices.Index(texts, r.Document.Content)
					if place/10 == i {
						f.near++
					}
					if rank == 0 && place == 10*i {
						f.first++
					}
				}
				all[mode] = f
			}
		}
		return all
	}
	for _, configs := range [][]string{
		{"en", "simple", "english"}, {"de", "simple", "german"}, {"ru", "simple", "russian"},
	} {
		lang := configs[0]
		if !*fullRecall {
			configs = configs[:2]
		}
		for _, textSearch := range configs[1:] {
			a := newDocsApp(t, 384, func(c *config) { c.TextSearch = textSearch })
			for _, model := range []string{"minilm", "e5"} {
				got := ask(a, lang, model)
				row := fmt.Sprintf("| %s | %s | %s |", lang, textSearch, model)
				for _, mode := range modes {
					row += fmt.Sprintf(" %.2f, %d |", float64(got[mode].near)/100, got[mode].first)
				}
				t.Log(row)
				vector, hybrid := got["vector"], got["hybrid"]
				if hybrid.near < vector.near ||
					textSearch == "simple" && hybrid.first < vector.first {
					t.Errorf("%s: hybrid is worse than vector", row)
				}
			}
		}
	}
}

// TestLongDocuments checks that a page of long documents ends early and links to the next one, and
// that a search returns all results or an error.
// TestUpdateRace lets another change of a document commit between the read and the write of a PUT:
// a vector stays with its text.
func TestUpdateRace(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	for body, want := range map[string]string{
		`{"content":"old","embedding":[1,0,0]}`: "old [1,0,0]",
		`{"content":"old","metadata":{}}`:       "other [0,0,1]",
		`{"content":"new","embedding":[1,0,0]}`: "new [1,0,0]",
	} {
		d := a.createDocument(m.AccessToken, `{"content":"old","embedding":[0,1,0]}`)
		tx, err := a.store.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(t.Context(), `UPDATE documents SET content = 'other', embedding = '[0,0,1]'
			WHERE id = $1`, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan answer)
		go func() {
			done <- a.do("PUT", fmt.Sprintf("%s/%d", docsPath, d.ID), m.AccessToken, body)
		}()
		eventually(t, "the PUT", func() bool {
			return one[int](t, a.url, `SELECT count(*) FROM pg_stat_activity
				WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
		})
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.want(<-done, 200, "")
		got := one[string](t, a.url, fmt.Sprintf(
			`SELECT concat_ws(' ', content, embedding) FROM documents WHERE id = %d`, d.ID))
		if got != want {
			t.Errorf("PUT %s: stored %s, want %s", body, got, want)
		}
	}
}

// TestRefusedAnswers holds the memory that a user may have for answers: what writes is refused
// before it has written, so that a client that tries again stores nothing twice.
func TestRefusedAnswers(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m, other := a.signUp("ada"), a.signUp("bob")
	content := strings.Repeat("x", 60_000)
	keyed := `{"content":"` + content + `","key":"k","embedding":[1,0,0]}`
	plain := `{"content":"` + content + `","embedding":[1,0,0]},`
	many := `{"documents":[` + strings.Repeat(plain, 20) + keyed + `]}`
	escaped := `{"content":"` + strings.Repeat(`\u0001`, 60_000) + `","embedding":[1,0,0]}`
	another := func(body string) string { return strings.ReplaceAll(body, "[1,0,0]", "[0,0,1]") }
	grows := `{"content":"` + strings.Repeat("x", 40_000) +
		`","metadata":{"a":0e-16000,"b":0e-16000},"embedding":[0,1,0]}`
	small := `{"documents":[` +
		strings.Repeat(`{"content":"x","embedding":[1,0,0]},`, 400) + keyed + `]}`
	a.want(a.do("POST", docsPath, m.AccessToken, `{"documents":[`+keyed+`,`+keyed+`]}`), 422,
		"invalid_request")
	d := a.createDocument(m.AccessToken, keyed)
	path := fmt.Sprintf("%s/%d", docsPath, d.ID)
	release, err := a.answers.acquire(t.Context(), clientKey{user: m.ID}, answerMemory)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][3]string{{"POST", docsPath, many}, {"POST", docsPath + "/batch", many},
		{"POST", docsPath + "?upsert=true", many}, {"POST", docsPath, escaped},
		{"POST", docsPath + "?include=embedding", small}, {"PUT", path, another(escaped)},
		{"POST", docsPath, grows}, {"PUT", path, grows}} {
		ans := a.want(a.do(c[0], c[1], m.AccessToken, c[2]), 503, "busy")
		if ans.header.Get("Retry-After") == "" {
			t.Errorf("%s %s: no Retry-After", c[0], c[1])
		}
		if n := one[int](t, a.url, `SELECT count(*) FROM documents`); n != 1 {
			t.Fatalf("%s %s: refused, but stored: %d documents", c[0], c[1], n)
		}
	}
	a.want(a.do("PUT", path, m.AccessToken, `{"metadata":{"a":1}}`), 200, "")
	a.want(a.do("POST", docsPath, other.AccessToken, many), 201, "")
	release()
	a.want(a.do("POST", docsPath+"?upsert=true", m.AccessToken, many), 201, "")
	eventually(t, "the memory of answers", func() bool {
		used, _ := a.answers.state()
		return used == 0
	})
}

// TestStaleUpdates sends an object back that another request changes meanwhile, and an embedding
// that belongs to other content.
func TestStaleUpdates(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	d := a.createDocument(m.AccessToken, `{"content":"old","embedding":[0,1,0.1]}`)
	path := fmt.Sprintf("%s/%d", docsPath, d.ID)
	read := a.do("GET", path+"?include=embedding", m.AccessToken, nil)
	body := strings.Replace(string(read.body), `"old"`, `"new"`, 1)
	a.want(a.do("PUT", path, m.AccessToken, body), 422, "embedding_required")
	for path, body := range map[string]string{path: `{"metadata":{"n":%d},"updated_at":%q}`,
		"/api/v1/users/me": `{"full_name":"n%d","updated_at":%q}`} {
		for range 5 {
			stored := decode[struct {
				Time string `json:"updated_at"`
			}](a.do("GET", path, m.AccessToken, nil))
			var done [400]atomic.Int64
			parallel(6, func(i int) {
				text := fmt.Sprintf(body, i, stored.Time)
				ans := a.do("PUT", path, m.AccessToken, text)
				done[ans.status%400].Add(1)
			})
			if ok, stale := done[200].Load(), done[22].Load(); ok != 1 || stale != 5 {
				t.Errorf("of 6 PUTs of one %s, %d are 200 and %d are 422", path, ok, stale)
			}
		}
	}
}

func TestLongDocuments(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	store := func(content string, n int) {
		for range n {
			body := map[string]any{"content": content, "embedding": []int{1, 2, 3}}
			a.want(a.do("POST", docsPath, m.AccessToken, body), 201, "")
		}
	}
	store(strings.Repeat("\u0001", 65536), 100)
	seen, pages := 0, 0
	for next := docsPath + "?limit=100"; next != ""; pages++ {
		ans := a.want(a.do("GET", next, m.AccessToken, nil), 200, "")
		list := decode[[]document](ans)
		if seen += len(list); len(list) == 0 || len(list) > 16 {
			t.Fatalf("a page of %d documents of 64 KiB", len(list))
		}
		link := ans.header.Get("Link")
		next = strings.TrimSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
	}
	if seen != 100 || pages != 7 {
		t.Errorf("%d documents on %d pages, want 100 on 7", seen, pages)
	}
	search := func(limit int) answer {
		body := map[string]any{"embedding": []int{1, 2, 3}, "limit": limit}
		return a.do("POST", docsPath+"/search", m.AccessToken, body)
	}
	if n := len(decode[searchResult](a.want(search(100), 200, "")).Results); n != 100 {
		t.Errorf("a search returned %d results, want 100", n)
	}
	a.sql(`DELETE FROM documents`)
	store(strings.Repeat("\U0001F600", 65536), 33)
	a.want(search(33), 422, "invalid_request")
	a.want(search(32), 200, "")
}

// TestSearchBombs stores and searches for texts that are expensive for PostgreSQL's text parser and
// ranking. None of them leads to a database error or a long request.
func TestSearchBombs(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	for _, run := range []string{
		"a_", "~/", "./", "<!--", "snake_case_name_", "row_", "a-b.c@d.ef/g ", "<a ", "&lt;",
		"1e5-", "http://a.b/", "x@", "/./", "é_", "-", ":", "w1 w2 w3 ", "a.b.c.", "--<",
	} {
		content := strings.Repeat(run, 65536/len([]rune(run)))
		body := map[string]any{"content": content, "embedding": []int{1, 0, 0}}
		start := time.Now()
		a.want(a.do("POST", docsPath, m.AccessToken, body), 201, "")
		t.Logf("%q: %v", run, time.Since(start))
	}
	var words []string
	for i := range 900 {
		words = append(words, fmt.Sprintf("w%d", i))
	}
	content := strings.Repeat(strings.Join(words, " ")+" ", 10)
	body := map[string]any{"content": content, "embedding": []int{1, 0, 0}}
	a.want(a.do("POST", docsPath, m.AccessToken, body), 201, "")
	random := rand.New(rand.NewPCG(3, 4))
	signs := strings.Split(`- " or OR and ( ) & | ! : * < <- \ ' w1 -w2 "w3 ---- --w4 -" "- a_a_ `+
		`| --- | <!-- ~ @ é - - -(`, " ")
	queries := []string{
		strings.Repeat("-", 8000), strings.Repeat("- ", 60), strings.Repeat("-(", 4000),
		strings.Repeat("a_", 4000), strings.Join(words[:64], " "),
		`"` + strings.Join(words[:64], " ") + `"`,
		"| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
		strings.Join(words, "/"),
	}
	for range 150 {
		var query []string
		for range random.IntN(60) + 1 {
			query = append(query, signs[random.IntN(len(signs))])
		}
		queries = append(queries, strings.Join(query, []string{" ", ""}[random.IntN(2)]))
	}
	for _, query := range queries {
		body := map[string]any{"mode": "text", "query": query}
		ans := a.do("POST", docsPath+"/search", m.AccessToken, body)
		if ans.status != 200 && ans.status != 422 {
			t.Errorf("query %.100q = %d: %s", query, ans.status, ans.body)
		}
	}
	for range 6 {
		body := `{"content":"x","embedding":[1,0,0],"metadata":{"a":[` +
			strings.Repeat("[0],", 3900) + `[1]]}}`
		a.want(a.do("POST", docsPath, m.AccessToken, body), 201, "")
	}
	filter := `{"a":[` + strings.Repeat("[1],", 240) + `[1]]}`
	ans := a.do("POST", docsPath+"/search", m.AccessToken,
		`{"embedding":[1,0,0],"filter":`+filter+`}`)
	if ans.status != 200 && ans.status != 422 {
		t.Errorf("a filter bomb = %d: %s", ans.status, ans.body)
	}
}

// TestHeavyRequests checks that other requests are served while all slots for expensive queries are
// in use.
func TestHeavyRequests(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m, other := a.signUp("ada"), a.signUp("bob")
	defer occupy(t, &a.store.expensive)()
	a.want(a.do("POST", docsPath+"/search", m.AccessToken, `{"embedding":[1,0,0]}`), 503, "busy")
	a.want(a.do("GET", docsPath+"?filter=%7B%7D", m.AccessToken, nil), 503, "busy")
	a.want(a.do("GET", docsPath, m.AccessToken, nil), 200, "")
	a.want(a.do("GET", "/api/v1/health/db", "", nil), 200, "")
	if !a.accepts(other.AccessToken) {
		t.Error("another user is not served")
	}
}

// cluster generates embeddings like those of a model: normally distributed around some centres.
type cluster struct {
	centres [][]float64
	random  *rand.Rand
}

func newCluster(seed uint64, centres, dimensions int) *cluster {
	c := &cluster{random: rand.New(rand.NewPCG(seed, 1))}
	for range centres {
		c.centres = append(c.centres, c.point(make([]float64, dimensions), 1))
	}
	return c
}

// point returns a normally distributed point around centre.
func (c *cluster) point(centre []float64, spread float64) []float64 {
	p := make([]float64, len(centre))
	for i := range p {
		p[i] = float64(float32(centre[i] + spread*c.random.NormFloat64()))
	}
	return p
}

func (c *cluster) near() []float64 {
	return c.point(c.centres[c.random.IntN(len(c.centres))], 0.4)
}

// roundHalf rounds to half precision, to even, as PostgreSQL does with stored and searched vectors.
func roundHalf(v []float64) []float64 {
	half := make([]float64, len(v))
	for i, x := range v {
		_, exponent := math.Frexp(x)
		step := math.Ldexp(1, max(exponent, -13)-11) // 11 bits; below 2^-14 in steps of 2^-24
		half[i] = math.RoundToEven(x/step) * step
	}
	return half
}

func cosineDistance(a, b []float64) float64 {
	var ab, aa, bb float64
	for i := range a {
		ab, aa, bb = ab+a[i]*b[i], aa+a[i]*a[i], bb+b[i]*b[i]
	}
	return 1 - ab/math.Sqrt(aa*bb)
}

var fullRecall = flag.Bool("recall", false,
	"TestRecall with owners of up to 20,000 documents at 384 dimensions; TestJudged in full")

// TestRecall compares searches over HTTP with a computation in float64 over the stored vectors, for
// owners of several sizes, with and without filters, on and off the topics of the documents, while
// another user upserts.
func TestRecall(t *testing.T) {
	t.Parallel()
	sizes, dimensions := []int{10, 500, 3000}, 32
	if *fullRecall {
		sizes, dimensions = []int{10, 500, 5000, 20000}, 384
	}
	a := newDocsApp(t, int64(dimensions))
	source := newCluster(7, 20, dimensions)
	type stored struct {
		id       int64
		topic    int
		embedded []float64
	}
	owners, docs := make([]member, len(sizes)), make([][]stored, len(sizes))
	for o, size := range sizes {
		owners[o] = a.signUp(fmt.Sprintf("owner%d", o))
		for from := 0; from < size; from += 500 {
			var items []map[string]any
			for i := from; i < min(size, from+500); i++ {
				v := source.near()
				docs[o] = append(docs[o], stored{0, i % 7, roundHalf(v)})
				items = append(items, map[string]any{"content": fmt.Sprint(i),
					"metadata": map[string]int{"topic": i % 7}, "embedding": v})
			}
			body := map[string]any{"documents": items}
			ans := a.want(a.do("POST", docsPath, owners[o].AccessToken, body), 201, "")
			for i, d := range decode[batch](ans).Documents {
				docs[o][from+i].id = d.ID
			}
		}
	}
	stop, inserter := make(chan struct{}), a.signUp("inserter")
	var background sync.WaitGroup
	defer background.Wait()
	defer close(stop)
	background.Go(func() {
		for noise := newCluster(7, 20, dimensions); ; {
			select {
			case <-stop:
				return
			default:
				a.do("POST", docsPath+"?upsert=true", inserter.AccessToken, map[string]any{
					"key": fmt.Sprint(noise.random.IntN(50)), "content": "noise",
					"metadata": map[string]int{"topic": 3}, "embedding": noise.near()})
			}
		}
	})
	hits, wanted := 0, 0
	for round := range 40 {
		query := source.near()
		if round%4 == 3 {
			query = source.point(make([]float64, dimensions), 1) // off all topics
		}
		body, topic := map[string]any{"embedding": query}, -1
		if round%2 == 1 {
			topic = round % 7
			operators := map[string]int{"$gte": topic, "$lt": topic + 1}
			body["filter"] = map[string]any{"topic": []any{topic, operators}[round/2%2]}
		}
		for o := range owners {
			distance := map[int64]float64{}
			for _, d := range docs[o] {
				if topic < 0 || d.topic == topic {
					distance[d.id] = cosineDistance(roundHalf(query), d.embedded)
				}
			}
			truth := slices.Sorted(maps.Values(distance))
			truth = truth[:min(10, len(truth))]
			ans := a.do("POST", docsPath+"/search", owners[o].AccessToken, body)
			got := decode[searchResult](a.want(ans, 200, "")).Results
			if len(got) != len(truth) {
				t.Fatalf("owner of %d, topic %d: %d results, want %d",
					sizes[o], topic, len(got), len(truth))
			}
			for i, f := range got {
				d, expected := distance[f.Document.ID]
				// The last digits of float32 do not distinguish distances closer than 1e-7.
				if expected && d <= truth[len(truth)-1]+1e-7 {
					hits++
				}
				if math.Abs(d-*f.Distance) > 1e-6 || math.Abs(truth[i]-*f.Distance) > 1e-6 {
					t.Errorf("owner of %d, topic %d, place %d: distance %v, computed %v, "+
						"true nearest %v", sizes[o], topic, i, *f.Distance, d, truth[i])
				}
				delete(distance, f.Document.ID) // a duplicate is no hit
			}
			wanted += len(truth)
		}
	}
	recall := float64(hits) / float64(wanted)
	t.Logf("recall@10 = %.4f of %d results, owners of %v documents, %d dimensions",
		recall, wanted, sizes, dimensions)
	if recall != 1 {
		t.Errorf("recall@10 = %.4f, want 1.0000", recall)
	}
}

// TestIsolation makes several users store, search, list, read, change and delete at once. No user
// gets a document of another.
func TestIsolation(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	var members []member
	for i := range 6 {
		members = append(members, a.signUp(fmt.Sprintf("user%d", i)))
	}
	var ids sync.Map // of documents, to their owner
	parallel(len(members), func(me int) {
		random := rand.New(rand.NewPCG(uint64(me), 2))
		token := members[me].AccessToken
		checkOwner := func(ans answer, list ...document) {
			for _, d := range list {
				if !strings.HasPrefix(d.Content, fmt.Sprintf("of %d ", me)) {
					t.Errorf("%s: user %d got %q", ans.call, me, d.Content)
				}
			}
		}
		for range 60 {
			vector := []float64{random.NormFloat64(), random.NormFloat64(), 1}
			filter := fmt.Sprintf(`{"k":%d}`, random.IntN(3))
			switch random.IntN(5) {
			case 0, 1:
				body := map[string]any{"content": fmt.Sprintf("of %d words", me),
					"metadata": json.RawMessage(filter), "embedding": vector}
				ans := a.want(a.do("POST", docsPath, token, body), 201, "")
				checkOwner(ans, decode[document](ans))
				ids.Store(decode[document](ans).ID, me)
			case 2:
				mode := []string{"vector", "text", "hybrid"}[random.IntN(3)]
				body := map[string]any{"mode": mode, "limit": 100}
				if mode != "text" {
					body["embedding"] = vector
				}
				if mode != "vector" {
					body["query"] = "words"
				}
				if random.IntN(2) == 0 {
					body["filter"] = json.RawMessage(filter)
				}
				ans := a.want(a.do("POST", docsPath+"/search", token, body), 200, "")
				for _, f := range decode[searchResult](ans).Results {
					checkOwner(ans, f.Document)
				}
			case 3:
				path := docsPath + "?filter=" + url.QueryEscape(filter)
				ans := a.want(a.do("GET", path, token, nil), 200, "")
				checkOwner(ans, decode[[]document](ans)...)
			case 4:
				ids.Range(func(id, owner any) bool {
					method := []string{"GET", "PUT", "DELETE"}[random.IntN(3)]
					path := fmt.Sprintf("%s/%d", docsPath, id)
					body := map[string]any{"PUT": `{"metadata":{"k":1}}`}[method]
					ans := a.do(method, path, token, body)
					if foreign := owner != me; foreign != (ans.status == 404) &&
						!(ans.status == 404 && !foreign) {
						t.Errorf("%s by user %d of the document of user %d = %d",
							ans.call, me, owner, ans.status)
					}
					return random.IntN(4) > 0
				})
			}
		}
	})
}

// TestDocumentsOfEndedSessions sends valid and invalid requests with a token whose session has
// ended. All are refused with invalid_token, whether or not they would reach a statement.
func TestDocumentsOfEndedSessions(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	a.createDocument(m.AccessToken, `{"content":"mine","embedding":[1,0,0]}`)
	good := []string{
		`{"content":"a","embedding":[1,0,0]}`,
		`{"documents":[{"content":"a","embedding":[1,0,0]},{"content":"b","embedding":[1,0,0]}]}`,
		`{"content":"a","embedding":[1,0,0` + strings.Repeat(" ", maxBody) + `]}`,
	}
	for _, body := range good {
		a.want(a.do("POST", docsPath, m.AccessToken, body), 201, "")
	}
	a.want(a.do("POST", "/api/v1/auth/logout", m.AccessToken, nil), 204, "")
	bad := []string{`{"content":"a","embedding":[1,0]}`, `{"content":`, `{}`, ``}
	for _, body := range append(good, bad...) {
		a.want(a.do("POST", docsPath, m.AccessToken, body), 401, "invalid_token")
	}
	for _, body := range []string{
		`{"embedding":[1,0,0]}`, `{"mode":"text","query":"mine"}`,
		`{"mode":"hybrid","query":"mine","embedding":[1,0,0]}`,
		`{"embedding":[1,0,0],"filter":{}}`, `{"limit":0}`, `[`,
	} {
		a.want(a.do("POST", docsPath+"/search", m.AccessToken, body), 401, "invalid_token")
	}
	header := http.Header{
		"Authorization": {"Bearer " + m.AccessToken}, "Content-Type": {"application/json"},
	}
	chunked := a.send("POST", docsPath+"/search", header,
		io.MultiReader(strings.NewReader(`{"embedding":[1,0,0]}`)))
	a.want(chunked, 401, "invalid_token")
	if n := one[int](t, a.url, `SELECT count(*) FROM documents`); n != 5 {
		t.Errorf("%d documents are stored, want the 5 of before the logout", n)
	}
}

// TestSearchPlan checks PostgreSQL's plans of searches: an index-only scan of the covering index,
// or a scan of the index of words or, with a filter, of metadata; never a sequential scan.
func TestSearchPlan(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	a.sql(`INSERT INTO users (email, password_hash) ` +
		`SELECT 'u' || i || '@example.com', '' FROM generate_series(1, 50) i`)
	one[int](t, a.url, `WITH d AS (INSERT INTO documents (owner_id, content, metadata, embedding)
		SELECT u.id, 'words ' || i, jsonb_build_object('k', i), ('[1,' || i || ',0]')::halfvec
		FROM users u, generate_series(1, 400) i RETURNING id) SELECT count(*) FROM d`)
	// Open transactions of other databases may delay the visibility map.
	eventually(t, "the visibility map", func() bool {
		a.sql(`VACUUM ANALYZE documents`)
		return one[bool](t, a.url,
			`SELECT relallvisible = relpages FROM pg_class WHERE relname = 'documents'`)
	})
	conn, err := pgx.Connect(t.Context(),
		a.url+"&plan_cache_mode=force_generic_plan&random_page_cost=1.1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var log logBuffer
	logged, err := openStore(t.Context(), a.url, 1,
		&statementLog{log: slog.New(slog.NewJSONHandler(&log, nil)), echo: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(logged.close)
	a.server.store = logged
	for body, row := range map[string]struct{ args, want string }{
		`{"embedding":[1,2,0]}`: {
			`1, false, 10, '[1,2,0]'`,
			"Index Only Scan using documents_nearest_idx",
		},
		`{"embedding":[1,2,0],"filter":{"k":7}}`: {
			`1, false, 10, '[1,2,0]', '{"k":7}'`,
			"Bitmap Index Scan on documents_metadata_idx",
		},
		`{"embedding":[1,2,0],"filter":{"$or":[{"k":{"$in":[7,8]}},{"a":{"b":1}}]}}`: {
			`1, false, 10, '[1,2,0]', ARRAY['{"k":7}']::jsonb[], '{"a":{"b":1}}'`,
			"Bitmap Index Scan on documents_metadata_idx",
		},
		`{"mode":"text","query":"77"}`: {
			`1, false, 10, 'simple', '77', '', '77'`,
			"Bitmap Index Scan on documents_words_idx",
		},
		`{"mode":"hybrid","query":"77","embedding":[1,2,0]}`: {
			`1, false, 10, 'simple', '77', '', '77', '[1,2,0]'`,
			"Index Only Scan using documents_nearest_idx",
		},
		`{"mode":"hybrid","query":"77","embedding":[1,2,0],"filter":{"k":7}}`: {
			`1, false, 10, 'simple', '77', '', '77', '[1,2,0]', '{"k":7}'`,
			"Bitmap Index Scan on documents_metadata_idx",
		},
	} {
		a.want(a.do("POST", docsPath+"/search", m.AccessToken, body), 200, "")
		lines := strings.Split(strings.TrimSpace(log.text()), "\n")
		var last struct{ Statement string }
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
			t.Fatal(err)
		}
		const simple = pgx.QueryExecModeSimpleProtocol
		prepare := `DEALLOCATE ALL; PREPARE p AS ` + last.Statement
		if _, err := conn.Exec(t.Context(), prepare, simple); err != nil {
			t.Fatal(err)
		}
		rows, _ := conn.Query(t.Context(), `EXPLAIN EXECUTE p(`+row.args+`)`, simple)
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if text := strings.Join(plan, "\n"); err != nil ||
			!strings.Contains(text, row.want) || strings.Contains(text, "Seq Scan") {
			t.Errorf("search %s, want %s (%v):\n%s", body, row.want, err, text)
		}
	}
}

// fill stores n documents of an owner with random vectors, by SQL.
func (a *app) fill(owner int64, n int) {
	a.t.Helper()
	a.sql(`INSERT INTO documents (owner_id, content, metadata, embedding)
		SELECT $1, 'text', jsonb_build_object('n', i, 'half', i % 2), (SELECT
		    array_agg(random() - 0.5) FROM generate_series(i, i + $3 - 1))::halfvec
		FROM generate_series(1, $2) i`, owner, n, a.cfg.EmbeddingDimensions)
	a.sql(`VACUUM ANALYZE documents`)
}

// buildIndex builds an index that searches use, without measuring it.
func (a *app) buildIndex(m member) {
	a.t.Helper()
	err := buildIndex(a.t.Context(), a.url, m.ID, 0)
	if err == nil {
		err = a.store.saveIndex(a.t.Context(), vectorIndex{Owner: m.ID, EfSearch: 100, Recall: 1,
			Documents: one[int64](a.t, a.url, fmt.Sprintf(
				"SELECT count(*) FROM documents WHERE owner_id = %d", m.ID))})
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// searchExact reports whether a search of a member is exact.
func (a *app) searchExact(by member) bool {
	a.t.Helper()
	body := map[string]any{"embedding": randomVector(a.cfg.EmbeddingDimensions), "limit": 1}
	ans := a.want(a.do("POST", docsPath+"/search", by.AccessToken, body), 200, "")
	return decode[searchResult](ans).Exact
}

func randomVector(n int64) (v []float64) {
	for range n {
		v = append(v, rand.Float64()-0.5)
	}
	return v
}

// TestIndex searches with an index: most of the true nearest, all of a rare filter, and always as
// many as there are. Other owners' searches and those that ask for it are exact.
func TestIndex(t *testing.T) {
	t.Parallel()
	a := newDocsApp(t, 8)
	m, other := a.signUp("ada"), a.signUp("bob")
	a.fill(m.ID, 3000)
	a.fill(other.ID, 3000)
	search := func(by member, body map[string]any, exact bool) (ids []int64) {
		t.Helper()
		r := decode[searchResult](a.want(a.do("POST", docsPath+"/search", by.AccessToken, body),
			200, ""))
		last := -1.0
		for _, f := range r.Results {
			if ids = append(ids, f.Document.ID); f.Distance != nil {
				if *f.Distance < last {
					t.Errorf("distance %v after %v", *f.Distance, last)
				}
				last = *f.Distance
			}
		}
		if r.Exact != exact {
			t.Errorf("search %v: exact is %v, with %d results", body, r.Exact, len(ids))
		}
		return ids
	}
	body := func(more ...any) map[string]any {
		b := map[string]any{"embedding": randomVector(8)}
		for i := 0; i < len(more); i += 2 {
			b[more[i].(string)] = more[i+1]
		}
		return b
	}
	search(m, body(), true)
	a.buildIndex(m)
	hits := 0
	for i := range 60 {
		b := body("limit", 10)
		if i%2 == 1 {
			b["filter"] = map[string]any{"half": 1}
		}
		got := search(m, b, false)
		b["exact"] = true
		for _, id := range search(m, b, true) {
			if slices.Contains(got, id) {
				hits++
			}
		}
		delete(b, "exact")
	}
	if hits < 570 {
		t.Errorf("searches by the index found %d of the 600 nearest", hits)
	}
	search(other, body(), true)
	search(m, map[string]any{"mode": "text", "query": "text"}, true)
	search(m, body("mode", "hybrid", "query", "text"), true)
	if got := search(m, body("filter", map[string]any{"n": 7}), true); len(got) != 1 {
		t.Errorf("a filter that one document matches found %d", len(got))
	}
	added := a.createDocument(m.AccessToken,
		`{"content":"new","embedding":[9,9,9,9,9,9,9,-9]}`)
	nearest := map[string]any{"embedding": []int{9, 9, 9, 9, 9, 9, 9, -9}, "limit": 1}
	if got := search(m, nearest, false); !slices.Equal(got, []int64{added.ID}) {
		t.Errorf("nearest to a new document is %v", got)
	}
	path := fmt.Sprintf("%s/%d", docsPath, added.ID)
	a.want(a.do("PUT", path, m.AccessToken, body()), 200, "")
	if got := search(m, nearest, false); slices.Equal(got, []int64{added.ID}) {
		t.Error("a document is found by the vector that it had")
	}
	a.sql(`DELETE FROM documents WHERE owner_id = $1 AND (metadata->>'n')::int > 12`, m.ID)
	if got := search(m, body("limit", 11), false); len(got) != 11 {
		t.Errorf("after deletions %d results, want 11", len(got))
	}
	if got := search(m, body("limit", 20), true); len(got) != 13 {
		t.Errorf("%d results of 13 documents", len(got))
	}
	if err := a.store.dropIndex(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	search(m, body(), true)
	if list, err := a.store.listIndexes(t.Context()); len(list) != 0 || err != nil {
		t.Errorf("after -drop there is %v, %v", list, err)
	}
}

// TestIndexSweep: a sweep drops the index of an account that is gone, measures one again when its
// owner has grown by a tenth, and warns where it finds too few.
func TestIndexSweep(t *testing.T) {
	t.Parallel()
	a := newDocsApp(t, 64)
	m, gone := a.signUp("ada"), a.signUp("bob")
	a.fill(m.ID, 2000)
	a.fill(gone.ID, 10)
	a.buildIndex(m)
	a.buildIndex(gone)
	a.sql(`UPDATE vector_indexes SET ef_search = 1 WHERE owner_id = $1`, m.ID)
	a.sql(`DELETE FROM users WHERE id = $1`, gone.ID)
	check := func() (list []vectorIndex) {
		t.Helper()
		err := a.checkIndexes(t.Context())
		if err == nil {
			list, err = a.store.listIndexes(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := check(); len(list) != 1 || list[0].Owner != m.ID || list[0].Recall != 1 {
		t.Errorf("after a sweep there are %+v", list)
	}
	a.fill(m.ID, 199)
	if check()[0].Recall != 1 {
		t.Error("it was measured again after growing by less than a tenth")
	}
	a.fill(m.ID, 1)
	metric := func() string {
		var metrics strings.Builder
		a.writeMetrics(&metrics)
		return strings.Join(submatches(`(?m)^latch_index_recall\{user_id="\d+"\} (.*)`,
			metrics.String()), " ")
	}
	if got := metric(); got != "1" {
		t.Errorf("the metric is %s", got)
	}
	list := check()
	if list[0].Documents != 2200 || list[0].Recall > lowRecall || list[0].Recall <= 0 ||
		metric() != fmt.Sprint(list[0].Recall) {
		t.Errorf("after growing by a tenth: %+v, metric %s", list[0], metric())
	}
	if !strings.Contains(suiteLog.text(), `"msg":"recall_low","user_id":`) {
		t.Error("no warning of a low recall")
	}
}

// TestIndexPlan looks at PostgreSQL's plans while an owner has an index: its searches take it,
// others and exact ones never do, whether or not PostgreSQL knows the owner when it plans.
func TestIndexPlan(t *testing.T) {
	t.Parallel()
	a := newDocsApp(t, 8)
	m, other := a.signUp("ada"), a.signUp("bob")
	a.fill(m.ID, 3000)
	a.fill(other.ID, 3000)
	a.buildIndex(m)
	var log logBuffer
	st, err := openStore(t.Context(), a.url, 1,
		&statementLog{log: slog.New(slog.NewJSONHandler(&log, nil)), echo: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.close)
	in := searchInput{Mode: "vector", Limit: 10, Embedding: vector{1, 2, 3, 4, 5, 6, 7, 8}}
	for _, row := range []struct {
		name, args string
		index      bool
		search     func() ([]match, error)
	}{
		{"by the index", `%d, false, '[1,2,3,4,5,6,7,8]'`, true, func() ([]match, error) {
			return st.searchIndex(t.Context(), m.ID, in, 40)
		}},
		{"by the index, filtered", `%d, false, '[1,2,3,4,5,6,7,8]', '{}'`, true,
			func() ([]match, error) {
				in := in
				in.Filter = jsonObject(`{"half":1}`)
				return st.searchIndex(t.Context(), m.ID, in, 40)
			}},
		{"exact", `%d, false, 10, '[1,2,3,4,5,6,7,8]'`, false, func() ([]match, error) {
			return searchDocuments(t.Context(), st.runLimited(in.source()), m.ID, in, "simple")
		}},
		{"hybrid", `%d, false, 10, 'simple', 'text', '', 'text',
			'[1,2,3,4,5,6,7,8]'`, false,
			func() ([]match, error) {
				in := in
				in.Mode, in.Query = "hybrid", new("text")
				return searchDocuments(t.Context(), st.runLimited(in.source()), m.ID, in, "simple")
			}},
	} {
		if _, err := row.search(); err != nil {
			t.Fatal(err)
		}
		text := lastSearch(t, log.text())
		for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
			for _, owner := range []int64{m.ID, other.ID} {
				plan := a.plan(mode, text, fmt.Sprintf(row.args, owner))
				if strings.Contains(plan, "hnsw") != row.index {
					t.Errorf("search %s, %s, by account %d:\n%s", row.name, mode, owner, plan)
				}
			}
		}
	}
	in.Limit = 50
	_, err = st.searchIndex(t.Context(), m.ID, in, 40)
	if err != nil || !strings.Contains(log.text(), "hnsw.ef_search = 200") {
		t.Errorf("ef_search does not grow with the limit; %v", err)
	}
	prepared, err := queryOne(t.Context(), st.run, pgx.RowTo[int], `SELECT count(*)::int
		FROM pg_prepared_statements WHERE statement LIKE 'WITH%embedding <=>%'`)
	if prepared != 0 || err != nil {
		t.Errorf("%d statements of one owner stay prepared, %v", prepared, err)
	}
}

// lastSearch returns the last statement of a log that looks for documents.
func lastSearch(t testing.TB, log string) string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for _, line := range slices.Backward(lines) {
		var entry struct{ Statement string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(entry.Statement, "WITH") {
			return entry.Statement
		}
	}
	t.Fatalf("the log has no search: %s", log)
	return ""
}

// plan returns PostgreSQL's plan of a statement with these arguments.
func (a *app) plan(mode, statement, args string) string {
	a.t.Helper()
	conn, err := pgx.Connect(a.t.Context(), a.url+"&random_page_cost=1.1&plan_cache_mode="+mode)
	if err != nil {
		a.t.Fatal(err)
	}
	defer conn.Close(a.t.Context())
	const simple = pgx.QueryExecModeSimpleProtocol
	_, err = conn.Exec(a.t.Context(), `PREPARE p AS `+statement, simple)
	rows, _ := conn.Query(a.t.Context(), `EXPLAIN EXECUTE p(`+args+`)`, simple)
	plan, err2 := pgx.CollectRows(rows, pgx.RowTo[string])
	if err := errors.Join(err, err2); err != nil {
		a.t.Fatal(err)
	}
	return strings.Join(plan, "\n")
}

// TestDimensions stores and searches at the limits of EMBEDDING_DIMENSIONS and of the covering
// index.
func TestDimensions(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{1, 1336, 1337, 4000} {
		a := newDocsApp(t, n)
		m := a.signUp("ada")
		random := rand.New(rand.NewPCG(1, uint64(n)))
		for i := range 3 {
			v := make([]float64, n)
			for k := range v {
				v[k] = random.NormFloat64() + 2
			}
			// Short and long texts beside the vector, for each way PostgreSQL stores a text.
			content := strings.Repeat("word ", []int{1, 5, 9000}[i])
			metadata := map[string]string{"a": strings.Repeat("x", []int{1, 24, 16000}[i])}
			body := map[string]any{"content": content, "metadata": metadata, "embedding": v}
			a.want(a.do("POST", docsPath, m.AccessToken, body), 201, "")
			query := map[string]any{"embedding": v, "limit": 1}
			ans := a.do("POST", docsPath+"/search", m.AccessToken, query)
			got := decode[searchResult](a.want(ans, 200, ""))
			if len(got.Results) != 1 || *got.Results[0].Distance > 1e-3 {
				t.Errorf("%d dimensions: %+v", n, got)
			}
		}
		a.buildIndex(m)
		if a.searchExact(m) {
			t.Errorf("%d dimensions: a search does not use the index", n)
		}
		covered := one[bool](t, a.url,
			`SELECT to_regclass('documents_nearest_idx') IS NOT NULL`)
		if covered != (n <= 1336) {
			t.Errorf("%d dimensions: covering index %v", n, covered)
		}
	}
}

func TestChoices(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	cfg := func(dimensions int64, model, textSearch string) *config {
		return &config{
			EmbeddingDimensions: dimensions, EmbeddingsModel: model, TextSearch: textSearch,
		}
	}
	for _, row := range []struct {
		cfg  *config
		want string
	}{
		{cfg(testDimensions, "", "simple"), ""},
		{cfg(testDimensions, "small", "simple"), ""},
		{cfg(testDimensions, "", "simple"), ""},
		{cfg(768, "", "simple"), "EMBEDDING_DIMENSIONS is 768, " +
			"but the documents table was made with 3: set it back to 3"},
		{cfg(testDimensions, "large", "simple"), "EMBEDDINGS_MODEL is large, " +
			"but the documents table was made with small"},
		{cfg(testDimensions, "small", "english"), "TEXT_SEARCH_CONFIG is english, " +
			"but the documents table was made with simple"},
	} {
		err := a.store.checkChoices(t.Context(), row.cfg)
		if (err == nil) != (row.want == "") ||
			err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("checkChoices(%+v) = %v, want %q", row.cfg, err, row.want)
		}
	}
}

// TestChangingTheEmbeddings runs the SQL of OPERATIONS.md for a change of the embeddings and of the
// text search: the table becomes that of a new database with these settings.
func TestChangingTheEmbeddings(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("deploy/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## Changing the embeddings\n")
	blocks := submatches("(?s)```sql\n(.*?)```", section)
	if len(blocks) != 2 {
		t.Fatalf("OPERATIONS.md has %d blocks of SQL, want embeddings and words", len(blocks))
	}
	a := newDocsApp(t, 3)
	before := &config{EmbeddingDimensions: 3, EmbeddingsModel: "small", TextSearch: "simple"}
	after := &config{EmbeddingDimensions: 768, EmbeddingsModel: "large", TextSearch: "english"}
	if err := a.store.checkChoices(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	token := a.signUp("ada").AccessToken
	a.createDocument(token, `{"content":"old","embedding":[1,2,3]}`)
	a.sql(blocks[0], pgx.QueryExecModeSimpleProtocol)
	b := newAppOn(t, a.url, cheap, func(c *config) { c.EmbeddingDimensions = 768 })
	body := map[string]any{"content": "two words", "embedding": newCluster(1, 1, 768).near()}
	b.want(b.do("POST", docsPath, token, body), 201, "")
	a.sql(blocks[1], pgx.QueryExecModeSimpleProtocol)
	if err := a.store.checkChoices(t.Context(), after); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	c := newAppOn(t, a.url, cheap, func(c *config) {
		c.EmbeddingDimensions, c.TextSearch = 768, "english"
	})
	query := `{"mode":"text","query":"word"}`
	found := c.want(c.do("POST", docsPath+"/search", token, query), 200, "")
	if !strings.Contains(string(found.body), "two words") {
		t.Errorf("a search in English = %s", found.body)
	}
	fresh := newDatabase(t, "")
	if err := migrate(t.Context(), fresh, migrations(after), false, quiet); err != nil {
		t.Fatal(err)
	}
	const shape = `
		SELECT (SELECT string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod),
		           attstorage, attnotnull, pg_get_expr(adbin, adrelid)), E'\n' ORDER BY attname)
		        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
		        WHERE attrelid = 'documents'::regclass AND attnum > 0 AND NOT attisdropped)
		    || (SELECT string_agg(indexdef, E'\n' ORDER BY indexdef)
		        FROM pg_indexes WHERE tablename = 'documents')`
	if got, want := one[string](t, a.url, shape), one[string](t, fresh, shape); got != want {
		t.Errorf("after the change the table is\n%s\nand a new one\n%s", got, want)
	}
}

func BenchmarkParseVector(b *testing.B) {
	source := newCluster(1, 1, 384)
	array, err := json.Marshal(source.near())
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(array)))
	for b.Loop() {
		if _, refusal := parseVector(string(array), 384); refusal != "" {
			b.Fatal(refusal)
		}
	}
}

// TestParseVectorAllocations checks that parsing a vector allocates nothing per number.
func TestParseVectorAllocations(t *testing.T) {
	array, err := json.Marshal(newCluster(1, 1, 384).near())
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { parseVector(string(array), 384) }); n > 3 {
		t.Errorf("parseVector makes %v allocations", n)
	}
}
