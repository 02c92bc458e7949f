package main

// metrics.go counts what the one on call asks for, and serves it in Prometheus' text format on a
// listener of its own, METRICS_ADDR, which is not for the world: it has no login. Counting costs a
// few atomic additions.

import (
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// buckets are the upper bounds of the latency histogram in seconds: from a token check on a unix
// socket to the longest that a request may take.
var buckets = [...]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, math.Inf(1)}

// routeStats are the counts of one row of the table.
type routeStats struct {
	method, route string
	statuses      [600]atomic.Int64
	buckets       [len(buckets)]atomic.Int64
	nanoseconds   atomic.Int64
}

// serverStats are the counts of a server. Requests that no row matches count in other.
type serverStats struct {
	routes       []*routeStats
	other        routeStats
	inFlight     atomic.Int64
	refreshReuse atomic.Int64 // refresh tokens that came again too late
}

func (st *routeStats) observe(status int, took time.Duration) {
	if status >= 100 && status < len(st.statuses) {
		st.statuses[status].Add(1)
	}
	i, _ := slices.BinarySearch(buckets[:], took.Seconds())
	st.buckets[i].Add(1)
	st.nanoseconds.Add(int64(took))
}

func (st *routeStats) labels() string { return fmt.Sprintf("method=%q,route=%q", st.method, st.route) }

// add registers the counts of a method of a route.
func (st *serverStats) add(method, route string) *routeStats {
	rs := &routeStats{method: method, route: route}
	st.routes = append(st.routes, rs)
	return rs
}

// milliseconds returns d in ms, to the microsecond.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// metricWriter writes Prometheus' text format, version 0.0.4.
type metricWriter struct{ io.Writer }

func (w metricWriter) head(name, kind, help string) {
	fmt.Fprintf(w, "# HELP %[1]s %[2]s\n# TYPE %[1]s %[3]s\n", name, help, kind)
}

func (w metricWriter) one(name, kind, help string, value any) {
	w.head(name, kind, help)
	fmt.Fprintln(w, name, value)
}

// writeMetrics writes all counts.
func (s *server) writeMetrics(out io.Writer) {
	w := metricWriter{out}
	s.writeRequests(w)
	w.one("latch_http_requests_in_flight", "gauge", "Requests being answered.",
		s.stats.inFlight.Load())
	w.one("latch_refresh_reuse_total", "counter",
		"Sessions ended because a refresh token came again.", s.stats.refreshReuse.Load())
	s.writeLimiters(w)
	s.writePool(w)
	writeRuntime(w)
	w.one("process_start_time_seconds", "gauge",
		"When the process started, in seconds since 1970.", s.start.Unix())
	draining := 0
	if s.draining.Load() {
		draining = 1
	}
	w.one("latch_draining", "gauge", "1 while the server is shutting down.", draining)
}

func (s *server) writeRequests(w metricWriter) {
	all := slices.Concat(s.stats.routes, []*routeStats{&s.stats.other})
	w.head("latch_http_requests_total", "counter", "Requests answered, by route and status.")
	for _, st := range all {
		for status := range st.statuses {
			if n := st.statuses[status].Load(); n > 0 {
				fmt.Fprintf(w, "latch_http_requests_total{%s,status=\"%d\"} %d\n",
					st.labels(), status, n)
			}
		}
	}
	const histogram = "latch_http_request_duration_seconds"
	w.head(histogram, "histogram", "Time to answer, by route.")
	for _, st := range all {
		total := int64(0)
		for i, bound := range buckets {
			total += st.buckets[i].Load()
			fmt.Fprintf(w, histogram+"_bucket{%s,le=\"%v\"} %d\n", st.labels(), bound, total)
		}
		seconds := float64(st.nanoseconds.Load()) / 1e9
		fmt.Fprintf(w, histogram+"_sum{%s} %g\n", st.labels(), seconds)
		fmt.Fprintf(w, histogram+"_count{%s} %d\n", st.labels(), total)
	}
}

// writeLimiters writes the state of every limiter, by name.
func (s *server) writeLimiters(w metricWriter) {
	limiters := []struct {
		name string
		*limiter
	}{
		{"requests", &s.requests}, {"passwords", &s.hasher.slots}, {"bodies", &s.bodies},
		{"answers", &s.answers},
		{"connections", &s.store.conns}, {"searches", &s.store.expensive}, {"batches", &s.store.bulk},
	}
	if s.embedder != nil {
		limiters = append(limiters, struct {
			name string
			*limiter
		}{"embeddings", &s.embedder.calls})
	}
	w.head("latch_limiter_units", "gauge", "Units that may be in use at once: slots, or bytes.")
	for _, l := range limiters {
		fmt.Fprintf(w, "latch_limiter_units{limiter=%q} %d\n", l.name, l.total)
	}
	w.head("latch_limiter_units_used", "gauge", "Units in use.")
	for _, l := range limiters {
		used, _ := l.state()
		fmt.Fprintf(w, "latch_limiter_units_used{limiter=%q} %d\n", l.name, used)
	}
	w.head("latch_limiter_waiting", "gauge", "Requests that wait for units.")
	for _, l := range limiters {
		_, waiting := l.state()
		fmt.Fprintf(w, "latch_limiter_waiting{limiter=%q} %d\n", l.name, waiting)
	}
	w.head("latch_limiter_refused_total", "counter", "Requests refused with 503 busy.")
	for _, l := range limiters {
		fmt.Fprintf(w, "latch_limiter_refused_total{limiter=%q} %d\n", l.name, l.refused.Load())
	}
}

func (s *server) writePool(w metricWriter) {
	pool := s.store.pool.Stat()
	w.head("latch_db_connections", "gauge", "Connections of the pool, by state.")
	for _, row := range []struct {
		state string
		n     int32
	}{
		{"acquired", pool.AcquiredConns()}, {"idle", pool.IdleConns()},
		{"opening", pool.ConstructingConns()},
	} {
		fmt.Fprintf(w, "latch_db_connections{state=%q} %d\n", row.state, row.n)
	}
	w.one("latch_db_connections_max", "gauge", "Connections that the pool may have.",
		pool.MaxConns())
	w.one("latch_db_connections_opened_total", "counter", "Connections opened.",
		pool.NewConnsCount())
	w.one("latch_db_acquires_total", "counter", "Connections taken from the pool.",
		pool.AcquireCount())
	w.one("latch_db_acquires_waited_total", "counter", "Of these, how many had to wait.",
		pool.EmptyAcquireCount())
	w.one("latch_db_acquire_wait_seconds_total", "counter",
		"Time spent waiting for a connection.",
		fmt.Sprintf("%g", pool.EmptyAcquireWaitTime().Seconds()))
}

func writeRuntime(w metricWriter) {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(samples)
	w.one("go_goroutines", "gauge", "Goroutines.", runtime.NumGoroutine())
	w.one("go_memory_bytes", "gauge", "Memory that the Go runtime holds.",
		samples[0].Value.Uint64())
	w.one("go_heap_objects_bytes", "gauge",
		"Memory in objects, dead ones until the next collection included.",
		samples[1].Value.Uint64())
	w.one("go_gc_cycles_total", "counter", "Garbage collections.", samples[2].Value.Uint64())
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
	hs := &http.Server{Addr: listener.Addr().String(), Handler: mux, ReadTimeout: headerTimeout,
		WriteTimeout: writeTimeout}
	go hs.Serve(listener)
	s.log.Info("metrics", "address", listener.Addr().String())
	return hs, nil
}
