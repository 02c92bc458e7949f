package main

// docs_test.go holds the docs page against what it promises: what is served and how, and in a real
// browser, which is driven through the W3C's WebDriver protocol, that it does what a person would do there.

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	osexec "os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDocsServed(t *testing.T) {
	t.Parallel()
	get := func(a *app, path, tag string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequest("GET", a.web.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tag != "" {
			r.Header.Set("If-None-Match", tag)
		}
		res, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var body bytes.Buffer
		if _, err := body.ReadFrom(res.Body); err != nil {
			t.Fatal(err)
		}
		return res, body.String()
	}
	a := newApp(t)
	if res, _ := get(a, "/", ""); res.StatusCode != 302 || res.Header.Get("Location") != "/docs" {
		t.Errorf("GET / = %d to %q, want 302 to /docs", res.StatusCode, res.Header.Get("Location"))
	}
	for path, media := range map[string]string{"/docs": "text/html; charset=utf-8", "/openapi.json": "application/json"} {
		res, body := get(a, path, "")
		if res.StatusCode != 200 || res.Header.Get("Content-Type") != media || res.Header.Get("Cache-Control") != "no-cache" || len(body) > 100_000 {
			t.Errorf("GET %s = %d, %d bytes, %v", path, res.StatusCode, len(body), res.Header)
		}
		if again, body := get(a, path, res.Header.Get("ETag")); again.StatusCode != 304 || body != "" {
			t.Errorf("GET %s with its ETag = %d, want 304", path, again.StatusCode)
		}
	}
	res, body := get(a, "/docs", "")
	policy := res.Header.Get("Content-Security-Policy")
	for _, name := range []string{"script", "style"} {
		from, to := strings.Index(body, "<"+name+">"), strings.Index(body, "</"+name+">")
		sum := sha256.Sum256([]byte(body[from+len(name)+2 : to]))
		if want := name + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(policy, want) || strings.Count(body, "<"+name) != 1 {
			t.Errorf("the policy %q lacks %s", policy, want)
		}
	}
	if !strings.HasPrefix(policy, "default-src 'none'; connect-src 'self'; ") || strings.Contains(policy, "unsafe") {
		t.Errorf("the policy is loose: %s", policy)
	}
	if found := regexp.MustCompile(`(?i)\s(style|on[a-z]+)="|innerHTML|localStorage|sessionStorage|\bhttps?://[a-z]`).FindAllString(strings.ReplaceAll(body, "http://www.w3.org/2000/svg", ""), -1); found != nil {
		t.Errorf("the page has %q", found)
	}
	off := newApp(t, func(c *config) { c.Docs = false })
	for _, path := range []string{"/", "/docs", "/openapi.json"} {
		off.want(off.do("GET", path, "", nil), 404, "not_found")
	}
}

// browser is a Chromium, and the page that is open in it.
type browser struct {
	t        *testing.T
	session  string         // the URL of its WebDriver session
	provoked map[string]int // the refusals that the test asked for, as "URL status"
}

// openBrowser starts a browser, or skips the test where there is none. CI must have one.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	driver, err := osexec.LookPath("chromedriver")
	found := false
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"} {
		_, err := osexec.LookPath(name)
		found = found || err == nil // chromedriver looks for its own
	}
	if err != nil || !found {
		if os.Getenv("CI") != "" {
			t.Fatal("CI needs chromium and chromedriver for the docs page: .ci/setup.sh chromedriver installs them")
		}
		fmt.Fprintln(os.Stderr, "SKIPPED: the docs page was tested in no browser. Install chromium and chromedriver (Debian: apt-get install chromium chromium-driver).")
		t.Skip("no browser")
	}
	profile, err := os.MkdirTemp("", "latch-browser-")
	if err != nil {
		t.Fatal(err)
	}
	// When the pipe ends, with the test or with a killed process, all of the group goes: the driver and its browsers.
	cmd := osexec.Command("sh", "-c", `"$1" --port=0 & cat >/dev/null; trap "" TERM; kill 0; wait; until rm -rf "$0" 2>/dev/null; do sleep .1; done`, profile, driver)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	b := &browser{t: t, provoked: map[string]int{}}
	for lines := bufio.NewScanner(stdout); b.session == "" && lines.Scan(); {
		if _, port, ok := strings.Cut(lines.Text(), "successfully on port "); ok {
			b.session = "http://127.0.0.1:" + strings.TrimSuffix(port, ".") + "/session"
		}
	}
	// No sandbox: root may have none, nor may containers, and the page is our own.
	args := []string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--disable-dev-shm-usage", "--force-prefers-reduced-motion", "--window-size=1280,900", "--user-data-dir=" + profile}
	var made struct{ SessionID string }
	b.call("POST", "", pairs{"capabilities", pairs{"alwaysMatch", pairs{
		"goog:chromeOptions", pairs{"args", args},
		"goog:loggingPrefs", pairs{"browser", "ALL", "performance", "ALL"}}}}, &made)
	b.session += "/" + made.SessionID
	t.Cleanup(func() { b.call("DELETE", "", pairs{}, nil) })
	return b
}

// call is one command of WebDriver; its value goes to result.
func (b *browser) call(method, path string, body, result any) {
	b.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		b.t.Fatal(err)
	}
	r, err := http.NewRequest(method, b.session+path, bytes.NewReader(text))
	if err != nil {
		b.t.Fatal(err)
	}
	res, err := (&http.Client{Timeout: time.Minute}).Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct{ Value json.RawMessage }
	err = json.NewDecoder(res.Body).Decode(&answer)
	if err == nil && res.StatusCode == 200 && result != nil {
		err = json.Unmarshal(answer.Value, result)
	}
	if err != nil || res.StatusCode != 200 {
		b.t.Fatalf("WebDriver: %s %s = %d %v: %.600s", method, path, res.StatusCode, err, answer.Value)
	}
}

// run runs a script in the page; its result goes to result.
func (b *browser) run(result any, script string, args ...any) {
	b.t.Helper()
	b.call("POST", "/execute/sync", pairs{"script", script, "args", append([]any{}, args...)}, result)
}

// text is that of the first element that is on show and fits, "" without one.
func (b *browser) text(css string) (text string) {
	b.t.Helper()
	b.run(&text, `for (const e of document.querySelectorAll(arguments[0])) if (e.checkVisibility()) return e.textContent; return ""`, css)
	return text
}

// see waits until an element that fits holds the text.
func (b *browser) see(css, want string) {
	b.t.Helper()
	eventually(b.t, fmt.Sprintf("%s to say %q; it says %q", css, want, b.text(css)), func() bool { return strings.Contains(b.text(css), want) })
}

// element finds one, scrolled to where nothing covers it.
func (b *browser) element(css string) string {
	b.t.Helper()
	var found map[string]string
	b.run(&found, `for (const e of document.querySelectorAll(arguments[0])) if (e.checkVisibility()) { e.scrollIntoView({ block: "center" }); return e; } return {}`, css)
	for _, id := range found {
		return "/element/" + id
	}
	b.t.Fatalf("the page has no %s on show", css)
	return ""
}

func (b *browser) click(css string) {
	b.t.Helper()
	b.call("POST", b.element(css)+"/click", pairs{}, nil)
}

// write puts text in the place of what a field holds, with the keyboard.
func (b *browser) write(css, text string) {
	b.t.Helper()
	field := b.element(css)
	b.call("POST", field+"/clear", pairs{}, nil)
	b.call("POST", field+"/value", pairs{"text", text}, nil)
}

func (b *browser) open(u string) {
	b.t.Helper()
	b.call("POST", "/url", pairs{"url", "about:blank"}, nil) // so that another fragment is a new page
	b.call("POST", "/url", pairs{"url", u}, nil)
	b.see("#main .op h3", "")
}

// operation opens one by its link, on the page that is there, and returns the selector of its article.
func (b *browser) operation(link string) string {
	b.t.Helper()
	b.run(nil, `location.hash = arguments[0]`, link)
	css := `[id="` + strings.TrimPrefix(link, "#") + `"]`
	eventually(b.t, link+" to open", func() bool { return b.text(css+" .try .send") == "Send" })
	return css
}

// send presses Send and returns the status of the answer.
func (b *browser) send(op string) (status int) {
	b.t.Helper()
	var address string
	b.run(&address, `const op = document.querySelector(arguments[0]); op.querySelector(".status").textContent = ""; return /'([^']*)'/.exec(op.querySelector("[aria-label='curl line']").textContent)[1]`, op)
	b.click(op + " .send")
	eventually(b.t, op+" to be answered", func() bool {
		b.run(&status, `const op = document.querySelector(arguments[0]), shown = op.querySelector(".status b"), done = op.querySelector(".answer:not([aria-busy]) .headers"); return shown && done && parseInt(shown.textContent) || 0`, op)
		return status != 0
	})
	if status >= 400 {
		b.provoked[fmt.Sprint(address, " ", status)]++
	}
	return status
}

// logIn goes through the dialog.
func (b *browser) logIn(email, password string) {
	b.t.Helper()
	b.click("#auth")
	b.write("dialog [name=username]", email)
	b.write("dialog [name=password]", password)
	b.click("dialog form button.main")
}

// quiet fails the test if the page wrote to the console, beside the refusals that were provoked, or asked
// anything of another host. It returns the URLs of all requests.
func (b *browser) quiet(origin string) (requests []string) {
	b.t.Helper()
	var entries []struct{ Message string }
	b.call("POST", "/se/log", pairs{"type", "browser"}, &entries)
	refusal := regexp.MustCompile(`^(\S+) - Failed to load resource: the server responded with a status of (\d+) `)
	for _, e := range entries {
		m := refusal.FindStringSubmatch(e.Message)
		if m == nil || b.provoked[m[1]+" "+m[2]] == 0 {
			b.t.Errorf("the console says: %s", e.Message)
			continue
		}
		b.provoked[m[1]+" "+m[2]]--
	}
	for refusal, n := range b.provoked {
		if n != 0 {
			b.t.Errorf("the console lacks %d of %s", n, refusal)
		}
	}
	clear(b.provoked)
	b.call("POST", "/se/log", pairs{"type", "performance"}, &entries)
	for _, e := range entries {
		var event struct {
			Message struct {
				Method string
				Params struct{ Request struct{ URL string } }
			}
		}
		if err := json.Unmarshal([]byte(e.Message), &event); err != nil {
			b.t.Fatal(err)
		}
		u := event.Message.Params.Request.URL
		if event.Message.Method != "Network.requestWillBeSent" || strings.HasPrefix(u, "data:") || strings.HasPrefix(u, "chrome") || u == "about:blank" {
			continue
		}
		requests = append(requests, u)
		if !strings.HasPrefix(u, origin+"/") {
			b.t.Errorf("the page asked for %s", u)
		}
	}
	return requests
}

func TestDocsInBrowser(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	t.Run("visit", b.visit)
	t.Run("session", b.sessionEnds)
	b.t = t
}

// visit looks around, authorizes, calls, is refused, signs somebody up, calls everything and logs out.
func (b *browser) visit(t *testing.T) {
	b.t = t
	a := newApp(t)
	root := a.signUpAdmin("root")
	a.login(root.Email, goodPass) // session 2, for everyOperation to end: the page's is a later one
	origin := a.web.URL
	b.open(origin + "/docs")
	if got, want := b.quiet(origin), []string{origin + "/docs", origin + "/openapi.json"}; !slices.Equal(got, want) {
		t.Errorf("the page loads %q, want %q", got, want)
	}
	var n int
	b.run(&n, `return document.querySelectorAll(".op").length`)
	if title := b.text("#title"); n != len(a.table) || title != a.cfg.AppName {
		t.Errorf("the page %q shows %d operations of %d", title, n, len(a.table))
	}

	b.call("POST", b.element("#main")+"/value", pairs{"text", "/"}, nil)
	var focused string
	if b.run(&focused, `return document.activeElement.id`); focused != "filter" {
		t.Errorf("the key / focuses %q", focused)
	}
	b.write("#filter", "users DELETEme")
	eventually(t, "the filter to leave one operation", func() bool {
		b.run(&n, `return [...document.querySelectorAll(".op")].filter((op) => op.checkVisibility()).length`)
		return n == 1
	})
	b.write("#filter", "nothing of the kind")
	b.see("#empty", "Nothing here fits “nothing of the kind”.")
	b.click("#empty button")

	me := b.operation("#/users/me")
	b.see(me+" .needs", "This call needs a token.")
	if got := b.send(me); got != 401 {
		t.Errorf("GET /users/me without a token = %d", got)
	}
	b.see(me+" .answer", "not_authenticated")
	b.logIn(root.Email, "wrong canary")
	b.see("dialog [role=alert]", "Incorrect e-mail or password.")
	b.provoked[origin+"/api/v1/auth/login 401"]++
	b.write("dialog [name=password]", goodPass)
	b.click("dialog form button.main")
	b.see("#auth", root.Email)
	if got := b.send(me); got != 200 {
		t.Errorf("GET /users/me = %d", got)
	}
	b.see(me+" .answer pre", `"email": "root@example.com"`)
	b.see(me+" .headers", "x-request-id")
	b.see(me+" .status", " ms")

	rename := b.operation("#/users/patchMe")
	b.write(rename+" textarea", `{"full_name": "Łucja 'Root' 🌿"}`)
	b.see(rename+" [aria-label='curl line']", `--data-raw '{"full_name": "Łucja '\''Root'\'' 🌿"}'`)
	b.see(rename+" [aria-label='curl line']", `-H "Authorization: Bearer $TOKEN"`)
	if got := b.send(rename); got != 200 {
		t.Errorf("PATCH /users/me = %d", got)
	}
	if name := decode[user](a.do("GET", "/api/v1/users/me", root.AccessToken, nil)).FullName; name == nil || *name != "Łucja 'Root' 🌿" {
		t.Errorf("the name is %v", name)
	}
	b.write(rename+" textarea", `{"email": "nobody"}`)
	if got := b.send(rename); got != 422 {
		t.Errorf("PATCH /users/me with a bad e-mail = %d", got)
	}
	b.see(rename+" .answer pre", `"code": "invalid_request"`)

	register := b.operation("#/auth/register")
	b.write(register+" textarea", `{"email": "ada@example.com", "password": "`+goodPass+`"}`)
	if got := b.send(register); got != 201 {
		t.Errorf("POST /auth/register = %d", got)
	}
	a.login("ada@example.com", goodPass)

	one := b.operation("#/users/getUser")
	b.click(one + " .send")
	b.see(one+" .status", "Please fill in id.")
	list := b.operation("#/users/listUsers")
	b.write(list+" [name=limit]", "1")
	b.send(list)
	b.click(list + " .answer button") // the next page
	b.see(list+" .answer pre", "ada@example.com")

	for _, width := range []int{360, 768, 1600} {
		b.call("POST", "/goog/cdp/execute", pairs{"cmd", "Emulation.setDeviceMetricsOverride", "params", pairs{"width", width, "height", 800, "deviceScaleFactor", 1, "mobile", false}}, nil)
		var wide int
		b.run(&wide, `return document.documentElement.scrollWidth`)
		if wide > width {
			t.Errorf("at %d pixels the page is %d wide", width, wide)
		}
	}
	b.quiet(origin)
	b.everyOperation(a, fmt.Sprint(decode[user](a.do("GET", "/api/v1/users/me", a.login("ada@example.com", goodPass).AccessToken, nil)).ID))

	b.logIn(root.Email, goodPass)
	b.see("#auth", root.Email)
	b.click("#auth")
	b.click("dialog .main")
	b.see("#auth", "Authorize")
	b.quiet(origin)
}

// everyOperation sends each operation of the document as the page has filled it in, with id for what its
// path names, and logs out last. The page must show an answer that the document tells of.
func (b *browser) everyOperation(a *app, id string) {
	t := b.t
	type operation struct{ Link, Method, Path string }
	var all []operation
	b.run(&all, `return [...document.querySelectorAll(".op")].map((op) => ({ link: "#" + op.id, method: op.querySelector(".method").textContent, path: op.querySelector(".path").textContent }))`)
	rank := func(o operation) int {
		return map[string]int{"DELETE": 1}[o.Method] + map[string]int{"#/auth/logout": 2}[o.Link]
	}
	slices.SortStableFunc(all, func(x, y operation) int { return rank(x) - rank(y) })
	var doc struct {
		Paths map[string]map[string]struct{ Responses map[string]any }
	}
	if err := json.Unmarshal(a.openAPI(), &doc); err != nil {
		t.Fatal(err)
	}
	shown := map[string]int{}
	for _, o := range all {
		op := b.operation(o.Link)
		b.run(nil, `for (const e of document.querySelectorAll(arguments[0] + " .try input[aria-required]")) if (!e.value) { e.value = arguments[1]; e.dispatchEvent(new Event("input", { bubbles: true })); }`, op, id)
		status := b.send(op)
		shown[o.Link] = status
		if _, told := doc.Paths[o.Path][strings.ToLower(o.Method)].Responses[fmt.Sprint(status)]; !told || status >= 500 {
			t.Errorf("%s %s = %d, of which the document does not tell", o.Method, o.Path, status)
		}
		if o.Method == "GET" && !strings.Contains(o.Path, "{") && status != 200 {
			t.Errorf("%s %s = %d", o.Method, o.Path, status)
		}
	}
	for link, want := range map[string]int{"#/users/createUser": 201, "#/users/deleteUser": 204, "#/auth/logout": 204} {
		if shown[link] != want {
			t.Errorf("%s = %d, want %d; all: %v", link, shown[link], want, slices.Sorted(maps.Keys(shown)))
		}
	}
	b.see("#auth", "Authorize") // the page finds out by itself that it is logged out
	b.provoked[a.web.URL+"/api/v1/users/me 401"]++
	b.quiet(a.web.URL)
}

// sessionEnds has tokens that live two seconds: the page renews them, and tells when that is refused.
func (b *browser) sessionEnds(t *testing.T) {
	b.t = t
	a := newApp(t)
	ada := a.signUp("ada")
	a.keys.accessTTL = 2 * time.Second
	b.open(a.web.URL + "/docs#/users/me")
	b.logIn(ada.Email, ada.password)
	b.see("#auth", ada.Email)
	renewed := func() (n int) {
		if err := a.store.pool.QueryRow(t.Context(), "SELECT max(generation) FROM sessions").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "the page to renew its token", func() bool { return renewed() > 0 })
	me := `[id="/users/me"]`
	if got := b.send(me); got != 200 {
		t.Errorf("GET /users/me with a renewed token = %d", got)
	}
	a.sql("DELETE FROM sessions")
	b.see(me+" .needs", "Logged out. ")
	b.see("#auth", "Authorize")
	b.provoked[a.web.URL+"/api/v1/auth/refresh 401"]++
	b.quiet(a.web.URL)
}
