package faults

import (
	"sync"
	"time"
)

// probe asks GET /users/me 50 times a second on kept connections, whatever the answers do: a slow
// one delays none of the next.
type probe struct {
	client  client
	token   string
	done    chan struct{}
	wg      sync.WaitGroup
	mu      sync.Mutex
	samples []sample
}

const probeInterval = 20 * time.Millisecond

func startProbe(address, token string) *probe {
	p := &probe{client: client{address: address}, token: token, done: make(chan struct{})}
	p.wg.Go(func() {
		tick := time.NewTicker(probeInterval)
		defer tick.Stop()
		for {
			select {
			case <-p.done:
				return
			case <-tick.C:
				p.wg.Go(p.ask)
			}
		}
	})
	return p
}

func (p *probe) ask() {
	s := sample{start: time.Now(), op: "me"}
	a := p.client.do("GET", "/users/me", p.token, nil)
	s.end, s.status = time.Now(), a.status()
	if s.status != 200 && !isSlow(a) {
		s.note = a.String()
	}
	p.mu.Lock()
	p.samples = append(p.samples, s)
	p.mu.Unlock()
}

// stop ends the probe and returns its samples.
func (p *probe) stop() []sample {
	close(p.done)
	p.wg.Wait()
	p.client.closeIdle()
	return p.samples
}

// probed runs f while a probe asks a replica, and returns the samples of the probe. An answer other
// than 200 is a fault.
func (r *row) probed(target *replica, token string, f func()) []sample {
	r.t.Helper()
	p := startProbe(target.address(), token)
	f()
	samples := p.stop()
	for _, s := range samples {
		r.Statuses[s.status]++
		if s.note != "" {
			r.fault("%s", s.note)
		}
	}
	r.Seconds = append(r.Seconds, perSecond(samples)...)
	return samples
}

const (
	keptMemory = 64          // MiB: see settle
	settleTime = time.Minute // likewise
)

// settle waits until the resident memory of a replica is within 64 MiB of what it was before, for a
// minute at most, while ordinary requests go on: Go returns memory after a collection, and collects
// when it allocates. 64 MiB is what may stay: twice the heap of a service at work, which is what Go
// keeps between collections, and the free memory of the pools of connections and buffers.
func (r *row) settle(target *replica, token string, before float64) {
	r.t.Helper()
	cl := &client{address: target.address()}
	took, _ := eventually(settleTime, func() bool {
		for range 20 {
			cl.do("GET", "/users/me", token, nil)
		}
		return target.memory("VmRSS") <= before+keptMemory || !target.running()
	})
	cl.closeIdle()
	r.figure("settled_s", took.Seconds())
	r.figure("rss_before_mib", before)
	r.atMost("rss_after_mib", target.memory("VmRSS"), before+keptMemory)
}
