//go:build bench

package bench

// token_test.go signs tokens of the loaded sessions: a real login takes 17 ms, and rows need those
// of 10,000 accounts. newSigner checks the rules on a real login, so a change of them is noticed.

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tokens are the answer to a login.
type tokens struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
}

type accessClaims struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	Subject  string `json:"sub"`
	Session  int64  `json:"sid"`
	ID       string `json:"jti"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
}

type refreshClaims struct {
	Subject    string `json:"sub"`
	Session    int64  `json:"sid"`
	Generation int64  `json:"gen"`
	IssuedAt   int64  `json:"iat"`
	Expires    int64  `json:"exp"`
}

// signer signs both kinds of token as the service does with the key secret.
type signer struct {
	accessHeader, refreshHeader string // encoded
	refreshKey                  []byte
}

// newSigner takes the headers from the tokens of a login, and fails where the keys do not sign the
// same bytes to the same signatures.
func newSigner(t *testing.T, login tokens) *signer {
	t.Helper()
	const label = "latch refresh token" // never renamed: see credentials.go
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, label, sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	s := &signer{refreshKey: key}
	s.accessHeader = checkSignature(t, login.AccessToken, []byte(secret))
	s.refreshHeader = checkSignature(t, login.RefreshToken, key)
	return s
}

// checkSignature returns the header of a token that is signed with key.
func checkSignature(t *testing.T, token string, key []byte) (header string) {
	t.Helper()
	header, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	if got := signText(header+"."+payload, key); got != token {
		t.Fatalf("the benchmark signs %s, the service %s", got, token)
	}
	return header
}

// signText appends the HMAC-SHA256 of text.
func signText(text string, key []byte) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

func encodeClaims(header string, claims any) string {
	return header + "." + base64.RawURLEncoding.EncodeToString([]byte(toJSON(claims)))
}

// access is an access token of a loaded account.
func (s *signer) access(user int64) string {
	now := time.Now()
	session := sessionID(user)
	return signText(encodeClaims(s.accessHeader, accessClaims{
		Issuer: "latch", Audience: "latch", Subject: strconv.FormatInt(user, 10),
		Session: session, ID: fmt.Sprintf("%d.0", session),
		IssuedAt: now.Unix(), Expires: now.Add(24 * time.Hour).Unix(),
	}), []byte(secret))
}

// refresh is a refresh token of a loaded account. A generation ahead of the session's is as good as
// the session's own. The reference takes those that are signed with secret itself.
func (s *signer) refresh(user, generation int64, key []byte) string {
	now := time.Now()
	return signText(encodeClaims(s.refreshHeader, refreshClaims{
		Subject: strconv.FormatInt(user, 10), Session: sessionID(user), Generation: generation,
		IssuedAt: now.Unix(), Expires: now.Add(24 * time.Hour).Unix(),
	}), key)
}
