package faults

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nestingLimit is the depth at which readers of JSON give up, encoding/json and jsontext among
// them.
const nestingLimit = 9_990

// nestingPlace is an operation, and a body or a query with a place for a nested value.
type nestingPlace struct {
	method, path, text string // %s stands for the value
	size               int    // bytes of the value
}

// Places that anyone may use, and those of a user. Values that take more than 256 KiB would have to
// wait for one another.
var (
	anonymousPlaces = []nestingPlace{
		{"POST", "/auth/login", `{"username":%s}`, 16<<10 - 20},
		{"POST", "/auth/login", `{"unknown":%s}`, 16<<10 - 20},
		{"POST", "/auth/register", `{"email":%s}`, 16<<10 - 20},
		{"POST", "/auth/register", `%s`, 16 << 10},
		{"POST", "/auth/refresh", `{"refresh_token":%s}`, 16<<10 - 20},
		{"POST", "/auth/revoke", `{"token":%s}`, 16<<10 - 20},
	}
	userPlaces = []nestingPlace{
		{"PUT", "/users/me", `{"full_name":%s}`, 16<<10 - 20},
		{"PUT", "/users/me", `{"unknown":%s}`, 16<<10 - 20},
		{"GET", "/documents?limit=1&filter=%s", "", 11 << 10},
		{"POST", "/documents", `%s`, 256 << 10},
		{"POST", "/documents", `{"unknown":%s}`, 256<<10 - 50},
		{"POST", "/documents/batch", `{"documents":%s}`, 256<<10 - 50},
		{"POST", "/documents", `{"content":"x","embedding":%s}`, 256<<10 - 50},
		{"POST", "/documents", `{"content":"x","embedding":[1,0,0],"metadata":{"a":%s}}`, 16 << 10},
		{"POST", "/documents/search", `{"embedding":[1,0,0],"filter":{"a":%s}}`, 16 << 10},
		{"POST", "/documents/search", `{"embedding":%s}`, 256<<10 - 50},
	}
)

// nestedValues returns values of size bytes, nested as deep as possible: arrays, objects and both
// in turn, closed and cut off.
func nestedValues(size int) (values []string) {
	for _, level := range [][2]string{{"[", "]"}, {`{"a":`, "}"}, {`[{"a":`, "}]"}} {
		depth := min(nestingLimit, (size-1)/(len(level[0])+len(level[1])))
		closed := strings.Repeat(level[0], depth) + "1" + strings.Repeat(level[1], depth)
		if n := size / (len(closed) + 1); n > 1 { // several beside one another
			closed = "[" + strings.Repeat(closed+",", n-1) + "1]"
		}
		values = append(values, closed, strings.Repeat(level[0], size/len(level[0])))
	}
	return values
}

// nestedRequests returns a request for each place and each nested value.
func nestedRequests(places []nestingPlace, token string) (requests [][]byte) {
	for _, p := range places {
		for _, value := range nestedValues(p.size) {
			if p.text == "" {
				path := fmt.Sprintf(p.path, value)
				requests = append(requests, request(p.method, path, token, nil))
				continue
			}
			body := []byte(fmt.Sprintf(p.text, value))
			requests = append(requests, request(p.method, p.path, token, body))
		}
	}
	return requests
}

// TestNesting sends values nested as deep as possible on many kept connections, each of which sends
// several: a reader that recurses grows a stack for each connection, which stays.
func TestNesting(t *testing.T) {
	g := newTarget(t, "nesting")
	g.limit = pick[float64](memoryLimit, 128) // fewer connections take less
	for _, n := range pick([]int{1000, 2000}, []int{150}) {
		length := pick(10*time.Second, 1500*time.Millisecond)
		anonymous := nestedRequests(anonymousPlaces, "")
		g.under(fmt.Sprintf("anonymous_%d", n), length, func() { g.nest(n, anonymous) })
		user := nestedRequests(userPlaces, g.user.AccessToken)
		g.under(fmt.Sprintf("user_%d", n), length, func() { g.nest(n, user) })
	}
	if full {
		g.under("user_16_mib", 10*time.Second, g.nestLargest)
	}
}

// nest sends requests on n kept connections, 400 a second in all.
func (g *target) nest(n int, requests [][]byte) {
	pause := time.Duration(n) * time.Second / 400
	each(n, pause, func(i int) {
		cl := &client{address: g.address()}
		defer cl.closeIdle()
		for k := i; g.attacked(); k++ {
			a := cl.send(requests[k%len(requests)])
			if a.err != nil && g.running() {
				g.fault("no answer to a nested value: %v", a)
			}
			g.count(a)
			time.Sleep(min(pause, time.Until(g.end)))
		}
	})
}

// nestLargest sends documents of 16 MiB that are nested throughout, on four connections.
func (g *target) nestLargest() {
	requests := nestedRequests([]nestingPlace{
		{"POST", "/documents", `{"unknown":%s}`, 16<<20 - 50},
		{"POST", "/documents", `{"content":"x","embedding":%s}`, 16<<20 - 50},
	}, g.user.AccessToken)
	parallel(4, func(i int) {
		cl := &client{address: g.address(), timeout: time.Minute}
		for k := i; g.attacked(); k++ {
			g.count(cl.send(requests[k%len(requests)]))
		}
	})
}

// unreadTexts are contents of the largest size whose JSON is long, or slow to write.
var unreadTexts = []string{"<", "\u0001", `"`, "\u20ac", "\U0001F600"}

// TestUnreadAnswers has clients ask for the longest answers and not read them.
func TestUnreadAnswers(t *testing.T) {
	g := newTarget(t, "unread-answers")
	ids := g.storeLongDocuments(pick(100, 40))
	token := g.user.AccessToken
	search := func(body string) []byte {
		return request("POST", "/documents/search", token, []byte(body))
	}
	page := request("GET", "/documents?limit=100", token, nil)
	requests := [][]byte{page,
		search(`{"embedding":[1,0,0],"limit":100}`),
		search(`{"mode":"text","query":"needle","limit":100}`),
		search(`{"mode":"hybrid","query":"needle","embedding":[1,0,0],"limit":100}`),
	}
	var single [][]byte
	for _, id := range ids {
		single = append(single, request("GET", fmt.Sprintf("/documents/%d", id), token, nil))
	}
	length := pick(15*time.Second, 2*time.Second)
	g.under("pages_40", length, func() { g.leaveUnread(40, [][]byte{page}) })
	g.under("searches_40", length, func() { g.leaveUnread(40, requests[1:]) })
	for _, n := range pick([]int{400, 2000}, nil) {
		g.under(fmt.Sprintf("mixed_%d", n), length, func() { g.leaveUnread(n, requests) })
		g.under(fmt.Sprintf("single_%d", n), length, func() { g.leaveUnread(n, single) })
	}
}

// storeLongDocuments stores n documents of 65,536 characters for the user and returns their ids.
func (g *target) storeLongDocuments(n int) (ids []int64) {
	for len(ids) < n {
		var docs []map[string]any
		for i := range 10 {
			text := "needle " + strings.Repeat(unreadTexts[(len(ids)+i)%len(unreadTexts)], 65_529)
			docs = append(docs, map[string]any{"content": text, "embedding": []int{1, i, 1}})
		}
		body := map[string]any{"documents": docs}
		a := g.must(201, "POST", "/documents", g.user.AccessToken, body)
		for _, d := range decode[struct{ Documents []struct{ ID int64 } }](a.body).Documents {
			ids = append(ids, d.ID)
		}
	}
	return ids
}

// leaveUnread sends a request on each of n connections and reads no more than the beginning of the
// answer. A client that is refused asks again later.
func (g *target) leaveUnread(n int, requests [][]byte) {
	each(n, time.Until(g.end)/4, func(i int) {
		for k := i; g.attacked(); k++ {
			c, err := dial(g.address())
			if err != nil {
				return
			}
			c.shrinkBuffer()
			c.SetDeadline(g.end.Add(time.Second))
			request := requests[k%len(requests)]
			c.Write(request)
			time.Sleep(min(time.Second, time.Until(g.end)))
			a := c.readHead(callOf(request))
			g.count(a)
			if a.status() == 200 {
				time.Sleep(time.Until(g.end))
			} else {
				time.Sleep(min(2*time.Second, time.Until(g.end)))
			}
			c.Close()
		}
	})
}

// shrinkBuffer makes the connection hold few bytes that nobody has read.
func (c *conn) shrinkBuffer() {
	if raw, err := c.Conn.(syscall.Conn).SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10)
		})
	}
}

// dripping is a body that is announced in full and hardly comes.
type dripping struct {
	path, token string
	announced   int // bytes
	atOnce      int // bytes that come with the headers; the others come one a second
}

// TestDrippingBodies has 2,000 connections that announce bodies and send them a byte a second: of
// one user, with a token whose session has ended, and of nobody.
func TestDrippingBodies(t *testing.T) {
	g := newTarget(t, "dripping-bodies")
	g.limit = pick[float64](memoryLimit, 128) // fewer connections take less
	ended := g.client.login(t, g.user.email, password).AccessToken
	g.must(204, "POST", "/auth/logout", ended, nil)
	n, length := pick(2000, 500), pick(12*time.Second, 1500*time.Millisecond)
	phase := func(name string, drips ...dripping) {
		g.under(name, length, func() { g.drip(n, drips) })
	}
	user := g.user.AccessToken
	phase("user_256_kib", dripping{"/documents", user, 256 << 10, 255 << 10})
	if full {
		phase("user_256_kib_slow", dripping{"/documents", user, 256 << 10, 1})
		phase("user_1_mib", dripping{"/documents", user, 1 << 20, 255 << 10},
			dripping{"/documents/search", user, 1 << 20, 1})
	}
	phase("user_16_mib", dripping{"/documents", user, 16 << 20, 255 << 10},
		dripping{"/documents", user, 16 << 20, 1})
	phase("ended", dripping{"/documents", ended, 256 << 10, 255 << 10},
		dripping{"/documents", ended, 16 << 20, 255 << 10})
	phase("anonymous", dripping{"/auth/login", "", 16 << 10, 16<<10 - 64},
		dripping{"/auth/register", "", 16 << 10, 16<<10 - 64},
		dripping{"/auth/refresh", "", 16 << 10, 1})
}

// drip drips bodies on n connections, every other one in chunks. A connection that the service has
// closed is opened again 3 s later.
func (g *target) drip(n int, drips []dripping) {
	spaces := bytes.Repeat([]byte(" "), 1<<20)
	each(n, time.Until(g.end)/4, func(i int) {
		d, chunked := drips[i/2%len(drips)], i%2 == 1
		length := d.announced
		if chunked {
			length = -1
		}
		request := head("POST", d.path, d.token, jsonMedia, length)
		if chunked {
			request = fmt.Appendf(request, "%x\r\n", d.announced)
		}
		for g.attacked() {
			g.dripOne(request, spaces[:d.atOnce])
			time.Sleep(min(3*time.Second, time.Until(g.end)))
		}
	})
}

// dripOne sends a request and drips the rest of its body until the service answers or closes.
func (g *target) dripOne(request, atOnce []byte) {
	c, err := dial(g.address())
	if err != nil {
		return
	}
	defer c.Close()
	c.SetWriteDeadline(g.end)
	c.Write(request)
	c.Write(atOnce)
	for g.attacked() {
		c.SetReadDeadline(time.Now().Add(min(time.Second, time.Until(g.end))))
		if _, err := c.r.Peek(1); err == nil {
			g.count(c.readHead(callOf(request)))
			return
		} else if !isTimeout(err) {
			return
		}
		c.Write([]byte(" "))
	}
}
