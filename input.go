package main

// input.go compiles what handlers take. A handler's input is a struct whose tags say where each field
// comes from and what it may hold. The tags are compiled when the route table is built, so a wrong tag
// stops the start, and the OpenAPI document is made from the very limits that read.go enforces.
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
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
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
