package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestMe(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	a.signUp("bob")
	put := func(body string) answer { return a.do("PUT", "/api/v1/users/me", m.AccessToken, body) }
	ans := a.want(a.do("GET", "/api/v1/users/me", m.AccessToken, nil), 200, "")
	got := decode[map[string]any](ans)
	if len(got) != 7 || got["email"] != "ada@example.com" || got["full_name"] != nil ||
		!strings.HasSuffix(got["created_at"].(string), "Z") {
		t.Errorf("me = %v", got)
	}
	if u := decode[user](a.want(put(`{}`), 200, "")); !u.UpdatedAt.Equal(m.UpdatedAt) {
		t.Error("an empty change touched updated_at")
	}
	u := decode[user](a.want(put(`{"full_name":"Ada King"}`), 200, ""))
	if u.FullName == nil || *u.FullName != "Ada King" || !u.UpdatedAt.After(m.UpdatedAt) {
		t.Errorf("full_name: %+v", u)
	}
	u = decode[user](a.want(put(`{"email":"Countess@example.com"}`), 200, ""))
	if u.Email != "countess@example.com" || u.FullName == nil {
		t.Errorf("email: %+v", u)
	}
	ans = a.do("PATCH", "/api/v1/users/me", m.AccessToken, `{"full_name":null}`)
	if u := decode[user](a.want(ans, 200, "")); u.FullName != nil {
		t.Errorf("null: %+v", u)
	}
	a.want(put(`{"email":"BOB@example.com","full_name":"kept out"}`), 409, "email_taken")
	a.want(put(`{"full_name":"kept out","email":"bad"}`), 422, "invalid_request")
	a.want(put(`{"email":null}`), 422, "invalid_request")
	a.want(put(`{"is_admin":true}`), 422, "invalid_request")
	a.want(put(`{"is_active":false}`), 422, "invalid_request")
	a.want(put(`{"is_active":true,"is_admin":false}`), 200, "") // no change
	a.want(put(`{"full_name":"`+strings.Repeat("ü", 256)+`"}`), 422, "invalid_request")
	a.want(put(`{"full_name":"kept out","current_password":"wrong canary"}`), 403, "wrong_password")
	u = decode[user](a.do("GET", "/api/v1/users/me", m.AccessToken, nil))
	if u.FullName != nil || u.Email != "countess@example.com" {
		t.Errorf("a refused change left %+v", u)
	}
	a.want(put(`{"full_name":"`+strings.Repeat("ü", 255)+`"}`), 200, "")
}

// TestEmailChanges checks the limit of changes of the e-mail address. Without it, a user could test
// which addresses have an account.
func TestEmailChanges(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m, other := a.signUp("ada"), a.signUp("bob")
	change := func(m member, email string) answer {
		return a.do("PUT", "/api/v1/users/me", m.AccessToken, map[string]string{"email": email})
	}
	refused := 0
	for i := range 2 * maxEmailChanges {
		email := []string{"bob@example.com", fmt.Sprintf("new%d@example.com", i)}[i%2]
		if ans := change(m, email); ans.code() == "busy" {
			refused++
			if after := ans.header.Get("Retry-After"); after != "3600" {
				t.Errorf("Retry-After is %q, want an hour", after)
			}
		} else if i%2 == 0 {
			a.want(ans, 409, "email_taken")
		}
	}
	if refused != maxEmailChanges {
		t.Errorf("of %d changes %d were refused, want %d",
			2*maxEmailChanges, refused, maxEmailChanges)
	}
	current := decode[user](a.do("GET", "/api/v1/users/me", m.AccessToken, nil)).Email
	a.want(change(m, current), 200, "") // no change
	a.want(change(other, "robert@example.com"), 200, "")
}

func TestChangePassword(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	second := a.login(m.Email, goodPass)
	change := func(next, current string) answer {
		body := map[string]string{"password": next, "current_password": current}
		return a.do("PUT", "/api/v1/users/me", m.AccessToken, body)
	}
	body := `{"password":"another canary passphrase"}`
	a.want(a.do("PUT", "/api/v1/users/me", m.AccessToken, body), 422, "invalid_request")
	a.want(change("another canary passphrase", "wrong canary"), 403, "wrong_password")
	a.want(change("password1", goodPass), 422, "invalid_request")
	a.want(change("another canary passphrase", goodPass), 200, "")
	if !a.accepts(m.AccessToken) || a.accepts(second.AccessToken) {
		t.Error("a new password must end the other sessions and keep this one")
	}
	a.want(a.tryLogin(m.Email, goodPass), 401, "invalid_credentials")
	a.login(m.Email, "another canary passphrase")
}

// TestHangUpInDeletion lets clients go at any moment of a deletion: it has happened, or not.
func TestHangUpInDeletion(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	root := a.signUpAdmin("root")
	for i := range 40 {
		m := a.signUp(fmt.Sprintf("u%d", i))
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*200*time.Microsecond)
		path := fmt.Sprintf("%s/api/v1/users/%d", a.web.URL, m.ID)
		r, err := http.NewRequestWithContext(ctx, "DELETE", path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+root.AccessToken)
		if res, err := a.web.Client().Do(r); err == nil {
			res.Body.Close()
		}
		cancel()
	}
	eventually(t, "the last request", func() bool { return a.stats.inFlight.Load() == 0 })
	if n := one[int](t, a.url, `SELECT count(*) FROM users WHERE NOT is_active`); n != 0 {
		t.Errorf("%d accounts are deactivated, but not deleted", n)
	}
}

// TestDeletions deletes accounts beside others' deletions and a reactivation.
func TestDeletions(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	root := a.signUpAdmin("root")
	path := func(m member) string { return fmt.Sprintf("/api/v1/users/%d", m.ID) }
	m := a.signUp("ada")
	release := occupy(t, &a.store.deletions)
	a.store.deletions.timeout = 10 * time.Millisecond
	a.want(a.do("DELETE", path(m), root.AccessToken, nil), 503, "busy")
	if !a.accepts(m.AccessToken) {
		t.Error("a refused deletion has deactivated the account")
	}
	release()
	a.store.deletions.timeout = time.Minute
	for i := range 10 {
		m := a.signUp(fmt.Sprintf("u%d", i))
		parallel(4, func(i int) {
			if i > 0 {
				a.do("PUT", path(m), root.AccessToken, `{"is_active":true}`)
			} else {
				a.want(a.do("DELETE", path(m), root.AccessToken, nil), 204, "")
			}
		})
		a.want(a.do("GET", path(m), root.AccessToken, nil), 404, "not_found")
	}
}

// TestStolenToken floods an account with one session: others still end it.
func TestStolenToken(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	own := a.login(m.Email, goodPass)
	requests, err := a.requests.acquire(t.Context(), clientKey{user: m.ID}, maxRequests)
	if err != nil {
		t.Fatal(err)
	}
	defer requests()
	a.requests.timeout = 10 * time.Millisecond
	a.want(a.do("GET", "/api/v1/users/me", own.AccessToken, nil), 503, "busy")
	session := one[int64](t, a.url, `SELECT id FROM sessions ORDER BY created_at LIMIT 1`)
	guess, err := a.confirmations.acquire(t.Context(), clientKey{user: session}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer guess()
	const next = "another fine passphrase"
	change := map[string]string{"password": next, "current_password": goodPass}
	a.want(a.do("PUT", "/api/v1/users/me", own.AccessToken, change), 200, "")
	a.want(a.do("POST", "/api/v1/auth/logout?scope=global", own.AccessToken, nil), 204, "")
}

// TestRehashBesidePassword changes a hash, as a login does, while a password is confirmed.
func TestRehashBesidePassword(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	c := &caller{session: 1}
	c.ID = m.ID
	tries := 0
	err := a.withPassword(t.Context(), c, new(goodPass), func(hash string) error {
		if tries++; tries > 1 {
			return nil
		}
		return errWrongPassword // as lockUser does after a rehash
	})
	if err != nil || tries != 2 {
		t.Errorf("withPassword = %v after %d tries", err, tries)
	}
}

func TestDeleteMe(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	m := a.signUp("ada")
	admin := a.signUpAdmin("root")
	remove := func(m member, password string) answer {
		body := map[string]string{"current_password": password}
		return a.do("DELETE", "/api/v1/users/me", m.AccessToken, body)
	}
	a.want(remove(m, "wrong canary"), 403, "wrong_password")
	a.want(a.do("DELETE", "/api/v1/users/me", m.AccessToken, nil), 415, "unsupported_media_type")
	a.want(remove(m, goodPass), 204, "")
	a.want(remove(m, goodPass), 401, "invalid_token")
	a.want(a.refresh(m.RefreshToken), 401, "invalid_refresh_token")
	a.want(remove(admin, goodPass), 409, "last_admin")
}

func TestListUsers(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	admin := a.signUpAdmin("root")
	for i := range 6 {
		names := []string{
			"100%", "under_score", `back\slash`, "Zoë Ünal", "plain", "50 percent",
		}
		body := map[string]any{"email": fmt.Sprintf("u%d@example.com", i), "password": goodPass,
			"full_name": names[i], "is_active": i != 4}
		a.want(a.do("POST", "/api/v1/users", admin.AccessToken, body), 201, "")
	}
	list := func(query string) []user {
		ans := a.do("GET", "/api/v1/users"+query, admin.AccessToken, nil)
		return decode[[]user](a.want(ans, 200, ""))
	}
	for query, want := range map[string]int{
		"":                                7,
		"?skip=5":                         2,
		"?skip=100":                       0,
		"?limit=3":                        3,
		"?q=U1%40":                        1,
		"?q=%25":                          1,
		"?q=_":                            1,
		"?q=%5C":                          1,
		"?q=ZOË":                          1,
		"?q=ünal":                         1,
		"?q=nobody":                       0,
		"?is_active=false":                1,
		"?is_admin=true":                  1,
		"?is_admin=false&is_active=true":  5,
		"?q=percent&is_active=true":       1,
		"?is_active=True":                 6,
		"?is_active=1&_=1700000000":       6,
		"?&&q=&":                          7,
		"?skip=9223372036854775807":       0,
		"?after=9223372036854775807":      0,
		"?limit=100&after=2147483648&q=a": 0,
	} {
		if got := list(query); len(got) != want || got == nil {
			t.Errorf("GET /users%s gave %d users, want %d", query, len(got), want)
		}
	}
	var seen []int64
	next := "/api/v1/users?limit=2&q=" + url.QueryEscape("@example.com")
	for next != "" {
		ans := a.want(a.do("GET", next, admin.AccessToken, nil), 200, "")
		for _, u := range decode[[]user](ans) {
			seen = append(seen, u.ID)
		}
		link := ans.header.Get("Link")
		next = strings.TrimSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
		if link != "" && !strings.HasPrefix(next, "/api/v1/users?after=") {
			t.Fatalf("Link: %s", link)
		}
	}
	if len(seen) != 7 {
		t.Errorf("following the links gave %v", seen)
	}
	for _, query := range []string{
		"?limit=0", "?limit=101", "?limit=01", "?limit=+1", "?limit=1.0", "?limit=", "?limit",
		"?skip=-1", "?skip=1&skip=1", "?skip=0&after=1", "?after=0", "?unknown=1",
		"?LIMIT=1", "?q=%00", "?q=%ff", "?q=%zz",
		"?is_active=yes", "?is_active=tRUE", "?limit=9223372036854775808",
	} {
		a.want(a.do("GET", "/api/v1/users"+query, admin.AccessToken, nil), 422, "invalid_request")
	}
	empty := a.do("GET", "/api/v1/users?after=1000", admin.AccessToken, nil)
	if body := string(empty.body); body != "[]" {
		t.Errorf("an empty page is %s", body)
	}
}

func TestAdminUsers(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	admin, m := a.signUpAdmin("root"), a.signUp("ada")
	path := fmt.Sprintf("/api/v1/users/%d", m.ID)
	put := func(body string) answer { return a.do("PUT", path, admin.AccessToken, body) }
	u := decode[user](a.want(a.do("GET", path, admin.AccessToken, nil), 200, ""))
	if u.ID != m.ID || u.Email != m.Email {
		t.Errorf("GET %s = %+v", path, u)
	}
	for _, missing := range []string{"/api/v1/users/999999", "/api/v1/users/9223372036854775807"} {
		a.want(a.do("GET", missing, admin.AccessToken, nil), 404, "not_found")
		a.want(a.do("PUT", missing, admin.AccessToken, `{"full_name":"x"}`), 404, "not_found")
		a.want(a.do("PUT", missing, admin.AccessToken, `{}`), 404, "not_found")
		a.want(a.do("DELETE", missing, admin.AccessToken, nil), 404, "not_found")
	}
	for _, bad := range []string{"0", "-1", "+1", "01", "x", "1.0", "9223372036854775808"} {
		a.want(a.do("GET", "/api/v1/users/"+bad, admin.AccessToken, nil), 422, "invalid_request")
	}
	a.want(put(`{"full_name":"By Admin","email":"New@example.com"}`), 200, "")
	a.want(put(`{"email":"root@example.com"}`), 409, "email_taken")
	if !a.accepts(m.AccessToken) {
		t.Error("an admin's change of name or e-mail ended a session")
	}
	a.want(put(`{"is_admin":true}`), 200, "")
	a.want(a.do("GET", "/api/v1/users", m.AccessToken, nil), 200, "") // at once, with the old token
	a.want(put(`{"is_admin":false}`), 200, "")
	a.want(a.do("GET", "/api/v1/users", m.AccessToken, nil), 403, "admin_required")
	a.want(put(`{"password":"another canary passphrase"}`), 200, "")
	if a.accepts(m.AccessToken) {
		t.Error("an admin's change of the password must end all sessions")
	}
	fresh := a.login("new@example.com", "another canary passphrase")
	a.want(put(`{"is_active":false}`), 200, "")
	a.want(put(`{"is_active":true}`), 200, "")
	if a.accepts(fresh.AccessToken) {
		t.Error("a session survived a deactivation")
	}
	self := fmt.Sprintf("/api/v1/users/%d", admin.ID)
	a.want(a.do("DELETE", self, admin.AccessToken, nil), 403, "self_delete")
	a.want(a.do("DELETE", path, admin.AccessToken, nil), 204, "")
	a.want(a.do("GET", path, admin.AccessToken, nil), 404, "not_found")
	a.want(a.do("PUT", self, admin.AccessToken, `{"is_admin":false}`), 409, "last_admin")
	a.want(a.do("PUT", self, admin.AccessToken, `{"is_active":false}`), 409, "last_admin")
	a.want(a.do("PUT", self, admin.AccessToken, `{"is_active":true,"is_admin":true}`), 200, "")
}

// TestLastAdmin makes two admins remove each other at once, in each possible way.
func TestLastAdmin(t *testing.T) {
	t.Parallel()
	const isolation = "&default_transaction_isolation=repeatable%20read" // as a role may have
	a := newAppOn(t, newDatabase(t, template)+isolation, cheap)
	root := a.signUpAdmin("root")
	hash, err := a.store.passwordHash(t.Context(), root.ID)
	if err != nil {
		t.Fatal(err)
	}
	a.sql(`UPDATE users SET is_admin = false`)
	for round := range 100 {
		var pair [2]struct {
			id    int64
			token string
		}
		for i := range pair {
			email := fmt.Sprintf("r%d-%d@example.com", round, i)
			u, err := a.store.createUser(t.Context(), newUser{email, hash, nil, true, true})
			if err != nil {
				t.Fatal(err)
			}
			s, err := a.store.createSession(t.Context(), u.ID, hash, &caller{}, a.idleLimit())
			if err != nil {
				t.Fatal(err)
			}
			pair[i].id, pair[i].token = u.ID, a.keys.issue(s).AccessToken
		}
		parallel(2, func(i int) {
			path, token := fmt.Sprintf("/api/v1/users/%d", pair[1-i].id), pair[i].token
			var ans answer
			switch (round + i*round/4) % 4 {
			case 0:
				ans = a.do("PUT", path, token, `{"is_admin":false}`)
			case 1:
				ans = a.do("PATCH", path, token, `{"is_active":false}`)
			case 2:
				ans = a.do("DELETE", path, token, nil)
			case 3:
				body := map[string]string{"current_password": goodPass}
				ans = a.do("DELETE", "/api/v1/users/me", token, body)
			}
			if ans.status >= 500 {
				t.Errorf("%s = %d: %s", ans.call, ans.status, ans.body)
			}
		})
		var left int
		err := a.store.pool.QueryRow(t.Context(),
			`SELECT count(*) FROM users WHERE is_admin AND is_active`).Scan(&left)
		if err != nil || left < 1 {
			t.Fatalf("round %d: %d active admins left (%v)", round, left, err)
		}
		a.sql(`UPDATE users SET is_admin = false WHERE is_admin`)
	}
}

func TestParseEmail(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	// The values are the parsed address, or "" for a refusal.
	for text, want := range map[string]string{
		"Ada.Lovelace+x@Example.COM": "ada.lovelace+x@example.com",
		"a@b.de":                     "a@b.de",
		"!#$%&'*+/=?^_`{|}~-@b.de":   "!#$%&'*+/=?^_`{|}~-@b.de",
		"a@1.b-c.x1":                 "a@1.b-c.x1",
		long + "a@b.de":              long + "a@b.de",
		"a@" + long + ".de":          "a@" + long + ".de",
		"a@" + strings.Repeat(long+".", 3) + strings.Repeat("b", 60): "a@" +
			strings.Repeat(long+".", 3) + strings.Repeat("b", 60),
		"": "", "@": "", "a": "", "a@": "", "@b.de": "", "a@b": "", "a@b.": "", "a@.de": "",
		"a@b..de": "", ".a@b.de": "", "a.@b.de": "", "a..b@c.de": "", "a@b@c.de": "",
		"a b@c.de": "", " a@b.de": "", "a@b.de ": "", "a@-b.de": "", "a@b-.de": "",
		"a@b_c.de": "", "a@127.0.0.1": "", "a@[127.0.0.1]": "", "a@b.1": "", `"a b"@c.de`: "",
		"A <a@b.de>": "", "a(x)@b.de": "", "a@b.de\n": "", "a\r\n@b.de": "", "a\x00@b.de": "",
		"ü@b.de": "", "a@ü.de": "", "\u212A@b.de": "", "a\xff@b.de": "", "a@b.ſe": "",
		long + "aa@b.de": "", "a@" + long + "a.de": "",
		"a@" + strings.Repeat(long+".", 3) + strings.Repeat("b", 61): "",
	} {
		if got, refusal := parseEmail(text); got != want || (refusal == "") != (want != "") {
			t.Errorf("parseEmail(%q) = %q, %q, want %q", text, got, refusal, want)
		}
	}
}

// FuzzEmail checks that an accepted address is at most 254 bytes of ASCII in lower case, and that
// parsing it again does not change it. A longer input is refused before it is read, which limits
// the cost of an input.
func FuzzEmail(f *testing.F) {
	for _, text := range []string{
		"Ada@Example.com", "a.b+c@d-e.f1", "@", "a@b@c.de", "\u212A@b.de", "a@b.1",
		strings.Repeat("a", 64) + "@b.de", "a@" + strings.Repeat("b.", 126) + "de", "a\xff@b.de",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, refusal := parseEmail(text)
		if refusal != "" {
			if got != "" {
				t.Errorf("parseEmail(%q) = %q and refuses it", text, got)
			}
			return
		}
		local, domain, _ := strings.Cut(got, "@")
		if len(got) > 254 || len(local) > 64 || local == "" ||
			!strings.Contains(domain, ".") || strings.Contains(domain, "@") ||
			len(got) != len(text) || !strings.EqualFold(got, text) {
			t.Errorf("parseEmail(%q) = %q", text, got)
		}
		refused := func(r rune) bool { return r <= ' ' || r > '~' || r >= 'A' && r <= 'Z' }
		if strings.ContainsFunc(got, refused) {
			t.Errorf("parseEmail(%q) = %q, want printable ASCII in lower case", text, got)
		}
		if second, refusal := parseEmail(got); second != got || refusal != "" {
			t.Errorf("parseEmail(%q) = %q, %q, want itself", got, second, refusal)
		}
	})
}
