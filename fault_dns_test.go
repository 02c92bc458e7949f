//go:build fault

package main

// fault_dns_test.go is the row of a database whose name is not resolved for a while.

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// resolver answers every DNS question with 127.0.0.1.
type resolver struct {
	address string
	mode    atomic.Value // well, fails (SERVFAIL), hangs (no answer)
}

func startResolver(t testing.TB) *resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := &resolver{address: conn.LocalAddr().String()}
	r.mode.Store("well")
	go func() {
		for buf := make([]byte, 512); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if r.mode.Load() != "hangs" && n > 12 {
				conn.WriteTo(r.answer(buf[:n]), from)
			}
		}
	}()
	return r
}

// answer makes the answer to a question of RFC 1035, section 4.1: a header of 12 bytes, the name, its type and class.
func (r *resolver) answer(q []byte) []byte {
	question := q[12 : 12+bytes.IndexByte(q[12:], 0)+5]
	header := []byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0} // an answer, with one question
	if r.mode.Load() == "fails" {
		header[3] |= 2
		return append(header, question...)
	}
	if question[len(question)-3] != 1 { // AAAA: there is such a name, but no address of this kind
		return append(header, question...)
	}
	header[7] = 1
	return append(append(header, question...), 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1)
}

// rebuild builds the program on a standard library in which edit has changed one file: a system's resolver and clock
// are those of all programs.
func rebuild(t testing.TB, name, file string, edit func(text string) string) (binary string) {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", file)
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	edited, overlay := filepath.Join(suite.dir, name+".go"), filepath.Join(suite.dir, name+".json")
	after := edit(string(text))
	if after == string(text) {
		t.Fatalf("%s is not what it was: nothing was changed", source)
	}
	os.WriteFile(edited, []byte(after), 0o644)
	replaced, _ := json.Marshal(map[string]any{"Replace": map[string]string{source: edited}})
	os.WriteFile(overlay, replaced, 0o644)
	binary, err = build(name, "-overlay", overlay)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// TestFaultDNS lets the resolver fail or hang, first with the connections there, then without.
func TestFaultDNS(t *testing.T) {
	binary := rebuild(t, "latch-resolver", "net/dnsclient_unix.go", func(text string) string {
		text = strings.Replace(text, "\t\"os\"\n", "\t\"os\"\n\t\"syscall\"\n", 1)
		return strings.Replace(text, "\tq.Class = dnsmessage.ClassINET\n", "\tq.Class = dnsmessage.ClassINET\n\tserver, _ = syscall.Getenv(\"RESOLVER\")\n", 1)
	})
	for _, mode := range []string{"fails", "hangs"} {
		t.Run(mode, func(t *testing.T) {
			c := &site{row: newRow(t, "dns-"+mode), db: startPostgres(t, "dns-"+mode), database: "latch"}
			c.db.sql("postgres", "CREATE DATABASE latch")
			dns := startResolver(t)
			_, port, _ := net.SplitHostPort(c.db.address())
			for range 2 {
				r := startBinary(t, binary, urlOf("database.example:"+port, c.database), "RESOLVER="+dns.address)
				r.ready()
				c.replicas = append(c.replicas, r)
			}
			c.load = newLoad(t, c.replicas, c.direct())
			c.fillPools()
			c.begin()
			dns.mode.Store(mode)
			time.Sleep(1500 * time.Millisecond)
			c.mu.Lock()
			kept := perStatus(c.samples)
			c.mu.Unlock()
			c.atMost("refused_on_open_connections", float64(kept[503]), 0)
			stop := watchHealth(c.replicas[0])
			c.db.sql("postgres", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'latch'`)
			time.Sleep(3 * time.Second) // longer than a look-up may hang
			dns.mode.Store("well")
			healed := time.Now()
			c.judgeHealth(stop)
			c.end(healed, 3*time.Second, false)
		})
	}
}
