package faults

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// account is an account of the load, with what was acknowledged to it. One operation at a time
// changes it, so that the order of its changes is known.
type account struct {
	member
	current       atomic.Pointer[tokens] // those of member, until the first refresh
	busy          sync.Mutex
	name, acked   int // the number in the full name that was sent last, and acknowledged last
	generation    int64
	docs, deleted []int64
}

func (a *account) access() string { return a.current.Load().AccessToken }

// load is a mix of requests, loadRate a second, to one or more addresses in turn. It keeps the
// outcome of each, and what was acknowledged, so that lost can compare that with the database.
type load struct {
	t        testing.TB
	clients  []*client
	accounts []*account // the first is an admin
	turn     atomic.Int64
	stop     chan struct{}
	wg       sync.WaitGroup

	mu         sync.Mutex
	samples    []sample
	restarts   []restart
	registered []string
	loggedOut  []tokens
}

// restart is a time in which one of the addresses refuses or resets connections.
type restart struct {
	address  int // index of the client
	from, to time.Time
}

var (
	loadRate     = pick(200, 100) // requests a second
	loadAccounts = pick(24, 8)
)

// newLoad makes the accounts of a load on the service at these addresses.
func newLoad(t testing.TB, db *postgres, database string, addresses ...string) *load {
	t.Helper()
	l := &load{t: t}
	for _, address := range addresses {
		l.clients = append(l.clients, &client{address: address})
	}
	for i := range loadAccounts {
		m := l.clients[0].signUp(t, fmt.Sprintf("a%d@example.com", i))
		a := &account{member: m}
		a.current.Store(&m.tokens)
		l.accounts = append(l.accounts, a)
		for range 5 {
			l.createDocument(a)
		}
	}
	db.makeAdmin(database, l.accounts[0].id)
	l.samples = nil
	return l
}

// call sends one request and keeps its outcome.
func (l *load) call(op, method, path, token string, body any) answer {
	s := sample{start: time.Now(), op: op, address: int(l.turn.Add(1)) % len(l.clients)}
	a := l.clients[s.address].do(method, path, token, body)
	s.end, s.status, s.reused = time.Now(), a.status(), a.reused
	switch {
	case a.err != nil:
		s.note = a.err.Error()
	case s.status == 503 && a.Header.Get("Retry-After") == "":
		s.note = "503 without Retry-After"
	case op == "ended" && s.status == 200:
		s.note = "a session was accepted after its logout had been acknowledged"
	case op == "ended" || s.status == 503 || s.status < 300:
	case s.status == 401:
		s.note = "401 for a valid token"
	default:
		s.note = a.String()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples = append(l.samples, s)
	return a
}

// start runs the load until halt.
func (l *load) start() {
	l.stop = make(chan struct{})
	l.wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(loadRate))
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
				l.wg.Go(l.operate)
			}
		}
	})
}

func (l *load) halt() {
	close(l.stop)
	l.wg.Wait()
}

// outcomes returns the samples so far.
func (l *load) outcomes() []sample {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]sample(nil), l.samples...)
}

// operate sends the request or the requests of one operation of the mix.
func (l *load) operate() {
	a := l.accounts[rand.IntN(len(l.accounts))]
	switch p := rand.IntN(1000); {
	case p < 430:
		l.call("me", "GET", "/users/me", a.access(), nil)
	case p < 550:
		l.call("list", "GET", "/users?limit=20", l.accounts[0].access(), nil)
	case p < 750:
		vector := map[string]any{"embedding": []float64{rand.Float64() + .1, 1, 0}}
		l.call("search", "POST", "/documents/search", a.access(), vector)
	case p < 770:
		l.useEnded()
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

// isRead says that an operation of the mix changes nothing.
func isRead(op string) bool { return op == "me" || op == "list" || op == "search" }

// change runs f on an account, or a read where the account is busy.
func (l *load) change(a *account, f func(*account)) {
	if !a.busy.TryLock() {
		l.call("me", "GET", "/users/me", a.access(), nil)
		return
	}
	defer a.busy.Unlock()
	f(a)
}

func (l *load) refresh(a *account) {
	body := map[string]string{"refresh_token": a.current.Load().RefreshToken}
	if res := l.call("refresh", "POST", "/auth/refresh", "", body); res.status() == 200 {
		t := decode[tokens](res.body)
		a.current.Store(&t)
		a.generation++
	}
}

func (l *load) rename(a *account) {
	a.name++
	body := map[string]string{"full_name": fmt.Sprintf("n %d", a.name)}
	if l.call("rename", "PUT", "/users/me", a.access(), body).status() == 200 {
		a.acked = a.name
	}
}

func (l *load) createDocument(a *account) {
	body := map[string]any{"content": "text", "embedding": []float64{rand.Float64() + .1, 0, 1}}
	if res := l.call("create", "POST", "/documents", a.access(), body); res.status() == 201 {
		a.docs = append(a.docs, decode[struct{ ID int64 }](res.body).ID)
	}
}

func (l *load) deleteDocument(a *account) {
	if len(a.docs) == 0 {
		return
	}
	id := a.docs[0]
	a.docs = a.docs[1:] // without an answer it may be there or not
	res := l.call("delete", "DELETE", fmt.Sprintf("/documents/%d", id), a.access(), nil)
	if res.status() == 204 {
		a.deleted = append(a.deleted, id)
	}
}

func (l *load) loginAndOut(a *account) {
	res := l.call("login", "POST", "/auth/login", "", loginForm(a.email, password))
	if res.status() != 200 {
		return
	}
	t := decode[tokens](res.body)
	if l.call("logout", "POST", "/auth/logout", t.AccessToken, nil).status() == 204 {
		l.mu.Lock()
		l.loggedOut = append(l.loggedOut, t)
		l.mu.Unlock()
	}
}

// useEnded sends the access token of a session that has ended.
func (l *load) useEnded() {
	l.mu.Lock()
	var t tokens
	if n := len(l.loggedOut); n > 0 {
		t = l.loggedOut[rand.IntN(n)]
	}
	l.mu.Unlock()
	if t.AccessToken != "" {
		l.call("ended", "GET", "/users/me", t.AccessToken, nil)
	}
}

func (l *load) register() {
	email := fmt.Sprintf("r%d@example.com", rand.Int64())
	body := map[string]string{"email": email, "password": password}
	if l.call("register", "POST", "/auth/register", "", body).status() == 201 {
		l.mu.Lock()
		l.registered = append(l.registered, email)
		l.mu.Unlock()
	}
}
