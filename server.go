package main

// server.go is the HTTP face: the route table, and what every request passes on its way to it.

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	maxLargeBody   = 16 << 20  // bytes, where there are vectors: 500 documents of 1,536 numbers of 20 digits
	bulkyBody      = 256 << 10 // bytes; what is longer takes one of maxBulky places, so that memory is bounded
	maxBulky       = 4         // 64 MiB of bodies, and their documents
	hugeBody       = 4 << 20   // bytes; the memory of a longer one is collected before the next may come, which takes some ms
	maxBody        = 16 << 10  // bytes; the longest valid registration has about 3 KiB, escaped six-fold 13 KiB
	maxHeader      = 12 << 10  // bytes; net/http adds 4 KiB; a token has some 350 bytes
	maxRequestID   = 64        // characters of a caller's X-Request-Id; a UUID has 36
	maxAgent       = 256       // bytes of User-Agent that are kept with a session
	headerTimeout  = 5 * time.Second
	requestTimeout = 15 * time.Second // for headers and body: 16 KiB at a slow modem's 1.2 KiB/s
	largeTimeout   = 60 * time.Second // for a body of up to maxLargeBody: 2.2 Mbit/s
	writeTimeout   = 30 * time.Second // from the end of the headers: requestTimeout, hashing and queries, and as long for reading
	idleTimeout    = 2 * time.Minute  // longer than the 60 s for which common load balancers keep a connection
)

// server answers HTTP requests. It holds no state of its own beside the drain flag and the places: everything else
// is in PostgreSQL, so any number of servers may run on one database.
type server struct {
	cfg      *config
	store    *store
	keys     *keyring
	hasher   *hasher
	embedder *embedder // nil: there is no provider of embeddings
	log      *slog.Logger
	mux      *http.ServeMux
	closed   map[string]bool // patterns of the mux that only keep others from matching
	table    []route
	stats    serverStats
	start    time.Time
	draining atomic.Bool
	bulky    chan struct{} // the places for long bodies
}

// newServer builds the server and its routes. It panics where the route table contradicts itself.
func newServer(cfg *config, st *store, h *hasher, log *slog.Logger) *server {
	s := &server{cfg: cfg, store: st, hasher: h, embedder: newEmbedder(cfg), log: log, start: time.Now(), mux: http.NewServeMux(), closed: map[string]bool{}, bulky: make(chan struct{}, maxBulky)}
	s.keys = newKeyring(cfg.SecretKeys, time.Duration(cfg.AccessMinutes)*time.Minute)
	s.table = s.routes()
	for _, rt := range s.table {
		rt.endpoint.input.setVectors(cfg.EmbeddingDimensions)
		s.mux.Handle(rt.method+" "+cfg.APIPrefix+rt.path, s.gate(rt))
	}
	for _, rt := range s.table { // PUT /documents/search is not for the document called search
		for _, method := range methods {
			pattern := method + " " + cfg.APIPrefix + rt.path
			if _, taker := s.mux.Handler(&http.Request{Method: method, URL: &url.URL{Path: cfg.APIPrefix + rt.path}}); strings.Contains(taker, "{") && !strings.Contains(rt.path, "{") {
				s.mux.HandleFunc(pattern, s.noRoute)
				s.closed[pattern] = true
			}
		}
	}
	if cfg.Docs {
		s.mux.Handle("GET /openapi.json", asset("/openapi.json", "application/json", "", s.openAPI()))
		s.mux.Handle("GET /docs", asset("/docs", "text/html; charset=utf-8", docsPolicy(docsPage), docsPage))
		s.mux.Handle("GET /{$}", http.RedirectHandler("/docs", http.StatusFound))
	}
	s.mux.HandleFunc("/", s.noRoute)
	return s
}

// routes is the table: all there is, and who may call it.
func (s *server) routes() []route {
	type no = []*problem
	return []route{
		{"GET", "/health", anyone, 200, handle(s.health), "Liveness: the process answers, whatever the database does", nil},
		{"GET", "/health/db", anyone, 200, handle(s.healthDB), "Readiness: the database answers, and the server is not shutting down", no{errUnavailable, errDraining}},

		{"POST", "/auth/register", anyone, 201, handle(s.register), "Create an account: it is no admin, and not logged in", no{errEmailTaken, errRegistrationClosed, errBusy, errUnavailable}},
		{"POST", "/auth/login", anyone, 200, handle(s.login), "Log in: start a session with e-mail and password", no{errInvalidCredentials, errAccountInactive, errBusy, errUnavailable}},
		{"POST", "/auth/refresh", anyone, 200, handle(s.refresh), "Refresh tokens: spend a refresh token for new tokens; spending it again later ends the session", no{errInvalidRefresh, errRefreshReused, errUnavailable}},
		{"POST", "/auth/logout", users, 204, handle(s.logout), "Log out: end this session, the others, or all; their tokens are dead at once", nil},
		{"GET", "/auth/sessions", users, 200, handle(s.listSessions), "List one's own sessions: the newest first", nil},
		{"DELETE", "/auth/sessions/{id}", users, 204, handle(s.endSession), "End one of one's own sessions", no{errNotFound}},

		{"GET", "/users/me", users, 200, handle(s.me), "Read one's own account", nil},
		{"PUT", "/users/me", users, 200, handle(s.updateMe), "Change one's own account: what is absent stays; a new password ends all other sessions", no{errEmailTaken, errWrongPassword, errBusy}},
		{"PATCH", "/users/me", users, 200, handle(s.updateMe), "Change one's own account: the same as PUT", no{errEmailTaken, errWrongPassword, errBusy}},
		{"DELETE", "/users/me", users, 204, handle(s.deleteMe), "Delete one's own account: and all that belongs to it", no{errLastAdmin, errWrongPassword, errBusy}},

		{"GET", "/users", admins, 200, handle(s.listUsers), "List accounts: in the order of ids, a page at a time", nil},
		{"POST", "/users", admins, 201, handle(s.createUser), "Create an account for somebody: also while registration is closed", no{errEmailTaken, errBusy}},
		{"GET", "/users/{id}", admins, 200, handle(s.getUser), "Read an account", no{errNotFound}},
		{"PUT", "/users/{id}", admins, 200, handle(s.updateUser), "Change an account: what is absent stays; a new password and a deactivation end all its sessions", no{errNotFound, errEmailTaken, errLastAdmin, errBusy}},
		{"PATCH", "/users/{id}", admins, 200, handle(s.updateUser), "Change an account: the same as PUT", no{errNotFound, errEmailTaken, errLastAdmin, errBusy}},
		{"DELETE", "/users/{id}", admins, 204, handle(s.deleteUser), "Delete an account: but not one's own", no{errNotFound, errSelfDelete, errLastAdmin}},

		{"POST", "/documents", holders, 201, handle(s.createDocuments), "Store a document, or several: all or nothing, and answered in the same order", no{errEmbeddingRequired, errEmbeddingsFailed, errEmbeddingsAway}},
		{"GET", "/documents", users, 200, handle(s.listDocuments), "List one's own documents: in the order of ids, a page at a time", no{errBusy}},
		{"GET", "/documents/{id}", users, 200, handle(s.getDocument), "Read one of one's own documents", no{errNotFound}},
		{"PUT", "/documents/{id}", users, 200, handle(s.updateDocument), "Change one of one's own documents: what is absent stays", no{errNotFound, errEmbeddingRequired, errEmbeddingsFailed, errEmbeddingsAway}},
		{"DELETE", "/documents/{id}", users, 204, handle(s.deleteDocument), "Delete one of one's own documents", no{errNotFound}},
		{"POST", "/documents/search", holders, 200, handle(s.search), "Search one's own documents: the true nearest, always as many as there are up to the limit", no{errEmbeddingRequired, errEmbeddingsFailed, errEmbeddingsAway}},
	}
}

// httpServer wraps s with the limits of a connection.
func (s *server) httpServer() *http.Server {
	return &http.Server{
		Handler: s, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, DisableGeneralOptionsHandler: true,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // handshakes and resets: not ours
	}
}

// exchange is one request and its answer, as the chain below and the access line see it.
type exchange struct {
	http.ResponseWriter
	id     [1]string // X-Request-Id, as a header's values
	length [1]string // Content-Length, likewise
	caller caller
	start  time.Time
	took   time.Duration // set at the end
	method string
	route  string // the pattern, never the path
	stats  *routeStats
	status int
	bytes  int
	server *server
	held   int // the bytes of memory of a long body, which has one of the server's places; 0: there is none
}

func (x *exchange) WriteHeader(status int) {
	if x.status = status; x.server.draining.Load() { // a client that is told does not send its next request into a closing connection
		x.Header().Set("Connection", "close")
	}
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(b []byte) (int, error) {
	n, err := x.ResponseWriter.Write(b)
	x.bytes += n
	return n, err
}

// ServeHTTP is the chain, in the order in which it runs.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	client, https := s.origin(r)
	id := requestID(r)
	x := &exchange{ResponseWriter: w, id: [1]string{id}, caller: caller{client: client, requestID: id}, start: time.Now(), method: knownMethod(r.Method), stats: &s.stats.other, server: s}
	s.stats.inFlight.Add(1)
	defer s.finish(x)
	setHeaders(x, https)
	if s.cors(x, r) {
		return
	}
	if !cleanPath(r) {
		s.fail(x, errNotFound)
		return
	}
	s.mux.ServeHTTP(x, r)
}

// finish turns a panic into a 500 and writes the access line. Answers are written in one go at the
// end, so a panic comes before the first byte; where not, the connection is cut.
func (s *server) finish(x *exchange) {
	cause := recover()
	if x.held > 0 {
		if x.held > hugeBody {
			runtime.GC()
		}
		<-s.bulky
	}
	if cause != nil && cause != http.ErrAbortHandler {
		s.log.Error("panic", "request_id", x.caller.requestID, "route", x.route, "cause", cause, "stack", string(debug.Stack()))
		if x.status == 0 {
			s.fail(x, errInternal)
			cause = nil
		}
	}
	x.took = time.Since(x.start)
	s.stats.inFlight.Add(-1)
	x.stats.observe(x.status, x.took)
	x.logAccess(s.log.Handler())
	if cause != nil {
		panic(http.ErrAbortHandler)
	}
}

// knownMethod keeps what a client invents out of the log.
func knownMethod(method string) string {
	if slices.Contains(methods, method) || method == http.MethodOptions {
		return method
	}
	return "other"
}

// requestID is the caller's X-Request-Id where it is one, short and printable, else a new one.
func requestID(r *http.Request) string {
	ids := r.Header.Values("X-Request-Id")
	unfit := func(c rune) bool { return c <= ' ' || c > '~' }
	if len(ids) == 1 && ids[0] != "" && len(ids[0]) <= maxRequestID && !strings.ContainsFunc(ids[0], unfit) {
		return ids[0]
	}
	return rand.Text()
}

// The values of headers that are the same in all answers, shared by them.
var (
	noStore       = []string{"no-store"}
	noSniff       = []string{"nosniff"}
	noReferrer    = []string{"no-referrer"}
	nothingLoaded = []string{"default-src 'none'; frame-ancestors 'none'"}
)

// setHeaders sets what every answer carries. The docs page replaces two of them.
func setHeaders(x *exchange, https bool) {
	h := x.Header()
	h["X-Request-Id"] = x.id[:]
	h["Cache-Control"], h["X-Content-Type-Options"] = noStore, noSniff
	h["Content-Security-Policy"], h["Referrer-Policy"] = nothingLoaded, noReferrer
	if https {
		h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	}
}

// origin is the address of the client and whether it came by TLS. X-Forwarded-For is read from the
// right, and only as far as each hop is a trusted proxy, so that a client cannot choose its address.
func (s *server) origin(r *http.Request) (client netip.Addr, https bool) {
	trusted := func(a netip.Addr) bool {
		return slices.ContainsFunc(s.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	client, https = peer.Addr().Unmap().WithZone(""), r.TLS != nil
	if !trusted(client) {
		return client, https
	}
	https = https || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		a, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil || !trusted(client) {
			break
		}
		client = a.Unmap().WithZone("")
	}
	return client, https
}

// cors lets the pages of the configured origins call the API, and answers their preflights.
// Credentials are not allowed: tokens travel in a header, and there are no cookies.
func (s *server) cors(x *exchange, r *http.Request) (answered bool) {
	if len(s.cfg.CORSOrigins) == 0 {
		return false
	}
	h := x.Header()
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if !slices.Contains(s.cfg.CORSOrigins, origin) {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", "Link, Location, Retry-After, WWW-Authenticate, X-Request-Id")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id")
	h.Set("Access-Control-Max-Age", "600")
	x.WriteHeader(http.StatusNoContent)
	return true
}

// cleanPath tells whether the path is in its one spelling. ServeMux would redirect an unclean one with
// a 307, which makes clients send their credentials again, and match %6De as me.
func cleanPath(r *http.Request) bool {
	p := r.URL.EscapedPath()
	return strings.HasPrefix(p, "/") && path.Clean(p) == p && !strings.Contains(p, "%")
}

// methods are those that a path may take, in the order in which Allow lists them.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

// noRoute answers what no row matches: 405 where another method would, else 404.
func (s *server) noRoute(w http.ResponseWriter, r *http.Request) {
	x := w.(*exchange)
	var allowed []string
	for _, method := range methods {
		probe := &http.Request{Method: method, URL: r.URL, Host: r.Host}
		if _, pattern := s.mux.Handler(probe); pattern != "/" && !s.closed[pattern] {
			allowed = append(allowed, method)
		}
	}
	if allowed == nil {
		s.fail(x, errNotFound)
		return
	}
	x.Header().Set("Allow", strings.Join(allowed, ", "))
	s.fail(x, errMethodNotAllowed)
}

type liveness struct {
	Status string `json:"status" example:"healthy"`
}

type readiness struct {
	Status   string `json:"status" example:"healthy"`
	Database string `json:"database" example:"connected"`
}

// health answers as long as the process does. It asks nobody, so that an orchestrator does not
// restart every replica because the database is away.
func (s *server) health(context.Context, *caller, none) (liveness, error) {
	return liveness{"healthy"}, nil
}

// healthDB tells a load balancer whether to send requests here: not without the database, and not
// while the server is shutting down.
func (s *server) healthDB(_ context.Context, _ *caller, _ none) (readiness, error) {
	if s.draining.Load() {
		return readiness{}, errDraining
	}
	if err := s.store.ping(); err != nil {
		return readiness{}, errors.Join(errUnavailable, err)
	}
	return readiness{"healthy", "connected"}, nil
}
