package main

// metrics.go has the access log, the health checks and the counts, in Prometheus' text format 0.0.4
// on a listener of their own, METRICS_ADDR: without a login, so it is not for the world.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// buckets are the upper bounds of the latency histogram in seconds: from a token check on a unix
// socket to the longest that a request may take.
var buckets = [...]float64{
	.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, math.Inf(1)}

// routeStats counts the requests to a method of a route.
type routeStats struct {
	labels      string                     // as Prometheus writes them
	statuses    [600]atomic.Int64          // by status code
	buckets     [len(buckets)]atomic.Int64 // each without those below it
	nanoseconds atomic.Int64
}

// serverStats counts what happens in a server.
type serverStats struct {
	routes       []*routeStats
	other        *routeStats // requests that no row matches
	inFlight     atomic.Int64
	refreshReuse atomic.Int64                  // refresh tokens that came again too late
	indexes      atomic.Pointer[[]vectorIndex] // as of the last sweep
}

// add returns new counts for a method of a route. All are added before the first request.
func (st *serverStats) add(method, route string) *routeStats {
	rs := &routeStats{labels: fmt.Sprintf("method=%q,route=%q", method, route)}
	st.routes = append(st.routes, rs)
	return rs
}

// record counts a request and writes its line of the access log.
func (w *responseWriter) record(r *http.Request) {
	s, took := w.server, time.Since(w.start)
	s.stats.inFlight.Add(-1)
	if w.status >= 100 && w.status < len(w.stats.statuses) {
		w.stats.statuses[w.status].Add(1)
	}
	i, _ := slices.BinarySearch(buckets[:], took.Seconds())
	w.stats.buckets[i].Add(1)
	w.stats.nanoseconds.Add(int64(took))
	level, method := slog.LevelInfo, r.Method
	if !slices.Contains(methods, method) && method != http.MethodOptions {
		method = "other" // what a client invents
	}
	if w.status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("request_id", w.caller.requestID), slog.String("method", method),
		slog.String("route", w.route.path), slog.Int("status", w.status),
		slog.Float64("duration_ms", milliseconds(took)), slog.Int("bytes", w.bytes),
		slog.Int64("user_id", w.caller.ID), slog.String("client", w.caller.ip.String())}
	if id := traceID(r.Header.Values("Traceparent")); id != "" {
		attrs = append(attrs, slog.String("trace_id", id))
	}
	s.log.LogAttrs(context.Background(), level, "request", attrs...)
}

// traceparent is W3C Trace Context: version, trace id, parent id, flags, a later version's rest.
var traceparent = regexp.MustCompile(
	`^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?$`)

// traceID returns the trace id of the traceparent headers, or "" unless there is one valid header.
func traceID(headers []string) string {
	m := traceparent.FindStringSubmatch(strings.Join(headers, ","))
	if m == nil || m[1] == "ff" || m[1] == "00" && m[4] != "" ||
		strings.Trim(m[2], "0") == "" || strings.Trim(m[3], "0") == "" {
		return ""
	}
	return m[2]
}

// metric is a counter, whose name ends in _total, or a gauge.
type metric struct {
	name, help string
	value      any // a number, or labelled
}

type labelled map[string]any // numbers by their labels, as Prometheus writes them

func (s *server) writeMetrics(w io.Writer) {
	const head = "# HELP %[1]s %[2]s\n# TYPE %[1]s %[3]s\n"
	for _, m := range slices.Concat(s.serverMetrics(), s.resourceMetrics()) {
		kind := "gauge"
		if strings.HasSuffix(m.name, "_total") {
			kind = "counter"
		}
		fmt.Fprintf(w, head, m.name, m.help, kind)
		values, ok := m.value.(labelled)
		if !ok {
			fmt.Fprintln(w, m.name, m.value)
		}
		for _, labels := range slices.Sorted(maps.Keys(values)) {
			fmt.Fprintf(w, "%s{%s} %v\n", m.name, labels, values[labels])
		}
	}
	const histogram = "latch_http_request_duration_seconds"
	fmt.Fprintf(w, head, histogram, "Time to answer, by route.", "histogram")
	for _, st := range s.stats.routes {
		total := int64(0)
		for i, bound := range buckets {
			total += st.buckets[i].Load()
			fmt.Fprintf(w, histogram+"_bucket{%s,le=\"%v\"} %d\n", st.labels, bound, total)
		}
		fmt.Fprintf(w, histogram+"_sum{%s} %g\n", st.labels, float64(st.nanoseconds.Load())/1e9)
		fmt.Fprintf(w, histogram+"_count{%s} %d\n", st.labels, total)
	}
}

// serverMetrics has the 500s and 503s of every route from the start: rate() does not see the first
// of a series that begins with it.
func (s *server) serverMetrics() []metric {
	build := fmt.Sprintf("version=%q,commit=%q,go=%q", version, commit(debug.ReadBuildInfo()),
		runtime.Version())
	requests := labelled{}
	for _, st := range s.stats.routes {
		for status := range st.statuses {
			n := st.statuses[status].Load()
			if n > 0 || status == http.StatusInternalServerError || status == errBusy.status {
				requests[fmt.Sprintf("%s,status=\"%d\"", st.labels, status)] = n
			}
		}
	}
	limiters := map[string]*limiter{"requests": &s.requests, "passwords": &s.hasher.slots,
		"bodies": &s.bodies, "answers": &s.answers, "connections": &s.store.conns,
		"searches": &s.store.expensive, "batches": &s.store.bulk, "deletions": &s.store.deletions,
		"confirmations": &s.confirmations}
	if s.embedder != nil {
		limiters["embeddings"] = &s.embedder.calls
		limiters["embedding_batches"] = &s.embedder.batches
	}
	units, used, waiting, refused := labelled{}, labelled{}, labelled{}, labelled{}
	for name, l := range limiters {
		label := fmt.Sprintf("limiter=%q", name)
		units[label], refused[label] = l.total, l.refused.Load()
		used[label], waiting[label] = l.state()
	}
	draining := 0
	if s.draining.Load() {
		draining = 1
	}
	recalls := labelled{}
	for _, x := range *cmp.Or(s.stats.indexes.Load(), new([]vectorIndex)) {
		if x.EfSearch > 0 {
			recalls[fmt.Sprintf("user_id=\"%d\"", x.Owner)] = x.Recall
		}
	}
	return []metric{
		{"latch_build_info", "The program.", labelled{build: 1}},
		{"latch_draining", "1 while the server is shutting down.", draining},
		{"latch_http_requests_total", "Requests answered, by route and status.", requests},
		{"latch_http_requests_in_flight", "Requests being answered.", s.stats.inFlight.Load()},
		{"latch_refresh_reuse_total", "Sessions ended because a refresh token came again.",
			s.stats.refreshReuse.Load()},
		{"latch_index_recall", "Share of the nearest that an index found.", recalls},
		{"latch_limiter_units", "Units that may be in use at once: slots, or bytes.", units},
		{"latch_limiter_units_used", "Units in use.", used},
		{"latch_limiter_waiting", "Requests that wait for units.", waiting},
		{"latch_limiter_refused_total", "Requests refused with 503 busy.", refused},
	}
}

// resourceMetrics has those of the pool, and of the process by the names that Prometheus' client
// libraries use. macOS has no /proc for the last four.
func (s *server) resourceMetrics() []metric {
	pool := s.store.pool.Stat()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	var cpu syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &cpu)
	all := []metric{
		{"latch_db_connections", "Connections of the pool, by state.", labelled{
			`state="acquired"`: pool.AcquiredConns(), `state="idle"`: pool.IdleConns(),
			`state="opening"`: pool.ConstructingConns()}},
		{"latch_db_connections_max", "Connections that the pool may have.", pool.MaxConns()},
		{"latch_db_connections_opened_total", "Connections opened.", pool.NewConnsCount()},
		{"latch_db_acquires_total", "Connections taken from the pool.", pool.AcquireCount()},
		{"latch_db_acquires_waited_total", "Of these, how many had to wait.",
			pool.EmptyAcquireCount()},
		{"latch_db_acquire_wait_seconds_total", "Time spent waiting for a connection.",
			pool.EmptyAcquireWaitTime().Seconds()},
		{"go_info", "The Go release.", labelled{fmt.Sprintf("version=%q", runtime.Version()): 1}},
		{"go_goroutines", "Goroutines.", runtime.NumGoroutine()},
		{"go_memstats_sys_bytes", "Memory that the Go runtime holds.", m.Sys},
		{"go_memstats_heap_alloc_bytes",
			"Memory in objects, dead ones until the next collection included.", m.HeapAlloc},
		{"go_gc_cycles_total_gc_cycles_total", "Garbage collections.", m.NumGC},
		{"process_start_time_seconds", "When the process started, in seconds since 1970.",
			s.start.Unix()},
		{"process_cpu_seconds_total", "Processor time, user and system.",
			time.Duration(cpu.Utime.Nano() + cpu.Stime.Nano()).Seconds()},
	}
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		var size, resident int
		var limit syscall.Rlimit
		syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
		pages, _ := os.ReadFile("/proc/self/statm")
		fmt.Sscan(string(pages), &size, &resident)
		all = append(all, []metric{
			{"process_open_fds", "Open files and sockets.", len(files)},
			{"process_max_fds", "Files and sockets that may be open.", limit.Cur},
			{"process_resident_memory_bytes", "Memory in RAM.", resident * os.Getpagesize()},
			{"process_virtual_memory_bytes", "Address space in use.", size * os.Getpagesize()},
		}...)
	}
	return all
}

// serveMetrics opens METRICS_ADDR, on the loopback address where it names no host, and serves
// until the returned server is closed.
func (s *server) serveMetrics() (*http.Server, error) {
	address := s.cfg.MetricsAddr
	if port := strings.TrimPrefix(address, ":"); !strings.Contains(port, ":") {
		address = "127.0.0.1:" + port
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("METRICS_ADDR: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		s.writeMetrics(w)
	})
	if s.cfg.Debug {
		mux.HandleFunc("GET /debug/pprof/{name...}", serveProfile)
	}
	hs := &http.Server{Addr: listener.Addr().String(), Handler: mux, ReadTimeout: headerTimeout,
		WriteTimeout: writeTimeout}
	go hs.Serve(listener)
	s.log.Info("metrics", "address", hs.Addr)
	return hs, nil
}

// serveProfile writes a profile for go tool pprof: "profile", of the processor for ?seconds=30, or
// another, as heap, with ?debug=1 as text; without a name, all names. net/http/pprof adds 0.6 MB.
func serveProfile(w http.ResponseWriter, r *http.Request) {
	detail, _ := strconv.Atoi(r.FormValue("debug"))
	seconds, _ := strconv.Atoi(r.FormValue("seconds"))
	name := r.PathValue("name")
	profile := pprof.Lookup(name)
	switch {
	case profile != nil:
		profile.WriteTo(w, detail)
	case name == "":
		fmt.Fprintln(w, "profile")
		for _, profile := range pprof.Profiles() {
			fmt.Fprintln(w, profile.Name())
		}
	case name == "profile":
		duration := time.Duration(cmp.Or(seconds, 30)) * time.Second
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(duration + writeTimeout))
		if err := pprof.StartCPUProfile(w); err != nil { // another one is being made
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		defer pprof.StopCPUProfile()
		ctx, cancel := context.WithTimeout(r.Context(), duration)
		defer cancel()
		<-ctx.Done()
	default:
		http.NotFound(w, r)
	}
}

// milliseconds returns d in ms, to the microsecond.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

type health struct {
	Status   string `json:"status" example:"healthy"`
	Database string `json:"database,omitempty" example:"connected"`
}

// health does not ask the database: an orchestrator would restart every replica when it is away.
func (s *server) health(context.Context, *caller, none) (health, error) {
	return health{Status: "healthy"}, nil
}

// healthDB fails without the database and while the server is shutting down, so that load balancers
// send no requests here.
func (s *server) healthDB(ctx context.Context, _ *caller, _ none) (health, error) {
	if s.draining.Load() {
		return health{}, errShuttingDown
	}
	if err := s.store.ping(ctx); err != nil {
		return health{}, errors.Join(errUnavailable, err)
	}
	return health{"healthy", "connected"}, nil
}
