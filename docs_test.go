package main

// docs_test.go tests the docs page: how it is served, its contrast, and what a user does with it in
// a real browser, which is driven through the W3C's WebDriver protocol.

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	osexec "os/exec"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const maxDocsPage = 60_000 // bytes; it is loaded at once, by phones too

// fetch returns the answer to GET path, with If-None-Match where tag is not empty.
func (a *app) fetch(path, tag string) (*http.Response, string) {
	a.t.Helper()
	r, err := http.NewRequest("GET", a.web.URL+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	if tag != "" {
		r.Header.Set("If-None-Match", tag)
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		a.t.Fatal(err)
	}
	defer res.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(res.Body); err != nil {
		a.t.Fatal(err)
	}
	return res, body.String()
}

func TestDocsServed(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	if res, _ := a.fetch("/", ""); res.StatusCode != 302 ||
		res.Header.Get("Location") != "/docs" {
		t.Errorf("GET / = %d to %q", res.StatusCode, res.Header.Get("Location"))
	}
	for path, media := range map[string]string{
		"/docs": "text/html; charset=utf-8", "/openapi.json": "application/json",
	} {
		res, _ := a.fetch(path, "")
		if res.StatusCode != 200 || res.Header.Get("Content-Type") != media ||
			res.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("GET %s = %d, %v", path, res.StatusCode, res.Header)
		}
		res, body := a.fetch(path, res.Header.Get("ETag"))
		if res.StatusCode != 304 || body != "" {
			t.Errorf("GET %s with its ETag = %d, want 304", path, res.StatusCode)
		}
	}
	off := newApp(t, func(c *config) { c.Docs = false })
	for _, path := range []string{"/", "/docs", "/openapi.json"} {
		off.want(off.do("GET", path, "", nil), 404, "not_found")
	}
}

// TestDocsPolicy checks that the page is one file, that the policy allows its script and style and
// nothing else, and that it keeps nothing beyond the tab.
func TestDocsPolicy(t *testing.T) {
	t.Parallel()
	res, body := newApp(t).fetch("/docs", "")
	if len(body) > maxDocsPage {
		t.Errorf("the page has %d bytes, want at most %d", len(body), maxDocsPage)
	}
	policy := res.Header.Get("Content-Security-Policy")
	for _, name := range []string{"script", "style"} {
		from, to := strings.Index(body, "<"+name+">"), strings.Index(body, "</"+name+">")
		sum := sha256.Sum256([]byte(body[from+len(name)+2 : to]))
		want := name + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
		if !strings.Contains(policy, want) || strings.Count(body, "<"+name) != 1 {
			t.Errorf("the policy %q lacks %s", policy, want)
		}
	}
	if !strings.HasPrefix(policy, "default-src 'none'; connect-src 'self'; ") ||
		strings.Contains(policy, "unsafe") {
		t.Errorf("the policy allows too much: %s", policy)
	}
	banned := regexp.MustCompile(
		`(?i)\s(style|on[a-z]+)="|innerHTML|localStorage|\.cookie|indexedDB|\bhttps?://[a-z]`)
	if matches := banned.FindAllString(body, -1); matches != nil {
		t.Errorf("the page has %q", matches)
	}
	for i, line := range strings.Split(body, "\n") {
		if n := len([]rune(line)); n > 100 {
			t.Errorf("line %d of the page has %d columns", i+1, n)
		}
	}
}

// TestDocsContrast checks the palettes of the page against WCAG 2.2, level AA.
func TestDocsContrast(t *testing.T) {
	t.Parallel()
	palettes := strings.SplitN(string(docsPage), "prefers-color-scheme: dark", 2)
	for scheme, css := range map[string]string{"light": palettes[0], "dark": palettes[1]} {
		colors := map[string]float64{}
		for _, m := range regexp.MustCompile(`--(\w+): (#[0-9a-f]+);`).
			FindAllStringSubmatch(css, -1) {
			colors[m[1]] = luminance(t, m[2])
		}
		check := func(front, back string, least float64) {
			high, low := colors[front], colors[back]
			if high < low {
				high, low = low, high
			}
			if ratio := (high + 0.05) / (low + 0.05); ratio < least {
				t.Errorf("%s: %s on %s has %.2f, want %.1f", scheme, front, back, ratio, least)
			}
		}
		if len(colors) != 15 {
			t.Errorf("%s: %d colors, want 15", scheme, len(colors))
		}
		for _, back := range []string{"page", "card", "fill", "wash"} {
			for _, front := range strings.Fields("ink soft accent good bad warn cool violet") {
				check(front, back, 4.5)
			}
		}
		check("on", "accent", 4.5)
		check("edge", "card", 3) // the frames of controls
		check("edge", "page", 3)
	}
}

// luminance is the relative luminance of #rgb or #rrggbb, as WCAG defines it.
func luminance(t *testing.T, hex string) float64 {
	hex = strings.TrimPrefix(hex, "#")
	if len(hex) == 3 {
		hex = strings.Join([]string{hex[:1], hex[:1], hex[1:2], hex[1:2], hex[2:], hex[2:]}, "")
	}
	n, err := strconv.ParseUint(hex, 16, 24)
	if err != nil || len(hex) != 6 {
		t.Fatalf("%q is not a color: %v", hex, err)
	}
	linear := func(shift int) float64 {
		c := float64(n>>shift&0xff) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*linear(16) + 0.7152*linear(8) + 0.0722*linear(0)
}

// ---- the browser ----

// browser is a Chromium, and the page that is open in it.
type browser struct {
	t        *testing.T
	session  string         // the URL of its WebDriver session
	expected map[string]int // the refusals that the test asked for, as "URL status"
}

// openBrowser starts a browser, or skips the test where there is none. CI must have one.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	driver, err := osexec.LookPath("chromedriver")
	installed := false
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome",
		"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"} {
		_, err := osexec.LookPath(name)
		installed = installed || err == nil // chromedriver looks for its own
	}
	if err != nil || !installed {
		if os.Getenv("CI") != "" {
			t.Fatal("CI needs chromium and chromedriver: ./setup.sh test installs them")
		}
		fmt.Fprintln(os.Stderr, "SKIPPED: no browser to test the docs page in. Install chromium "+
			"and chromedriver (Debian: apt-get install chromium chromium-driver).")
		t.Skip("no browser")
	}
	profile, err := os.MkdirTemp("", "latch-browser-")
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, expected: map[string]int{}}
	b.startDriver(driver, profile)
	// No sandbox: root may have none, nor may containers, and the page is our own.
	args := []string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--disable-dev-shm-usage", "--force-prefers-reduced-motion",
		"--window-size=1280,900", "--user-data-dir=" + profile}
	var opened struct{ SessionID string }
	b.call("POST", "", pairs{"capabilities", pairs{"alwaysMatch", pairs{
		"goog:chromeOptions", pairs{"args", args},
		"goog:loggingPrefs", pairs{"browser", "ALL", "performance", "ALL"}}}}, &opened)
	b.session += "/" + opened.SessionID
	t.Cleanup(func() { b.call("DELETE", "", pairs{}, nil) })
	return b
}

// startDriver starts chromedriver on a free port. When the pipe to its shell ends, with the test or
// with a killed process, the driver, its browsers and their profile go.
func (b *browser) startDriver(driver, profile string) {
	cmd := osexec.Command("sh", "-c", `"$1" --port=0 & cat >/dev/null; trap "" TERM; kill 0; wait
		until rm -rf "$0" 2>/dev/null; do sleep .1; done`, profile, driver)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	for lines := bufio.NewScanner(stdout); b.session == "" && lines.Scan(); {
		if _, port, ok := strings.Cut(lines.Text(), "successfully on port "); ok {
			b.session = "http://127.0.0.1:" + strings.TrimSuffix(port, ".") + "/session"
		}
	}
}

// call runs a command of WebDriver; its value goes to result.
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
		b.t.Fatalf("WebDriver: %s %s = %d %v: %.600s", method, path, res.StatusCode, err,
			answer.Value)
	}
}

// run runs a script in the page; its result goes to result.
func (b *browser) run(result any, script string, args ...any) {
	b.t.Helper()
	b.call("POST", "/execute/sync",
		pairs{"script", script, "args", append([]any{}, args...)}, result)
}

// text returns the text of the first visible element that matches, "" without one.
func (b *browser) text(css string) (text string) {
	b.t.Helper()
	b.run(&text, `const visible = (e) => e.checkVisibility();
		return [...document.querySelectorAll(arguments[0])].find(visible)?.textContent ?? ""`, css)
	return text
}

// value returns the value of the first control that matches.
func (b *browser) value(css string) (value string) {
	b.t.Helper()
	b.run(&value, `return document.querySelector(arguments[0]).value`, css)
	return value
}

// waitFor waits until an element that matches has the text.
func (b *browser) waitFor(css, want string) {
	b.t.Helper()
	var got string
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(10 * time.Millisecond) {
		if got = b.text(css); strings.Contains(got, want) {
			return
		}
	}
	b.t.Fatalf("%s says %q, want %q", css, got, want)
}

// element finds a visible one and scrolls it to where nothing covers it.
func (b *browser) element(css string) string {
	b.t.Helper()
	var element map[string]string
	b.run(&element, `const visible = (e) => e.checkVisibility();
		const e = [...document.querySelectorAll(arguments[0])].find(visible);
		e?.scrollIntoView({ block: "center" });
		return e ?? {}`, css)
	for _, id := range element {
		return "/element/" + id
	}
	b.t.Fatalf("the page shows no %s", css)
	return ""
}

func (b *browser) click(css string) {
	b.t.Helper()
	b.call("POST", b.element(css)+"/click", pairs{}, nil)
}

// write replaces what a field holds, with the keyboard.
func (b *browser) write(css, text string) {
	b.t.Helper()
	field := b.element(css)
	b.call("POST", field+"/clear", pairs{}, nil)
	b.call("POST", field+"/value", pairs{"text", text}, nil)
}

// fill replaces what a field holds, without the keyboard, which is slow for long texts.
func (b *browser) fill(css, text string) {
	b.t.Helper()
	b.run(nil, `const field = document.querySelector(arguments[0]);
		field.value = arguments[1];
		field.dispatchEvent(new Event("input", { bubbles: true }))`, css, text)
}

// WebDriver's codes of keys.
const (
	keyEnter  = "\ue007"
	keyTab    = "\ue004"
	keyEscape = "\ue00c"
)

// press sends keys to the element that has the focus.
func (b *browser) press(keys string) {
	b.t.Helper()
	var active map[string]string
	b.run(&active, `return document.activeElement`)
	for _, id := range active {
		b.call("POST", "/element/"+id+"/value", pairs{"text", keys}, nil)
	}
}

// choose selects the option of a menu that contains text.
func (b *browser) choose(css, text string) {
	b.t.Helper()
	var chosen bool
	b.run(&chosen, `const menu = document.querySelector(arguments[0]);
		menu.selectedIndex = [...menu.options].findIndex((o) => o.text.includes(arguments[1]));
		menu.dispatchEvent(new Event("change", { bubbles: true }));
		return menu.selectedIndex >= 0`, css, text)
	if !chosen {
		b.t.Fatalf("%s has no option %q", css, text)
	}
}

// resize gives the page a width; phones have a touch screen.
func (b *browser) resize(width, height int, phone bool) {
	b.t.Helper()
	b.call("POST", "/goog/cdp/execute", pairs{"cmd", "Emulation.setDeviceMetricsOverride",
		"params", pairs{"width", width, "height", height, "deviceScaleFactor", 1,
			"mobile", phone}}, nil)
}

func (b *browser) open(u string) {
	b.t.Helper()
	// about:blank, so that another fragment is a new page.
	b.call("POST", "/url", pairs{"url", "about:blank"}, nil)
	b.call("POST", "/url", pairs{"url", u}, nil)
	b.waitFor("#main .op h3", "/")
}

// openOperation opens one by its link, on the page that is there, and returns the selector of its
// article.
func (b *browser) openOperation(link string) string {
	b.t.Helper()
	b.run(nil, `location.hash = arguments[0]`, link)
	css := `[id="` + strings.TrimPrefix(link, "#") + `"]`
	eventually(b.t, link+" to open", func() bool { return b.text(css+" .try .send") == "Send" })
	return css
}

// expect notes a refusal that the browser will write to the console.
func (b *browser) expect(url string, status int) { b.expected[fmt.Sprint(url, " ", status)]++ }

// line returns the curl line that an operation shows.
func (b *browser) line(op string) string {
	b.t.Helper()
	return b.text(op + " [aria-label='curl line']")
}

var lineURL = regexp.MustCompile(`['"](http[^'"]*)['"]`)

// send presses Send and returns the status of the answer.
func (b *browser) send(op string) int {
	b.t.Helper()
	return b.sendBy(op, op+" .send")
}

// sendBy presses a button that sends the call of an operation.
func (b *browser) sendBy(op, css string) (status int) {
	b.t.Helper()
	b.run(nil, `document.querySelector(arguments[0] + " .answer").replaceChildren()`, op)
	b.click(css)
	eventually(b.t, op+" to be answered", func() bool {
		b.run(&status, `const op = document.querySelector(arguments[0]);
			const done = op.querySelector(".answer:not([aria-busy]) .headers");
			return done ? parseInt(op.querySelector(".status b").textContent) : 0`, op)
		return status != 0
	})
	if status >= 400 {
		b.expect(lineURL.FindStringSubmatch(b.line(op))[1], status)
	}
	return status
}

// logIn goes through the dialog.
func (b *browser) logIn(m member) {
	b.t.Helper()
	b.click("#auth")
	b.write("dialog [name=username]", m.Email)
	b.write("dialog [name=password]", m.password)
	b.click("dialog form button.main")
	b.waitFor("#auth", m.Email)
}

// dropLogs discards what an earlier test has left.
func (b *browser) dropLogs() {
	b.t.Helper()
	for _, log := range []string{"browser", "performance"} {
		b.call("POST", "/se/log", pairs{"type", log}, nil)
	}
	clear(b.expected)
}

// checkConsole fails the test if the page wrote to the console, other than the expected refusals,
// or requested anything from another host. It returns the URLs of all requests.
func (b *browser) checkConsole(origin string) (requests []string) {
	b.t.Helper()
	var entries []struct{ Message string }
	b.call("POST", "/se/log", pairs{"type", "browser"}, &entries)
	refusal := regexp.MustCompile(`^(\S+) - Failed to load resource: the server responded with ` +
		`a status of (\d+) `)
	for _, e := range entries {
		m := refusal.FindStringSubmatch(e.Message)
		if m == nil || b.expected[m[1]+" "+m[2]] == 0 {
			b.t.Errorf("the console says: %s", e.Message)
			continue
		}
		b.expected[m[1]+" "+m[2]]--
	}
	for refusal, n := range b.expected {
		if n != 0 {
			b.t.Errorf("the console lacks %d of %s", n, refusal)
		}
	}
	clear(b.expected)
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
		local := u == "about:blank" || strings.HasPrefix(u, "data:") ||
			strings.HasPrefix(u, "chrome")
		if event.Message.Method != "Network.requestWillBeSent" || local {
			continue
		}
		requests = append(requests, u)
		if !strings.HasPrefix(u, origin+"/") {
			b.t.Errorf("the page requested %s", u)
		}
	}
	return requests
}

// ---- what a user does ----

func TestDocsInBrowser(t *testing.T) {
	t.Parallel()
	b := openBrowser(t)
	for _, test := range []struct {
		name string
		run  func(*browser, *app)
	}{
		{"load", (*browser).testLoad},
		{"filter", (*browser).testFilter},
		{"authorize", (*browser).testAuthorize},
		{"reload", (*browser).testReload},
		{"renewal", (*browser).testRenewal},
		{"refused token", (*browser).testRefusedToken},
		{"calls", (*browser).testCalls},
		{"curl lines", (*browser).testLines},
		{"forms", (*browser).testForms},
		{"checks", (*browser).testChecks},
		{"media types", (*browser).testMediaTypes},
		{"embeddings", (*browser).testEmbeddings},
		{"every operation", (*browser).testEveryOperation},
		{"menu", (*browser).testMenu},
		{"another entity", (*browser).testEntity},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newApp(t)
			b.t = t
			b.dropLogs()
			test.run(b, a)
			b.checkConsole(a.web.URL)
		})
	}
	b.t = t
}

func (b *browser) testLoad(a *app) {
	b.open(a.web.URL + "/docs")
	want := []string{a.web.URL + "/docs", a.web.URL + "/openapi.json"}
	if got := b.checkConsole(a.web.URL); !slices.Equal(got, want) {
		b.t.Errorf("the page requests %q, want %q", got, want)
	}
	var n int
	b.run(&n, `return document.querySelectorAll(".op").length`)
	if title := b.text("#title"); n != len(a.table) || title != a.cfg.AppName {
		b.t.Errorf("the page %q shows %d operations, want %d", title, n, len(a.table))
	}
	for _, link := range []string{"#/users/listUsers", "#/documents/searchDocuments"} {
		b.openOperation(link)
	}
	for _, width := range []int{320, 390, 768, 1600} {
		b.resize(width, 800, width < 700)
		b.run(&n, `return document.documentElement.scrollWidth`)
		if n > width {
			b.t.Errorf("at %d pixels the page is %d wide", width, n)
		}
	}
	b.resize(1280, 900, false)
}

// testFilter searches by path, field, error code and access.
func (b *browser) testFilter(a *app) {
	b.open(a.web.URL + "/docs")
	b.call("POST", b.element("#main")+"/value", pairs{"text", "/"}, nil)
	var id string
	if b.run(&id, `return document.activeElement.id`); id != "filter" {
		b.t.Errorf("the key / focuses %q", id)
	}
	want := map[string][]string{
		"users DELETEme":    {"deleteMe"},
		"min_score":         {"searchDocuments"},
		"refresh_reused":    {"login", "refresh"},
		"access:admin post": {"createUser"},
	}
	for _, rt := range a.table {
		if rt.access == admins {
			want["access:admin"] = append(want["access:admin"], rt.name)
		}
	}
	for words, want := range want {
		b.write("#filter", words)
		var got []string
		eventually(b.t, fmt.Sprintf("%q to leave %q", words, want), func() bool {
			b.run(&got, `return [...document.querySelectorAll(".op")]
				.filter((op) => op.checkVisibility()).map((op) => op.id.split("/").pop())`)
			return slices.Equal(got, want)
		})
	}
	b.write("#filter", "min_score")
	b.waitFor(".op .why", "min_score")
	b.write("#filter", "nothing of the kind")
	b.waitFor("#empty", "Nothing here fits “nothing of the kind”.")
	b.click("#empty button")
	b.waitFor(".op h3", "/health")
}

// testAuthorize sends a call without a token, logs in, sends it with one and logs out.
func (b *browser) testAuthorize(a *app) {
	root := a.signUpAdmin("root")
	b.open(a.web.URL + "/docs")
	me := b.openOperation("#/users/me")
	b.waitFor(me+" .needs", "This call needs a token.")
	if got := b.send(me); got != 401 {
		b.t.Errorf("GET /users/me without a token = %d", got)
	}
	b.waitFor(me+" .answer", "No token was sent")
	b.waitFor(me+" .answer", "not_authenticated")
	b.click("#auth")
	b.write("dialog [name=username]", root.Email)
	b.write("dialog [name=password]", "wrong canary")
	b.click("dialog form button.main")
	b.waitFor("dialog [role=alert]", "Incorrect e-mail or password.")
	b.expect(a.web.URL+"/api/v1/auth/login", 401)
	b.write("dialog [name=password]", goodPass)
	b.click("dialog form button.main")
	b.waitFor("#auth", root.Email)
	b.waitFor(me+" .needs", "Sent with the token of root@example.com.")
	if got := b.send(me); got != 200 {
		b.t.Errorf("GET /users/me = %d", got)
	}
	b.waitFor(me+" .answer pre", `"email": "root@example.com"`)
	b.waitFor(me+" .headers", "x-request-id")
	b.waitFor(me+" .status", " ms")
	b.click("#auth")
	b.click("dialog .main")
	b.waitFor("#auth", "Authorize")
	eventually(b.t, "the session to end", func() bool { return a.sessions() == 1 })
}

// sessions counts those that the database has.
func (a *app) sessions() (n int) {
	a.t.Helper()
	row := a.store.pool.QueryRow(a.t.Context(), "SELECT count(*) FROM sessions")
	if err := row.Scan(&n); err != nil {
		a.t.Fatal(err)
	}
	return n
}

// stored returns what the tab and the browser keep for the page.
func (b *browser) stored() (text string) {
	b.t.Helper()
	b.run(&text, `const of = (storage) => Object.values({ ...storage }).join();
		return of(sessionStorage) + of(localStorage) + document.cookie`)
	return text
}

// testReload reloads the tab without and with the tick that keeps the session.
func (b *browser) testReload(a *app) {
	ada := a.signUp("ada")
	b.open(a.web.URL + "/docs")
	reload := func() {
		b.t.Helper()
		b.call("POST", "/refresh", pairs{}, nil)
		b.waitFor("#main .op h3", "/")
	}
	b.logIn(ada)
	if got := b.stored(); got != "" {
		b.t.Errorf("without the tick the browser keeps %q", got)
	}
	reload()
	b.waitFor("#auth", "Authorize")
	b.logIn(ada)
	b.click("#auth")
	b.click("dialog [name=keep]")
	b.click("dialog .row button:last-child")
	reload()
	b.waitFor("#auth", ada.Email)
	if got := b.stored(); !strings.Contains(got, "eyJ") {
		b.t.Errorf("with the tick the tab keeps %q", got)
	}
	me := b.openOperation("#/users/me")
	if got := b.send(me); got != 200 {
		b.t.Errorf("GET /users/me after a reload = %d", got)
	}
	b.click("#auth")
	b.click("dialog .main")
	b.waitFor("#auth", "Authorize")
	if got := b.stored(); got != "" {
		b.t.Errorf("after the logout the browser keeps %q", got)
	}
	b.logIn(ada)
	if got := b.stored(); got != "" {
		b.t.Errorf("after another login the browser keeps %q", got)
	}
	reload()
	b.waitFor("#auth", "Authorize")
}

// testRenewal has tokens that live two seconds: the page renews them, also those it has kept, and
// says when that is refused.
func (b *browser) testRenewal(a *app) {
	ada := a.signUp("ada")
	a.keys.accessTTL = 2 * time.Second
	b.open(a.web.URL + "/docs#/users/me")
	b.logIn(ada)
	b.click("#auth")
	b.click("dialog [name=keep]")
	b.click("dialog .row button:last-child")
	generation := func() (n int) {
		row := a.store.pool.QueryRow(b.t.Context(), "SELECT max(generation) FROM sessions")
		if err := row.Scan(&n); err != nil {
			b.t.Fatal(err)
		}
		return n
	}
	eventually(b.t, "the page to renew its token", func() bool { return generation() > 0 })
	b.call("POST", "/url", pairs{"url", "about:blank"}, nil)
	time.Sleep(a.keys.accessTTL) // the token that the tab keeps expires
	b.call("POST", "/url", pairs{"url", a.web.URL + "/docs#/users/me"}, nil)
	b.waitFor("#auth", ada.Email)
	me := b.openOperation("#/users/me")
	if got := b.send(me); got != 200 {
		b.t.Errorf("GET /users/me with a renewed token = %d", got)
	}
	a.sql("DELETE FROM sessions")
	b.waitFor(me+" .needs", "Logged out. ")
	b.waitFor("#auth", "Authorize")
	if got := b.stored(); got != "" {
		b.t.Errorf("after the end of the session the browser keeps %q", got)
	}
	b.expect(a.web.URL+"/api/v1/auth/refresh", 401)
}

// testRefusedToken ends the session elsewhere: the page says whose token was refused.
func (b *browser) testRefusedToken(a *app) {
	ada := a.signUp("ada")
	b.open(a.web.URL + "/docs")
	b.logIn(ada)
	me := b.openOperation("#/users/me")
	a.sql("DELETE FROM sessions")
	if got := b.send(me); got != 401 {
		b.t.Errorf("GET /users/me of an ended session = %d", got)
	}
	b.waitFor(me+" .answer", "The token of ada@example.com was not accepted.")
	b.waitFor(me+" .needs", "Logged out. ")
}

// testCalls changes an account, registers another one and reads two pages of a list.
func (b *browser) testCalls(a *app) {
	root := a.signUpAdmin("root")
	b.open(a.web.URL + "/docs")
	b.logIn(root)
	rename := b.openOperation("#/users/patchMe")
	b.write(rename+" textarea", `{"full_name": "Łucja 'Root' 🌿"}`)
	if got := b.send(rename); got != 200 {
		b.t.Errorf("PATCH /users/me = %d", got)
	}
	me := decode[user](a.do("GET", "/api/v1/users/me", root.AccessToken, nil))
	if name := me.FullName; name == nil || *name != "Łucja 'Root' 🌿" {
		b.t.Errorf("the name is %v", name)
	}
	register := b.openOperation("#/auth/register")
	b.write(register+" textarea", `{"email": "ada@example.com", "password": "`+goodPass+`"}`)
	if got := b.send(register); got != 201 {
		b.t.Errorf("POST /auth/register = %d", got)
	}
	a.login("ada@example.com", goodPass)
	list := b.openOperation("#/users/listUsers")
	b.write(list+" [name=limit]", "1")
	b.send(list)
	b.click(list + " .answer button") // the next page
	b.waitFor(list+" .answer pre", "ada@example.com")
}

// ---- curl lines ----

// copyLine copies the curl line of an operation for a shell.
func (b *browser) copyLine(op, shell string) (line string) {
	b.t.Helper()
	b.choose(op+" .shell", shell)
	b.run(nil, `window.copied = "";
		navigator.clipboard.writeText = async (text) => { window.copied = text; }`)
	b.click(op + ` [aria-label="Copy the curl line"]`)
	eventually(b.t, "the line to be copied", func() bool {
		b.run(&line, `return window.copied`)
		return line != ""
	})
	return line
}

// command is what a shell makes of a line: the arguments of curl, and what it reads.
type command struct {
	args  []string
	stdin string
}

// shellReaders read lines as the shells do, with the variable TOKEN set to "secret".
var shellReaders = map[string]func(t *testing.T, line string) command{
	"POSIX": readPOSIX, "PowerShell": readPowerShell, "cmd": readCmd,
}

// readPOSIX has the line run by sh, with a function in the place of curl.
func readPOSIX(t *testing.T, line string) command {
	script := `TOKEN=secret; curl() { printf '%s\0' "$@"; }; ` + line
	out, err := osexec.Command("sh", "-c", script).Output()
	if err != nil {
		t.Fatalf("sh: %v: %s", err, line)
	}
	return command{args: strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")}
}

// powerShellToken matches a quoted text, a word, or what is between them.
var powerShellToken = regexp.MustCompile(
	"^(?:'((?:[^'\u2018-\u201b]|''|[\u2018-\u201b]{2})*)'" +
		"|\"([^\"`]*)\"|([-.\\w|]+)|[ \n]+|`\n)")

// readPowerShell supports what the lines use: quotes, a pipe and continued lines.
func readPowerShell(t *testing.T, line string) (c command) {
	for rest := line; rest != ""; {
		m := powerShellToken.FindStringSubmatch(rest)
		if m == nil {
			t.Fatalf("PowerShell cannot read %q", rest)
		}
		rest = rest[len(m[0]):]
		switch {
		case m[0][0] == '\'':
			c.args = append(c.args, strings.ReplaceAll(m[1], "''", "'"))
		case m[0][0] == '"':
			c.args = append(c.args, strings.ReplaceAll(m[2], "$TOKEN", "secret"))
		case m[3] == "|":
			c.stdin, c.args = c.args[0], nil
		case m[3] != "":
			c.args = append(c.args, m[3])
		}
	}
	for _, arg := range c.args {
		if strings.Contains(arg, `"`) {
			t.Errorf("PowerShell before 7.3 loses the quotes of %q", arg)
		}
	}
	for _, r := range c.stdin {
		if r > '~' { // it pipes ASCII by default
			t.Errorf("PowerShell pipes %q", c.stdin)
		}
	}
	c.args = slices.DeleteFunc(c.args, func(arg string) bool { return arg == "curl.exe" })
	return c
}

// readCmd reads a line as cmd does, which passes it on as one text, and then splits it as the
// runtime of C does.
func readCmd(t *testing.T, line string) (c command) {
	line = strings.ReplaceAll(line, "%TOKEN%", "secret")
	if regexp.MustCompile(`%[A-Z]+%`).MatchString(line) {
		t.Errorf("cmd puts in a variable: %s", line)
	}
	var passed strings.Builder
	quoted := false
	for i := 0; i < len(line); i++ {
		switch {
		case line[i] == '"':
			quoted = !quoted
		case line[i] == '^' && !quoted:
			i++ // the next character is plain, and a line that ends goes on
			if line[i] == '\n' {
				continue
			}
		case !quoted && strings.ContainsRune("&|<>", rune(line[i])), line[i] == '\n':
			t.Fatalf("cmd interprets %q in %s", line[i], line)
		}
		passed.WriteByte(line[i])
	}
	var arg strings.Builder
	quoted = false
	runes := passed.String() + " "
	for i := 0; i < len(runes); i++ {
		slashes := len(runes[i:]) - len(strings.TrimLeft(runes[i:], `\`))
		i += slashes
		if runes[i] == '"' {
			arg.WriteString(strings.Repeat(`\`, slashes/2))
			if slashes%2 == 1 {
				arg.WriteByte('"')
			} else {
				quoted = !quoted
			}
			continue
		}
		arg.WriteString(strings.Repeat(`\`, slashes))
		if runes[i] != ' ' || quoted {
			arg.WriteByte(runes[i])
		} else if arg.Len() > 0 {
			c.args = append(c.args, arg.String())
			arg.Reset()
		}
	}
	c.args = c.args[1:] // curl
	return c
}

// testLines reads the lines of a call with signs that shells interpret, and copies one with the
// token.
func (b *browser) testLines(a *app) {
	const body = `{"full_name": "Ł \"O'Neil\" 100% & <b> ^|\\ ‘x’ %PATH% $HOME \u00e9 🌿"}`
	ada := a.signUp("ada")
	b.open(a.web.URL + "/docs")
	rename := b.openOperation("#/users/patchMe")
	b.write(rename+" textarea", body)
	for shell, read := range shellReaders {
		line := b.copyLine(rename, shell)
		c := read(b.t, line)
		sent := c.stdin
		if sent == "" {
			sent = c.args[len(c.args)-1]
		}
		var got, want map[string]string
		json.Unmarshal([]byte(body), &want)
		if err := json.Unmarshal([]byte(sent), &got); err != nil || !maps.Equal(got, want) {
			b.t.Errorf("%s: the line sends %s, want %s", shell, sent, body)
		}
		head := []string{"-i", "-X", "PATCH", a.web.URL + "/api/v1/users/me",
			"-H", "Authorization: Bearer secret", "-H", "Content-Type: application/json"}
		if len(c.args) < len(head) || !slices.Equal(c.args[:len(head)], head) {
			b.t.Errorf("%s: the line calls %q, want %q", shell, c.args, head)
		}
	}
	for shell, set := range map[string]string{
		"POSIX": "TOKEN=…", "PowerShell": "$TOKEN = '…'", "cmd": "set TOKEN=…",
	} {
		b.choose(rename+" .shell", shell)
		b.waitFor(rename+" .try details .stack > small", set)
	}
	b.click(rename + " .with-token") // nobody is logged in: it asks for that
	b.waitFor("#dialog-title", "Authorize")
	b.write("dialog [name=username]", ada.Email)
	b.write("dialog [name=password]", ada.password)
	b.click("dialog form button.main")
	b.waitFor("#auth", ada.Email)
	token := regexp.MustCompile(`Bearer ([\w.-]{50,})`).
		FindStringSubmatch(b.copyLine(rename, "POSIX"))
	if token == nil || !a.accepts(token[1]) {
		b.t.Errorf("the line that is copied with the token has %q", token)
	}
	if shown := b.line(rename); !strings.Contains(shown, `"Authorization: Bearer $TOKEN"`) {
		b.t.Errorf("the page shows %s", shown)
	}
	b.click(rename + " .with-token")
	if line := b.copyLine(rename, "POSIX"); !strings.Contains(line, `Bearer $TOKEN"`) {
		b.t.Errorf("the line that is copied without the token is %s", line)
	}
}

// testForms reads the lines of both kinds of forms, and sends them.
func (b *browser) testForms(a *app) {
	const secret = `a" & calc ^ 'x' \`
	web := serveEntity(a)
	defer b.checkConsole(web.URL)
	b.open(web.URL + "/docs")
	op := b.openOperation("#/note/importProject")
	b.waitFor(op+" .nested summary",
		"Body: application/x-www-form-urlencoded, multipart/form-data Form")
	b.write(op+" [name=title]", "")
	b.refused(op, "title is required.")
	for _, media := range []string{"urlencoded", "multipart"} {
		b.choose(op+" .media", media)
		b.write(op+" [name=secret]", secret)
		for shell, read := range shellReaders {
			if shell == "PowerShell" && media == "multipart" {
				continue // it would lose the quote of the secret
			}
			c := read(b.t, b.copyLine(op, shell))
			got := c.args[4:] // after -i, -X, PUT and the address
			want := []string{"--form-string", "title=Bridge", "--form-string", "secret=" + secret}
			if media == "urlencoded" && shell == "POSIX" {
				want[0], want[2] = "--data-urlencode", "--data-urlencode"
			} else if media == "urlencoded" {
				want = []string{"--data-raw",
					`title=Bridge&secret=a%22+%26+calc+%5E+%27x%27+%5C`}
			}
			if !slices.Equal(got, want) {
				b.t.Errorf("%s: the %s line has %q, want %q", shell, media, got, want)
			}
		}
		b.write(op+" [name=tags]", "red,green")
		b.send(op)
		b.waitFor(op+" .answer pre", media)
		b.waitFor(op+" .answer pre", `"tags": ["red", "green"]`)
	}
}

// ---- bodies and fields ----

// refused presses Send and waits until the page says what it would not send.
func (b *browser) refused(op, want string) {
	b.t.Helper()
	b.click(op + " .send")
	b.waitFor(op+" .status", "Not sent")
	b.waitFor(op+" .fault:not(:empty)", want)
}

// testChecks sends values that break the rules of the document: the page says so at the field, and
// sends them if the user wants to.
func (b *browser) testChecks(a *app) {
	root := a.signUpAdmin("root")
	b.open(a.web.URL + "/docs")
	b.logIn(root)
	one := b.openOperation("#/users/getUser")
	b.refused(one, "id is required.")
	b.write(one+" [name=id]", "x")
	b.waitFor(one+" .fault", "id must be of type integer (int64).")

	list := b.openOperation("#/users/listUsers")
	b.write(list+" [name=limit]", "101")
	b.fill(list+" [name=q]", strings.Repeat("é", 255))
	b.refused(list, "limit must be 1 to 100.")
	b.waitFor(list+" .status", "2 faults")
	b.waitFor(list+" [name=q] + .fault", "q must have 1 to 254 characters; it has 255.")
	var name string
	b.run(&name, `const { name, ariaInvalid } = document.activeElement; return name + ariaInvalid`)
	if name != "limittrue" {
		b.t.Errorf("the focus is on %s, want the first field with a fault", name)
	}
	b.write(list+" [name=limit]", "100")
	eventually(b.t, "the sentence to go", func() bool {
		return b.text(list+" [name=limit] + .fault") == ""
	})
	if got := b.sendBy(list, list+" .status button"); got != 422 {
		b.t.Errorf("GET /users with a long q, sent anyway = %d", got)
	}
	b.waitFor(list+" [name=q] + .fault", "q must") // the sentence of the service

	register := b.openOperation("#/auth/register")
	for body, want := range map[string]string{
		`{"email": "ada@example.com", "password": "short"}`: "password must have 8 to 1024 " +
			"characters; it has 5.",
		`{"email": "ada", "password": "long enough"}`:         "email must be a valid email.",
		`{"email": "ada@example.com"}`:                        "password is required.",
		`{"email": "a@b.de", "password": "12345678", "x": 1}`: "x is not a known field.",
		`{"email": 1, "password": "12345678"}`:                "email must be of type string",
		`[]`:                                                  "The body must be of type object.",
		`{`:                                                   "The body is not JSON",
	} {
		b.fill(register+" textarea", body)
		b.refused(register, want)
	}
	b.write(register+" textarea", `{"email": "ada@example.com", "password": "ada@example.com"}`)
	if got := b.send(register); got != 422 {
		b.t.Errorf("POST /auth/register with the e-mail as the password = %d", got)
	}
	b.waitFor(register+" .fault:not(:empty)", "password ")
}

// testMediaTypes logs in by each media type, revokes a token, and looks at what the page shows of
// read-only members and of codes.
func (b *browser) testMediaTypes(a *app) {
	ada := a.signUp("ada")
	b.open(a.web.URL + "/docs")
	login := b.openOperation("#/auth/login")
	b.waitFor(login+" .nested summary",
		"Body: application/json, application/x-www-form-urlencoded")
	for _, media := range []string{"json", "urlencoded"} {
		b.choose(login+" .media", media)
		if media == "json" {
			b.write(login+" textarea",
				`{"username": "ada@example.com", "password": "`+goodPass+`"}`)
		} else {
			b.write(login+" [name=username]", ada.Email)
			b.write(login+" [name=password]", goodPass)
		}
		if got := b.send(login); got != 200 {
			b.t.Errorf("POST /auth/login by %s = %d", media, got)
		}
	}
	b.click(login + " .answer .note button")
	b.waitFor("#auth", ada.Email)
	revoke := b.openOperation("#/auth/revoke")
	b.choose(revoke+" .media", "urlencoded")
	b.write(revoke+" [name=token]", a.login(ada.Email, goodPass).RefreshToken)
	before := a.sessions()
	if got := b.send(revoke); got != 200 || a.sessions() != before-1 {
		b.t.Errorf("POST /auth/revoke = %d and leaves %d sessions of %d", got, a.sessions(), before)
	}
	update := b.openOperation("#/users/updateMe")
	b.waitFor(update+" .maybe:not(.out)", "read-only")
	if body := b.value(update + " textarea"); strings.Contains(body, "created_at") {
		b.t.Errorf("the example has read-only members: %s", body)
	}
	b.waitFor(update+" .response:nth-child(n+3) summary", "malformed_body")
	list := b.openOperation("#/documents/listDocuments")
	b.write(list+" [name=filter]", `{"lang": "en"}`)
	if got := b.send(list); got != 200 {
		b.t.Errorf("GET /documents with a filter = %d", got)
	}
}

// testEmbeddings sends the examples to a service without a provider of embeddings, and adds an
// embedding to one without it.
func (b *browser) testEmbeddings(a *app) {
	b.open(a.web.URL + "/docs")
	b.logIn(a.signUp("ada"))
	for link, want := range map[string]int{"#/documents/createDocument": 201,
		"#/documents/createDocuments": 201, "#/documents/searchDocuments": 200} {
		op := b.openOperation(link)
		if got := b.send(op); got != want {
			b.t.Errorf("%s = %d, want %d", link, got, want)
		}
		b.choose(op+" .example", "Without")
		if got := b.send(op); got != 422 {
			b.t.Errorf("%s without an embedding = %d, want 422", link, got)
		}
		b.waitFor(op+" .answer .note", "There is no provider of embeddings")
		if link == "#/documents/searchDocuments" {
			b.write(op+" textarea", `{"query": "who wrote the first program?"}`)
		}
		b.click(op + " [aria-label='Add to the body'] button:first-child")
		b.waitFor(op+" [aria-label='curl line']", `"embedding": [`)
		if got := b.send(op); got != want {
			b.t.Errorf("%s with an embedding = %d, want %d", link, got, want)
		}
	}
	search := `[id="/documents/searchDocuments"]`
	var body struct {
		Query     *string
		Embedding []float64
	}
	err := json.Unmarshal([]byte(b.value(search+" textarea")), &body)
	if err != nil || body.Query != nil || len(body.Embedding) != testDimensions {
		b.t.Errorf("the search has %+v, %v", body, err)
	}
	b.write(search+" textarea", `{"query": "first", "mode": "hybrid"}`)
	b.click(search + " [aria-label='Add to the body'] button:first-child")
	if got := b.send(search); got != 200 {
		b.t.Errorf("a search in mode hybrid with an embedding = %d", got)
	}
	b.waitFor(search+" .answer pre", `"mode": "hybrid"`)
}

// testEveryOperation sends each operation of the document as the page has filled it in, with an id
// for what its path names, and logs out last. The page must show an answer that is declared.
func (b *browser) testEveryOperation(a *app) {
	root := a.signUpAdmin("root")
	a.login(root.Email, goodPass) // its id is that of a session too, which the page may end
	id := fmt.Sprint(a.signUp("other").ID)
	b.open(a.web.URL + "/docs")
	b.logIn(root)
	type operation struct{ Link, Method, Path string }
	var operations []operation
	b.run(&operations, `return [...document.querySelectorAll(".op")].map((op) => ({
		link: "#" + op.id, method: op.querySelector(".method").textContent,
		path: op.querySelector(".path").textContent }))`)
	rank := func(o operation) int {
		return map[string]int{"DELETE": 1}[o.Method] + map[string]int{"#/auth/logout": 2}[o.Link]
	}
	slices.SortStableFunc(operations, func(x, y operation) int { return rank(x) - rank(y) })
	var doc struct {
		Paths map[string]map[string]struct{ Responses map[string]any }
	}
	if err := json.Unmarshal(a.openAPI(), &doc); err != nil {
		b.t.Fatal(err)
	}
	got := map[string]int{}
	for _, o := range operations {
		op := b.openOperation(o.Link)
		b.run(nil, `const css = arguments[0] + " .try input[aria-required]";
			for (const e of document.querySelectorAll(css)) {
				e.value ||= arguments[1];
				e.dispatchEvent(new Event("input", { bubbles: true }));
			}`, op, id)
		status := b.send(op)
		got[o.Link] = status
		declared := doc.Paths[o.Path][strings.ToLower(o.Method)].Responses[fmt.Sprint(status)]
		if declared == nil || status >= 500 {
			b.t.Errorf("%s %s = %d, which is not declared", o.Method, o.Path, status)
		}
		if o.Method == "GET" && !strings.Contains(o.Path, "{") && status != 200 {
			b.t.Errorf("%s %s = %d", o.Method, o.Path, status)
		}
	}
	for link, want := range map[string]int{"#/users/createUser": 201, "#/users/deleteUser": 204,
		"#/documents/createDocument": 201, "#/documents/searchDocuments": 200,
		"#/auth/revoke": 200, "#/auth/logout": 204} {
		if got[link] != want {
			b.t.Errorf("%s = %d, want %d", link, got[link], want)
		}
	}
	b.waitFor("#auth", "Authorize") // the page finds out that it is logged out
	b.expect(a.web.URL+"/api/v1/users/me", 401)
}

// testMenu goes to an operation on a phone, by touch and by keyboard.
func (b *browser) testMenu(a *app) {
	b.resize(390, 844, true)
	defer b.resize(1280, 900, false)
	b.open(a.web.URL + "/docs")
	var low bool
	b.run(&low, `const { top, height, right } = document.getElementById("menu").
		getBoundingClientRect(); return top > innerHeight * .8 && height >= 44 && right > 300`)
	if !low {
		b.t.Error("the menu's button is not in the thumb's reach")
	}
	b.click("#menu")
	b.waitFor("#side", "/users/me")
	var small []string
	b.run(&small, `return [...document.querySelectorAll("#side a")]
		.filter((a) => a.getBoundingClientRect().height < 44).map((a) => a.textContent)`)
	if len(small) > 0 {
		b.t.Errorf("too small for a thumb: %q", small)
	}
	b.click(`#side a[href="#/users/listUsers"]`)
	b.waitFor(`[id="/users/listUsers"] .send`, "Send")
	if b.text("#side") != "" {
		b.t.Error("the menu stays open")
	}
	b.click(`[id="/users/listUsers"] .jump button:nth-child(2)`)
	b.waitFor(":focus", "Try it")
	b.run(nil, `document.getElementById("menu").focus()`)
	b.press(keyEnter)
	b.waitFor("#side", "/users/me")
	b.waitFor(":focus", "GET/users") // the operation that is open
	b.press(keyTab)
	b.press(keyEnter)
	b.waitFor(`[id="/users/createUser"] .send`, "Send")
	b.waitFor(":focus", "/api/v1/users")
	b.run(nil, `document.getElementById("menu").focus()`)
	b.press(keyEnter)
	b.press(keyEscape)
	b.waitFor(":focus", "Menu")
	if b.text("#side") != "" {
		b.t.Error("Escape leaves the menu open")
	}
}

// ---- another entity ----

// entityDocument describes an entity that the service does not have: nested objects, lists, maps,
// times, a schema that refers to itself, and a list in the query.
const entityDocument = `{"openapi": "3.1.0", "info": {"title": "Product", "version": "9"},
"paths": {"/api/v1/projects": {
	"post": {"operationId": "createProject", "tags": ["note"], "summary": "Create a project",
		"x-access": "user", "security": [{"bearer": []}], "requestBody": {"content": {
			"application/json": {"schema": {"$ref": "#/components/schemas/Project"},
				"example": {"id": 7, "title": "Bridge"}}}},
		"responses": {"201": {"description": "Created"},
			"409": {"$ref": "#/components/responses/title_taken"}}},
	"put": {"operationId": "importProject", "tags": ["note"], "summary": "Import a project",
		"security": [], "responses": {"200": {"description": "OK"}}, "requestBody": {"content": {
			"application/x-www-form-urlencoded": {"schema": {"$ref": "#/components/schemas/Form"},
				"example": {"title": "Bridge"}},
			"multipart/form-data": {"schema": {"$ref": "#/components/schemas/Form"},
				"example": {"title": "Bridge"}}}}},
	"get": {"operationId": "listProjects", "tags": ["note"], "summary": "List projects",
		"security": [], "responses": {"200": {"description": "OK"}}, "parameters": [
			{"name": "since", "in": "query", "required": true,
				"schema": {"type": "string", "format": "date-time"}},
			{"name": "filter", "in": "query",
				"schema": {"type": "string", "contentMediaType": "application/json"}},
			{"name": "tags", "in": "query",
				"schema": {"type": "array", "items": {"type": "string", "minLength": 2}}}]}}},
"components": {"schemas": {
	"Problem": {"type": "object", "properties": {"code": {"type": "string"}}},
	"Form": {"type": "object", "required": ["title"], "properties": {
		"title": {"type": "string"}, "secret": {"type": "string", "format": "password"},
		"tags": {"type": "array", "items": {"type": "string"}}}},
	"Project": {"type": "object", "additionalProperties": false,
		"required": ["title", "tags", "starts", "address", "labels", "parts", "id"],
		"properties": {
			"id": {"type": "integer", "readOnly": true},
			"title": {"type": "string", "minLength": 4, "maxLength": 80},
			"tags": {"type": "array", "maxItems": 2, "items":
				{"type": "string", "minLength": 6}},
			"starts": {"type": "string", "format": "date-time"},
			"due": {"type": ["string", "null"], "format": "date-time"},
			"address": {"type": "object", "required": ["zip"], "properties": {
				"zip": {"type": "string", "pattern": "^[0-9]{5}$", "examples": ["10115"]},
				"floor": {"type": "integer", "maximum": 99}}},
			"labels": {"type": "object", "additionalProperties":
				{"type": "string", "maxLength": 5}},
			"parts": {"type": "array", "minItems": 1, "items": {"type": "object",
				"required": ["id", "weight"], "properties": {
					"id": {"type": "integer", "readOnly": true},
					"weight": {"type": "number", "minimum": 0.5}}}},
			"parent": {"$ref": "#/components/schemas/Project"}}}},
	"responses": {"title_taken": {"description": "- ` + "`title_taken`" + `: It is taken.",
		"x-codes": ["title_taken"], "content": {"application/problem+json": {
			"schema": {"$ref": "#/components/schemas/Problem"}}}}}}}`

// serveEntity serves the page with entityDocument, and answers each call with what it has received.
func serveEntity(a *app) *httptest.Server {
	_, page := a.fetch("/docs", "")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /docs", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, page)
	})
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, entityDocument)
	})
	mux.HandleFunc("/api/v1/projects", func(w http.ResponseWriter, r *http.Request) {
		var body any
		if r.Method == "POST" && json.NewDecoder(r.Body).Decode(&body) != nil {
			w.WriteHeader(400)
		}
		r.ParseMultipartForm(1 << 20) // also of other forms; a JSON body is read by now
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(pairs{"query", r.URL.Query(), "body", body,
			"media", r.Header.Get("Content-Type"), "form", r.PostForm})
	})
	web := httptest.NewServer(mux)
	a.t.Cleanup(web.Close)
	return web
}

// testEntity uses the page with an entity that is not the service's.
func (b *browser) testEntity(a *app) {
	web := serveEntity(a)
	defer b.checkConsole(web.URL)
	b.open(web.URL + "/docs")
	create := b.openOperation("#/note/createProject")
	b.waitFor(create+" .props", "map of string")
	b.waitFor(create+" .props", "array of string")
	b.waitFor(create+" .response:last-child", "title_taken")
	var got, want any
	example := `{"title": "Bridge", "tags": ["textxx"], "starts": "2026-01-02T03:04:05Z", ` +
		`"address": {"zip": "10115"}, "labels": {"name": "text"}, "parts": [{"weight": 0.5}]}`
	json.Unmarshal([]byte(example), &want)
	err := json.Unmarshal([]byte(b.value(create+" textarea")), &got)
	if err != nil || !reflect.DeepEqual(got, want) {
		b.t.Errorf("the example is %v, want %v", got, want)
	}
	if got := b.send(create); got != 200 {
		b.t.Errorf("POST /projects = %d", got)
	}
	for _, row := range [][2]string{
		{`"starts": "today"`, "starts must be a time such as 2026-01-02T03:04:05Z."},
		{`"due": null, "tags": [1]`, "tags[0] must be of type string."},
		{`"tags": ["yellow", "orange", "purple"]`, "tags must have at most 2 items; it has 3."},
		{`"address": {"zip": "1"}`, "address.zip must match the pattern ^[0-9]{5}$."},
		{`"address": {"zip": "10115", "floor": 100}`, "address.floor must be at most 99."},
		{`"labels": {"a": "toolong"}`, "labels.a must have at most 5 characters; it has 7."},
		{`"parts": []`, "parts must have at least 1 item; it has 0."},
		{`"parent": {"title": "project"}`, "parent.tags is required."},
	} {
		b.fill(create+" textarea", strings.TrimSuffix(example, "}")+", "+row[0]+"}")
		b.refused(create, row[1])
	}
	list := b.openOperation("#/note/listProjects")
	b.refused(list, "since is required.")
	b.write(list+" [name=since]", "2026-01-02T03:04:05+02:00")
	b.write(list+" [name=filter]", `{"lang"`)
	b.refused(list, "filter must be JSON.")
	b.write(list+" [name=filter]", `{"lang": "en"}`)
	b.write(list+" [name=tags]", "red,x")
	b.refused(list, "tags[1] must have at least 2 characters; it has 1.")
	b.write(list+" [name=tags]", "red,green")
	b.send(list)
	b.waitFor(list+" .answer pre", `"since": ["2026-01-02T03:04:05+02:00"]`)
	b.waitFor(list+" .answer pre", `"tags": ["red", "green"]`)
}
