package main

// gather.go lets calls of the store share statements. A call that finds fewer statements of its kind in flight than
// may be makes one, with all that have come at the same moment; those that come meanwhile go together in the next. So
// nobody waits for company, a busy server makes fewer and larger statements and fewer commits, and nothing is stale,
// because each statement starts after the calls that it serves have come. A shared statement never waits for a lock on
// a row: it passes over what others hold, and that call is made again alone. So nobody waits for another's row.

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// How many statements of a kind run at once. With more, fewer calls share one, or one commit: BENCHMARKS.md has the
	// figures. A second look-up spares those of a quiet server the wait for the first.
	maxLookups, maxRotations, maxInsertions = 2, 1, 1
	// maxTogether is how many calls share one: 100 inserts take some 10 ms.
	maxTogether = 100
	// overtime is how long a call waits for statements in flight, which take some 2 ms on a busy machine. Then they
	// hang, or the network is slow, and those that wait get one beside them.
	overtime = 100 * time.Millisecond
)

// errAlone tells that a shared statement has passed over a call, and has done nothing for it.
var errAlone = errors.New("not to be shared")

// gathering is the calls of one kind. A is a pointer to the arguments and to what came of them; all pointers share one
// copy of this code in the program.
type gathering[A any] struct {
	maxFlying int
	overtime  time.Duration
	one       func(args A) error           // makes the statement of a call that has no company
	many      func(calls []*call[A]) error // makes one for several, and sets the err of each; an error of its own is everybody's

	mu      sync.Mutex
	flying  int
	waiting []*call[A]
	late    *time.Timer // runs while some are waiting
}

// call is one that shares its statement.
type call[A any] struct {
	args A
	err  error
	done chan struct{} // closed when err is there
}

// newGathering lets maxFlying statements run at once. Where one is nil, many does for a single call too.
func newGathering[A any](maxFlying int, one func(A) error, many func([]*call[A]) error) *gathering[A] {
	g := &gathering[A]{maxFlying: maxFlying, overtime: overtime, one: one, many: many}
	g.late = time.AfterFunc(time.Hour, g.overtake)
	g.late.Stop()
	return g
}

// do makes a call and returns its error, and what came of it where args tell.
func (g *gathering[A]) do(args A) error {
	c := g.wait(args)
	if c == nil {
		for range 2 { // calls that have come by now get this far too; twice gathers more than once, and more no more
			runtime.Gosched()
		}
		others := g.company()
		if others == nil && g.one != nil {
			defer func() { g.flyOn(g.land()) }()
			return g.one(args)
		}
		c = newCall(args)
		g.flyOn(g.fly(append(others, c)))
	}
	<-c.done
	return c.err
}

func newCall[A any](args A) *call[A] { return &call[A]{args: args, done: make(chan struct{})} }

// wait returns a call that waits for the next statement, or nil where it may make one of its own.
func (g *gathering[A]) wait(args A) *call[A] {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flying < g.maxFlying {
		g.flying++
		return nil
	}
	c := newCall(args)
	g.waiting = append(g.waiting, c)
	if len(g.waiting) == 1 {
		g.late.Reset(g.overtime)
	}
	return c
}

// company takes those that wait, for the statement of one that has not waited.
func (g *gathering[A]) company() []*call[A] {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.take(maxTogether - 1)
}

// take takes up to most of those that wait, for a holder of mu.
func (g *gathering[A]) take(most int) (batch []*call[A]) {
	n := min(len(g.waiting), most)
	batch, g.waiting = g.waiting[:n:n], g.waiting[n:]
	if len(g.waiting) == 0 {
		g.waiting = nil
		g.late.Stop()
	}
	return batch
}

// land ends a statement, and returns those that wait where they may have the next.
func (g *gathering[A]) land() (next []*call[A]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) > 0 && g.flying <= g.maxFlying {
		return g.take(maxTogether)
	}
	g.flying--
	return nil
}

// overtake makes a statement beside those that are allowed, for those that have waited for overtime.
func (g *gathering[A]) overtake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if batch := g.take(maxTogether); batch != nil {
		g.flying++
		g.flyOn(batch)
	}
	if g.waiting != nil {
		g.late.Reset(g.overtime)
	}
}

// flyOn makes a statement for batch, then one for those who wait by then, and so on, beside the caller.
func (g *gathering[A]) flyOn(batch []*call[A]) {
	if batch == nil {
		return
	}
	go func(batch []*call[A]) {
		for batch != nil {
			batch = g.fly(batch)
		}
	}(batch)
}

// fly makes one statement for all of batch, and returns those that are to have the next, so that it starts before
// anything is made of the answers.
func (g *gathering[A]) fly(batch []*call[A]) (next []*call[A]) {
	var err error
	defer func() {
		if cause := recover(); cause != nil { // it would end the program: there is no request around it
			err = fmt.Errorf("panic in a shared statement: %v\n%s", cause, debug.Stack())
		}
		next = g.land()
		for _, c := range batch {
			if err != nil {
				c.err = err
			}
			close(c.done)
		}
	}()
	err = g.many(batch)
	return nil
}
