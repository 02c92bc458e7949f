package main

// handler.go is what every row of the route table passes: authenticate, decode, call, encode. A
// handler is an ordinary function from (context, caller, input) to (output, error); its types
// declare what it takes and returns; it sees neither a request nor a response.

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	json "encoding/json/v2"
)

// access says who may call a route. A row that forgets it, the zero value, stops the start.
type access int

const (
	unset         access = iota
	anyone               // no token is read
	tokenEndpoint        // the same; refusals also have the members of RFC 6749, section 5.2
	users                // a token of a live session of an active account
	usersAlways          // the same, however many of their requests are in progress: see enter
	admins               // the same as users, of an admin
)

func (a access) isPublic() bool { return a <= tokenEndpoint }

// route is one row of the table.
type route struct {
	method, path string // the path below the API prefix
	access       access
	name         string // of the operation, in the OpenAPI document
	endpoint     endpoint
	status       int        // of success
	refusals     []*problem // beyond those of every row: see problems
	summary      string     // a phrase; what follows a colon and a space is the description
}

// endpoint is a handler with its types.
type endpoint struct {
	input  *input
	output reflect.Type
	call   func(ctx context.Context, w *responseWriter, r *http.Request) (any, error)
}

// handle makes an endpoint of a server's method.
func handle[In, Out any](f func(context.Context, *caller, In) (Out, error)) endpoint {
	in := compileInput(reflect.TypeFor[In]())
	call := func(ctx context.Context, w *responseWriter, r *http.Request) (any, error) {
		var value In
		if err := in.read(w, r, reflect.ValueOf(&value).Elem()); err != nil {
			return nil, err
		}
		return f(ctx, &w.caller, value)
	}
	return endpoint{in, reflect.TypeFor[Out](), call}
}

// problems returns the refusals of the steps below and the row's own; the tests fail on others.
func (rt *route) problems() []*problem {
	all := []*problem{errInvalidRequest, errInternal}
	if rt.endpoint.input.body {
		all = append(all, errMalformedBody, errBodyTooLarge, errUnsupportedMedia)
	}
	if !rt.access.isPublic() {
		all = append(all, errNotAuthenticated, errInvalidToken)
	}
	if rt.access == admins {
		all = append(all, errAdminRequired)
	}
	if rt.access > anyone {
		all = append(all, errBusy, errUnavailable)
	}
	return append(all, rt.refusals...)
}

// none is the input of a handler that takes nothing, or the output of one that returns nothing.
type none struct{}

// caller is who makes a request: the account and session of its token, both zero on a public route,
// and where the request comes from.
type caller struct {
	account
	session   int64
	ip        netip.Addr
	userAgent string // the header as it came: see cleanText
	requestID string

	releaseAnswer func() // gives back the memory of a large answer; nil: it has none
}

// page is one page of a list. next is the id of its last item where more follows, else 0.
type page[List any] struct {
	items List
	next  int64
}

// pager is a page of any list, for reply and openapi.go.
type pager interface {
	content() (items any, next int64)
}

func (p page[List]) content() (items any, next int64) { return p.items, p.next }

// pageOf returns the page of a list that has one item more than limit where more follows.
func pageOf[List ~[]T, T any](list List, limit int64, id func(T) int64) page[List] {
	if int64(len(list)) <= limit {
		return page[List]{items: list}
	}
	return page[List]{list[:limit], id(list[limit-1])}
}

// responseWriter is the response to one request, with what the access log says of both.
type responseWriter struct {
	http.ResponseWriter
	server         *server
	route          *route
	stats          *routeStats
	caller         caller
	start          time.Time
	status         int
	bytes          int
	unread         bool   // the request has a body that was not read to its end
	releaseRequest func() // gives back a unit of server.requests; or nil
	releaseBody    func() // gives back the memory of a large body; nil: it has none
}

// WriteHeader starts the client's time to read the answer, however long its making took. While
// draining it asks the client not to use the connection again.
func (w *responseWriter) WriteHeader(status int) {
	w.conn().SetWriteDeadline(time.Now().Add(writeTimeout))
	if w.status = status; w.server.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *responseWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.bytes += n
	return n, err
}

// conn sets the deadlines of the connection.
func (w *responseWriter) conn() *http.ResponseController {
	return http.NewResponseController(w.ResponseWriter)
}

// serve answers a request of a row: nothing is read of the body before its sender is known.
func (s *server) serve(w *responseWriter, r *http.Request) {
	info := &requestInfo{id: w.caller.requestID, route: w.route.path}
	ctx := context.WithValue(r.Context(), requestKey{}, info)
	err := s.authenticate(ctx, w, r)
	if err == nil {
		info.client = w.caller.key() // ctx points to info
		var out any
		if out, err = w.route.endpoint.call(ctx, w, r); err == nil {
			err = w.reply(ctx, r, out)
		}
	}
	if err != nil {
		w.fail(err)
	}
}

// authenticate is the one access check. It fills in the caller from the bearer token and refuses
// whom the row does not admit.
func (s *server) authenticate(ctx context.Context, w *responseWriter, r *http.Request) error {
	c := &w.caller
	if w.route.access.isPublic() {
		return nil
	}
	token, err := bearerToken(r)
	if err != nil {
		return err
	}
	ref, ok := s.keys.verifyAccess(token)
	if !ok {
		return errInvalidToken
	}
	if err := w.enter(ctx, ref.user); err != nil {
		return err
	}
	if c.account, err = s.store.sessionUser(ctx, ref); err != nil {
		return authError(err)
	}
	c.session = ref.session
	if w.route.access == admins && !c.IsAdmin {
		return errAdminRequired
	}
	return nil
}

// read fills dst from the path, the query and the body.
func (in *input) read(w *responseWriter, r *http.Request, dst reflect.Value) error {
	if len(in.fields) == 0 {
		return nil
	}
	o := newObject(&reader{}, in, dst)
	o.loc = []any{"path"}
	for _, f := range in.fields {
		if f.isFrom("path") {
			o.setText(f, r.PathValue(f.name))
		}
	}
	if in.query {
		o.loc = []any{"query"}
		o.readPairs("query", r.URL.RawQuery)
	}
	if in.body {
		o.loc = []any{"body"}
		w.leave()
		err := w.server.readBody(w, r, o)
		if err == nil {
			err = w.enter(r.Context(), w.caller.ID)
		}
		if err != nil {
			return err
		}
	}
	if o.faults != nil {
		return invalid(o.faults...)
	}
	return nil
}

// reply writes a success: out as JSON, or nothing for none.
func (w *responseWriter) reply(ctx context.Context, r *http.Request, out any) error {
	s, status := w.server, w.route.status
	if p, ok := out.(pager); ok {
		var next int64
		if out, next = p.content(); next != 0 {
			target := s.prefix(r) + r.URL.Path + "?" + nextQuery(r.URL.RawQuery, next)
			w.Header().Set("Link", "<"+target+`>; rel="next"`)
		}
	}
	if made, ok := out.(interface{ location() string }); ok && status == http.StatusCreated {
		w.Header().Set("Location", s.prefix(r)+s.cfg.APIPrefix+made.location())
	}
	if _, ok := out.(none); ok {
		w.WriteHeader(status)
		return nil
	}
	return w.write(ctx, status, "application/json", out)
}

// nextQuery returns the query of the page after the id next. It keeps what readPairs has read, also
// a raw semicolon, which url.ParseQuery drops.
func nextQuery(raw string, next int64) string {
	query := fmt.Sprint("after=", next)
	for pair := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, _ = url.QueryUnescape(name)
		value, _ = url.QueryUnescape(value)
		if !slices.Contains([]string{"", "_", "skip", "after"}, name) {
			query += "&" + url.QueryEscape(name) + "=" + url.QueryEscape(value)
		}
	}
	return query
}

// fail writes err as a problem document. What is not caused by the client is logged with its cause.
func (w *responseWriter) fail(err error) {
	s, c := w.server, &w.caller
	p, known := errors.AsType[*problem](err)
	switch {
	case errors.Is(err, context.Canceled): // of this request: shared statements detach from it
		p = errClientClosed
	case !known:
		p = errInternal
		s.log.Error("internal_error", "request_id", c.requestID, "route", w.route.path,
			"error", err.Error())
	case p.status > http.StatusInternalServerError || err != error(p): // err adds a cause
		s.log.Warn(p.code, "request_id", c.requestID, "route", w.route.path, "user_id", c.ID,
			"error", err.Error())
	}
	h := w.Header()
	h.Del("Link") // of reply, which failed
	h.Del("Location")
	if p.header[0] != "" {
		h.Set(p.header[0], p.header[1])
	}
	body := p.body(c.requestID)
	if w.route.access == tokenEndpoint {
		body.Error, body.ErrorDescription = p.oauthError(), p.detail
	}
	err = w.write(context.Background(), p.status, "application/problem+json", body)
	if err != nil {
		panic(err) // texts and numbers always encode
	}
}

// write encodes before it sets headers, so that a failure to encode can still be answered.
func (w *responseWriter) write(ctx context.Context, status int, media string, v any) error {
	var body bytes.Buffer
	if sized, ok := v.(interface{ size() int }); ok {
		size := sized.size()
		if err := w.server.reserve(ctx, &w.caller, size); err != nil {
			return err
		}
		body.Grow(size)
	}
	if err := json.MarshalWrite(&body, v); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", media)
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(status)
	w.Write(body.Bytes()) // the client may have gone: the access log has the bytes
	return nil
}

// ---- problems ----

// problem is an error that clients may see. Its code is stable. Any other error is internal: logged
// in full and answered as errInternal.
type problem struct {
	status       int
	code, detail string
	header       [2]string // name and value of the header that goes with it, if any
	errors       []fieldError
}

func newProblem(status int, code, detail string, header ...string) *problem {
	p := &problem{status: status, code: code, detail: detail}
	copy(p.header[:], header)
	return p
}

func (p *problem) Error() string { return p.code + ": " + p.detail }

// Is makes p equal to the problem that it is a copy of.
func (p *problem) Is(target error) bool {
	q, ok := target.(*problem)
	return ok && p.code == q.code
}

// withDetail returns p with another detail.
func (p *problem) withDetail(detail string) *problem {
	q := *p
	q.detail = detail
	return &q
}

// withErrors returns p with the faults of fields.
func (p *problem) withErrors(faults ...fieldError) *problem {
	q := *p
	q.errors = faults
	return &q
}

// invalidToken is the challenge of RFC 6750, section 3, to a token that was sent.
const invalidToken = `Bearer error="invalid_token"`

var (
	errMalformedBody = newProblem(400, "malformed_body",
		"The body is not one valid JSON value, or not a form.")
	errNotAuthenticated = newProblem(401, "not_authenticated", "Not authenticated: send a bearer "+
		"token in the Authorization header.", "WWW-Authenticate", "Bearer")
	errInvalidToken = newProblem(401, "invalid_token",
		"The access token is invalid, has expired, or its session has ended.",
		"WWW-Authenticate", invalidToken)
	errInvalidCredentials = newProblem(401, "invalid_credentials",
		"Incorrect e-mail or password.", "WWW-Authenticate", "Bearer")
	errInvalidRefresh = newProblem(401, "invalid_refresh_token",
		"The refresh token is invalid, has expired, or its session has ended.",
		"WWW-Authenticate", invalidToken)
	errRefreshReused = newProblem(401, "refresh_reused", "The refresh token was used before; its "+
		"session has been ended. Log in again.", "WWW-Authenticate", invalidToken)
	errAdminRequired = newProblem(403, "admin_required",
		"Not enough permissions: this operation is for admins.")
	errAccountInactive    = newProblem(403, "account_inactive", "The account is deactivated.")
	errRegistrationClosed = newProblem(403, "registration_closed",
		"Registration is closed; an admin can create accounts.")
	errWrongPassword = newProblem(403, "wrong_password", "The current password is wrong.")
	errSelfDelete    = newProblem(403, "self_delete",
		"Admins cannot delete their own account here; use DELETE /users/me.")
	errNotFound         = newProblem(404, "not_found", "Not found.")
	errMethodNotAllowed = newProblem(405, "method_not_allowed",
		"This resource does not support the method; Allow lists those that it does.")
	errEmailTaken = newProblem(409, "email_taken", "The e-mail address is already registered.")
	errKeyTaken   = newProblem(409, "key_taken",
		"A document of yours has the key already; upsert=true replaces it.")
	errLastAdmin        = newProblem(409, "last_admin", "At least one active admin must remain.")
	errBodyTooLarge     = newProblem(413, "body_too_large", "The body is too large.")
	errUnsupportedMedia = newProblem(415, "unsupported_media_type", "Unsupported Content-Type.")
	errInvalidRequest   = newProblem(422, "invalid_request",
		"The request is invalid; errors says where and why.")
	errEmbeddingRequired = newProblem(422, "embedding_required",
		"No embedding provider is configured; send embedding.")
	errTextRefused = newProblem(422, "text_refused",
		"The embedding model refuses a text; errors says which. Nothing was stored.")
	errClientClosed = newProblem(499, "client_closed_request", // nginx's, for log and metrics
		"The client closed the connection before the answer.")
	errInternal = newProblem(500, "internal_error",
		"Internal error; the request_id identifies it in the log.")
	errEmbeddingsFailed = newProblem(502, "embeddings_failed", "The embedding provider refused "+
		"the request or returned an invalid answer; nothing was stored.")
	errUnavailable = newProblem(503, "database_unavailable",
		"The database is not available; try again.", "Retry-After", "1")
	errBusy = newProblem(503, "busy",
		"Too many requests of this kind are in progress; try again.", "Retry-After", "2")
	errEmbeddingsUnavailable = newProblem(503, "embeddings_unavailable", "The embedding provider "+
		"is not available, overloaded or still loading its model; nothing was stored. Try again.",
		"Retry-After", "5")
	errShuttingDown = newProblem(503, "shutting_down",
		"This server is shutting down.", "Retry-After", "1")
)

// invalid returns the 422 for these faults.
func invalid(faults ...fieldError) *problem {
	var parts []string
	for _, f := range faults {
		loc := strings.Trim(fmt.Sprint(f.Loc), "[]") // as in: body documents 2 key
		parts = append(parts, strings.ReplaceAll(loc, " ", ".")+" "+f.Msg)
	}
	detail := "The request is invalid: " + strings.Join(parts, "; ") + "."
	return errInvalidRequest.withDetail(detail).withErrors(faults...)
}

// invalidField returns the 422 for one field of the body.
func invalidField(field, kind, msg string) *problem {
	return invalid(fieldError{[]any{"body", field}, msg, kind})
}

// problemDocument is a problem on the wire.
type problemDocument struct {
	Type      string       `json:"type" doc:"Always about:blank: see code."`
	Title     string       `json:"title" doc:"The status in words."`
	Status    int          `json:"status"`
	Detail    string       `json:"detail" doc:"A sentence for people."`
	Code      string       `json:"code" doc:"A stable word for programs."`
	RequestID string       `json:"request_id" doc:"As in X-Request-Id; it is also in the log."`
	Errors    []fieldError `json:"errors,omitempty" doc:"What is wrong, and where."`

	Error            string `json:"error,omitempty"`
	ErrorDescription string `json:"error_description,omitempty" doc:"Of token endpoints: detail."`
}

func (p *problem) body(requestID string) problemDocument {
	return problemDocument{Type: "about:blank", Title: cmp.Or(http.StatusText(p.status), p.code),
		Status: p.status, Detail: p.detail, Code: p.code, RequestID: requestID, Errors: p.errors}
}

// oauthError returns the error code of RFC 6749, section 5.2, for a refusal of a token endpoint.
func (p *problem) oauthError() string {
	unsupported := func(f fieldError) bool {
		return f.Loc[len(f.Loc)-1] == "grant_type" && f.Type == "enum"
	}
	switch {
	case p.status == 401 || p.status == 403:
		return "invalid_grant"
	case p.status >= 500:
		return "temporarily_unavailable"
	case slices.ContainsFunc(p.errors, unsupported):
		return "unsupported_grant_type"
	}
	return "invalid_request"
}
