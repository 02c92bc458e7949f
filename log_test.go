package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAccessLine checks the one line that each request leaves.
func TestAccessLine(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	var log logBuffer
	m := a.signUp("ada")
	a.server.log = newLogger(&config{}, &log)
	ans := a.send("GET", "/api/v1/users/1?", http.Header{"Authorization": {"Bearer " + m.AccessToken}, "X-Request-Id": {"line-1"}}, nil)
	eventually(t, "the line", func() bool { return strings.Count(log.text(), "\n") == 1 })
	var line map[string]any
	if err := json.Unmarshal([]byte(log.text()), &line); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"level": "INFO", "msg": "request", "request_id": "line-1", "method": "GET", "route": "/users/{id}", "status": 403.0, "bytes": float64(len(ans.body)), "user_id": float64(m.ID), "client": "127.0.0.1"}
	for name, value := range want {
		if line[name] != value {
			t.Errorf("%s is %v, want %v", name, line[name], value)
		}
	}
	if got, want := fmt.Sprint(slices.Sorted(maps.Keys(line))), "[bytes client duration_ms level method msg request_id route status time user_id]"; got != want {
		t.Errorf("the line has %s, want %s", got, want)
	}
}

// TestAccessLineForm holds the line that is written by hand against slog's, byte for byte.
func TestAccessLineForm(t *testing.T) {
	t.Parallel()
	var printable strings.Builder
	for c := '!'; c <= '~'; c++ {
		printable.WriteRune(c)
	}
	for i := range 1000 {
		x := &exchange{
			caller: caller{requestID: printable.String(), client: netip.MustParseAddr([]string{"192.0.2.1", "2001:db8::1"}[i%2])},
			start:  time.Now().Add(time.Duration(rand.Int64N(1e15))), took: time.Duration(rand.Int64N(1 << rand.Int64N(50))),
			method: "GET", route: "/users/{id}", status: 100 + i%500, bytes: rand.IntN(1 << 20),
		}
		x.caller.ID = rand.Int64N(1 << 62)
		if i%3 == 0 {
			x.start, x.took = x.start.UTC().Truncate(time.Second), 0
		}
		var ours, slogs strings.Builder
		x.logAccess(newLogger(&config{}, &ours).Handler())
		x.logAccess(slog.NewJSONHandler(&slogs, nil))
		if ours.String() != slogs.String() {
			t.Fatalf("the line is %s, and slog's %s", &ours, &slogs)
		}
	}
}

// TestLogger checks forms and levels of the log.
func TestLogger(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		format, level string
		status        int
		want          string
	}{
		{"json", "info", 200, `"level":"INFO","msg":"request","request_id":"line-1"`},
		{"json", "warn", 200, ""},
		{"json", "warn", 500, `"level":"ERROR","msg":"request","request_id":"line-1"`},
		{"text", "info", 200, `level=INFO msg=request request_id=line-1`},
		{"text", "error", 404, ""},
		{"text", "error", 503, `level=ERROR msg=request request_id=line-1`},
	} {
		var log strings.Builder
		x := &exchange{status: c.status, caller: caller{requestID: "line-1"}}
		x.logAccess(newLogger(&config{LogFormat: c.format, LogLevel: c.level}, &log).Handler())
		if got := log.String(); !strings.Contains(got, c.want) || got == "" != (c.want == "") || strings.Count(got, "\n") > 1 {
			t.Errorf("%s from %s: the line of a %d is %q, want %q", c.format, c.level, c.status, got, c.want)
		}
	}
	var log strings.Builder
	newLogger(&config{LogFormat: "json"}, &log).With("a", 1).Info("other", "b", "2")
	if !strings.HasSuffix(log.String(), `,"level":"INFO","msg":"other","a":1,"b":"2"}`+"\n") {
		t.Errorf("another line is %s", &log)
	}
}
