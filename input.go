package main

// input.go compiles the inputs of handlers. An input is a struct whose tags say where each field
// comes from and what it may hold. The tags are compiled when the route table is built, so a wrong
// tag stops the start, and the OpenAPI document is made from the limits that decode.go enforces.
//
//	path:"id" query:"limit" json:"email" form:"username"   where the value is, and its name
//	min:"1" max:"100"   bounds: of a number, of the code points of a text, of the items of a list
//	                    or vector, of the bytes of a jsonObject
//	default:"100"       used where the field is absent
//	enum:"a,b"          the only values
//	format:"email"      a rule of the formats table; it may rewrite the value
//	exclusive:"true"    replaces all other fields of the body: either it is given or they are
//	readonly:"true"     accepted so that clients can send back what a GET returned; the handler
//	                    compares it with what is stored
//	doc:"…" example:"…" for the documentation only; doc:"-" keeps the field out of it
//
// Fields are string, int64, float64, bool and time.Time, which are required unless they have a
// default; pointers to these, nullable, jsonObject and vector, which are optional; structs of such
// fields and lists, which are required. Pointers to lists and structs are optional. A field may
// have both a json and a form name: then the body may be either.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"encoding/json/jsontext"
)

// nullable is an optional field that may also be null: absent (Set is false), null (Value is nil),
// or a value.
type nullable[T any] struct {
	Set   bool
	Value *T
}

// jsonObject is the text of a JSON object that PostgreSQL can store and every client can read;
// nil: absent.
type jsonObject []byte

// vector is an embedding that halfvec can store and compare; nil: absent.
type vector []float32

// The kinds of field, named by their JSON types where they have one.
const (
	kindText, kindInteger, kindNumber = "string", "integer", "number"
	kindBoolean, kindTime, kindObject = "boolean", "date-time", "object"
	kindVector, kindList, kindStruct  = "vector", "list", "struct"
)

// kindOf is the kind of a type of field without its pointer or nullable; lists and structs are
// recognized by reflection.
var kindOf = map[reflect.Type]string{
	reflect.TypeFor[string]():     kindText,
	reflect.TypeFor[int64]():      kindInteger,
	reflect.TypeFor[float64]():    kindNumber,
	reflect.TypeFor[bool]():       kindBoolean,
	reflect.TypeFor[time.Time]():  kindTime,
	reflect.TypeFor[jsonObject](): kindObject,
	reflect.TypeFor[vector]():     kindVector,
}

// fieldError is one entry of a 422's "errors", with pydantic's words for type, which FastAPI
// clients know. It holds nothing that the client sent: an unknown field is reported without its
// name.
type fieldError struct {
	Loc  []any  `json:"loc"`
	Msg  string `json:"msg"`
	Type string `json:"type"`
}

// field is one compiled input field.
type field struct {
	name      string   // on the wire
	places    []string // where it may stand: path, query, json, form
	index     []int    // in the struct
	kind      string
	optional  bool
	nullable  bool
	exclusive bool
	readOnly  bool
	items     *field // of a list
	object    *input // of a struct
	min, max  int64
	enum      []string
	format    string
	def       string
	doc       string
	example   string
}

// input is a compiled input type.
type input struct {
	name   string // of the struct type, without the ending Input
	fields []field
	body   bool  // whether an operation with this input reads a body
	query  bool  // whether it reads the query
	form   bool  // whether the body may also be a form
	open   bool  // whether unknown members are ignored: an answer of a provider
	limit  int64 // bytes of a body
}

// at reports whether the field may stand in place.
func (f *field) at(place string) bool { return slices.Contains(f.places, place) }

// location is the first part of a fieldError's loc for place.
func location(place string) string {
	if place == "json" || place == "form" {
		return "body"
	}
	return place
}

// formats are the rules that a format tag can name. A rule returns the value to keep, or why it is
// refused; where there is a pattern, the rule enforces it.
var formats = map[string]struct {
	rule    func(string) (value, refusal string)
	pattern string
}{
	"email":    {func(s string) (string, string) { return parseEmail(strings.TrimSpace(s)) }, emailPattern},
	"password": {checkPasswordLength, ""},
}

var inputTags = []string{"path", "query", "json", "form", "min", "max", "default", "enum", "format",
	"exclusive", "readonly", "doc", "example"}

// compileInput reads the tags of the struct type t. It panics on anything it does not understand.
func compileInput(t reflect.Type) *input {
	in := &input{name: strings.TrimSuffix(t.Name(), "Input"), limit: maxBody}
	for _, sf := range reflect.VisibleFields(t) {
		if sf.Anonymous {
			continue // its fields are visited too
		}
		f := compileField(t, sf)
		for _, place := range f.places {
			if slices.Contains(in.names(place), f.name) {
				panic(fmt.Sprintf("%s: two fields are called %s", t, f.name))
			}
		}
		if f.kind == kindVector || f.kind == kindList && f.items.kind == kindStruct {
			in.limit = maxLargeBody
		}
		in.body = in.body || f.at("json") || f.at("form")
		in.form = in.form || f.at("form")
		in.query = in.query || f.at("query")
		in.fields = append(in.fields, f)
	}
	return in
}

// compileField reads the tags of one field of the struct type owner.
func compileField(owner reflect.Type, sf reflect.StructField) field {
	refuse := func(bad bool, why string) {
		if bad {
			panic(fmt.Sprintf("%s.%s: %s", owner, sf.Name, why))
		}
	}
	tag := sf.Tag.Get
	f := field{index: sf.Index, max: math.MaxInt64, format: tag("format"), def: tag("default"),
		exclusive: tag("exclusive") == "true", readOnly: tag("readonly") == "true",
		doc: tag("doc"), example: tag("example")}
	f.setType(sf.Type)
	refuse(f.kind == "" || f.items != nil && f.items.kind == "", sf.Type.String()+" is no input type")
	f.optional = f.optional || f.def != "" || f.readOnly
	refuse(unknownTag(sf.Tag), "a key of the tag is unknown or repeated, or its syntax is wrong")
	for _, place := range inputTags[:4] {
		if name := tag(place); name != "" {
			twice := f.name != "" && (f.name != name || location(place) != location(f.places[0]))
			refuse(twice, "a field has one place and one name")
			f.name, f.places = name, append(f.places, place)
		}
	}
	refuse(f.name == "", "no name")
	refuse(strings.Contains(f.name, ","), "a name takes no options")
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
		_, fault := f.parseText(f.def)
		refuse(fault != nil, fmt.Sprint("the default breaks its own rule: ", fault))
	}
	return f
}

// setType sets the kind of the field, and whether it is optional, from its Go type.
func (f *field) setType(t reflect.Type) {
	if t.Kind() == reflect.Pointer {
		f.optional, t = true, t.Elem()
	} else if strings.HasPrefix(t.Name(), "nullable[") {
		f.optional, f.nullable, t = true, true, t.Field(1).Type.Elem()
	}
	f.kind = kindOf[t]
	switch {
	case f.kind == kindObject || f.kind == kindVector:
		f.optional = true
	case f.kind != "":
	case t.Kind() == reflect.Slice:
		f.kind, f.items = kindList, &field{max: math.MaxInt64, places: []string{"json"}}
		f.items.setType(t.Elem())
	case t.Kind() == reflect.Struct && t.NumField() > 0:
		f.kind, f.object = kindStruct, compileInput(t)
	}
}

// unknownTag reports whether a tag holds anything but the keys of inputTags, each once. It compares
// lengths, so that a misspelt key cannot pass unseen.
func unknownTag(tag reflect.StructTag) bool {
	length := 0
	for _, key := range inputTags {
		if text, ok := tag.Lookup(key); ok {
			length += len(fmt.Sprintf("%s:%q ", key, text))
		}
	}
	return length != len(tag)+1
}

// names returns the documented fields that may stand in place, in the order of the struct.
func (in *input) names(place string) (names []string) {
	for i := range in.fields {
		if f := &in.fields[i]; f.at(place) && f.doc != "-" {
			names = append(names, f.name)
		}
	}
	return names
}

// ignoreUnknown makes the input ignore members that it does not know.
func (in *input) ignoreUnknown() {
	in.open = true
	for _, f := range in.fields {
		if f.items != nil && f.items.object != nil {
			f.items.object.ignoreUnknown()
		}
	}
}

// setVectors gives the vectors of the input, whose size is a setting, their number of dimensions.
func (in *input) setVectors(dimensions int64) {
	for i := range in.fields {
		f := &in.fields[i]
		if f.kind == kindVector {
			f.min, f.max = dimensions, dimensions
		}
		if f.object != nil {
			f.object.setVectors(dimensions)
		}
		if f.items != nil && f.items.object != nil {
			f.items.object.setVectors(dimensions)
		}
	}
}

// ---- the rules of values ----

// number returns value, which is x, if it is within the bounds.
func (f *field) number(value any, x float64) (any, *fault) {
	if x < float64(f.min) {
		return nil, &fault{"greater_than_equal", fmt.Sprintf("must be at least %d", f.min)}
	}
	if x > float64(f.max) {
		return nil, &fault{"less_than_equal", fmt.Sprintf("must be at most %d", f.max)}
	}
	return value, nil
}

func (f *field) string(text string) (any, *fault) {
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return nil, &fault{"string_unicode", "must be valid UTF-8 without U+0000"}
	}
	n := int64(utf8.RuneCountInString(text))
	switch {
	case n < f.min:
		return nil, &fault{"string_too_short", fmt.Sprintf("must have at least %d characters", f.min)}
	case n > f.max:
		return nil, &fault{"string_too_long", fmt.Sprintf("must have at most %d characters", f.max)}
	case f.enum != nil && !slices.Contains(f.enum, text):
		return nil, &fault{"enum", "must be one of: " + strings.Join(f.enum, ", ")}
	}
	if rule := formats[f.format].rule; rule != nil {
		value, refusal := rule(text)
		if refusal != "" {
			return nil, &fault{"value_error", refusal}
		}
		text = value
	}
	return text, nil
}

func parseTime(text string) (any, *fault) {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return nil, &fault{"datetime_parsing", "must be a time such as 2026-01-02T03:04:05Z (RFC 3339)"}
	}
	return t.UTC(), nil
}

// jsonObject returns a copy of raw, a valid JSON object, if it can be stored.
func (f *field) jsonObject(raw []byte) (any, *fault) {
	if int64(len(raw)) > f.max {
		return nil, &fault{"too_long", fmt.Sprintf("must have at most %d bytes", f.max)}
	}
	if refusal := checkObject(raw); refusal != "" {
		return nil, &fault{"value_error", refusal}
	}
	return jsonObject(bytes.Clone(raw)), nil
}

// checkObject returns why a JSON text of valid syntax may not be stored as jsonb: what PostgreSQL
// refuses or changes silently, and what clients read differently (RFC 8259, sections 4, 6 and 8).
func checkObject(raw []byte) (refusal string) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(raw)) // strict
	for room := maxStored; ; room -= 2 {             // a bracket, a colon, a comma
		var literal []byte
		kind := dec.PeekKind()
		var err error
		if kind == '"' || kind == '0' {
			literal, err = dec.ReadValue()
		} else {
			_, err = dec.ReadToken()
		}
		if err == nil && kind == '0' {
			room -= storedLength(literal)
		} else {
			room -= len(literal)
		}
		switch {
		case err == io.EOF:
			return ""
		case errors.Is(err, jsontext.ErrDuplicateName):
			return "must not hold a name twice in one object"
		case err != nil:
			return "must not contain half a surrogate pair"
		case room < 0:
			return "must have at most 32 KiB as it is stored, with its numbers written out"
		case dec.StackDepth() > maxDepth:
			return fmt.Sprintf("must be nested at most %d deep", maxDepth)
		case kind == '"' && holdsNUL(literal):
			return "must not contain U+0000"
		case kind == '0' && !isFloat64(literal):
			return "must not hold numbers beyond the range of 64-bit floating point"
		}
	}
}

// storedLength returns the bytes of a number as PostgreSQL writes it: without an exponent.
func storedLength(number []byte) int {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(string(number)), "e")
	zeros, _ := strconv.Atoi(exponent)
	return len(mantissa) + max(zeros, -zeros)
}

// isFloat64 reports whether a JSON number is neither infinite nor rounded to zero as a float64.
func isFloat64(number []byte) bool {
	x, err := strconv.ParseFloat(string(number), 64)
	mantissa, _, _ := bytes.Cut(bytes.ToLower(number), []byte("e"))
	return err == nil && (x != 0 || !bytes.ContainsAny(mantissa, "123456789"))
}

// holdsNUL reports whether a JSON string holds U+0000, which only an escape can write.
func holdsNUL(literal []byte) bool {
	if !bytes.Contains(literal, []byte(`\u0000`)) {
		return false
	}
	text, _ := unquote(literal) // the backslash may be escaped itself
	return strings.ContainsRune(text, 0)
}

// ---- vectors ----

// The range of half precision (IEEE 754 binary16), in which vectors are stored.
const (
	maxHalf = 65504
	minHalf = 1.0 / (1 << 14) // below it, there are fewer and fewer digits
)

// parseVector returns the vector of a valid JSON array of n numbers whose distances are all
// finite: its norm is between 1e-12 and 1e12, and no number is beyond half precision. A vector so
// short that half precision would round its numbers away is lengthened by a power of two, which
// rounds nothing: the cosine only knows directions.
func parseVector(array []byte, n int) (v vector, refusal string) {
	v = make(vector, 0, n)
	count, squares, largest := 0, 0.0, 0.0
	for rest := array[1:]; ; count++ {
		rest = bytes.TrimLeft(rest, " \t\r\n,")
		if rest[0] == ']' {
			break
		}
		length := bytes.IndexAny(rest, ",] \t\r\n")
		x := parseFloat(rest[:length])
		switch rest = rest[length:]; {
		case math.IsInf(x, 0) || math.IsNaN(x):
			const format = "must hold only finite numbers, which element %d is not"
			return nil, fmt.Sprintf(format, count)
		case math.Abs(x) > maxHalf:
			const format = "must hold numbers from -%d to %d, the range of half precision, " +
				"which element %d exceeds"
			return nil, fmt.Sprintf(format, maxHalf, maxHalf, count)
		case count < n:
			v = append(v, float32(x))
		}
		squares, largest = squares+x*x, max(largest, math.Abs(x))
	}
	if count != n {
		return nil, fmt.Sprintf("must have exactly %d numbers, but has %d", n, count)
	}
	if norm := math.Sqrt(squares); norm < 1e-12 || norm > 1e12 {
		return nil, "must have a norm between 1e-12 and 1e12"
	}
	if largest < minHalf {
		_, exponent := math.Frexp(largest)
		for i := range v {
			v[i] = float32(math.Ldexp(float64(v[i]), -exponent))
		}
	}
	return v, ""
}

// parseFloat returns a JSON number as strconv.ParseFloat does, an infinity out of range, NaN for
// what is no number. A short one without an exponent takes a third of the time: float64 holds its
// digits and the power of ten exactly, so that their quotient is rounded once, as it must be.
func parseFloat(number []byte) (x float64) {
	digits, point, short := 0, len(number)-1, len(number) <= 17
	for i, c := range number {
		switch {
		case c >= '0' && c <= '9':
			digits = digits*10 + int(c-'0')
		case c == '.':
			point = i
		case c != '-': // an exponent, or no number
			short = false
		}
	}
	if !short || digits >= 1<<53 {
		x, err := strconv.ParseFloat(string(number), 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return math.NaN()
		}
		return x
	}
	x = float64(digits) / math.Pow10(len(number)-1-point)
	if number[0] == '-' {
		x = -x
	}
	return x
}
