package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRegister(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	register := func(body string) answer { return a.do("POST", "/api/v1/auth/register", "", body) }
	body := `{"email":"Ada@Example.COM","password":"` + goodPass + `","full_name":"Ada"}`
	ans := a.want(register(body), 201, "")
	u := decode[map[string]any](ans)
	if u["email"] != "ada@example.com" || u["full_name"] != "Ada" || u["is_active"] != true ||
		u["is_admin"] != false || len(u) != 7 {
		t.Errorf("register = %v", u)
	}
	want := fmt.Sprintf("/api/v1/users/%v", u["id"])
	if got := ans.header.Get("Location"); got != want {
		t.Errorf("Location = %q, want %q", got, want)
	}
	body = `{"email":"null@example.com","password":"` + goodPass + `","full_name":null}`
	a.want(register(body), 201, "")
}

// TestRegisterRefusals sends bodies that register no account.
func TestRegisterRefusals(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	a.signUp("ada")
	register := func(body string) answer { return a.do("POST", "/api/v1/auth/register", "", body) }
	good := `,"password":"` + goodPass + `"`
	for name, row := range map[string]struct {
		body   string
		status int
		code   string
		loc    string
	}{
		"taken": {`{"email":"ada@example.com"` + good + `}`, 409, "email_taken", ""},
		"taken, other case": {`{"email":"ADA@example.com"` + good + `}`,
			409, "email_taken", ""},
		"empty email": {`{"email":""` + good + `}`, 422, "invalid_request", "[body email]"},
		"bad email": {`{"email":"not-an-address"` + good + `}`,
			422, "invalid_request", "[body email]"},
		"empty password": {`{"email":"b@example.com","password":""}`,
			422, "invalid_request", "[body password]"},
		"short password": {`{"email":"b@example.com","password":"seven77"}`,
			422, "invalid_request", "[body password]"},
		"common password": {`{"email":"b@example.com","password":"PassWord123"}`,
			422, "invalid_request", "[body password]"},
		"email as password": {`{"email":"b@example.com","password":"B@Example.com"}`,
			422, "invalid_request", "[body password]"},
		"product's name": {`{"email":"b@example.com","password":"Latch-1234"}`,
			422, "invalid_request", "[body password]"},
		"admin by itself": {`{"email":"b@example.com"` + good + `,"is_admin":true}`,
			422, "invalid_request", "[body]"},
		"no password": {`{"email":"b@example.com"}`, 422, "invalid_request", "[body password]"},
		"null password": {`{"email":"b@example.com","password":null}`,
			422, "invalid_request", "[body password]"},
		"array":         {`[]`, 422, "invalid_request", "[body]"},
		"null":          {`null`, 422, "invalid_request", "[body]"},
		"empty body":    {``, 400, "malformed_body", ""},
		"trailing data": {`{} {}`, 400, "malformed_body", ""},
	} {
		ans := a.want(register(row.body), row.status, row.code)
		p := decode[struct{ Errors []fieldError }](ans)
		if row.loc != "" && fmt.Sprint(p.Errors[0].Loc) != row.loc {
			t.Errorf("%s: %s, want an error at %s", name, ans.body, row.loc)
		}
	}
	ans := register(`{"email":1,"password":2}`)
	if both := decode[struct{ Errors []fieldError }](ans); len(both.Errors) != 2 {
		t.Errorf("two bad fields gave %v", both.Errors)
	}
}

func TestRegistrationClosed(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(c *config) { c.RegistrationOpen = false })
	account := map[string]string{"email": "a@example.com", "password": goodPass}
	a.want(a.do("POST", "/api/v1/auth/register", "", account), 403, "registration_closed")
}

func TestRegisterAtOnce(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	var created, taken atomic32
	parallel(50, func(i int) {
		email := []byte("someone@example.com")
		for j := range email {
			if i>>(j%6)&1 == 1 && email[j] >= 'a' && email[j] <= 'z' {
				email[j] -= 32
			}
		}
		account := map[string]string{"email": string(email), "password": goodPass}
		ans := a.do("POST", "/api/v1/auth/register", "", account)
		for ans.code() == "busy" { // on a slow machine
			ans = a.do("POST", "/api/v1/auth/register", "", account)
		}
		switch {
		case ans.status == 201:
			created.add()
		case ans.code() == "email_taken":
			taken.add()
		default:
			t.Errorf("%s = %d: %s", ans.call, ans.status, ans.body)
		}
	})
	if created.n != 1 || taken.n != 49 {
		t.Errorf("50 registrations of one e-mail: %d × 201 and %d × 409, want 1 and 49",
			created.n, taken.n)
	}
}

// atomic32 counts from many goroutines.
type atomic32 struct {
	mu sync.Mutex
	n  int
}

func (c *atomic32) add() { c.mu.Lock(); c.n++; c.mu.Unlock() }

func TestLogin(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	form := func(v url.Values) answer { return a.do("POST", "/api/v1/auth/login", "", v) }
	ok := url.Values{"username": {"ADA@example.com"}, "password": {goodPass}}
	with := func(name, value string) url.Values {
		v := url.Values{name: {value}}
		for k, x := range ok {
			if _, set := v[k]; !set {
				v[k] = x
			}
		}
		return v
	}
	ans := a.want(form(ok), 200, "")
	got := decode[map[string]any](ans)
	if got["token_type"] != "bearer" || got["expires_in"] != 1800.0 || len(got) != 4 {
		t.Errorf("login = %s", ans.body)
	}
	a.want(form(with("grant_type", "password")), 200, "")
	a.want(form(with("grant_type", "")), 200, "")
	a.want(form(with("scope", "a b")), 200, "")
	a.want(form(with("client_secret", "x")), 200, "")
	login := func(body any) answer { return a.do("POST", "/api/v1/auth/login", "", body) }
	a.want(login(map[string]string{"username": m.Email, "password": goodPass}), 200, "")
	a.want(form(with("grant_type", "refresh_token")), 422, "invalid_request")
	a.want(form(with("remember", "1")), 200, "")
	twice := url.Values{"username": {m.Email}, "password": {goodPass, goodPass}}
	a.want(form(twice), 422, "invalid_request")
	a.want(form(url.Values{"username": {m.Email}}), 422, "invalid_request")
	a.want(a.do("POST", "/api/v1/auth/login?username=a", "", ok), 200, "")
	a.want(login(map[string]string{"username": m.Email, "password": goodPass,
		"grant_type": "password"}), 200, "")
	a.want(login(map[string]string{"username": m.Email, "password": goodPass,
		"remember": "1"}), 422, "invalid_request")

	wrong := a.want(form(with("password", "a wrong canary")), 401, "invalid_credentials")
	for _, name := range []string{"nobody-canary@example.com", "no address", "ada",
		"\u212Aate@example.com", strings.Repeat("x", 250)} {
		ans := a.want(form(with("username", name)), 401, "invalid_credentials")
		if strip(ans) != strip(wrong) {
			t.Errorf("unknown %q: %s, wrong password: %s", name, ans.body, wrong.body)
		}
	}
	a.sql(`UPDATE users SET is_active = false WHERE id = $1`, m.ID)
	a.want(form(ok), 403, "account_inactive")
	ans = a.want(form(with("password", "a wrong canary")), 401, "invalid_credentials")
	if strip(ans) != strip(wrong) {
		t.Errorf("inactive: %s, wrong password: %s", ans.body, wrong.body)
	}
}

// strip returns an error's body without its request id.
func strip(ans answer) string {
	return strings.ReplaceAll(string(ans.body), ans.header.Get("X-Request-Id"), "")
}

func TestLoginRehashes(t *testing.T) {
	t.Parallel()
	old := newApp(t)
	m := old.signUp("ada")
	a := newAppOn(t, old.url, argonParams{memory: 128, time: 2, threads: 1})
	before, _ := a.store.passwordHash(t.Context(), m.ID)
	a.want(a.tryLogin(m.Email, "a wrong canary"), 401, "invalid_credentials")
	if same, _ := a.store.passwordHash(t.Context(), m.ID); same != before {
		t.Error("a failed login changed the hash")
	}
	a.login(m.Email, goodPass)
	after, _ := a.store.passwordHash(t.Context(), m.ID)
	if !a.hasher.outdated(before) || a.hasher.outdated(after) ||
		!strings.Contains(after, "m=128,t=2") {
		t.Errorf("hash before %.30s, after %.30s", before, after)
	}
	a.login(m.Email, goodPass)
	if !old.accepts(m.AccessToken) {
		t.Error("a rehash ended a session")
	}
}

// TestForeignHashes logs in with hashes that pwdlib, passlib, bcrypt and argon2-cffi have made.
// Those of bcrypt, and of Argon2id at a lower cost, are then hashed anew.
func TestForeignHashes(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	long := strings.Repeat("long canary ", 10) // bcrypt reads 72 of its 120 bytes
	for _, row := range []struct {
		hash, password string
		rehashed       bool
	}{
		{"$2b$04$GBl0wcG06HEOQnRueD8cTOhE3P3js/QwaaLGFCSVojlghf.f3xca6", goodPass, true},
		{"$2a$04$11xkzjolcgWHWR6czJ1oJODCO8Iq0U80BDF3ofAbnOa39ilq8GkX.", goodPass, true},
		{"$2y$04$PQ4jpLxmp4xhzZGYp3lreORaRg35FFGjkHGNcDSEKCzCcbngflqD2", goodPass, true},
		{"$2b$04$W8DwlVWd74zgFs3i7zBuuOJrmT7J7/OYewol8YZjpGbQCfSxkhVPG", "pässwörter €", true},
		{"$2b$04$cOcHKOlN3fN2mI7TR13hE.ipLbETG/HNccTLBp/L8LXColL2fXiaS", long, true},
		{"$argon2id$v=19$m=1024,t=1,p=2$lpKy9t4bQwiBcK61lpJSKg$" +
			"cxQ5cEDE6TcVk/0xDG2403mrjAUB8ZV4LF2GokYOdBc", goodPass, false},
		{"$argon2id$v=19$m=65536,t=3,p=4$3trgdSVEw2LcTEH/MGrvfA$" +
			"Gzf6+Nj6Mr7JA1CcEUzcVtmnc9z4iOpD3QkbU6+B1hk", goodPass, false}, // the default
		{"$argon2id$v=19$m=102400,t=2,p=8$l+kcAkZO0bfL3vPF07zppA$RrzkJJHBp9JTcGy5tIbX+g",
			goodPass, true}, // the default of 2018; its tag has 16 bytes
	} {
		a.sql(`UPDATE users SET password_hash = $1`, row.hash)
		a.want(a.tryLogin(m.Email, "a wrong canary"), 401, "invalid_credentials")
		a.login(m.Email, row.password)
		after, err := a.store.passwordHash(t.Context(), m.ID)
		if rehashed := strings.Contains(after, "m=64,t=1"); err != nil || rehashed != row.rehashed {
			t.Errorf("%.30s became %.30s, %v", row.hash, after, err)
		}
		a.login(m.Email, row.password)
	}
}

// TestUnknownHashes: a hash that cannot be checked is a wrong password, at the usual cost, and a
// warning; no hash at all, as of an account that logged in elsewhere, is no reason for one.
func TestUnknownHashes(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	const made = "GBl0wcG06HEOQnRueD8cTOhE3P3js/QwaaLGFCSVojlghf.f3xca6" // of goodPass at cost 4
	warnings := 0
	for _, hash := range []string{"$2b$15$" + made, "$2b$31$" + made, "$2b$03$" + made,
		"$2x$04$" + made, "$2b$04$" + made + " ", "$2b$04$" + made[1:], "$2b$04$!" + made[1:], "x",
		"$bcrypt-sha256$v=2,t=2b,r=4$2US863fxQxGCfPXAkH4RU.$GRHn1i6hH7pPaP47cjBUQPPCSE.CUxa",
		"$argon2i$v=19$m=512,t=2,p=2$34vWGyGZz7g5wmkEPaWnKQ$03cBVMhV2nFA9mZkQ7sHMQ",
		"$pbkdf2-sha256$1000$H0Oode79X.t9z5mTMqb03g$IGwUb0JHQx3luevLnST5lAL/jxjShsCy.b6UMAGtbPI",
		goodPass, ""} {
		a.sql(`UPDATE users SET password_hash = $1`, hash)
		before := a.hasher.garbage.Load()
		a.want(a.tryLogin(m.Email, goodPass), 401, "invalid_credentials")
		if cost := a.hasher.garbage.Load() - before; cost != int64(cheap.memory) {
			t.Errorf("%.15s costs %d KiB, want %d", hash, cost, cheap.memory)
		}
		change := map[string]string{"full_name": "x", "current_password": goodPass}
		a.want(a.do("PUT", "/api/v1/users/me", m.AccessToken, change), 403, "wrong_password")
		if hash != "" {
			warnings += 2
		}
	}
	line := fmt.Sprintf(`"msg":"malformed_hash","user_id":%d}`, m.ID)
	if got := strings.Count(suiteLog.text(), line); got < warnings {
		t.Errorf("%d warnings of a hash, want %d", got, warnings)
	}
}

// TestLoginRehashesAtOnce checks that logins at the same time, one of which rehashes the password,
// all succeed.
func TestLoginRehashesAtOnce(t *testing.T) {
	t.Parallel()
	old := newApp(t)
	m := old.signUp("ada")
	a := newAppOn(t, old.url, argonParams{memory: 128, time: 2, threads: 1})
	weak, err := a.store.passwordHash(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		a.sql(`UPDATE users SET password_hash = $1`, weak)
		parallel(4, func(int) { a.login(m.Email, goodPass) })
	}
}

// TestLoginTiming compares unknown with known e-mails at the real cost of a hash. Without the dummy
// the ratio would be some 0.05. The bounds are wide; the medians of interleaved calls are stable.
func TestLoginTiming(t *testing.T) {
	a := newAppOn(t, newDatabase(t, template), currentParams)
	m := a.signUp("ada")
	measure := func(email string) time.Duration {
		start := time.Now()
		a.want(a.tryLogin(email, "a wrong canary"), 401, "invalid_credentials")
		return time.Since(start)
	}
	var ratio float64
	for range 3 {
		var known, unknown []time.Duration
		for range 11 {
			known = append(known, measure(m.Email))
			unknown = append(unknown, measure("nobody-canary@example.com"))
		}
		slices.Sort(known)
		slices.Sort(unknown)
		if ratio = float64(unknown[5]) / float64(known[5]); ratio > 0.6 && ratio < 1.6 {
			return
		}
	}
	t.Errorf("an unknown e-mail takes %.2f of the time of a known one", ratio)
}

func TestLoginBusy(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	defer occupy(t, &a.hasher.slots)()
	a.want(a.tryLogin(m.Email, goodPass), 503, "busy")
	if !a.accepts(m.AccessToken) {
		t.Error("a full hashing queue stops other requests")
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	first := decode[tokens](a.want(a.refresh(m.RefreshToken), 200, ""))
	if first.RefreshToken == m.RefreshToken || first.AccessToken == m.AccessToken ||
		!a.accepts(first.AccessToken) {
		t.Error("refresh did not give new, valid tokens")
	}
	again := a.want(a.refresh(m.RefreshToken), 200, "")
	if decode[tokens](again) != first {
		t.Error("a repeated refresh gave another successor")
	}
	refresh := func(form url.Values) answer {
		return a.do("POST", "/api/v1/auth/refresh", "", form)
	}
	second := decode[tokens](a.want(refresh(url.Values{"grant_type": {"refresh_token"},
		"refresh_token": {first.RefreshToken}}), 200, ""))
	a.want(refresh(url.Values{"refresh_token": {second.RefreshToken}}), 422, "invalid_request")
	second = decode[tokens](a.want(refresh(url.Values{"grant_type": {"refresh_token"},
		"client_id": {"app"}, "scope": {""}, "refresh_token": {second.RefreshToken}}), 200, ""))
	a.want(a.refresh(second.AccessToken), 401, "invalid_refresh_token")
	a.want(a.refresh("x"), 401, "invalid_refresh_token")
	a.want(a.do("GET", "/api/v1/users/me", second.RefreshToken, nil), 401, "invalid_token")

	a.want(a.refresh(m.RefreshToken), 401, "refresh_reused") // two generations back
	if a.accepts(second.AccessToken) || a.accepts(m.AccessToken) {
		t.Error("the access tokens outlive a reused refresh token")
	}
	a.want(a.refresh(second.RefreshToken), 401, "invalid_refresh_token")
}

func TestRefreshAfterGrace(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	first := decode[tokens](a.want(a.refresh(m.RefreshToken), 200, ""))
	a.sql(`UPDATE sessions SET rotated_at = rotated_at - interval '11 seconds'`)
	a.want(a.refresh(m.RefreshToken), 401, "refresh_reused")
	if a.accepts(first.AccessToken) {
		t.Error("the session still accepts tokens")
	}
	if !strings.Contains(suiteLog.text(), `"msg":"refresh_reuse"`) {
		t.Error("no refresh_reuse event")
	}
}

// TestRefreshAhead refreshes after a fail-over that lost a rotation: the generation of the client's
// token is ahead of the row's.
func TestRefreshAhead(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	current := decode[tokens](a.refresh(m.RefreshToken))
	ahead := decode[tokens](a.want(a.refresh(current.RefreshToken), 200, ""))
	a.sql(`UPDATE sessions SET generation = 0`)
	next := decode[tokens](a.want(a.refresh(ahead.RefreshToken), 200, ""))
	if !a.accepts(next.AccessToken) {
		t.Error("the session did not survive")
	}
}

func TestRefreshAtOnce(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	var mu sync.Mutex
	successors := map[tokens]int{}
	parallel(50, func(int) {
		got := decode[tokens](a.want(a.refresh(m.RefreshToken), 200, ""))
		mu.Lock()
		successors[got]++
		mu.Unlock()
	})
	if len(successors) != 1 {
		t.Errorf("50 refreshes of one token gave %d successors", len(successors))
	}
}

// TestRefreshAgainstLogout runs both at once: the tokens of the refresh are revoked afterwards.
func TestRefreshAgainstLogout(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	email := a.signUp("ada").Email
	for range 30 {
		m := a.login(email, goodPass)
		var minted tokens
		parallel(2, func(i int) {
			if i == 0 {
				a.want(a.do("POST", "/api/v1/auth/logout", m.AccessToken, nil), 204, "")
			} else if ans := a.refresh(m.RefreshToken); ans.status == 200 {
				minted = decode[tokens](ans)
			}
		})
		if minted.AccessToken != "" && a.accepts(minted.AccessToken) ||
			a.refresh(m.RefreshToken).status == 200 {
			t.Fatal("a refresh outlived the logout")
		}
	}
}

func TestSessionLimits(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	a.sql(`UPDATE sessions SET created_at = now() - interval '29 days 23 hours'`)
	refreshed := decode[tokens](a.want(a.refresh(m.RefreshToken), 200, ""))
	var left time.Duration
	row := a.store.pool.QueryRow(t.Context(), `SELECT expires_at - now() FROM sessions`)
	if err := row.Scan(&left); err != nil || left > time.Hour {
		t.Errorf("a session of nearly 30 days is valid for %v more (%v)", left, err)
	}
	a.sql(`UPDATE sessions SET expires_at = now()`)
	if a.accepts(refreshed.AccessToken) {
		t.Error("an access token outlives its session")
	}
	a.want(a.refresh(refreshed.RefreshToken), 401, "invalid_refresh_token")
	if n, err := a.store.sweepSessions(t.Context()); n != 1 || err != nil {
		t.Errorf("sweepSessions() = %d, %v, want 1", n, err)
	}
}

func TestSessionCap(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	parallel(8, func(int) {
		for range 8 {
			a.login(m.Email, goodPass)
		}
	})
	newest := a.login(m.Email, goodPass)
	ans := a.want(a.do("GET", "/api/v1/auth/sessions", newest.AccessToken, nil), 200, "")
	list := decode[[]sessionInfo](ans)
	if len(list) != maxSessions || !list[0].Current || list[1].Current {
		t.Errorf("%d sessions after 66 logins, want %d, the newest first and current",
			len(list), maxSessions)
	}
	if a.accepts(m.AccessToken) {
		t.Error("the oldest session was not removed")
	}
}

func TestExpiredAccessToken(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	claims, _, ok := parseAccess(a.keys, m.AccessToken)
	if !ok {
		t.Fatal("parseAccess failed")
	}
	now := time.Now().Unix()
	for expires, want := range map[int64]bool{now - 1: false, now + 30: true} {
		claims.Expires = expires
		if got := a.accepts(a.keys.keys[0].access.sign(claims)); got != want {
			t.Errorf("a token that expires %v: accepts = %v", time.Until(time.Unix(expires, 0)),
				got)
		}
	}
	claims.User = 1_000_000
	if a.accepts(a.keys.keys[0].access.sign(claims)) {
		t.Error("a session serves another user")
	}
}

func TestAuthorizationHeader(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	bearer := "Bearer " + m.AccessToken
	for name, row := range map[string]struct {
		values []string
		status int
		code   string
	}{
		"lower case":   {[]string{"bearer " + m.AccessToken}, 200, ""},
		"two spaces":   {[]string{"Bearer  " + m.AccessToken}, 200, ""},
		"none":         {nil, 401, "not_authenticated"},
		"basic":        {[]string{"Basic YTpi"}, 401, "not_authenticated"},
		"bare token":   {[]string{m.AccessToken}, 401, "not_authenticated"},
		"empty bearer": {[]string{"Bearer "}, 401, "not_authenticated"},
		"twice":        {[]string{bearer, bearer}, 401, "invalid_token"},
		"too long":     {[]string{bearer + strings.Repeat("a", maxBearer)}, 401, "invalid_token"},
		"list":         {[]string{bearer + ", " + bearer}, 401, "invalid_token"},
		"upper case": {
			[]string{"Bearer " + strings.ToUpper(m.AccessToken)}, 401, "invalid_token"},
	} {
		header := http.Header{"Authorization": row.values}
		ans := a.send("GET", "/api/v1/users/me", header, nil)
		a.want(ans, row.status, row.code)
		got := ans.header.Get("WWW-Authenticate")
		if row.code == "invalid_token" && got != `Bearer error="invalid_token"` ||
			row.code == "not_authenticated" && got != "Bearer" {
			t.Errorf("%s: WWW-Authenticate %q", name, got)
		}
	}
	ans := a.do("GET", "/api/v1/users/me?access_token="+m.AccessToken, "", nil)
	a.want(ans, 401, "not_authenticated")
}

func TestLogout(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	one := a.signUp("ada")
	other := a.signUp("bob")
	two, three := a.login(one.Email, goodPass), a.login(one.Email, goodPass)
	ans := a.do("POST", "/api/v1/auth/logout?scope=all", one.AccessToken, nil)
	a.want(ans, 422, "invalid_request")
	a.want(a.do("POST", "/api/v1/auth/logout", one.AccessToken, nil), 204, "")
	a.want(a.do("POST", "/api/v1/auth/logout", one.AccessToken, nil), 401, "invalid_token")
	a.want(a.refresh(one.RefreshToken), 401, "invalid_refresh_token")
	a.want(a.do("POST", "/api/v1/auth/logout?scope=others", two.AccessToken, nil), 204, "")
	if !a.accepts(two.AccessToken) || a.accepts(three.AccessToken) {
		t.Error("scope=others ended the wrong sessions")
	}
	a.want(a.do("POST", "/api/v1/auth/logout?scope=global", two.AccessToken, nil), 204, "")
	if a.accepts(two.AccessToken) || !a.accepts(other.AccessToken) {
		t.Error("scope=global ended the wrong sessions")
	}
}

func TestSessions(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	one := a.signUp("ada")
	other := a.signUp("bob")
	header := http.Header{"Content-Type": {"application/json"},
		"User-Agent": {"Test \xff\u202E agent"}}
	a.want(a.send("POST", "/api/v1/auth/login", header,
		strings.NewReader(`{"username":"ada@example.com","password":"`+goodPass+`"}`)), 200, "")
	ans := a.want(a.do("GET", "/api/v1/auth/sessions", one.AccessToken, nil), 200, "")
	list := decode[[]sessionInfo](ans)
	if len(list) != 2 || list[0].UserAgent != "Test  agent" || list[0].Current ||
		!list[1].Current || list[0].IP == nil || *list[0].IP != "127.0.0.1" {
		t.Fatalf("sessions = %+v", list)
	}
	if path := fmt.Sprintf("/api/v1/auth/sessions/%d", list[0].ID); true {
		a.want(a.do("DELETE", path, other.AccessToken, nil), 404, "not_found")
		a.want(a.do("DELETE", path, one.AccessToken, nil), 204, "")
		a.want(a.do("DELETE", path, one.AccessToken, nil), 404, "not_found")
	}
	a.want(a.do("DELETE", "/api/v1/auth/sessions/0", one.AccessToken, nil), 422, "invalid_request")
}

// TestLoginRacesPasswordChange checks that a login that was checked against the old password makes
// no session once the password has changed.
func TestLoginRacesPasswordChange(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	hash, err := a.store.passwordHash(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	change := map[string]string{"password": "another canary passphrase",
		"current_password": goodPass}
	a.want(a.do("PUT", "/api/v1/users/me", m.AccessToken, change), 200, "")
	c := &caller{ip: netip.MustParseAddr("127.0.0.1")}
	if _, err := a.store.createSession(t.Context(), m.ID, hash, c, time.Hour); err != errNotFound {
		t.Errorf("createSession with a replaced hash = %v, want errNotFound", err)
	}
}
