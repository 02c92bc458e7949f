package faults

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// answerDeadline is the longest that a request may take whatever is broken: two statements, of
// which only one can be slow without failing the request (4 s), and a wait of 1.5 s for a
// connection before each.
const answerDeadline = 7 * time.Second

// poolConnections is how many connections the two replicas of a site have. After a restart of
// PostgreSQL each is found broken by one request at most, which is a 503 if it was a write.
const poolConnections = 16

// judge holds the outcomes of a load against what every fault must meet. healed is when the cause
// was removed. For limit after it requests may be refused; from then on none but a few writes.
func (r *row) judge(l *load, healed time.Time, limit time.Duration) {
	r.t.Helper()
	samples := l.outcomes()
	notes := map[string]int{}
	recovered, lateWrites, unanswered := time.Duration(0), 0, 0
	firstOK := clientTimeout
	for _, s := range samples {
		r.Statuses[s.status]++
		after := s.end.Sub(healed)
		switch {
		case s.status == 0 && l.mayGoUnanswered(s):
			unanswered++
			continue
		case s.status == 503 && !isRead(s.op) && s.start.Sub(healed) > limit:
			lateWrites++
		case s.status == 503 || s.status == 0:
			recovered = max(recovered, after)
		case s.status < 300 && s.start.After(healed):
			firstOK = min(firstOK, after)
		}
		if s.note != "" {
			notes[s.op+": "+s.note]++
		}
	}
	for note, n := range notes {
		r.fault("%d× %s", n, strings.TrimSpace(note))
	}
	r.Seconds = perSecond(samples)
	r.atMost("slowest_ms", milliseconds(quantile(samples, 1)), milliseconds(answerDeadline))
	r.figure("p50_ms", milliseconds(quantile(samples, .5)))
	r.figure("p99_ms", milliseconds(quantile(samples, .99)))
	r.figure("first_success_ms", milliseconds(firstOK))
	r.atMost("recovered_s", recovered.Seconds(), limit.Seconds())
	r.atMost("late_writes_refused", float64(lateWrites), poolConnections)
	if l.restarts != nil {
		r.figure("unanswered", float64(unanswered))
	}
}

// readTime is how long before a signal a request must have been sent, for the process to have read
// some of it by then.
const readTime = 50 * time.Millisecond

// mayGoUnanswered says that the address of a request was being restarted when the request was sent.
func (l *load) mayGoUnanswered(s sample) bool {
	return slices.ContainsFunc(l.restarts, func(r restart) bool {
		from := r.from.Add(-readTime)
		return s.address == r.address && s.start.After(from) && s.start.Before(r.to)
	})
}

// lost compares what was acknowledged with the database and returns what is missing.
func (l *load) lost(db *postgres, database string) (missing []string) {
	conn := db.connect(database)
	defer conn.Close(context.Background())
	count := func(sql string, args ...any) (n int64) {
		if err := conn.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
			missing = append(missing, err.Error())
		}
		return n
	}
	report := func(n int64, what string) {
		if n != 0 {
			missing = append(missing, fmt.Sprintf("%d %s", n, what))
		}
	}
	registered := count(`SELECT count(*) FROM users WHERE email = ANY($1)`, l.registered)
	report(int64(len(l.registered))-registered, "registrations")
	for _, a := range l.accounts {
		name := count(`SELECT split_part(full_name, ' ', 2)::bigint FROM users WHERE id = $1`, a.id)
		if name < int64(a.acked) || name > int64(a.name) {
			missing = append(missing, fmt.Sprintf("%s has name %d; %d was acknowledged, %d sent",
				a.email, name, a.acked, a.name))
		}
		documents := `SELECT count(*) FROM documents WHERE owner_id = $1 AND id = ANY($2)`
		report(int64(len(a.docs))-count(documents, a.id, a.docs), "documents")
		report(count(documents, a.id, a.deleted), "deletions of documents")
		generation := count(`SELECT max(generation) FROM sessions WHERE user_id = $1`, a.id)
		report(max(0, a.generation-generation), "refreshes")
	}
	return append(missing, l.lostSessions()...)
}

// lostSessions returns the logouts and the sessions that were acknowledged and have no effect.
func (l *load) lostSessions() (missing []string) {
	for _, t := range l.loggedOut {
		if a := l.call("ended", "GET", "/users/me", t.AccessToken, nil); a.status() != 401 {
			missing = append(missing, "a logout: "+a.String())
		}
	}
	for _, a := range l.accounts {
		if res := l.call("me", "GET", "/users/me", a.access(), nil); res.status() != 200 {
			missing = append(missing, "a session: "+res.String())
		}
	}
	return missing
}
