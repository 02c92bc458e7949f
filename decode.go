package main

// decode.go reads paths, queries, forms and JSON into the inputs of handlers, strictly. It collects
// the faults, so that the client sees all at once. JSON is read token by token, without recursion:
// the depth of a body must not grow the stack of its goroutine.

import (
	"bytes"
	"cmp"
	"encoding/json/jsontext"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const maxFaults = 100 // listed in one answer: a body of 16 MiB can have a million

const invalidForm = "The body is not a valid form."

var repeated = fault{"repeated", "is given more than once"}

// fieldError is one entry of a 422's "errors".
type fieldError struct {
	Loc  []any  `json:"loc"`
	Msg  string `json:"msg"`
	Type string `json:"type"`
}

// reader reads one request and collects the faults.
type reader struct {
	loc    []any // of the value that is being read
	faults []fieldError
	text   string // the JSON that dec reads
	dec    *jsontext.Decoder
	err    error // the first error of dec
}

func (rd *reader) add(bad fault, steps ...any) {
	if bad.msg != "" && len(rd.faults) < maxFaults {
		rd.faults = append(rd.faults, fieldError{slices.Concat(rd.loc, steps), bad.msg, bad.kind})
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

// find returns the field called name of source and marks it as seen. For a repeated or an unknown
// one it adds a fault and returns nil; forms may hold unknown ones (RFC 6749, section 3.2).
func (o *object) find(source, name string) *field {
	for i, f := range o.in.fields {
		switch {
		case f.name != name || !f.isFrom(source):
			continue
		case o.seen[i]:
			o.add(repeated, f.name)
			return nil
		case f.exclusive:
			o.exclusive = f.name
		}
		o.seen[i] = true
		return f
	}
	if source != "form" && len(o.faults) < maxFaults {
		known := strings.Join(o.in.names(source), ", ")
		o.add(fault{"extra_forbidden", "holds an unknown field; known are: " + known})
	}
	return nil
}

// finish sets the defaults of source and adds a fault for each required field that did not come.
func (o *object) finish(source string) {
	for i, f := range o.in.fields {
		switch {
		case !f.isFrom(source):
		case o.seen[i] && o.exclusive != "" && !f.exclusive:
			o.add(fault{"value_error", "cannot be combined with " + o.exclusive}, f.name)
		case o.seen[i] || o.exclusive != "" || f.exclusive: // not missing
		case f.def != "":
			o.setText(f, f.def)
		case !f.optional:
			o.add(fault{"missing", "is required"}, f.name)
		}
	}
}

// setText sets a field from a path segment, a query parameter or a value of a form.
func (o *object) setText(f *field, text string) {
	o.add(f.set(o.dst.FieldByIndex(f.index), text, false), f.name)
}

// set stores the value of text in dst.
func (f *field) set(dst reflect.Value, text string, isJSON bool) fault {
	value, bad := f.parse(text, isJSON)
	if bad.msg == "" {
		f.target(dst).Set(reflect.ValueOf(value))
	}
	return bad
}

// target returns what holds the value of dst, behind a nullable or a pointer.
func (f *field) target(dst reflect.Value) reflect.Value {
	if f.nullable {
		dst.Field(0).SetBool(true)
		dst = dst.Field(1)
	}
	if dst.Kind() == reflect.Pointer {
		dst.Set(reflect.New(dst.Type().Elem()))
		dst = dst.Elem()
	}
	return dst
}

// readPairs reads a query or form: name=value, joined by &, percent-encoded. Empty pairs are
// ignored, as are those without a value in a form (RFC 6749, section 3.2). A malformed pair is a
// fault of a query, and the refusal of a form.
func (o *object) readPairs(source, text string) (refusal string) {
	defer o.finish(source)
	query := source == "query"
	for pair := range strings.SplitSeq(text, "&") {
		name, value, hasValue := strings.Cut(pair, "=")
		name, nameErr := url.QueryUnescape(name)
		value, valueErr := url.QueryUnescape(value)
		switch {
		case pair == "" || query && name == "_": // a cache buster
			continue
		case nameErr != nil || valueErr != nil || query && (!hasValue || name == ""):
			o.add(fault{"query_malformed", "must be name=value pairs in percent-encoded UTF-8"})
			return invalidForm
		case !query && value == "":
			continue
		}
		switch f := o.find(source, name); {
		case f == nil:
		case value == "" && query && f.kind == kindText && f.enum == nil: // absent
		case f.kind == kindList:
			o.setList(f, value)
		default:
			o.setText(f, value)
		}
	}
	return ""
}

// setList reads a list in a query: items joined by commas, or a JSON array.
func (o *object) setList(f *field, text string) {
	valid := utf8.ValidString(text)
	if !strings.HasPrefix(text, "[") {
		items := strings.Split(text, ",")
		for i, item := range items {
			if f.items.kind == kindText {
				items[i] = quote(item)
			}
		}
		text = "[" + strings.Join(items, ",") + "]"
	}
	rd := &reader{loc: o.loc, text: text, dec: jsontext.NewDecoder(strings.NewReader(text))}
	rd.readValue(f, o.dst.FieldByIndex(f.index), f.name)
	if rd.readToken(); rd.err != io.EOF || !valid {
		rd.faults = nil
		rd.add(fault{"list_parsing", "must be items joined by commas, or a JSON array"}, f.name)
	}
	o.faults = append(o.faults, rd.faults...)
}

// readParts reads the parts of a form, which must be texts, as pairs. Nothing goes to a file.
func (o *object) readParts(body []byte, boundary string) (refusal string) {
	form, err := multipart.NewReader(bytes.NewReader(body), boundary).ReadForm(int64(len(body)))
	if err != nil {
		return invalidForm
	}
	if len(form.File) > 0 {
		o.add(fault{"string_type", "holds a file; only texts are accepted"})
	}
	return o.readPairs("form", url.Values(form.Value).Encode())
}

// readBody reads the body in the media type that it declares, once, and that the input takes.
func (s *server) readBody(w *responseWriter, r *http.Request, o *object) error {
	accepted := []string{"application/json"}
	if o.in.form {
		accepted = append(accepted, "application/x-www-form-urlencoded", "multipart/form-data")
	}
	media, params, err := mime.ParseMediaType(strings.Join(r.Header.Values("Content-Type"), ","))
	charset := strings.ToLower(params["charset"])
	encoded := func(coding string) bool {
		return coding != "" && !strings.EqualFold(coding, "identity")
	}
	if err != nil || !slices.Contains(accepted, media) ||
		!slices.Contains([]string{"", "utf-8", "utf8"}, charset) ||
		slices.ContainsFunc(r.Header.Values("Content-Encoding"), encoded) {
		return errUnsupportedMedia.withDetail("Unsupported Content-Type: the body must be " +
			strings.Join(accepted, " or ") + ", in UTF-8 and not compressed.")
	}
	body, err := s.receive(w, r, o.in.limit)
	if err != nil {
		return err
	}
	refusal := ""
	switch media {
	case "application/json":
		refusal = o.readJSON(body)
	case "multipart/form-data":
		refusal = o.readParts(body, params["boundary"])
	default:
		refusal = o.readPairs("form", string(body))
	}
	if refusal != "" {
		return errMalformedBody.withDetail(refusal)
	}
	return nil
}

// receive reads a body of up to limit bytes. A body takes its bytes of s.bodies once more than
// maxBody have come, and is cut off if it comes more slowly than minRate. So the memory of
// bodies is bounded, in total and per user, however many connections send them.
func (s *server) receive(w *responseWriter, r *http.Request, limit int64) ([]byte, error) {
	tooLarge := func() error {
		return errBodyTooLarge.withDetail(fmt.Sprint("The body is longer than ", limit, " bytes."))
	}
	if r.ContentLength > limit {
		return nil, tooLarge()
	}
	var body bytes.Buffer
	body.Grow(int(min(max(r.ContentLength, 0), maxBody)) + bytes.MinRead)
	last := time.Now().Add(largeTimeout)
	for part := int64(maxBody + 1); ; part = minRate * int64(rateWindow.Seconds()) {
		if limit > maxBody {
			w.conn().SetReadDeadline(time.Now().Add(min(rateWindow, time.Until(last))))
		}
		n, err := body.ReadFrom(io.LimitReader(r.Body, min(part, limit+1-int64(body.Len()))))
		switch {
		case err != nil:
			return nil, errMalformedBody.withDetail("The body ended too early, or came too slowly.")
		case int64(body.Len()) > limit:
			return nil, tooLarge()
		case n < part: // the end
			w.unread = false
			w.conn().SetReadDeadline(time.Time{}) // it would end the context of a slow handler
			return body.Bytes(), nil
		case w.releaseBody == nil: // the first part of a long body
			size := cmp.Or(max(r.ContentLength, 0), limit)
			w.releaseBody, err = s.bodies.acquire(r.Context(), w.caller.key(), size)
			if err != nil {
				return nil, err
			}
			body.Grow(int(size) - body.Len() + bytes.MinRead)
		}
	}
}

// discard reads the rest of a refused body after the answer is sent. If a connection closes with
// bytes unread, as behind nginx, which uses a new one for each request, a TCP reset arrives before
// the answer is read, and the client sees 502 instead of 401. A client that waits for 100 Continue
// sends no body: then net/http lets nothing be read.
func (w *responseWriter) discard(r *http.Request) {
	w.conn().Flush()
	rest := max(unreadTimeout, requestTimeout-time.Since(w.start))
	w.conn().SetReadDeadline(time.Now().Add(rest))
	io.CopyN(io.Discard, r.Body, maxUnread)
}

// ---- JSON ----

// readJSON reads one JSON object in UTF-8 and skips a byte order mark. The decoder accepts repeated
// names and lone surrogates: the fields refuse them with a location. A refusal is of the whole
// body; the faults do not count then.
func (o *object) readJSON(text []byte) (refusal string) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if !utf8.Valid(text) {
		return "The body is not valid UTF-8."
	}
	o.text = string(text)
	o.dec = jsontext.NewDecoder(bytes.NewBuffer(text),
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if o.dec.PeekKind() == '{' {
		o.readMembers()
	} else {
		o.next()
		o.add(fault{"object_type", kinds[kindStruct].wrong})
		o.finish("json")
	}
	offset := o.dec.InputOffset()
	if o.readToken(); o.err == io.EOF && offset > 0 { // 0: the body is empty
		return ""
	}
	if syntactic, ok := errors.AsType[*jsontext.SyntacticError](o.err); ok {
		offset = syntactic.ByteOffset
	}
	return fmt.Sprintf("The body is not one valid JSON value: the error is at byte %d.", offset+1)
}

// next returns the text of the next name or value; "" after an error.
func (rd *reader) next() string {
	start := rd.dec.InputOffset() // before the separator
	if err := rd.dec.SkipValue(); err != nil {
		rd.err = cmp.Or(rd.err, err)
		return ""
	}
	return strings.TrimLeft(rd.text[start:rd.dec.InputOffset()], " \t\r\n:,")
}

// readToken reads a bracket or the end.
func (rd *reader) readToken() {
	_, err := rd.dec.ReadToken()
	rd.err = cmp.Or(rd.err, err)
}

// more reports whether an item or a name comes next; if not, it reads the bracket that does.
func (rd *reader) more() bool {
	if kind := rd.dec.PeekKind(); rd.err == nil && kind != ']' && kind != '}' {
		return true
	}
	rd.readToken()
	return false
}

// readMembers reads the members of the next object.
func (o *object) readMembers() {
	for o.readToken(); o.more(); {
		name, _ := unquote(o.next()) // a fault is "", the name of no field
		if f := o.find("json", name); f != nil {
			o.readValue(f, o.dst.FieldByIndex(f.index), f.name)
		} else {
			o.next()
		}
	}
	o.finish("json")
}

// readValue reads the next value into dst. step is the last one of its location.
func (rd *reader) readValue(f *field, dst reflect.Value, step any) {
	rd.loc = append(rd.loc, step)
	kind := rd.dec.PeekKind()
	var bad fault
	switch {
	case kind == 'n' && f.nullable:
		dst.Field(0).SetBool(true)
		rd.next()
	case !strings.ContainsRune(kinds[f.kind].jsonKinds, rune(kind)):
		bad = fault{kinds[f.kind].fault + "_type", kinds[f.kind].wrong}
		if f.nullable {
			bad.msg += " or null"
		}
		rd.next()
	case f.items != nil:
		bad = rd.readList(f, f.target(dst))
	case f.nested != nil:
		newObject(rd, f.nested, f.target(dst)).readMembers()
	default:
		if text := rd.next(); text != "" {
			bad = f.set(dst, text, true)
		}
	}
	rd.add(bad)
	rd.loc = rd.loc[:len(rd.loc)-1]
}

// readList reads an array into the slice dst, or an object into the map dst. The location of a
// member of a map is its number: its name, the client's, is not echoed.
func (rd *reader) readList(f *field, dst reflect.Value) fault {
	isMap := f.kind == kindMap
	if isMap {
		dst.Set(reflect.MakeMap(dst.Type()))
	} else {
		dst.Set(reflect.MakeSlice(dst.Type(), 0, 0))
	}
	n := 0
	for rd.readToken(); rd.more(); n++ {
		name, bad := "", fault{}
		if isMap {
			name, bad = unquote(rd.next())
		}
		if f.maxText != "" && int64(n) >= f.max || len(rd.faults) == maxFaults {
			rd.next() // only counted
			continue
		}
		item := reflect.New(dst.Type().Elem()).Elem()
		if rd.readValue(f.items, item, n); !isMap {
			dst.Set(reflect.Append(dst, item))
			continue
		}
		key := reflect.ValueOf(name)
		if dst.MapIndex(key).IsValid() {
			bad = repeated
		}
		rd.add(bad, n)
		dst.SetMapIndex(key, item)
	}
	return f.bounded(float64(n), "too_short", "too_long", "have at %s %s items")
}

// unquote returns the text of a valid JSON string.
func unquote(literal string) (string, fault) {
	if !strings.Contains(literal, `\`) {
		return strings.Trim(literal, `"`), fault{}
	}
	text, err := jsontext.AppendUnquote(nil, literal)
	if err != nil || bytes.IndexByte(text, 0) >= 0 {
		return "", fault{"string_unicode", "must not contain U+0000 or half a surrogate pair"}
	}
	return string(text), fault{}
}
