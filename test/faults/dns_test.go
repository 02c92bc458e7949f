//go:build fault

package faults

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
	mode    atomic.Value // works, fails (SERVFAIL), hangs (no answer)
}

func startResolver(t testing.TB) *resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := &resolver{address: conn.LocalAddr().String()}
	r.mode.Store("works")
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

// answer returns the answer to a question (RFC 1035, section 4.1): a header of 12 bytes, the name,
// its type and class, and where it works an address.
func (r *resolver) answer(q []byte) []byte {
	question := q[12 : 12+bytes.IndexByte(q[12:], 0)+5]
	header := []byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}
	if r.mode.Load() == "fails" {
		header[3] |= 2
		return append(header, question...)
	}
	if question[len(question)-3] != 1 { // AAAA: the name has no address of this type
		return append(header, question...)
	}
	header[7] = 1
	record := []byte{0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1}
	return append(append(header, question...), record...)
}

// rebuild builds the program on a standard library of which edit has changed one file: the resolver
// and the clock of the system are those of all programs. The go command refuses to replace files of
// a toolchain that it has downloaded, so it sees the toolchain by another path.
func rebuild(t testing.TB, name, file string, edit func(text string) string) (binary string) {
	t.Helper()
	toolchain, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(workDir, name+"-goroot")
	if err := os.Symlink(strings.TrimSpace(string(toolchain)), root); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOROOT", root)
	t.Setenv("GOTOOLCHAIN", "local")
	source := filepath.Join(root, "src", file)
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	after := edit(string(text))
	if after == string(text) {
		t.Fatalf("%s has changed: there is nothing to edit", source)
	}
	edited, overlay := filepath.Join(workDir, name+".go"), filepath.Join(workDir, name+".json")
	os.WriteFile(edited, []byte(after), 0o644)
	replaced := map[string]any{"Replace": map[string]string{source: edited}}
	text, _ = json.Marshal(replaced)
	os.WriteFile(overlay, text, 0o644)
	tool := filepath.Join(root, "bin", "go")
	if binary, err = build(tool, name, "-overlay", overlay); err != nil {
		t.Fatal(err)
	}
	return binary
}

// TestDNS lets the resolver fail or hang, first while the connections stand, then without them.
func TestDNS(t *testing.T) {
	binary := rebuild(t, "latch-resolver", "net/dnsclient_unix.go", func(text string) string {
		const class = "\tq.Class = dnsmessage.ClassINET\n"
		text = strings.Replace(text, "\t\"os\"\n", "\t\"os\"\n\t\"syscall\"\n", 1)
		server := "\tserver, _ = syscall.Getenv(\"RESOLVER\")\n"
		return strings.Replace(text, class, class+server, 1)
	})
	for _, mode := range []string{"fails", "hangs"} {
		t.Run(mode, func(t *testing.T) {
			dns := startResolver(t)
			s := startDNSSite(t, "dns-"+mode, binary, dns)
			dns.mode.Store(mode)
			time.Sleep(1500 * time.Millisecond)
			kept := perStatus(s.outcomes())
			s.atMost("refused_on_open_connections", float64(kept[503]), 0)
			watch := watchHealth(s.replicas[0])
			s.db.sql("postgres", terminateBackends)
			time.Sleep(3 * time.Second) // longer than a lookup may hang
			dns.mode.Store("works")
			healed := time.Now()
			s.judgeHealth(watch)
			s.end(healed, 3*time.Second)
		})
	}
}

// startDNSSite starts a site whose replicas know the database by a name, and its load.
func startDNSSite(t *testing.T, name, binary string, dns *resolver) *site {
	t.Helper()
	s := &site{row: newRow(t, name), db: startPostgres(t, name), database: "latch"}
	s.db.createDatabase(s.database)
	_, port, _ := net.SplitHostPort(s.db.address())
	url := databaseURL("database.example:"+port, s.database)
	env := []string{"RESOLVER=" + dns.address}
	s.startReplicas(binary, url, env, env)
	s.fillPools()
	s.begin()
	return s
}
