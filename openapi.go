package main

// openapi.go makes the OpenAPI 3.1 document at start from the route table, the types of handlers
// and their tags: from the rows and limits that are enforced. What these cannot say is in
// openapi.json: a template of the document, and texts of fields that are too long for a tag.
// docs/clients.md says what generators of clients need. The file also serves the docs page.

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"encoding/json/jsontext"
	json "encoding/json/v2"
)

//go:embed docs.html
var docsPage []byte

// frameJSON has the template, with placeholders in braces, and the texts of fields: [description,
// example] by owner (component or source) and name, or by the name alone.
//
//go:embed openapi.json
var frameJSON []byte

// ordered is a JSON object whose members keep their order.
type ordered []struct {
	name  string
	value any
}

func (o ordered) MarshalJSONTo(enc *jsontext.Encoder) error {
	err := enc.WriteToken(jsontext.BeginObject)
	for _, m := range o {
		err = errors.Join(err, json.MarshalEncode(enc, m.name), json.MarshalEncode(enc, m.value))
	}
	return errors.Join(err, enc.WriteToken(jsontext.EndObject))
}

// get returns the value of a member, or nil.
func (o ordered) get(name string) any {
	for _, m := range o {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

func (o *ordered) add(name string, value any) { *o = append(*o, ordered{{name, value}}...) }

// schema is a JSON Schema.
type schema struct {
	Ref                  string   `json:"$ref,omitzero"`
	Type                 any      `json:"type,omitzero"` // a string, or several
	Format               string   `json:"format,omitzero"`
	Pattern              string   `json:"pattern,omitzero"`
	MinLength            int64    `json:"minLength,omitzero"`
	MaxLength            int64    `json:"maxLength,omitzero"`
	Minimum              *int64   `json:"minimum,omitzero"`
	Maximum              int64    `json:"maximum,omitzero"`
	MinItems             int64    `json:"minItems,omitzero"`
	MaxItems             int64    `json:"maxItems,omitzero"`
	Enum                 []string `json:"enum,omitzero"`
	Default              any      `json:"default,omitzero"`
	Examples             []any    `json:"examples,omitzero"`
	Items                *schema  `json:"items,omitzero"`
	Properties           ordered  `json:"properties,omitzero"`
	Required             []string `json:"required,omitzero"`
	AdditionalProperties any      `json:"additionalProperties,omitzero"` // a bool, or a schema
	MinProperties        int64    `json:"minProperties,omitzero"`
	MaxProperties        int64    `json:"maxProperties,omitzero"`
	ReadOnly             bool     `json:"readOnly,omitzero"`
	Description          string   `json:"description,omitzero"`
}

// The other parts of the document, as the OpenAPI specification names them.
type (
	operation struct {
		OperationID string      `json:"operationId"`
		Tags        []string    `json:"tags"`
		Summary     string      `json:"summary"`
		Description string      `json:"description"`
		Access      string      `json:"x-access"` // anyone, user or admin
		Security    []ordered   `json:"security"`
		Parameters  []parameter `json:"parameters"`
		RequestBody ordered     `json:"requestBody,omitzero"`
		Responses   ordered     `json:"responses"`
	}
	parameter struct {
		Name        string  `json:"name"`
		In          string  `json:"in"`
		Required    bool    `json:"required"`
		Description string  `json:"description,omitzero"`
		Schema      *schema `json:"schema"`
	}
	response struct {
		Ref         string   `json:"$ref,omitzero"`
		Description string   `json:"description,omitzero"`
		Codes       []string `json:"x-codes,omitzero"`
		Headers     ordered  `json:"headers,omitzero"`
		Content     ordered  `json:"content,omitzero"` // of mediaType
	}
	mediaType struct {
		Schema   *schema `json:"schema"`
		Example  any     `json:"example,omitzero"`
		Examples ordered `json:"examples,omitzero"`
	}
)

// specification collects the parts of the document while the operations are described.
type specification struct {
	Document                  jsontext.Value       `json:"document"`
	Fields                    map[string][2]string `json:"fields"`
	paths, schemas, responses ordered
}

// openAPI returns the document of the route table as JSON; {server} and {root} stay in it, for
// serveOpenAPI.
func (s *server) openAPI() []byte {
	var d specification
	err := json.Unmarshal(frameJSON, &d)
	for _, rt := range s.table {
		path := s.cfg.APIPrefix + rt.path
		item, ok := d.paths.get(path).(*ordered)
		if !ok {
			item = new(ordered)
			d.paths.add(path, item)
		}
		item.add(strings.ToLower(rt.method), d.operation(&rt))
	}
	parts := []string{"{prefix}", s.cfg.APIPrefix}
	for _, part := range (ordered{{`"{title}"`, s.cfg.AppName}, {`"{version}"`, version},
		{`"{paths}"`, d.paths}, {`"{schemas}"`, d.schemas}, {`"{responses}"`, d.responses}}) {
		text, failed := json.Marshal(part.value)
		err = errors.Join(err, failed)
		parts = append(parts, part.name, string(text))
	}
	if err != nil {
		panic(err) // a row or text that JSON cannot express is as bad as a wrong tag
	}
	return []byte(strings.NewReplacer(parts...).Replace(string(d.Document)))
}

// operation describes a row.
func (d *specification) operation(rt *route) operation {
	in := rt.endpoint.input
	summary, _, _ := strings.Cut(rt.summary, ": ")
	o := operation{OperationID: rt.name, Tags: strings.Split(rt.path, "/")[1:2], Summary: summary,
		Description: rt.summary + ".", Access: "anyone", Security: []ordered{}}
	if !rt.access.isPublic() {
		o.Access = "user"
		o.Security = []ordered{{{"password", []any{}}}, {{"bearer", []any{}}}}
	}
	if rt.access == admins {
		o.Access = "admin"
		o.Description += " Admins only."
	}
	for _, f := range in.fields {
		if f.isFrom("path") || f.isFrom("query") {
			p := d.field(f.sources[0], f)
			o.Parameters = append(o.Parameters,
				parameter{f.name, f.sources[0], !f.optional, p.Description, p})
			p.Description = ""
		}
	}
	if in.body {
		content := d.jsonContent(d.body(in, false))
		if in.form { // multipart too, left out: a third type makes openapi-python-client send two
			content.add("application/x-www-form-urlencoded", content[0].value)
		}
		o.RequestBody = ordered{{"required", true}, {"content", content}}
	}
	o.Responses = d.responsesOf(rt)
	return o
}

// jsonContent describes a body in JSON.
func (d *specification) jsonContent(body *schema) ordered {
	return ordered{{"application/json", mediaType{Schema: body, Example: d.example(body)}}}
}

// responsesOf describes the success of a row and its refusals, by status.
func (d *specification) responsesOf(rt *route) ordered {
	t, headers := rt.endpoint.output, []string{}
	if rt.status == http.StatusCreated {
		headers = append(headers, "Location")
	}
	if out, ok := reflect.Zero(t).Interface().(pager); ok {
		items, _ := out.content()
		t, headers = reflect.TypeOf(items), append(headers, "Link")
	}
	success := response{Description: http.StatusText(rt.status), Headers: headerRefs(headers)}
	if t != reflect.TypeFor[none]() {
		success.Content = d.jsonContent(d.schema(t))
	}
	responses := ordered{{strconv.Itoa(rt.status), success}}
	refusals := map[int][]*problem{}
	for _, p := range rt.problems() {
		refusals[p.status] = append(refusals[p.status], p)
	}
	for _, status := range slices.Sorted(maps.Keys(refusals)) {
		responses.add(strconv.Itoa(status), d.refusal(refusals[status]))
	}
	return responses
}

// refusal describes the problems of one status, as a component that all rows with these share.
func (d *specification) refusal(problems []*problem) response {
	var codes, headers, lines []string
	var examples ordered
	for _, p := range problems {
		codes, headers = append(codes, p.code), append(headers, p.header[0])
		lines = append(lines, fmt.Sprintf("- `%s`: %s", p.code, p.detail))
		if p == errInvalidRequest {
			p = invalidField("email", "missing", "is required")
		}
		examples.add(p.code, ordered{{"value", p.body("R5CZ3OYJ6VGU2MHX4TNBKQ7WDE")}})
	}
	name := strings.Join(codes, ".")
	if d.responses.get(name) == nil {
		body := mediaType{d.schema(reflect.TypeFor[problemDocument]()), nil, examples}
		d.responses.add(name, response{Description: strings.Join(lines, "\n"), Codes: codes,
			Headers: headerRefs(headers), Content: ordered{{"application/problem+json", body}}})
	}
	return response{Ref: "#/components/responses/" + name}
}

// headerRefs returns references to these headers and to that of all answers.
func headerRefs(names []string) (refs ordered) {
	for _, name := range append([]string{"X-Request-Id"}, names...) {
		if name != "" && refs.get(name) == nil {
			refs.add(name, ordered{{"$ref", "#/components/headers/" + name}})
		}
	}
	return refs
}

// example returns a value of a schema, made of the examples of its properties, or nil, also for a
// component in itself: outer are the references that have led to o.
func (d *specification) example(o *schema, outer ...string) any {
	if slices.Contains(outer, o.Ref) {
		return nil
	} else if o.Ref != "" {
		outer = append(outer, o.Ref)
		o = d.schemas.get(path.Base(o.Ref)).(*schema)
	}
	var members ordered
	for _, m := range o.Properties {
		p := m.value.(*schema)
		if value := d.example(p, outer...); value != nil && !p.ReadOnly {
			members.add(m.name, value)
		}
	}
	switch {
	case o.Examples != nil:
		return o.Examples[0]
	case o.Properties != nil:
		return members
	case o.Items != nil:
		if item := d.example(o.Items, outer...); item != nil {
			return []any{item}
		}
	}
	return nil
}

// body describes the bodies of an input, one schema for all media types.
func (d *specification) body(in *input, nullable bool) *schema {
	name := exported(in.name) + "Request"
	return d.component(name, nullable, func(o *schema) {
		o.AdditionalProperties = new(false)
		for _, f := range in.fields {
			if f.doc == "-" || !f.isFrom("json") && !f.isFrom("form") ||
				o.Properties.get(f.name) != nil {
				continue
			}
			o.Properties.add(f.name, d.field(name, f))
			optionalInJSON := func(g *field) bool {
				return g.name == f.name && g.isFrom("json") && g.optional
			}
			if !f.optional && !slices.ContainsFunc(in.fields, optionalInJSON) {
				o.Required = append(o.Required, f.name)
			}
		}
	})
}

// component returns a reference to the schema of an object, which fill describes if it is new. A
// nullable one has a schema of its own, because generators handle anyOf with null badly.
func (d *specification) component(name string, nullable bool, fill func(o *schema)) *schema {
	o := &schema{Type: "object"}
	if nullable {
		name, o.Type = "Nullable"+name, []any{"object", "null"}
	}
	if d.schemas.get(name) == nil {
		d.schemas.add(name, o)
		fill(o)
	}
	return &schema{Ref: "#/components/schemas/" + name}
}

// field describes what is accepted for a field of a component or source.
func (d *specification) field(owner string, f *field) *schema {
	o := scalars[reflect.TypeOf(kinds[f.kind].zero)]
	o.ReadOnly = f.readOnly
	switch f.kind {
	case kindText:
		o.Format, o.MinLength, o.MaxLength = f.format, f.min, f.max
		empty := func(text string) bool { return text == "" } // Kotlin cannot name it
		o.Enum = slices.DeleteFunc(slices.Clone(f.enum), empty)
		if f.enum == nil {
			o.Pattern = cmp.Or(formats[f.format].pattern, `^[^\x00]*$`) // what PostgreSQL stores
		}
	case kindInteger, kindNumber:
		if o.Maximum = f.max; f.minText != "" {
			o.Minimum = &f.min
		}
	case kindTime:
		o.Examples = nil // those are for outputs
		for _, bound := range [][2]string{{"Not before ", f.minText}, {"Not after ", f.maxText}} {
			if bound[1] != "" {
				o.Description += bound[0] + bound[1] + ". "
			}
		}
	case kindVector: // without minItems: generators make a tuple where it equals maxItems
		o.Type, o.MaxItems = "array", f.max
		o.Items = &schema{Type: "number", Format: "float", Minimum: new(int64(-maxHalf)),
			Maximum: maxHalf}
		o.Description = fmt.Sprintf(
			"Exactly %d numbers, with a norm between 1e-12 and 1e12.", f.max)
	case kindList:
		o.Type, o.MinItems, o.MaxItems, o.Items = "array", f.min, f.max, d.field("", f.items)
	case kindMap:
		o.Type, o.MinProperties, o.MaxProperties = "object", f.min, f.max
		o.AdditionalProperties = d.field("", f.items)
	case kindStruct:
		o = *d.body(f.nested, f.nullable)
	}
	if f.isFrom("query") && (f.kind == kindObject || f.kind == kindList) {
		o = schema{Type: "string"} // with content or contentMediaType it breaks generators
	}
	if f.def != "" && f.isFrom("query") {
		o.Default = o.literal(f.def)
	} else if f.def != "" { // openapi-typescript makes a property with a default a required one
		o.Description += "Defaults to " + f.def + "."
	}
	d.describe(&o, owner, f)
	return &o
}

// describe completes the schema of a property: texts (a tag's first), example, null.
func (d *specification) describe(o *schema, owner string, f *field) {
	text := cmp.Or(d.Fields[owner+"."+f.name], d.Fields[f.name])
	o.Description = strings.TrimSpace(cmp.Or(f.doc, text[0]) + " " + o.Description)
	if example := cmp.Or(f.example, text[1]); example != "" {
		o.Examples = []any{o.literal(example)}
	}
	if f.nullable && o.Ref == "" {
		o.Type = []any{o.Type, "null"}
	}
}

// literal returns the value of the schema's type that a text stands for.
func (o *schema) literal(text string) any {
	if o.Type == "string" {
		return text
	}
	return jsontext.Value(text)
}

// scalars are the schemas of types without parts, as encoding/json/v2 writes them.
var scalars = map[reflect.Type]schema{
	reflect.TypeFor[string]():  {Type: "string"},
	reflect.TypeFor[bool]():    {Type: "boolean"},
	reflect.TypeFor[int]():     {Type: "integer"},
	reflect.TypeFor[int64]():   {Type: "integer", Format: "int64"},
	reflect.TypeFor[float32](): {Type: "number", Format: "float"},
	reflect.TypeFor[float64](): {Type: "number", Format: "double"},
	reflect.TypeFor[time.Time](): {Type: "string", Format: kindTime,
		Examples: []any{"2026-01-02T03:04:05.678901Z"}},
	reflect.TypeFor[jsontext.Value](): {Type: "object", AdditionalProperties: new(true)},
	reflect.TypeFor[jsonObject]():     {Type: "object", AdditionalProperties: new(true)},
	// A step of loc. As anyOf it becomes a class without members in Kotlin and TypeScript.
	reflect.TypeFor[any](): {Description: "A name (string) or an index (integer)."},
}

// schema describes an output type; a struct becomes a component. Whether another type is nullable,
// the property says.
func (d *specification) schema(t reflect.Type) *schema {
	nullable := t.Kind() == reflect.Pointer
	if nullable {
		t = t.Elem()
	}
	o, known := scalars[t]
	switch {
	case known:
		return &o
	case t.Kind() == reflect.Slice:
		return &schema{Type: "array", Items: d.schema(t.Elem())}
	case t.Kind() == reflect.Map && t.Key() == reflect.TypeFor[string]():
		return &schema{Type: "object", AdditionalProperties: d.schema(t.Elem())}
	case t.Kind() != reflect.Struct:
		panic(t.String() + ": no schema for this type of output")
	}
	component := exported(strings.TrimSuffix(t.Name(), "Document"))
	return d.component(component, nullable, func(o *schema) {
		for sf := range t.Fields() {
			name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
			if name == "" || !slices.Contains([]string{"", "omitempty", "omitzero"}, options) {
				panic(fmt.Sprintf("%s.%s: an output needs `json:\"name\"`, of options only "+
					"omitempty or omitzero", t, sf.Name))
			}
			p := d.schema(sf.Type)
			d.describe(p, component, &field{name: name, doc: sf.Tag.Get("doc"),
				example: sf.Tag.Get("example"), nullable: sf.Type.Kind() == reflect.Pointer})
			o.Properties.add(name, p)
			if options == "" {
				o.Required = append(o.Required, name)
			}
		}
	})
}

// exported returns a Go name in exported form: User for user.
func exported(name string) string {
	if name == "" {
		panic("the type of a body has no name")
	}
	return strings.ToUpper(name[:1]) + name[1:]
}

var inlineCode = regexp.MustCompile(`(?s)<(script|style)>(.*?)</(?:script|style)>`)

// docsPolicy returns the CSP by which the page may run its own script and style, named by their
// hashes, call this host, and do nothing else.
func docsPolicy(page []byte) string {
	policy := "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; " +
		"form-action 'none'; frame-ancestors 'none'"
	for _, m := range inlineCode.FindAllSubmatch(page, -1) {
		sum := sha256.Sum256(m[2])
		hash := base64.StdEncoding.EncodeToString(sum[:])
		policy += fmt.Sprintf("; %s-src 'sha256-%s'", m[1], hash)
	}
	return policy
}

// asset serves content that changes with the program only: browsers keep it and ask whether it is
// current. Range and If-Match are ignored, as RFC 9110 allows: a refusal would be no problem+json.
func asset(media, policy string, content []byte) handlerFunc {
	tag := fmt.Sprintf(`"%x"`, sha256.Sum256(content))
	return func(w *responseWriter, r *http.Request) {
		r.Header.Del("Range")
		r.Header.Del("If-Match")
		h := w.Header()
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", tag)
		h.Set("Content-Type", media)
		h.Set("Content-Security-Policy", cmp.Or(policy, h.Get("Content-Security-Policy")))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}
}
