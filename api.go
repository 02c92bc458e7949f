package main

// api.go is the gate that every request of the route table goes through: authenticate, read, call,
// answer. A handler is an ordinary function from (context, caller, input) to (output, error); what it
// takes and gives is declared by its types, and it never sees a request or a response.

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// access says who may call a route. Its zero value is nobody: a row that forgets it stops the start.
type access int

const (
	nobody  access = iota
	anyone         // no token is looked at
	users          // a living session of an active account
	admins         // the same, of an admin
	holders        // as users; but the handler's own statement sees to it, where the gate need not: see answer
)

// route is one row of the table.
type route struct {
	method, path string // the path below the API prefix
	access       access
	status       int // of success
	endpoint     endpoint
	summary      string     // a phrase; what follows a colon and a space is the description
	refusals     []*problem // beyond those that the gate gives by itself: see problems
}

// endpoint is a handler with its name and types.
type endpoint struct {
	name  string // of the method, as in listUsers
	input *input
	in    reflect.Type
	out   reflect.Type
	call  func(ctx context.Context, c *caller, in any) (any, error)
}

// handle makes an endpoint of a method of server.
func handle[In, Out any](f func(context.Context, *caller, In) (Out, error)) endpoint {
	name := runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name() // main.(*server).listUsers-fm
	name = strings.TrimSuffix(name[strings.LastIndex(name, ".")+1:], "-fm")
	t := reflect.TypeFor[In]()
	in := compileInput(t)
	return endpoint{name, &in, t, reflect.TypeFor[Out](), func(ctx context.Context, c *caller, in any) (any, error) {
		return f(ctx, c, *in.(*In))
	}}
}

// problems are all that the row can answer: those that the gate gives, and its own.
func (rt *route) problems() []*problem {
	all := []*problem{errInvalidRequest, errUnsupportedMedia, errInternal}
	if rt.endpoint.input.media != nil {
		all = append(all, errMalformedBody, errBodyTooLarge)
		if rt.endpoint.input.limit > maxBody {
			all = append(all, errBusy)
		}
	}
	if rt.access != anyone {
		all = append(all, errNotAuthenticated, errInvalidToken, errUnavailable)
	}
	if rt.access == admins {
		all = append(all, errAdminRequired)
	}
	return append(all, rt.refusals...)
}

// none is the input of a handler that takes nothing, or the output of one that gives nothing.
type none struct{}

// caller is who makes a request: what the token says and the account that it is of, both zero on a public route, and
// where the request comes from. Of the account only the ID is known where the gate has left the look-up to the handler.
type caller struct {
	user
	ticket
	client    netip.Addr
	agent     string // the User-Agent header, cut and cleaned
	requestID string
}

// page is an output that is one page of a list, a slice. Next is the id of its last item where more follows, else 0.
type page[List any] struct {
	Items List
	Next  int64
}

// pager is any page.
type pager interface {
	content() (items any, next int64)
}

// pageOf is the page of list, which has one more than limit where more follows.
func pageOf[List ~[]T, T any](list List, limit int64, id func(T) int64) page[List] {
	if int64(len(list)) <= limit {
		return page[List]{Items: list}
	}
	return page[List]{list[:limit], id(list[limit-1])}
}

func (p page[List]) content() (items any, next int64) { return p.Items, p.Next }

// problem is an error that clients may see: RFC 9457's document. Its code is stable. Problems are the
// closed set below; any other error is internal, logged in full and answered as errInternal.
type problem struct {
	status int
	code   string
	detail string
	header [2]string // name and value of the header that goes with it, if any
	errors []fieldError
}

func (p *problem) Error() string { return p.code + ": " + p.detail }

// because is p with another detail.
func (p *problem) because(detail string) *problem {
	q := *p
	q.detail = detail
	return &q
}

var (
	challenge        = [2]string{"WWW-Authenticate", "Bearer"}
	invalidChallenge = [2]string{"WWW-Authenticate", `Bearer error="invalid_token"`} // RFC 6750, section 3

	errMalformedBody      = &problem{status: 400, code: "malformed_body", detail: "The body is not one valid JSON value, or not a form."}
	errNotAuthenticated   = &problem{status: 401, code: "not_authenticated", detail: "Not authenticated: send a bearer token in the Authorization header.", header: challenge}
	errInvalidToken       = &problem{status: 401, code: "invalid_token", detail: "The access token is invalid, has expired, or its session has ended.", header: invalidChallenge}
	errInvalidCredentials = &problem{status: 401, code: "invalid_credentials", detail: "Incorrect e-mail or password.", header: challenge}
	errInvalidRefresh     = &problem{status: 401, code: "invalid_refresh_token", detail: "The refresh token is invalid, has expired, or its session has ended.", header: invalidChallenge}
	errRefreshReused      = &problem{status: 401, code: "refresh_reused", detail: "The refresh token was used before; its session has been ended. Log in again.", header: invalidChallenge}
	errAdminRequired      = &problem{status: 403, code: "admin_required", detail: "Not enough permissions: this needs an admin."}
	errAccountInactive    = &problem{status: 403, code: "account_inactive", detail: "The account is deactivated."}
	errRegistrationClosed = &problem{status: 403, code: "registration_closed", detail: "Registration is closed; an admin can create accounts."}
	errWrongPassword      = &problem{status: 403, code: "wrong_password", detail: "The current password is wrong."}
	errSelfDelete         = &problem{status: 403, code: "self_delete", detail: "An admin cannot delete the own account here; use DELETE /users/me."}
	errNotFound           = &problem{status: 404, code: "not_found", detail: "There is nothing here under this address."}
	errMethodNotAllowed   = &problem{status: 405, code: "method_not_allowed", detail: "The resource does not take this method; Allow lists those it does."}
	errEmailTaken         = &problem{status: 409, code: "email_taken", detail: "The e-mail address is already registered."}
	errLastAdmin          = &problem{status: 409, code: "last_admin", detail: "At least one active admin must remain."}
	errBodyTooLarge       = &problem{status: 413, code: "body_too_large", detail: "The body is too large."}
	errUnsupportedMedia   = &problem{status: 415, code: "unsupported_media_type", detail: "The body is not of a media type that is taken here."}
	errInvalidRequest     = &problem{status: 422, code: "invalid_request", detail: "The request is invalid; errors says where and why."}
	errEmbeddingRequired  = &problem{status: 422, code: "embedding_required", detail: "An embedding is required: the service has no provider that makes one of a text.", errors: []fieldError{{[]any{"body", "embedding"}, "is required here", "missing"}}}
	errInternal           = &problem{status: 500, code: "internal_error", detail: "Something went wrong here; the request_id names it in the log."}
	errEmbeddingsFailed   = &problem{status: 502, code: "embeddings_failed", detail: "The provider of embeddings refused the text, or answered what is no embedding; nothing was stored."}
	errUnavailable        = &problem{status: 503, code: "database_unavailable", detail: "The database is not available; try again.", header: [2]string{"Retry-After", "1"}}
	errBusy               = &problem{status: 503, code: "busy", detail: "Too many passwords are being checked; try again.", header: [2]string{"Retry-After", "2"}}
	errEmbeddingsAway     = &problem{status: 503, code: "embeddings_unavailable", detail: "The provider of embeddings is not available; nothing was stored. Try again.", header: [2]string{"Retry-After", "5"}}
	errDraining           = &problem{status: 503, code: "shutting_down", detail: "This server is shutting down.", header: [2]string{"Retry-After", "1"}}
)

// invalid is the 422 for these faults.
func invalid(faults ...fieldError) *problem {
	p := *errInvalidRequest
	p.errors = faults
	var parts []string
	for _, f := range faults {
		loc := strings.Trim(fmt.Sprint(f.Loc), "[]") // with spaces between the steps, which have none
		parts = append(parts, strings.ReplaceAll(loc, " ", ".")+" "+f.Msg)
	}
	p.detail = "The request is invalid: " + strings.Join(parts, "; ") + "."
	return &p
}

// gate makes the HTTP handler of a row.
func (s *server) gate(rt route) http.HandlerFunc {
	if rt.access == nobody || rt.status == 0 || rt.summary == "" {
		panic(rt.method + " " + rt.path + ": a row needs access, status and summary")
	}
	stats := &routeStats{method: rt.method, route: rt.path}
	s.stats.routes = append(s.stats.routes, stats)
	return func(w http.ResponseWriter, r *http.Request) {
		x := w.(*exchange)
		x.route, x.stats = rt.path, stats
		out, err := s.answer(x, r, &rt)
		if err != nil {
			s.fail(x, err)
			return
		}
		s.reply(x, r, rt.status, out)
	}
}

func (s *server) answer(x *exchange, r *http.Request, rt *route) (any, error) {
	c := &x.caller
	c.agent = cleanAgent(r.UserAgent())
	// A short request of a holder saves a query: its statement finds nothing where the session has ended. What costs
	// more than a statement, a long body or an embedding, is for living sessions only.
	late := rt.access == holders && s.embedder == nil && r.ContentLength >= 0 && r.ContentLength <= bulkyBody
	if rt.access != anyone {
		err := s.readToken(r, c)
		if err == nil && !late {
			err = s.authenticate(c)
		}
		if err == nil && rt.access == admins && !c.IsAdmin {
			err = errAdminRequired
		}
		if err != nil {
			return nil, err
		}
	}
	value := reflect.New(rt.endpoint.in)
	if err := read(x, r, rt.endpoint.input, value.Interface()); err != nil {
		if late {
			err = cmp.Or(s.authenticate(c), err)
		}
		return nil, err
	}
	return rt.endpoint.call(r.Context(), c, value.Interface())
}

// read fills dst from the path, the query and the body.
func read(x *exchange, r *http.Request, in *input, dst any) error {
	if len(in.fields) == 0 && r.URL.RawQuery == "" && r.ContentLength == 0 {
		return nil
	}
	rd := newReading(in, dst)
	for _, name := range in.names("path") {
		rd.take("path", name, func(f *field) *fieldError { return f.setText(rd.dst, r.PathValue(name)) })
	}
	if !rd.readPairs("query", r.URL.RawQuery) {
		rd.add(fieldError{[]any{"query"}, "must be name=value pairs in percent-encoded UTF-8", "query_malformed"})
	}
	rd.finish("query")
	if err := readBody(x, r, rd); err != nil {
		return err
	}
	if rd.faults != nil {
		return invalid(rd.faults...)
	}
	return nil
}

// readBody reads the body in the media type that it declares and the input takes.
func readBody(x *exchange, r *http.Request, rd *reading) error {
	want := rd.in.media
	if want == nil {
		if _, err := io.ReadFull(r.Body, make([]byte, 1)); err != io.EOF {
			return errUnsupportedMedia.because("This endpoint takes no body.")
		}
		return nil
	}
	media, params, err := mime.ParseMediaType(strings.Join(r.Header.Values("Content-Type"), ","))
	charset, other := params["charset"], len(params) > 1
	kind := places[media]
	if err != nil || !slices.Contains(want, media) || other || len(params) == 1 && !strings.EqualFold(charset, "utf-8") || r.Header.Get("Content-Encoding") != "" {
		return errUnsupportedMedia.because("The body must be " + strings.Join(want, " or ") + ", in UTF-8 and not compressed, and declared so in Content-Type.")
	}
	limit := rd.in.limit
	tooLarge := errBodyTooLarge.because(fmt.Sprintf("The body must have at most %d bytes.", limit))
	if r.ContentLength > limit {
		return tooLarge
	}
	if limit > maxBody {
		connection, now := http.NewResponseController(x.ResponseWriter), time.Now()
		connection.SetReadDeadline(now.Add(largeTimeout))
		connection.SetWriteDeadline(now.Add(largeTimeout + writeTimeout))
	}
	body, err := readAll(x, r, limit)
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return tooLarge
		}
		if errors.Is(err, errBusy) {
			return errBusy.because("Too many large bodies are being read; try again.")
		}
		return errMalformedBody.because("The body ended too early, or came too slowly.")
	}
	if kind == "form" {
		if !rd.readPairs("form", string(body)) {
			return errMalformedBody.because("The body is not a form of percent-encoded name=value pairs.")
		}
	} else if syntax := rd.readJSON(body); syntax != "" {
		return errMalformedBody.because(syntax)
	}
	rd.finish(kind)
	return nil
}

// readAll reads the body to its end, and fails beyond limit. What goes beyond bulkyBody takes a place, which the
// request keeps to its end, and is given memory only then.
func readAll(x *exchange, r *http.Request, limit int64) ([]byte, error) {
	body, length := http.MaxBytesReader(x.ResponseWriter, r.Body, limit), r.ContentLength // -1: unknown
	all := bytes.NewBuffer(make([]byte, 0, min(max(length, 0), bulkyBody+1)+bytes.MinRead))
	if n, err := all.ReadFrom(io.LimitReader(body, bulkyBody+1)); err != nil || n <= bulkyBody {
		return all.Bytes(), err
	}
	patience, cancel := context.WithTimeout(r.Context(), largeTimeout)
	defer cancel()
	if length < 0 {
		length = limit
	}
	select {
	case x.server.bulky <- struct{}{}:
		x.held = int(length)
	case <-patience.Done():
		return nil, cmp.Or(r.Context().Err(), error(errBusy))
	}
	all.Grow(x.held - all.Len() + bytes.MinRead)
	_, err := all.ReadFrom(body)
	return all.Bytes(), err
}

// reply writes a success: out as JSON, or nothing for none.
func (s *server) reply(x *exchange, r *http.Request, status int, out any) {
	if p, ok := out.(pager); ok {
		items, next := p.content()
		out = items
		if next != 0 {
			query := r.URL.Query()
			query.Del("skip")
			query.Set("after", strconv.FormatInt(next, 10))
			x.Header().Set("Link", "<"+r.URL.Path+"?"+query.Encode()+`>; rel="next"`)
		}
	}
	if made, ok := out.(interface{ location() string }); ok && status == http.StatusCreated && made.location() != "" {
		x.Header().Set("Location", s.cfg.APIPrefix+made.location())
	}
	if _, ok := out.(none); ok {
		x.WriteHeader(status)
		return
	}
	s.write(x, status, mediaJSON, out)
}

// fail writes err as a problem document. What is not the client's doing is logged with its cause.
func (s *server) fail(x *exchange, err error) {
	p, known := errors.AsType[*problem](err)
	switch {
	case errors.Is(err, context.Canceled):
		x.WriteHeader(statusClientGone) // nobody reads this
		return
	case !known:
		p = errInternal
		s.log.Error("internal_error", "request_id", x.caller.requestID, "route", x.route, "error", err.Error())
	case p.status > http.StatusInternalServerError: // the database, the hasher, the provider
		s.log.Warn(p.code, "request_id", x.caller.requestID, "route", x.route, "error", err.Error())
	}
	if p.header[0] != "" {
		x.Header().Set(p.header[0], p.header[1])
	}
	s.write(x, p.status, mediaProblem, p.document(x.caller.requestID))
}

// statusClientGone is nginx's for a client that has gone while it waited. It is in the log and in the metrics only.
const statusClientGone = 499

// The media types of answers, as a header's values.
var mediaJSON, mediaProblem = []string{"application/json"}, []string{"application/problem+json"}

// problemDocument is a problem on the wire.
type problemDocument struct {
	Type      string       `json:"type" doc:"Always about:blank: the code says it."`
	Title     string       `json:"title" doc:"The status in words."`
	Status    int          `json:"status"`
	Detail    string       `json:"detail" doc:"A sentence for people."`
	Code      string       `json:"code" doc:"A word for programs; it does not change. Beside those of the operations there are not_found and method_not_allowed, for what is no operation."`
	RequestID string       `json:"request_id" doc:"As in X-Request-Id: it finds the line in the log."`
	Errors    []fieldError `json:"errors,omitempty" doc:"With 422: what is wrong, and where."`
}

func (p *problem) document(requestID string) problemDocument {
	return problemDocument{"about:blank", http.StatusText(p.status), p.status, p.detail, p.code, requestID, p.errors}
}

// appender is an output that encodes itself, where encoding/json would be a large part of a request's cost.
type appender interface {
	appendJSON(b []byte) []byte
}

// write encodes first and only then sets headers, so that a failure to encode can still be answered.
func (s *server) write(x *exchange, status int, media []string, v any) {
	var body []byte
	if a, ok := v.(appender); ok {
		body = a.appendJSON(make([]byte, 0, 4<<10))
	} else if text, err := json.Marshal(v); err == nil {
		body = text
	} else {
		panic(err) // an output type that JSON cannot express: the recovery answers 500
	}
	x.length[0] = strconv.Itoa(len(body))
	h := x.Header()
	h["Content-Type"], h["Content-Length"] = media, x.length[:]
	x.WriteHeader(status)
	x.Write(body) // the client may have gone: the access line has the bytes
}
