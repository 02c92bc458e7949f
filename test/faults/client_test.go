package faults

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	apiPrefix     = "/api/v1"
	clientTimeout = 10 * time.Second // after which a request counts as unanswered
)

// client speaks HTTP/1.1 to one address over connections that it keeps. It never repeats a request,
// as net/http's client does by itself.
type client struct {
	address string
	timeout time.Duration // 0: clientTimeout
	mu      sync.Mutex
	idle    []*conn
}

// conn is a connection of a client.
type conn struct {
	net.Conn
	r      *bufio.Reader
	reused bool // it has carried a request before
}

var errRefused = errors.New("connection refused") // nothing was sent

// dial opens a connection.
func dial(address string) (*conn, error) {
	c, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return nil, errRefused
	}
	return &conn{Conn: c, r: bufio.NewReader(c)}, nil
}

// closedByPeer says that the other side has closed an idle connection, or sent what nobody asked
// for.
func (c *conn) closedByPeer() bool {
	raw, err := c.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	quiet := false
	err = raw.Control(func(fd uintptr) {
		const flags = syscall.MSG_PEEK | syscall.MSG_DONTWAIT
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), flags)
		quiet = err == syscall.EAGAIN
	})
	return err != nil || !quiet
}

// exchange writes a request and reads the answer.
func (c *conn) exchange(request []byte) (*http.Response, []byte, error) {
	if _, err := c.Write(request); err != nil {
		return nil, nil, err
	}
	return c.read()
}

// read reads an answer.
func (c *conn) read() (*http.Response, []byte, error) {
	c.reused = true
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(res.Body)
	return res, body, err
}

// get returns an idle connection, or else a new one.
func (cl *client) get() (*conn, error) {
	for {
		cl.mu.Lock()
		n := len(cl.idle)
		if n == 0 {
			cl.mu.Unlock()
			return dial(cl.address)
		}
		c := cl.idle[n-1]
		cl.idle = cl.idle[:n-1]
		cl.mu.Unlock()
		if !c.closedByPeer() {
			return c, nil
		}
		c.Close()
	}
}

// put keeps a connection for the next request, unless the answer said that it closes.
func (cl *client) put(c *conn, res *http.Response) {
	if res.Close {
		c.Close()
		return
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.idle = append(cl.idle, c)
}

// closeIdle closes the connections that are not in use.
func (cl *client) closeIdle() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for _, c := range cl.idle {
		c.Close()
	}
	cl.idle = nil
}

// head returns the text of a request up to its body, which the caller appends: length is that of
// the body, -1 for a chunked one, 0 for none.
func head(method, path, token, media string, length int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s%s HTTP/1.1\r\nHost: x\r\n", method, apiPrefix, path)
	if token != "" {
		fmt.Fprintf(&b, "Authorization: Bearer %s\r\n", token)
	}
	switch {
	case length < 0:
		fmt.Fprintf(&b, "Content-Type: %s\r\nTransfer-Encoding: chunked\r\n", media)
	case length > 0:
		fmt.Fprintf(&b, "Content-Type: %s\r\nContent-Length: %d\r\n", media, length)
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

const jsonMedia = "application/json"

// encode returns a body and its media type: nil is none, []byte is JSON already, url.Values is a
// form, and anything else is encoded as JSON.
func encode(body any) (text []byte, media string) {
	switch b := body.(type) {
	case nil:
		return nil, ""
	case []byte:
		return b, jsonMedia
	case url.Values:
		return []byte(b.Encode()), "application/x-www-form-urlencoded"
	}
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // the tests' own values always encode
	}
	return text, jsonMedia
}

// request returns the text of a request.
func request(method, path, token string, body any) []byte {
	text, media := encode(body)
	return append(head(method, path, token, media, len(text)), text...)
}

// do sends one request and returns the answer.
func (cl *client) do(method, path, token string, body any) answer {
	return cl.send(request(method, path, token, body))
}

// send sends the text of one request and returns the answer.
func (cl *client) send(request []byte) (a answer) {
	a.call = callOf(request)
	c, err := cl.get()
	if err != nil {
		a.err = err
		return a
	}
	a.reused = c.reused
	timeout := cl.timeout
	if timeout == 0 {
		timeout = clientTimeout
	}
	c.SetDeadline(time.Now().Add(timeout))
	a.Response, a.body, a.err = c.exchange(request)
	if a.err != nil {
		c.Close()
		return a
	}
	c.SetDeadline(time.Time{})
	cl.put(c, a.Response)
	return a
}

// isTimeout says that a deadline has passed.
func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// answer is what came of a request: an error, or a response with its body.
type answer struct {
	*http.Response
	body   []byte
	err    error
	reused bool   // the connection had carried a request before
	call   string // method and path
}

// String returns what a fault says of an answer.
func (a answer) String() string {
	if a.err != nil {
		return fmt.Sprintf("%s: %v", a.call, a.err)
	}
	return fmt.Sprintf("%s = %d %.200s", a.call, a.StatusCode, a.body)
}

// callOf returns the method and the beginning of the path of a request.
func callOf(request []byte) string {
	line, _, _ := bytes.Cut(request, []byte(" HTTP/"))
	return string(line[:min(len(line), 60)])
}

// status returns the status of the answer, 0 where there is none.
func (a answer) status() int {
	if a.err != nil {
		return 0
	}
	return a.StatusCode
}

// decode reads a body. One that does not fit gives the zero value.
func decode[T any](body []byte) (v T) {
	json.Unmarshal(body, &v)
	return v
}

// tokens are the answer to a login or a refresh.
type tokens struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
}

// member is an account with a session.
type member struct {
	id    int64
	email string
	tokens
}

// must sends a request of a test's own and fails the test where the status is not want.
func (cl *client) must(
	t testing.TB, want int, method, path, token string, body any,
) answer {
	t.Helper()
	a := cl.do(method, path, token, body)
	for n := 0; isSlow(a) && n < 10; n++ {
		time.Sleep(time.Second)
		a = cl.do(method, path, token, body)
	}
	if a.status() != want {
		t.Fatalf("%v, want %d", a, want)
	}
	return a
}

// signUp registers an account and logs in.
func (cl *client) signUp(t testing.TB, email string) member {
	t.Helper()
	body := map[string]string{"email": email, "password": password, "full_name": "n 0"}
	a := cl.must(t, 201, "POST", "/auth/register", "", body)
	id := decode[struct{ ID int64 }](a.body).ID
	return member{id, email, cl.login(t, email, password)}
}

// login logs in.
func (cl *client) login(t testing.TB, email, password string) tokens {
	t.Helper()
	form := loginForm(email, password)
	return decode[tokens](cl.must(t, 200, "POST", "/auth/login", "", form).body)
}

func loginForm(email, password string) url.Values {
	return url.Values{"username": {email}, "password": {password}}
}
