package main

// clients_test.go sends what unmodified clients send, byte for byte.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	osexec "os/exec"
	"strings"
	"testing"
	"time"
)

const formMedia = "application/x-www-form-urlencoded"

// TestTokenForms sends the forms of OAuth libraries to the token endpoints.
func TestTokenForms(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	post := func(path, form string) answer {
		header := http.Header{"Content-Type": {formMedia}}
		return a.send("POST", "/api/v1/auth"+path, header, strings.NewReader(form))
	}
	login := "username=ada%40example.com&password=" + url.QueryEscape(goodPass)
	for name, form := range map[string]string{
		"Swagger UI": "grant_type=password&" + login +
			"&scope=&client_id=&client_secret=********",
		"Authlib":        "grant_type=password&" + login + "&audience=latch&resource=x&nonce=1",
		"an HTML form":   login + "&submit=Log+in",
		"a stray &":      "&" + login + "&&",
		"no equals sign": login + "&remember",
		"white space":    strings.Replace(login, "ada", "+%20ada", 1) + "&grant_type=",
		"upper case":     strings.Replace(login, "ada", "ADA", 1),
		"empty ones":     login + "&grant_type=&refresh_token=&password=&refresh_token",
	} {
		if ans := post("/login", form); ans.status != 200 {
			t.Errorf("%s: %d %s", name, ans.status, ans.body)
		}
	}
	refresh := func(form string) string {
		return decode[tokens](a.want(post("/refresh", form), 200, "")).RefreshToken
	}
	token := m.RefreshToken // requests-oauthlib's auto-refresh, and golang.org/x/oauth2's
	token = refresh("grant_type=refresh_token&allow_redirects=True&refresh_token=" + token)
	grant := "grant_type=refresh_token&refresh_token="
	a.want(post("/login", grant+token), 200, "") // one token URL
	for request, want := range map[string]string{
		"/login grant_type=client_credentials":                   "unsupported_grant_type",
		"/login grant_type=password&username=ada%40example.com":  "invalid_request",
		"/login grant_type=refresh_token":                        "invalid_request",
		"/login " + grant:                                        "invalid_request",
		"/login " + grant + "x":                                  "invalid_grant",
		"/login username=ada%40example.com&password=wrongcanary": "invalid_grant",
		"/login " + login + "&password=x":                        "invalid_request",
		"/login username=%zz":                                    "invalid_request",
		"/refresh grant_type=authorization_code&code=1":          "unsupported_grant_type",
		"/refresh grant_type=&refresh_token=x":                   "invalid_request",
		"/revoke token=":                                         "invalid_request",
	} {
		path, form, _ := strings.Cut(request, " ")
		ans := post(path, form)
		p := decode[map[string]any](ans)
		if p["error"] != want || p["error_description"] != p["detail"] || ans.status < 400 {
			t.Errorf("%s = %d %s, want error %s", request, ans.status, ans.body, want)
		}
	}
	for path, end := range map[string]string{"/login": "password, refresh_token.",
		"/refresh": "refresh_token; body.refresh_token is required."} {
		ans := a.want(post(path, "grant_type=x"), 422, "invalid_request")
		want := "The request is invalid: body.grant_type must be one of: " + end
		if got := decode[problemDocument](ans).Detail; got != want {
			t.Errorf("%s of another grant says %q, want %q", path, got, want)
		}
	}
	busy := occupy(t, &a.hasher.slots)
	ans := a.want(post("/login", login), 503, "busy")
	busy()
	if p := decode[map[string]any](ans); p["error"] != "temporarily_unavailable" {
		t.Errorf("busy: %s", ans.body)
	}
	plain := a.want(a.do("GET", "/api/v1/users/me", "", nil), 401, "not_authenticated")
	if strings.Contains(string(plain.body), `"error"`) {
		t.Errorf("a problem of another endpoint has OAuth's members: %s", plain.body)
	}
}

// TestMultipart sends what curl -F, axios.postForm and FormData send.
func TestMultipart(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	send := func(path string, write func(*multipart.Writer)) answer {
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		write(w)
		w.Close()
		header := http.Header{"Content-Type": {w.FormDataContentType()}}
		return a.send("POST", "/api/v1/auth"+path, header, &body)
	}
	login := func(w *multipart.Writer) {
		w.WriteField("username", " Ada@example.com ")
		w.WriteField("password", goodPass)
		w.WriteField("unknown", "x")
	}
	a.want(send("/login", login), 200, "")
	a.want(send("/refresh", func(w *multipart.Writer) {
		w.WriteField("grant_type", "refresh_token")
		w.WriteField("refresh_token", m.RefreshToken)
	}), 200, "")
	a.want(send("/login", func(w *multipart.Writer) {
		login(w)
		w.WriteField("password", goodPass)
	}), 422, "invalid_request")
	for _, field := range []string{"password", "avatar"} {
		a.want(send("/login", func(w *multipart.Writer) {
			w.WriteField("username", m.Email)
			part, _ := w.CreateFormFile(field, "x.txt")
			io.WriteString(part, goodPass)
		}), 422, "invalid_request")
	}
	a.want(send("/login", func(w *multipart.Writer) {
		w.WriteField("username", strings.Repeat("x", maxBody))
	}), 413, "body_too_large")
	for _, body := range []string{"",
		"--b\r\nContent-Disposition: form-data; name=\"username\"\r\n\r\nx"} {
		header := http.Header{"Content-Type": {"multipart/form-data; boundary=b"}}
		ans := a.send("POST", "/api/v1/auth/login", header, strings.NewReader(body))
		a.want(ans, 400, "malformed_body")
	}
	header := http.Header{"Content-Type": {"multipart/form-data"}}
	ans := a.send("POST", "/api/v1/auth/login", header, strings.NewReader("x"))
	a.want(ans, 400, "malformed_body")
	register := http.Header{"Content-Type": {"multipart/form-data; boundary=b"}}
	a.want(a.send("POST", "/api/v1/auth/register", register, strings.NewReader("--b--")), 415,
		"unsupported_media_type")
}

// TestRevoke ends sessions as RFC 7009 says: by either token, also an expired one.
func TestRevoke(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	revoke := func(body any) answer { return a.do("POST", "/api/v1/auth/revoke", "", body) }
	byForm := url.Values{"token": {m.RefreshToken}, "token_type_hint": {"refresh_token"},
		"client_id": {"app"}}
	if ans := a.want(revoke(byForm), 200, ""); len(ans.body) != 0 {
		t.Errorf("the answer has a body: %s", ans.body)
	}
	if a.accepts(m.AccessToken) {
		t.Error("the session still accepts tokens")
	}
	a.want(revoke(byForm), 200, "") // again: not an error
	other := a.login(m.Email, goodPass)
	claims, _, _ := parseAccess(a.keys, other.AccessToken)
	claims.Expires = time.Now().Unix() - 60
	expired := a.keys.keys[0].access.sign(claims)
	a.want(revoke(map[string]string{"token": expired}), 200, "")
	if a.accepts(other.AccessToken) {
		t.Error("an expired access token does not end its session")
	}
	last := a.login(m.Email, goodPass)
	for _, bad := range []string{"x", last.AccessToken + "x", strings.Repeat("x", 16_000), "a\x00",
		"\xff"} {
		a.want(revoke(map[string]string{"token": bad}), 200, "")
		a.want(revoke(url.Values{"token": {bad}}), 200, "")
	}
	for _, hint := range []string{strings.Repeat("x", 300), "a\x00", "\xff", ""} {
		a.want(revoke(map[string]string{"token": "x", "token_type_hint": hint}), 200, "")
		a.want(revoke(url.Values{"token": {"x"}, "token_type_hint": {hint, hint}}), 200, "")
	}
	a.want(revoke(`{"token":"\ud800","token_type_hint":null}`), 200, "")
	if !a.accepts(last.AccessToken) {
		t.Error("an invalid token ended a session")
	}
	a.want(revoke(url.Values{}), 422, "invalid_request")
	a.want(revoke(`{"token":""}`), 422, "invalid_request")
	a.want(revoke(map[string]string{"token": "x", "unknown": "x"}), 422, "invalid_request")
}

// TestSentBack puts back what a GET returned, with one field changed, as react-admin does.
func TestSentBack(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	admin, m := a.signUpAdmin("root"), a.signUp("ada")
	d := a.createDocument(m.AccessToken, `{"content":"one","metadata":{"a":1},"embedding":[1,2,3]}`)
	for path, token := range map[string]string{
		"/users/me": m.AccessToken, fmt.Sprintf("/users/%d", m.ID): admin.AccessToken,
		fmt.Sprintf("/documents/%d", d.ID): m.AccessToken,
	} {
		path = "/api/v1" + path
		object := decode[map[string]any](a.want(a.do("GET", path, token, nil), 200, ""))
		a.want(a.do("PUT", path, token, object), 200, "")
		object = decode[map[string]any](a.do("GET", path, token, nil))
		for name, other := range map[string]any{"id": 999, "created_at": "2020-01-02T03:04:05Z",
			"updated_at": "2020-01-02T03:04:05.000001Z"} {
			stored := object[name]
			object[name] = other
			ans := a.want(a.do("PUT", path, token, object), 422, "invalid_request")
			if !strings.Contains(string(ans.body), `"loc":["body","`+name+`"]`) {
				t.Errorf("%s: %s", name, ans.body)
			}
			object[name] = stored
		}
		if strings.Contains(path, "users") {
			object["full_name"] = "Changed"
		} else {
			object["metadata"] = map[string]int{"b": 2}
		}
		changed := decode[map[string]any](a.want(a.do("PUT", path, token, object), 200, ""))
		if changed["full_name"] != object["full_name"] || changed["content"] != object["content"] {
			t.Errorf("PUT %s = %v, want %v", path, changed, object)
		}
	}
	path := fmt.Sprintf("/api/v1/documents/%d", d.ID)
	a.want(a.do("PUT", path, m.AccessToken, `{"content":"one"}`), 200, "") // what is stored
	a.want(a.do("PUT", path, m.AccessToken, `{"content":"two"}`), 422, "embedding_required")
	ans := a.do("PUT", "/api/v1/users/me", m.AccessToken, `{"is_admin":true}`)
	a.want(ans, 422, "invalid_request")
}

// TestLenientRequests sends requests with harmless deviations, which must not be refused.
func TestLenientRequests(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(c *config) { c.CORSOrigins = []string{"https://app.example"} })
	admin := a.signUpAdmin("root")
	token := admin.AccessToken
	for _, path := range []string{"/health?t=1700000000", "/users?_=1", "/users?&&limit=5&",
		"/users?q=", "/users?is_active=True&is_admin=1", "/users/me?x=%zz",
		"/documents?_=1&limit=7"} {
		a.want(a.do("GET", "/api/v1"+path, token, nil), 200, "")
	}
	search := `{"embedding":[1,2,3],"limit":77.0}`
	for _, media := range []string{"application/json;charset=utf8",
		"application/json; charset=UTF-8; v=1"} {
		header := http.Header{"Content-Type": {media}, "Authorization": {"Bearer " + token},
			"Content-Encoding": {"identity"}}
		body := strings.NewReader("\ufeff" + search)
		a.want(a.send("POST", "/api/v1/documents/search", header, body), 200, "")
	}
	request := http.Header{"Origin": {"https://app.example"},
		"Access-Control-Request-Method": {"PUT"}, "Access-Control-Request-Headers": {
			"authorization,baggage,cache-control,sentry-trace,traceparent,x-requested-with"}}
	preflight := a.send("OPTIONS", "/api/v1/users/me", request, nil)
	allowed := preflight.header.Get("Access-Control-Allow-Headers")
	for _, name := range []string{"baggage", "sentry-trace", "traceparent", "x-requested-with"} {
		if !strings.Contains(allowed, name) {
			t.Errorf("the preflight allows %q, want %s", allowed, name)
		}
	}
	if preflight.header.Get("Access-Control-Allow-Credentials") != "" {
		t.Error("credentials are allowed")
	}
	email := `{"email":" Grace@example.com\t","password":"` + goodPass + `"}`
	u := decode[user](a.want(a.do("POST", "/api/v1/users", token, email), 201, ""))
	if u.Email != "grace@example.com" {
		t.Errorf("the e-mail is %q", u.Email)
	}
	path := fmt.Sprintf("/api/v1/users/%d", u.ID)
	a.want(a.do("PUT", path, token, `{"email":"\n Hopper@example.com"}`), 200, "")
	a.want(a.do("PUT", "/api/v1/users/me", token, `{"email":" root@example.com "}`), 200, "")
	register := json.RawMessage(`{"email":" x@example.com ","password":"` + goodPass + `"}`)
	a.want(a.do("POST", "/api/v1/auth/register", "", register), 201, "")
	long := strings.Repeat("l", 64) + "@" + strings.Repeat(strings.Repeat("d", 61)+".", 3) + "com"
	spaced := strings.Repeat(" ", 100) + long + " \t" // long has 254 characters
	account := map[string]string{"email": spaced, "password": goodPass}
	a.want(a.do("POST", "/api/v1/auth/register", "", account), 201, "")
	a.want(a.tryLogin(spaced, goodPass), 200, "")
	byJSON := map[string]string{"username": spaced, "password": goodPass}
	a.want(a.do("POST", "/api/v1/auth/login", "", byJSON), 200, "")
	a.want(a.tryLogin("l"+spaced, goodPass), 401, "invalid_credentials")
	a.want(a.do("POST", "/api/v1/users", token, account), 409, "email_taken")
	a.want(a.do("PUT", path, token, map[string]string{"email": spaced}), 409, "email_taken")
	a.want(a.do("PUT", "/api/v1/users/me", token, map[string]string{"email": spaced}), 409,
		"email_taken")
	account["email"] = "l" + long
	a.want(a.do("POST", "/api/v1/auth/register", "", account), 422, "invalid_request")
	// axios.post(url, {}) to an operation that takes no body.
	a.want(a.do("POST", "/api/v1/auth/logout", token, "{}"), 204, "")
	if a.accepts(token) {
		t.Error("the session still accepts tokens")
	}
}

// TestSessionCapByUse logs in 60 times: the session that is refreshed stays.
func TestSessionCapByUse(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	phone := a.signUp("ada")
	refreshed := phone.tokens
	for i := range 60 {
		a.login(phone.Email, goodPass)
		if i%20 == 0 {
			refreshed = decode[tokens](a.want(a.refresh(refreshed.RefreshToken), 200, ""))
		}
	}
	if !a.accepts(refreshed.AccessToken) {
		t.Error("the session that is in use was ended, not the one that was used least recently")
	}
}

// TestTour runs the README's lines about documents as they stand, without a provider: each search
// finds what was stored.
func TestTour(t *testing.T) {
	t.Parallel()
	lines := submatches("(?s)```sh\n(vector=.*?)```", readme(t))
	if osexec.Command("curl", "--json", "{}", "--version").Run() != nil {
		t.Skip("there is no curl of 7.82 or later")
	}
	a := newDocsApp(t, 384)
	script := fmt.Sprintf("set -e; api=%s/api/v1 token=%s; curl() { command curl -sSf \"$@\"; }\n",
		a.web.URL, a.signUp("ada").AccessToken)
	out, err := osexec.Command("sh", "-c", script+strings.Join(lines, "")).CombinedOutput()
	if found := bytes.Count(out, []byte(`"content":"Ada wrote`)); err != nil || found != 3 {
		t.Errorf("the tour has %d of 3 documents, %v: %s", found, err, out)
	}
}
