//go:build fault

package main

// fault_load_test.go is the load that runs while something breaks, and what it keeps of every answer. It
// never tries anything again: a broken answer counts.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	faultRate      = 200              // requests a second
	clientPatience = 10 * time.Second // after which an answer counts as none
	// deadline is the longest that a request may take: two statements, of which only one can be slow without
	// failing the request, a wait for the pool before each, and a wait for a hashing slot.
	faultDeadline = queryTimeout + 2*acquireTimeout + time.Second
)

// wire speaks HTTP/1.1 to one address over kept-alive connections. net/http's client is not used, because it
// repeats requests by itself.
type wire struct {
	address string
	mu      sync.Mutex
	idle    []*wireConn
}

type wireConn struct {
	net.Conn
	r *bufio.Reader
}

var errNoConnection = errors.New("connection refused") // nothing was sent

func (w *wire) conn() (*wireConn, error) {
	for {
		w.mu.Lock()
		n := len(w.idle)
		if n == 0 {
			w.mu.Unlock()
			break
		}
		c := w.idle[n-1]
		w.idle = w.idle[:n-1]
		w.mu.Unlock()
		c.SetDeadline(time.Time{})
		if isQuiet(c.Conn) { // every client notices a close that it has been told of
			return c, nil
		}
		c.Close()
	}
	c, err := net.DialTimeout("tcp", w.address, 2*time.Second)
	if err != nil {
		return nil, errNoConnection
	}
	return &wireConn{c, bufio.NewReader(c)}, nil
}

func (w *wire) do(method, path, token, media string, body []byte) (*http.Response, []byte, error) {
	c, err := w.conn()
	if err != nil {
		return nil, nil, err
	}
	c.SetDeadline(time.Now().Add(clientPatience))
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s %s HTTP/1.1\r\nHost: x\r\n", method, path)
	if token != "" {
		fmt.Fprintf(&text, "Authorization: Bearer %s\r\n", token)
	}
	if body != nil {
		fmt.Fprintf(&text, "Content-Type: %s\r\nContent-Length: %d\r\n", media, len(body))
	}
	text.WriteString("\r\n")
	text.Write(body)
	res, answer, err := c.exchange(text.Bytes())
	if err != nil || res.Close {
		c.Close()
		return res, answer, err
	}
	w.mu.Lock()
	w.idle = append(w.idle, c)
	w.mu.Unlock()
	return res, answer, nil
}

func (c *wireConn) exchange(request []byte) (*http.Response, []byte, error) {
	if _, err := c.Write(request); err != nil {
		return nil, nil, err
	}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(res.Body)
	return res, body, err
}

// sample is one request and what came of it: status 0 is no answer.
type sample struct {
	start, end time.Time
	op         string
	status     int
	note       string // what is wrong with it, whatever the fault
}

// account is one that the load uses, and the ledger of what was acknowledged to it. One operation at a
// time changes it, so that the order of its changes is known.
type account struct {
	busy         sync.Mutex
	id           int64
	email        string
	tokens       atomic.Pointer[tokens]
	name, acked  int // the number in the last full name that was sent, and that was acknowledged
	generation   int64
	docs, killed []int64 // created and deleted
}

// load is 200 requests a second on all replicas.
type load struct {
	t        testing.TB
	wires    []*wire
	out      []*atomic.Bool // replicas that are out of rotation, where balanced
	balanced bool           // as behind a load balancer: /health/db decides, and what was refused goes elsewhere
	accounts []*account
	turn     atomic.Int64
	stop     chan struct{}
	wg       sync.WaitGroup

	mu         sync.Mutex
	samples    []sample
	registered []string
	loggedOut  []tokens
}

// newLoad makes the accounts of a load on replicas, which have db; the first of them is an admin.
func newLoad(t testing.TB, replicas []*replica, direct string) *load {
	t.Helper()
	l := &load{t: t}
	for _, r := range replicas {
		l.wires = append(l.wires, &wire{address: r.address()})
		l.out = append(l.out, &atomic.Bool{})
	}
	for i := range pick(24, 8) { // whose sessions are in use
		a := &account{email: fmt.Sprintf("a%d@example.com", i)}
		l.accounts = append(l.accounts, a)
		status, body := l.call("setup", "POST", "/auth/register", "", map[string]any{"email": a.email, "password": goodPass, "full_name": "n 0"})
		a.id = decode[user](answer{body: body}).ID
		if status == 201 {
			status, body = l.call("setup", "POST", "/auth/login", "", url.Values{"username": {a.email}, "password": {goodPass}})
		}
		if status != 200 {
			t.Fatalf("setting up an account: %d %s", status, body)
		}
		a.setTokens(body)
		for range 5 {
			l.createDocument(a)
		}
	}
	conn, err := pgx.Connect(context.Background(), direct)
	if err == nil {
		_, err = conn.Exec(context.Background(), `UPDATE users SET is_admin = true WHERE id = $1`, l.accounts[0].id)
		conn.Close(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	l.samples = nil
	return l
}

func (a *account) setTokens(body []byte) {
	t := decode[tokens](answer{body: body})
	a.tokens.Store(&t)
}

// call sends one request, records the answer, and returns it.
func (l *load) call(op, method, path, token string, body any) (status int, answer []byte) {
	media, text := "application/json", []byte(nil)
	switch b := body.(type) {
	case nil:
	case url.Values:
		media, text = "application/x-www-form-urlencoded", []byte(b.Encode())
	default:
		text, _ = json.Marshal(b)
	}
	s := sample{start: time.Now(), op: op}
	var res *http.Response
	var err error
	first := int(l.turn.Add(1))
	for i := range l.wires {
		at := (first + i) % len(l.wires)
		if last := i == len(l.wires)-1; l.balanced && !last && l.out[at].Load() {
			continue
		}
		res, answer, err = l.wires[at].do(method, "/api/v1"+path, token, media, text)
		if !l.balanced || !errors.Is(err, errNoConnection) {
			break
		}
		l.out[at].Store(true)
	}
	s.end = time.Now()
	if err == nil {
		s.status = res.StatusCode
		if s.status == 503 && res.Header.Get("Retry-After") == "" {
			s.note = "503 without Retry-After"
		}
	} else {
		s.note = err.Error()
	}
	if s.status == 401 && op != "dead" {
		s.note = "401 for a valid token"
	} else if s.status >= 300 && s.status != 503 && op != "dead" {
		s.note = fmt.Sprintf("%d %s", s.status, answer)
	}
	if op == "dead" && s.status == 200 {
		s.note = "a session is alive after its logout was acknowledged"
	}
	l.mu.Lock()
	l.samples = append(l.samples, s)
	l.mu.Unlock()
	return s.status, answer
}

// start runs the load until halt.
func (l *load) start() {
	l.stop = make(chan struct{})
	l.wg.Go(func() {
		tick := time.NewTicker(time.Second / faultRate)
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
				l.wg.Go(l.one)
			}
		}
	})
	if l.balanced {
		for i := range l.wires {
			l.wg.Go(func() { l.probe(i) })
		}
	}
}

func (l *load) probe(i int) {
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
		res, _, err := (&wire{address: l.wires[i].address}).do("GET", "/api/v1/health/db", "", "", nil)
		l.out[i].Store(err != nil || res.StatusCode != 200)
	}
}

func (l *load) halt() {
	close(l.stop)
	l.wg.Wait()
}

// one does one operation of the mix.
func (l *load) one() {
	a := l.accounts[rand.IntN(len(l.accounts))]
	token := a.tokens.Load().AccessToken
	switch p := rand.IntN(1000); {
	case p < 430:
		l.call("me", "GET", "/users/me", token, nil)
	case p < 550:
		l.call("list", "GET", "/users?limit=20", l.accounts[0].tokens.Load().AccessToken, nil)
	case p < 750:
		l.call("search", "POST", "/documents/search", token, map[string]any{"embedding": []float64{rand.Float64() + .1, 1, 0}})
	case p < 770:
		l.dead()
	case p < 870:
		l.change(a, l.refresh)
	case p < 920:
		l.change(a, l.rename)
	case p < 970:
		l.change(a, l.createDocument)
	case p < 985:
		l.change(a, l.deleteDocument)
	case p < 993:
		l.loginAndOut(a)
	default:
		l.register()
	}
}

func (l *load) change(a *account, f func(*account)) {
	if !a.busy.TryLock() {
		l.call("me", "GET", "/users/me", a.tokens.Load().AccessToken, nil)
		return
	}
	defer a.busy.Unlock()
	f(a)
}

func (l *load) refresh(a *account) {
	if status, body := l.call("refresh", "POST", "/auth/refresh", "", map[string]string{"refresh_token": a.tokens.Load().RefreshToken}); status == 200 {
		a.setTokens(body)
		a.generation++
	}
}

func (l *load) rename(a *account) {
	a.name++
	if status, _ := l.call("rename", "PUT", "/users/me", a.tokens.Load().AccessToken, map[string]string{"full_name": fmt.Sprintf("n %d", a.name)}); status == 200 {
		a.acked = a.name
	}
}

func (l *load) createDocument(a *account) {
	if status, body := l.call("create", "POST", "/documents", a.tokens.Load().AccessToken, map[string]any{"content": "text", "embedding": []float64{1, rand.Float64(), 1}}); status == 201 {
		a.docs = append(a.docs, decode[document](answer{body: body}).ID)
	}
}

func (l *load) deleteDocument(a *account) {
	if len(a.docs) == 0 {
		return
	}
	id := a.docs[0]
	a.docs = a.docs[1:] // whatever the answer is: where there is none, it may be either
	if status, _ := l.call("delete", "DELETE", fmt.Sprintf("/documents/%d", id), a.tokens.Load().AccessToken, nil); status == 204 {
		a.killed = append(a.killed, id)
	}
}

func (l *load) loginAndOut(a *account) {
	status, body := l.call("login", "POST", "/auth/login", "", url.Values{"username": {a.email}, "password": {goodPass}})
	if status != 200 {
		return
	}
	t := decode[tokens](answer{body: body})
	if status, _ := l.call("logout", "POST", "/auth/logout", t.AccessToken, nil); status == 204 {
		l.mu.Lock()
		l.loggedOut = append(l.loggedOut, t)
		l.mu.Unlock()
	}
}

// dead uses a session that has ended.
func (l *load) dead() {
	l.mu.Lock()
	var t tokens
	if n := len(l.loggedOut); n > 0 {
		t = l.loggedOut[rand.IntN(n)]
	}
	l.mu.Unlock()
	if t.AccessToken != "" {
		l.call("dead", "GET", "/users/me", t.AccessToken, nil)
	}
}

func (l *load) register() {
	email := fmt.Sprintf("r%d@example.com", rand.Int64())
	if status, _ := l.call("register", "POST", "/auth/register", "", map[string]string{"email": email, "password": goodPass}); status == 201 {
		l.mu.Lock()
		l.registered = append(l.registered, email)
		l.mu.Unlock()
	}
}

// lost compares the ledger with the database and returns what is missing.
func (l *load) lost(direct string) (missing []string) {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, direct)
	if err != nil {
		return []string{err.Error()}
	}
	defer conn.Close(ctx)
	count := func(sql string, args ...any) (n int64) {
		if err := conn.QueryRow(ctx, sql, args...).Scan(&n); err != nil {
			missing = append(missing, err.Error())
		}
		return n
	}
	if got, want := count(`SELECT count(*) FROM users WHERE email = ANY($1)`, l.registered), int64(len(l.registered)); got != want {
		missing = append(missing, fmt.Sprintf("%d of %d registrations", want-got, want))
	}
	for _, a := range l.accounts {
		if got := count(`SELECT split_part(full_name, ' ', 2)::bigint FROM users WHERE id = $1`, a.id); got < int64(a.acked) || got > int64(a.name) {
			missing = append(missing, fmt.Sprintf("%s has the name %d; %d was acknowledged, and %d sent", a.email, got, a.acked, a.name))
		}
		if got, want := count(`SELECT count(*) FROM documents WHERE owner_id = $1 AND id = ANY($2)`, a.id, a.docs), int64(len(a.docs)); got != want {
			missing = append(missing, fmt.Sprintf("%d of %d documents", want-got, want))
		}
		if got := count(`SELECT count(*) FROM documents WHERE owner_id = $1 AND id = ANY($2)`, a.id, a.killed); got != 0 {
			missing = append(missing, fmt.Sprintf("%d deletions of documents", got))
		}
		if got := count(`SELECT max(generation) FROM sessions WHERE user_id = $1`, a.id); got < a.generation {
			missing = append(missing, fmt.Sprintf("%d refreshes", a.generation-got))
		}
	}
	for _, t := range l.loggedOut {
		if status, _ := l.call("dead", "GET", "/users/me", t.AccessToken, nil); status != 401 {
			missing = append(missing, fmt.Sprintf("a logout: %d", status))
		}
	}
	for _, a := range l.accounts {
		if status, body := l.call("me", "GET", "/users/me", a.tokens.Load().AccessToken, nil); status != 200 {
			missing = append(missing, fmt.Sprintf("a session: %d %s", status, body))
		}
	}
	return missing
}
