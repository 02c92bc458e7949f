//go:build bench

package bench

// peers_sides_test.go has the services: how each is started, and its requests.

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// peer is a service.
type peer struct {
	name, size string
	hash       string // what a login computes
	request    string // what "who am I" is
	refreshIs  string // what a refresh does

	command  func(port string) *exec.Cmd
	prefix   string // of its API
	health   string // the path that tells that it is ready
	register func(c *client, email string) error
	login    func(c *client, email string) (account, error)
	me       func(a account) string
	refresh  func(c *client, a *account) error // nil: it has none

	process     *process
	start, idle float64 // milliseconds, MB
	accounts    []account
	readFile    string // wrk's file of "who am I"
}

// account is one that has logged in.
type account struct{ email, id, access, refresh string }

// startSides starts all services that are installed, and registers their accounts.
func (c *peers) startSides() {
	c.Helper()
	c.sides = []*peer{c.latch("latch")}
	c.sides = append(c.sides, c.fastAPI()...)
	c.sides = append(c.sides, c.pocketBase()...)
	c.sides = append(c.sides, c.kratos()...)
	for _, s := range c.sides {
		c.start(s)
	}
	for _, s := range c.sides {
		time.Sleep(time.Second)
		s.idle = s.process.share(c.T)
		c.fill(s)
	}
}

// start starts a service three times and keeps the last process.
func (c *peers) start(s *peer) {
	c.Helper()
	var starts []float64
	for range 3 {
		if s.process != nil {
			s.process.stop()
		}
		port := freePort(c.T)
		s.process = launch(c.T, s.command(port), port, s.prefix, s.health)
		starts = append(starts, s.process.started)
	}
	c.Cleanup(s.process.stop)
	s.start = median(starts)
}

// fill registers the accounts of a service and logs them in.
func (c *peers) fill(s *peer) {
	c.Helper()
	s.accounts = make([]account, *peerAccounts)
	begin := time.Now()
	for i := range s.accounts {
		conn, err := dial(s.process)
		if err != nil {
			c.Fatal(err)
		}
		email := fmt.Sprintf("user%d@example.com", i+1)
		if err = s.register(conn, email); err == nil {
			s.accounts[i], err = s.login(conn, email)
		}
		conn.conn.Close()
		if err != nil {
			c.Fatalf("%s: %v", s.name, err)
		}
	}
	fmt.Printf("%s: %d accounts in %.0f s\n", s.name, *peerAccounts, time.Since(begin).Seconds())
	s.readFile = requests(c.T, *peerAccounts, func(i int) string {
		return line("GET", s.me(s.accounts[i]), s.accounts[i].access, "")
	})
}

// decode reads a JSON answer.
func decode[T any](answer []byte, err error) (v T, _ error) {
	if err == nil {
		err = json.Unmarshal(answer, &v)
	}
	return v, err
}

func fileMB(file string) string {
	info, err := os.Stat(file)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%.1f MB", float64(info.Size())/1e6)
}

// usersMe is "who am I" of the services with this API.
func usersMe(account) string { return "/users/me" }

func (c *peers) latch(database string) *peer {
	url := c.createDatabase(database)
	c.migrate(url)
	return &peer{
		name: "Latch", size: fileMB(c.binary), prefix: "/api/v1", health: "/health",
		hash:      "Argon2id, m = 19 MiB, t = 2, p = 1",
		request:   "`/users/me`; PostgreSQL: session and user",
		refreshIs: "a rotation; a row updated",
		command: func(port string) *exec.Cmd {
			cmd := exec.Command(c.binary)
			cmd.Env = append(c.env(url), "PORT="+port)
			return cmd
		},
		register: register,
		login: func(c *client, email string) (account, error) {
			body := toJSON(credentials(email))
			answer, err := decode[tokens](c.do("POST", "/auth/login", "", body))
			return account{email, "", answer.AccessToken, answer.RefreshToken}, err
		},
		me: usersMe, refresh: refreshToken,
	}
}

// register registers an account of the services with this API.
func register(c *client, email string) error {
	body := map[string]string{"email": email, "password": password}
	_, err := c.do("POST", "/auth/register", "", toJSON(body))
	return err
}

// refreshToken refreshes the tokens of an account of the services with this API.
func refreshToken(c *client, a *account) error {
	body := toJSON(refreshBody(a.refresh))
	answer, err := decode[tokens](c.do("POST", "/auth/refresh", "", body))
	if err == nil {
		a.access, a.refresh = answer.AccessToken, answer.RefreshToken
	}
	return err
}

// fastAPI is the same API in Python, and once more with the hash that Latch has.
func (c *peers) fastAPI() []*peer {
	if !c.installed("FastAPI", "fastapi/installed") {
		return nil
	}
	usual := c.fastAPISide("fastapi")
	usual.name = "FastAPI " + c.pinned("fastapi/requirements.txt", "fastapi")
	usual.hash = "Argon2id, m = 64 MiB, t = 3, p = 4 (pwdlib's default)"
	usual.size = fmt.Sprintf("%.0f MB of packages, and Python", c.directoryMB("fastapi/lib"))
	light := c.fastAPISide("fastapi_light",
		"ARGON2_MEMORY=19456", "ARGON2_TIME=2", "ARGON2_THREADS=1")
	light.name, light.hash, light.size = "FastAPI, hash of Latch", "as Latch", "the same"
	return []*peer{usual, light}
}

func (c *peers) fastAPISide(database string, settings ...string) *peer {
	return &peer{
		request: "`/users/me`; PostgreSQL: user", refreshIs: "stateless; the user read",
		prefix: "/api/v1", health: "/health",
		command:  c.uvicorn(c.createDatabase(database), settings...),
		register: register,
		login: func(c *client, email string) (account, error) {
			form := url.Values{"username": {email}, "password": {password}}.Encode()
			answer, err := decode[tokens](c.do("POST", "/auth/login", "", form))
			return account{email, "", answer.AccessToken, answer.RefreshToken}, err
		},
		me: usersMe, refresh: refreshToken,
	}
}

// uvicorn creates the tables of the FastAPI service in a database, and returns its command: two
// processes, and no access log, which would cost it more than the others.
func (c *peers) uvicorn(database string, settings ...string) func(port string) *exec.Cmd {
	c.Helper()
	_, rest, _ := strings.Cut(strings.TrimSuffix(database, "?sslmode=disable"), "://")
	env := append([]string{
		"DATABASE_URL=postgresql+asyncpg://" + rest, "SECRET_KEY=" + secret,
		"PYTHONDONTWRITEBYTECODE=1", "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
	}, settings...)
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(c.dir, "fastapi/bin", name), args...)
		cmd.Dir, cmd.Env = "peers/fastapi", env
		return cmd
	}
	if out, err := command("python", "-m", "app.tables").CombinedOutput(); err != nil {
		c.Fatalf("python -m app.tables: %v\n%s", err, out)
	}
	return func(port string) *exec.Cmd {
		return command("uvicorn", "app.main:app", "--port", port,
			"--workers", "2", "--no-access-log")
	}
}

// pinned returns the version of a Python package in a file of requirements.
func (c *peers) pinned(file, name string) string {
	text, err := os.ReadFile(filepath.Join("peers", file))
	if err != nil {
		c.Fatal(err)
	}
	return regexp.MustCompile(`(?m)^` + name + `==(.*)$`).FindStringSubmatch(string(text))[1]
}

// directoryMB returns the size of a directory of the installed services, pip left out.
func (c *peers) directoryMB(dir string) (mb float64) {
	add := func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if d != nil && strings.HasPrefix(d.Name(), "pip") {
				return filepath.SkipDir
			}
			return err
		}
		info, err := d.Info()
		if err == nil {
			mb += float64(info.Size()) / 1e6
		}
		return err
	}
	if err := filepath.WalkDir(filepath.Join(c.dir, dir), add); err != nil {
		c.Fatal(err)
	}
	return mb
}

func (c *peers) pocketBase() []*peer {
	version := os.Getenv("POCKETBASE_VERSION")
	binary := "pocketbase-" + version + "/base"
	if !c.installed("PocketBase", binary) {
		return nil
	}
	binary = filepath.Join(c.dir, binary)
	data := c.TempDir()
	const users = "/collections/users"
	type answer struct {
		Token  string
		Record struct{ ID string }
	}
	return []*peer{{
		name: "PocketBase " + version, prefix: "/api", health: "/health",
		size: fileMB(binary) + ", database included", hash: "bcrypt, cost 10",
		request:   "`/records/{own id}`; SQLite in the process: user",
		refreshIs: "stateless; the user read",
		command: func(port string) *exec.Cmd {
			return exec.Command(binary, "serve", "--http=127.0.0.1:"+port, "--dir="+data)
		},
		register: func(c *client, email string) error {
			body := toJSON(map[string]string{
				"email": email, "password": password, "passwordConfirm": password,
			})
			_, err := c.do("POST", users+"/records", "", body)
			return err
		},
		login: func(c *client, email string) (account, error) {
			body := toJSON(map[string]string{"identity": email, "password": password})
			got, err := decode[answer](c.do("POST", users+"/auth-with-password", "", body))
			return account{email, got.Record.ID, got.Token, got.Token}, err
		},
		me: func(a account) string { return users + "/records/" + a.id },
		refresh: func(c *client, a *account) error {
			got, err := decode[answer](c.do("POST", users+"/auth-refresh", a.refresh, ""))
			if err == nil {
				a.refresh = got.Token
			}
			return err
		},
	}}
}

func (c *peers) kratos() []*peer {
	version := os.Getenv("KRATOS_VERSION")
	binary := "kratos-" + version + "/kratos"
	if !c.installed("Kratos", binary) {
		return nil
	}
	binary = filepath.Join(c.dir, binary)
	env := []string{"DSN=" + c.createDatabase("kratos"), "HOME=" + c.TempDir(),
		"SERVE_PUBLIC_HOST=127.0.0.1", "SERVE_ADMIN_HOST=127.0.0.1"}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(binary, append(args, "-c", "kratos.yml")...)
		cmd.Dir, cmd.Env = "peers", env
		return cmd
	}
	if out, err := command("migrate", "sql", "-e", "--yes").CombinedOutput(); err != nil {
		c.Fatalf("kratos migrate: %v\n%s", err, out)
	}
	return []*peer{{
		name: "Kratos " + version, size: fileMB(binary), hash: "bcrypt, cost 12 (its minimum)",
		request:   "`/sessions/whoami`; PostgreSQL: session and user",
		refreshIs: "none: it has sessions", health: "/health/alive",
		command: func(port string) *exec.Cmd {
			cmd := command("serve")
			cmd.Env = append(env, "SERVE_PUBLIC_PORT="+port, "SERVE_ADMIN_PORT="+freePort(c.T))
			return cmd
		},
		register: func(c *client, email string) error {
			traits := map[string]string{"email": email}
			body := map[string]any{"method": "password", "password": password, "traits": traits}
			_, err := submitFlow(c, "registration", body)
			return err
		},
		login: func(c *client, email string) (account, error) {
			answer, err := decode[struct {
				Token string `json:"session_token"`
			}](submitFlow(c, "login",
				map[string]any{"method": "password", "password": password, "identifier": email}))
			return account{email, "", answer.Token, ""}, err
		},
		me: func(account) string { return "/sessions/whoami" },
	}}
}

// submitFlow begins and completes a flow of Kratos: two requests, as its clients make them.
func submitFlow(c *client, kind string, body map[string]any) ([]byte, error) {
	flow, err := decode[struct{ ID string }](c.do("GET", "/self-service/"+kind+"/api", "", ""))
	if err != nil {
		return nil, err
	}
	return c.do("POST", "/self-service/"+kind+"?flow="+flow.ID, "", toJSON(body))
}
