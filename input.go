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
	reflect.TypeFor[string](): kindText, reflect.TypeFor[int64](): kindInteger, reflect.TypeFor[float64](): kindNumber, reflect.TypeFor[bool](): kindBoolean,
	reflect.TypeFor[*string](): kindText, reflect.TypeFor[*int64](): kindInteger, reflect.TypeFor[*float64](): kindNumber, reflect.TypeFor[*bool](): kindBoolean,
	reflect.TypeFor[nullString](): kindText, reflect.TypeFor[jsonObject](): kindObject, reflect.TypeFor[vector](): kindVector,
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
		f := compileField(t, sf)
		if slices.ContainsFunc(in.fields, func(o field) bool { return o.name == f.name }) {
			panic(fmt.Sprintf("%s: two fields are called %s", t, f.name))
		}
		if f.kind == kindVector || f.kind == kindList {
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

func compileField(owner reflect.Type, sf reflect.StructField) field {
	refuse := func(bad bool, why string) {
		if bad {
			panic(fmt.Sprintf("%s.%s: %s", owner, sf.Name, why))
		}
	}
	t, tag := sf.Type, sf.Tag.Get
	f := field{index: sf.Index, kind: kindOf[t], null: t == reflect.TypeFor[nullString](), max: math.MaxInt64,
		format: tag("format"), def: tag("default"), alone: tag("alone") == "true", doc: tag("doc"), example: tag("example")}
	f.optional = f.def != "" || t.Kind() == reflect.Pointer || t.Kind() == reflect.Struct || t.Kind() == reflect.Slice
	if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct {
		items := compileInput(t.Elem())
		f.kind, f.items, f.optional = kindList, &items, false
	}
	refuse(f.kind == "", sf.Type.String()+" is no type of input")

	length := 0 // of the whole tag, so that a misspelt key cannot pass unseen
	for _, key := range inputTags {
		if text, ok := sf.Tag.Lookup(key); ok {
			length += len(fmt.Sprintf("%s:%q ", key, text))
		}
	}
	refuse(length != len(sf.Tag)+1, "a key of the tag is unknown or there twice, or its spelling is not the usual one")
	for _, place := range inputTags[:4] {
		if name := tag(place); name != "" {
			refuse(f.name != "" && (f.name != name || location(place) != location(f.places[0])), "one place and one name a field")
			f.name, f.places = name, append(f.places, place)
		}
	}
	refuse(f.name == "", "no name")
	for key, to := range map[string]*int64{"min": &f.min, "max": &f.max} {
		if text := tag(key); text != "" {
			n, err := strconv.ParseInt(text, 10, 64)
			refuse(err != nil || f.kind == kindBoolean, "bad "+key)
			*to = n
		}
	}
	if tag("enum") != "" {
		f.enum = strings.Split(tag("enum"), ",")
	}
	_, known := formats[f.format]
	refuse(f.format != "" && (!known || f.kind != kindText), "unknown format")
	if f.def != "" {
		fault := f.setText(reflect.New(owner).Elem(), f.def)
		refuse(fault != nil, fmt.Sprint("the default breaks its own rule: ", fault))
	}
	return f
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
