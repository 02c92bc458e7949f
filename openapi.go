package main

// openapi.go makes the OpenAPI 3.1 document, once, at start, from the route table, the types of the
// handlers and their tags: from the rows and limits that are enforced. Only what these cannot say
// stands here: the groups of operations, the headers, and the texts that are too long for a tag. It
// also serves the docs page.

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
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

	"encoding/json/jsontext"
	json "encoding/json/v2"
)

//go:embed docs.html
var docsPage []byte

// ordered is a JSON object whose members keep their order.
type ordered[V any] []entry[V]

type entry[V any] struct {
	name  string
	value V
}

func (o ordered[V]) MarshalJSONTo(enc *jsontext.Encoder) error {
	err := enc.WriteToken(jsontext.BeginObject)
	for _, m := range o {
		if err == nil {
			err = enc.WriteToken(jsontext.String(m.name))
		}
		if err == nil {
			err = json.MarshalEncode(enc, m.value)
		}
	}
	if err != nil {
		return err
	}
	return enc.WriteToken(jsontext.EndObject)
}

// get returns the value of a member, or nil.
func (o ordered[V]) get(name string) *V {
	for i := range o {
		if o[i].name == name {
			return &o[i].value
		}
	}
	return nil
}

func (o *ordered[V]) add(name string, value V) { *o = append(*o, entry[V]{name, value}) }

// The parts of the document, as the OpenAPI specification names them.
type (
	openAPIDocument struct {
		OpenAPI    string                       `json:"openapi"`
		Info       info                         `json:"info"`
		Servers    []serverURL                  `json:"servers"`
		Tags       []tag                        `json:"tags"`
		Paths      ordered[ordered[*operation]] `json:"paths"`
		Components components                   `json:"components"`
	}
	info struct {
		Title       string `json:"title"`
		Version     string `json:"version"`
		Description string `json:"description"`
	}
	serverURL struct {
		URL string `json:"url"`
	}
	tag struct {
		Name        string `json:"name"`
		Description string `json:"description"`
	}
	components struct {
		Schemas         ordered[*schema]        `json:"schemas"`
		Responses       ordered[*response]      `json:"responses"`
		Headers         ordered[*header]        `json:"headers"`
		SecuritySchemes ordered[securityScheme] `json:"securitySchemes"`
	}
	operation struct {
		OperationID string                `json:"operationId"`
		Tags        []string              `json:"tags"`
		Summary     string                `json:"summary"`
		Description string                `json:"description"`
		Access      string                `json:"x-access"`
		Security    []map[string][]string `json:"security"`
		Parameters  []parameter           `json:"parameters,omitempty"`
		RequestBody *requestBody          `json:"requestBody,omitempty"`
		Responses   ordered[*response]    `json:"responses"`
	}
	parameter struct {
		Name        string  `json:"name"`
		In          string  `json:"in"`
		Required    bool    `json:"required"`
		Description string  `json:"description,omitempty"`
		Schema      *schema `json:"schema"`
	}
	requestBody struct {
		Required bool               `json:"required"`
		Content  ordered[mediaBody] `json:"content"`
	}
	mediaBody struct {
		Schema   *schema                   `json:"schema"`
		Example  any                       `json:"example,omitempty"`
		Examples ordered[map[string]any]   `json:"examples,omitempty"`
		Encoding map[string]map[string]any `json:"encoding,omitempty"`
	}
	response struct {
		Ref         string             `json:"$ref,omitempty"`
		Description string             `json:"description,omitempty"`
		Codes       []string           `json:"x-codes,omitempty"`
		Headers     ordered[*header]   `json:"headers,omitempty"`
		Content     ordered[mediaBody] `json:"content,omitempty"`
	}
	header struct {
		Ref         string  `json:"$ref,omitempty"`
		Description string  `json:"description,omitempty"`
		Required    bool    `json:"required,omitzero"`
		Schema      *schema `json:"schema,omitempty"`
	}
	securityScheme struct {
		Type         string         `json:"type"`
		Description  string         `json:"description"`
		Scheme       string         `json:"scheme,omitempty"`
		BearerFormat string         `json:"bearerFormat,omitempty"`
		Flows        map[string]any `json:"flows,omitempty"`
	}
	schema struct {
		Ref                  string           `json:"$ref,omitempty"`
		Type                 any              `json:"type,omitempty"` // a string, or several
		Format               string           `json:"format,omitempty"`
		ContentMediaType     string           `json:"contentMediaType,omitempty"`
		Pattern              string           `json:"pattern,omitempty"`
		MinLength            *int64           `json:"minLength,omitempty"`
		MaxLength            *int64           `json:"maxLength,omitempty"`
		Minimum              *int64           `json:"minimum,omitempty"`
		Maximum              *int64           `json:"maximum,omitempty"`
		MinItems             *int64           `json:"minItems,omitempty"`
		MaxItems             *int64           `json:"maxItems,omitempty"`
		Enum                 []string         `json:"enum,omitempty"`
		Default              any              `json:"default,omitempty"`
		Examples             []any            `json:"examples,omitempty"`
		Items                *schema          `json:"items,omitempty"`
		AnyOf                []*schema        `json:"anyOf,omitempty"`
		Properties           ordered[*schema] `json:"properties,omitempty"`
		Required             []string         `json:"required,omitempty"`
		AdditionalProperties *bool            `json:"additionalProperties,omitempty"`
		ReadOnly             bool             `json:"readOnly,omitzero"`
		Description          string           `json:"description,omitempty"`
	}
)

const aboutAPI = "Log in with `POST %[1]s/auth/login` and send the access token as " +
	"`Authorization: Bearer …`.\n\n" +
	"JSON is read strictly: unknown, repeated and misspelt names are refused, and so are U+0000 " +
	"and broken Unicode. Every error is an RFC 9457 problem with a `detail` for people and a " +
	"stable `code` for programs. A 503 says in `Retry-After` when to try again."

// tags are the groups of operations, by the first part of their path.
var tags = []tag{
	{"health", "Liveness and readiness."},
	{"auth", "Registration, login, tokens and sessions."},
	{"users", "Your account, and for admins those of others."},
	{"documents", "Your documents, and search among them by meaning and by words."},
}

// headers are those of the answers.
var headers = ordered[*header]{
	{"X-Request-Id", &header{Required: true, Schema: &schema{Type: "string"},
		Description: "The client's, if it is short and printable, else a new one."}},
	{"WWW-Authenticate", &header{Required: true, Schema: &schema{Type: "string"},
		Description: "The challenge of RFC 6750."}},
	{"Retry-After", &header{Required: true, Schema: &schema{Type: "integer"},
		Description: "Seconds to wait."}},
	{"Location", &header{Schema: &schema{Type: "string"},
		Description: "The path of the new resource."}},
	{"Link", &header{Schema: &schema{Type: "string"},
		Description: `The path of the next page, as rel="next"; absent on the last page.`}},
}

// headerRefs returns references to these headers and to that of every answer.
func headerRefs(names ...string) (refs ordered[*header]) {
	for _, name := range append([]string{"X-Request-Id"}, names...) {
		refs.add(name, &header{Ref: "#/components/headers/" + name})
	}
	return refs
}

// specification collects the components while the operations are described.
type specification struct {
	schemas   ordered[*schema]
	responses ordered[*response]
}

// openAPI returns the document of the route table as JSON.
func (s *server) openAPI() []byte {
	var d specification
	var paths ordered[ordered[*operation]]
	for i := range s.table {
		rt := &s.table[i]
		path := s.cfg.APIPrefix + rt.path
		if paths.get(path) == nil {
			paths.add(path, nil)
		}
		paths.get(path).add(strings.ToLower(rt.method), d.operation(rt))
	}
	flow := map[string]any{"tokenUrl": s.cfg.APIPrefix + "/auth/login",
		"refreshUrl": s.cfg.APIPrefix + "/auth/refresh", "scopes": map[string]string{}}
	document := openAPIDocument{
		OpenAPI: "3.1.0",
		Info: info{s.cfg.AppName, version,
			fmt.Sprintf(aboutAPI, s.cfg.APIPrefix)},
		Servers: []serverURL{{"/"}},
		Tags:    tags,
		Paths:   paths,
		Components: components{d.schemas, d.responses, headers, ordered[securityScheme]{
			{"password", securityScheme{Type: "oauth2", Description: "E-mail and password.",
				Flows: map[string]any{"password": flow}}},
			{"bearer", securityScheme{Type: "http", Scheme: "bearer", BearerFormat: "JWT",
				Description: "An access token."}},
		}},
	}
	text, err := json.Marshal(document, json.Deterministic(true))
	if err != nil {
		panic(err) // a row that JSON cannot express is as bad as a wrong tag
	}
	return text
}

// operation describes a row.
func (d *specification) operation(rt *route) *operation {
	in := rt.endpoint.input
	summary, _, _ := strings.Cut(rt.summary, ": ")
	o := &operation{OperationID: rt.name, Tags: []string{strings.Split(rt.path, "/")[1]},
		Summary: summary, Description: rt.summary + ".", Access: "anyone",
		Security: []map[string][]string{}}
	if rt.access > clients {
		o.Access = "user"
		o.Security = []map[string][]string{{"password": {}}, {"bearer": {}}}
	}
	if rt.access == admins {
		o.Access = "admin"
		o.Description += " Admins only."
	}
	for i := range in.fields {
		if f := &in.fields[i]; f.at("path") || f.at("query") {
			p := parameter{f.name, f.places[0], !f.optional, in.text(f).doc, d.field(in, f)}
			p.Schema.Description = ""
			o.Parameters = append(o.Parameters, p)
		}
	}
	if in.body {
		content := ordered[mediaBody]{{"application/json",
			mediaBody{Schema: d.body(in), Example: in.example("json")}}}
		if in.form {
			form := mediaBody{Schema: d.body(in), Example: in.example("form")}
			content.add("application/x-www-form-urlencoded", form)
			content.add("multipart/form-data", form)
		}
		o.RequestBody = &requestBody{true, content}
	}
	o.Responses.add(strconv.Itoa(rt.status), d.success(rt))
	refusals := map[int][]*problem{}
	for _, p := range rt.problems() {
		refusals[p.status] = append(refusals[p.status], p)
	}
	for _, status := range slices.Sorted(maps.Keys(refusals)) {
		o.Responses.add(strconv.Itoa(status), d.refusal(refusals[status]))
	}
	return o
}

// success describes the answer of a row when all is well.
func (d *specification) success(rt *route) *response {
	t, names := rt.endpoint.output, []string(nil)
	if rt.status == http.StatusCreated {
		names = append(names, "Location")
	}
	switch out := reflect.Zero(t).Interface().(type) {
	case none:
		return &response{Description: http.StatusText(rt.status), Headers: headerRefs()}
	case pager:
		items, _ := out.content()
		t, names = reflect.TypeOf(items), append(names, "Link")
	}
	body := mediaBody{Schema: d.schema(t), Example: example("", t, "").Interface()}
	return &response{Description: http.StatusText(rt.status), Headers: headerRefs(names...),
		Content: ordered[mediaBody]{{"application/json", body}}}
}

// refusal describes the problems of one status, as a component that all rows with these share.
func (d *specification) refusal(problems []*problem) *response {
	var names, lines []string
	r := &response{}
	body := mediaBody{Schema: d.schema(reflect.TypeFor[problemDocument]())}
	for _, p := range problems {
		r.Codes = append(r.Codes, p.code)
		lines = append(lines, fmt.Sprintf("- `%s`: %s", p.code, p.detail))
		if p.header[0] != "" && !slices.Contains(names, p.header[0]) {
			names = append(names, p.header[0])
		}
		shown := p
		if p == errInvalidRequest {
			shown = invalidField("email", "missing", "is required")
		}
		body.Examples.add(p.code, map[string]any{"value": shown.document("R5CZ3OYJ6VGU2MHX4TNBKQ7WDE")})
	}
	name := strings.Join(r.Codes, ".")
	if d.responses.get(name) == nil {
		r.Description, r.Headers = strings.Join(lines, "\n"), headerRefs(names...)
		r.Content = ordered[mediaBody]{{"application/problem+json", body}}
		d.responses.add(name, r)
	}
	return &response{Ref: "#/components/responses/" + name}
}

// field describes what is accepted for a field of in.
func (d *specification) field(in *input, f *field) *schema {
	text := in.text(f)
	o := &schema{Type: f.kind, Enum: f.enum, ReadOnly: f.readOnly, Description: text.doc}
	low, high := bound(f.min, 0), bound(f.max, math.MaxInt64)
	yes := true
	switch f.kind {
	case kindText:
		o.Format, o.Pattern = f.format, formats[f.format].pattern
		o.MinLength, o.MaxLength = low, high
		if o.Pattern == "" && f.enum == nil {
			o.Pattern = `^[^\u0000]*$` // what PostgreSQL can store
		}
	case kindInteger:
		o.Format, o.Minimum, o.Maximum = "int64", bound(f.min, math.MinInt64), high
	case kindNumber:
		o.Format, o.Minimum, o.Maximum = "double", bound(f.min, math.MinInt64), high
	case kindTime:
		o.Type, o.Format = "string", kindTime
	case kindObject:
		o.AdditionalProperties = &yes
		if f.at("query") { // generators get a parameter with content wrong
			o = &schema{Type: "string", ContentMediaType: "application/json", Description: text.doc}
		}
	case kindVector: // without minItems: generators make a tuple where it equals maxItems
		low, high := int64(-maxHalf), int64(maxHalf)
		o.Type, o.MaxItems = "array", &f.max
		o.Items = &schema{Type: "number", Format: "float", Minimum: &low, Maximum: &high}
		o.Description = strings.TrimSpace(o.Description + fmt.Sprintf(
			" Exactly %d numbers, with a norm between 1e-12 and 1e12.", f.max))
	case kindList:
		o.Type, o.MinItems, o.MaxItems = "array", low, high
		o.Items = d.field(&input{}, f.items)
	case kindStruct:
		o = d.body(f.object)
	}
	if f.nullable {
		o.Type = []any{o.Type, "null"}
	}
	o.Default = f.literal(f.def)
	if text.example != "" {
		o.Examples = []any{f.literal(text.example)}
	}
	return o
}

// bound returns a bound for the document, or nil where it is none.
func bound(n, unbounded int64) *int64 {
	if n == unbounded {
		return nil
	}
	return &n
}

// literal returns the value that the text of a tag of f stands for.
func (f *field) literal(text string) any {
	if text == "" {
		return nil
	}
	if f.kind == kindText || f.kind == kindTime || f.kind == kindObject && f.at("query") {
		return text
	}
	return jsontext.Value(text)
}

// body describes the bodies of an input, one schema for all media types.
func (d *specification) body(in *input) *schema {
	name := exported(in.name) + "Request"
	ref := &schema{Ref: "#/components/schemas/" + name}
	if d.schemas.get(name) != nil {
		return ref
	}
	no := false
	o := &schema{Type: "object", AdditionalProperties: &no}
	d.schemas.add(name, o)
	for i := range in.fields {
		f := &in.fields[i]
		if f.doc == "-" || !f.at("json") && !f.at("form") || o.Properties.get(f.name) != nil {
			continue
		}
		o.Properties.add(f.name, d.field(in, f))
		same := func(g field) bool { return g.name == f.name && g.at("json") && g.optional }
		if !f.optional && !slices.ContainsFunc(in.fields, same) {
			o.Required = append(o.Required, f.name)
		}
	}
	return ref
}

// example returns a body with the fields that have an example.
func (in *input) example(place string) any {
	var o ordered[any]
	for i := range in.fields {
		f := &in.fields[i]
		value := f.literal(in.text(f).example)
		if f.kind == kindList && f.items.object != nil {
			value = []any{f.items.object.example(place)}
		}
		if f.at(place) && f.doc != "-" && value != nil {
			o.add(f.name, value)
		}
	}
	return o
}

// outputs are the types that outputs are made of, as encoding/json/v2 writes them.
var outputs = map[reflect.Type]schema{
	reflect.TypeFor[string]():         {Type: "string"},
	reflect.TypeFor[bool]():           {Type: "boolean"},
	reflect.TypeFor[int]():            {Type: "integer"},
	reflect.TypeFor[int64]():          {Type: "integer", Format: "int64"},
	reflect.TypeFor[float32]():        {Type: "number", Format: "float"},
	reflect.TypeFor[float64]():        {Type: "number", Format: "double"},
	reflect.TypeFor[time.Time]():      {Type: "string", Format: kindTime},
	reflect.TypeFor[jsontext.Value](): {Type: "object", AdditionalProperties: new(true)},
	// A step of loc.
	reflect.TypeFor[any](): {AnyOf: []*schema{{Type: "string"}, {Type: "integer"}}},
}

// schema describes an output type; a struct becomes a component.
func (d *specification) schema(t reflect.Type) *schema {
	if o, ok := outputs[t]; ok {
		return &o
	}
	switch t.Kind() {
	case reflect.Pointer:
		o := d.schema(t.Elem())
		o.Type = []any{o.Type, "null"}
		return o
	case reflect.Slice:
		return &schema{Type: "array", Items: d.schema(t.Elem())}
	case reflect.Struct:
		name := exported(strings.TrimSuffix(t.Name(), "Document"))
		if d.schemas.get(name) == nil {
			o := &schema{}
			d.schemas.add(name, o)
			*o = d.structSchema(t)
		}
		return &schema{Ref: "#/components/schemas/" + name}
	}
	panic(t.String() + ": no schema for this type of output")
}

func (d *specification) structSchema(t reflect.Type) schema {
	o := schema{Type: "object"}
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		property := d.schema(f.Type)
		property.Description = textOf(t.Name(), name, f.Tag).doc
		o.Properties.add(name, property)
		if options == "" {
			o.Required = append(o.Required, name)
		}
	}
	return o
}

// example returns a value of an output type, made of the examples of its fields.
func example(owner string, t reflect.Type, text string) reflect.Value {
	v := reflect.New(t).Elem()
	switch {
	case t == reflect.TypeFor[time.Time]():
		return reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC))
	case t.Kind() == reflect.Struct:
		for f, to := range v.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			to.Set(example(t.Name(), f.Type, textOf(t.Name(), name, f.Tag).example))
		}
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		return reflect.Append(v, example(owner, t.Elem(), ""))
	case text == "":
	case t.Kind() == reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		v.Elem().Set(example(owner, t.Elem(), text))
	case t.Kind() == reflect.String:
		v.SetString(text)
	default:
		if err := json.Unmarshal([]byte(text), v.Addr().Interface()); err != nil {
			panic(fmt.Sprintf("example %q of a %s: %v", text, t, err))
		}
	}
	return v
}

// exported returns a Go name in its exported form: User for user.
func exported(name string) string {
	if name == "" {
		return ""
	}
	return strings.ToUpper(name[:1]) + name[1:]
}

// fieldText is what the document says of a field.
type fieldText struct{ doc, example string }

// texts are those that are too long for a tag, by the type, without the ending Input, and the name;
// or by the name alone where all fields of that name share them.
var texts = map[string]fieldText{
	"password": {"", "correct horse battery"},
	"register.password": {"At most 1024 bytes in UTF-8; common passwords and the e-mail are " +
		"refused.", "correct horse battery"},
	"current_password":     {"", "correct horse battery"},
	"login.username":       {"The e-mail address.", "ada@example.com"},
	"login.grant_type":     {"password, which is the default, or refresh_token.", ""},
	"login.refresh_token":  {"With grant_type=refresh_token only.", ""},
	"refresh_token":        {"", exampleToken},
	"refresh.grant_type":   {"Required in a form.", ""},
	"revoke.token":         {"A refresh or an access token, also an expired one.", exampleToken},
	"token_type_hint":      {"Ignored: the token tells its type.", ""},
	"scope":                {"This session, all others, or all.", ""},
	"updateMe.email":       {"", "ada@example.com"},
	"updateMe.full_name":   {"null clears it.", "Ada King"},
	"updateUser.full_name": {"null clears it.", "Ada King"},
	"updateMe.password":    {"Needs current_password; ends the other sessions.", ""},
	"updateUser.password":  {"Ends all sessions of the account.", ""},
	"after":                {"Only ids above this one: the next page, at the same cost however deep.", ""},
	"userFilter.q":         {"Part of the e-mail or the name, in any case.", ""},
	"tokens.access_token":  {"Send it as a bearer token.", exampleToken},
	"tokens.refresh_token": {"Exchange it once for new tokens.", exampleToken},
	"tokens.expires_in":    {"Lifetime of the access token in seconds.", "1800"},
	"include":              {"Show the embedding too.", ""},
	"metadata":             {"Any object, of at most 16 KiB; defaults to {}.", `{"lang":"en"}`},
	"document.metadata":    {"", `{"lang":"en"}`},
	"document.embedding": {"Only with include=embedding; as stored, in half precision, " +
		"lengthened by a power of two where it was too short for that.", ""},
	"embedding": {"Required unless the service has a provider of embeddings.", ""},
	"updateDocument.content": {"Embedded again where it differs; without a provider an embedding " +
		"must come with it.", "Ada wrote the first program."},
	"updateDocument.metadata": {"Replaces the whole object, of at most 16 KiB.", `{"lang":"en"}`},
	"filter": {"An object, of at most 1 KiB, that the metadata must contain, as PostgreSQL's @> " +
		"defines it.", `{"lang":"en"}`},
	"search.embedding": {"Where to search, compared in half precision, as what is stored; or a " +
		"query, where the service has a provider of embeddings.", ""},
	"search.query": {"A text to search for. In the modes text and hybrid: at most 64 words, as " +
		"in web searches with quotes, OR and -.", "who wrote the first program?"},
	"search.mode":      {"By meaning, by words, or both, fused by rank.", ""},
	"search.min_score": {"In mode vector: only scores from this one up.", ""},
	"match.score": {"The higher the better: 1 - distance in mode vector, the rank of ts_rank in " +
		"mode text, the sum of 1/(60 + place) in mode hybrid.", "0.87"},
	"match.distance": {"The cosine distance, in mode vector.", "0.13"},
}

const exampleToken = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI3In0.c2ln"

// text returns what the document says of a field of in.
func (in *input) text(f *field) fieldText {
	t := textOf(in.name, f.name, "")
	if f.doc != "" {
		t.doc = f.doc
	}
	if f.example != "" {
		t.example = f.example
	}
	return t
}

// textOf returns what the document says of a field: its tags first, then texts.
func textOf(owner, name string, tag reflect.StructTag) fieldText {
	t, ok := texts[owner+"."+name]
	if !ok {
		t = texts[name]
	}
	if doc := tag.Get("doc"); doc != "" {
		t.doc = doc
	}
	if example := tag.Get("example"); example != "" {
		t.example = example
	}
	return t
}

var inlineCode = regexp.MustCompile(`(?s)<(script|style)>(.*?)</(?:script|style)>`)

// docsPolicy lets the page run its own script and style, named by their hashes, call this host, and
// do nothing else.
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
// current. Ranges and other conditions are ignored, as RFC 9110 allows.
func asset(media, policy string, content []byte) func(*responseWriter, *http.Request) {
	sum := sha256.Sum256(content)
	tag := fmt.Sprintf(`"%x"`, sum[:8])
	return func(w *responseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", tag)
		if policy != "" {
			h.Set("Content-Security-Policy", policy)
		}
		if strings.Contains(r.Header.Get("If-None-Match"), tag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.Set("Content-Type", media)
		h.Set("Content-Length", strconv.Itoa(len(content)))
		w.Write(content)
	}
}
