package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// mustAcquire acquires n units for a user or fails the test.
func mustAcquire(t *testing.T, l *limiter, user, n int64) (release func()) {
	t.Helper()
	release, err := l.acquire(t.Context(), clientKey{user: user}, n)
	if err != nil {
		t.Fatalf("acquire(%d) for user %d = %v", n, user, err)
	}
	return release
}

// enqueue starts to acquire n units for a user and waits until it is in the queue.
func enqueue(t *testing.T, l *limiter, user, n int64) (granted chan error) {
	t.Helper()
	_, before := l.state()
	granted = make(chan error, 1)
	go func() {
		_, err := l.acquire(t.Context(), clientKey{user: user}, n)
		granted <- err
	}()
	eventually(t, "the queue", func() bool { _, waiting := l.state(); return waiting > before })
	return granted
}

// TestLimiterShare checks that a client which has used its share waits for its own units, and that
// other clients do not wait for it.
func TestLimiterShare(t *testing.T) {
	t.Parallel()
	l := &limiter{total: 4, share: 2, queue: 10, timeout: time.Minute}
	release := mustAcquire(t, l, 1, 1)
	mustAcquire(t, l, 1, 1)
	own := enqueue(t, l, 1, 1)
	mustAcquire(t, l, 2, 2)()
	mustAcquire(t, l, 2, 9)() // more than a share counts as a share
	select {
	case err := <-own:
		t.Fatalf("a third unit for a share of two: %v", err)
	default:
	}
	release()
	release() // the second call has no effect
	if err := <-own; err != nil {
		t.Errorf("the unit that came free: %v", err)
	}
	if used, waiting := l.state(); used != 2 || waiting != 0 {
		t.Errorf("then %d are used and %d wait, want 2 and 0", used, waiting)
	}
}

// TestLimiterOrder checks that the client with the fewest units used or requested is next, then the
// oldest request, and that small requests do not starve a large one.
func TestLimiterOrder(t *testing.T) {
	t.Parallel()
	l := &limiter{total: 1, share: 1, queue: 10, timeout: time.Minute}
	release := mustAcquire(t, l, 1, 1)
	second := enqueue(t, l, 1, 1)
	third := enqueue(t, l, 1, 1)
	other := enqueue(t, l, 2, 1)
	release()
	<-other
	select {
	case <-second:
		t.Error("the greedy client is served before the other")
	case <-third:
		t.Error("the greedy client is served before the other")
	default:
	}
	l = &limiter{total: 4, share: 4, queue: 10, timeout: time.Minute}
	release = mustAcquire(t, l, 1, 2)
	large := enqueue(t, l, 2, 3)
	small := enqueue(t, l, 3, 1)
	release()
	if err := <-large; err != nil {
		t.Error(err)
	}
	if err := <-small; err != nil {
		t.Error(err)
	}
}

// TestLimiterRefuses covers a full queue, an expired timeout and a cancelled request.
func TestLimiterRefuses(t *testing.T) {
	t.Parallel()
	l := &limiter{total: 1, share: 1, queue: 4, timeout: time.Minute, detail: "a reason"}
	mustAcquire(t, l, 1, 1)
	for range 3 {
		enqueue(t, l, 1, 1)
	}
	_, err := l.acquire(t.Context(), clientKey{user: 1}, 1) // a quarter of the queue is for others
	var p *problem
	if !errors.As(err, &p) || p.code != "busy" || p.detail != "a reason" {
		t.Errorf("a client's fourth in a queue of four = %v", err)
	}
	enqueue(t, l, 2, 1)
	_, err = l.acquire(t.Context(), clientKey{user: 4}, 1)
	if !errors.Is(err, errBusy) || !l.full() {
		t.Errorf("a fifth in a queue of four = %v", err)
	}
	l = &limiter{total: 1, share: 1, queue: 4, timeout: 50 * time.Millisecond}
	mustAcquire(t, l, 1, 1)
	start := time.Now()
	_, err = l.acquire(t.Context(), clientKey{user: 2}, 1)
	if took := time.Since(start); !errors.Is(err, errBusy) || took < l.timeout {
		t.Errorf("after the time-out: %v in %v", err, took)
	}
	l.timeout = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := l.acquire(ctx, clientKey{user: 2}, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that has gone: %v", err)
	}
	if used, waiting := l.state(); used != 1 || waiting != 0 || len(l.usedBy) != 1 {
		t.Errorf("then %d are used, %d wait, %d clients", used, waiting, len(l.usedBy))
	}
}

// TestLimiterAtOnce makes many concurrent requests of all sizes: the limits hold, and every unit is
// released.
func TestLimiterAtOnce(t *testing.T) {
	t.Parallel()
	l := &limiter{total: 10, share: 5, queue: 100, timeout: 20 * time.Millisecond}
	var used atomic.Int64
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() {
			for range 50 {
				n := 1 + rand.Int64N(5)
				timeout := time.Duration(rand.IntN(30)) * time.Millisecond
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				release, err := l.acquire(ctx, clientKey{user: int64(i % 7)}, n)
				if err == nil {
					if now := used.Add(n); now > l.total {
						t.Errorf("%d units are in use, at most %d may be", now, l.total)
					}
					time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
					used.Add(-n)
					release()
				}
				cancel()
			}
		})
	}
	group.Wait()
	if used, waiting := l.state(); used != 0 || waiting != 0 || len(l.usedBy) != 0 {
		t.Errorf("then %d are used, %d wait, %d clients", used, waiting, len(l.usedBy))
	}
}

func TestClientKey(t *testing.T) {
	t.Parallel()
	key := func(address string, id int64) clientKey {
		c := &caller{ip: netip.MustParseAddr(address)}
		c.ID = id
		return c.key()
	}
	if key("192.0.2.1", 0) == key("192.0.2.2", 0) || key("192.0.2.1", 7) != key("192.0.2.2", 7) {
		t.Error("before login a client is its address, after it the account")
	}
	if key("2001:db8::1", 0) != key("2001:db8::ffff:2", 0) ||
		key("2001:db8::1", 0) == key("2001:db8:0:1::1", 0) {
		t.Error("an IPv6 client is its /64")
	}
}
