package main

// limiter.go bounds what many requests share: hashing slots, memory for bodies and answers, places
// for expensive statements, calls to the provider of embeddings. Each bound is in total and per
// client, so that a client that asks for more than its share waits for itself alone.

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
	queue   int           // waiting requests at most; one client may have half of them
	timeout time.Duration // how long a request waits
	detail  string        // the detail of the 503 for a request that waited in vain

	mu      sync.Mutex
	used    int64
	clients map[clientKey]*clientUse
	waiting []*waiter // in the order of arrival
	refused atomic.Int64
}

// clientKey identifies whose share a request counts in: an account, or before a login the network
// address.
type clientKey struct {
	user    int64
	address netip.Addr
}

// key returns the caller's share. An IPv6 client counts by its /64, of which it has all addresses.
func (c *caller) key() clientKey {
	if c.ID != 0 {
		return clientKey{user: c.ID}
	}
	if c.client.Is6() {
		if network, err := c.client.Prefix(64); err == nil {
			return clientKey{address: network.Addr()}
		}
	}
	return clientKey{address: c.client}
}

type clientUse struct {
	used    int64
	waiting int
}

// waiter is a request that waits. rank is how many units its client had or waited for before it.
type waiter struct {
	key     clientKey
	n, rank int64
	granted chan struct{}
}

// acquire takes n units for key and returns the function that gives them back, which may be called
// again to no effect. More than a share counts as a whole share. It returns errBusy, with the
// limiter's detail, where the queue is full or the time-out is over, and the context's error when
// the client has gone.
func (l *limiter) acquire(ctx context.Context, key clientKey, n int64) (release func(), err error) {
	n = min(n, l.share)
	w, err := l.enqueue(key, n)
	if err != nil {
		return nil, err
	}
	release = sync.OnceFunc(func() { l.release(key, n) })
	if w == nil {
		return release, nil
	}
	timer := time.NewTimer(l.timeout)
	defer timer.Stop()
	select {
	case <-w.granted:
		return release, nil
	case <-timer.C:
		err = l.busy()
	case <-ctx.Done():
		err = ctx.Err()
	}
	if !l.leave(w) { // granted at the same moment
		release()
	}
	return nil, err
}

// enqueue takes n units at once, with a nil waiter, or puts a waiter into the queue.
func (l *limiter) enqueue(key clientKey, n int64) (*waiter, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients == nil {
		l.clients = map[clientKey]*clientUse{}
	}
	c := l.clients[key]
	if c == nil {
		c = &clientUse{}
		l.clients[key] = c
	}
	if c.waiting == 0 && c.used+n <= l.share && l.used+n <= l.total && len(l.waiting) == 0 {
		c.used, l.used = c.used+n, l.used+n
		return nil, nil
	}
	if len(l.waiting) >= l.queue || c.waiting >= (l.queue+1)/2 {
		l.forget(key, c)
		return nil, l.busy()
	}
	w := &waiter{key, n, c.used + int64(c.waiting)*n, make(chan struct{})}
	c.waiting++
	l.waiting = append(l.waiting, w)
	l.grant()
	return w, nil
}

// grant serves waiters while there is room: first those whose client has the least, then those that
// came first. The first that fits its share but not the total holds back all others, so that small
// requests do not starve a large one. The caller holds mu.
func (l *limiter) grant() {
	for {
		next := -1
		for i, w := range l.waiting {
			fits := l.clients[w.key].used+w.n <= l.share
			if fits && (next < 0 || w.rank < l.waiting[next].rank) {
				next = i
			}
		}
		if next < 0 || l.used+l.waiting[next].n > l.total {
			return
		}
		w := l.waiting[next]
		l.waiting = slices.Delete(l.waiting, next, next+1)
		c := l.clients[w.key]
		c.waiting--
		c.used, l.used = c.used+w.n, l.used+w.n
		close(w.granted)
	}
}

func (l *limiter) release(key clientKey, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clients[key]
	c.used, l.used = c.used-n, l.used-n
	l.forget(key, c)
	l.grant()
}

// leave removes a waiter from the queue. It returns false where the waiter has its units already.
func (l *limiter) leave(w *waiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.waiting, w)
	if i < 0 {
		return false
	}
	l.waiting = slices.Delete(l.waiting, i, i+1)
	c := l.clients[w.key]
	c.waiting--
	l.forget(w.key, c)
	l.grant() // it may have held back others
	return true
}

// forget drops a client that has nothing and waits for nothing. The caller holds mu.
func (l *limiter) forget(key clientKey, c *clientUse) {
	if c.used == 0 && c.waiting == 0 {
		delete(l.clients, key)
	}
}

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
