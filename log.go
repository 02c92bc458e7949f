package main

// log.go is the form of the log: slog's. But its JSON handler takes a sixteenth of a health check for the one line that
// each request leaves, load generator and all (BENCHMARKS.md), so that line is written here.

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"
)

// newLogger logs in the form and from the level that the settings say. w is written to by several at once, whole lines.
func newLogger(cfg *config, w io.Writer) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(cfg.LogLevel)) // config has only the names that slog knows
	options := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(&jsonHandler{slog.NewJSONHandler(w, options), w, sync.Pool{New: func() any { return new([]byte) }}})
}

// jsonHandler is slog's, with what it writes to and buffers for lines.
type jsonHandler struct {
	*slog.JSONHandler
	w     io.Writer
	lines sync.Pool // of *[]byte
}

// logAccess leaves the line of an answered request, where h lets its level pass.
func (x *exchange) logAccess(h slog.Handler) {
	level := slog.LevelInfo
	if x.status >= 500 {
		level = slog.LevelError
	}
	if !h.Enabled(context.Background(), level) {
		return
	}
	if j, ok := h.(*jsonHandler); ok {
		b := j.lines.Get().(*[]byte)
		*b = x.appendAccess((*b)[:0], level)
		j.w.Write(*b) // nobody could be told of a failure
		j.lines.Put(b)
		return
	}
	line := slog.NewRecord(x.start.Add(x.took), level, "request", 0) // the logger would look up the place in the source
	line.AddAttrs(slog.String("request_id", x.caller.requestID), slog.String("method", x.method), slog.String("route", x.route), slog.Int("status", x.status),
		slog.Float64("duration_ms", milliseconds(x.took)), slog.Int("bytes", x.bytes), slog.Int64("user_id", x.caller.ID), slog.String("client", x.caller.client.String()))
	h.Handle(context.Background(), line)
}

// appendAccess appends to b what slog's JSON handler would write. The request id is printable ASCII.
func (x *exchange) appendAccess(b []byte, level slog.Level) []byte {
	b = x.start.Add(x.took).AppendFormat(append(b, `{"time":"`...), time.RFC3339Nano)
	b = append(append(append(b, `","level":"`...), level.String()...), `","msg":"request","request_id":`...)
	b = strconv.AppendQuote(b, x.caller.requestID)
	b = append(append(b, `,"method":"`...), x.method...)
	b = append(append(b, `","route":"`...), x.route...)
	b = strconv.AppendInt(append(b, `","status":`...), int64(x.status), 10)
	b = strconv.AppendFloat(append(b, `,"duration_ms":`...), milliseconds(x.took), 'f', -1, 64)
	b = strconv.AppendInt(append(b, `,"bytes":`...), int64(x.bytes), 10)
	b = strconv.AppendInt(append(b, `,"user_id":`...), x.caller.ID, 10)
	b = append(append(b, `,"client":"`...), x.caller.client.String()...)
	return append(b, "\"}\n"...)
}

// milliseconds is d to the microsecond.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
