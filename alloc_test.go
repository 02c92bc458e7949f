package main

// alloc_test.go holds what a request costs: the garbage it makes. (TestQueriesPerRequest counts statements, and
// time is for "make bench".)

import (
	"net/http"
	"net/http/httptest"
	"runtime/debug"
	"slices"
	"testing"
)

// sink is the least that a ResponseWriter can be, so that only the program's own allocations are counted.
type sink struct {
	header http.Header
	status int
}

func (w *sink) Header() http.Header         { return w.header }
func (w *sink) Write(b []byte) (int, error) { return len(b), nil }
func (w *sink) WriteHeader(status int)      { w.status = status }

// allocations is how many a GET of path makes on its way through the whole chain.
func allocations(t testing.TB, a *app, path, token string) float64 {
	t.Helper()
	r := httptest.NewRequest("GET", path, nil)
	r.Header.Set("Authorization", "Bearer "+token)
	w := &sink{header: http.Header{}}
	n := testing.AllocsPerRun(200, func() {
		clear(w.header)
		a.server.ServeHTTP(w, r)
	})
	if w.status != 200 {
		t.Errorf("GET %s = %d", path, w.status)
	}
	return n
}

func TestAllocations(t *testing.T) { // not parallel: all allocations are counted
	a := newApp(t)
	m := a.signUp("ada")
	info, _ := debug.ReadBuildInfo()
	raced := slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) // the detector's own, and pools that forget
	for path, most := range map[string]float64{"/api/v1/health": 25, "/api/v1/users/me": 110} {
		if got := allocations(t, a, path, m.AccessToken); got > most && !raced || got > most+12 {
			t.Errorf("GET %s makes %.0f allocations, want at most %.0f", path, got, most)
		}
	}
}
