package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
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
	if panicked := compile(good, row{number, `path:"b"`}, row{flag,
		`query:"c"`}); panicked != nil {
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

// TestSyntax: what is not one JSON value is a fault of the whole body, with its place.
func TestSyntax(t *testing.T) {
	t.Parallel()
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for body, valid := range map[string]bool{
		`{}`: true, " \t\r\n{\"x\": [1, 2] } \n": true, "\ufeff{}": true, `null`: true,
		`-0.5e+10`:                     true,
		`{"x":[{}, [] ,"\u00fC\\\""]}`: true, `{"x":` + deep(5000) + `}`: true, deep(9999): true,
		"": false, " ": false, "{} {}": false, "{}x": false, "{}\x00": false, `{"x":1,}`: false,
		`{x:1}`: false, `{'x':1}`: false, `{"x":01}`: false, `{"x":+1}`: false, `{"x":.5}`: false,
		`{"x":5.}`: false, `{"x":1e}`: false, `{"x":-}`: false, `{"x":NaN}`: false,
		"[\"\n\"]": false,
		`["\x"]`:   false, `["\u12g4"]`: false, `"\`: false, `[1,]`: false, `[,1]`: false,
		`[1 2]`:   false,
		`{"a" 1}`: false, `{"a":}`: false, `{"a":1`: false, `[`: false, `]`: false, `"a`: false,
		`tru`: false, "\x00": false, "{}\u00a0": false, "[\"\xff\"]": false, "// x\n{}": false,
		"[\"\xed\xa0\x80\"]": false, `{"text":1}}`: false, deep(20_000): false,
	} {
		in := readInput{}
		o := readInto(&in)
		o.readJSON([]byte(body))
		if (o.syntax == "") != valid {
			t.Errorf("readJSON(%.30q): %q, valid is %v", body, o.syntax, valid)
		}
	}
	o := readInto(&readInput{})
	o.readJSON([]byte(`{"a":1, b}`))
	if want := "The body is not one valid JSON value: the error is at byte 9."; o.syntax != want {
		t.Errorf("the error is %q, want %q", o.syntax, want)
	}
}

// TestVectorSyntax: numbers that end too early are faults of the syntax, whatever is read of them.
func TestVectorSyntax(t *testing.T) {
	t.Parallel()
	in := compileInput(reflect.TypeFor[documentInput]())
	in.setVectors(2)
	for _, array := range []string{`[-]`, `[1,-`, `[1.]`, `[1.`, `[1e]`, `[1e-`, `[-,1]`,
		`[1 2]`, `[1,`, `[`} {
		var got documentInput
		o := newObject(&reader{}, in, reflect.ValueOf(&got).Elem())
		if o.readJSON([]byte(`{"embedding":` + array + `}`)); o.syntax == "" {
			t.Errorf("readJSON accepts the vector %s", array)
		}
	}
}

// jsonSeeds are bodies for the fuzz tests.
var jsonSeeds = []string{`{}`, `null`, `[]`, `{"text":"a","number":1,"flag":true,"name":null}`,
	`{"number":-0}`, `{"number":1.0}`, `{"number":1e2}`, `{"number":9223372036854775808}`,
	`{"text":"a","text":"b"}`,
	`{"TEXT":"a"}`, `{"te\u0078t":"\ud83d\ude00"}`, `{"text":"\ud800"}`, `{"text":"\u0000"}`,
	`{"text":{"a":[1,"}"]}}`, "\ufeff{}", "{\"text\":\"\xff\"}", `{"text":"a"} {}`,
	` { "maybe" : 5 , "flag":false } `,
	`{"number":"1"}`, `{"flag":1}`, `{"maybe":null}`, `{"":1}`, `{"text":"ſ","ſlag":true}`,
	`{"name":"\\","text":"\""}`, `{"number":1,"number":1}`, `{"flag":tru}`,
	`{"a":` + strings.Repeat("[", 50),
	`{"vector":[1,-2.5e-3]}`, `{"vector":[1,-]}`, `{"vector":[1.,2]}`, `{"vector":[0,1e400]}`,
	`{"object":{"a":[1,{"b":"\u00fc"}]}}`, `{"object":{"a":-}}`}

// FuzzReadJSON holds the reader against encoding/json: what is accepted is valid for it and means
// the same, with no member lost or invented.
func FuzzReadJSON(f *testing.F) {
	type body struct {
		Text   *string          `json:"text"`
		Number *int64           `json:"number"`
		Maybe  *int64           `json:"maybe"`
		Flag   *bool            `json:"flag"`
		Name   nullable[string] `json:"name"`
		Vector vector           `json:"vector"`
		Object jsonObject       `json:"object"`
	}
	in := compileInput(reflect.TypeFor[body]())
	in.setVectors(2)
	in.fields[1].min = -1 << 63
	in.fields[2].min = -1 << 63
	for _, seed := range jsonSeeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var got body
		before := bytes.Clone(text)
		unmarked := bytes.TrimPrefix(text, []byte("\ufeff")) // a byte order mark is skipped
		o := newObject(&reader{loc: []any{"body"}}, in, reflect.ValueOf(&got).Elem())
		o.readJSON(text)
		o.finish("json")
		syntax, faults := o.syntax, o.faults
		if !bytes.Equal(text, before) {
			t.Fatalf("readJSON changed %q", before)
		}
		if valid := json.Valid(unmarked) && utf8.Valid(text); (syntax == "") != valid {
			t.Fatalf("readJSON(%q) = %q, but valid is %v", text, syntax, valid)
		}
		if syntax != "" || faults != nil {
			return
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(unmarked, &members); err != nil {
			t.Fatalf("readJSON takes %q, which is no object: %v", text, err)
		}
		want := map[string]any{}
		for name, raw := range members {
			var to any = new(string)
			switch name {
			case "number", "maybe":
				to = new(int64)
			case "flag":
				to = new(bool)
			case "vector":
				to = new([2]float64)
			case "object":
				to = new(map[string]any)
			}
			err := json.Unmarshal(raw, to)
			if n, isInt := to.(*int64); err != nil && isInt { // 77.0 is an integer too
				var x float64
				err = json.Unmarshal(raw, &x)
				*n = int64(x)
				if float64(*n) != x {
					t.Fatalf("readJSON takes %q as an integer", raw)
				}
			}
			if err != nil {
				t.Fatalf("readJSON takes %q, with %q: %v", text, name, err)
			}
			want[name] = reflect.ValueOf(to).Elem().Interface()
			if string(raw) == "null" {
				want[name] = nil
			} else if name == "vector" { // it may have been lengthened
				want[name] = true
			}
		}
		found := map[string]any{}
		if got.Text != nil {
			found["text"] = *got.Text
		}
		if got.Number != nil {
			found["number"] = *got.Number
		}
		if got.Maybe != nil {
			found["maybe"] = *got.Maybe
		}
		if got.Flag != nil {
			found["flag"] = *got.Flag
		}
		if got.Name.Set && got.Name.Value == nil {
			found["name"] = nil
		} else if got.Name.Set {
			found["name"] = *got.Name.Value
		}
		if got.Vector != nil {
			found["vector"] = true
		}
		if got.Object != nil {
			var object map[string]any
			if err := json.Unmarshal(got.Object, &object); err != nil {
				t.Fatalf("readJSON(%q) takes %q as an object: %v", text, got.Object, err)
			}
			found["object"] = object
		}
		if !reflect.DeepEqual(found, want) {
			t.Errorf("readJSON(%q) = %v, encoding/json has %v", text, found, want)
		}
	})
}
