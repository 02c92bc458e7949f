package main

// openapi.go makes the OpenAPI 3.1 document, once, at start, from the route table, the types of the
// handlers and their tags: from the very rows and limits that the gate enforces. Only what no row can
// say stands here: what the groups of operations and the headers mean. It also serves the docs page.

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
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

// object is a JSON object whose members keep their order: name, value, name, value, and so on. What is null
// or an empty text is left out.
type object []any

func (o object) MarshalJSON() ([]byte, error) {
	text := []byte{'{'}
	for member := range slices.Chunk(o, 2) {
		value, err := json.Marshal(member[1])
		if err != nil {
			return nil, err
		}
		if string(value) == "null" || string(value) == `""` {
			continue
		}
		if len(text) > 1 {
			text = append(text, ',')
		}
		text = fmt.Appendf(text, "%q:%s", member[0], value)
	}
	return append(text, '}'), nil
}

func (o *object) add(members ...any) { *o = append(*o, members...) }

func ref(kind, name string) object { return object{"$ref", "#/components/" + kind + "/" + name} }

// share adds a component to those of its kind, unless it is there, and refers to it.
func (o *object) share(kind, name string, describe func() object) object {
	if !slices.Contains(*o, any(name)) {
		o.add(name, describe())
	}
	return ref(kind, name)
}

const specAbout = "Log in with `POST %[1]s/auth/login` and send the access token as `Authorization: Bearer …`.\n\n" +
	"Requests are read strictly: unknown, repeated and misspelt names are refused, and so are U+0000 and broken Unicode. " +
	"Every error is an RFC 9457 problem with a `detail` for people and a stable `code` for programs. " +
	"A 503 says in `Retry-After` when to try again."

// groups are the operations whose paths start alike, by what they have in common.
var groups = []object{
	{"name", "health", "description", "Whether the service lives, and whether it is ready."},
	{"name", "auth", "description", "Registration, login, tokens and sessions."},
	{"name", "users", "description", "One's own account, and for admins those of others."},
	{"name", "documents", "description", "One's own texts, and search among them by meaning and by words."},
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
	in, id, security := rt.endpoint.input, rt.endpoint.name, []object{}
	if rt.method == "PATCH" { // it shares PUT's handler
		id = strings.Replace(id, "update", "patch", 1)
	}
	if rt.access != anyone {
		security = []object{{"password", []string{}}, {"bearer", []string{}}}
	}
	var parameters []object
	for i := range in.fields {
		if f := &in.fields[i]; f.at("path") || f.at("query") {
			p := object{"name", f.name, "in", f.places[0], "required", !f.optional, "description", f.doc}
			if f.kind == kindObject {
				p.add("content", object{"application/json", object{"schema", d.field(f)}})
			} else {
				p.add("schema", d.field(f))
			}
			parameters = append(parameters, p)
		}
	}
	summary, _, _ := strings.Cut(rt.summary, ": ")
	o := object{
		"operationId", id, "tags", []string{strings.Split(rt.path, "/")[1]}, "summary", summary,
		"description", rt.summary + ".", "security", security, "parameters", parameters,
	}
	if in.media != nil {
		var content object
		for _, media := range in.media {
			content.add(media, object{"schema", d.body(in, places[media]), "example", in.example(places[media])})
		}
		o.add("requestBody", object{"required", true, "content", content})
	}
	responses, refusals := object{strconv.Itoa(rt.status), d.success(rt)}, map[int][]*problem{}
	for _, p := range rt.problems() {
		refusals[p.status] = append(refusals[p.status], p)
	}
	for _, status := range slices.Sorted(maps.Keys(refusals)) {
		responses.add(strconv.Itoa(status), d.refusal(refusals[status]))
	}
	return append(o, "responses", responses)
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
		o.add("content", object{"application/json", object{"schema", d.schema(t), "example", example(t, "").Interface()}})
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
	return d.responses.share("responses", strings.Join(codes, "."), func() object {
		own := object{"properties", object{"code", object{"enum", codes}}}
		if problems[0] == errInvalidRequest {
			own.add("required", []string{"errors"})
		}
		return object{"description", strings.Join(lines, "\n"), "headers", headerRefs(names...), "content", object{"application/problem+json", object{
			"schema", object{"allOf", []object{d.schema(reflect.TypeFor[problemDocument]()), own}}, "examples", examples}}}
	})
}

// boundWords are JSON Schema's words for the bounds of a kind; it has none for the bytes of an object.
var boundWords = map[string][2]string{
	kindText: {"minLength", "maxLength"}, kindInteger: {"minimum", "maximum"}, kindNumber: {"minimum", "maximum"},
	kindVector: {"minItems", "maxItems"}, kindList: {"minItems", "maxItems"},
}

// field describes what the gate takes for f.
func (d *spec) field(f *field) object {
	o := object{"type", f.kind}
	switch f.kind {
	case kindText:
		grammar := formats[f.format].pattern
		if grammar == "" && f.enum == nil {
			grammar = `^[^\u0000]*$` // what PostgreSQL can store
		}
		o.add("format", f.format, "pattern", grammar)
	case kindInteger:
		o.add("format", "int64")
	case kindObject:
		o = anyObject
	case kindVector:
		o = object{"type", "array", "items", object{"type", "number", "minimum", -maxHalf, "maximum", maxHalf}}
	case kindList:
		o = object{"type", "array", "items", d.body(f.items, "json")}
	}
	if f.null {
		o[1] = []string{"string", "null"}
	}
	words, bounded := boundWords[f.kind]
	if bounded && (f.min > 0 || words[0] == "minimum") {
		o.add(words[0], f.min)
	}
	if bounded && f.max != math.MaxInt64 {
		o.add(words[1], f.max)
	}
	o.add("enum", f.enum, "default", f.literal(f.def))
	if f.example != "" {
		o.add("examples", []any{f.literal(f.example)})
	}
	return o
}

// literal is the value that the text of a tag of f stands for.
func (f *field) literal(text string) any {
	if text == "" || f.kind == kindText {
		return text
	}
	return json.RawMessage(text)
}

// body describes the body whose fields stand in place.
func (d *spec) body(in *input, place string) object {
	name := exported(in.name) + map[string]string{"json": "Request", "form": "Form"}[place]
	return d.schemas.share("schemas", name, func() object {
		var properties object
		var required []string
		var alternatives []object
		for i := range in.fields {
			f := &in.fields[i]
			if !f.at(place) {
				continue
			}
			described := append(d.field(f), "description", f.doc)
			if f.alone {
				alternatives = append(alternatives, object{"type", "object", "properties", object{f.name, described}, "required", []string{f.name}, "additionalProperties", false})
				continue
			}
			properties.add(f.name, described)
			if !f.optional {
				required = append(required, f.name)
			}
		}
		o := object{"type", "object", "properties", properties, "additionalProperties", false, "required", required}
		if alternatives != nil {
			return object{"oneOf", append([]object{o}, alternatives...)}
		}
		return o
	})
}

// example is a body with the fields that have one.
func (in *input) example(place string) (o object) {
	for _, f := range in.fields {
		if f.at(place) {
			o.add(f.name, f.literal(f.example))
		}
	}
	return o
}

// outputs are the types that outputs are made of, as encoding/json writes them.
var outputs = map[reflect.Type]object{
	reflect.TypeFor[string](): textSchema, reflect.TypeFor[bool](): {"type", "boolean"},
	reflect.TypeFor[int](): {"type", "integer"}, reflect.TypeFor[int64](): {"type", "integer", "format", "int64"},
	reflect.TypeFor[float32](): {"type", "number"}, reflect.TypeFor[float64](): {"type", "number"},
	reflect.TypeFor[time.Time](): {"type", "string", "format", "date-time"}, reflect.TypeFor[json.RawMessage](): anyObject,
	reflect.TypeFor[any](): {"anyOf", []object{textSchema, {"type", "integer"}}}, // a step of loc
}

// schema describes an output type; a struct becomes a component.
func (d *spec) schema(t reflect.Type) object {
	if o := outputs[t]; o != nil {
		return o
	}
	switch t.Kind() {
	case reflect.Pointer:
		o := d.schema(t.Elem())
		return append(object{"type", []any{o[1], "null"}}, o[2:]...)
	case reflect.Slice:
		return object{"type", "array", "items", d.schema(t.Elem())}
	case reflect.Struct:
		return d.schemas.share("schemas", exported(strings.TrimSuffix(t.Name(), "Document")), func() object { return d.structSchema(t) })
	}
	panic(t.String() + ": no schema for this type of output")
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
		name, omitted := strings.CutSuffix(f.Tag.Get("json"), ",omitempty")
		properties.add(name, append(d.schema(f.Type), "description", f.Tag.Get("doc")))
		if !omitted {
			required = append(required, name)
		}
	}
	if alternatives != nil {
		return object{"oneOf", alternatives}
	}
	return object{"type", "object", "properties", properties, "required", required}
}

// example is a value of an output type, made of the example tags of its fields.
func example(t reflect.Type, tag string) reflect.Value {
	v := reflect.New(t).Elem()
	switch {
	case t == reflect.TypeFor[time.Time]():
		return reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC))
	case t.Kind() == reflect.Struct:
		for f, to := range v.Fields() {
			if f.Anonymous { // the first of several
				return example(f.Type.Elem(), "")
			}
			to.Set(example(f.Type, f.Tag.Get("example")))
		}
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		return reflect.Append(v, example(t.Elem(), ""))
	case tag == "":
	case t.Kind() == reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		v.Elem().Set(example(t.Elem(), tag))
	case t.Kind() == reflect.String:
		v.SetString(tag)
	default:
		if err := json.Unmarshal([]byte(tag), v.Addr().Interface()); err != nil {
			panic(fmt.Sprintf("example %q of a %s: %v", tag, t, err))
		}
	}
	return v
}

// exported is a Go name in its exported form: User for user.
func exported(name string) string { return strings.ToUpper(name[:1]) + name[1:] }

// asset serves content that changes with the program only: browsers keep it, and ask whether it is current.
func asset(route, media, policy string, content []byte) http.HandlerFunc {
	sum := sha256.Sum256(content)
	tag := fmt.Sprintf(`"%x"`, sum[:8])
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
