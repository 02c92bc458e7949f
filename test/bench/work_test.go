//go:build bench

package bench

// work_test.go counts what a request costs inside the program and in PostgreSQL, and profiles it.

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// probeSource is added to the program for the rows that need a count from inside the process.
const probeSource = `package main

import (
	_ "expvar"
	"net/http"
	_ "net/http/pprof"
	"os"
)

// probing serves the runtime's counts and profiles.
var probing = func() bool {
	go http.ListenAndServe(os.Getenv("PROBE_ADDR"), nil)
	return true
}()
`

// launchProbed starts the program with probeSource, and returns the address of the counts.
func (b *bench) launchProbed() (p *process, address string) {
	b.Helper()
	dir := b.TempDir()
	probe, overlay := filepath.Join(dir, "probe.go"), filepath.Join(dir, "overlay.json")
	source, err := filepath.Abs(root)
	if err == nil {
		err = os.WriteFile(probe, []byte(probeSource), 0o600)
	}
	if err == nil {
		replaced := map[string]string{filepath.Join(source, "probe.go"): probe}
		err = os.WriteFile(overlay, []byte(toJSON(map[string]any{"Replace": replaced})), 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	binary := b.build("probed", root, "-tags=nethttpomithttp2", "-overlay="+overlay)
	address = "127.0.0.1:" + freePort(b.T)
	return b.launch(binary, append(b.env(b.url), "PROBE_ADDR="+address)), "http://" + address
}

// get returns what a URL answers.
func (b *bench) get(url string) []byte {
	b.Helper()
	res, err := http.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		b.Fatalf("%s: %s, %v", url, res.Status, err)
	}
	return body
}

// mallocs returns how many objects a probed process has allocated.
func (b *bench) mallocs(address string) float64 {
	b.Helper()
	var counts struct{ Memstats struct{ Mallocs float64 } }
	if err := json.Unmarshal(b.get(address+"/debug/vars"), &counts); err != nil {
		b.Fatal(err)
	}
	return counts.Memstats.Mallocs
}

// countWork adds the rows that do not depend on the machine.
func (b *bench) countWork() {
	p, address := b.launchProbed()
	defer p.stop()
	c, err := dial(p)
	if err != nil {
		b.Fatal(err)
	}
	token := b.tokens.access(1)
	allocations := func(n int) float64 {
		before := b.mallocs(address)
		for range n {
			if _, err := c.do("GET", "/users/me", token, ""); err != nil {
				b.Fatal(err)
			}
		}
		return b.mallocs(address) - before
	}
	allocations(100)
	const n = 10_000
	each := (allocations(n) - allocations(0)) / n
	if each < 1 {
		b.Fatalf("%d requests made %.0f allocations each", n, each)
	}
	b.add(row{
		name: "allocations of `GET /users/me`, net/http's included",
		here: fmt.Sprintf("%.0f", each),
	})
	b.add(row{name: "statements, BEGIN and COMMIT counted", here: b.countStatements()})
}

// countStatements lists how many statements PostgreSQL executes for each request.
func (b *bench) countStatements() string {
	c := b.capture()
	access := c.tokens.AccessToken
	c.app.must(b.T, "GET", "/users/me", access, nil, nil) // so that a connection is open
	second := map[string]string{"email": "b@example.com", "password": password}
	var list []string
	for _, r := range []struct {
		method, path, token string
		body                any
	}{
		{"GET", "/health", "", nil},
		{"GET", "/users/me", access, nil},
		{"GET", "/users/me", "bad", nil},
		{"PUT", "/users/me", access, map[string]string{"full_name": "Ada"}},
		{"GET", "/users", access, nil},
		{"POST", "/auth/refresh", "", refreshBody(c.tokens.RefreshToken)},
		{"POST", "/auth/register", "", second},
		{"POST", "/auth/login", "", credentials("b@example.com")},
		{"GET", "/auth/sessions", access, nil},
		{"POST", "/documents", access, newDocument()},
		{"GET", "/documents", access, nil},
		{"POST", "/documents/search", access, searchBody(randomVector())},
		{"POST", "/auth/logout", access, nil},
	} {
		statements := c.statements(b.T, func() {
			status, answer, err := c.app.call(r.method, r.path, r.token, r.body)
			if err != nil || status >= 300 && r.token != "bad" {
				b.Fatalf("%s %s: %d %s %v", r.method, r.path, status, answer, err)
			}
		})
		name := r.method + " " + r.path
		if r.token == "bad" {
			name += " with a bad token"
		}
		list = append(list, fmt.Sprintf("`%s` %d", name, len(statements)))
	}
	c.tokens = c.app.login(b.T, "ada@example.com") // the session has ended
	c.readSession(b.T)
	return strings.Join(list, ", ")
}

// profile writes a CPU profile of the program under the reads that a service sees most.
func (b *bench) profile() {
	p, address := b.launchProbed()
	me, search := b.tokenFile("GET", "/users/me", "", 1, tokenUsers), b.searchFile(firstOwner)
	var wg sync.WaitGroup
	wg.Go(func() {
		wrk(b.T, p, me, 32, 10*time.Second)
		wrk(b.T, p, search, 8, 10*time.Second)
	})
	profile := b.get(address + "/debug/pprof/profile?seconds=20")
	wg.Wait()
	if err := os.WriteFile(*profileTo, profile, 0o644); err != nil {
		b.Fatal(err)
	}
}
