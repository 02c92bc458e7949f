package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// accessRow has the status of a call for each kind of caller.
type accessRow struct {
	method, path, body             string
	nobody, user, otherUser, admin int // in this order
}

// accessRows returns the calls of TestAccess in their order, one for each route.
func accessRows() []accessRow {
	fresh := func(name string) string {
		return fmt.Sprintf(`{"email":"%s@example.com","password":"%s"}`, name, goodPass)
	}
	return []accessRow{
		{"GET", "/health", "", 200, 200, 200, 200},
		{"GET", "/health/db", "", 200, 200, 200, 200},
		{"POST", "/auth/register", fresh("ada"), 409, 409, 409, 409},
		{"POST", "/auth/login", `{"username":"ada@example.com","password":"` + goodPass + `"}`,
			200, 200, 200, 200},
		{"POST", "/auth/refresh", `{"refresh_token":"x"}`, 401, 401, 401, 401},
		{"GET", "/auth/sessions", "", 401, 200, 200, 200},
		{"GET", "/users/me", "", 401, 200, 200, 200},
		{"PUT", "/users/me", "{}", 401, 200, 200, 200},
		{"PATCH", "/users/me", "{}", 401, 200, 200, 200},
		{"GET", "/users", "", 401, 403, 403, 200},
		{"POST", "/users", fresh("ada"), 401, 403, 403, 409},
		{"GET", "/users/{id}", "", 401, 403, 403, 200},
		{"PUT", "/users/{id}", "{}", 401, 403, 403, 200},
		{"PATCH", "/users/{id}", "{}", 401, 403, 403, 200},
		// A session of somebody else.
		{"DELETE", "/auth/sessions/{id}", "", 401, 404, 404, 404},
		{"DELETE", "/users/{id}", "", 401, 403, 403, 204},
		{"DELETE", "/users/me", `{"current_password":"wrong canary"}`, 401, 403, 403, 403},
		{"POST", "/documents", `{"content":"theirs","embedding":[1,0,0]}`, 401, 201, 201, 201},
		{"GET", "/documents", "", 401, 200, 200, 200},
		{"DELETE", "/documents", "", 401, 422, 422, 422},
		{"GET", "/documents/count", "", 401, 200, 200, 200},
		{"POST", "/documents/search", `{"embedding":[1,0,0]}`, 401, 200, 200, 200},
		{"GET", "/documents/{id}", "", 401, 404, 404, 404}, // of somebody else, for an admin too
		{"PUT", "/documents/{id}", `{"metadata":{}}`, 401, 404, 404, 404},
		{"DELETE", "/documents/{id}", "", 401, 404, 404, 404},
		{"POST", "/auth/revoke", `{"token":"x"}`, 200, 200, 200, 200},
		{"POST", "/documents/batch", `{"documents":[{"content":"theirs","embedding":[1,0,0]}]}`,
			401, 201, 201, 201},
		{"POST", "/auth/logout", "", 401, 204, 204, 204},
	}
}

// TestAccess calls every route of the table as nobody, as a user, as another user and as an admin.
// A route that is missing here fails it.
func TestAccess(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	admin, u, other := a.signUpAdmin("root"), a.signUp("ada"), a.signUp("bob")
	a.signUpAdmin("second") // so that the last-admin rule stays out of this
	session := func(m member) string {
		c, _, _ := parseAccess(a.keys, m.AccessToken)
		return fmt.Sprint(c.Session)
	}
	theirs := a.signUp("carol")
	ids := map[string]string{ // of somebody else, by what stands before {id}
		"/auth/sessions/": session(theirs),
		"/users/":         fmt.Sprint(a.signUp("victim").ID),
		"/documents/": a.create(theirs.AccessToken, "/documents",
			`{"content":"private","embedding":[1,0,0]}`),
	}
	covered := map[string]bool{}
	for _, row := range accessRows() {
		covered[row.method+" "+row.path] = true
		before, _, hasID := strings.Cut(row.path, "{id}")
		if hasID && ids[before] == "" {
			t.Errorf("no id of somebody else for %s", row.path)
		}
		for who, want := range map[string]int{"": row.nobody, u.AccessToken: row.user,
			other.AccessToken: row.otherUser, admin.AccessToken: row.admin} {
			var body any
			if row.body != "" {
				body = row.body
			}
			path := "/api/v1" + strings.Replace(row.path, "{id}", ids[before], 1)
			ans := a.do(row.method, path, who, body)
			if ans.status != want {
				t.Errorf("%s = %d, want %d: %s", ans.call, ans.status, want, ans.body)
			}
		}
	}
	for _, rt := range a.table {
		if !covered[rt.method+" "+rt.path] {
			t.Errorf("no row for %s %s", rt.method, rt.path)
		}
	}
}

// TestPublicRoutes pins the routes that need no token: a new one has to be put here on purpose.
func TestPublicRoutes(t *testing.T) {
	t.Parallel()
	var public []string
	for _, rt := range (&server{cfg: &config{}}).routes() {
		if rt.access.isPublic() {
			public = append(public, rt.path)
		}
	}
	const want = "[/health /health/db /auth/register /auth/login /auth/refresh /auth/revoke]"
	if got := fmt.Sprint(public); got != want {
		t.Errorf("public routes are %s, want %s", got, want)
	}
}

func TestGateRefusesBadRows(t *testing.T) {
	t.Parallel()
	s := &server{cfg: &config{}, mux: http.NewServeMux(), paths: map[string]handlers{}}
	good := route{"GET", "/x", anyone, "x", handle(s.health), 200, nil, "x"}
	for name, spoil := range map[string]func(*route){
		"repeated": func(*route) {
			other := good
			other.path = "/repeated"
			s.addRow(&other)
		},
		"no access":  func(r *route) { r.access = unset },
		"no status":  func(r *route) { r.status = 0 },
		"no name":    func(r *route) { r.name = "" },
		"no summary": func(r *route) { r.summary = "" },
		"bad tag": func(r *route) {
			r.endpoint = handle(func(context.Context, *caller, struct {
				A string `jsno:"a"`
			}) (none, error) {
				return none{}, nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("addRow accepts it")
				}
			}()
			row := good
			spoil(&row)
			row.path = "/" + strings.ReplaceAll(name, " ", "")
			s.addRow(&row)
		})
	}
	s.addRow(&good)
}

func TestNoRoute(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	for _, path := range []string{"/nothing", "/api/v1", "/api/v1/", "/api/v1/users/",
		"/api/v1/users/me/", "//api/v1/health", "/api/v1//health", "/api/v1/./health",
		"/api/v1/users/../health", "/api/v1/users/%6De", "/api/v1/health%00",
		"/api/v1/users/1%2F2", "/API/v1/health", "/api/v1/users/1/x", "/api/v1/health;x=1"} {
		ans := a.want(a.do("GET", path, m.AccessToken, nil), 404, "not_found")
		if ans.header.Get("Location") != "" {
			t.Errorf("%s redirects", path)
		}
	}
	for call, allow := range map[string]string{
		"POST /api/v1/health":             "GET, HEAD",
		"DELETE /api/v1/auth/login":       "POST",
		"POST /api/v1/users/me":           "GET, HEAD, PUT, PATCH, DELETE",
		"OPTIONS /api/v1/users":           "GET, HEAD, POST",
		"BREW /api/v1/health":             "GET, HEAD",
		"PUT /api/v1/auth/sessions/1":     "DELETE",
		"PUT /api/v1/documents/search":    "POST",
		"GET /api/v1/documents/search":    "POST",
		"DELETE /api/v1/documents/search": "POST",
	} {
		method, path, _ := strings.Cut(call, " ")
		ans := a.want(a.do(method, path, "", nil), 405, "method_not_allowed")
		if got := ans.header.Get("Allow"); got != allow {
			t.Errorf("%s: Allow %q, want %q", call, got, allow)
		}
	}
	ans := a.do("HEAD", "/api/v1/health", "", nil)
	if ans.status != 200 || len(ans.body) != 0 || ans.header.Get("Content-Length") != "20" {
		t.Errorf("HEAD = %d, %q, %v", ans.status, ans.body, ans.header)
	}
}

// TestRawRequests sends requests that no client library would send.
func TestRawRequests(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	const (
		host    = " HTTP/1.1\r\nHost: x\r\n"
		closing = host + "Connection: close\r\n"
		typed   = "Content-Type: application/json\r\n"
	)
	for request, want := range map[string]string{
		"OPTIONS *" + closing + "\r\n":                                                      "404",
		"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nConnection: close\r\n\r\n":                    "404",
		"GET http://evil/api/v1/health HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n": "200",
		"GET /api/v1/health" + closing + "Content-Length: 3\r\n\r\nabc":                     "200",
		"POST /api/v1/auth/login" + closing + "Content-Length: 0\r\n\r\n":                   "415",
		"POST /api/v1/auth/register" + host + typed +
			"Content-Length: 9000000\r\nExpect: 100-continue\r\n\r\n": "413",
		"POST /api/v1/auth/register" + closing + typed +
			"Transfer-Encoding: chunked\r\n\r\n3\r\n{  \r\nzzz\r\n": "400",
		"GET /api/v1/health\x00" + closing + "\r\n": "400",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(a.web.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, request)
		line, err := bufio.NewReader(conn).ReadString('\n')
		if fields := strings.Fields(line); len(fields) < 2 || fields[1] != want {
			t.Errorf("%q: %q (%v), want %s", request, line, err, want)
		}
		conn.Close()
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	post := func(media, body string) answer {
		header := http.Header{}
		if media != "" {
			header.Set("Content-Type", media)
		}
		return a.send("POST", "/api/v1/auth/login", header, strings.NewReader(body))
	}
	good := `{"username":"ada@example.com","password":"` + goodPass + `"}`
	for _, media := range []string{"application/json", "Application/JSON",
		"application/json; charset=utf-8", `application/json;charset="UTF-8"`,
		"application/json; charset=utf8", "application/json; boundary=x",
		"application/json;odata.metadata=minimal"} {
		a.want(post(media, good), 200, "")
	}
	for _, media := range []string{"", "text/plain", "application/xml",
		"application/json; charset=latin1", "multipart/mixed; boundary=x",
		"application/json, text/plain", "json", "application/problem+json", ";"} {
		a.want(post(media, good), 415, "unsupported_media_type")
	}
	login := func(header http.Header, body io.Reader) answer {
		return a.send("POST", "/api/v1/auth/login", header, body)
	}
	a.want(login(http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}},
		strings.NewReader(good)), 415, "unsupported_media_type")
	a.want(login(http.Header{"Content-Type": {"application/json", "application/json"}},
		strings.NewReader(good)), 415, "unsupported_media_type")
	a.want(login(http.Header{"Content-Type": {"application/json"},
		"Content-Encoding": {"identity"}}, strings.NewReader("\ufeff"+good)), 200, "")
	twice := http.Header{"Content-Type": {"application/json"},
		"Content-Encoding": {"identity", "gzip"}}
	a.want(login(twice, strings.NewReader(good)), 415, "unsupported_media_type")
	padded := func(n int) string {
		return good[:len(good)-1] + strings.Repeat(" ", n-len(good)) + "}"
	}
	a.want(post("application/json", padded(maxBody)), 200, "")
	a.want(post("application/json", padded(maxBody+1)), 413, "body_too_large")
	chunked := io.MultiReader(strings.NewReader(padded(maxBody + 1))) // its length is unknown
	a.want(login(http.Header{"Content-Type": {"application/json"}}, chunked), 413,
		"body_too_large")
	a.want(a.send("POST", "/api/v1/auth/logout", http.Header{
		"Authorization": {"Bearer " + m.AccessToken}, "Content-Type": {"application/json"}},
		strings.NewReader("{}")), 204, "")
}

// TestMalformedBodies sends JSON and forms that are refused.
func TestMalformedBodies(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	post := func(media, body string) answer {
		header := http.Header{"Content-Type": {media}}
		return a.send("POST", "/api/v1/auth/login", header, strings.NewReader(body))
	}
	for body, code := range map[string]string{
		`{"username":"a"`: "malformed_body",
		"\xff":            "malformed_body",
		"\ufeff\ufeff{}":  "malformed_body",
		`{"a":1}x`:        "malformed_body",
		`{'a':1}`:         "malformed_body",
		`{"a":NaN}`:       "malformed_body",
		`{"username":"a","username":"b","password":"c"}`:      "invalid_request",
		`{"username":"a","user\u006eame":"b","password":"c"}`: "invalid_request",
		`{"USERNAME":"a","password":"c"}`:                     "invalid_request",
		`{"username":"\ud800","password":"c"}`:                "invalid_request",
		`{"username":"a\u0000","password":"c"}`:               "invalid_request",
		`"x"`:                                                 "invalid_request",
		`{"canary":1,"username":"a","password":"b"}`:          "invalid_request",
	} {
		status := map[string]int{"malformed_body": 400, "invalid_request": 422}[code]
		a.want(post("application/json", body), status, code)
	}
	for _, body := range []string{"username=%zz&password=x", "username=a&password=b&%"} {
		a.want(post("application/x-www-form-urlencoded", body), 400, "malformed_body")
	}
	for _, body := range []string{"username", "&", "=x", ""} {
		a.want(post("application/x-www-form-urlencoded", body), 422, "invalid_request")
	}
	notUTF8 := "username=%ff&password=x"
	a.want(post("application/x-www-form-urlencoded", notUTF8), 422, "invalid_request")
}

// TestRefusedBodies sends long bodies that are refused before they are read, over connections that
// close afterwards: the answer arrives, not a reset.
func TestRefusedBodies(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	token := a.signUp("ada").AccessToken
	bearer := "Authorization: Bearer " + token + "\r\n"
	full := newApp(t)
	full.bodies.total, full.bodies.share, full.bodies.queue = 1, 1, 0
	occupy(t, &full.bodies)
	busy := "Authorization: Bearer " + full.signUp("ada").AccessToken + "\r\n"
	const media = "Content-Type: application/json\r\n"
	for name, row := range map[string]struct {
		head string
		size int
		want string
	}{
		"expired token, HTTP/1.0": {
			"POST /api/v1/documents HTTP/1.0\r\nAuthorization: Bearer x\r\n", 50_000, "401"},
		"expired token, largest": {
			"POST /api/v1/documents HTTP/1.0\r\nAuthorization: Bearer x\r\n", maxLargeBody, "401"},
		"larger than the largest": {"POST /api/v1/documents HTTP/1.0\r\n" + media + bearer,
			maxLargeBody + maxLargeBody/2, "413"},
		"busy": {"POST /api/v1/documents HTTP/1.0\r\n" + media + busy, 5_000_000, "503"},
		"chunked": {"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" +
			"Transfer-Encoding: chunked\r\n" + media, 5_000_000, "413"},
		"expects 100": {"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\n" +
			"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n" + media, 5_000_000, "413"},
		"expects 100, HTTP/1.0": {"POST /api/v1/auth/login HTTP/1.0\r\n" +
			"Expect: 100-continue\r\n" + media, 5_000_000, "413"},
		"expired token, close": {"POST /api/v1/documents HTTP/1.1\r\nHost: x\r\n" +
			"Connection: close\r\nAuthorization: Bearer x\r\n", 900_000, "401"},
		"kept alive": {"POST /api/v1/documents HTTP/1.1\r\nHost: x\r\n" +
			"Authorization: Bearer x\r\n", 900_000, "401"},
		"no route": {"POST /nothing HTTP/1.0\r\n", 500_000, "404"},
		"method":   {"PUT /api/v1/health HTTP/1.0\r\n", 500_000, "405"},
		"too large": {"POST /api/v1/auth/login HTTP/1.0\r\n" +
			"Content-Type: application/json\r\n", 500_000, "413"},
		"media type": {"POST /api/v1/documents HTTP/1.0\r\n" + bearer, 500_000, "415"},
		"no body wanted": {
			"POST /api/v1/auth/logout?scope=x HTTP/1.0\r\n" + bearer, 500_000, "422"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			to := map[bool]*app{false: a, true: full}[name == "busy"]
			conn, err := net.Dial("tcp", to.web.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			r := bufio.NewReader(conn)
			switch {
			case !strings.Contains(row.head, "chunked"):
				fmt.Fprintf(conn, "%sContent-Length: %d\r\n\r\n", row.head, row.size)
			case !strings.Contains(row.head, "Expect"):
				fmt.Fprintf(conn, "%s\r\n%x\r\n", row.head, row.size)
			default:
				fmt.Fprintf(conn, "%s\r\n", row.head)
				r.ReadString('\n')
				r.ReadString('\n')
				fmt.Fprintf(conn, "%x\r\n", row.size)
			}
			for range 10 { // slowly, and all of it before reading, as simple clients do
				time.Sleep(80 * time.Millisecond)
				if _, err := conn.Write(make([]byte, row.size/10)); err != nil {
					t.Fatalf("sending: %v", err)
				}
			}
			line, err := r.ReadString('\n')
			if err != nil || !strings.Contains(line, " "+row.want+" ") {
				t.Errorf("%q, %v, want %s", line, err, row.want)
			}
		})
	}
}

// TestAssets checks that the page and the document are answered whole, or by 304 to their ETag.
func TestAssets(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	for _, path := range []string{"/docs", "/openapi.json"} {
		get := func(name, value string) (int, http.Header, string) {
			r, _ := http.NewRequest("GET", a.web.URL+path, nil)
			r.Header.Set(name, value)
			res, err := a.web.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			return res.StatusCode, res.Header, string(body)
		}
		_, header, whole := get("Accept", "*/*")
		for _, h := range [][2]string{{"Range", "bytes=x"}, {"Range", "bytes=99999999-"},
			{"If-Match", `"x"`}, {"If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT"}} {
			if status, _, body := get(h[0], h[1]); status != 200 || body != whole {
				t.Errorf("%s with %s: %s = %d, %d bytes", path, h[0], h[1], status, len(body))
			}
		}
		tag := header.Get("ETag")
		status, _, body := get("If-None-Match", "W/"+tag)
		if status != 304 || body != "" || tag == "" {
			t.Errorf("%s with its ETag = %d, %d bytes", path, status, len(body))
		}
		ans := a.want(a.do("POST", path, "", nil), 405, "method_not_allowed")
		if got := ans.header.Get("Allow"); got != "GET, HEAD" {
			t.Errorf("POST %s allows %s", path, got)
		}
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	for _, row := range []struct {
		ids  []string
		kept bool
	}{
		{[]string{"abc-1"}, true},
		{[]string{strings.Repeat("x", maxRequestID)}, true},
		{[]string{strings.Repeat("x", maxRequestID+1)}, false},
		{[]string{"a b"}, false},
		{[]string{""}, false},
		{[]string{"\u202Ex"}, false},
		{[]string{"a", "b"}, false},
		{nil, false},
	} {
		ans := a.send("GET", "/api/v1/health", http.Header{"X-Request-Id": row.ids}, nil)
		got := ans.header.Get("X-Request-Id")
		kept := len(row.ids) > 0 && got == row.ids[0] && got != ""
		if kept != row.kept || got == "" {
			t.Errorf("X-Request-Id %q: answered %q, kept %v, want %v", row.ids, got, kept, row.kept)
		}
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(c *config) { c.CORSOrigins = []string{"https://app.example"} })
	preflight := func(origin string) answer {
		return a.send("OPTIONS", "/api/v1/users/me", http.Header{
			"Origin": {origin}, "Access-Control-Request-Method": {"PUT"}}, nil)
	}
	const allowOrigin = "Access-Control-Allow-Origin"
	ans := a.want(preflight("https://app.example"), 204, "")
	if ans.header.Get(allowOrigin) != "https://app.example" ||
		ans.header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("preflight: %v", ans.header)
	}
	for _, origin := range []string{"https://app.example.evil", "http://app.example", "null", ""} {
		ans := a.want(preflight(origin), 405, "method_not_allowed")
		if ans.header.Get(allowOrigin) != "" {
			t.Errorf("origin %q is allowed", origin)
		}
	}
	origin := http.Header{"Origin": {"https://app.example"}}
	ans = a.send("GET", "/api/v1/users/me", origin, nil)
	if ans.header.Get(allowOrigin) == "" || ans.header.Get("Vary") != "Origin" {
		t.Errorf("an error without CORS headers: %v", ans.header)
	}
}

func TestOrigin(t *testing.T) {
	t.Parallel()
	s := &server{cfg: &config{TrustedProxies: []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}}}
	for _, row := range []struct {
		peer, forwarded, proto string
		want                   string
		https                  bool
	}{
		{"192.0.2.1:1", "198.51.100.9", "https", "192.0.2.1", false}, // not trusted: ignored
		{"10.0.0.1:1", "198.51.100.9", "https", "198.51.100.9", true},
		{"10.0.0.1:1", "1.1.1.1, 198.51.100.9, 10.0.0.2", "HTTPS", "198.51.100.9", true},
		{"10.0.0.1:1", "198.51.100.9, junk, 10.0.0.2", "http", "10.0.0.2", false},
		{"10.0.0.1:1", "198.51.100.9", "https, http", "198.51.100.9", true},
		{"10.0.0.1:1", "", "", "10.0.0.1", false},
		{"[::1]:1", "2001:db8::1", "", "2001:db8::1", false},
		{"[::ffff:10.0.0.1]:1", "198.51.100.9", "", "198.51.100.9", false},
		{"10.0.0.1:1", "203.0.113.9:51234", "", "203.0.113.9", false},
		{"10.0.0.1:1", "[2001:db8::1]:443, [::1]", "", "2001:db8::1", false},
		{"10.0.0.1:1", "1.1.1.1, 203.0.113.9:x", "", "10.0.0.1", false},
	} {
		r := &http.Request{RemoteAddr: row.peer, Header: http.Header{
			"X-Forwarded-For": {row.forwarded}, "X-Forwarded-Proto": {row.proto}}}
		if got, https := s.origin(r); got.String() != row.want || https != row.https {
			t.Errorf("origin(%s, %q, %q) = %s, %v, want %s, %v",
				row.peer, row.forwarded, row.proto, got, https, row.want, row.https)
		}
	}
}

func TestForwarded(t *testing.T) {
	t.Parallel()
	s := &server{cfg: &config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	for value, want := range map[string]string{
		`for=192.0.2.60;proto=https;by=203.0.113.43`:       "192.0.2.60 true",
		`For="[2001:db8:cafe::17]:4711"`:                   "2001:db8:cafe::17 false",
		`for=1.1.1.1, for=198.51.100.9; Proto="https"`:     "198.51.100.9 true",
		`for=198.51.100.9;proto=https, for="10.0.0.2:443"`: "198.51.100.9 true",
		`for=198.51.100.9, for=unknown`:                    "10.0.0.1 false",
		`for=_hidden`:                                      "10.0.0.1 false",
		``:                                                 "10.0.0.1 false",
	} {
		r := &http.Request{RemoteAddr: "10.0.0.1:1", Header: http.Header{"Forwarded": {value}}}
		client, https := s.origin(r)
		if got := fmt.Sprint(client, https); got != want {
			t.Errorf("origin with Forwarded: %s = %s, want %s", value, got, want)
		}
		r.RemoteAddr = "192.0.2.1:1"
		if client, https := s.origin(r); client.String() != "192.0.2.1" || https {
			t.Errorf("an untrusted peer is believed: %v, %v", client, https)
		}
	}
}

// TestPrefix: links, redirects and the document lead back through a proxy that cuts off a prefix.
func TestPrefix(t *testing.T) {
	t.Parallel()
	trusted := newApp(t, func(c *config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	})
	for value, want := range map[string]string{
		"/app": "/app", "/a/b-c.d/": "/a/b-c.d", "/a, /b": "/a/b", "": "", "/": "", "app": "",
		"//evil.example": "", "https://evil.example": "", "/a/../b": "", "/a b": "", `/a\b`: "",
		"/a?b": "", "/a#b": "", "/%2e": "", "/a//b": "", `/a>; rel="x"`: "",
	} {
		trusted.wantPrefix(value, want)
	}
	newApp(t).wantPrefix("/app", "")
}

// wantPrefix fails where the answers to an admin do not have a prefix before their paths.
func (a *app) wantPrefix(value, want string) {
	a.t.Helper()
	name := fmt.Sprintf("u%d", one[int](a.t, a.url, `SELECT count(*) FROM users`))
	token := a.signUpAdmin(name).AccessToken
	header := http.Header{"X-Forwarded-Prefix": {value}, "Authorization": {"Bearer " + token},
		"Content-Type": {"application/json"}}
	got := a.send("GET", "/", header.Clone(), nil).header.Get("Location")
	if got != want+"/docs" {
		a.t.Errorf("with the prefix %q, / redirects to %s", value, got)
	}
	body := fmt.Sprintf(`{"email":"x%s@example.com","password":%q}`, name, goodPass)
	ans := a.want(a.send("POST", "/api/v1/users", header.Clone(), strings.NewReader(body)), 201, "")
	got = ans.header.Get("Location")
	if !strings.HasPrefix(got, want+"/api/v1/users/") {
		a.t.Errorf("with the prefix %q, Location is %s", value, got)
	}
	ans = a.send("GET", "/api/v1/users?limit=1", header.Clone(), nil)
	if got := ans.header.Get("Link"); !strings.HasPrefix(got, "<"+want+"/api/v1/users?after=") {
		a.t.Errorf("with the prefix %q, Link is %s", value, got)
	}
	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/openapi.json", nil)
	r.Header, r.RemoteAddr = header, "127.0.0.1:1"
	a.ServeHTTP(w, r)
	document := w.Body.String()
	for _, part := range []string{`"servers": [{"url": "` + cmp.Or(want, "/") + `"}]`,
		`"tokenUrl": "` + want + `/api/v1/auth/login"`,
		`"refreshUrl": "` + want + `/api/v1/auth/refresh"`} {
		if !strings.Contains(document, part) {
			a.t.Errorf("with the prefix %q, the document has no %s", value, part)
		}
	}
}

func TestHSTS(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(c *config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	})
	for proto, want := range map[string]bool{"https": true, "http": false} {
		ans := a.send("GET", "/api/v1/health", http.Header{"X-Forwarded-Proto": {proto}}, nil)
		if got := ans.header.Get("Strict-Transport-Security") != ""; got != want {
			t.Errorf("X-Forwarded-Proto %s: HSTS %v", proto, got)
		}
	}
	w := httptest.NewRecorder()
	// An https URL makes a request that has come over the server's own TLS.
	r := httptest.NewRequest("GET", "https://latch.example/api/v1/health", nil)
	a.server.ServeHTTP(w, r)
	if w.Code != 200 || w.Header().Get("Strict-Transport-Security") == "" {
		t.Errorf("by TLS: %d, without HSTS", w.Code)
	}
}

// TestPanic puts a route into the table that fails in ways that no real one may.
func TestPanic(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	type unencodable struct{ C chan int }
	row := func(path string, e endpoint) {
		a.addRow(&route{"GET", "/test" + path, anyone, "x", e, 200, nil, "x"})
	}
	row("/panic", handle(func(context.Context, *caller, none) (none, error) {
		panic("a panicking cause")
	}))
	row("/unencodable", handle(func(context.Context, *caller, none) (unencodable, error) {
		return unencodable{}, nil
	}))
	row("/unknown", handle(func(context.Context, *caller, none) (none, error) {
		return none{}, fmt.Errorf("an unknown cause")
	}))
	for _, path := range []string{"/panic", "/unencodable", "/unknown"} {
		ans := a.want(a.do("GET", "/api/v1/test"+path, "", nil), 500, "internal_error")
		if strings.Contains(string(ans.body), "cause") {
			t.Errorf("%s leaks: %s", path, ans.body)
		}
	}
	log := suiteLog.text()
	if !strings.Contains(log, "a panicking cause") || !strings.Contains(log, "an unknown cause") {
		t.Error("the log does not hold the causes")
	}
}

// TestNextQuery has queries that url.ParseQuery does not read as the server does.
func TestNextQuery(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"":                                  "after=7",
		"limit=1&q=x;y&skip=2":              "after=7&limit=1&q=x%3By",
		"&&_=5&after=3&filter={%22a%22}":    "after=7&filter=%7B%22a%22%7D",
		"q=a%26b%3Dc+d":                     "after=7&q=a%26b%3Dc+d",
		strings.Repeat("&", 10_001) + "q=x": "after=7&q=x",
	} {
		if got := nextQuery(raw, 7); got != want {
			t.Errorf("nextQuery(%.40q) = %q, want %q", raw, got, want)
		}
	}
}

// TestSlowBodies sends bodies slowly: they hold no slot of their user meanwhile.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	var open []*io.PipeWriter
	answers := make(chan answer, 5)
	for range cap(answers) {
		body, w := io.Pipe()
		open = append(open, w)
		header := http.Header{"Authorization": {"Bearer " + m.AccessToken},
			"Content-Type": {"application/json"}}
		go func() { answers <- a.send("POST", docsPath, header, body) }()
		fmt.Fprint(w, `{"content":"x",`)
	}
	eventually(t, "free slots", func() bool {
		used, _ := a.requests.state()
		return a.stats.inFlight.Load() == int64(len(open)) && used == 0
	})
	for _, w := range open {
		fmt.Fprint(w, `"embedding":[1,0,0]}`)
		w.Close()
		a.want(<-answers, 201, "")
	}
}

// TestHalfClose ends its side of the connection after the request: the answer is a problem still.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	a.addRow(&route{"GET", "/canceled", anyone, "x",
		handle(func(ctx context.Context, _ *caller, _ none) (none, error) {
			<-ctx.Done()
			return none{}, ctx.Err()
		}), 204, nil, "x"})
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.web.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /api/v1/canceled HTTP/1.1\r\nHost: x\r\n\r\n")
	conn.(*net.TCPConn).CloseWrite()
	text, _ := io.ReadAll(conn)
	if !strings.HasPrefix(string(text), "HTTP/1.1 499 ") ||
		!strings.Contains(string(text), `"code":"client_closed_request"`) {
		t.Errorf("the answer is %s", text)
	}
}

// TestSlowHandler takes longer than a connection may write: the time for that begins with the
// answer.
func TestSlowHandler(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	a.addRow(&route{"GET", "/slow", anyone, "x",
		handle(func(context.Context, *caller, none) (none, error) {
			time.Sleep(300 * time.Millisecond)
			return none{}, nil
		}), 204, nil, "x"})
	web := httptest.NewUnstartedServer(a.server)
	web.Config = a.server.httpServer()
	web.Config.WriteTimeout = 100 * time.Millisecond
	web.Start()
	defer web.Close()
	ans, err := web.Client().Get(web.URL + "/api/v1/slow")
	if err != nil {
		t.Fatal(err)
	}
	ans.Body.Close()
	if ans.StatusCode != 204 {
		t.Errorf("GET /slow = %s", ans.Status)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	ans := a.want(a.do("GET", "/api/v1/health", "", nil), 200, "")
	if got := string(ans.body); got != `{"status":"healthy"}` {
		t.Errorf("health = %s", got)
	}
	ans = a.want(a.do("GET", "/api/v1/health/db", "", nil), 200, "")
	if got := string(ans.body); got != `{"status":"healthy","database":"connected"}` {
		t.Errorf("health/db = %s", got)
	}
	a.draining.Store(true)
	a.want(a.do("GET", "/api/v1/health/db", "", nil), 503, "shutting_down")
	a.want(a.do("GET", "/api/v1/health", "", nil), 200, "")
}

// TestDatabaseAway points the pool at a port where no server listens: every request that needs the
// database gets a 503, never a wrong password or an invalid token.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	away, err := openStore(t.Context(), "postgresql://u:canary@127.0.0.1:1/x", 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(away.close)
	a.server.store = away
	a.want(a.do("GET", "/api/v1/health", "", nil), 200, "")
	start := time.Now()
	a.want(a.do("GET", "/api/v1/health/db", "", nil), 503, "database_unavailable")
	if took := time.Since(start); took > time.Second {
		t.Errorf("health/db took %v, promised within 1 s", took)
	}
	a.want(a.do("GET", "/api/v1/users/me", m.AccessToken, nil), 503, "database_unavailable")
	a.want(a.tryLogin(m.Email, goodPass), 503, "database_unavailable")
	a.want(a.refresh(m.RefreshToken), 503, "database_unavailable")
	account := map[string]string{"email": "b@example.com", "password": goodPass}
	register := a.do("POST", "/api/v1/auth/register", "", account)
	a.want(register, 503, "database_unavailable")
	a.want(a.do("GET", "/api/v1/users/me", "nonsense", nil), 401, "invalid_token")
}

// TestReceive reads bodies on both sides of maxBody: a longer one takes memory of the limiter, and
// none is read into more memory than it needs.
func TestReceive(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, bytes.MinRead, maxBody - 1, maxBody, maxBody + 1, 500_000} {
		for _, length := range []int64{int64(n), -1} {
			s := &server{}
			s.bodies = limiter{total: bodyMemory, share: bodyMemory, timeout: time.Second}
			w := &responseWriter{ResponseWriter: httptest.NewRecorder(), server: s}
			text := bytes.Repeat([]byte{'x'}, n)
			r := httptest.NewRequest("POST", "/", bytes.NewReader(text))
			r.ContentLength = length
			got, err := s.receive(w, r, 1<<20)
			used, _ := s.bodies.state()
			tooMuch := cap(got) > int(used)*9/8+2*maxBody
			if err != nil || !bytes.Equal(got, text) || used > 0 != (n > maxBody) || tooMuch {
				t.Errorf("receive of %d bytes, announced as %d: %d in %d, %v, memory %d",
					n, length, len(got), cap(got), err, used)
			}
			long := httptest.NewRequest("POST", "/", bytes.NewReader(append(text, 'x')))
			w = &responseWriter{ResponseWriter: httptest.NewRecorder(), server: s}
			if _, err := s.receive(w, long, int64(n)); !errors.Is(err, errBodyTooLarge) {
				t.Errorf("receive of %d bytes too many = %v", n, err)
			}
		}
	}
}

// TestLargeBodies sends more long bodies at once than there are slots, with and without a length:
// all are stored, one that is cut short is not, and every slot is released.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(c *config) { c.DatabaseMaxConns = 12 }) // nobody waits for a connection
	m := a.signUp("ada")
	body := []byte(`{"documents":[` +
		strings.Repeat(`{"content":"text","embedding":[1,2,3]},`, 400) +
		`{"content":"` + strings.Repeat("x", 60000) + `","embedding":[1,2,3]}]}` +
		strings.Repeat(" ", maxBody))
	header := http.Header{"Content-Type": {"application/json"},
		"Authorization": {"Bearer " + m.AccessToken}}
	parallel(12, func(i int) {
		for {
			var r io.Reader = bytes.NewReader(body)
			if i%2 == 0 {
				r = io.MultiReader(r) // of unknown length: chunked
			}
			ans := a.send("POST", "/api/v1/documents", header.Clone(), r)
			if ans.status != 503 { // 503: the machine is busy with other tests
				a.want(ans, 201, "")
				return
			}
		}
	})
	conn, err := net.Dial("tcp", a.web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /api/v1/documents HTTP/1.1\r\nHost: x\r\n"+
		"Content-Type: application/json\r\nAuthorization: Bearer %s\r\n"+
		"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", m.AccessToken, len(body), body)
	conn.(*net.TCPConn).CloseWrite()
	if answer, _ := io.ReadAll(conn); !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) {
		t.Errorf("a body that lacks its end: %.300s", answer)
	}
	eventually(t, "the slots to be free", func() bool {
		used, _ := a.bodies.state()
		return used == 0
	})
	if got := one[int](t, a.url, `SELECT count(*) FROM documents`); got != 12*401 {
		t.Errorf("%d documents, want %d", got, 12*401)
	}
}

// sink is the smallest ResponseWriter, so that only the program's own allocations are counted.
type sink struct {
	header http.Header
	status int
}

func (w *sink) Header() http.Header         { return w.header }
func (w *sink) Write(b []byte) (int, error) { return len(b), nil }
func (w *sink) WriteHeader(status int)      { w.status = status }

func (w *sink) SetReadDeadline(time.Time) error  { return nil }
func (w *sink) SetWriteDeadline(time.Time) error { return nil }

// allocations counts the allocations of one GET of path, through the whole middleware.
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
	// The race detector allocates too, and sync.Pool drops items under it.
	raced := slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
	for path, most := range map[string]float64{"/api/v1/health": 27, "/api/v1/users/me": 110} {
		if got := allocations(t, a, path, m.AccessToken); got > most && !raced || got > most+24 {
			t.Errorf("GET %s makes %.0f allocations, want at most %.0f", path, got, most)
		}
	}
}
