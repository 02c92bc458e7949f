package main

// openapi_test.go holds the checker that every answer of the suite passes through (main_test.go):
// what the served document does not declare, a status, a header, a field, a media type, fails the
// test that received it. It knows the words of JSON Schema that the document uses, no others.

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
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
	Tags       []map[string]any
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
	parameter := regexp.MustCompile(`\\\{\w+\\\}`)
	for path := range d.Paths {
		pattern := parameter.ReplaceAllString(regexp.QuoteMeta(path), "[^/%]+")
		d.templates[path] = regexp.MustCompile("^" + pattern + "$")
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
var everywhere = []string{"Cache-Control", "Content-Security-Policy", "Content-Length",
	"Content-Type", "Date", "Referrer-Policy", "X-Content-Type-Options", "Connection",
	"Strict-Transport-Security", "Vary", "Access-Control-Allow-Origin",
	"Access-Control-Expose-Headers"}

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
			const format = "%d from an operation that the document does not have"
			faults = append(faults, fmt.Sprintf(format, ans.status))
		}
		return faults
	}
	response := d.resolve(op["responses"].(map[string]any)[fmt.Sprint(ans.status)])
	if response == nil {
		return []string{fmt.Sprintf("status %d is not declared", ans.status)}
	}
	faults = d.headerFaults(response, ans.header)
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
	schema := content[media].(map[string]any)["schema"]
	return append(faults, d.check(schema, body, "body", true)...)
}

// headerFaults are headers that are missing, or that the response does not declare.
func (d *apiDocument) headerFaults(response map[string]any, got http.Header) (faults []string) {
	declared, _ := response["headers"].(map[string]any)
	known := slices.Clone(everywhere)
	for name, header := range declared {
		name = http.CanonicalHeaderKey(name)
		known = append(known, name)
		if _, there := got[name]; !there && d.resolve(header)["required"] == true {
			faults = append(faults, "header "+name+" is missing")
		}
	}
	for name := range got {
		same := func(known string) bool { return http.CanonicalHeaderKey(known) == name }
		if !slices.ContainsFunc(known, same) {
			faults = append(faults, "header "+name+" is not declared")
		}
	}
	return faults
}

// check holds value against schema. closed: fields that the schema does not name are faults too.
func (d *apiDocument) check(schema, value any, at string, closed bool) (faults []string) {
	s := d.resolve(schema)
	for word, rule := range s {
		if fault := checkWord(word, rule, value); fault != "" {
			faults = append(faults, at+" "+fault)
		}
	}
	list, _ := value.([]any)
	for i, item := range list {
		faults = append(faults, d.check(s["items"], item, fmt.Sprintf("%s.%d", at, i), closed)...)
	}
	o, _ := value.(map[string]any)
	named, _ := s["properties"].(map[string]any)
	for name, v := range o {
		extra := s["additionalProperties"]
		switch {
		case named[name] != nil:
			faults = append(faults, d.check(named[name], v, at+"."+name, closed)...)
		case d.resolve(extra) != nil:
			faults = append(faults, d.check(extra, v, at+"."+name, closed)...)
		case extra == false || closed && extra == nil:
			faults = append(faults, at+" has the undeclared field "+name)
		}
	}
	return faults
}

// checkWord holds value against one word of a schema, and returns what is wrong.
func checkWord(word string, rule, value any) (fault string) {
	text, isText := value.(string)
	switch word {
	case "description", "examples", "default", "$ref", "readOnly", "properties",
		"additionalProperties", "items":
	case "format":
		_, err := time.Parse(time.RFC3339, text)
		if rule == "date-time" && isText && (err != nil || !strings.HasSuffix(text, "Z")) {
			return "is no time in UTC"
		}
	case "type":
		types, several := rule.([]any)
		if !several {
			types = []any{rule}
		}
		if !slices.ContainsFunc(types, func(t any) bool { return hasType(value, t) }) {
			return fmt.Sprintf("is not of type %v", rule)
		}
	case "enum":
		if !slices.Contains(rule.([]any), value) {
			return fmt.Sprintf("is none of %v", rule)
		}
	case "pattern":
		if isText && !regexp.MustCompile(rule.(string)).MatchString(text) {
			return fmt.Sprintf("does not match %v", rule)
		}
	case "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems",
		"minProperties", "maxProperties":
		n, ok := measure(word, value)
		least := strings.HasPrefix(word, "min")
		if ok && (least && n.Cmp(number(rule)) < 0 || !least && n.Cmp(number(rule)) > 0) {
			return fmt.Sprintf("breaks %s %v", word, rule)
		}
	case "required":
		o, isObject := value.(map[string]any)
		for _, name := range rule.([]any) {
			if _, there := o[name.(string)]; isObject && !there {
				return fmt.Sprintf("has no %v", name)
			}
		}
	default:
		panic("the checker does not know the word " + word)
	}
	return ""
}

func properties(schema map[string]any) map[string]any {
	own, _ := schema["properties"].(map[string]any)
	return own
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
	case map[string]any:
		return big.NewFloat(float64(len(v))), strings.HasSuffix(word, "Properties")
	}
	return nil, false
}

// conforms fails the test where an answer is not what the document says.
func (a *app) conforms(method, path string, ans answer) {
	a.t.Helper()
	d := theDocument()
	if fault := d.faults(method, path, ans); fault != nil {
		const format = "%s = %d is not as the document says: %s"
		a.t.Errorf(format, ans.call, ans.status, strings.Join(fault, "; "))
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

// Bodies that the document allows.
const (
	conformingUser = `{"id":1,"email":"a@b.co","full_name":null,"is_active":true,` +
		`"is_admin":false,"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z"}`
	conformingProblem = `{"type":"about:blank","title":"t","status":401,"detail":"d",` +
		`"code":"invalid_token","request_id":"x"}`
)

// TestConforms shows that the checker finds what it is for.
func TestConforms(t *testing.T) {
	t.Parallel()
	const me, problemMedia = "/api/v1/users/me", "application/problem+json"
	header := func(more ...string) http.Header {
		h := http.Header{"Content-Type": {"application/json"}, "X-Request-Id": {"x"}}
		for i := 0; i < len(more); i += 2 {
			h.Set(more[i], more[i+1])
		}
		return h
	}
	ok := func(old, new string) answer { // the user, changed
		body := strings.Replace(conformingUser, old, new, 1)
		return answer{status: 200, header: header(), body: []byte(body)}
	}
	refused := func(old, new string, more ...string) answer {
		body := strings.Replace(conformingProblem, old, new, 1)
		h := header(append([]string{"Content-Type", problemMedia}, more...)...)
		return answer{status: 401, header: h, body: []byte(body)}
	}
	list := ok("true", "1")
	list.body = slices.Concat([]byte("["), list.body, []byte("]"))
	challenge := []string{"WWW-Authenticate", "Bearer"}
	nothing := answer{status: 204, header: http.Header{"X-Request-Id": {"x"}}, body: []byte("x")}
	more, html := header("X-More", "1"), header("Content-Type", "text/html")
	for name, row := range map[string]struct {
		path string
		ans  answer
		want string
	}{
		"good":           {me, ok("", ""), ""},
		"good problem":   {me, refused("", "", challenge...), ""},
		"status":         {me, answer{status: 418, header: header()}, "status 418 is not declared"},
		"header":         {me, answer{status: 200, header: more}, "header X-More is not declared"},
		"missing header": {me, refused("", ""), "header Www-Authenticate is missing"},
		"media type": {me, answer{status: 200, header: html},
			`media type "text/html" is not declared`},
		"body of nothing": {"/api/v1/auth/logout", nothing, "media type"},
		"field":           {me, ok(`"id":1`, `"id":1,"hash":""`), "undeclared field hash"},
		"missing field":   {me, ok(`"id":1,`, ""), "has no id"},
		"type":            {me, ok(`"id":1`, `"id":"1"`), "is not of type integer"},
		"time":            {me, ok("05Z", "05+01:00"), "is no time in UTC"},
		"in a list":       {"/api/v1/users", list, "body.0.is_active"},
		"code": {me, refused("invalid_token", "x", challenge...),
			"body.code is none of"},
		"field of problem": {me, refused("{", `{"more":1,`, challenge...),
			"undeclared field more"},
		"operation": {"/api/v1/nothing", answer{status: 200, header: header()}, "does not have"},
	} {
		method := "GET"
		if row.path == "/api/v1/auth/logout" {
			method = "POST"
		}
		got := strings.Join(theDocument().faults(method, row.path, row.ans), "; ")
		if row.want == "" && got != "" || !strings.Contains(got, row.want) {
			t.Errorf("%s: faults = %q, want %q", name, got, row.want)
		}
	}
}

// TestDocument holds the examples against their schemas, and the document against the table. The
// frame, openapi.json, says what each group of operations is.
func TestDocument(t *testing.T) {
	t.Parallel()
	d := theDocument()
	ids := map[string]bool{}
	for path, methods := range d.Paths {
		for method, op := range methods {
			id := op["operationId"].(string)
			if ids[id] || !regexp.MustCompile(`^[a-z][A-Za-z]+$`).MatchString(id) {
				t.Errorf("%s %s: operationId %q", method, path, id)
			}
			tag := op["tags"].([]any)[0]
			named := func(declared map[string]any) bool { return declared["name"] == tag }
			if !slices.ContainsFunc(d.Tags, named) {
				t.Errorf("%s: openapi.json has no tag %s", id, tag)
			}
			if op["summary"] == "" || op["description"] == "" || op["security"] == nil {
				t.Errorf("%s: summary, description or security is missing", id)
			}
			ids[id] = true
			if body, ok := op["requestBody"].(map[string]any); ok {
				d.checkExamples(t, id, body["content"])
			}
			for status, response := range op["responses"].(map[string]any) {
				if content := d.resolve(response)["content"]; content != nil {
					d.checkExamples(t, id+" "+status, content)
				}
			}
			for _, p := range op["parameters"].([]any) {
				d.checkProperty(t, id, p.(map[string]any)["schema"])
			}
		}
	}
	for name, schema := range d.Components["schemas"] {
		for property, p := range properties(schema) {
			d.checkProperty(t, name+"."+property, p)
		}
	}
	if routes := len((&server{cfg: &config{}}).routes()); len(ids) != routes {
		t.Errorf("%d operations for %d routes", len(ids), routes)
	}
	cfg := &config{APIPrefix: "/api/v1", AppName: `Latch "2"`}
	first, second := (&server{cfg: cfg}), (&server{cfg: cfg})
	first.table, second.table = first.routes(), second.routes()
	if !json.Valid(first.openAPI()) || !bytes.Equal(first.openAPI(), second.openAPI()) {
		t.Error("two starts make two documents, or it is no JSON")
	}
}

// checkExamples holds the examples of each media type against its schema; one must be there.
func (d *apiDocument) checkExamples(t *testing.T, at string, content any) {
	for media, v := range content.(map[string]any) {
		m := v.(map[string]any)
		named, _ := m["examples"].(map[string]any)
		if m["example"] != nil {
			named = map[string]any{"example": map[string]any{"value": m["example"]}}
		}
		if len(named) == 0 {
			t.Errorf("%s, %s: no example", at, media)
		}
		for name, example := range named {
			value := example.(map[string]any)["value"]
			if faults := d.check(m["schema"], value, name, true); faults != nil {
				t.Errorf("%s, %s: %v; a field gets its example from a tag, as example:\"...\"",
					at, media, faults)
			}
		}
	}
}

// checkProperty holds the examples and the default of a property or parameter against its schema.
func (d *apiDocument) checkProperty(t *testing.T, at string, schema any) {
	s := schema.(map[string]any)
	examples, _ := s["examples"].([]any)
	for _, v := range append(examples, s["default"]) {
		if faults := d.check(s, v, "example", true); v != nil && faults != nil {
			t.Errorf("%s: %v", at, faults)
		}
	}
}

// TestOutputTypes: objects may be null or hold themselves, and maps hold any names; what JSON would
// name otherwise than the document, or leave out, stops the start.
func TestOutputTypes(t *testing.T) {
	t.Parallel()
	type inner struct {
		A *float64 `json:"a"`
	}
	type output struct {
		Inner  inner             `json:"inner"`
		Maybe  *inner            `json:"maybe"`
		Labels map[string]string `json:"labels"`
		Inners map[string]inner  `json:"inners,omitempty"`
		Times  []time.Time       `json:"times,omitzero"`
	}
	describe := func(v any) (text string) {
		defer func() {
			if cause := recover(); cause != nil {
				text = fmt.Sprint(cause)
			}
		}()
		var d specification
		d.schema(reflect.TypeOf(v))
		all, err := jsonv2.Marshal(d.schemas)
		return fmt.Sprint(string(all), err)
	}
	got := describe(output{})
	for _, want := range []string{
		`"inner":{"$ref":"#/components/schemas/Inner"}`,
		`"maybe":{"$ref":"#/components/schemas/NullableInner"}`,
		`"NullableInner":{"type":["object","null"],"properties":{"a":{"type":["number","null"]`,
		`"labels":{"type":"object","additionalProperties":{"type":"string"}}`,
		`"inners":{"type":"object","additionalProperties":{"$ref":"#/components/schemas/Inner"}}`,
		`"required":["inner","maybe","labels"]`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	type comment struct {
		Text    string    `json:"text" example:"x"`
		Answers []comment `json:"answers" example:"[]"`
		First   []comment `json:"first"`
		To      *comment  `json:"to"`
	}
	var d specification
	example, err := jsonv2.Marshal(d.example(d.schema(reflect.TypeFor[comment]())))
	const want = `{"text":"x","answers":[],"to":{"text":"x","answers":[]}}`
	if string(example) != want || err != nil {
		t.Errorf("the example of a type that holds itself is %s, %v, want %s", example, err, want)
	}
	type unnamed struct{ A int }
	type embedding struct{ inner }
	type optioned struct {
		A int `json:"a,string"`
	}
	type numbered struct {
		A map[int]string `json:"a"`
	}
	for _, bad := range []any{unnamed{}, embedding{}, optioned{}, numbered{}, struct{}{}} {
		got := describe(bad)
		if !strings.Contains(got, "output") && !strings.Contains(got, "has no name") {
			t.Errorf("schema(%T) says %s", bad, got)
		}
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
		for property, p := range properties(schema) {
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

// TestClientRules checks what generators of clients need: docs/clients.md has the reasons.
func TestClientRules(t *testing.T) {
	t.Parallel()
	d := theDocument()
	for path, methods := range d.Paths {
		for method, op := range methods {
			at := method + " " + path
			for _, v := range op["parameters"].([]any) {
				if p := v.(map[string]any); p["content"] != nil {
					t.Errorf("%s: parameter %v has a media type", at, p["name"])
				}
			}
			refs := map[any]bool{}
			body, _ := op["requestBody"].(map[string]any)
			content, _ := body["content"].(map[string]any)
			for _, media := range content {
				refs[media.(map[string]any)["schema"].(map[string]any)["$ref"]] = true
			}
			if len(refs) > 1 || refs[nil] || len(content) > 2 {
				t.Errorf("%s: the media types have the schemas %v", at, refs)
			}
			for _, fault := range clientFaults(at, op) {
				t.Error(fault)
			}
		}
	}
	for name, response := range d.Components["responses"] {
		content := response["content"].(map[string]any)["application/problem+json"].(map[string]any)
		ref := content["schema"].(map[string]any)["$ref"]
		codes, _ := response["x-codes"].([]any)
		for _, code := range codes {
			if !strings.Contains(response["description"].(string), "`"+code.(string)+"`") {
				t.Errorf("%s: the description does not name %s", name, code)
			}
		}
		if ref != "#/components/schemas/Problem" || len(codes) == 0 {
			t.Errorf("%s: schema %v, codes %v", name, ref, codes)
		}
	}
	for name, schema := range d.Components["schemas"] {
		for property, p := range properties(schema) {
			for _, fault := range clientFaults(name+"."+property, p) {
				t.Error(fault)
			}
			if p.(map[string]any)["default"] != nil {
				t.Errorf("%s.%s: has a default", name, property)
			}
		}
	}
}

// clientFaults returns what generators get wrong in a part of the document.
func clientFaults(at string, part any) (faults []string) {
	list, _ := part.([]any)
	for i, v := range list {
		faults = append(faults, clientFaults(fmt.Sprint(at, ".", i), v)...)
	}
	o, _ := part.(map[string]any)
	for name, v := range o {
		if name == "example" || name == "examples" {
			continue
		}
		outside := []string{"oneOf", "anyOf", "allOf", "properties", "contentMediaType"}
		if slices.Contains(outside, name) {
			faults = append(faults, at+": "+name+" outside of a named schema")
		}
		faults = append(faults, clientFaults(at+"."+name, v)...)
	}
	if o["type"] == "number" && o["format"] == nil {
		faults = append(faults, at+": a number without a format")
	}
	if o["minItems"] != nil && o["minItems"] == o["maxItems"] {
		faults = append(faults, at+": minItems = maxItems")
	}
	if values, _ := o["enum"].([]any); slices.Contains(values, any("")) {
		faults = append(faults, at+": an empty value in an enum")
	}
	return faults
}

// TestClientFaults shows that clientFaults finds each.
func TestClientFaults(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`{"anyOf":[]}`, `{"schema":{"properties":{}}}`,
		`{"items":{"type":"number"}}`, `{"minItems":3,"maxItems":3}`, `[{"enum":["a",""]}]`} {
		var part any
		if err := json.Unmarshal([]byte(text), &part); err != nil {
			t.Fatal(err)
		}
		if got := clientFaults("x", part); len(got) != 1 {
			t.Errorf("clientFaults(%s) = %q", text, got)
		}
	}
}
