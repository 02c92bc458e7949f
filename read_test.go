package main

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestCompileInputPanics(t *testing.T) {
	t.Parallel()
	text, number := reflect.TypeFor[string](), reflect.TypeFor[int64]()
	flag := reflect.TypeFor[bool]()
	type row struct {
		kind reflect.Type
		tag  reflect.StructTag
	}
	compile := func(rows ...row) (panicked any) {
		var fields []reflect.StructField
		for i, r := range rows {
			name := string(rune('A' + i))
			fields = append(fields, reflect.StructField{Name: name, Type: r.kind, Tag: r.tag})
		}
		defer func() { panicked = recover() }()
		compileInput(reflect.StructOf(fields))
		return nil
	}
	for name, r := range map[string]row{
		"unknown key":            {text, `json:"a" mx:"1"`},
		"key twice":              {text, `json:"a" json:"a"`},
		"no quotes":              {text, `json:a`},
		"not closed":             {text, `json:"a`},
		"no colon":               {text, `json`},
		"no tag":                 {text, ``},
		"no place":               {text, `doc:"x"`},
		"empty name":             {text, `json:""`},
		"two names":              {text, `json:"a" form:"b"`},
		"body and query":         {text, `json:"a" query:"a"`},
		"path and query":         {text, `path:"a" query:"a"`},
		"int":                    {reflect.TypeFor[int](), `json:"a"`},
		"float32":                {reflect.TypeFor[float32](), `json:"a"`},
		"slice of ints":          {reflect.TypeFor[[]int](), `json:"a"`},
		"name with options":      {text, `json:"a,omitempty"`},
		"struct":                 {reflect.TypeFor[struct{}](), `json:"a"`},
		"pointer to pointer":     {reflect.TypeFor[**string](), `json:"a"`},
		"pointer to nullable":    {reflect.TypeFor[*nullable[string]](), `json:"a"`},
		"min is no number":       {text, `json:"a" min:"x"`},
		"max is no number":       {number, `json:"a" max:"1.5"`},
		"max is too large":       {number, `json:"a" max:"9223372036854775808"`},
		"min of a bool":          {flag, `json:"a" min:"1"`},
		"unknown format":         {text, `json:"a" format:"e-mail"`},
		"format of a number":     {number, `json:"a" format:"email"`},
		"default below min":      {number, `query:"a" min:"1" default:"0"`},
		"default above max":      {reflect.TypeFor[*int64](), `query:"a" max:"1" default:"2"`},
		"default too short":      {text, `query:"a" min:"2" default:"a"`},
		"default too long":       {text, `query:"a" max:"1" default:"ab"`},
		"default not in enum":    {text, `query:"a" enum:"b,c" default:"a"`},
		"default against format": {text, `query:"a" format:"email" default:"a"`},
		"default is no number":   {number, `query:"a" default:"x"`},
		"default is no bool":     {flag, `query:"a" default:"x"`},
	} {
		if compile(r) == nil {
			t.Errorf("%s: compileInput takes %s `%s`", name, r.kind, r.tag)
		}
	}
	good := row{text, `json:"a" form:"a" min:"1" max:"9" enum:"b,c" default:"b" ` +
		`doc:"x" example:"c"`}
	if panicked := compile(good, row{number, `path:"b"`}, row{flag, `query:"c"`}); panicked != nil {
		t.Errorf("compileInput of good tags: %v", panicked)
	}
	if compile(good, row{text, `json:"a"`}) == nil {
		t.Error("compileInput takes a name twice")
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

// String formats the fields that were read, with pointers followed.
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

// faultTypes lists the location and type of each fault.
func faultTypes(faults []fieldError) string {
	var all []string
	for _, f := range faults {
		all = append(all, strings.Trim(fmt.Sprint(f.Loc), "[]")+" "+f.Type)
	}
	return strings.Join(all, ", ")
}

func TestReadJSON(t *testing.T) {
	t.Parallel()
	// The values are the fields that were read, or the faults.
	for body, want := range map[string]string{
		`{"text":"ab"}`: "ab 5 - red - false:- -",
		`{"text":"äöü","number":-1,"flag":false,"choice":"green",` +
			`"email":"A@B.de","name":"x",` +
			`"big":-9223372036854775808}`: "äöü -1 false green a@b.de true:x " +
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
		if rd.readJSON([]byte(body)); rd.syntax != "" {
			t.Errorf("readJSON(%s): %s", body, rd.syntax)
		}
		rd.finish("json")
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
	// The values are the fields that were read, the faults, or "!" for a malformed form.
	for form, want := range map[string]string{
		"text=ab":               "ab 5 - red - false:- -",
		"text=%C3%A4+x":         "ä x 5 - red - false:- -",
		"te%78t=ab&number=-1":   "ab -1 - red - false:- -",
		"text=ab&flag=true":     "ab 5 true red - false:- -",
		"text=ab&name=":         "ab 5 - red - true: -",
		"text=ab&name=null":     "ab 5 - red - true:null -",
		"text=ab&big=0":         "ab 5 - red - false:- 0",
		"":                      "body text missing",
		"text=":                 "body text string_too_short",
		"text=ab&text=ab":       "body text repeated",
		"text=ab&TEXT=ab":       "ab 5 - red - false:- -", // RFC 6749, 3.2: ignored
		"text=ab&nope=1":        "ab 5 - red - false:- -",
		"text=ab&nope":          "ab 5 - red - false:- -",
		"text=%00ab":            "body text string_unicode",
		"text=%ffab":            "body text string_unicode",
		"text=ab&number=":       "body number int_parsing",
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
		"text=ab&flag=":         "body flag bool_parsing",
		"text":                  "body text string_too_short",
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
		if rd.readPairs("form", form) == nil {
			rd.finish("form")
			if got = faultTypes(rd.faults); got == "" {
				got = in.String()
			}
		}
		if got != want {
			t.Errorf("readPairs(%s) = %s, want %s", form, got, want)
		}
	}
}

// TestManyFaults checks that the number of listed faults is limited, so that a response is never
// larger than the request.
func TestManyFaults(t *testing.T) {
	t.Parallel()
	rd := readInto(&readInput{})
	rd.readJSON([]byte(`{"text":"ab"` + strings.Repeat(`,"x":1`, 10000) + `}`))
	if got := len(rd.faults); got != maxFaults {
		t.Errorf("10,000 faults are listed as %d, want %d", got, maxFaults)
	}
}
