package main

// read.go reads what clients send into the inputs of handlers, strictly and one way only, and gathers what
// is wrong with it, so that the client sees all faults at once. Nothing of what was sent is in them.

import (
	"bytes"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

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
		return f.put(dst, text == "true")
	case kindObject:
		s := &scanner{text: []byte(text)}
		fault := f.setJSON(dst, s)
		if s.syntax() != "" {
			return f.fault("json_invalid", "must be a JSON object")
		}
		return fault
	}
	return f.setString(dst, text)
}

// wrongType is what a 422 says of a value that is not of the field's kind.
var wrongType = map[string][2]string{
	kindText: {"string_type", "must be a string"}, kindInteger: {"int_type", "must be a whole number"}, kindNumber: {"float_type", "must be a number"},
	kindBoolean: {"bool_type", "must be true or false"}, kindObject: {"dict_type", "must be an object"},
	kindVector: {"list_type", "must be an array of numbers"}, kindList: {"list_type", "must be an array of objects"},
}

// setJSON sets the field in dst from the value that comes next. What it does with one of broken syntax does not matter.
func (f *field) setJSON(dst reflect.Value, s *scanner) *fieldError {
	if f.kind == kindVector && s.peek() == '[' {
		v, refusal := s.vector(int(f.max))
		if refusal != "" {
			return f.fault("value_error", refusal)
		}
		return f.put(dst, v)
	}
	raw := s.value()
	if raw == nil {
		return nil
	}
	number := raw[0] == '-' || isDigit(raw[0])
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
		return f.put(dst, raw[0] == 't')
	case f.kind == kindObject && raw[0] == '{':
		if int64(len(raw)) > f.max {
			return f.fault("too_long", fmt.Sprintf("must have at most %d bytes", f.max))
		}
		room := maxStored
		if refusal := (&scanner{text: raw}).checkTree(maxDepth, &room); refusal != "" {
			return f.fault("value_error", refusal)
		}
		return f.put(dst, jsonObject(bytes.Clone(raw)))
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
	return f.put(dst, value)
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
	return f.put(dst, text)
}

// put stores value, which has no fault, in the field, through the pointer or the nullString that makes it optional.
func (f *field) put(dst reflect.Value, value any) *fieldError {
	switch target, v := dst.FieldByIndex(f.index), reflect.ValueOf(value); {
	case f.null:
		text := v.String()
		target.Set(reflect.ValueOf(nullString{true, &text}))
	case target.Kind() == reflect.Pointer:
		target.Set(reflect.New(v.Type()))
		target.Elem().Set(v)
	default:
		target.Set(v)
	}
	return nil
}

// reading gathers the faults of one request, so that the client sees all of them at once.
type reading struct {
	in     *input
	dst    reflect.Value
	seen   []bool // by field
	alone  string // the field that was seen and stands for all others, or ""
	faults []fieldError
}

// newReading starts to read into dst, a pointer to the struct that in was compiled from.
func newReading(in *input, dst any) *reading {
	return &reading{in: in, dst: reflect.ValueOf(dst).Elem(), seen: make([]bool, len(in.fields))}
}

// maxFaults is how many faults one answer lists: a body of 16 MiB can have a million.
const maxFaults = 100

func (rd *reading) add(fault fieldError) {
	if len(rd.faults) < maxFaults {
		rd.faults = append(rd.faults, fault)
	}
}

// take sets the field called name that may stand in place.
func (rd *reading) take(place, name string, set func(*field) *fieldError) {
	for i := range rd.in.fields {
		f := &rd.in.fields[i]
		if f.name != name || !f.at(place) {
			continue
		}
		if rd.seen[i] {
			rd.add(*f.fault("repeated", "is given more than once"))
		} else if fault := set(f); fault != nil {
			rd.add(*fault)
		}
		if rd.seen[i] = true; f.alone {
			rd.alone = f.name
		}
		return
	}
	msg := "holds an unknown field; none is known here"
	if names := rd.in.names(place); len(names) > 0 {
		msg = "holds an unknown field; known are: " + strings.Join(names, ", ")
	}
	rd.add(fieldError{[]any{location(place)}, msg, "extra_forbidden"})
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
		case rd.seen[i] && rd.alone != "" && !f.alone:
			rd.add(*f.fault("value_error", "cannot be combined with "+rd.alone))
		case rd.seen[i] || rd.alone != "":
		case f.def != "":
			f.setText(rd.dst, f.def)
		case !f.optional:
			rd.add(*f.fault("missing", "is required"))
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

// readJSON reads body as one JSON object. A syntax error is returned as a sentence; then nothing else counts.
func (rd *reading) readJSON(body []byte) (syntax string) {
	s := &scanner{text: body}
	if s.peek() == '{' {
		rd.readObject(s)
	} else if s.value() != nil {
		rd.add(fieldError{[]any{"body"}, "must be a JSON object", "object_type"})
	}
	return s.syntax()
}

// readObject reads the members of the object that comes next.
func (rd *reading) readObject(s *scanner) {
	for _, literal := range s.items() {
		if len(rd.faults) == maxFaults {
			continue
		}
		name, _ := jsonString(literal) // a name that is no text is "", which no field is called
		rd.take("json", name, func(f *field) *fieldError {
			if f.items != nil && s.peek() == '[' {
				return rd.readList(f, s)
			}
			return f.setJSON(rd.dst, s)
		})
	}
}

// readList reads an array of objects into the list f. The faults of an item are located in it.
func (rd *reading) readList(f *field, s *scanner) *fieldError {
	list := rd.dst.FieldByIndex(f.index)
	n := int64(0)
	for i := range s.items() {
		if n++; n > f.max || len(rd.faults) == maxFaults {
			continue
		}
		list.Set(reflect.Append(list, reflect.Zero(list.Type().Elem())))
		nested := newReading(f.items, list.Index(i).Addr().Interface())
		if s.peek() == '{' {
			nested.readObject(s)
			nested.finish("json")
		} else {
			nested.faults = []fieldError{{[]any{"body"}, "must be an object", "object_type"}}
		}
		for _, fault := range nested.faults {
			fault.Loc = append([]any{"body", f.name, i}, fault.Loc[1:]...)
			rd.add(fault)
		}
	}
	switch {
	case n > f.max:
		return f.fault("too_long", fmt.Sprintf("must have at most %d items", f.max))
	case n < f.min:
		return f.fault("too_short", fmt.Sprintf("must have at least %d items", f.min))
	}
	return nil
}
