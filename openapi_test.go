package main

// openapi_test.go holds the checker that every answer of the suite passes through (main_test.go): what
// the served document does not declare, a status, a header, a field, a media type, fails the test that
// received it. It knows the JSON Schema words that the document uses, and fails on one that it does not.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	jsonv2 "encoding/json/v2"
)

// apiDocument is the document as a client reads it.
type apiDocument struct {
	Paths      map[string]map[string]map[string]any
	Components map[string]map[string]map[string]any
	templates  map[string]*regexp.Regexp
	mu         sync.Mutex
	seen       map[string]bool // codes of the problems that were received
}

// theDocument is that of the default settings, which all apps of the suite share.
var theDocument = sync.OnceValue(func() *apiDocument {
	cfg, err := loadConfig(nil, "")
	if err != nil {
		panic(err)
	}
	s := &server{cfg: cfg}
	s.table = s.routes()
	d := &apiDocument{templates: map[string]*regexp.Regexp{}, seen: map[string]bool{}}
	decoder := json.NewDecoder(bytes.NewReader(s.openAPI()))
	decoder.UseNumber()
	if err := decoder.Decode(d); err != nil {
		panic(err)
	}
	for path := range d.Paths {
		d.templates[path] = regexp.MustCompile("^" + regexp.MustCompile(`\\\{\w+\\\}`).ReplaceAllString(regexp.QuoteMeta(path), "[^/%]+") + "$")
	}
	return d
})

// operation returns what is declared for a request, the path without its query.
func (d *apiDocument) operation(method, path string) map[string]any {
	best := ""
	for template, pattern := range d.templates {
		if pattern.MatchString(path) && (best == "" || !strings.Contains(template, "{")) {
			best = template
		}
	}
	return d.Paths[best][strings.ToLower(method)]
}

// resolve follows a $ref.
func (d *apiDocument) resolve(v any) map[string]any {
	o, _ := v.(map[string]any)
	if to, ok := o["$ref"].(string); ok {
		kind, name, _ := strings.Cut(strings.TrimPrefix(to, "#/components/"), "/")
		o = d.Components[kind][name]
		if o == nil {
			panic("the document has no " + to)
		}
	}
	return o
}

// everywhere are headers that every answer may have; the others must be declared.
var everywhere = []string{"Cache-Control", "Content-Security-Policy", "Content-Length", "Content-Type", "Date", "Referrer-Policy", "X-Content-Type-Options", "Connection",
	"Strict-Transport-Security", "Vary", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers"}

// faults are the ways in which an answer is not what the document says.
func (d *apiDocument) faults(method, path string, ans answer) (faults []string) {
	path, _, _ = strings.Cut(path, "?")
	if method == "OPTIONS" || !strings.HasPrefix(path, "/api/v1/") {
		return nil
	}
	if method == "POST" && path == docsPath && bytes.HasPrefix(ans.body, []byte(`{"documents":`)) {
		path += "/batch" // the older form, which the document leaves out
	}
	op := d.operation(strings.Replace(method, "HEAD", "GET", 1), path)
	if op == nil {
		if ans.status == 500 && strings.HasPrefix(path, "/api/v1/test/") {
			return nil // a row that TestPanic has added
		}
		if ans.status != 404 && ans.status != 405 {
			faults = append(faults, fmt.Sprintf("%d from an operation that the document does not have", ans.status))
		}
		return faults
	}
	response := d.resolve(op["responses"].(map[string]any)[fmt.Sprint(ans.status)])
	if response == nil {
		return []string{fmt.Sprintf("status %d is not declared", ans.status)}
	}
	declared, _ := response["headers"].(map[string]any)
	for name, header := range declared {
		if _, there := ans.header[http.CanonicalHeaderKey(name)]; !there && d.resolve(header)["required"] == true {
			faults = append(faults, "header "+name+" is missing")
		}
	}
	for name := range ans.header {
		same := func(declared string) bool { return http.CanonicalHeaderKey(declared) == name }
		if !slices.ContainsFunc(everywhere, same) && !slices.ContainsFunc(slices.Collect(maps.Keys(declared)), same) {
			faults = append(faults, "header "+name+" is not declared")
		}
	}
	content, _ := response["content"].(map[string]any)
	media := ans.header.Get("Content-Type")
	if content == nil || content[media] == nil {
		if media != "" || content != nil || len(ans.body) > 0 {
			faults = append(faults, fmt.Sprintf("media type %q is not declared", media))
		}
		return faults
	}
	if method == "HEAD" {
		return faults
	}
	var body any
	decoder := json.NewDecoder(bytes.NewReader(ans.body))
	decoder.UseNumber()
	if err := decoder.Decode(&body); err != nil {
		return append(faults, err.Error())
	}
	if codes, ok := response["x-codes"].([]any); ok {
		code := body.(map[string]any)["code"]
		if !slices.Contains(codes, code) {
			faults = append(faults, fmt.Sprintf("body.code is none of %v", codes))
		}
	}
	return append(faults, d.check(content[media].(map[string]any)["schema"], body, "body", true)...)
}

// check holds value against schema. closed: fields that the schema does not name are faults too.
func (d *apiDocument) check(schema, value any, at string, closed bool) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, at+" "+fmt.Sprintf(format, args...)) }
	s := d.resolve(schema)
	for word, rule := range s {
		switch word {
		case "description", "examples", "default", "$ref", "contentMediaType", "readOnly":
		case "format":
			if text, ok := value.(string); ok && rule == "date-time" {
				if _, err := time.Parse(time.RFC3339, text); err != nil || !strings.HasSuffix(text, "Z") {
					fault("is no time in UTC")
				}
			}
		case "type":
			if types, several := rule.([]any); !hasType(value, rule) && (!several || !slices.ContainsFunc(types, func(t any) bool { return hasType(value, t) })) {
				fault("is not of type %v", rule)
			}
		case "enum":
			if !slices.Contains(rule.([]any), value) {
				fault("is none of %v", rule)
			}
		case "pattern":
			if text, ok := value.(string); ok && !regexp.MustCompile(rule.(string)).MatchString(text) {
				fault("does not match %v", rule)
			}
		case "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems":
			if n, ok := measure(word, value); ok {
				if c := n.Cmp(number(rule)); strings.HasPrefix(word, "min") && c < 0 || strings.HasPrefix(word, "max") && c > 0 {
					fault("breaks %s %v", word, rule)
				}
			}
		case "items":
			if list, ok := value.([]any); ok {
				for i, item := range list {
					faults = append(faults, d.check(rule, item, fmt.Sprintf("%s.%d", at, i), closed)...)
				}
			}
		case "allOf":
			for _, part := range rule.([]any) {
				faults = append(faults, d.check(part, value, at, false)...)
			}
		case "oneOf", "anyOf":
			fit := 0
			for _, part := range rule.([]any) {
				if len(d.check(part, value, at, closed)) == 0 {
					fit++
				}
			}
			if fit == 0 || fit > 1 && word == "oneOf" {
				fault("fits %d of the alternatives", fit)
			}
		case "required":
			for _, name := range rule.([]any) {
				if o, ok := value.(map[string]any); ok {
					if _, there := o[name.(string)]; !there {
						fault("has no %v", name)
					}
				}
			}
		case "properties", "additionalProperties":
		default:
			panic("the checker does not know the word " + word)
		}
	}
	o, ok := value.(map[string]any)
	named := d.properties(s)
	for name, v := range o {
		if ok && named[name] != nil && s["allOf"] == nil {
			faults = append(faults, d.check(named[name], v, at+"."+name, closed)...)
		} else if named[name] == nil && (s["additionalProperties"] == false || closed && s["additionalProperties"] == nil && s["oneOf"] == nil) {
			fault("has the undeclared field %s", name)
		}
	}
	return faults
}

// properties are those of a schema and of the parts of its allOf.
func (d *apiDocument) properties(s map[string]any) map[string]any {
	all := map[string]any{}
	own, _ := s["properties"].(map[string]any)
	maps.Copy(all, own)
	parts, _ := s["allOf"].([]any)
	for _, part := range parts {
		maps.Copy(all, d.properties(d.resolve(part)))
	}
	return all
}

func hasType(value, name any) bool {
	switch v := value.(type) {
	case nil:
		return name == "null"
	case string:
		return name == "string"
	case bool:
		return name == "boolean"
	case json.Number:
		return name == "number" || name == "integer" && !strings.ContainsAny(v.String(), ".eE")
	case []any:
		return name == "array"
	}
	return name == "object"
}

func number(v any) *big.Float {
	n, _, err := big.ParseFloat(v.(json.Number).String(), 10, 100, big.ToNearestEven)
	if err != nil {
		panic(err)
	}
	return n
}

// measure is what word bounds of value; ok is false where it bounds nothing of it.
func measure(word string, value any) (n *big.Float, ok bool) {
	switch v := value.(type) {
	case string:
		return big.NewFloat(float64(utf8.RuneCountInString(v))), strings.HasSuffix(word, "Length")
	case json.Number:
		return number(v), strings.HasSuffix(word, "imum")
	case []any:
		return big.NewFloat(float64(len(v))), strings.HasSuffix(word, "Items")
	}
	return nil, false
}

// conforms fails the test where an answer is not what the document says.
func (a *app) conforms(method, path string, ans answer) {
	a.t.Helper()
	d := theDocument()
	if fault := d.faults(method, path, ans); fault != nil {
		a.t.Errorf("%s = %d is not as the document says: %s", ans.call, ans.status, strings.Join(fault, "; "))
	}
	if code := ans.code(); code != "" {
		d.mu.Lock()
		d.seen[code] = true
		d.mu.Unlock()
	}
}

// unseen are the codes that the document promises and that nothing in the suite received.
func (d *apiDocument) unseen() (codes []string) {
	for name := range d.Components["responses"] {
		for code := range strings.SplitSeq(name, ".") {
			if !d.seen[code] && !slices.Contains(codes, code) {
				codes = append(codes, code)
			}
		}
	}
	return codes
}

// TestConforms shows that the checker finds what it is for.
func TestConforms(t *testing.T) {
	t.Parallel()
	header := func(more ...string) http.Header {
		h := http.Header{"Content-Type": {"application/json"}, "X-Request-Id": {"x"}}
		for i := 0; i < len(more); i += 2 {
			h.Set(more[i], more[i+1])
		}
		return h
	}
	me := `{"id":1,"email":"a@b.co","full_name":null,"is_active":true,"is_admin":false,"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z"}`
	problem := `{"type":"about:blank","title":"t","status":401,"detail":"d","code":"invalid_token","request_id":"x"}`
	challenged := header("Content-Type", "application/problem+json", "WWW-Authenticate", "Bearer")
	for name, row := range map[string]struct {
		path string
		ans  answer
		want string
	}{
		"good":             {"/api/v1/users/me", answer{status: 200, header: header(), body: []byte(me)}, ""},
		"good problem":     {"/api/v1/users/me", answer{status: 401, header: challenged, body: []byte(problem)}, ""},
		"status":           {"/api/v1/users/me", answer{status: 418, header: header()}, "status 418 is not declared"},
		"header":           {"/api/v1/users/me", answer{status: 200, header: header("X-More", "1"), body: []byte(me)}, "header X-More is not declared"},
		"missing header":   {"/api/v1/users/me", answer{status: 401, header: header("Content-Type", "application/problem+json"), body: []byte(problem)}, "header WWW-Authenticate is missing"},
		"media type":       {"/api/v1/users/me", answer{status: 200, header: header("Content-Type", "text/html"), body: []byte(me)}, `media type "text/html" is not declared`},
		"body of nothing":  {"/api/v1/auth/logout", answer{status: 204, header: http.Header{"X-Request-Id": {"x"}}, body: []byte("x")}, "media type"},
		"field":            {"/api/v1/users/me", answer{status: 200, header: header(), body: []byte(strings.Replace(me, `"id":1`, `"id":1,"password_hash":""`, 1))}, "undeclared field password_hash"},
		"missing field":    {"/api/v1/users/me", answer{status: 200, header: header(), body: []byte(strings.Replace(me, `"id":1,`, ``, 1))}, "has no id"},
		"type":             {"/api/v1/users/me", answer{status: 200, header: header(), body: []byte(strings.Replace(me, `"id":1`, `"id":"1"`, 1))}, "is not of type integer"},
		"time":             {"/api/v1/users/me", answer{status: 200, header: header(), body: []byte(strings.Replace(me, `05Z`, `05+01:00`, 1))}, "is no time in UTC"},
		"in a list":        {"/api/v1/users", answer{status: 200, header: header(), body: []byte("[" + strings.Replace(me, `true`, `1`, 1) + "]")}, "body.0.is_active"},
		"code":             {"/api/v1/users/me", answer{status: 401, header: challenged, body: []byte(strings.Replace(problem, "invalid_token", "other", 1))}, "body.code is none of"},
		"field of problem": {"/api/v1/users/me", answer{status: 401, header: challenged, body: []byte(strings.Replace(problem, `{`, `{"more":1,`, 1))}, "undeclared field more"},
		"operation":        {"/api/v1/nothing", answer{status: 200, header: header()}, "does not have"},
	} {
		method := map[bool]string{true: "POST", false: "GET"}[strings.HasSuffix(row.path, "logout")]
		got := strings.Join(theDocument().faults(method, row.path, row.ans), "; ")
		if row.want == "" && got != "" || !strings.Contains(got, row.want) {
			t.Errorf("%s: faults = %q, want %q", name, got, row.want)
		}
	}
}

// TestDocument holds the examples against their schemas, and the document against the table.
func TestDocument(t *testing.T) {
	t.Parallel()
	d := theDocument()
	ids := map[string]bool{}
	contents := func(at string, content any) {
		for media, v := range content.(map[string]any) {
			m := v.(map[string]any)
			named, _ := m["examples"].(map[string]any)
			if m["example"] == nil && named == nil {
				t.Errorf("%s, %s: no example", at, media)
			}
			if m["example"] != nil {
				named = map[string]any{"example": map[string]any{"value": m["example"]}}
			}
			for name, example := range named {
				if faults := d.check(m["schema"], example.(map[string]any)["value"], name, true); faults != nil {
					t.Errorf("%s, %s: %v", at, media, faults)
				}
			}
		}
	}
	operations := 0
	for path, methods := range d.Paths {
		for method, op := range methods {
			operations++
			id := op["operationId"].(string)
			if ids[id] || !regexp.MustCompile(`^[a-z][A-Za-z]+$`).MatchString(id) || op["summary"] == "" || op["description"] == "" || op["security"] == nil {
				t.Errorf("%s %s: operationId %q", method, path, id)
			}
			ids[id] = true
			if body, ok := op["requestBody"].(map[string]any); ok {
				contents(id, body["content"])
			}
			for status, response := range op["responses"].(map[string]any) {
				if content := d.resolve(response)["content"]; content != nil {
					contents(id+" "+status, content)
				}
			}
			parameters, _ := op["parameters"].([]any)
			for _, p := range parameters {
				schema, ok := p.(map[string]any)["schema"].(map[string]any)
				if !ok {
					schema = p.(map[string]any)["content"].(map[string]any)["application/json"].(map[string]any)["schema"].(map[string]any)
				}
				examples, _ := schema["examples"].([]any)
				for _, v := range append(examples, schema["default"]) {
					if faults := d.check(schema, v, "example", true); v != nil && faults != nil {
						t.Errorf("%s: %v", id, faults)
					}
				}
			}
		}
	}
	for name, schema := range d.Components["schemas"] {
		for property, p := range d.properties(schema) {
			examples, _ := p.(map[string]any)["examples"].([]any)
			for _, v := range examples {
				if faults := d.check(p, v, name+"."+property, true); faults != nil {
					t.Error(faults)
				}
			}
		}
	}
	if routes := len((&server{cfg: &config{}}).routes()); operations != routes {
		t.Errorf("%d operations for %d routes", operations, routes)
	}
	cfg := &config{APIPrefix: "/api/v1", AppName: "Latch"}
	first, second := (&server{cfg: cfg}), (&server{cfg: cfg})
	first.table, second.table = first.routes(), second.routes()
	if !reflect.DeepEqual(first.openAPI(), second.openAPI()) {
		t.Error("two starts make two documents")
	}
}

// TestFieldTexts finds each text of openapi.json in the document, at the field that it names.
func TestFieldTexts(t *testing.T) {
	t.Parallel()
	var frame specification
	if err := jsonv2.Unmarshal(frameJSON, &frame); err != nil {
		t.Fatal(err)
	}
	described := map[string][]map[string]any{}
	add := func(owner, name string, field map[string]any) {
		key := owner + "." + name
		if _, own := frame.Fields[key]; !own {
			key = name
		}
		described[key] = append(described[key], field)
	}
	d := theDocument()
	for name, schema := range d.Components["schemas"] {
		for property, p := range d.properties(schema) {
			add(name, property, p.(map[string]any))
		}
	}
	for _, methods := range d.Paths {
		for _, op := range methods {
			for _, v := range op["parameters"].([]any) {
				p := v.(map[string]any)
				add(p["in"].(string), p["name"].(string), p)
				if p["description"] == "" {
					t.Errorf("%v: parameter %v has no description", op["operationId"], p["name"])
				}
			}
		}
	}
	for name, text := range frame.Fields {
		says := func(field map[string]any) bool {
			description, _ := field["description"].(string)
			return strings.HasPrefix(description, text[0])
		}
		shows := func(field map[string]any) bool {
			examples, _ := d.resolve(cmp.Or(field["schema"], any(field)))["examples"].([]any)
			return slices.ContainsFunc(examples, func(v any) bool {
				literal, err := json.Marshal(v)
				return v == text[1] || err == nil && string(literal) == text[1]
			})
		}
		if text[0] != "" && !slices.ContainsFunc(described[name], says) ||
			text[1] != "" && !slices.ContainsFunc(described[name], shows) {
			t.Errorf("openapi.json: no field shows the text of %s", name)
		}
	}
}
