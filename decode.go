package main

// decode.go reads paths, queries, forms and JSON into the inputs of handlers, strictly and in one
// way, and collects what is wrong, so that the client sees all faults at once. No fault holds
// anything that was sent. JSON is read token by token (encoding/json/jsontext): skipping a value
// does not recurse, so that the depth of a body cannot grow the stack of its goroutine.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"encoding/json/jsontext"
	json "encoding/json/v2"
)

const (
	maxFaults = 100      // listed in one answer: a body of 16 MiB can have a million
	maxDepth  = 32       // containers in a jsonObject: PostgreSQL's parser recurses, and clients' do
	maxStored = 32 << 10 // bytes of a jsonObject as PostgreSQL writes it: numbers like 1e308 grow
)

// reader reads one request into an input and collects the faults.
type reader struct {
	text   []byte            // the JSON that dec reads
	dec    *jsontext.Decoder // allows what the fields refuse themselves, with their place
	loc    []any             // of the object or list that is being read
	faults []fieldError
	syntax string // what is wrong with the body as a whole; then nothing else counts
}

// fault is what is wrong with a value.
type fault struct{ kind, msg string }

func (rd *reader) add(f *fault, at ...any) {
	if f != nil && len(rd.faults) < maxFaults {
		rd.faults = append(rd.faults, fieldError{slices.Concat(rd.loc, at), f.msg, f.kind})
	}
}

// object is one struct that is being filled, with the fields that have come.
type object struct {
	*reader
	in        *input
	dst       reflect.Value
	seen      []bool
	exclusive string // the exclusive field that was seen, or ""
}

func newObject(rd *reader, in *input, dst reflect.Value) *object {
	return &object{reader: rd, in: in, dst: dst, seen: make([]bool, len(in.fields))}
}

// find returns the field called name that may stand in place and marks it as seen. It returns nil
// for an unknown or repeated one, which is a fault; but unknown fields of forms are ignored, as RFC
// 6749, section 3.2, asks of the token endpoints.
func (o *object) find(place, name string) *field {
	for i := range o.in.fields {
		f := &o.in.fields[i]
		if f.name != name || !f.at(place) {
			continue
		}
		if o.seen[i] {
			o.add(&fault{"repeated", "is given more than once"}, f.name)
			return nil
		}
		o.seen[i] = true
		if f.exclusive {
			o.exclusive = f.name
		}
		return f
	}
	if place != "form" && !o.in.open {
		msg := "holds an unknown field; none is known here"
		if names := o.in.names(place); len(names) > 0 {
			msg = "holds an unknown field; known are: " + strings.Join(names, ", ")
		}
		o.add(&fault{"extra_forbidden", msg})
	}
	return nil
}

// finish sets the defaults of place and adds a fault for each required field that did not come.
func (o *object) finish(place string) {
	for i := range o.in.fields {
		f := &o.in.fields[i]
		switch {
		case !f.at(place) || f.exclusive && !o.seen[i]:
		case o.seen[i] && o.exclusive != "" && !f.exclusive:
			o.add(&fault{"value_error", "cannot be combined with " + o.exclusive}, f.name)
		case o.seen[i] || o.exclusive != "":
		case f.def != "":
			o.setText(f, f.def)
		case !f.optional:
			o.add(&fault{"missing", "is required"}, f.name)
		}
	}
}

// readBody reads the body in the media type that it declares and the input takes.
func (s *server) readBody(w *responseWriter, r *http.Request, o *object) error {
	media, boundary, err := mediaType(r.Header)
	form := media == "application/x-www-form-urlencoded" || media == "multipart/form-data"
	if err != nil || media != "application/json" && !(form && o.in.form) {
		want := "application/json"
		if o.in.form {
			want += ", application/x-www-form-urlencoded or multipart/form-data"
		}
		return errUnsupportedMedia.withDetail("Unsupported Content-Type: the body must be " + want +
			", in UTF-8 and not compressed.")
	}
	body, err := s.receive(w, r, o.in.limit)
	if err != nil {
		return err
	}
	place := "form"
	switch media {
	case "application/json":
		place = "json"
		if o.readJSON(body); o.syntax != "" {
			return errMalformedBody.withDetail(o.syntax)
		}
	case "multipart/form-data":
		err = o.readMultipart(body, boundary)
	default:
		err = o.readPairs("form", string(body))
	}
	if err != nil {
		return errMalformedBody.withDetail("The body is not a valid form.")
	}
	o.finish(place)
	return nil
}

// mediaType returns the media type of a body and, for multipart, its boundary. It fails where
// there is more than one Content-Type, a charset other than UTF-8, or a compression. Other
// parameters have no meaning for these types and are ignored.
func mediaType(h http.Header) (media, boundary string, err error) {
	media, params, err := mime.ParseMediaType(strings.Join(h.Values("Content-Type"), ","))
	charset := strings.ReplaceAll(strings.ToLower(params["charset"]), "-", "")
	coding := h.Get("Content-Encoding")
	if err != nil || charset != "" && charset != "utf8" ||
		coding != "" && !strings.EqualFold(coding, "identity") {
		return "", "", errors.Join(errUnsupportedMedia, err)
	}
	return media, params["boundary"], nil
}

// receive reads a body of up to limit bytes. What is longer than maxBody takes as many bytes of
// s.bodies, once that many have come; a body that comes more slowly than minRate is cut off. So the
// memory of bodies is bounded, in total and per user, however many connections send them.
func (s *server) receive(w *responseWriter, r *http.Request, limit int64) ([]byte, error) {
	tooLarge := errBodyTooLarge.withDetail(fmt.Sprintf("The body must have at most %d bytes.", limit))
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	var body bytes.Buffer
	body.Grow(int(min(max(r.ContentLength, 0), maxBody)) + bytes.MinRead)
	conn := http.NewResponseController(w.ResponseWriter)
	last := time.Now().Add(largeTimeout)
	if limit > maxBody {
		conn.SetWriteDeadline(last.Add(writeTimeout))
	}
	for part := int64(maxBody + 1); ; part = minRate * int64(rateWindow.Seconds()) {
		if limit > maxBody {
			conn.SetReadDeadline(earliest(last, time.Now().Add(rateWindow)))
		}
		part = min(part, limit+1-int64(body.Len()))
		n, err := body.ReadFrom(io.LimitReader(r.Body, part))
		switch {
		case err != nil:
			return nil, errMalformedBody.withDetail("The body ended too early, or came too slowly.")
		case int64(body.Len()) > limit:
			return nil, tooLarge
		case n < part: // the end
			w.unread = false
			conn.SetReadDeadline(time.Time{}) // it would end the context of a slow handler
			return body.Bytes(), nil
		case w.release == nil && body.Len() > maxBody:
			size := r.ContentLength
			if size < 0 {
				size = limit
			}
			if w.release, err = s.bodies.acquire(r.Context(), w.caller.key(), size); err != nil {
				return nil, err
			}
			body.Grow(int(size) - body.Len() + bytes.MinRead)
		}
	}
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ---- text: paths, queries, forms ----

// setText sets a field from a path segment, a query parameter or a form value.
func (o *object) setText(f *field, text string) {
	value, fault := f.parseText(text)
	if fault != nil {
		o.add(fault, f.name)
		return
	}
	assign(o.dst.FieldByIndex(f.index), value)
}

// parseText returns the value of a field from text, or what is wrong with it.
func (f *field) parseText(text string) (any, *fault) {
	switch f.kind {
	case kindInteger:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || strconv.FormatInt(n, 10) != text { // no sign, no leading zeros
			const msg = "must be a whole number in decimal digits, at most 9223372036854775807"
			return nil, &fault{"int_parsing", msg}
		}
		return f.number(n, float64(n))
	case kindBoolean:
		switch text {
		case "true", "True", "TRUE", "1":
			return true, nil
		case "false", "False", "FALSE", "0":
			return false, nil
		}
		return nil, &fault{"bool_parsing", "must be true or false"}
	case kindTime:
		return parseTime(text)
	case kindObject:
		rd := &reader{}
		rd.open([]byte(text))
		kind, raw := rd.dec.PeekKind(), rd.skip()
		if rd.end(); rd.syntax != "" || kind != '{' {
			return nil, &fault{"json_invalid", "must be a JSON object"}
		}
		return f.jsonObject(raw)
	}
	return f.string(text)
}

// readPairs reads a query or a form: name=value, joined by &, each percent-encoded. Empty pairs are
// ignored, and so is an empty text in a query, which means that the parameter is absent.
func (o *object) readPairs(place, text string) error {
	for pair := range strings.SplitSeq(text, "&") {
		name, value, hasValue := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(name)
		value, err2 := url.QueryUnescape(value)
		switch {
		case pair == "" || place == "query" && name == "_": // a cache buster
		case err1 != nil || err2 != nil || place == "query" && (!hasValue || name == ""):
			return errors.New("must be name=value pairs in percent-encoded UTF-8")
		default:
			f := o.find(place, name)
			if f != nil && (value != "" || place != "query" || f.kind != kindText || f.enum != nil) {
				o.setText(f, value)
			}
		}
	}
	return nil
}

// readMultipart reads a form of parts, each of which must be a text.
func (o *object) readMultipart(body []byte, boundary string) error {
	parts := multipart.NewReader(bytes.NewReader(body), boundary)
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		value, err := io.ReadAll(part)
		if err != nil {
			return err
		}
		f := o.find("form", part.FormName())
		if part.FileName() != "" {
			o.add(&fault{"string_type", "holds a file; only texts are accepted"})
		} else if f != nil {
			o.setText(f, string(value))
		}
	}
}

// ---- JSON ----

// open starts to read a JSON text in UTF-8. A byte order mark before it is skipped.
func (rd *reader) open(text []byte) {
	rd.text = bytes.TrimPrefix(text, []byte("\ufeff"))
	rd.dec = jsontext.NewDecoder(bytes.NewBuffer(rd.text), lenient)
	if !utf8.Valid(rd.text) {
		rd.syntax = "The body is not valid UTF-8."
	}
}

// lenient lets the fields themselves report repeated names and lone surrogates.
var lenient = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// fail notes a syntax error: where it is, never what stands there.
func (rd *reader) fail(err error) {
	if rd.syntax != "" || err == nil {
		return
	}
	at := int64(len(rd.text))
	if syntactic, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		at = syntactic.ByteOffset
	}
	rd.syntax = fmt.Sprintf("The body is not one valid JSON value: the error is at byte %d.", at+1)
}

// end notes what follows the value as a syntax error.
func (rd *reader) end() {
	if _, err := rd.dec.ReadToken(); err == nil {
		rd.fail(&jsontext.SyntacticError{ByteOffset: rd.dec.InputOffset() - 1})
	} else if err != io.EOF {
		rd.fail(err)
	}
}

// scalar returns the text of the string, number or literal that comes next; nil after an error.
func (rd *reader) scalar() []byte {
	raw, err := rd.dec.ReadValue()
	rd.fail(err)
	return raw
}

// skip returns the text of the value that comes next, of any kind; nil after an error.
func (rd *reader) skip() []byte {
	start := rd.dec.InputOffset()
	if err := rd.dec.SkipValue(); err != nil {
		rd.fail(err)
		return nil
	}
	return bytes.TrimLeft(rd.text[start:rd.dec.InputOffset()], " \t\r\n:,")
}

// readJSON reads a text that must be one JSON object.
func (o *object) readJSON(text []byte) {
	o.open(text)
	if o.dec.PeekKind() == '{' {
		o.members()
	} else {
		o.skip()
		o.add(&fault{"object_type", "must be a JSON object"})
	}
	o.end()
}

// members reads the members of the object that comes next.
func (o *object) members() {
	_, err := o.dec.ReadToken()
	o.fail(err)
	for o.syntax == "" && o.dec.PeekKind() != '}' {
		literal := o.scalar()
		if literal == nil {
			return
		}
		name, _ := unquote(literal) // what is no text is "", the name of no field
		var f *field
		if len(o.faults) < maxFaults {
			f = o.find("json", name)
		}
		if f == nil {
			o.skip()
			continue
		}
		o.loc = append(o.loc, f.name)
		o.value(f, o.dst.FieldByIndex(f.index))
		o.loc = o.loc[:len(o.loc)-1]
	}
	_, err = o.dec.ReadToken()
	o.fail(err)
}

// wrongType is what a 422 says of a value that is not of the field's kind.
var wrongType = map[string]fault{
	kindText:    {"string_type", "must be a string"},
	kindInteger: {"int_type", "must be a whole number"},
	kindNumber:  {"float_type", "must be a number"},
	kindBoolean: {"bool_type", "must be true or false"},
	kindTime:    {"datetime_type", "must be a time as a string"},
	kindObject:  {"dict_type", "must be an object"},
	kindVector:  {"list_type", "must be an array of numbers"},
	kindList:    {"list_type", "must be an array"},
	kindStruct:  {"object_type", "must be an object"},
}

// jsonKinds are the kinds of JSON value that a field of each kind is read from.
var jsonKinds = map[string]string{kindText: `"`, kindInteger: "0", kindNumber: "0", kindBoolean: "tf",
	kindTime: `"`, kindObject: "{", kindVector: "[", kindList: "[", kindStruct: "{"}

// value reads the value that comes next into dst, of the type of field f.
func (rd *reader) value(f *field, dst reflect.Value) {
	next := rd.dec.PeekKind()
	switch {
	case next == 'n' && f.nullable:
		rd.scalar()
		dst.Field(0).SetBool(true)
		return
	case strings.IndexByte(jsonKinds[f.kind], byte(next)) < 0:
		wrong := wrongType[f.kind]
		if f.nullable {
			wrong.msg += " or null"
		}
		rd.skip()
		rd.add(&wrong)
		return
	case f.kind == kindList:
		rd.list(f, dst)
		return
	case f.kind == kindStruct:
		if dst.Kind() == reflect.Pointer {
			dst.Set(reflect.New(dst.Type().Elem()))
			dst = dst.Elem()
		}
		o := newObject(rd, f.object, dst)
		o.members()
		o.finish("json")
		return
	}
	raw := rd.skip()
	if raw == nil {
		return
	}
	value, fault := f.parseJSON(raw)
	if fault != nil {
		rd.add(fault)
		return
	}
	assign(dst, value)
}

// parseJSON returns the value of a field from JSON of the right kind, or what is wrong with it.
func (f *field) parseJSON(raw []byte) (any, *fault) {
	switch f.kind {
	case kindVector:
		v, refusal := parseVector(raw, int(f.max))
		if refusal != "" {
			return nil, &fault{"value_error", refusal}
		}
		return v, nil
	case kindObject:
		return f.jsonObject(raw)
	case kindBoolean:
		return raw[0] == 't', nil
	case kindInteger:
		n, err := strconv.ParseInt(string(raw), 10, 64)
		x := float64(n)
		if err != nil { // 77.0 and 1e2 are integers of JSON Schema; 2^53 is where float64 is exact
			x, err = strconv.ParseFloat(string(raw), 64)
			if n = int64(x); err != nil || x != math.Trunc(x) || math.Abs(x) > 1<<53 {
				return nil, &fault{"int_parsing", "must be a whole number of 64 bits"}
			}
		}
		return f.number(n, x)
	case kindNumber:
		x, err := strconv.ParseFloat(string(raw), 64)
		if err != nil {
			return nil, &fault{"float_parsing", "must be a number of 64 bits"}
		}
		return f.number(x, x)
	}
	text, refusal := unquote(raw)
	switch {
	case refusal != "":
		return nil, &fault{"string_unicode", refusal}
	case f.kind == kindTime:
		return parseTime(text)
	}
	return f.string(text)
}

// list reads an array into the slice dst, or into a new slice that the pointer dst gets.
func (rd *reader) list(f *field, dst reflect.Value) {
	if dst.Kind() == reflect.Pointer {
		dst.Set(reflect.New(dst.Type().Elem()))
		dst = dst.Elem()
	}
	dst.Set(reflect.MakeSlice(dst.Type(), 0, 0))
	n := int64(0)
	_, err := rd.dec.ReadToken()
	for rd.fail(err); rd.syntax == "" && rd.dec.PeekKind() != ']'; n++ {
		if n >= f.max || len(rd.faults) == maxFaults {
			rd.skip()
			continue
		}
		dst.Set(reflect.Append(dst, reflect.Zero(dst.Type().Elem())))
		rd.loc = append(rd.loc, n)
		rd.value(f.items, dst.Index(int(n)))
		rd.loc = rd.loc[:len(rd.loc)-1]
	}
	_, err = rd.dec.ReadToken()
	rd.fail(err)
	switch {
	case n > f.max:
		rd.add(&fault{"too_long", fmt.Sprintf("must have at most %d items", f.max)})
	case n < f.min:
		rd.add(&fault{"too_short", fmt.Sprintf("must have at least %d items", f.min)})
	}
}

// assign stores a value in a field, through the pointer or the nullable that makes it optional.
func assign(dst reflect.Value, value any) {
	v := reflect.ValueOf(value)
	switch {
	case dst.Kind() == reflect.Pointer:
		dst.Set(reflect.New(v.Type()))
		dst.Elem().Set(v)
	case dst.Kind() == reflect.Struct && dst.Type() != v.Type(): // a nullable
		dst.Field(0).SetBool(true)
		assign(dst.Field(1), value)
	default:
		dst.Set(v)
	}
}

// unquote returns the text of a valid JSON string, or why it is refused.
func unquote(literal []byte) (text, refusal string) {
	if literal[0] != '"' {
		return "", "must be a string"
	}
	if bytes.IndexByte(literal, '\\') < 0 {
		return string(literal[1 : len(literal)-1]), ""
	}
	decoded, err := jsontext.AppendUnquote(nil, literal)
	if err != nil {
		return "", "must not contain half a surrogate pair"
	}
	return string(decoded), ""
}
