package main

// token.go signs and verifies the two kinds of token, both JWTs with HS256 (RFC 7515, 7519).
// It knows no database and no HTTP, and no clock: times come from PostgreSQL, so that replicas whose
// clocks differ agree, and whether a token has expired is asked of PostgreSQL together with its session.
//
// Threats and answers. A token of another kind, algorithm or key: the header segment must equal, as
// text, the one that a configured key would write, so there is no "alg" to be chosen by the sender.
// A second spelling of a token (base64 has several): the MAC is compared in its encoded form, and the
// payload segment is covered by it. A payload that is read before it is trusted: it is not.

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The values of typ. RFC 9068 has at+jwt for access tokens; the other is ours.
const (
	typAccess  = "at+jwt"
	typRefresh = "rt+jwt"
)

// accessClaims are the payload of an access token.
type accessClaims struct {
	Issuer   string `json:"iss" enum:"latch"`
	Audience string `json:"aud" enum:"latch"`
	Subject  string `json:"sub"`         // the user's id
	Session  int64  `json:"sid" min:"1"` // the session's id
	ID       string `json:"jti"`         // session and generation: one access token for each
	IssuedAt int64  `json:"iat"`         // seconds since 1970
	Expires  int64  `json:"exp"`         // seconds since 1970
}

// refreshClaims are the payload of a refresh token.
type refreshClaims struct {
	Subject    string `json:"sub"`
	Session    int64  `json:"sid" min:"1"`
	Generation int64  `json:"gen"` // how often the session has been refreshed
	IssuedAt   int64  `json:"iat"`
	Expires    int64  `json:"exp"`
}

// session is what tokens are made from: the state of a session row after a login or a refresh.
type session struct {
	ID, UserID int64
	Generation int64
	RotatedAt  time.Time // the login or the last refresh
	ExpiresAt  time.Time // when it dies without another refresh
}

// tokens are the answer to a login or a refresh (RFC 6749, section 5.1).
type tokens struct {
	AccessToken  string `json:"access_token" example:"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI3In0.c2lnbmF0dXJl" doc:"To be sent as a bearer token."`
	RefreshToken string `json:"refresh_token" example:"eyJhbGciOiJIUzI1NiJ9.eyJnZW4iOjB9.c2lnbmF0dXJl" doc:"To be spent once, for new tokens."`
	TokenType    string `json:"token_type" example:"bearer"`
	ExpiresIn    int64  `json:"expires_in" example:"1800" doc:"Lifetime of the access token in seconds."`
}

// keyring holds the signing keys: the first signs, all verify.
type keyring struct {
	keys      []key
	accessTTL time.Duration
	known     remembered
}

// key is one SECRET_KEY, ready for use: a signer for each kind of token.
type key struct{ access, refresh signer }

// signer writes and checks tokens of one kind under one key.
type signer struct {
	header string // the encoded header segment
	key    []byte
}

var (
	accessInput  = compileInput(reflect.TypeFor[accessClaims]())
	refreshInput = compileInput(reflect.TypeFor[refreshClaims]())
	encoding     = base64.RawURLEncoding.Strict()
)

// newKeyring takes the secrets in the order of SECRET_KEY, and the lifetime of an access token.
// Access tokens are signed with the secret's own bytes, so that other services that hold it can verify
// them with any JWT library; refresh tokens with a key derived from it, so that nobody but Latch can.
func newKeyring(secrets []string, accessTTL time.Duration) *keyring {
	k := &keyring{accessTTL: accessTTL}
	for _, secret := range secrets {
		id := mac([]byte(secret), "latch key id")[:11] // 66 bits: names the key, says nothing of it
		derived, err := hkdf.Key(sha256.New, []byte(secret), nil, "latch refresh token", sha256.Size)
		if err != nil {
			panic(err) // only for an output of over 8,160 bytes
		}
		k.keys = append(k.keys, key{newSigner(typAccess, id, []byte(secret)), newSigner(typRefresh, id, derived)})
	}
	return k
}

func newSigner(typ, id string, key []byte) signer {
	header := fmt.Sprintf(`{"alg":"HS256","typ":%q,"kid":%q}`, typ, id)
	return signer{encoding.EncodeToString([]byte(header)), key}
}

// mac is the base64url of HMAC-SHA256 of text.
func mac(key []byte, text string) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return encoding.EncodeToString(h.Sum(nil))
}

// issue makes the pair of tokens of a session's state. It is a pure function of that state: the same
// generation gives the same bytes on every replica, which makes a repeated refresh harmless.
func (k *keyring) issue(s session) tokens {
	sub, iat := strconv.FormatInt(s.UserID, 10), s.RotatedAt.Unix()
	access := accessClaims{"latch", "latch", sub, s.ID, fmt.Sprintf("%d.%d", s.ID, s.Generation), iat, iat + int64(k.accessTTL.Seconds())}
	refresh := refreshClaims{sub, s.ID, s.Generation, iat, s.ExpiresAt.Unix()}
	return tokens{k.keys[0].access.sign(access), k.keys[0].refresh.sign(refresh), "bearer", int64(k.accessTTL.Seconds())}
}

func (s signer) sign(claims any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err) // numbers and strings always encode
	}
	text := s.header + "." + encoding.EncodeToString(payload)
	return text + "." + mac(s.key, text)
}

// parseAccess returns the claims and the user's id of an access token with a valid MAC.
// It does not judge times or whether the session lives. ok is false for anything else.
func (k *keyring) parseAccess(token string) (c accessClaims, userID int64, ok bool) {
	for _, key := range k.keys {
		if payload, signed := key.access.open(token); signed {
			ok = readClaims(payload, &accessInput, &c)
			userID, canonical := parseID(c.Subject)
			return c, userID, ok && canonical
		}
	}
	return c, 0, false
}

// ticket is what a request needs of an access token: whose it is, and until when.
type ticket struct{ session, user, expires int64 }

// rememberTokens is how many tickets each of two maps holds: together 2 MB.
const rememberTokens = 10_000

// remembered are the tickets of tokens that were found good, by the digests of the tokens, so that only the first
// request of a token pays for reading it. When the young are many they become the old, whose place they take.
type remembered struct {
	mu         sync.Mutex
	young, old map[[sha256.Size]byte]ticket
}

// checkAccess is the ticket of a token that parseAccess accepts.
func (k *keyring) checkAccess(token string) (t ticket, ok bool) {
	digest := sha256.Sum256(append(make([]byte, 0, 512), token...)) // on the stack, unless it is none of ours
	if t, ok = k.known.get(digest); ok {
		return t, true
	}
	c, userID, ok := k.parseAccess(token)
	if ok {
		t = ticket{c.Session, userID, c.Expires}
		k.known.put(digest, t)
	}
	return t, ok
}

func (m *remembered) get(digest [sha256.Size]byte) (t ticket, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t, ok = m.young[digest]; !ok {
		if t, ok = m.old[digest]; ok {
			m.keep(digest, t)
		}
	}
	return t, ok
}

func (m *remembered) put(digest [sha256.Size]byte, t ticket) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep(digest, t)
}

func (m *remembered) keep(digest [sha256.Size]byte, t ticket) {
	if m.young == nil || len(m.young) >= rememberTokens {
		m.young, m.old = map[[sha256.Size]byte]ticket{}, m.young
	}
	m.young[digest] = t
}

// parseRefresh is parseAccess for refresh tokens.
func (k *keyring) parseRefresh(token string) (c refreshClaims, userID int64, ok bool) {
	for _, key := range k.keys {
		if payload, signed := key.refresh.open(token); signed {
			ok = readClaims(payload, &refreshInput, &c)
			userID, canonical := parseID(c.Subject)
			return c, userID, ok && canonical
		}
	}
	return c, 0, false
}

// open returns the payload segment of a token that this signer, or another holder of its key, signed.
func (s signer) open(token string) (payload string, ok bool) {
	rest, ok := strings.CutPrefix(token, s.header+".")
	if !ok {
		return "", false
	}
	payload, sum, ok := strings.Cut(rest, ".")
	want := mac(s.key, token[:len(s.header)+1+len(payload)])
	return payload, ok && subtle.ConstantTimeCompare([]byte(sum), []byte(want)) == 1
}

// readClaims reads a payload segment into claims as strictly as a request body.
func readClaims(segment string, in *input, claims any) bool {
	payload, err := encoding.DecodeString(segment)
	if err != nil || encoding.EncodeToString(payload) != segment { // DecodeString skips line breaks
		return false
	}
	rd := newReading(in, claims)
	return rd.readJSON(payload) == "" && len(rd.finish("json")) == 0
}

// parseID reads a positive id in its one spelling.
func parseID(text string) (id int64, ok bool) {
	id, err := strconv.ParseInt(text, 10, 64)
	return id, err == nil && id > 0 && strconv.FormatInt(id, 10) == text
}
