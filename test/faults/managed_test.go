package faults

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"latch/test/pgbouncer"
)

// What the owner of a server does to a database before the program comes as the role app.
const (
	withVector = `CREATE EXTENSION vector;`
	withSchema = `CREATE SCHEMA extensions; GRANT USAGE ON SCHEMA extensions TO PUBLIC;
		CREATE EXTENSION vector SCHEMA extensions; CREATE EXTENSION pg_trgm SCHEMA extensions;
		CREATE EXTENSION btree_gin SCHEMA extensions;`
	withPath = `ALTER DATABASE {db} SET search_path = public, extensions;`
	notOwned = `ALTER DATABASE {db} OWNER TO CURRENT_USER;
		REVOKE CREATE ON SCHEMA public FROM PUBLIC;`
	ownSchema = `CREATE SCHEMA latch AUTHORIZATION app;`
)

// TestManagedPostgres runs on what managed PostgreSQLs have in common: TLS by an authority of their
// own, SCRAM, roles without rights over the server, extensions in other schemas, sockets elsewhere,
// poolers.
// docs/managed-postgresql.md is derived from it.
func TestManagedPostgres(t *testing.T) {
	r, db := newRow(t, "managed-postgres"), startPostgres(t, "managed")
	db.sql("postgres", `CREATE ROLE app LOGIN PASSWORD 'p@ss:w/rd'`)
	names := []string{"{ca}", "sslrootcert=" + db.encrypt(), "{socket}", db.linkSocket(),
		"{tcp}", fmt.Sprintf("app:p%%40ss%%3Aw%%2Frd@localhost:%d/{db}", db.port),
		"{ip}", fmt.Sprintf("app:p%%40ss%%3Aw%%2Frd@127.0.0.1:%d/{db}", db.port)}
	for i, row := range []struct{ setup, url, refusal string }{
		{withVector, "postgresql://{tcp}?sslmode=require&channel_binding=require", ""}, // Neon
		{withSchema + withPath, "postgresql://{tcp}?sslmode=verify-full&{ca}", ""},     // Supabase
		{withSchema + notOwned + ownSchema,
			"postgresql://{tcp}?search_path=latch,extensions", ""},
		{withVector, "postgresql://{tcp}?sslmode=verify-full&{ca}", ""}, // RDS, Azure
		{withVector, "postgresql://{ip}?sslmode=verify-ca&{ca}", ""},    // Cloud SQL
		{withVector, "postgresql://app@/{db}?host={socket}", ""},        // Cloud SQL's proxy
		{withVector, "postgres://{tcp}", ""},                            // Heroku
		{"", "postgresql://{tcp}", `permission denied to create extension "vector"`},
		{withSchema, "postgresql://{tcp}", `type "halfvec" does not exist`},
		{withVector + notOwned, "postgresql://{tcp}", "permission denied for schema public"},
		{withVector, "postgresql://{tcp}?sslmode=disable", "no encryption"},
		{withVector, "postgresql://{tcp}?sslmode=verify-full", "signed by unknown authority"},
		{withVector, "postgresql://{ip}?sslmode=verify-full&{ca}", "cannot validate certificate"},
	} {
		name := fmt.Sprintf("managed%d", i)
		fill := strings.NewReplacer("{db}", name)
		db.sql("postgres", "CREATE DATABASE "+name+" OWNER app")
		db.sql(name, fill.Replace(row.setup))
		url := fill.Replace(strings.NewReplacer(names...).Replace(row.url))
		if row.refusal == "" {
			r.serves(startReplica(t, url))
		} else {
			r.refuses(newReplica(t, program, url), row.refusal)
		}
	}
	if !full { // where PgBouncer may be missing
		return
	}
	bouncer, err := pgbouncer.Start(workDir, "127.0.0.1", db.port)
	if err != nil {
		t.Fatal(err)
	}
	defer bouncer.Stop()
	db.createDatabase("pooled")
	db.sql("pooled", strings.ReplaceAll(withSchema+withPath, "{db}", "pooled"))
	r.serves(startReplica(t, databaseURL(bouncer.Address, "pooled")))
}

// serves fails the row unless a replica takes an account and finds its document.
func (r *row) serves(target *replica) {
	r.t.Helper()
	cl := &client{address: target.address()}
	m := cl.signUp(r.t, "ada@example.com")
	document := map[string]any{"content": "a word", "metadata": map[string]int{"n": 1},
		"embedding": []int{1, 2, 3}}
	query := map[string]any{"mode": "hybrid", "query": "word", "filter": map[string]int{"n": 1},
		"embedding": []int{1, 2, 3}}
	for _, a := range []answer{cl.do("POST", "/documents", m.AccessToken, document),
		cl.do("POST", "/documents/search", m.AccessToken, query)} {
		if r.count(a); !strings.Contains(string(a.body), `"content":"a word"`) {
			r.fault("%v: %s\n%s", a, a.body, target.log())
		}
	}
	target.terminate()
}

// refuses fails the row unless a replica says why it does not serve.
func (r *row) refuses(target *replica, why string) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); !strings.Contains(target.log(), why); {
		if time.Now().After(end) {
			r.fault("%q is not in the log: %s", why, target.log())
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	target.kill()
}

// linkSocket returns a directory, named as Google's proxy names it, with the socket of p.
func (p *postgres) linkSocket() (dir string) {
	p.t.Helper()
	dir = filepath.Join(workDir, "project:region:instance")
	socket := filepath.Join(p.DataDir(), fmt.Sprintf(".s.PGSQL.%d", p.port))
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = os.Symlink(socket, filepath.Join(dir, ".s.PGSQL.5432"))
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return dir
}

// encrypt gives p a certificate for localhost, lets app in by TLS and with its password only, and
// returns the file of the authority's certificate.
func (p *postgres) encrypt() (authority string) {
	p.t.Helper()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		Subject: pkix.Name{CommonName: "an authority of its own"}, KeyUsage: x509.KeyUsageCertSign,
		NotAfter: time.Now().Add(24 * time.Hour)}
	server := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"localhost"},
		NotAfter: ca.NotAfter}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must := func(more error) {
		if more != nil {
			p.t.Fatal(more)
		}
	}
	must(err)
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	serverDER, err := x509.CreateCertificate(rand.Reader, server, ca, &key.PublicKey, caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	info, err := os.Stat(p.DataDir())
	must(err)
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(p.DataDir(), name)
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		must(os.WriteFile(file, text, 0o600))
		must(os.Chown(file, int(info.Sys().(*syscall.Stat_t).Uid), -1))
		return file
	}
	write("server.crt", "CERTIFICATE", serverDER)
	write("server.key", "PRIVATE KEY", keyDER)
	hba := filepath.Join(p.DataDir(), "pg_hba.conf")
	rules, err := os.ReadFile(hba)
	must(err)
	const first = "hostssl all app all scram-sha-256\nhost all app all reject\n"
	must(os.WriteFile(hba, append([]byte(first), rules...), 0o600))
	p.sql("postgres", "ALTER SYSTEM SET ssl = on")
	p.halt("fast")
	p.restart()
	return write("ca.crt", "CERTIFICATE", caDER)
}
