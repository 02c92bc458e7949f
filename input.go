package main

// input.go compiles the inputs of handlers: structs whose tags say where each field comes from and
// what it may hold. A wrong tag stops the start. The OpenAPI document shows the same limits.
//
//	path:"id" query:"limit" json:"email" form:"username"   where the value is, and its name
//	min:"1" max:"100"   whole numbers: of a number, a text (code points), a list or map (items), a
//	                    jsonObject (bytes); RFC 3339 of a time
//	enum:"a,b"          the only texts
//	format:"email"      a rule of the formats table; it may rewrite the text
//	itemmin:"1"         and itemmax, itemenum, itemformat: the same of each item of a list or map
//	default:"100"       used where the field is absent
//	exclusive:"true"    replaces all other fields of the body: either it is given or they are
//	readonly:"true"     accepted, as clients send back what a GET returned; handlers compare it
//	doc:"…" example:"…" for the documentation only; doc:"-" keeps the field out of it
//
// A field is a string, int64, float64, bool, time.Time or struct, a list of these, or a map of them
// by name. It is required unless it has a default or is a pointer or nullable. A jsonObject or
// vector is optional. If a field has a json and a form name, the body may be either. In a query,
// a list is joined by commas, or a JSON array, as items with commas need.

import (
	"cmp"
	"encoding/json/jsontext"
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
)

// nullable is absent (Set is false), null (Value is nil), or a value.
type nullable[T any] struct {
	Set   bool
	Value *T
}

// jsonObject is the text of an object that PostgreSQL can store and clients can read; nil: absent.
type jsonObject []byte

// vector is an embedding that halfvec can store and compare; nil: absent.
type vector []float32

// The kinds of field, named by their JSON types where they have one.
const (
	kindText, kindInteger, kindNumber, kindBoolean = "string", "integer", "number", "boolean"
	kindTime, kindObject, kindVector               = "date-time", "object", "vector"
	kindList, kindMap, kindStruct                  = "list", "map", "struct"

	wholeNumber = "must be a whole number in decimal digits, at most 9223372036854775807"
	rfc3339     = "must be a time such as 2026-01-02T03:04:05Z (RFC 3339)"
)

// kinds has the Go type of each kind, the jsontext.Kinds it is read from, the tags that limit it,
// its name in the kinds of faults, and what is wrong with anything else.
var kinds = map[string]struct {
	zero                            any
	jsonKinds, limits, fault, wrong string
}{
	kindText:    {"", `"`, "min max enum format", "string", "must be a string"},
	kindInteger: {int64(0), "0", "min max", "int", wholeNumber},
	kindNumber:  {0.0, "0", "min max", "float", "must be a number of 64 bits"},
	kindBoolean: {false, "tf", "", "bool", "must be true or false"},
	kindTime:    {time.Time{}, `"`, "min max", "datetime", rfc3339},
	kindObject:  {jsonObject{}, "{", "min max format", "dict", "must be an object"},
	kindVector:  {vector{}, "[", "", "list", "must be an array of numbers"},
	kindList:    {nil, "[", "min max", "list", "must be an array"},
	kindMap:     {nil, "{", "min max", "dict", "must be an object"},
	kindStruct:  {nil, "{", "", "object", "must be an object"},
}

// field is one compiled field of an input, or the items of a list or map.
type field struct {
	name, kind                              string   // on the wire; one of kinds
	sources                                 []string // some of: path, query, json, form
	index                                   []int    // in the struct
	items                                   *field   // of a list or map
	nested                                  *input   // of a struct, or of items that are structs
	min, max                                int64    // of a time: seconds since 1970
	minText, maxText                        string   // as the tags have them; "": no bound
	enum                                    []string
	format, def, doc, example               string
	optional, nullable, exclusive, readOnly bool
}

// input is a compiled input type.
type input struct {
	name              string // of the struct type, without the ending Input
	fields            []*field
	body, query, form bool  // whether it reads these; form: the body may be one
	limit             int64 // bytes of a body
}

// isFrom reports whether the field may come from source.
func (f *field) isFrom(source string) bool { return slices.Contains(f.sources, source) }

// formats are the rules that a format tag can name. A rule returns the text to keep, or why it is
// refused; it enforces the pattern, if any.
var formats = map[string]struct {
	rule    func(string) (text, refusal string)
	pattern string
}{
	"email":    {parseEmail, emailPattern}, // checkText trims it
	"password": {checkPasswordBytes, ""},
	"filter":   {checkFilter, ""},
	"opaque":   {func(text string) (string, string) { return text, "" }, ""}, // any bytes
}

// compileInput reads the tags of the struct type t, which the outer types hold. It panics on
// anything it does not understand.
func compileInput(t reflect.Type, outer ...reflect.Type) *input {
	in := &input{name: strings.TrimSuffix(t.Name(), "Input"), limit: maxBody}
	for _, sf := range reflect.VisibleFields(t) {
		if sf.Anonymous {
			continue // its fields are visited too
		}
		f := in.compileField(sf, append(outer, t), func(bad bool, why string) {
			if bad {
				panic(fmt.Sprintf("%s.%s: %s", t, sf.Name, why))
			}
		})
		if f.kind == kindVector || f.kind == kindList && f.nested != nil {
			in.limit = maxLargeBody
		}
		in.form = in.form || f.isFrom("form")
		in.body = in.form || in.body || f.isFrom("json")
		in.query = in.query || f.isFrom("query")
		in.fields = append(in.fields, f)
	}
	return in
}

// compileField reads the type and the tags of the next field of the input.
func (in *input) compileField(
	sf reflect.StructField, outer []reflect.Type, failIf func(bad bool, why string),
) *field {
	tag := sf.Tag.Get
	f := &field{index: sf.Index, def: tag("default"), exclusive: tag("exclusive") == "true",
		readOnly: tag("readonly") == "true", doc: tag("doc"), example: tag("example")}
	f.setType(sf.Type, outer)
	failIf(f.kind == "" || !sf.IsExported(), sf.Type.String()+" is no input type, or not "+
		"exported: use string, int64, float64, bool, time.Time, a struct that does not hold "+
		"itself, or a list or a map of these")
	f.optional = f.optional || f.def != "" || f.readOnly
	rest := " " + string(sf.Tag) // less each known key: "" in the end
	for i, key := range strings.Fields("path query json form min max enum format " +
		"itemmin itemmax itemenum itemformat default exclusive readonly doc example") {
		text := tag(key)
		rest = strings.Replace(rest, fmt.Sprintf(" %s:%q", key, text), "", 1)
		if text != "" && i < 4 { // a source
			failIf(f.name != "" && f.name != text, "it has two names")
			failIf(slices.Contains(in.names(key), text), "another field has its name")
			f.name, f.sources = text, append(f.sources, key)
		}
	}
	failIf(rest != "", fmt.Sprintf("a key of its tag is unknown, repeated or not of key:\"value\" "+
		"after one space: %#q", rest))
	failIf(f.name == "", "it has no name in path, query, json or form")
	failIf(strings.Contains(f.name, ","), f.name+": a name has no options; a pointer is optional")
	failIf(f.nested != nil && f.nested.name == "", "the type of a struct in an input needs a name")
	failIf(f.kind != kindText && f.kind != kindTime && f.example != "" &&
		!jsontext.Value(f.example).IsValid(), "its example is no JSON: "+f.example)
	single := f.items == nil && f.nested == nil && f.kind != kindVector
	list := f.kind == kindList && f.nested == nil && f.items.items == nil
	allowed := map[string]bool{"path": single, "query": single || list, "json": true,
		"form": single, "json form": single}[strings.Join(f.sources, " ")]
	failIf(!allowed, "a "+f.kind+" cannot stand in these places")
	f.setLimits("", tag, failIf)
	cmp.Or(f.items, &field{}).setLimits("item", tag, failIf) // without items, any limit fails
	if f.def != "" {
		_, bad := f.parse(f.def, false)
		failIf(bad.msg != "", "the default "+bad.msg)
	}
	return f
}

// setType sets what the Go type says. The kind of what is no input type stays empty, and so does
// that of an outer type, which would have no end.
func (f *field) setType(t reflect.Type, outer []reflect.Type) {
	if t.Kind() == reflect.Pointer {
		f.optional, t = true, t.Elem()
	} else if strings.HasPrefix(t.Name(), "nullable[") {
		f.optional, f.nullable, t = true, true, t.Field(1).Type.Elem()
	}
	for kind, k := range kinds {
		if reflect.TypeOf(k.zero) == t {
			f.kind, f.optional = kind, f.optional || kind == kindObject || kind == kindVector
		}
	}
	kind := map[reflect.Kind]string{reflect.Slice: kindList, reflect.Map: kindMap}[t.Kind()]
	switch {
	case f.kind != "" || slices.Contains(outer, t):
	case t.Kind() == reflect.Struct && t.NumField() > 0:
		f.kind, f.nested = kindStruct, compileInput(t, outer...)
	case kind == kindList || kind == kindMap && t.Key() == reflect.TypeFor[string]():
		f.items = &field{}
		if f.items.setType(t.Elem(), append(outer, t)); f.items.kind != "" {
			f.kind, f.nested = kind, f.items.nested
		}
	}
}

// setLimits reads the tags that limit the values of f, each with a prefix.
func (f *field) setLimits(prefix string, tag func(string) string, failIf func(bool, string)) {
	for _, key := range []string{"min", "max", "enum", "format"} {
		text := tag(prefix + key)
		if text == "" {
			continue
		}
		failIf(!strings.Contains(kinds[f.kind].limits, key), prefix+key+" is no limit of its type")
		bound, err := strconv.ParseInt(text, 10, 64)
		if f.kind == kindTime {
			t, bad := time.Parse(time.RFC3339, text)
			bound, err = t.Unix(), bad
		}
		switch key {
		case "min":
			f.min, f.minText = bound, text
		case "max":
			f.max, f.maxText = bound, text
		case "enum":
			f.enum, err = strings.Split(text, ","), nil
		case "format":
			f.format, err = text, nil
			failIf(formats[text].rule == nil, "there is no format "+text)
		}
		crossed := f.minText != "" && f.maxText != "" && f.min > f.max
		failIf(err != nil || crossed, text+" is no "+prefix+key+": a whole number, or of a time "+
			"an RFC 3339 time, and min at most max")
	}
}

// names returns the documented fields that may come from source, in order.
func (in *input) names(source string) (names []string) {
	for _, f := range in.fields {
		if f.isFrom(source) && f.doc != "-" {
			names = append(names, f.name)
		}
	}
	return names
}

// setVectors sets the dimensions of the input's vectors, which are a setting.
func (in *input) setVectors(dimensions int64) {
	for _, f := range in.fields {
		if f.kind == kindVector {
			f.max = dimensions
		} else if f.nested != nil {
			f.nested.setVectors(dimensions)
		}
	}
}

// ---- the rules of values ----

// fault is what is wrong with a value, in pydantic's kinds, which FastAPI clients know. It holds
// nothing that was sent. An empty msg: no fault.
type fault struct{ kind, msg string }

// parse returns the value of a JSON text, or of a text from a path, query or form, where a whole
// number has one spelling.
func (f *field) parse(text string, isJSON bool) (value any, bad fault) {
	if isJSON && text[0] == '"' {
		if plain, bad := unquote(text); bad.msg == "" {
			text = plain
		} else if f.format != "opaque" {
			return nil, bad
		}
	}
	switch f.kind {
	case kindText:
		return f.checkText(text)
	case kindInteger:
		n, err := strconv.ParseInt(text, 10, 64)
		x, ok := parseFloat(text)
		if err != nil && isJSON && ok && x == math.Trunc(x) && math.Abs(x) <= 1<<53 {
			n, err = int64(x), nil // 77.0 or 1e2, as pydantic; exact to 2^53
		}
		if err == nil && (isJSON || strconv.FormatInt(n, 10) == text) { // no sign, no leading zeros
			return n, f.bounded(float64(n), "greater_than_equal", "less_than_equal", "be at %s %s")
		}
	case kindNumber:
		x, err := strconv.ParseFloat(text, 64)
		if err == nil && jsontext.Value(text).IsValid() { // not Inf or 0x1p-2
			return x, f.bounded(x, "greater_than_equal", "less_than_equal", "be at %s %s")
		}
	case kindBoolean:
		b, err := strconv.ParseBool(text)
		if err == nil && !strings.Contains("tTfF", text) { // ParseBool takes them
			return b, fault{}
		}
	case kindTime:
		if t, err := time.Parse(time.RFC3339, text); err == nil {
			x := float64(t.UnixMicro()) / 1e6
			return t.UTC(), f.bounded(x, "greater_than_equal", "less_than_equal", "be at %s %s")
		}
	case kindObject:
		bad = f.bounded(float64(len(text)), "too_short", "too_long", "have at %s %s bytes")
		if bad.msg == "" {
			bad.kind = "value_error"
			_, bad.msg = checkObject(text)
		}
		if rule := formats[f.format].rule; bad.msg == "" && rule != nil {
			text, bad.msg = rule(text)
		}
		return jsonObject(text), bad
	case kindVector:
		v, refusal := parseVector(text, int(f.max))
		return v, fault{"value_error", refusal}
	}
	return nil, fault{kinds[f.kind].fault + "_parsing", kinds[f.kind].wrong}
}

// parseFloat returns a number as float64, unless it is out of range, as 1e400 and 1e-400 are.
func parseFloat(number string) (x float64, ok bool) {
	x, err := strconv.ParseFloat(number, 64)
	mantissa, _, _ := strings.Cut(strings.ToLower(number), "e")
	return x, err == nil && (x != 0 || !strings.ContainsAny(mantissa, "123456789"))
}

// checkText returns the text to keep, or its fault. White space around an e-mail address does not
// count.
func (f *field) checkText(text string) (any, fault) {
	if f.format == "email" {
		text = strings.TrimSpace(text)
	}
	n := float64(utf8.RuneCountInString(text))
	bad := f.bounded(n, "string_too_short", "string_too_long", "have at %s %s characters")
	switch {
	case f.format != "opaque" && (!utf8.ValidString(text) || strings.ContainsRune(text, 0)):
		bad = fault{"string_unicode", "must be valid UTF-8 without U+0000"}
	case bad.msg != "":
	case f.enum != nil && !slices.Contains(f.enum, text):
		words := strings.TrimSuffix(strings.Join(f.enum, ", "), ", ") // an empty one is last
		bad = fault{"enum", "must be one of: " + words}
	case f.format != "":
		bad.kind = "value_error"
		text, bad.msg = formats[f.format].rule(text)
	}
	return text, bad
}

// bounded returns what is wrong with a number, a time in seconds, or a size.
func (f *field) bounded(x float64, small, large, msg string) fault {
	kind, which, bound := small, "least", f.minText
	switch {
	case f.minText != "" && x < float64(f.min):
	case f.maxText != "" && x > float64(f.max):
		kind, which, bound = large, "most", f.maxText
	default:
		return fault{}
	}
	msg = fmt.Sprintf("must "+msg, which, bound)
	if bound == "1" {
		msg = strings.TrimSuffix(msg, "s") // 1 character
	}
	return fault{kind, msg}
}

const (
	maxDepth  = 32              // of a jsonObject: PostgreSQL's parser recurses, and clients' do
	maxScale  = 16383           // digits after the point that PostgreSQL's numeric can have
	maxStored = 32 << 10        // bytes of a jsonObject as PostgreSQL writes it: 1e308 has 309
	maxHalf   = 65504           // of half precision (binary16), in which vectors are stored
	minHalf   = 1.0 / (1 << 14) // below it, half precision has fewer and fewer digits
)

// checkObject returns the bytes that a text has at most as PostgreSQL writes it, or why it may not
// be stored as jsonb: it is not one JSON object, PostgreSQL refuses or changes it silently, or
// clients read it differently (RFC 8259, sections 4, 6 and 8).
func checkObject(text string) (stored int, refusal string) {
	dec := jsontext.NewDecoder(strings.NewReader(text)) // strict
	if dec.PeekKind() != '{' {
		return 0, "must be a JSON object"
	}
	stored = len(text)
	for closed := false; ; closed = dec.StackDepth() == 0 { // then only the end may follow
		token, err := dec.ReadToken()
		stored++ // PostgreSQL writes a space after each comma and colon
		switch {
		case err == io.EOF:
			return stored, ""
		case errors.Is(err, jsontext.ErrDuplicateName):
			return 0, "must not hold a name twice in one object"
		case err != nil || closed:
			return 0, "must be one JSON object, valid and without half a surrogate pair"
		case dec.StackDepth() > maxDepth:
			return 0, fmt.Sprintf("must be nested at most %d deep", maxDepth)
		case token.Kind() == '"' && strings.ContainsRune(token.String(), 0):
			return 0, "must not contain U+0000"
		case token.Kind() == '0': // which PostgreSQL writes without an exponent
			mantissa, exponent, _ := strings.Cut(strings.ToLower(token.String()), "e")
			_, fraction, _ := strings.Cut(mantissa, ".")
			zeros, _ := strconv.ParseInt(exponent, 10, 32)
			stored += int(max(zeros, -zeros))
			_, ok := parseFloat(token.String())
			scale := len(fraction) - int(zeros)
			if !ok || scale > maxScale && stored <= maxStored {
				return 0, "must not hold numbers beyond the range of 64-bit floating point"
			}
		}
		if stored > maxStored {
			return 0, "must have at most 32 KiB as it is stored, with its numbers written out"
		}
	}
}

// parseVector returns the vector of a valid JSON array of n numbers whose distances are all
// finite: its norm is between 1e-12 and 1e12, and no number is beyond half precision. A vector so
// short that half precision would round its numbers away is lengthened by a power of two, which
// rounds nothing and keeps the cosine.
func parseVector(array string, n int) (v vector, refusal string) {
	v = make(vector, 0, n)
	count, squares, largest := 0, 0.0, 0.0
	for number := range strings.SplitSeq(array[1:len(array)-1], ",") {
		if number = strings.TrimSpace(number); number == "" {
			break // the array is empty
		}
		x, err := strconv.ParseFloat(number, 64)
		squares, largest = squares+x*x, max(largest, math.Abs(x))
		switch {
		case err != nil:
			return nil, fmt.Sprintf("must hold only finite numbers, which element %d is not", count)
		case largest > maxHalf:
			return nil, fmt.Sprintf("must hold numbers from -65504 to 65504, the range of half "+
				"precision, which element %d exceeds", count)
		case count < n:
			v = append(v, float32(x))
		}
		count++
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
