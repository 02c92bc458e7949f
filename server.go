package main

// server.go is the HTTP server: the route table, and what every request passes before its row.
//
// Threats and answers. A client that sends slowly, or not at all: each phase has a time-out, and a
// body a least rate (receive in decode.go). A client that chooses its own address or scheme:
// headers of proxies are read from trusted proxies only, from the right. A browser that is made to
// frame, sniff or cache: the headers below. A page of another origin: CORS by an exact list, no
// credentials.

import (
	"cmp"
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/netip"
	"path"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	maxBody      = 16 << 10 // bytes; the longest registration has some 13 KiB, escaped six-fold
	maxLargeBody = 16 << 20 // bytes; 500 documents of 1,536 numbers of 20 digits
	maxHeader    = 12 << 10 // bytes; net/http adds 4 KiB; a token has some 300 bytes
	maxRequests  = 4096     // in progress, see enter; 128 of one user: more than a client's pool
	maxRequestID = 64       // characters of a client's X-Request-Id; a UUID has 36
	maxText      = 256      // bytes of a User-Agent, or of a provider's message, that are kept

	headerTimeout  = 5 * time.Second
	requestTimeout = 15 * time.Second // for headers and body: 16 KiB at a modem's 1.2 KiB/s
	largeTimeout   = time.Minute      // for a body of up to maxLargeBody: 2.2 Mbit/s
	writeTimeout   = 30 * time.Second // for an answer, from its head on
	idleTimeout    = 2 * time.Minute  // more than the 60 s of common load balancers
	minRate        = 32 << 10         // bytes a second of a large body: a quarter of 1 Mbit/s
	rateWindow     = 5 * time.Second  // in which the rate may be uneven
	unreadTimeout  = 2 * time.Second  // for the rest of a late body that was refused: see discard
	maxUnread      = 2 * maxLargeBody // bytes of it that are read; a body may have more

	// Memory of bodies longer than maxBody, and of answers longer than largeAnswer. Decoding takes
	// as much again, and Go's collector twice the sum, which together with some 40 KB for each of
	// 2,000 connections stays under 256 MiB.
	bodyMemory   = 32 << 20 // bytes; half of it for one user: a body of the largest size
	answerMemory = 32 << 20 // bytes; half of it for one user
	largeAnswer  = 64 << 10 // bytes; smaller ones go into the socket's buffer at once
)

// server answers HTTP requests. Its state is the drain flag, the limiters and counts: everything
// else is in PostgreSQL, so any number of servers may run on one database.
type server struct {
	cfg      *config
	store    *store
	keys     *keyring
	hasher   *hasher
	embedder *embedder // nil: no provider of embeddings is configured
	log      *slog.Logger
	mux      *http.ServeMux
	table    []route
	paths    map[string]handlers
	stats    serverStats
	start    time.Time
	draining atomic.Bool

	requests      limiter // requests with a token, in progress: see enter
	bodies        limiter // bytes of long bodies
	answers       limiter // bytes of long answers
	confirmations limiter // checks of current passwords, by session
	emailChanges  limiter // changes of e-mail addresses in emailInterval
}

// newServer builds the server and its routes. It panics where the route table contradicts itself.
func newServer(cfg *config, st *store, h *hasher, log *slog.Logger) *server {
	s := &server{cfg: cfg, store: st, hasher: h, embedder: newEmbedder(cfg), log: log,
		start: time.Now(), mux: http.NewServeMux(), paths: map[string]handlers{}}
	s.requests = limiter{total: maxRequests, share: maxRequests / 32, queue: maxRequests,
		timeout: 2 * time.Second, detail: "Too many of your requests are in progress; try again."}
	s.bodies = limiter{total: bodyMemory, share: bodyMemory / 2, queue: 64,
		timeout: 10 * time.Second, detail: "Too many large bodies are being received; try again."}
	s.answers = limiter{total: answerMemory, share: answerMemory / 2, queue: 4,
		timeout: time.Second, detail: "Too many large answers are being sent; try again."}
	s.confirmations = limiter{total: maxRequests, share: 1, queue: maxRequests,
		timeout: hashTimeout, detail: "Too many passwords are being checked; try again."}
	s.emailChanges = limiter{total: 100_000, share: maxEmailChanges}
	s.keys = newKeyring(cfg.SecretKeys, cfg.TokenIssuer,
		time.Duration(cfg.AccessMinutes)*time.Minute)
	s.stats.other = s.stats.add("", "")
	s.table = s.routes()
	for i := range s.table {
		s.addRow(&s.table[i])
	}
	if cfg.Docs {
		s.addHandler("GET", "/openapi.json", &route{path: "/openapi.json"}, s.serveOpenAPI())
		s.addHandler("GET", "/docs", &route{path: "/docs"},
			asset("text/html; charset=utf-8", docsPolicy(docsPage), docsPage))
		s.addHandler("GET", "/{$}", &route{path: "/"}, func(w *responseWriter, r *http.Request) {
			http.Redirect(w, r, s.prefix(r)+"/docs", http.StatusFound)
		})
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.servePath(w, r, nil) })
	return s
}

// addRow serves a row of the table.
func (s *server) addRow(rt *route) {
	if rt.access == unset || rt.name == "" || rt.status == 0 || rt.summary == "" {
		panic(rt.method + " " + rt.path + ": a row needs access, name, status and summary")
	}
	names := rt.endpoint.input.names("path")
	lacks := func(name string) bool { return !strings.Contains(rt.path, "{"+name+"}") }
	if strings.Count(rt.path, "{") != len(names) || slices.ContainsFunc(names, lacks) {
		panic(rt.method + " " + rt.path + ": the path tags of its input are other than its {names}")
	}
	rt.endpoint.input.setVectors(s.cfg.EmbeddingDimensions)
	s.addHandler(rt.method, s.cfg.APIPrefix+rt.path, rt, s.serve)
}

// serveOpenAPI serves the OpenAPI document. With a prefix it is written in parts: a copy for each
// client that does not read it would take memory without bounds.
func (s *server) serveOpenAPI() handlerFunc {
	text := string(s.openAPI())
	withPrefix := func(prefix string) *strings.Replacer {
		return strings.NewReplacer("{server}", cmp.Or(prefix, "/"), "{root}", prefix)
	}
	plain := asset("application/json", "", []byte(withPrefix("").Replace(text)))
	return func(w *responseWriter, r *http.Request) {
		if prefix := s.prefix(r); prefix != "" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusOK)
			withPrefix(prefix).WriteString(w, text)
			return
		}
		plain(w, r)
	}
}

type errs = []*problem // refusals of a row beyond those in problems

// routes is the table: method, path, who may call it, name, handler, status, refusals, summary.
func (s *server) routes() []route {
	return slices.Concat(
		s.accountRoutes(),
		s.documentRoutes(),
	)
}

func (s *server) accountRoutes() []route {
	account := errs{errEmailTaken, errLastAdmin, errNotFound}
	return []route{
		{"GET", "/health", anyone, "health", handle(s.health), 200, nil,
			"Liveness: the process answers, whatever the database does"},
		{"GET", "/health/db", anyone, "healthDB", handle(s.healthDB), 200,
			errs{errUnavailable, errShuttingDown},
			"Readiness: the database answers, and the server is not shutting down"},
		{"POST", "/auth/register", anyone, "register", handle(s.register), 201,
			errs{errEmailTaken, errRegistrationClosed, errBusy, errUnavailable},
			"Create an account: not an admin, and not logged in"},
		{"POST", "/auth/login", tokenEndpoint, "login", handle(s.login), 200,
			errs{errInvalidCredentials, errAccountInactive, errInvalidRefresh, errRefreshReused},
			"Log in: start a session; with grant_type=refresh_token, do what refresh does"},
		{"POST", "/auth/refresh", tokenEndpoint, "refresh", handle(s.refresh), 200,
			errs{errInvalidRefresh, errRefreshReused},
			"Refresh tokens: exchange a refresh token; using it again later ends the session"},
		{"POST", "/auth/revoke", tokenEndpoint, "revoke", handle(s.revoke), 200, nil,
			"Revoke a token: end the session of a token, also of an expired one (RFC 7009)"},
		{"POST", "/auth/logout", usersAlways, "logout", handle(s.logout), 204, nil,
			"Log out: end this session, the others, or all; their tokens end at once"},
		{"GET", "/auth/sessions", users, "listSessions", handle(s.listSessions), 200, nil,
			"List your sessions: the newest first"},
		{"DELETE", "/auth/sessions/{id}", usersAlways, "endSession", handle(s.endSession), 204,
			errs{errNotFound}, "End one of your sessions"},
		{"GET", "/users/me", users, "me", handle(s.me), 200, nil, "Read your account"},
		{"PUT", "/users/me", usersAlways, "updateMe", handle(s.updateMe), 200,
			errs{errEmailTaken, errWrongPassword},
			"Change your account: omitted fields keep their value; a new password ends all other " +
				"sessions"},
		{"PATCH", "/users/me", usersAlways, "patchMe", handle(s.updateMe), 200,
			errs{errEmailTaken, errWrongPassword}, "Change your account: the same as PUT"},
		{"DELETE", "/users/me", usersAlways, "deleteMe", handle(s.deleteMe), 204,
			errs{errLastAdmin, errWrongPassword},
			"Delete your account: and all that belongs to it"},
		{"GET", "/users", admins, "listUsers", handle(s.listUsers), 200, nil,
			"List accounts: in the order of ids, a page at a time"},
		{"POST", "/users", admins, "createUser", handle(s.createUser), 201, errs{errEmailTaken},
			"Create an account for somebody: also while registration is closed"},
		{"GET", "/users/{id}", admins, "getUser", handle(s.getUser), 200, errs{errNotFound},
			"Read an account"},
		{"PUT", "/users/{id}", admins, "updateUser", handle(s.updateUser), 200, account,
			"Change an account: omitted fields keep their value; a new password and a " +
				"deactivation end all its sessions"},
		{"PATCH", "/users/{id}", admins, "patchUser", handle(s.updateUser), 200, account,
			"Change an account: the same as PUT"},
		{"DELETE", "/users/{id}", admins, "deleteUser", handle(s.deleteUser), 204,
			errs{errNotFound, errSelfDelete, errLastAdmin}, "Delete an account: but not your own"},
	}
}

func (s *server) documentRoutes() []route {
	embeds := errs{errEmbeddingRequired, errTextRefused, errEmbeddingsFailed,
		errEmbeddingsUnavailable}
	stores := append(errs{errKeyTaken}, embeds...)
	create := handle(s.createDocument)
	create.output = reflect.TypeFor[document]() // not the batch, an older form, undocumented
	return []route{
		{"POST", "/documents", users, "createDocument", create, 201, stores, "Store a document"},
		{"POST", "/documents/batch", users, "createDocuments", handle(s.createDocuments), 201,
			stores, "Store several documents: all or none, answered in the same order"},
		{"GET", "/documents", users, "listDocuments", handle(s.listDocuments), 200, nil,
			"List your documents: in the order of ids; a page of long ones is shorter than limit"},
		{"DELETE", "/documents", users, "deleteDocuments", handle(s.deleteDocuments), 200, nil,
			"Delete documents: all or none of those that a filter, ids or keys select"},
		{"GET", "/documents/count", users, "countDocuments", handle(s.countDocuments), 200, nil,
			"Count your documents: all, or those that a filter, ids or keys select"},
		{"GET", "/documents/{id}", users, "getDocument", handle(s.getDocument), 200,
			errs{errNotFound}, "Read one of your documents"},
		{"PUT", "/documents/{id}", users, "updateDocument", handle(s.updateDocument), 200,
			append(errs{errNotFound}, stores...),
			"Change one of your documents: omitted fields keep their value"},
		{"DELETE", "/documents/{id}", users, "deleteDocument", handle(s.deleteDocument), 204,
			errs{errNotFound}, "Delete one of your documents"},
		{"POST", "/documents/search", users, "searchDocuments", handle(s.search), 200, embeds,
			"Search your documents: the nearest, up to limit; exact says whether surely"},
	}
}

// httpServer returns s with the limits of a connection; failed handshakes and resets are debug.
func (s *server) httpServer() *http.Server {
	return &http.Server{Handler: s, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout,
		WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, DisableGeneralOptionsHandler: true,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
}

// ServeHTTP passes a request on to its path, which has one spelling: for another one ServeMux would
// answer 307, which makes clients send their credentials again, and would take %6De for me.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := r.URL.EscapedPath()
	if !strings.HasPrefix(p, "/") || path.Clean(p) != p || strings.Contains(p, "%") {
		s.servePath(w, r, nil)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// handlers are those of a path, by method.
type handlers map[string]handler

// handler answers the requests to one method of a path.
type handler struct {
	route *route
	stats *routeStats
	serve handlerFunc
}

type handlerFunc func(*responseWriter, *http.Request)

// methods are those that a path may support, in the order in which Allow lists them.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

// addHandler serves a method of a path. The mux chooses by the path alone, so that a literal path
// hides one with a wildcard for all methods: PUT /documents/search is for no document "search".
func (s *server) addHandler(method, path string, rt *route, serve handlerFunc) {
	byMethod := s.paths[path]
	if byMethod == nil {
		byMethod = handlers{}
		s.paths[path] = byMethod
		s.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			s.servePath(w, r, byMethod)
		})
	}
	if _, twice := byMethod[method]; twice {
		panic(method + " " + path + ": another row has this method and path")
	}
	byMethod[method] = handler{rt, s.stats.add(method, rt.path), serve}
	if method == http.MethodGet {
		byMethod[http.MethodHead] = byMethod[method]
	}
}

// servePath takes every request through the same steps: the client's address, the headers of every
// answer, CORS, the handler of its method, or 404 or 405; finish recovers a panic, counts and logs.
func (s *server) servePath(rw http.ResponseWriter, r *http.Request, byMethod handlers) {
	ip, https := s.origin(r)
	ids := r.Header.Values("X-Request-Id")
	if len(ids) != 1 || len(ids[0]) > maxRequestID || !printable.MatchString(ids[0]) {
		ids = []string{rand.Text()}
	}
	matched, ok := byMethod[r.Method]
	if !ok {
		matched = handler{&route{}, s.stats.other, refuseMethod(byMethod)}
	}
	w := &responseWriter{ResponseWriter: rw, server: s, route: matched.route,
		stats: matched.stats, start: time.Now(), unread: r.ContentLength != 0,
		caller: caller{ip: ip, requestID: ids[0], userAgent: r.UserAgent()}}
	s.stats.inFlight.Add(1)
	defer s.finish(w, r)
	h := w.Header()
	h.Set("X-Request-Id", ids[0])
	h.Set("Cache-Control", "no-store") // the assets replace this, and the policy
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	if https {
		h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	}
	if r.ContentLength == 0 { // a body's time-out would end the context of a slow handler
		w.conn().SetReadDeadline(time.Time{})
	}
	if !s.cors(w, r) {
		matched.serve(w, r)
	}
}

// refuseMethod answers 405 where a path has other methods, else 404.
func refuseMethod(byMethod handlers) handlerFunc {
	return func(w *responseWriter, _ *http.Request) {
		if byMethod == nil {
			w.fail(errNotFound)
			return
		}
		lacks := func(method string) bool { return byMethod[method].serve == nil }
		allowed := slices.DeleteFunc(slices.Clone(methods), lacks)
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		w.fail(errMethodNotAllowed)
	}
}

// finish answers a panic with 500 and records the request. An answer is written in one go at the
// end, so a panic comes before it; otherwise the connection is cut.
func (s *server) finish(w *responseWriter, r *http.Request) {
	cause := recover()
	if cause != nil && cause != http.ErrAbortHandler {
		s.log.Error("panic", "request_id", w.caller.requestID, "route", w.route.path,
			"cause", cause, "stack", string(debug.Stack()))
		if w.status == 0 {
			w.fail(errInternal)
			cause = nil
		}
	}
	for _, release := range []func(){w.releaseBody, w.caller.releaseAnswer, w.releaseRequest} {
		if release != nil {
			release()
		}
	}
	w.record(r)
	if cause != nil {
		panic(http.ErrAbortHandler)
	}
	if w.unread {
		w.discard(r)
	}
}

// trusts reports whether the headers of a proxy at address a are believed.
func (s *server) trusts(a netip.Addr) bool {
	contains := func(p netip.Prefix) bool { return p.Contains(a) }
	return slices.ContainsFunc(s.cfg.TrustedProxies, contains)
}

// origin returns the address of the client and whether it came by TLS. The headers of proxies are
// read from the right, and only while each hop is a trusted proxy, so that a client cannot
// choose its address.
func (s *server) origin(r *http.Request) (client netip.Addr, https bool) {
	client, _ = parseHop(r.RemoteAddr)
	if !s.trusts(client) {
		return client, r.TLS != nil
	}
	hops, overTLS := forwarded(r.Header)
	for _, hop := range slices.Backward(hops) {
		a, err := parseHop(hop)
		if err != nil || !s.trusts(client) {
			break
		}
		client = a
	}
	return client, overTLS || r.TLS != nil
}

// prefix returns the path that trusted proxies have cut off, the outermost's first, or "". Answers
// put it before each path. One that is not plain, as //host, is ignored: it would lead elsewhere.
func (s *server) prefix(r *http.Request) string {
	peer, _ := parseHop(r.RemoteAddr)
	parts := strings.Join(r.Header.Values("X-Forwarded-Prefix"), "")
	prefix := strings.TrimSuffix(strings.NewReplacer(", ", "", ",", "").Replace(parts), "/")
	if !s.trusts(peer) || path.Clean(prefix) != prefix || !plainPath.MatchString(prefix) {
		return ""
	}
	return prefix
}

// forwarded returns the addresses that proxies have added, unparsed, and whether the client
// came by TLS: from X-Forwarded-For and -Proto, or from Forwarded (RFC 7239).
func forwarded(h http.Header) (hops []string, https bool) {
	proto, _, _ := strings.Cut(h.Get("X-Forwarded-Proto"), ",") // several proxies add theirs
	https = strings.EqualFold(proto, "https")
	if list := h.Values("X-Forwarded-For"); list != nil {
		return strings.Split(strings.Join(list, ","), ","), https
	}
	elements := strings.ReplaceAll(strings.Join(h.Values("Forwarded"), ","), ";", ",")
	for pair := range strings.SplitSeq(elements, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		switch strings.ToLower(name) {
		case "for":
			hops = append(hops, value)
		case "proto":
			https = strings.EqualFold(strings.Trim(value, `"`), "https")
		}
	}
	return hops, https
}

// parseHop reads an address that may have quotes, brackets and a port.
func parseHop(text string) (netip.Addr, error) {
	text = strings.Trim(text, ` "`)
	if both, err := netip.ParseAddrPort(text); err == nil {
		return both.Addr().Unmap().WithZone(""), nil
	}
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	return a.Unmap().WithZone(""), err
}

// cors lets the pages of the configured origins call the API, and answers their preflights, with
// whatever headers they ask for: tracing libraries add their own. Credentials are not allowed:
// tokens travel in a header, not in cookies.
func (s *server) cors(w *responseWriter, r *http.Request) (answered bool) {
	if len(s.cfg.CORSOrigins) == 0 {
		return false
	}
	h := w.Header()
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if !slices.Contains(s.cfg.CORSOrigins, origin) {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers",
		"Link, Location, Retry-After, WWW-Authenticate, X-Request-Id")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE")
	if asked := r.Header.Get("Access-Control-Request-Headers"); headerNames.MatchString(asked) {
		h.Set("Access-Control-Allow-Headers", asked)
	}
	h.Add("Vary", "Access-Control-Request-Headers")
	h.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}

var (
	printable   = regexp.MustCompile("^[!-~]+$")
	headerNames = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~, -]+$") // RFC 9110, 5.6.2: tokens
)
