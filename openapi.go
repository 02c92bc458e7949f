package main

// openapi.go makes the OpenAPI 3.1 document, once, at start, from the route table, the types of the
// handlers and their tags: from the very rows and limits that the gate enforces. Only what no row can
// say stands here: what the groups of operations and the headers mean. It also serves the docs page.

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed docs.html
var docsPage []byte

// object is a JSON object whose members keep their order: name, value, name, value, and so on. A nil
// value is left out.
type object []any

func (o object) MarshalJSON() ([]byte, error) {
	text := []byte{'{'}
	for i := 0; i < len(o); i += 2 {
		if o[i+1] == nil {
			continue
		}
		member, err := json.Marshal(o[i+1])
		if err != nil {
			return nil, err
		}
		if len(text) > 1 {
			text = append(text, ',')
		}
		text = append(strconv.AppendQuote(text, o[i].(string)), ':')
		text = append(text, member...)
	}
	return append(text, '}'), nil
}

func (o *object) add(members ...any) { *o = append(*o, members...) }

func ref(kind, name string) object { return object{"$ref", "#/components/" + kind + "/" + name} }

const specAbout = "Log in with `POST %[1]s/auth/login` and send the access token as `Authorization: Bearer …`.\n\n" +
	"Requests are read strictly: unknown, repeated and misspelt names are refused, and so are U+0000 and broken Unicode. " +
	"Every error is an RFC 9457 problem with a `detail` for people and a stable `code` for programs. " +
	"A 503 says in `Retry-After` when to try again."

// tagAbout says what the operations have in common whose paths start alike.
var tagAbout = object{
	"health", "Whether the service lives, and whether it is ready.",
	"auth", "Registration, login, tokens and sessions.",
	"users", "One's own account, and for admins those of others.",
	"documents", "One's own texts, and search among them by meaning and by words.",
}

var (
	textSchema = object{"type", "string"}
	anyObject  = object{"type", "object", "additionalProperties", true}
)

// headers are those of the answers: what they mean, and whether an answer that declares one always has it.
var headers = object{
	"X-Request-Id", object{"description", "The caller's, where it is short and printable, else a new one.", "required", true, "schema", textSchema},
	"WWW-Authenticate", object{"description", "The challenge of RFC 6750.", "required", true, "schema", textSchema},
	"Retry-After", object{"description", "Seconds to wait.", "required", true, "schema", object{"type", "integer"}},
	"Location", object{"description", "Where the new resource is, relative to this host; absent where there are several.", "required", false, "schema", textSchema},
	"Link", object{"description", `The next page as rel="next", relative to this host; absent on the last page.`, "required", false, "schema", textSchema},
}

func headerRefs(names ...string) (refs object) {
	for _, name := range append([]string{"X-Request-Id"}, names...) {
		refs.add(name, ref("headers", name))
	}
	return refs
}

// spec gathers the components while the operations are described.
type spec struct{ schemas, responses object }

// openAPI returns the document of the route table as JSON.
func (s *server) openAPI() []byte {
	var d spec
	var paths object
	for i := range s.table {
		rt := &s.table[i]
		path, method, operation := s.cfg.APIPrefix+rt.path, strings.ToLower(rt.method), d.operation(rt)
		if at := slices.Index(paths, any(path)); at >= 0 {
			paths[at+1] = append(paths[at+1].(object), method, operation)
		} else {
			paths.add(path, object{method, operation})
		}
	}
	var groups []object
	for i := 0; i < len(tagAbout); i += 2 {
		groups = append(groups, object{"name", tagAbout[i], "description", tagAbout[i+1]})
	}
	login := object{"tokenUrl", s.cfg.APIPrefix + "/auth/login", "refreshUrl", s.cfg.APIPrefix + "/auth/refresh", "scopes", object{}}
	body, err := json.Marshal(object{
		"openapi", "3.1.0",
		"info", object{"title", s.cfg.AppName, "version", version, "description", fmt.Sprintf(specAbout, s.cfg.APIPrefix)},
		"servers", []object{{"url", "/"}},
		"tags", groups,
		"paths", paths,
		"components", object{"schemas", d.schemas, "responses", d.responses, "headers", headers, "securitySchemes", object{
			"password", object{"type", "oauth2", "description", "E-mail and password.", "flows", object{"password", login}},
			"bearer", object{"type", "http", "scheme", "bearer", "bearerFormat", "JWT", "description", "An access token."},
		}},
	})
	if err != nil {
		panic(err) // a row that JSON cannot express: as good as a bad tag
	}
	return body
}

// operation describes a row.
func (d *spec) operation(rt *route) object {
	in, security := rt.endpoint.input, []object{}
	if rt.access != anyone {
		security = []object{{"password", []string{}}, {"bearer", []string{}}}
	}
	summary, _, _ := strings.Cut(rt.summary, ": ")
	o := object{
		"operationId", operationID(rt), "tags", []string{strings.Split(rt.path, "/")[1]}, "summary", summary,
		"description", rt.summary + ".", "security", security,
	}
	var parameters []object
	for i := range in.fields {
		if f := &in.fields[i]; f.at("path") || f.at("query") {
			p := object{"name", f.name, "in", f.places[0], "required", !f.optional, "description", orNil(f.doc)}
			if f.kind == kindObject {
				p.add("content", object{"application/json", object{"schema", d.field(f)}})
			} else {
				p.add("schema", d.field(f))
			}
			parameters = append(parameters, p)
		}
	}
	if parameters != nil {
		o.add("parameters", parameters)
	}
	var content object
	for _, media := range in.media {
		content.add(media, object{"schema", d.body(in, places[media]), "example", in.example(places[media])})
	}
	if content != nil {
		o.add("requestBody", object{"required", true, "content", content})
	}
	responses := object{strconv.Itoa(rt.status), d.success(rt)}
	problems := rt.problems()
	slices.SortStableFunc(problems, func(a, b *problem) int { return a.status - b.status })
	for len(problems) > 0 {
		n := 1
		for n < len(problems) && problems[n].status == problems[0].status {
			n++
		}
		responses.add(strconv.Itoa(problems[0].status), d.refusal(problems[:n]))
		problems = problems[n:]
	}
	return append(o, "responses", responses)
}

// operationID is the name of the handler; PATCH, which shares PUT's, has it with another verb.
func operationID(rt *route) string {
	if rt.method == "PATCH" {
		return strings.Replace(rt.endpoint.name, "update", "patch", 1)
	}
	return rt.endpoint.name
}

// success describes the answer of a row when all is well.
func (d *spec) success(rt *route) object {
	t, names := rt.endpoint.out, []string(nil)
	if rt.status == http.StatusCreated {
		names = append(names, "Location")
	}
	if p, ok := reflect.Zero(t).Interface().(pager); ok {
		items, _ := p.content()
		t, names = reflect.TypeOf(items), append(names, "Link")
	}
	o := object{"description", http.StatusText(rt.status), "headers", headerRefs(names...)}
	if t != reflect.TypeFor[none]() {
		o.add("content", object{"application/json", object{"schema", d.schema(t), "example", example(t, "")}})
	}
	return o
}

// refusal describes the problems of one status, as a component that all rows with these share.
func (d *spec) refusal(problems []*problem) object {
	var codes, lines, names []string
	var examples object
	for _, p := range problems {
		codes, lines = append(codes, p.code), append(lines, fmt.Sprintf("- `%s`: %s", p.code, p.detail))
		if p.header[0] != "" && !slices.Contains(names, p.header[0]) {
			names = append(names, p.header[0])
		}
		shown := p
		if p == errInvalidRequest {
			shown = invalid(fieldError{[]any{"body", "email"}, "is required", "missing"})
		}
		examples.add(p.code, object{"value", shown.document("R5CZ3OYJ6VGU2MHX4TNBKQ7WDE")})
	}
	name := strings.Join(codes, ".")
	if !slices.Contains(d.responses, any(name)) {
		own := object{"properties", object{"code", object{"enum", codes}}}
		if problems[0] == errInvalidRequest {
			own.add("required", []string{"errors"})
		}
		d.responses.add(name, object{"description", strings.Join(lines, "\n"), "headers", headerRefs(names...), "content", object{"application/problem+json", object{
			"schema", object{"allOf", []object{d.schema(reflect.TypeFor[problemDocument]()), own}}, "examples", examples}}})
	}
	return ref("responses", name)
}

// field describes what the gate takes for f.
func (d *spec) field(f *field) object {
	var o object
	switch f.kind {
	case kindText:
		o = object{"type", "string", "format", orNil(f.format), "pattern", pattern(f)}
		o.bounds(f, "minLength", "maxLength")
		if f.enum != nil {
			o.add("enum", f.enum)
		}
	case kindInteger:
		o = object{"type", "integer", "format", "int64", "minimum", f.min}
		o.bounds(f, "", "maximum")
	case kindNumber:
		o = object{"type", "number", "minimum", f.min}
		o.bounds(f, "", "maximum")
	case kindBoolean:
		o = object{"type", "boolean"}
	case kindObject:
		o = anyObject
	case kindVector:
		o = object{"type", "array", "items", object{"type", "number", "minimum", -maxHalf, "maximum", maxHalf}}
		o.bounds(f, "minItems", "maxItems")
	case kindList:
		o = object{"type", "array", "items", d.body(f.items, "json")}
		o.bounds(f, "minItems", "maxItems")
	}
	if f.null {
		o[1] = []string{"string", "null"}
	}
	if f.def != "" {
		o.add("default", literal(f.kind == kindText, f.def))
	}
	if f.example != "" {
		o.add("examples", []any{literal(f.kind == kindText, f.example)})
	}
	return o
}

// bounds adds those of f under the words for the lower, unless it is empty, and the upper.
func (o *object) bounds(f *field, lower, upper string) {
	if f.min > 0 && lower != "" {
		o.add(lower, f.min)
	}
	if f.max != math.MaxInt64 {
		o.add(upper, f.max)
	}
}

// pattern is the grammar of a text: that of its format, or what PostgreSQL can store.
func pattern(f *field) any {
	if p := formats[f.format].pattern; p != "" {
		return p
	}
	if f.enum != nil {
		return nil
	}
	return `^[^\u0000]*$`
}

// body describes the body whose fields stand in place, as a component.
func (d *spec) body(in *input, place string) object {
	name := exported(in.name) + map[string]string{"json": "Request", "form": "Form"}[place]
	if slices.Contains(d.schemas, any(name)) {
		return ref("schemas", name)
	}
	var properties object
	var required []string
	var alternatives []object
	for i := range in.fields {
		f := &in.fields[i]
		if !f.at(place) {
			continue
		}
		described := append(d.field(f), "description", orNil(f.doc))
		if f.alone {
			alternatives = append(alternatives, object{"type", "object", "properties", object{f.name, described}, "required", []string{f.name}, "additionalProperties", false})
			continue
		}
		properties.add(f.name, described)
		if !f.optional {
			required = append(required, f.name)
		}
	}
	o := object{"type", "object", "properties", properties, "additionalProperties", false}
	if required != nil {
		o.add("required", required)
	}
	if alternatives != nil {
		o = object{"oneOf", append([]object{o}, alternatives...)}
	}
	d.schemas.add(name, o)
	return ref("schemas", name)
}

// example is a body with the fields that have one.
func (in *input) example(place string) (o object) {
	for _, f := range in.fields {
		if f.at(place) && f.example != "" {
			o.add(f.name, literal(f.kind == kindText, f.example))
		}
	}
	return o
}

// schema describes an output type as encoding/json writes it; a struct becomes a component.
func (d *spec) schema(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type", "string", "format", "date-time"}
	case t.Kind() == reflect.Pointer:
		o := d.schema(t.Elem())
		return append(object{"type", []any{o[1], "null"}}, o[2:]...)
	case t == reflect.TypeFor[json.RawMessage]():
		return anyObject
	case t.Kind() == reflect.Slice:
		return object{"type", "array", "items", d.schema(t.Elem())}
	case t.Kind() == reflect.Interface: // a step of loc
		return object{"anyOf", []object{{"type", "string"}, {"type", "integer"}}}
	case t.Kind() == reflect.Struct:
		name := exported(strings.TrimSuffix(t.Name(), "Document"))
		if !slices.Contains(d.schemas, any(name)) {
			d.schemas.add(name, d.structSchema(t))
		}
		return ref("schemas", name)
	}
	kinds := map[reflect.Kind]object{reflect.String: {"type", "string"}, reflect.Bool: {"type", "boolean"}, reflect.Int: {"type", "integer"},
		reflect.Int64: {"type", "integer", "format", "int64"}, reflect.Float32: {"type", "number"}, reflect.Float64: {"type", "number"}}
	if kinds[t.Kind()] == nil {
		panic(t.String() + ": no schema for this type of output")
	}
	return kinds[t.Kind()]
}

func (d *spec) structSchema(t reflect.Type) object {
	var properties object
	var required []string
	var alternatives []object
	for f := range t.Fields() {
		if f.Anonymous { // one of several structs, of which the others are nil
			alternatives = append(alternatives, d.schema(f.Type.Elem()))
			continue
		}
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		o := d.schema(f.Type)
		if doc := f.Tag.Get("doc"); doc != "" {
			o = append(slices.Clip(o), "description", doc)
		}
		properties.add(name, o)
		if rest != "omitempty" {
			required = append(required, name)
		}
	}
	if alternatives != nil {
		return object{"oneOf", alternatives}
	}
	return object{"type", "object", "properties", properties, "required", required}
}

// example is a value of an output type, made of the example tags of its fields.
func example(t reflect.Type, tag string) any {
	switch {
	case t.Kind() == reflect.Pointer && tag == "":
		return nil
	case t.Kind() == reflect.Pointer:
		return example(t.Elem(), tag)
	case t == reflect.TypeFor[time.Time]():
		return "2026-01-02T03:04:05.678901Z"
	case t == reflect.TypeFor[json.RawMessage]():
		return json.RawMessage(tag)
	case t.Kind() == reflect.Slice:
		return []any{example(t.Elem(), tag)}
	case t.Kind() == reflect.Struct:
		var o object
		for f := range t.Fields() {
			if f.Anonymous {
				return example(f.Type.Elem(), "")
			}
			name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
			if v := example(f.Type, f.Tag.Get("example")); rest != "omitempty" || f.Tag.Get("example") != "" {
				if v == nil {
					v = json.RawMessage("null") // object leaves a nil out
				}
				o.add(name, v)
			}
		}
		return o
	}
	if tag == "" && t.Kind() != reflect.String {
		tag = map[bool]string{true: "false", false: "0"}[t.Kind() == reflect.Bool]
	}
	return literal(t.Kind() == reflect.String, tag)
}

// literal is the value that the text of a tag stands for.
func literal(isText bool, text string) any {
	if isText {
		return text
	}
	return json.RawMessage(text)
}

func orNil(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// exported is a Go name in its exported form: User for user.
func exported(name string) string { return strings.ToUpper(name[:1]) + name[1:] }

// asset serves content that changes with the program only: browsers keep it, and ask whether it is current.
func asset(route, media, policy string, content []byte) http.HandlerFunc {
	sum := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return func(w http.ResponseWriter, r *http.Request) {
		w.(*exchange).route = route
		h := w.Header()
		h.Set("Content-Type", media)
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", tag)
		if policy != "" {
			h.Set("Content-Security-Policy", policy)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}
}

var inlineCode = regexp.MustCompile(`(?s)<(script|style)>(.*?)</(?:script|style)>`)

// docsPolicy lets the page run its own script and style, named by their hashes, call this host, and do
// nothing else.
func docsPolicy(page []byte) string {
	policy := "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	for _, m := range inlineCode.FindAllSubmatch(page, -1) {
		sum := sha256.Sum256(m[2])
		policy += fmt.Sprintf("; %s-src 'sha256-%s'", m[1], base64.StdEncoding.EncodeToString(sum[:]))
	}
	return policy
}
