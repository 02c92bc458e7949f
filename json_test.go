package main

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestScanner(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{}`: `{}`, " \t\r\n[1, 2] \n": `[1, 2]`, `"a"`: `"a"`, `null`: `null`, `-0.5e+10`: `-0.5e+10`, `{"a":[{}, [] ,"\u00fC\\\""]}`: `{"a":[{}, [] ,"\u00fC\\\""]}`,
		``: "", ` `: "", `{} {}`: "", `{}x`: "", `{}` + "\x00": "", `{"a":1,}`: "", `{a:1}`: "", `{'a':1}`: "", `[01]`: "", `[+1]`: "", `[.5]`: "", `[5.]`: "", `[1e]`: "", `[-]`: "", `[NaN]`: "",
		"[\"\n\"]": "", `["\x"]`: "", `["\u12g4"]`: "", `"\`: "", `[1,]`: "", `[,1]`: "", `[1 2]`: "", `{"a" 1}`: "", `{"a":}`: "", `{"a":1`: "", `[`: "", `]`: "", `"a`: "", `tru`: "", "\x00": "",
		"\ufeff{}": "", "{}\u00a0": "", "[\"\xff\"]": "", "[\"\xed\xa0\x80\"]": "", "// x\n{}": "", strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001): "",
	} {
		s := &scanner{text: []byte(body)}
		got := string(s.value())
		if syntax := s.syntax(); (syntax == "") != (want != "") || want != "" && got != want || (json.Valid([]byte(body)) && utf8.ValidString(body)) != (syntax == "") {
			t.Errorf("the value of %.20q is %q, %q, want %q", body, got, syntax, want)
		}
	}
	s := &scanner{text: []byte(`{"a":1, b}`)}
	s.value()
	if want := "The body is not one valid JSON value: the error is at byte 9."; s.syntax() != want {
		t.Errorf("syntax() = %q, want %q", s.syntax(), want)
	}
}

func TestParseFloat(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"0", "-0", "0.1", "-0.30000000000000004", "9007199254740991", "9007199254740993", "99999999999999999", "0.000000000000001", "-0.00000000000001", "1e-3", "1E400", "123456789.12345", "0.9007199254740993"} {
		got := parseFloat([]byte(text))
		if want, _ := strconv.ParseFloat(text, 64); math.Float64bits(got) != math.Float64bits(want) {
			t.Errorf("parseFloat(%s) = %v, want %v", text, got, want)
		}
	}
	for range 100_000 {
		text := strconv.FormatFloat(rand.NormFloat64(), 'f', rand.IntN(20), 64)
		got := parseFloat([]byte(text))
		if want, _ := strconv.ParseFloat(text, 64); got != want {
			t.Fatalf("parseFloat(%s) = %v, want %v", text, got, want)
		}
	}
}

func TestJSONString(t *testing.T) {
	t.Parallel()
	for literal, want := range map[string]string{ // "!" for a refusal
		`""`: "", `"a\"\\\/\b\f\n\r\t"`: "a\"\\/\b\f\n\r\t", `"\u00fc"`: "ü", `"\uD83D\ude00"`: "😀", `"\\u0000"`: `\u0000`, `"\\\\ud800"`: `\\ud800`, `"\ufffd"`: "\ufffd", "\"\u2028\x7f\"": "\u2028\x7f",
		`"\u0000"`: "!", `"a\u0000b"`: "!", `"\ud800"`: "!", `"\udc00"`: "!", `"\ud800x"`: "!", `"\ud800\n"`: "!", `"\ud800\ud800"`: "!", `"\ud800\u0041"`: "!", `"\ud800\ue000"`: "!", `"\udc00\ud800"`: "!",
		`"\ud83d\ude00\ude00"`: "!", `"\\\ud800"`: "!", `"\ud83d\ude00\u0000"`: "!",
	} {
		got, refusal := jsonString([]byte(literal))
		if want == "!" && refusal == "" || want != "!" && (got != want || refusal != "") {
			t.Errorf("jsonString(%s) = %q, %q, want %q", literal, got, refusal, want)
		}
	}
}

func TestItems(t *testing.T) {
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
	} {
		var got []pair
		s := &scanner{text: []byte(object)}
		for _, literal := range s.items() {
			name, _ := jsonString(literal)
			got = append(got, pair{name, string(s.value())})
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("the items of %s are %q, want %q", object, got, want)
		}
	}
}

// TestVectorSyntax: numbers that end too early are faults of the syntax, whatever is read of them.
func TestVectorSyntax(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`[-]`, `[1,-`, `[1.]`, `[1.`, `[1e]`, `[1e-`, `[-,1]`, `[1 2]`, `[1,`, `[`} {
		s := &scanner{text: []byte(text)}
		if s.vector(2); s.syntax() == "" {
			t.Errorf("vector takes %s", text)
		}
	}
}

// jsonSeeds are bodies for the fuzz tests.
var jsonSeeds = []string{`{}`, `null`, `[]`, `{"text":"a","number":1,"flag":true,"name":null}`, `{"number":-0}`, `{"number":1.0}`, `{"number":1e2}`, `{"number":9223372036854775808}`, `{"text":"a","text":"b"}`,
	`{"TEXT":"a"}`, `{"te\u0078t":"\ud83d\ude00"}`, `{"text":"\ud800"}`, `{"text":"\u0000"}`, `{"text":{"a":[1,"}"]}}`, "\ufeff{}", "{\"text\":\"\xff\"}", `{"text":"a"} {}`, ` { "maybe" : 5 , "flag":false } `,
	`{"number":"1"}`, `{"flag":1}`, `{"maybe":null}`, `{"":1}`, `{"text":"ſ","ſlag":true}`, `{"name":"\\","text":"\""}`, `{"number":1,"number":1}`, `{"flag":tru}`, `{"a":` + strings.Repeat("[", 50),
	`{"vector":[1,-2.5e-3]}`, `{"vector":[1,-]}`, `{"vector":[1.,2]}`, `{"vector":[0,1e400]}`, `{"object":{"a":[1,{"b":"\u00fc"}]}}`, `{"object":{"a":-}}`}

// FuzzReadJSON holds the reader against encoding/json: what is accepted is valid for it and means the
// same, with no member lost or invented.
func FuzzReadJSON(f *testing.F) {
	type body struct {
		Text   *string    `json:"text"`
		Number *int64     `json:"number"`
		Maybe  *int64     `json:"maybe"`
		Flag   *bool      `json:"flag"`
		Name   nullString `json:"name"`
		Vector vector     `json:"vector"`
		Object jsonObject `json:"object"`
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
		rd := newReading(&in, &got)
		syntax := rd.readJSON(text)
		faults := rd.finish("json")
		if !bytes.Equal(text, before) {
			t.Fatalf("readJSON changed %q", before)
		}
		if valid := json.Valid(text) && utf8.Valid(text); (syntax == "") != valid {
			t.Fatalf("readJSON(%q) = %q, but valid is %v", text, syntax, valid)
		}
		if syntax != "" || faults != nil {
			return
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(text, &members); err != nil {
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
			if err := json.Unmarshal(raw, to); err != nil {
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
