package main

// limiter.go bounds what requests share: hashing slots, memory for bodies and answers, connections,
// slots for expensive statements, calls to the provider of embeddings. Each bound is in total and
// per client, so that a client that asks for more than its share waits for itself alone.

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// limiter hands out units of one shared thing. It is safe for concurrent use.
type limiter struct {
	total   int64         // units in use at most
	share   int64         // of these, by one client
	queue   int           // waiting requests at most; three quarters of them by one client
	timeout time.Duration // how long a request waits
	detail  string        // the detail of the 503 for a request that waited in vain

	mu      sync.Mutex
	used    int64
	usedBy  map[clientKey]int64
	waiting []*waiter // in the order of arrival
	refused atomic.Int64
}

// clientKey names whose share a request counts in: an account's, or an address's before a login.
type clientKey struct {
	user    int64
	address netip.Addr
}

// key returns the caller's share. An IPv6 client counts by its /64, of which it has all addresses.
func (c *caller) key() clientKey {
	if c.ID != 0 {
		return clientKey{user: c.ID}
	}
	network, _ := c.ip.Prefix(min(64, c.ip.BitLen()))
	return clientKey{address: network.Addr()}
}

// enter counts a request among those of its user. What ends access, as a logout does, is not
// counted, so that whoever floods an account with a stolen token cannot keep its owner from that.
func (w *responseWriter) enter(ctx context.Context, user int64) (err error) {
	if a := w.route.access; a == users || a == admins {
		w.releaseRequest, err = w.server.requests.acquire(ctx, clientKey{user: user}, 1)
	}
	return err
}

// leave gives the slot of enter back while a body comes: else it belongs to the slowest sender.
func (w *responseWriter) leave() {
	if w.releaseRequest != nil {
		w.releaseRequest()
	}
}

// reserve takes the bytes of a large answer of s.answers until its client has read it. What writes
// large documents calls it before: a refusal afterwards would make clients repeat what was stored.
func (s *server) reserve(ctx context.Context, c *caller, size int) (err error) {
	if size > largeAnswer && c.releaseAnswer == nil {
		c.releaseAnswer, err = s.answers.acquire(ctx, c.key(), int64(size))
	}
	return err
}

// waiter is a request for n units, 0 after release. rank is how many its client had or waited for
// when it came.
type waiter struct {
	client  clientKey
	n, rank int64
	granted chan struct{} // closed when it has them; nil: granted without waiting
}

// acquire takes n units for a client, at most its share, and returns the function that gives them
// back, which may be called twice. It returns errBusy with the limiter's detail where the queue is
// full or the time-out is over, and the context's error when the client has gone.
func (l *limiter) acquire(ctx context.Context, client clientKey, n int64) (func(), error) {
	w := &waiter{client: client, n: min(n, l.share)}
	release := func() { l.release(w) }
	if !l.enqueue(w) {
		return nil, l.busy()
	}
	if w.granted == nil {
		return release, nil
	}
	timer := time.NewTimer(l.timeout)
	defer timer.Stop()
	var err error
	select {
	case <-w.granted:
		return release, nil
	case <-timer.C:
		err = l.busy()
	case <-ctx.Done():
		err = ctx.Err()
	}
	release()
	return nil, err
}

// enqueue grants w at once or puts it into the queue. It returns false where that is full.
func (l *limiter) enqueue(w *waiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := 0 // waiters of the same client
	w.rank = l.usedBy[w.client]
	for _, other := range l.waiting {
		if other.client == w.client {
			own++
			w.rank += other.n
		}
	}
	l.waiting = append(l.waiting, w)
	l.grant()
	if !slices.Contains(l.waiting, w) {
		return true
	}
	if len(l.waiting) > l.queue || own >= l.queue-l.queue/4 {
		l.waiting = l.waiting[:len(l.waiting)-1]
		return false
	}
	w.granted = make(chan struct{})
	return true
}

// grant gives units to waiters: the lowest rank first, then the first to come. It passes over those
// beyond their share, and stops at one beyond the total, so that small requests do not starve a
// large one. The caller holds mu.
func (l *limiter) grant() {
	for {
		next := -1
		for i, w := range l.waiting {
			inShare := l.usedBy[w.client]+w.n <= l.share
			if inShare && (next < 0 || w.rank < l.waiting[next].rank) {
				next = i
			}
		}
		if next < 0 || l.used+l.waiting[next].n > l.total {
			return
		}
		w := l.waiting[next]
		l.waiting = slices.Delete(l.waiting, next, next+1)
		if l.usedBy == nil {
			l.usedBy = map[clientKey]int64{}
		}
		l.used += w.n
		l.usedBy[w.client] += w.n
		if w.granted != nil {
			close(w.granted)
		}
	}
}

// release gives back the units of w, or takes it out of the queue.
func (l *limiter) release(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.waiting, w); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	} else {
		l.used -= w.n
		if l.usedBy[w.client] -= w.n; l.usedBy[w.client] == 0 {
			delete(l.usedBy, w.client)
		}
	}
	w.n = 0 // for a second call
	l.grant()
}

// busy counts and returns a refusal.
func (l *limiter) busy() error {
	l.refused.Add(1)
	return errBusy.withDetail(l.detail)
}

// full reports whether acquire would refuse at once.
func (l *limiter) full() bool {
	_, waiting := l.state()
	return waiting >= l.queue
}

// state returns the units in use and the requests that wait.
func (l *limiter) state() (used int64, waiting int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used, len(l.waiting)
}
