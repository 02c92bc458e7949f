package faults

import (
	"bytes"
	"strconv"
	"testing"
)

// TestRestore restores a back-up into a fresh database. Who registered after the back-up is gone,
// and the next who registers may get the same id; the tokens of the first must open nothing.
func TestRestore(t *testing.T) {
	r := newRow(t, "restore")
	db := sharedPostgres(t)
	db.createDatabase("restore_before")
	before := startReplica(t, db.url("restore_before"))
	cl := &client{address: before.address()}
	cl.signUp(t, "kept@example.com")
	server := []string{"-h", "127.0.0.1", "-p", strconv.Itoa(db.port), "-U", "postgres"}
	dump := db.command("pg_dump", append(server, "-Fc", "restore_before")...)
	var backup, stderr bytes.Buffer
	dump.Stdout, dump.Stderr = &backup, &stderr
	if err := dump.Run(); err != nil {
		t.Fatalf("pg_dump: %v\n%s", err, &stderr)
	}
	lost := []member{cl.signUp(t, "lost@example.com")}
	if a := cl.do("GET", "/users/me", lost[0].AccessToken, nil); a.status() != 200 {
		t.Fatalf("before the restore: %v", a)
	}
	before.terminate()

	db.createDatabase("restore_after")
	restore := db.command("pg_restore", append(server, "-1", "--exit-on-error",
		"-d", "restore_after")...)
	restore.Stdin = &backup
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("pg_restore: %v\n%s", err, out)
	}
	after := startReplica(t, db.url("restore_after"))
	cl = &client{address: after.address()}
	r.opensNothing(cl, lost)
	m := cl.signUp(t, "new@example.com")
	r.figure("ids_given_again", map[bool]float64{true: 1}[m.id == lost[0].id])
	for range 5 { // further sessions of the same account
		r.opensNothing(cl, lost)
		m.tokens = cl.login(t, m.email, password)
	}
	if a := cl.do("GET", "/users/me", m.AccessToken, nil); a.status() != 200 {
		r.fault("the new account: %v", a)
	}
	cl.login(t, "kept@example.com", password)
}

// opensNothing fails the row where a token of these members is accepted.
func (r *row) opensNothing(cl *client, members []member) {
	r.t.Helper()
	vector := map[string]any{"embedding": []int{1, 2, 3}}
	for _, m := range members {
		refresh := map[string]string{"refresh_token": m.RefreshToken}
		for _, a := range []answer{
			cl.do("GET", "/users/me", m.AccessToken, nil),
			cl.do("POST", "/documents/search", m.AccessToken, vector),
			cl.do("POST", "/auth/refresh", "", refresh),
		} {
			if a.status() != 401 {
				r.fault("a token of %s, who is lost: %v", m.email, a)
			}
		}
	}
}
