package faults

import (
	"bufio"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestShutdown sends SIGTERM in the middle of POSTs, without a balancer. As with any HTTP server,
// every request that the process has begun to read is answered; a connection that it has not
// accepted is refused or reset, and so is an idle one on which the next request crosses the close.
func TestShutdown(t *testing.T) {
	r := newRow(t, "sigterm-mid-post")
	db := sharedPostgres(t)
	db.createDatabase("shutdown")
	target := startReplica(t, db.url("shutdown"))
	token := (&client{address: target.address()}).signUp(t, "a@example.com").AccessToken
	p := &posters{target: target, token: token}
	var wg sync.WaitGroup
	for i := range 60 {
		pause := []time.Duration{0, 20, 100, 3000}[i%4] * time.Millisecond
		wg.Go(func() { p.run(pause, i%3 == 0) })
	}
	time.Sleep(5 * time.Second)
	signalled := time.Now()
	target.cmd.Process.Signal(syscall.SIGTERM)
	wg.Wait()
	target.terminate()
	answered, underWay, crossed, cut := 0, 0, 0, 0
	for _, o := range p.outcomes {
		read := o.start.Before(signalled.Add(-surelyRead)) || o.op == "continued"
		switch {
		case o.status == 201:
			answered++
			if read && o.end.After(signalled) {
				underWay++
			}
		case o.status == 503 && !full: // see isSlow
		case o.status != 0:
			r.fault("a POST was answered with %d", o.status)
		case read:
			cut++
			r.fault("no answer to a POST sent %v before the signal: %s",
				signalled.Sub(o.start), o.note)
		default:
			crossed++
		}
	}
	r.figure("answered", float64(answered))
	r.figure("under_way", float64(underWay))
	r.figure("crossed", float64(crossed))
	r.atMost("cut", float64(cut), 0)
	if answered < 100 || underWay < 10 {
		r.fault("too few POSTs were under way")
	}
}

// surelyRead is how long before a signal the head of a request must have been sent, for the process
// to have read it by then however busy the machine is.
const surelyRead = 2 * time.Second

// posters send POSTs whose bodies come late, until the server is gone.
type posters struct {
	target   *replica
	token    string
	mu       sync.Mutex
	outcomes []sample
}

// run sends one POST after another on a kept connection. With expect it asks for leave to send each
// body: the leave shows that the server has read the headers.
func (p *posters) run(pause time.Duration, expect bool) {
	cl := &client{address: p.target.address()}
	for {
		c, err := cl.get()
		if err != nil {
			return // it listens no more
		}
		o := sample{start: time.Now(), op: "sent"}
		c.SetDeadline(time.Now().Add(clientTimeout))
		res, err := p.post(c, &o, pause, expect)
		if o.end = time.Now(); err != nil {
			o.note = err.Error()
		} else {
			o.status = res.StatusCode
		}
		p.mu.Lock()
		p.outcomes = append(p.outcomes, o)
		p.mu.Unlock()
		if err != nil {
			c.Close()
			continue
		}
		cl.put(c, res)
		time.Sleep(pause / 4)
	}
}

// post sends one POST and changes o.op to "continued" when the server asks for the body.
func (p *posters) post(c *conn, o *sample, pause time.Duration, expect bool) (
	*http.Response, error,
) {
	body := []byte(`{"content":"text","embedding":[1,2,3]}`)
	request := head("POST", "/documents", p.token, jsonMedia, len(body))
	if expect {
		request = append(request[:len(request)-2], "Expect: 100-continue\r\n\r\n"...)
	} else {
		request = append(request, body[:9]...)
		body = body[9:]
	}
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	o.start = time.Now()
	if expect {
		if err := readContinue(c.r); err != nil {
			return nil, err
		}
		o.op = "continued"
	}
	time.Sleep(pause)
	res, _, err := c.exchange(body)
	return res, err
}

// readContinue reads a 100 Continue.
func readContinue(r *bufio.Reader) error {
	res, err := http.ReadResponse(r, nil)
	if err == nil && res.StatusCode != http.StatusContinue {
		err = http.ErrNotSupported
	}
	return err
}
