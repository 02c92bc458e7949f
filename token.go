package main

// token.go signs and verifies the two kinds of token, both JWTs with HS256 (RFC 7515, 7519). It
// uses neither the database nor HTTP, and no clock: times come from PostgreSQL, so that replicas
// whose clocks differ agree, and whether a token has expired is asked of PostgreSQL with its
// session.
//
// Threats and answers. A token of another kind or algorithm: the header segment must equal, as
// text, the one that is written here, so the sender has no "alg" to choose, and each kind has its
// own key. A second spelling of a token (base64 has several): the MAC is compared in its encoded
// form, it covers the payload segment, and the claims must encode again to the same bytes. A
// payload that is read before it is trusted: it is not. A token whose session row is gone: session
// ids are random, so after a restore or a fail-over no other row has its id.

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"

	json "encoding/json/v2"
)

// accessClaims are the payload of an access token.
type accessClaims struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	Subject  string `json:"sub"` // the user's id
	Session  int64  `json:"sid"` // the session's id
	ID       string `json:"jti"` // session and generation: one access token for each
	IssuedAt int64  `json:"iat"` // seconds since 1970
	Expires  int64  `json:"exp"` // seconds since 1970
}

// refreshClaims are the payload of a refresh token.
type refreshClaims struct {
	Subject    string `json:"sub"`
	Session    int64  `json:"sid"`
	Generation int64  `json:"gen"` // how often the session has been refreshed
	IssuedAt   int64  `json:"iat"`
	Expires    int64  `json:"exp"`
}

// sessionRef identifies the session that a token claims, and says when the token expires.
type sessionRef struct{ session, user, expires int64 }

// session is the state of a session row after a login or a refresh. Tokens are made from it.
type session struct {
	ID, UserID int64
	Generation int64
	RotatedAt  time.Time // the login or the last refresh
	ExpiresAt  time.Time // without another refresh
}

// tokens are the answer to a login or a refresh (RFC 6749, section 5.1).
type tokens struct {
	AccessToken  string `json:"access_token" example:"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI3In0.c2ln"`
	RefreshToken string `json:"refresh_token" example:"eyJhbGciOiJIUzI1NiJ9.eyJnZW4iOjB9.c2ln"`
	TokenType    string `json:"token_type" example:"bearer"`
	ExpiresIn    int64  `json:"expires_in" example:"1800"`
}

// keyring holds the signing keys: the first signs, all verify.
type keyring struct {
	keys      []key
	issuer    string // and audience, of access tokens
	accessTTL time.Duration
}

// key is one SECRET_KEY, ready for use: a signer for each kind of token.
type key struct{ access, refresh signer }

// signer signs and verifies tokens of one kind under one key.
type signer struct {
	header string // the encoded header segment and a period
	key    []byte
}

var encoding = base64.RawURLEncoding.Strict()

// newKeyring takes the secrets in the order of SECRET_KEY, the issuer and the lifetime of access
// tokens. These are signed with the secret's own bytes, so that other services that hold it can
// verify them with any JWT library; refresh tokens with a key derived from it, so that only Latch
// can.
func newKeyring(secrets []string, issuer string, accessTTL time.Duration) *keyring {
	k := &keyring{issuer: issuer, accessTTL: accessTTL}
	for _, secret := range secrets {
		const label = "latch refresh token" // never renamed: that would end all sessions
		derived, err := hkdf.Key(sha256.New, []byte(secret), nil, label, sha256.Size)
		if err != nil {
			panic(err) // only for an output of over 8,160 bytes
		}
		// RFC 9068 has at+jwt for access tokens, but Spring and plain Nimbus refuse it by default.
		k.keys = append(k.keys, key{newSigner("JWT", []byte(secret)), newSigner("rt+jwt", derived)})
	}
	return k
}

func newSigner(typ string, key []byte) signer {
	header := fmt.Sprintf(`{"alg":"HS256","typ":%q}`, typ)
	return signer{encoding.EncodeToString([]byte(header)) + ".", key}
}

// issue returns the tokens of a session's state. They are a pure function of it: the same
// generation gives the same bytes on every replica, so a repeated refresh is harmless.
func (k *keyring) issue(s session) tokens {
	sub, iat := strconv.FormatInt(s.UserID, 10), s.RotatedAt.Unix()
	ttl := int64(k.accessTTL.Seconds())
	id := fmt.Sprintf("%d.%d", s.ID, s.Generation)
	access := accessClaims{k.issuer, k.issuer, sub, s.ID, id, iat, iat + ttl}
	refresh := refreshClaims{sub, s.ID, s.Generation, iat, s.ExpiresAt.Unix()}
	return tokens{k.keys[0].access.sign(access), k.keys[0].refresh.sign(refresh), "bearer", ttl}
}

func (s signer) sign(claims any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err) // numbers and texts always encode
	}
	text := s.header + encoding.EncodeToString(payload)
	return text + "." + s.mac(text)
}

// mac returns the base64url of HMAC-SHA256 of text.
func (s signer) mac(text string) string {
	h := hmac.New(sha256.New, s.key)
	h.Write([]byte(text))
	return encoding.EncodeToString(h.Sum(nil))
}

// verifyAccess returns the session of an access token with a valid MAC. It does not judge its
// expiry, nor whether the session still accepts it: store.sessionUser does. ok is false otherwise.
func (k *keyring) verifyAccess(token string) (ref sessionRef, ok bool) {
	var c accessClaims
	for _, key := range k.keys {
		if key.access.open(token, &c) {
			user, canonical := parseID(c.Subject)
			ok = canonical && c.Session > 0 && c.Issuer == k.issuer && c.Audience == k.issuer
			return sessionRef{c.Session, user, c.Expires}, ok
		}
	}
	return sessionRef{}, false
}

// verifyRefresh is verifyAccess for a refresh token, which also has a generation.
func (k *keyring) verifyRefresh(token string) (ref sessionRef, generation int64, ok bool) {
	var c refreshClaims
	for _, key := range k.keys {
		if key.refresh.open(token, &c) {
			user, canonical := parseID(c.Subject)
			ok = canonical && c.Session > 0 && c.Generation >= 0
			return sessionRef{c.Session, user, c.Expires}, c.Generation, ok
		}
	}
	return sessionRef{}, 0, false
}

// open reads the claims of a token that a holder of this key signed in the one spelling that sign
// writes. It returns false for any other token.
func (s signer) open(token string, claims any) bool {
	rest, ok := strings.CutPrefix(token, s.header)
	if !ok {
		return false
	}
	segment, sum, _ := strings.Cut(rest, ".")
	want := s.mac(token[:len(s.header)+len(segment)])
	if subtle.ConstantTimeCompare([]byte(sum), []byte(want)) != 1 {
		return false
	}
	payload, err := encoding.DecodeString(segment)
	if err != nil || json.Unmarshal(payload, claims, json.RejectUnknownMembers(true)) != nil {
		return false
	}
	again, err := json.Marshal(claims)
	return err == nil && bytes.Equal(again, payload) && encoding.EncodeToString(again) == segment
}

// parseID reads a positive id in its one spelling.
func parseID(text string) (id int64, ok bool) {
	id, err := strconv.ParseInt(text, 10, 64)
	return id, err == nil && id > 0 && strconv.FormatInt(id, 10) == text
}

// newSessionID returns a random id below 2^53, the integers that JavaScript keeps.
func newSessionID() int64 {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return max(1, int64(binary.LittleEndian.Uint64(b[:])>>11))
}
