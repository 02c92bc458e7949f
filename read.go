package main

// read.go reads what clients send, strictly and one way only. A handler's input is a struct whose
// tags say where each field comes from and what it may hold; the tags are compiled when the route
// table is built, so a wrong tag stops the start, and the OpenAPI document can be made from the
// very limits that are enforced here.
//
//	path:"id" query:"limit" json:"email" form:"username"   where the value is and what it is called
//	min:"1" max:"100"     bounds: of numbers, of the code points of a text, of the items of a list or
//	                      vector, of the bytes of a jsonObject
//	default:"100"         used where the field is absent
//	enum:"a,b"            the only values
//	format:"email"        a rule of the formats table; it may rewrite the value
//	alone:"true"          stands for all the others: either it is given or they are
//	doc:"…" example:"…"   for the documentation only
//
// Fields are string, int64, float64 and bool, which are required unless they have a default; pointers to
// these, nullString, jsonObject and vector, which are optional; and lists of structs of such fields, which
// are required. A field may have both a json and a form name: then the body may be either.

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// nullString is a text field with three states: absent (Set is false), null (Value is nil), or a text.
type nullString struct {
	Set   bool
	Value *string
}

// jsonObject is the text of a JSON object that PostgreSQL can store and every client can read; nil: absent.
type jsonObject []byte

// vector is an embedding that halfvec can store and compare; nil: absent.
type vector []float32

// The kinds of field, called by their JSON types where they have one.
const (
	kindText, kindInteger, kindNumber, kindBoolean = "string", "integer", "number", "boolean"
	kindObject, kindVector, kindList               = "object", "vector", "list"
)

// kindOf is the kind of each type of field; lists are told by their struct.
var kindOf = map[reflect.Type]string{
	reflect.TypeFor[string](): kindText, reflect.TypeFor[nullString](): kindText, reflect.TypeFor[int64](): kindInteger, reflect.TypeFor[float64](): kindNumber,
	reflect.TypeFor[bool](): kindBoolean, reflect.TypeFor[jsonObject](): kindObject, reflect.TypeFor[vector](): kindVector,
}

// fieldError is one entry of a 422's "errors", with pydantic's words for type, which FastAPI clients
// know. Nothing in it comes from the client: an unknown field is reported without its name.
type fieldError struct {
	Loc  []any  `json:"loc"`
	Msg  string `json:"msg"`
	Type string `json:"type"`
}

// field is one compiled input field.
type field struct {
	name           string   // on the wire
	places         []string // where it may stand: path, query, json, form
	index          []int    // in the struct
	kind           string
	optional, null bool
	alone          bool
	items          *input // of a list
	min, max       int64
	enum           []string
	format         string
	def            string
	doc, example   string
}

// input is a compiled input type.
type input struct {
	name   string // of the struct type, without the ending Input
	fields []field
	media  []string // types that a body may have; nil: there is no body
	limit  int64    // bytes of a body
}

// at tells whether the field may stand in place.
func (f *field) at(place string) bool { return slices.Contains(f.places, place) }

// places says where the fields of a body of each media type stand.
var places = map[string]string{"application/json": "json", "application/x-www-form-urlencoded": "form"}

// location is the first part of a fieldError's loc for place.
func location(place string) string {
	if place == "json" || place == "form" {
		return "body"
	}
	return place
}

// formats are the rules a format tag can name. A rule returns the value to keep, or why it is refused;
// where there is a pattern, the rule enforces it.
var formats = map[string]struct {
	rule    func(string) (value, refusal string)
	pattern string
}{
	"email":    {parseEmail, emailPattern},
	"password": {checkPasswordLength, ""},
}

var inputTags = []string{"path", "query", "json", "form", "min", "max", "default", "enum", "format", "alone", "doc", "example"}

// compileInput reads the tags of the struct type t. It panics on anything it does not understand.
func compileInput(t reflect.Type) input {
	in := input{name: strings.TrimSuffix(t.Name(), "Input"), limit: maxBody}
	for _, sf := range reflect.VisibleFields(t) {
		if sf.Anonymous {
			continue // its fields are visited too
		}
		tags := parseTags(sf)
		f := field{index: sf.Index, max: math.MaxInt64, def: tags["default"], doc: tags["doc"], example: tags["example"], format: tags["format"], alone: tags["alone"] == "true"}
		for _, place := range []string{"path", "query", "json", "form"} {
			name, ok := tags[place]
			if ok && f.name != "" && (f.name != name || location(place) != location(f.places[0])) {
				panic(fmt.Sprintf("%s.%s: one place and one name a field", t, sf.Name))
			}
			if ok {
				f.name, f.places = name, append(f.places, place)
			}
		}
		f.setType(t, sf)
		f.setLimits(t, sf, tags)
		if f.name == "" || slices.ContainsFunc(in.fields, func(o field) bool { return o.name == f.name }) {
			panic(fmt.Sprintf("%s.%s: no name, or one used before", t, sf.Name))
		}
		if f.kind == kindVector || f.items != nil {
			in.limit = maxLargeBody
		}
		in.fields = append(in.fields, f)
	}
	for _, media := range slices.Sorted(maps.Keys(places)) {
		if in.names(places[media]) != nil {
			in.media = append(in.media, media)
		}
	}
	return in
}

// parseTags is the whole of a field's tag, so that a misspelt key cannot pass unseen.
func parseTags(sf reflect.StructField) map[string]string {
	tags := map[string]string{}
	for rest := strings.TrimSpace(string(sf.Tag)); rest != ""; rest = strings.TrimSpace(rest) {
		key, after, _ := strings.Cut(rest, ":")
		quoted, err := strconv.QuotedPrefix(after)
		if _, twice := tags[key]; err != nil || twice || !slices.Contains(inputTags, key) {
			panic(fmt.Sprintf("field %s: bad tag at %q", sf.Name, rest))
		}
		tags[key], _ = strconv.Unquote(quoted)
		rest = after[len(quoted):]
	}
	return tags
}

func (f *field) setType(owner reflect.Type, sf reflect.StructField) {
	t := sf.Type
	f.null = t == reflect.TypeFor[nullString]()
	f.optional = f.def != "" || f.null || t == reflect.TypeFor[jsonObject]() || t == reflect.TypeFor[vector]() || t.Kind() == reflect.Pointer
	switch {
	case t.Kind() == reflect.Pointer && t.Elem().Kind() != reflect.Struct && t.Elem().Kind() != reflect.Slice:
		t = t.Elem()
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		items := compileInput(t.Elem())
		f.kind, f.items = kindList, &items
		return
	}
	if f.kind = kindOf[t]; f.kind == "" {
		panic(fmt.Sprintf("%s.%s: %s is no type of input", owner, sf.Name, sf.Type))
	}
}

func (f *field) setLimits(owner reflect.Type, sf reflect.StructField, tags map[string]string) {
	for key, to := range map[string]*int64{"min": &f.min, "max": &f.max} {
		if text, ok := tags[key]; ok {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil || f.kind == kindBoolean {
				panic(fmt.Sprintf("%s.%s: bad %s", owner, sf.Name, key))
			}
			*to = n
		}
	}
	if text, ok := tags["enum"]; ok {
		f.enum = strings.Split(text, ",")
	}
	_, known := formats[f.format]
	if f.format != "" && (!known || f.kind != kindText) {
		panic(fmt.Sprintf("%s.%s: unknown format %q", owner, sf.Name, f.format))
	}
	if f.def != "" {
		if fault := f.setText(reflect.New(owner).Elem(), f.def); fault != nil {
			panic(fmt.Sprintf("%s.%s: the default breaks its own rule: %s", owner, sf.Name, fault.Msg))
		}
	}
}

// fault is the fieldError of f.
func (f *field) fault(kind, msg string) *fieldError {
	return &fieldError{[]any{location(f.places[0]), f.name}, msg, kind}
}

// setText sets the field in dst from text: a path segment, or a query or form value.
func (f *field) setText(dst reflect.Value, text string) *fieldError {
	switch f.kind {
	case kindInteger:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || strconv.FormatInt(n, 10) != text { // one spelling: no sign, no leading zeros
			return f.fault("int_parsing", "must be a whole number in plain decimal digits, at most 9223372036854775807")
		}
		return f.setNumber(dst, float64(n), n)
	case kindBoolean:
		if text != "true" && text != "false" {
			return f.fault("bool_parsing", "must be true or false")
		}
		f.put(dst, reflect.ValueOf(text == "true"))
		return nil
	case kindObject:
		raw, syntax := checkJSON([]byte(text))
		if syntax != "" {
			return f.fault("json_invalid", "must be a JSON object")
		}
		return f.setJSON(dst, raw)
	}
	return f.setString(dst, text)
}

// wrongType is what a 422 says of a value that is not of the field's kind.
var wrongType = map[string][2]string{
	kindText: {"string_type", "must be a string"}, kindInteger: {"int_type", "must be a whole number"}, kindNumber: {"float_type", "must be a number"},
	kindBoolean: {"bool_type", "must be true or false"}, kindObject: {"dict_type", "must be an object"},
	kindVector: {"list_type", "must be an array of numbers"}, kindList: {"list_type", "must be an array of objects"},
}

// setJSON sets the field in dst from raw, a valid JSON value.
func (f *field) setJSON(dst reflect.Value, raw []byte) *fieldError {
	number := raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9'
	switch {
	case string(raw) == "null" && f.null:
		dst.FieldByIndex(f.index).Set(reflect.ValueOf(nullString{Set: true}))
		return nil
	case f.kind == kindText && raw[0] == '"':
		text, fault := jsonString(raw)
		if fault != "" {
			return f.fault("string_unicode", fault)
		}
		return f.setString(dst, text)
	case f.kind == kindInteger && number:
		n, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil {
			return f.fault("int_parsing", "must be a whole number of 64 bits, without fraction or exponent")
		}
		return f.setNumber(dst, float64(n), n)
	case f.kind == kindNumber && number:
		x, err := strconv.ParseFloat(string(raw), 64)
		if err != nil {
			return f.fault("float_parsing", "must be a number of 64 bits")
		}
		return f.setNumber(dst, x, x)
	case f.kind == kindBoolean && (raw[0] == 't' || raw[0] == 'f'):
		f.put(dst, reflect.ValueOf(raw[0] == 't'))
		return nil
	case f.kind == kindObject && raw[0] == '{':
		if int64(len(raw)) > f.max {
			return f.fault("too_long", fmt.Sprintf("must have at most %d bytes", f.max))
		}
		if refusal := checkTree(raw, maxDepth); refusal != "" {
			return f.fault("value_error", refusal)
		}
		dst.FieldByIndex(f.index).SetBytes(bytes.Clone(raw))
		return nil
	case f.kind == kindVector && raw[0] == '[':
		v, refusal := parseVector(raw, int(f.max))
		if refusal != "" {
			return f.fault("value_error", refusal)
		}
		f.put(dst, reflect.ValueOf(v))
		return nil
	}
	kind, msg := wrongType[f.kind][0], wrongType[f.kind][1]
	if f.null {
		msg += " or null"
	}
	return f.fault(kind, msg)
}

// setNumber sets value, which is x, if it is within the bounds.
func (f *field) setNumber(dst reflect.Value, x float64, value any) *fieldError {
	if x < float64(f.min) {
		return f.fault("greater_than_equal", fmt.Sprintf("must be at least %d", f.min))
	}
	if x > float64(f.max) {
		return f.fault("less_than_equal", fmt.Sprintf("must be at most %d", f.max))
	}
	f.put(dst, reflect.ValueOf(value))
	return nil
}

func (f *field) setString(dst reflect.Value, text string) *fieldError {
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return f.fault("string_unicode", "must be valid UTF-8 without U+0000")
	}
	n := int64(utf8.RuneCountInString(text))
	if n < f.min {
		return f.fault("string_too_short", fmt.Sprintf("must have at least %d characters", f.min))
	}
	if n > f.max {
		return f.fault("string_too_long", fmt.Sprintf("must have at most %d characters", f.max))
	}
	if f.enum != nil && !slices.Contains(f.enum, text) {
		return f.fault("enum", "must be one of: "+strings.Join(f.enum, ", "))
	}
	if rule := formats[f.format].rule; rule != nil {
		value, refusal := rule(text)
		if refusal != "" {
			return f.fault("value_error", refusal)
		}
		text = value
	}
	f.put(dst, reflect.ValueOf(text))
	return nil
}

// put stores v in the field, through the pointer or the nullString that makes it optional.
func (f *field) put(dst, v reflect.Value) {
	switch target := dst.FieldByIndex(f.index); {
	case f.null:
		text := v.String()
		target.Set(reflect.ValueOf(nullString{true, &text}))
	case target.Kind() == reflect.Pointer:
		target.Set(reflect.New(v.Type()))
		target.Elem().Set(v)
	default:
		target.Set(v)
	}
}

// reading gathers the faults of one request, so that the client sees all of them at once.
type reading struct {
	in     *input
	dst    reflect.Value
	seen   []bool // by field
	alone  bool   // a field that stands for all others was seen
	faults []fieldError
}

// newReading starts to read into dst, a pointer to the struct that in was compiled from.
func newReading(in *input, dst any) *reading {
	return &reading{in: in, dst: reflect.ValueOf(dst).Elem(), seen: make([]bool, len(in.fields))}
}

// take sets the field called name that may stand in place.
func (rd *reading) take(place, name string, set func(*field) *fieldError) {
	for i := range rd.in.fields {
		f := &rd.in.fields[i]
		if f.name != name || !f.at(place) {
			continue
		}
		if rd.seen[i] {
			rd.faults = append(rd.faults, *f.fault("repeated", "is given more than once"))
		} else if fault := set(f); fault != nil {
			rd.faults = append(rd.faults, *fault)
		}
		rd.seen[i], rd.alone = true, rd.alone || f.alone
		return
	}
	msg := "holds an unknown field; none is known here"
	if names := rd.in.names(place); len(names) > 0 {
		msg = "holds an unknown field; known are: " + strings.Join(names, ", ")
	}
	rd.faults = append(rd.faults, fieldError{[]any{location(place)}, msg, "extra_forbidden"})
}

// names are the fields that may stand in place, in the order of the struct.
func (in *input) names(place string) (names []string) {
	for _, f := range in.fields {
		if f.at(place) {
			names = append(names, f.name)
		}
	}
	return names
}

// finish sets the defaults of place, notes its required fields that did not come, and returns all faults.
func (rd *reading) finish(place string) []fieldError {
	for i := range rd.in.fields {
		f := &rd.in.fields[i]
		switch {
		case !f.at(place) || f.alone && !rd.seen[i]:
		case rd.seen[i] && rd.alone && !f.alone:
			rd.faults = append(rd.faults, *f.fault("value_error", "cannot be combined with a field that stands for all others"))
		case rd.seen[i] || rd.alone:
		case f.def != "":
			f.setText(rd.dst, f.def)
		case !f.optional:
			rd.faults = append(rd.faults, *f.fault("missing", "is required"))
		}
	}
	return rd.faults
}

// readPairs reads a query string or a form: name=value joined by &, each percent-encoded.
// ok is false where an encoding is broken or a pair has no name or no equals sign.
func (rd *reading) readPairs(place, text string) (ok bool) {
	for pair := range strings.SplitSeq(text, "&") {
		if text == "" {
			break
		}
		name, value, found := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(name)
		value, err2 := url.QueryUnescape(value)
		if !found || name == "" || err1 != nil || err2 != nil {
			return false
		}
		rd.take(place, name, func(f *field) *fieldError { return f.setText(rd.dst, value) })
	}
	return true
}

// readJSON reads body as one JSON object. A syntax error is returned as a sentence.
func (rd *reading) readJSON(body []byte) (syntax string) {
	body, syntax = checkJSON(body)
	if syntax != "" {
		return syntax
	}
	if body[0] != '{' {
		rd.faults = append(rd.faults, fieldError{[]any{"body"}, "must be a JSON object", "object_type"})
		return ""
	}
	rd.readObject(body)
	return ""
}

// readObject reads the members of object, which must be valid JSON.
func (rd *reading) readObject(object []byte) {
	for literal, raw := range members(object) {
		name, _ := jsonString(literal) // a name that is no text is "", which no field is called
		rd.take("json", name, func(f *field) *fieldError {
			if f.items != nil && raw[0] == '[' {
				return rd.readList(f, raw)
			}
			return f.setJSON(rd.dst, raw)
		})
	}
}

// readList reads a JSON array of objects into the list f. The faults of an item are located in it.
func (rd *reading) readList(f *field, raw []byte) *fieldError {
	list := rd.dst.FieldByIndex(f.index)
	i := 0
	for item := range elements(raw) {
		if int64(i) == f.max {
			return f.fault("too_long", fmt.Sprintf("must have at most %d items", f.max))
		}
		list.Set(reflect.Append(list, reflect.Zero(list.Type().Elem())))
		nested := newReading(f.items, list.Index(i).Addr().Interface())
		if item[0] == '{' {
			nested.readObject(item)
			nested.finish("json")
		} else {
			nested.faults = []fieldError{{[]any{"body"}, "must be an object", "object_type"}}
		}
		for _, fault := range nested.faults {
			fault.Loc = append([]any{"body", f.name, i}, fault.Loc[1:]...)
			rd.faults = append(rd.faults, fault)
		}
		i++
	}
	if int64(i) < f.min {
		return f.fault("too_short", fmt.Sprintf("must have at least %d items", f.min))
	}
	return nil
}

// setVectors gives the vectors of the input, which the database bounds, their number of dimensions.
func (in *input) setVectors(dimensions int64) {
	for i := range in.fields {
		if f := &in.fields[i]; f.kind == kindVector {
			f.min, f.max = dimensions, dimensions
		} else if f.items != nil {
			f.items.setVectors(dimensions)
		}
	}
}
