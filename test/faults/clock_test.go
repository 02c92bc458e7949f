//go:build fault

package faults

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// skewedNow replaces time.Now: the wall clock is off by SKEW, the monotonic clock is not.
const skewedNow = `var skew, _ = func() (Duration, error) {
	s, _ := syscall.Getenv("SKEW")
	return ParseDuration(s)
}()

func Now() Time {
	t := unskewed()
	mono := t.ext
	if t = t.Add(skew); t.wall&hasMonotonic != 0 {
		t.ext = mono
	}
	return t
}

func unskewed() Time {`

// TestClockSkew uses tokens of issuers with other clocks, on replicas whose own clocks are a minute
// off.
func TestClockSkew(t *testing.T) {
	r := newRow(t, "clock-skew")
	binary := rebuild(t, "latch-skewed", "time/time.go", func(text string) string {
		text = strings.Replace(text, "import (", "import (\n\t\"syscall\"", 1)
		return strings.Replace(text, "func Now() Time {", skewedNow, 1)
	})
	s := &site{row: r, db: sharedPostgres(t), database: "skew"}
	s.db.createDatabase(s.database)
	s.startReplicas(binary, s.db.url(s.database), []string{"SKEW=60s"}, []string{"SKEW=-60s"})
	for _, replica := range s.replicas {
		line, _, _ := strings.Cut(replica.log(), "\n")
		logged := decode[struct{ Time time.Time }]([]byte(line)).Time
		if off := time.Since(logged).Abs(); off < 50*time.Second || off > 5*time.Minute {
			t.Fatalf("the clock of a replica is off by %v", off)
		}
	}
	s.begin()
	s.useSkewedTokens()
	time.Sleep(2 * time.Second)
	s.end(time.Now(), 0)
	s.atMost("refused", float64(s.Statuses[503]), 0)
}

// useSkewedTokens sends tokens with other times, signed with the service's key.
func (s *site) useSkewedTokens() {
	for _, skew := range []struct {
		issued, expires int64 // seconds from now
		want            int
	}{{20, 1800, 200}, {120, 1800, 200}, {-1800, 5, 200}, {-1800, -1, 401}} {
		now := time.Now().Unix()
		token := resign(s.accounts[0].access(), now+skew.issued, now+skew.expires)
		for _, cl := range s.clients {
			if a := cl.do("GET", "/users/me", token, nil); a.status() != skew.want {
				s.fault("iat %+d, exp %+d: %v, want %d", skew.issued, skew.expires, a, skew.want)
			}
		}
	}
}

// claims are the payload of an access token.
type claims struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	Subject  string `json:"sub"`
	Session  int64  `json:"sid"`
	ID       string `json:"jti"`
	Issued   int64  `json:"iat"`
	Expires  int64  `json:"exp"`
}

// resign returns an access token with other times and a valid signature.
func resign(token string, issued, expires int64) string {
	segments := strings.Split(token, ".")
	payload, _ := base64.RawURLEncoding.DecodeString(segments[1])
	c := decode[claims](payload)
	c.Issued, c.Expires = issued, expires
	payload, _ = json.Marshal(c)
	text := segments[0] + "." + base64.RawURLEncoding.EncodeToString(payload)
	return text + "." + signature(secretKey, text)
}

// signature returns the signature of the first two segments of a token (RFC 7515, HS256).
func signature(key, text string) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(text))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
