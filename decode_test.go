package main

import (
	"bytes"
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http/httptest"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// compiled compiles a struct of fields and returns what compileInput panics with, or "".
func compiled(fields ...reflect.StructField) (why string) {
	for i := range fields {
		fields[i].Name = string(rune('A' + i))
	}
	defer func() {
		if p := recover(); p != nil {
			why = fmt.Sprint(p)
		}
	}()
	compileInput(reflect.StructOf(fields))
	return ""
}

// tagged is a field of type T.
func tagged[T any](tag reflect.StructTag) reflect.StructField {
	return reflect.StructField{Type: reflect.TypeFor[T](), Tag: tag}
}

func TestCompileInputPanics(t *testing.T) {
	t.Parallel()
	const option = "A: a,omitempty: a name has no options; a pointer is optional"
	for _, row := range []struct {
		name  string
		field reflect.StructField
		why   string
	}{
		{"unknown key", tagged[string](`json:"a" mx:"1"`), "one space: ` mx:\"1\"`"},
		{"header", tagged[string](`json:"a" header:"b"`), "one space: ` header:\"b\"`"},
		{"space at the end", tagged[string](`json:"a" `), "one space: ` `"},
		{"two spaces", tagged[string](`json:"a"  min:"1"`), "one space: ` `"},
		{"key twice", tagged[string](`json:"a" json:"a"`), "a key of its tag"},
		{"no quotes", tagged[string](`json:a`), "a key of its tag"},
		{"not closed", tagged[string](`json:"a`), "a key of its tag"},
		{"no colon", tagged[string](`json`), "a key of its tag"},
		{"no tag", tagged[string](``), "a key of its tag"},
		{"no place", tagged[string](`doc:"x"`), "it has no name"},
		{"empty name", tagged[string](`json:""`), "it has no name"},
		{"name with options", tagged[string](`json:"a,omitempty"`), option},
		{"two names", tagged[string](`json:"a" form:"b"`), "it has two names"},
		{"body and query", tagged[string](`json:"a" query:"a"`), "cannot stand in these places"},
		{"path and query", tagged[string](`path:"a" query:"a"`), "cannot stand in these places"},
		{"path and form", tagged[string](`path:"a" form:"a"`), "cannot stand in these places"},
		{"list in a path", tagged[[]string](`path:"a"`), "a list cannot stand in these places"},
		{"lists in a query", tagged[[][]string](`query:"a"`), "a list cannot stand in these"},
		{"map in a form", tagged[map[string]string](`form:"a"`), "a map cannot stand"},
		{"vector in a form", tagged[vector](`json:"a" form:"a"`), "a vector cannot stand"},
		{"struct in a path", tagged[struct{ A nested }](`path:"a"`), "A"},

		{"unnamed struct", tagged[struct {
			B string `json:"b"`
		}](`json:"a"`), "needs a name"},
		{"example", tagged[[]string](`json:"a" example:"x"`), "its example is no JSON"},
		{"int", tagged[int](`json:"a"`), "int is no input type, or not exported: use"},
		{"struct in itself", tagged[ownStruct](`json:"a"`), "*[]main.ownStruct is no"},
		{"nullable in itself", tagged[ownNullable](`json:"a"`), "does not hold itself"},
		{"map in itself", tagged[ownMap](`json:"a"`), "main.ownMap is no input type"},
		{"list in itself", tagged[*ownList](`json:"a"`), "*main.ownList is no input type"},
		{"two in each other", tagged[oneOfTwo](`json:"a"`), "main.oneOfTwo is no"},
		{"float32", tagged[float32](`json:"a"`), "float32 is no input type"},
		{"slice of ints", tagged[[]int](`json:"a"`), "[]int is no input type"},
		{"map of ints", tagged[map[string]int](`json:"a"`), "is no input type"},
		{"map by numbers", tagged[map[int64]string](`json:"a"`), "is no input type"},
		{"empty struct", tagged[struct{}](`json:"a"`), "struct {} is no input type"},
		{"struct without tags", tagged[struct{ B string }](`json:"a"`), "B: a key of its tag"},
		{"hidden field", tagged[struct{ b string }](`json:"a"`), "or not exported"},
		{"pointer to pointer", tagged[**string](`json:"a"`), "**string is no input type"},
		{"pointer to nullable", tagged[*nullable[string]](`json:"a"`), "Set: a key of its tag"},

		{"min is no number", tagged[string](`json:"a" min:"x"`), "x is no min"},
		{"max is no number", tagged[int64](`json:"a" max:"1.5"`), "1.5 is no max"},
		{"min with cents", tagged[float64](`json:"a" min:"0.01"`), "0.01 is no min: a whole"},
		{"max is too large", tagged[int64](`json:"a" max:"9223372036854775808"`), "is no max"},
		{"max below min", tagged[int64](`json:"a" min:"2" max:"1"`), "1 is no max"},
		{"min of a bool", tagged[bool](`json:"a" min:"1"`), "min is no limit"},
		{"min of a vector", tagged[vector](`json:"a" min:"1"`), "min is no limit"},
		{"min of a time", tagged[time.Time](`json:"a" min:"1"`), "1 is no min"},
		{"enum of a number", tagged[int64](`json:"a" enum:"1,2"`), "enum is no limit"},
		{"unknown format", tagged[string](`json:"a" format:"e-mail"`), "there is no format e-mail"},
		{"format of a number", tagged[int64](`json:"a" format:"email"`), "format is no limit"},
		{"items of a text", tagged[string](`json:"a" itemmax:"1"`), "itemmax is no limit"},
		{"enum of a list", tagged[[]string](`json:"a" enum:"x"`), "enum is no limit"},
		{"items' bound", tagged[[]string](`json:"a" itemmax:"x"`), "x is no itemmax"},
		{"items' enum", tagged[[]int64](`json:"a" itemenum:"1"`), "itemenum is no limit"},
		{"items' format", tagged[[]string](`json:"a" itemformat:"x"`), "there is no format x"},
		{"default below min", tagged[int64](`query:"a" min:"1" default:"0"`), "the default must"},
		{"default above max", tagged[*int64](`query:"a" max:"1" default:"2"`), "the default must"},
		{"default too short", tagged[string](`query:"a" min:"2" default:"a"`), "the default must"},
		{"default too long", tagged[string](`query:"a" max:"1" default:"ab"`), "the default must"},
		{"default not in enum", tagged[string](`json:"a" enum:"b,c" default:"a"`), "default must"},
		{"default no e-mail", tagged[string](`json:"a" format:"email" default:"a"`), "the default"},
		{"default is no number", tagged[int64](`query:"a" default:"x"`), "the default must"},
		{"default is no bool", tagged[bool](`query:"a" default:"x"`), "the default must"},
		{"default of a list", tagged[[]string](`json:"a" default:"x"`), "the default must"},
	} {
		if why := compiled(row.field); !strings.Contains(why, row.why) || why == "" {
			t.Errorf("%s: compileInput of %s `%s` says %q, want %q", row.name, row.field.Type,
				row.field.Tag, why, row.why)
		}
	}
	good := tagged[string](`json:"a" form:"a" min:"1" max:"9" enum:"b,c" default:"b" doc:"x"`)
	if why := compiled(good, tagged[int64](`path:"b"`), tagged[bool](`query:"c"`)); why != "" {
		t.Errorf("compileInput of good tags: %v", why)
	}
	if why := compiled(good, tagged[string](`json:"a"`)); !strings.Contains(why, "its name") {
		t.Errorf("compileInput of a name twice says %q", why)
	}
}

// Types that hold themselves, or each other.
type (
	ownStruct struct {
		Sub *[]ownStruct `json:"sub"`
	}
	ownNullable struct {
		Sub nullable[ownNullable] `json:"sub"`
	}
	ownMap   map[string]ownMap
	ownList  []ownList
	oneOfTwo struct {
		Other otherOfTwo `json:"other"`
	}
	otherOfTwo struct {
		One map[string]oneOfTwo `json:"one"`
	}
)

// nested is a struct in an input.
type nested struct {
	Name string `json:"name" max:"3"`
	Size *int64 `json:"size" min:"1"`
}

// typesInput has a field of each type that an input can have beyond the scalars.
type typesInput struct {
	Tags   *[]string           `json:"tags" min:"1" max:"2" itemmin:"2" itemmax:"3"`
	Colors *[]string           `json:"colors" itemenum:"red,blue"`
	Emails *[]string           `json:"emails" itemformat:"email"`
	Counts *[]int64            `json:"counts" itemmax:"9"`
	Labels *map[string]string  `json:"labels" min:"1" max:"2" itemmax:"3"`
	Prices *map[string]float64 `json:"prices" itemmin:"0"`
	Place  *nested             `json:"place"`
	Places *[]nested           `json:"places" max:"2"`
	ByName *map[string]nested  `json:"by_name"`
	Count  nullable[int64]     `json:"count" min:"1" max:"9"`
	Ratio  nullable[float64]   `json:"ratio" min:"-1" max:"1"`
	Owner  nullable[nested]    `json:"owner"`
	Lists  nullable[[]string]  `json:"lists"`
	From   *time.Time          `json:"from" min:"2000-01-01T00:00:00Z" max:"2030-01-01T00:00:00Z"`
	Times  *[]time.Time        `json:"times" itemmin:"2000-01-01T00:00:00Z"`
	Any    *float64            `json:"any"`
	Whole  *int64              `json:"whole"`
	Nulls  *[]nullable[string] `json:"nulls"`

	Deep *[]map[string][]*float64 `json:"deep"`
}

// plain returns v as encoding/json would read it into an any; nil: absent or null.
func plain(v reflect.Value) any {
	if text, ok := v.Interface().(fmt.Stringer); ok && v.Kind() == reflect.Struct {
		return strings.ReplaceAll(strings.TrimSuffix(text.String(), " +0000 UTC")+"Z", " ", "T")
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return plain(v.Elem())
	case reflect.Slice:
		if v.IsNil() {
			return nil
		}
		list := []any{}
		for i := range v.Len() {
			list = append(list, plain(v.Index(i)))
		}
		return list
	case reflect.Map:
		object := map[string]any{}
		for name, item := range v.Seq2() {
			object[name.String()] = plain(item)
		}
		return object
	case reflect.Struct:
		if set := v.FieldByName("Set"); set.IsValid() {
			return plain(v.FieldByName("Value"))
		}
		object := map[string]any{}
		for i := range v.NumField() {
			name := v.Type().Field(i).Tag.Get("json")
			if item := plain(v.Field(i)); item != nil {
				object[name] = item
			}
		}
		return object
	case reflect.Int64:
		return float64(v.Int())
	}
	return v.Interface()
}

// TestInputTypes reads each type: what is accepted means what encoding/json reads, and what is not
// is a fault at its place.
func TestInputTypes(t *testing.T) {
	t.Parallel()
	in := compileInput(reflect.TypeFor[typesInput]())
	for body, want := range map[string]string{ // the faults
		`{}`:                            "",
		`{"tags":["ab","abc"]}`:         "",
		`{"tags":[]}`:                   "tags too_short",
		`{"tags":["ab","ab","ab"]}`:     "tags too_long",
		`{"tags":["a","abcd"]}`:         "tags 0 string_too_short, tags 1 string_too_long",
		`{"tags":["ab",1]}`:             "tags 1 string_type",
		`{"tags":["ab",null]}`:          "tags 1 string_type",
		`{"tags":["\ud800","\u0000a"]}`: "tags 0 string_unicode, tags 1 string_unicode",
		`{"tags":null}`:                 "tags list_type",
		`{"tags":"ab"}`:                 "tags list_type",
		`{"tags":{}}`:                   "tags list_type",
		`{"colors":["red","blue"]}`:     "",
		`{"colors":["red","green"]}`:    "colors 1 enum",
		`{"emails":["a@b.de"]}`:         "",
		`{"emails":["a@b.de","x"]}`:     "emails 1 value_error",
		`{"counts":[-1,9]}`:             "",
		`{"counts":[10,1.5]}`:           "counts 0 less_than_equal, counts 1 int_parsing",

		`{"labels":{"a":"b","":"x"}}`:       "",
		`{"labels":{}}`:                     "labels too_short",
		`{"labels":{"a":"","b":"","c":""}}`: "labels too_long",
		`{"labels":{"a":"abcd"}}`:           "labels 0 string_too_long",
		`{"labels":{"a":"b","\u0061":"c"}}`: "labels 1 repeated",
		`{"labels":{"\ud800":"b"}}`:         "labels 0 string_unicode",
		`{"labels":{"a\u0000":"b"}}`:        "labels 0 string_unicode",
		`{"labels":{"canary":1}}`:           "labels 0 string_type",
		`{"labels":{"canary":null}}`:        "labels 0 string_type",
		`{"labels":[]}`:                     "labels dict_type",
		`{"prices":{"a":0.5,"b":1e300}}`:    "",
		`{"prices":{"a":-0.5}}`:             "prices 0 greater_than_equal",
		`{"place":{"name":"abc","size":1}}`: "",
		`{"place":{"name":"abc"}}`:          "",
		`{"place":{}}`:                      "place name missing",

		`{"place":{"name":"abcd","size":0}}`: "place name string_too_long, " +
			"place size greater_than_equal",

		`{"place":{"name":"a","canary":1}}`:     "place extra_forbidden",
		`{"place":{"name":"a","name":"b"}}`:     "place name repeated",
		`{"place":[]}`:                          "place object_type",
		`{"place":null}`:                        "place object_type",
		`{"places":[{"name":"a"}]}`:             "",
		`{"places":[{"name":"a"},{},{}]}`:       "places 1 name missing, places too_long",
		`{"places":[{"name":"a"},2]}`:           "places 1 object_type",
		`{"by_name":{"x":{"name":"a"}}}`:        "",
		`{"by_name":{"x":{"name":"a"},"y":{}}}`: "by_name 1 name missing",

		`{"count":9}`:                        "",
		`{"count":null}`:                     "",
		`{"count":1e0}`:                      "",
		`{"count":0}`:                        "count greater_than_equal",
		`{"count":10}`:                       "count less_than_equal",
		`{"count":"1"}`:                      "count int_type",
		`{"ratio":-0.25}`:                    "",
		`{"ratio":null}`:                     "",
		`{"ratio":1.01}`:                     "ratio less_than_equal",
		`{"ratio":1e999}`:                    "ratio float_parsing",
		`{"ratio":true}`:                     "ratio float_type",
		`{"owner":null}`:                     "",
		`{"owner":{"name":"a"}}`:             "",
		`{"owner":{"name":1}}`:               "owner name string_type",
		`{"lists":null}`:                     "",
		`{"lists":["a"]}`:                    "",
		`{"from":"2026-01-02T03:04:05Z"}`:    "",
		`{"from":"2026-01-02T03:04:05.1Z"}`:  "",
		`{"from":"2000-01-01T00:00:00Z"}`:    "",
		`{"from":"1999-12-31T23:59:59.9Z"}`:  "from greater_than_equal",
		`{"from":"2030-01-01T00:00:00.1Z"}`:  "from less_than_equal",
		`{"from":"2026-01-02"}`:              "from datetime_parsing",
		`{"from":"2026-02-30T03:04:05Z"}`:    "from datetime_parsing",
		`{"from":"2026-01-02 03:04:05Z"}`:    "from datetime_parsing",
		`{"from":1767225600}`:                "from datetime_type",
		`{"times":["1999-01-01T00:00:00Z"]}`: "times 0 greater_than_equal",
		`{"any":-1e300}`:                     "",
		`{"whole":-9223372036854775808}`:     "",
		`{"nulls":[null,"a"]}`:               "",
		`{"nulls":[1]}`:                      "nulls 0 string_type",
		`{"deep":[{"a":[1,2]},{}]}`:          "",
		`{"deep":[{"a":[1,"2"]},{"b":1}]}`:   "deep 0 0 1 float_type, deep 1 0 list_type",
	} {
		var got typesInput
		o := newObject(&reader{}, in, reflect.ValueOf(&got).Elem())
		refusal := o.readJSON([]byte(body))
		if refusal != "" || faultTypes(o.faults) != want {
			t.Errorf("readJSON(%s) = %s %s, want %s", body, refusal, faultTypes(o.faults), want)
		}
		for _, f := range o.faults {
			if strings.Contains(fmt.Sprint(f), "canary") {
				t.Errorf("readJSON(%s) echoes: %v", body, f)
			}
		}
		if want != "" {
			continue
		}
		var members map[string]any
		if err := json.Unmarshal([]byte(body), &members); err != nil {
			t.Fatal(err)
		}
		maps.DeleteFunc(members, func(_ string, value any) bool { return value == nil })
		if back := plain(reflect.ValueOf(got)); !reflect.DeepEqual(back, any(members)) {
			t.Errorf("readJSON(%s) = %v", body, back)
		}
	}
	var got typesInput
	o := newObject(&reader{}, in, reflect.ValueOf(&got).Elem())
	o.readJSON([]byte(`{"count":null,"from":"2026-01-02T04:04:05+01:00"}`))
	utc := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if !got.Count.Set || got.Ratio.Set || *got.From != utc {
		t.Errorf("null, absent, another zone: %+v, %+v, %v", got.Count, got.Ratio, got.From)
	}
}

// TestBoundMessages: a fault says the bound as its tag does.
func TestBoundMessages(t *testing.T) {
	t.Parallel()
	in := compileInput(reflect.TypeFor[typesInput]())
	for body, want := range map[string]string{
		`{"count":0}`:                     "must be at least 1",
		`{"ratio":2}`:                     "must be at most 1",
		`{"tags":["a"]}`:                  "must have at least 2 characters",
		`{"tags":[]}`:                     "must have at least 1 item",
		`{"tags":["abc","abc","abc"]}`:    "must have at most 2 items",
		`{"from":"1970-01-01T00:00:00Z"}`: "must be at least 2000-01-01T00:00:00Z",
		`{"count":"1"}`: "must be a whole number in decimal digits, at most 9223372036854775807" +
			" or null",
	} {
		o := newObject(&reader{}, in, reflect.New(reflect.TypeFor[typesInput]()).Elem())
		if o.readJSON([]byte(body)); len(o.faults) != 1 || o.faults[0].Msg != want {
			t.Errorf("readJSON(%s) = %v, want %s", body, o.faults, want)
		}
	}
}

// TestDocumentedTypes: the document shows the limits of items, and maps as objects.
func TestDocumentedTypes(t *testing.T) {
	t.Parallel()
	var d specification
	d.body(compileInput(reflect.TypeFor[typesInput]()), false)
	text, err := jsonv2.Marshal(d.schemas.get("TypesRequest").(*schema).Properties)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"tags":{"type":"array","minItems":1,"maxItems":2,"items":{"type":"string",` +
			`"pattern":"^[^\\x00]*$","minLength":2,"maxLength":3}}`,
		`"colors":{"type":"array","items":{"type":"string","enum":["red","blue"]}}`,
		`"prices":{"type":"object","additionalProperties":{"type":"number","format":"double",` +
			`"minimum":0}}`,
		`"maxLength":3},"minProperties":1,"maxProperties":2}`,
		`"place":{"$ref":"#/components/schemas/NestedRequest"}`,
		`"count":{"type":["integer","null"],"format":"int64","minimum":1,"maximum":9}`,
		`"owner":{"$ref":"#/components/schemas/NullableNestedRequest"}`,
		`"from":{"type":"string","format":"date-time",` +
			`"description":"Not before 2000-01-01T00:00:00Z. Not after 2030-01-01T00:00:00Z."}`,
		`"any":{"type":"number","format":"double"}`,
		`"whole":{"type":"integer","format":"int64"}`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the document has no %s in %s", want, text)
		}
	}
}

// TestPathFields: a row whose path and input do not have the same wildcards stops the start.
func TestPathFields(t *testing.T) {
	t.Parallel()
	type idInput struct {
		ID int64 `path:"id"`
	}
	noID := compileInput(reflect.TypeFor[none]())
	withID := compileInput(reflect.TypeFor[idInput]())
	for path, in := range map[string]*input{"/x/{id}": noID, "/x": withID, "/x/{key}": withID,
		"/x/{id}/{key}": withID} {
		func() {
			defer func() {
				why := fmt.Sprint(recover())
				if !strings.Contains(why, "GET "+path+": the path tags") {
					t.Errorf("addRow of %s with %q says %s", path, in.names("path"), why)
				}
			}()
			s := &server{cfg: &config{}}
			s.addRow(&route{"GET", path, anyone, "x", endpoint{input: in}, 200, nil, "x"})
		}()
	}
}

type readInput struct {
	Text   string           `json:"text" form:"text" min:"2" max:"3"`
	Number int64            `json:"number" form:"number" min:"-1" max:"10" default:"5"`
	Flag   *bool            `json:"flag" form:"flag"`
	Choice string           `json:"choice" form:"choice" enum:"red,green" default:"red"`
	Email  *string          `json:"email" form:"email" format:"email"`
	Name   nullable[string] `json:"name" form:"name" max:"4"`
	Big    *int64           `json:"big" form:"big" min:"-9223372036854775808"`
}

var readCompiled = compileInput(reflect.TypeFor[readInput]())

// readInto starts to read a body into in.
func readInto(in *readInput) *object {
	o := newObject(&reader{}, readCompiled, reflect.ValueOf(in).Elem())
	o.loc = []any{"body"}
	return o
}

// String shows what was read, with pointers followed.
func (in readInput) String() string {
	show := func(v any) string {
		if p := reflect.ValueOf(v); !p.IsNil() {
			return fmt.Sprint(p.Elem())
		}
		return "-"
	}
	return fmt.Sprintf("%s %d %s %s %s %v:%s %s", in.Text, in.Number, show(in.Flag), in.Choice,
		show(in.Email), in.Name.Set, show(in.Name.Value), show(in.Big))
}

// faultTypes are the places and kinds of faults, in short.
func faultTypes(faults []fieldError) string {
	var all []string
	for _, f := range faults {
		all = append(all, strings.Trim(fmt.Sprint(f.Loc), "[]")+" "+f.Type)
	}
	return strings.Join(all, ", ")
}

func TestReadJSON(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{ // what was read, or the faults
		`{"text":"ab"}`: "ab 5 - red - false:- -",

		`{"text":"äöü","number":-1,"flag":false,"choice":"green","email":"A@B.de",` +
			`"name":"x","big":-9223372036854775808}`: "äöü -1 false green a@b.de true:x " +
			"-9223372036854775808",

		`{"text":"ab","name":null}`:               "ab 5 - red - true:- -",
		`{"text":"ab","name":""}`:                 "ab 5 - red - true: -",
		`{"te\u0078t":"ab","number":10}`:          "ab 10 - red - false:- -",
		`{"text":"ab","big":9223372036854775807}`: "ab 5 - red - false:- 9223372036854775807",
		`{}`:                                       "body text missing",
		`[]`:                                       "body object_type, body text missing",
		`{"text":null}`:                            "body text string_type",
		`{"text":1}`:                               "body text string_type",
		`{"text":"a"}`:                             "body text string_too_short",
		`{"text":"äöüx"}`:                          "body text string_too_long",
		`{"text":"a\u0000"}`:                       "body text string_unicode",
		`{"text":"a\ud800"}`:                       "body text string_unicode",
		`{"text":"ab","text":"ab"}`:                "body text repeated",
		`{"text":"ab","te\u0078t":"ab"}`:           "body text repeated",
		`{"text":1,"text":"ab"}`:                   "body text string_type, body text repeated",
		`{"Text":"ab"}`:                            "body extra_forbidden, body text missing",
		`{"text":"ab","":1}`:                       "body extra_forbidden",
		`{"text":"ab","Number":1,"nope":2}`:        "body extra_forbidden, body extra_forbidden",
		`{"text":"ab","number":11}`:                "body number less_than_equal",
		`{"text":"ab","number":-2}`:                "body number greater_than_equal",
		`{"text":"ab","number":1.0}`:               "ab 1 - red - false:- -",
		`{"text":"ab","number":1e0}`:               "ab 1 - red - false:- -",
		`{"text":"ab","number":1.5}`:               "body number int_parsing",
		`{"text":"ab","number":1e-400}`:            "body number int_parsing",
		`{"text":"ab","number":0.0e5}`:             "ab 0 - red - false:- -",
		`{"text":"ab","number":-0}`:                "ab 0 - red - false:- -",
		`{"text":"ab","big":1e17}`:                 "body big int_parsing",
		`{"text":"ab","number":"1"}`:               "body number int_type",
		`{"text":"ab","number":null}`:              "body number int_type",
		`{"text":"ab","number":true}`:              "body number int_type",
		`{"text":"ab","big":9223372036854775808}`:  "body big int_parsing",
		`{"text":"ab","big":-9223372036854775809}`: "body big int_parsing",
		`{"text":"ab","flag":null}`:                "body flag bool_type",
		`{"text":"ab","flag":1}`:                   "body flag bool_type",
		`{"text":"ab","flag":"true"}`:              "body flag bool_type",
		`{"text":"ab","choice":"blue"}`:            "body choice enum",
		`{"text":"ab","choice":"Red"}`:             "body choice enum",
		`{"text":"ab","choice":""}`:                "body choice enum",
		`{"text":"ab","email":"x"}`:                "body email value_error",
		`{"text":"ab","email":null}`:               "body email string_type",
		`{"text":"ab","name":"abcde"}`:             "body name string_too_long",
		`{"text":"ab","name":1}`:                   "body name string_type",

		`{"text":1,"number":"1","flag":[],"big":{}}`: "body text string_type, " +
			"body number int_type, body flag bool_type, body big int_type",
	} {
		var in readInput
		rd := readInto(&in)
		if refusal := rd.readJSON([]byte(body)); refusal != "" {
			t.Errorf("readJSON(%s): %s", body, refusal)
		}
		got := faultTypes(rd.faults)
		if got == "" {
			got = in.String()
		}
		if got != want {
			t.Errorf("readJSON(%s) = %s, want %s", body, got, want)
		}
		for _, f := range rd.faults {
			if strings.Contains(f.Msg, "nope") || strings.Contains(f.Msg, "blue") {
				t.Errorf("readJSON(%s) echoes: %s", body, f.Msg)
			}
		}
	}
}

func TestReadPairs(t *testing.T) {
	t.Parallel()
	for form, want := range map[string]string{ // what was read, the faults, or "!": no form
		"text=ab":               "ab 5 - red - false:- -",
		"text=%C3%A4+x":         "ä x 5 - red - false:- -",
		"te%78t=ab&number=-1":   "ab -1 - red - false:- -",
		"text=ab&flag=true":     "ab 5 true red - false:- -",
		"text=ab&name=":         "ab 5 - red - false:- -", // without a value: ignored
		"text=ab&name=null":     "ab 5 - red - true:null -",
		"text=ab&big=0":         "ab 5 - red - false:- 0",
		"":                      "body text missing",
		"text=":                 "body text missing",
		"text=&text=ab&text=":   "ab 5 - red - false:- -",
		"text=ab&text=ab":       "body text repeated",
		"text=ab&TEXT=ab":       "ab 5 - red - false:- -", // unknown: ignored
		"text=ab&nope=1":        "ab 5 - red - false:- -",
		"text=ab&nope":          "ab 5 - red - false:- -",
		"text=%00ab":            "body text string_unicode",
		"text=%ffab":            "body text string_unicode",
		"text=ab&number=":       "ab 5 - red - false:- -",
		"text=ab&choice=":       "ab 5 - red - false:- -",
		"text=ab&number=01":     "body number int_parsing",
		"text=ab&number=%2B1":   "body number int_parsing",
		"text=ab&number=-0":     "body number int_parsing",
		"text=ab&number=1_0":    "body number int_parsing",
		"text=ab&number=+1":     "body number int_parsing",
		"text=ab&number=0x1":    "body number int_parsing",
		"text=ab&number=1.0":    "body number int_parsing",
		"text=ab&number=11":     "body number less_than_equal",
		"text=ab&number=%D9%A1": "body number int_parsing", // an Arabic digit
		"text=ab&flag=True":     "ab 5 true red - false:- -",
		"text=ab&flag=0":        "ab 5 false red - false:- -",
		"text=ab&flag=yes":      "body flag bool_parsing",
		"text=ab&flag=":         "ab 5 - red - false:- -",
		"text":                  "body text missing",
		"text=ab&":              "ab 5 - red - false:- -",
		"&&text=ab":             "ab 5 - red - false:- -",
		"=ab":                   "body text missing",
		"text=%zz":              "!",
		"te%xt=ab":              "!",
		"text=ab%":              "!",
	} {
		var in readInput
		rd := readInto(&in)
		got := "!"
		if rd.readPairs("form", form) == "" {
			if got = faultTypes(rd.faults); got == "" {
				got = in.String()
			}
		}
		if got != want {
			t.Errorf("readPairs(%s) = %s, want %s", form, got, want)
		}
	}
}

// TestReadMultipart reads forms of parts as it reads other forms; a file is a fault.
func TestReadMultipart(t *testing.T) {
	t.Parallel()
	part := func(disposition, value string) string {
		return "--x\r\nContent-Disposition: form-data; " + disposition + "\r\n\r\n" +
			value + "\r\n"
	}
	text := part(`name="text"`, "ä &")
	for body, want := range map[string]string{ // what was read, the faults, or "!": no form
		text + "--x--": "ä & 5 - red - false:- -",
		text + part(`name=number`, "-1") + "--x--":        "ä & -1 - red - false:- -",
		text + part(`name="flag"`, "1") + "--x--":         "ä & 5 true red - false:- -",
		text + part(`name="nope"`, "1") + "--x--":         "ä & 5 - red - false:- -",
		text + part(`nope="1"`, "1") + "--x--":            "ä & 5 - red - false:- -",
		text + part(`name="text"`, "ab") + "--x--":        "body text repeated",
		text + part(`name="flag"`, "") + "--x--":          "ä & 5 - red - false:- -",
		part(`name="TEXT"`, "ab") + "--x--":               "body text missing",
		part(`name="text"`, "\xff") + "--x--":             "body text string_unicode",
		part(`name="text"`, "a\x00") + "--x--":            "body text string_unicode",
		part(`name="text"`, "äöüx") + "--x--":             "body text string_too_long",
		part(`name="text"; filename="f"`, "ab") + "--x--": "body string_type, body text missing",

		text + part(`name="nope"; filename="f"`, "a") + "--x--": "body string_type",
		"--x--":                "body text missing",
		text:                   "!",
		text + "--x\r\ncanary": "!",
		"":                     "!",
		"--y--":                "!",
	} {
		var in readInput
		o := readInto(&in)
		s := &server{}
		w := &responseWriter{ResponseWriter: httptest.NewRecorder(), server: s}
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
		err := s.readBody(w, r, o)
		got := faultTypes(o.faults)
		if errors.Is(err, errMalformedBody) {
			got = "!"
		} else if err != nil {
			t.Error(err)
		} else if got == "" {
			got = in.String()
		}
		if got != want {
			t.Errorf("readBody(%q) = %s, want %s", body, got, want)
		}
	}
}

// TestManyFaults: a large body full of faults is not answered by a larger one.
func TestManyFaults(t *testing.T) {
	t.Parallel()
	rd := readInto(&readInput{})
	rd.readJSON([]byte(`{"text":"ab"` + strings.Repeat(`,"x":1`, 10000) + `}`))
	if got := len(rd.faults); got != maxFaults {
		t.Errorf("10,000 faults are listed as %d, want %d", got, maxFaults)
	}
}

// TestSyntax reads bodies of good and broken syntax as encoding/json judges them. A byte order mark
// is the one thing more that is allowed.
func TestSyntax(t *testing.T) {
	t.Parallel()
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	good := []string{`{}`, " \t\r\n[1, 2] \n", `"a"`, `null`, `0`, `-0.5e+10`,
		`{"a":"\ud800"}`, `{"a":[{}, [] ,"\u00fC\\\""]}`, deep(9_998)}
	bad := []string{``, ` `, `{} {}`, `{}x`, `{}` + "\x00", `{"a":1,}`, `{a:1}`, `{'a':1}`,
		`{"a" 1}`, `{"a":}`, `{"a":1`, `{,}`, `{"a"}`, `{"a":1]`, `[1}`, `{1:2}`, `{null:1}`,
		`[01]`, `[+1]`, `[.5]`, `[5.]`, `[1e]`, `[-]`, `[NaN]`, `[1,]`, `[,1]`, `[1 2]`, `[`, `]`,
		`}`, "[\"\n\"]", `["\x"]`, `["\u12g4"]`, `"\`, `"a`, `tru`, "\x00", "{}\u00a0",
		"[\"\xff\"]", "[\"\xed\xa0\x80\"]", "// x\n{}", deep(10_001),
		strings.Repeat("[", 1_000_000), strings.Repeat(`{"a":`, 10_001), `{"text":tru}`,
		`{"text":"a`, `{"name":nul}`, `{"number":1.}`, `{"number":-}`, `{"number":1e+}`}
	for i, body := range append(good, bad...) {
		for _, in := range []string{body, `{"nope":` + body + `}`} { // read, and skipped
			o := readInto(&readInput{})
			refusal := o.readJSON([]byte(in))
			if ok := refusal == ""; ok != (json.Valid([]byte(in)) && utf8.ValidString(in)) ||
				in == body && ok != (i < len(good)) {
				t.Errorf("readJSON(%.40q): %q", in, refusal)
			}
		}
	}
	for body, want := range map[string]string{
		`{"a":1, b}`:               "the error is at byte 9.",
		`{"a":1}x`:                 "the error is at byte 8.",
		``:                         "the error is at byte 1.",
		`{"text":["a",{"b" 1}]}`:   "the error is at byte 19.",
		"\ufeff\ufeff{}":           "the error is at byte 1.",
		"{\"canary\":\"\xff\"}":    "The body is not valid UTF-8.",
		`{"canary":{"canary":tru}`: "the error is at byte 24.",
	} {
		o := readInto(&readInput{})
		if refusal := o.readJSON([]byte(body)); !strings.HasSuffix(refusal, want) {
			t.Errorf("readJSON(%q): %q, want %q", body, refusal, want)
		}
	}
	o := readInto(&readInput{})
	if refusal := o.readJSON([]byte("\ufeff{}")); refusal != "" {
		t.Errorf("a byte order mark: %s", refusal)
	}
}

// TestDepth skips and reads a body of the greatest depth without recursion: one that recursed would
// need some 2 MB of stack, and keep it.
func TestDepth(t *testing.T) {
	for _, body := range []string{
		`{"nope":` + strings.Repeat("[", 9_998) + strings.Repeat("]", 9_998),
		`{"text":` + strings.Repeat(`{"a":`, 9_998) + "1" + strings.Repeat("}", 9_998),
	} {
		before, after := make(chan uint64), make(chan uint64)
		go func() { // on a new and small stack
			before <- stackInUse()
			o := readInto(&readInput{})
			if refusal := o.readJSON([]byte(body + "}")); refusal != "" {
				t.Error(refusal)
			}
			after <- stackInUse()
		}()
		if a, b := <-before, <-after; b > a+256<<10 {
			t.Errorf("readJSON(%.20s…) takes %d bytes of stack", body, b-a)
		}
	}
}

// stackInUse returns the bytes of the stacks of all goroutines.
func stackInUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.StackInuse
}

// TestMembers reads names and values as they stand there, whatever is in them.
func TestMembers(t *testing.T) {
	t.Parallel()
	type pair struct{ name, raw string }
	for object, want := range map[string][]pair{
		`{}`:                                    nil,
		"{ \t\r\n}":                             nil,
		`{"a":1}`:                               {{"a", "1"}},
		"{ \"a\" : -1.5e3 , \"b\" :\n[]}":       {{"a", "-1.5e3"}, {"b", "[]"}},
		`{"a":{"b":"}","c":[{},"]"]},"d":true}`: {{"a", `{"b":"}","c":[{},"]"]}`}, {"d", "true"}},
		`{"a":"\"},{","a":null}`:                {{"a", `"\"},{"`}, {"a", "null"}},
		`{"\u0061\"":"\\"}`:                     {{`a"`, `"\\"`}},
		`{"\ud800":1,"":2}`:                     {{"", "1"}, {"", "2"}},
		`{":":":",",":","}`:                     {{":", `":"`}, {",", `","`}},
		`{" ":" ","\n, :":[ 1 ]}`:               {{" ", `" "`}, {"\n, :", "[ 1 ]"}},
	} {
		var got []pair
		rd := &reader{text: object, dec: jsontext.NewDecoder(bytes.NewBufferString(object),
			jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))}
		for rd.readToken(); rd.more(); {
			name, _ := unquote(rd.next())
			got = append(got, pair{name, rd.next()})
		}
		if rd.err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("the members of %s are %q, want %q (%v)", object, got, want, rd.err)
		}
	}
}

func TestJSONStrings(t *testing.T) {
	t.Parallel()
	f := field{kind: kindText, max: math.MaxInt64}
	for literal, want := range map[string]string{ // "!" for a refusal
		`""`: "", `"a\"\\\/\b\f\n\r\t"`: "a\"\\/\b\f\n\r\t", `"\u00fc"`: "ü",
		`"\uD83D\ude00"`: "😀", `"\\u0000"`: `\u0000`, `"\\\\ud800"`: `\\ud800`,
		`"\ufffd"`: "\ufffd", "\"\u2028\x7f\"": "\u2028\x7f", `"\""`: `"`, `"\"\""`: `""`,
		`"\u0000"`: "!", `"a\u0000b"`: "!", `"\ud800"`: "!", `"\udc00"`: "!", `"\ud800x"`: "!",
		`"\ud800\n"`: "!", `"\ud800\ud800"`: "!", `"\ud800\u0041"`: "!", `"\ud800\ue000"`: "!",
		`"\udc00\ud800"`: "!", `"\ud83d\ude00\ude00"`: "!", `"\\\ud800"`: "!",
		`"\ud83d\ude00\u0000"`: "!",
	} {
		got, bad := f.parse(literal, true)
		if refused := bad.kind == "string_unicode"; refused != (want == "!") ||
			!refused && (got != want || bad.msg != "") {
			t.Errorf("parse(%s) = %q, %v, want %q", literal, got, bad, want)
		}
	}
}

// TestVectorNumbers: a vector holds what strconv reads; broken numbers are faults of the syntax.
func TestVectorNumbers(t *testing.T) {
	t.Parallel()
	numbers := []string{"0", "-0", "0.1", "-0.30000000000000004", "0.000000000000001",
		"-0.00000000000001", "1e-3", "1E+4", "123.4567890123456789", "0.9007199254740993",
		"65504", "-65504", "1e-400", "0.00000005960464477539063"}
	for range 10_000 {
		numbers = append(numbers, strconv.FormatFloat(rand.NormFloat64(), 'f', rand.IntN(20), 64))
	}
	for _, text := range numbers {
		x, _ := strconv.ParseFloat(text, 64)
		v, refusal := parseVector("[ 1 ,\n"+text+"\t]", 2)
		if refusal != "" || v[0] != 1 || math.Float32bits(v[1]) != math.Float32bits(float32(x)) {
			t.Fatalf("parseVector of 1 and %s = %v, %q, want %v", text, v, refusal, float32(x))
		}
	}
	for text, want := range map[string]string{
		`[]`:              "but has 0",
		"[ \n]":           "but has 0",
		`[1]`:             "but has 1",
		`[1,2,3]`:         "but has 3",
		`[1e400,1]`:       "element 0 is not",
		`[1,-1e400]`:      "element 1 is not",
		`[1,"0"]`:         "element 1 is not",
		`["1,1"]`:         "element 0 is not",
		`[null,1]`:        "element 0 is not",
		`[[1,1]]`:         "element 0 is not",
		`[{"a":1,"b":1}]`: "element 0 is not",
		`[true,1]`:        "element 0 is not",
		`[1,65504.1]`:     "element 1",
		`["Infinity",1]`:  "element 0 is not",
		`[0,0]`:           "norm",
		`[1e-13,0]`:       "norm",
	} {
		if v, refusal := parseVector(text, 2); !strings.Contains(refusal, want) || v != nil {
			t.Errorf("parseVector(%s) = %v, %q, want %q", text, v, refusal, want)
		}
	}
	type body struct {
		Vector vector `json:"vector"`
	}
	in := compileInput(reflect.TypeFor[body]())
	in.setVectors(2)
	for _, text := range []string{`[-]`, `[1,-`, `[1.]`, `[1.`, `[1e]`, `[1e-`, `[-,1]`, `[1 2]`,
		`[1,`, `[`, `[1,2}`, `[nan,1]`, `[inf,1]`, `[0x1,1]`, `[1_0,1]`, `[,1,2]`, `[1,,2]`} {
		o := newObject(&reader{}, in, reflect.New(reflect.TypeFor[body]()).Elem())
		if o.readJSON([]byte(`{"vector":`+text+`}`)) == "" {
			t.Errorf("readJSON takes the vector %s", text)
		}
	}
}

// TestObjects reads the objects that queries hold: one JSON object each, with a limit of its bytes.
func TestObjects(t *testing.T) {
	t.Parallel()
	f := field{kind: kindObject, max: 100, maxText: "100"}
	for text, want := range map[string]string{ // part of the refusal
		`{}`:                            "",
		` {"a":1} `:                     "",
		`{"a":{"b":[1,2.50,"x"]}}`:      "",
		`{"a":-0}`:                      "",
		`{"a":1e308}`:                   "",
		`{"a":0e9999}`:                  "",
		`{"a":"\\u0000"}`:               "",
		`{"a":"\ud83d\ude00"}`:          "",
		``:                              "must be a JSON object",
		`x`:                             "must be a JSON object",
		`[]`:                            "must be a JSON object",
		`1`:                             "must be a JSON object",
		`{`:                             "one JSON object",
		`{}{}`:                          "one JSON object",
		`{}x`:                           "one JSON object",
		`{"a":1}}`:                      "one JSON object",
		"{\"a\":\"\xff\"}":              "one JSON object",
		`{"a":"\ud800"}`:                "half a surrogate",
		`{"a":1,"a":2}`:                 "twice",
		`{"a":{"b":1,"\u0062":2}}`:      "twice",
		`{"a":"\u0000"}`:                "U+0000",
		`{"\u0000":1}`:                  "U+0000",
		`{"a":1e400}`:                   "range",
		`{"a":1e-400}`:                  "range",
		`{"a":0e-99999999999999999999}`: "32 KiB",
		`{"a":"` + strings.Repeat("x", 100) + `"}`:                        "100 bytes",
		`{"a":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`: "deep",
	} {
		value, bad := f.parse(text, false)
		if !strings.Contains(bad.msg, want) || (bad.msg == "") != (want == "") {
			t.Errorf("parse(%s) = %s, %v, want %q", text, value, bad, want)
		}
	}
	if _, refusal := checkObject(`{"a":[` + strings.Repeat("1e308,", 103) + `1]}`); refusal != "" {
		t.Errorf("103 numbers of 309 digits: %s", refusal)
	}
	if _, refusal := checkObject(`{"a":[` + strings.Repeat("1e308,", 107) + `1]}`); refusal == "" {
		t.Error("107 numbers of 309 digits are stored")
	}
}

// FuzzReadJSON holds the reader against encoding/json: both take the same syntax, and what has no
// fault means the same, with no member lost or invented.
func FuzzReadJSON(f *testing.F) {
	in := compileInput(reflect.TypeFor[fuzzInput]())
	in.setVectors(2)
	for _, seed := range []string{`{}`, `null`, `[]`, "\ufeff{}", "{\"text\":\"\xff\"}",
		`{"text":"a"} {}`, `{"text":"a","number":1,"flag":true,"name":null}`, `{"number":-0}`,
		`{"number":1.0}`, `{"number":1e2}`, `{"number":9223372036854775808}`,
		`{"text":"a","text":"b"}`, `{"TEXT":"a"}`, `{"te\u0078t":"\ud83d\ude00"}`,
		`{"text":"\ud800"}`, `{"text":"\u0000"}`, `{"maybe":null}`, `{"text":{"a":[1,"}"]}}`,
		` { "maybe" : 5 , "flag":false } `, `{"number":"1"}`, `{"flag":1}`, `{"":1}`,
		`{"text":"ſ","ſlag":true}`, `{"name":"\\","text":"\""}`, `{"number":1,"number":1}`,
		`{"flag":tru}`, `{"a":` + strings.Repeat("[", 50), `{"vector":[1,-2.5e-3]}`,
		`{"vector":[1,-]}`, `{"vector":[1.,2]}`, `{"vector":[0,1e400]}`,
		`{"object":{"a":[1,{"b":"\u00fc"}]}}`, `{"object":{"a":-}}`,
		`{"list":["a",""],"map":{"a":{"text":"b"}}}`, `{"map":{"a":{},"a":{}}}`,
		`{"real":1e-2,"time":"2026-01-02T03:04:05.6+07:00"}`, `{"struct":{"text":"a"}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var got fuzzInput
		before := bytes.Clone(text)
		o := newObject(&reader{}, in, reflect.ValueOf(&got).Elem())
		refusal := o.readJSON(text)
		if !bytes.Equal(text, before) {
			t.Fatalf("readJSON changed %q", before)
		}
		text = bytes.TrimPrefix(text, []byte("\ufeff"))
		if valid := json.Valid(text) && utf8.Valid(text); (refusal == "") != valid {
			t.Fatalf("readJSON(%q) = %q, but valid is %v", text, refusal, valid)
		}
		if refusal != "" || o.faults != nil {
			return
		}
		var want map[string]any
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatalf("readJSON takes %q, which is no object: %v", text, err)
		}
		found := plain(reflect.ValueOf(got)).(map[string]any)
		if _, there := want["name"]; there != got.Name.Set {
			t.Errorf("readJSON(%q): name is %v", text, got.Name)
		}
		if v, ok := want["vector"].([]any); ok && len(v) == 2 { // it may have been lengthened
			found["vector"], got.Vector = want["vector"], got.Vector[:2]
		}
		if when, ok := want["time"].(string); ok { // in another zone
			parsed, err := time.Parse(time.RFC3339, when)
			if err != nil || !parsed.Equal(*got.Time) {
				t.Errorf("readJSON(%q): time is %v, %v", text, got.Time, err)
			}
			found["time"] = want["time"]
		}
		if got.Object != nil {
			var object any
			if err := json.Unmarshal(got.Object, &object); err != nil {
				t.Fatalf("readJSON(%q) takes %q as an object: %v", text, got.Object, err)
			}
			found["object"] = object
		}
		maps.DeleteFunc(want, func(_ string, value any) bool { return value == nil })
		if !reflect.DeepEqual(found, want) {
			t.Errorf("readJSON(%q) = %v, encoding/json has %v", text, found, want)
		}
	})
}

// fuzzInput has all kinds of field, without limits.
type fuzzInput struct {
	Text   *string            `json:"text"`
	Number *int64             `json:"number"`
	Maybe  *int64             `json:"maybe"`
	Real   *float64           `json:"real"`
	Flag   *bool              `json:"flag"`
	Time   *time.Time         `json:"time"`
	Name   nullable[string]   `json:"name"`
	Vector vector             `json:"vector"`
	Object jsonObject         `json:"object"`
	List   *[]string          `json:"list"`
	Map    *map[string]inFuzz `json:"map"`
	Struct *inFuzz            `json:"struct"`
}

type inFuzz struct {
	Text *string `json:"text"`
}

// BenchmarkReadJSON reads a body of 200 bytes, and a document with a vector of 384 numbers.
func BenchmarkReadJSON(b *testing.B) {
	array, err := json.Marshal(newCluster(1, 1, 384).near())
	if err != nil {
		b.Fatal(err)
	}
	const account = `{"email": "ada.lovelace@example.com", ` +
		`"password": "a rather long pass phrase of some words", ` +
		`"full_name": "Ada King, Countess of Lovelace, n\u00e9e Byron", ` +
		`"is_active": true, "is_admin": false}`
	for _, row := range []struct {
		name, body string
		dst        any
	}{
		{"account", account, new(createUserInput)},
		{"document", `{"content":"Ada","embedding":` + string(array) + `}`, new(documentInput)},
	} {
		in := compileInput(reflect.TypeOf(row.dst).Elem())
		in.setVectors(384)
		b.Run(row.name, func(b *testing.B) {
			b.SetBytes(int64(len(row.body)))
			b.ReportAllocs()
			for b.Loop() {
				o := newObject(&reader{}, in, reflect.ValueOf(row.dst).Elem())
				if refusal := o.readJSON([]byte(row.body)); refusal != "" || o.faults != nil {
					b.Fatal(refusal, o.faults)
				}
			}
		})
	}
}
