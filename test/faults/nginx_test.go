//go:build fault

package faults

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// nginxLocations are ways to pass requests on: nginx's default, which is HTTP/1.0, without waiting
// for the body, and on kept connections with a prefix cut off.
var nginxLocations = map[string]string{
	"/plain/":      "proxy_pass http://app/;",
	"/unbuffered/": "proxy_request_buffering off; proxy_pass http://app/;",
	"/kept/": `proxy_http_version 1.1; proxy_set_header Connection "";
		proxy_set_header X-Forwarded-Prefix /kept; proxy_pass http://app/;`,
}

// startNginx starts nginx before a replica and returns its address.
func startNginx(t testing.TB, r *replica) (address string) {
	t.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		path = "/usr/sbin/nginx" // which is not in every PATH
	}
	dir := filepath.Join(workDir, "nginx")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	address = localAddress(freePort(t))
	var config strings.Builder
	fmt.Fprintf(&config, "daemon off; error_log stderr; pid %s/pid; user root;\nevents {}\n"+
		"http { access_log off; client_max_body_size 32m;\n", dir)
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&config, "%s_temp_path %s/%s;\n", name, dir, name)
	}
	fmt.Fprintf(&config, "upstream app { server %s; keepalive 4; }\nserver { listen %s;\n",
		r.address(), address)
	for location, settings := range nginxLocations {
		fmt.Fprintf(&config, "location %s { %s }\n", location, settings)
	}
	config.WriteString("} }\n")
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-c", file, "-p", dir)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; .ci/setup.sh nginx installs nginx", err)
	}
	t.Cleanup(func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() })
	if _, ok := eventually(10*time.Second, func() bool {
		c, err := dial(address)
		if err == nil {
			c.Close()
		}
		return err == nil
	}); !ok {
		t.Fatalf("nginx does not start: %s", log.String())
	}
	return address
}

// refusals are requests whose bodies are refused, with the size from which they are.
var refusals = []struct {
	method, path, media string
	signedIn            bool
	size, want          int
}{
	{"POST", "/documents", jsonMedia, false, 1, 401},
	{"POST", "/nothing", jsonMedia, false, 1, 404},
	{"PUT", "/health", jsonMedia, false, 1, 405},
	{"POST", "/auth/login", jsonMedia, false, smallLimit + 1, 413},
	{"POST", "/documents", jsonMedia, true, largeLimit + 1, 413},
	{"POST", "/documents", "text/plain", true, 1, 415},
}

// TestNginx sends bodies of many sizes through nginx that are refused. The refusal arrives, however
// early it comes: a client that sees 502 instead of 401 never refreshes its token. Links lead back
// through nginx.
func TestNginx(t *testing.T) {
	r, db := newRow(t, "nginx"), sharedPostgres(t)
	db.createDatabase("nginx")
	target := startReplica(t, db.url("nginx"), "TRUSTED_PROXIES=127.0.0.1")
	m := (&client{address: target.address()}).signUp(t, "ada@example.com")
	db.makeAdmin("nginx", m.id)
	address := startNginx(t, target)
	for location := range nginxLocations {
		for _, size := range []int{50_000, 300_000, 2_000_000, 16 << 20, 24 << 20} {
			for range 3 {
				r.sendRefused(address, strings.TrimSuffix(location, "/"), m.AccessToken, size)
			}
		}
	}
	r.followLinks(address, m.AccessToken)
}

// sendRefused sends bodies of size bytes that are refused.
func (r *row) sendRefused(address, location, token string, size int) {
	for _, f := range refusals {
		if size < f.size {
			continue
		}
		text := head(f.method, f.path, map[bool]string{true: token, false: "x"}[f.signedIn],
			f.media, size)
		text = bytes.Replace(text, []byte(" /"), []byte(" "+location+"/"), 1)
		cl := &client{address: address}
		a := cl.send(slices.Concat(text, make([]byte, size)))
		cl.closeIdle()
		if r.Statuses[a.status()]++; a.status() != f.want {
			r.fault("%d bytes: %v, want %d", size, a, f.want)
		}
	}
}

// followLinks follows the redirect to the page, and the pages of a list to their end.
func (r *row) followLinks(address, token string) {
	root := "http://" + address
	res, err := http.Get(root + "/kept/")
	if err != nil || res.StatusCode != 200 || res.Request.URL.Path != "/kept/docs" {
		r.t.Fatalf("/kept/ leads to %v, %v, want /kept/docs", res, err)
	}
	res.Body.Close()
	for i := range 3 {
		body := fmt.Sprintf(`{"email":"u%d@example.com","password":%q}`, i, password)
		res := r.ask("POST", root+"/kept"+apiPrefix+"/users", token, body)
		r.ask("GET", root+res.Header.Get("Location"), token, "")
	}
	pages := 0
	for next := "/kept" + apiPrefix + "/users?limit=1"; next != ""; pages++ {
		link := r.ask("GET", root+next, token, "").Header.Get("Link")
		next, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
	}
	if pages != 4 {
		r.fault("the list has %d pages, want 4", pages)
	}
}

// ask sends a request, whose failure fails the row.
func (r *row) ask(method, url, token, body string) *http.Response {
	r.t.Helper()
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", jsonMedia)
	res, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	res.Body.Close()
	if r.Statuses[res.StatusCode]++; res.StatusCode >= 300 {
		r.t.Fatalf("%s %s = %d", method, url, res.StatusCode)
	}
	return res
}
