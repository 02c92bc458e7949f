package main

// credentials.go signs and verifies tokens, and below hashes and checks passwords.
//
// Both kinds of token are JWTs with HS256 (RFC 7515, 7519). Their code reads no clock: PostgreSQL
// sets all times, and judges with the session whether a token has expired, so that replicas whose
// clocks differ agree.
//
// Threats and answers. A token of another kind or algorithm: each kind has its own key, and the
// header segment must equal, as text, the one that is written here, so the sender chooses no "alg".
// A second spelling of a token (base64 has several): the MAC is compared in its encoded form, it
// covers the payload segment, and the claims must encode again to the same text. A payload that is
// read before its MAC is checked: none is. A token whose session row is gone: session ids are
// random, so after a restore or a fail-over no other row has its id.

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	_ "embed"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	json "encoding/json/v2"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// accessClaims are the payload of an access token. Times are seconds since 1970.
type accessClaims struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	User     int64  `json:"sub,string"`
	Session  int64  `json:"sid"`
	ID       string `json:"jti"` // session and generation: one access token for each
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
}

// refreshClaims are the payload of a refresh token.
type refreshClaims struct {
	User       int64 `json:"sub,string"`
	Session    int64 `json:"sid"`
	Generation int64 `json:"gen"` // how often the session has been refreshed
	IssuedAt   int64 `json:"iat"`
	Expires    int64 `json:"exp"`
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

var base64url = base64.RawURLEncoding.Strict()

// newKeyring takes the secrets in the order of SECRET_KEY. Access tokens are signed with a secret's
// own bytes, so that other services that hold it can verify them with any JWT library; refresh
// tokens with a key derived from it, so that only Latch can.
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
	return signer{base64url.EncodeToString([]byte(header)) + ".", key}
}

// issue returns the tokens of a session's state. They are a pure function of it: the same
// generation gives the same bytes on every replica, so a repeated refresh is harmless.
func (k *keyring) issue(s session) tokens {
	iat, ttl := s.RotatedAt.Unix(), int64(k.accessTTL.Seconds())
	jti := fmt.Sprintf("%d.%d", s.ID, s.Generation)
	access := accessClaims{k.issuer, k.issuer, s.UserID, s.ID, jti, iat, iat + ttl}
	refresh := refreshClaims{s.UserID, s.ID, s.Generation, iat, s.ExpiresAt.Unix()}
	return tokens{k.keys[0].access.sign(access), k.keys[0].refresh.sign(refresh), "bearer", ttl}
}

func (s signer) sign(claims any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err) // numbers and texts always encode
	}
	text := s.header + base64url.EncodeToString(payload)
	return text + "." + s.mac(text)
}

// mac returns the base64url of HMAC-SHA256 of text.
func (s signer) mac(text string) string {
	h := hmac.New(sha256.New, s.key)
	h.Write([]byte(text))
	return base64url.EncodeToString(h.Sum(nil))
}

// verifyAccess returns the session of an access token that one of the keys signed, else false.
// store.sessionUser judges whether the token has expired or the session has ended.
func (k *keyring) verifyAccess(token string) (ref sessionRef, ok bool) {
	var c accessClaims
	for _, key := range k.keys {
		ok = ok || key.access.verify(token, &c)
	}
	ok = ok && c.User > 0 && c.Session > 0 && c.Issuer == k.issuer && c.Audience == k.issuer
	return sessionRef{c.Session, c.User, c.Expires}, ok
}

// verifyRefresh is verifyAccess for a refresh token, which also has a generation.
func (k *keyring) verifyRefresh(token string) (ref sessionRef, generation int64, ok bool) {
	var c refreshClaims
	for _, key := range k.keys {
		ok = ok || key.refresh.verify(token, &c)
	}
	ok = ok && c.User > 0 && c.Session > 0 && c.Generation >= 0
	return sessionRef{c.Session, c.User, c.Expires}, c.Generation, ok
}

// verify reads the claims of a token that this key signed, in the one spelling that sign writes. It
// returns false for any other token.
func (s signer) verify(token string, claims any) bool {
	rest, ok := strings.CutPrefix(token, s.header)
	if !ok {
		return false
	}
	segment, sum, _ := strings.Cut(rest, ".")
	want := s.mac(token[:len(s.header)+len(segment)])
	if subtle.ConstantTimeCompare([]byte(sum), []byte(want)) != 1 {
		return false
	}
	payload, err := base64url.DecodeString(segment)
	if err != nil || json.Unmarshal(payload, claims, json.RejectUnknownMembers(true)) != nil {
		return false
	}
	canonical, err := json.Marshal(claims)
	return err == nil && base64url.EncodeToString(canonical) == segment
}

// newSessionID returns a random id below 2^53, the integers that JavaScript keeps.
func newSessionID() int64 {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return max(1, int64(binary.LittleEndian.Uint64(b[:])>>11))
}

// ---- passwords ----

// Argon2id is slow and large on purpose, so it runs in a few slots behind a bounded queue: without
// them 200 logins at once take 5.9 GB, and every other request waits for the processor. Nothing
// here logs, and no error holds a password or a hash.
//
// Threats and answers. Account enumeration by timing: an unknown e-mail costs one hash like a known
// one; bcrypt hashes differ, until their first login. A hash in the database with which one login
// takes all memory or crashes the program: parsePHC bounds its cost.

// argonParams are the cost of a hash.
type argonParams struct {
	memory  uint32 // KiB
	time    uint32 // passes
	threads uint8
}

// currentParams are OWASP's first choice for Argon2id (Password Storage Cheat Sheet). They need 19
// MiB and about 25 ms of one core. Raising one rehashes each password at its owner's next login.
var currentParams = argonParams{memory: 19456, time: 2, threads: 1}

const (
	saltBytes = 16 // RFC 9106, section 3.1
	tagBytes  = 32

	maxPasswordBytes = 1024 // enough for any passphrase; bounds what one request makes us hash

	hashTimeout = 2 * time.Second // the wait for a slot: what a person who logs in accepts
	hashQueue   = 80              // requests that wait for each slot: 2 s of hashes of 25 ms
)

// bcryptForm matches bcrypt hashes, of costs that take up to about 1 s of one core.
var bcryptForm = regexp.MustCompile(`^\$2[aby]\$(0[4-9]|1[0-4])\$[./A-Za-z0-9]{53}$`)

// errMalformedHash says that a stored hash is not one of ours.
var errMalformedHash = errors.New("stored password hash is malformed or out of bounds")

// hasher hashes and verifies passwords, as many at once as it has slots.
type hasher struct {
	params  argonParams
	slots   limiter
	garbage atomic.Int64 // KiB of finished hashes that are not yet collected
	dummy   string       // the hash of a password that nobody has, for unknown accounts
}

// newHasher makes a hasher with a slot for each core but one, which is kept for all other requests
// (with a slot on every core their p99 was four times as high), and at least one. Where there are
// several slots, one client cannot have all of them.
func newHasher(params argonParams) *hasher {
	slots := max(1, runtime.GOMAXPROCS(0)-1)
	h := &hasher{params: params, slots: limiter{total: int64(slots), share: int64(max(1, slots-1)),
		queue: hashQueue * slots, timeout: hashTimeout,
		detail: "Too many passwords are being checked; try again."}}
	h.dummy, _ = h.hash(context.Background(), clientKey{}, rand.Text()) // all slots are free
	return h
}

// hash returns the PHC string of a client's password. Errors are those of limiter.acquire.
func (h *hasher) hash(ctx context.Context, c clientKey, password string) (string, error) {
	release, err := h.slots.acquire(ctx, c, 1)
	if err != nil {
		return "", err
	}
	defer h.collect(release, h.params.memory)
	salt := make([]byte, saltBytes)
	rand.Read(salt) // never fails, as in newSessionID
	p := h.params
	tag := argon2.IDKey([]byte(password), salt, p.time, p.memory, p.threads, tagBytes)
	return formatPHC(p, salt, tag), nil
}

// verify reports whether password has the hash encoded: of Argon2id, or of bcrypt, as databases of
// other frameworks have it. An empty hash stands for an unknown account: it costs as much as a
// known one and matches nothing, and so does a hash of another kind, which is errMalformedHash.
// Other errors are those of limiter.acquire.
func (h *hasher) verify(ctx context.Context, c clientKey, password, encoded string) (bool, error) {
	release, err := h.slots.acquire(ctx, c, 1)
	if err != nil {
		return false, err
	}
	if bcryptForm.MatchString(encoded) { // bcrypt reads 72 bytes of the password, as it did there
		defer release()
		return bcrypt.CompareHashAndPassword([]byte(encoded), []byte(password)) == nil, nil
	}
	p, salt, want, parseErr := parsePHC(encoded)
	if parseErr != nil {
		p, salt, want, _ = parsePHC(h.dummy)
	}
	defer h.collect(release, p.memory)
	got := argon2.IDKey([]byte(password), salt, p.time, p.memory, p.threads, uint32(len(want)))
	if encoded == "" {
		return false, nil
	}
	return parseErr == nil && subtle.ConstantTimeCompare(got, want) == 1, parseErr
}

// outdated reports whether encoded was made with less than today's cost.
func (h *hasher) outdated(encoded string) bool {
	p, salt, tag, err := parsePHC(encoded)
	return bcryptForm.MatchString(encoded) ||
		err == nil && (p.memory < h.params.memory || p.time < h.params.time ||
			len(salt) < saltBytes || len(tag) < tagBytes)
}

// collect gives a slot back after a hash of memory KiB. Once finished hashes hold what all slots
// need at currentParams, it first collects that, in some 0.5 ms. Otherwise Go takes new memory for
// each second hash and returns the old to the system, which costs 14 % of logins in page faults,
// and 20 MiB.
func (h *hasher) collect(release func(), memory uint32) {
	if h.garbage.Add(int64(memory)) >= h.slots.total*int64(currentParams.memory) {
		h.garbage.Store(0)
		runtime.GC()
	}
	release()
}

// formatPHC returns the PHC string of Argon2id version 19 (0x13).
func formatPHC(p argonParams, salt, tag []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", p.memory, p.time, p.threads,
		b64.EncodeToString(salt), b64.EncodeToString(tag))
}

// parsePHC reads what formatPHC writes, in that one spelling. It bounds the cost both ways: 8 KiB a
// thread (RFC 9106) to 128 MiB, 1 to 10 passes, 1 to 8 threads. Old versions of argon2-cffi took
// 100 MiB and 8 threads.
func parsePHC(encoded string) (p argonParams, salt, tag []byte, err error) {
	parts := strings.Split(encoded, "$")
	if len(encoded) > 256 || len(parts) != 6 {
		return p, nil, nil, errMalformedHash
	}
	// A part that does not parse is not what formatPHC writes: its error needs no other check.
	fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.memory, &p.time, &p.threads)
	salt, _ = base64.RawStdEncoding.DecodeString(parts[4])
	tag, _ = base64.RawStdEncoding.DecodeString(parts[5])
	bounded := p.threads >= 1 && p.threads <= 8 && p.time >= 1 && p.time <= 10 &&
		p.memory >= 8*uint32(p.threads) && p.memory <= 128<<10 &&
		len(salt) >= 8 && len(salt) <= 64 && len(tag) >= 16 && len(tag) <= 64
	if !bounded || formatPHC(p, salt, tag) != encoded {
		return p, nil, nil, errMalformedHash
	}
	return p, salt, tag, nil
}

//go:embed passwords.txt
var passwordList string

// commonPasswords is the list as a set; the lines of its head start with "# " or are "#".
var commonPasswords = func() map[string]bool {
	set := map[string]bool{}
	for line := range strings.Lines(passwordList) {
		if line = strings.TrimSuffix(line, "\n"); line != "#" && !strings.HasPrefix(line, "# ") {
			set[line] = true
		}
	}
	return set
}()

// checkPasswordBytes refuses more than 1024 bytes; the inputs' tags bound the characters.
func checkPasswordBytes(password string) (value, refusal string) {
	if len(password) > maxPasswordBytes {
		return "", fmt.Sprintf("must have at most %d bytes in UTF-8", maxPasswordBytes)
	}
	return password, ""
}

// checkPasswordChoice returns why a password is too easy to guess for the account of email, which
// is in lower case, on the service called product, or "" (NIST SP 800-63B, 3.1.1.2: common and
// expected values are refused, and there are no rules of composition).
func checkPasswordChoice(password, email, product string) (refusal string) {
	local, _, _ := strings.Cut(email, "@")
	lower := strings.ToLower(password)
	switch {
	case utf8.RuneCountInString(password) < 8 || len(password) > maxPasswordBytes ||
		!utf8.ValidString(password) || strings.ContainsRune(password, 0):
		// Requests have been checked for this; "latch admin" has not.
		return "must have 8 characters to 1024 bytes of UTF-8, without U+0000"
	case commonPasswords[lower]:
		return "is one of the most common passwords; choose another"
	case lower == email || lower == local:
		return "must not be the e-mail address or its first part"
	case isOnly(lower, strings.ToLower(product)) || isOnly(lower, "latch"):
		return "must not be the name of this service"
	}
	return ""
}

// isOnly reports whether password is word, once or repeated, with only digits and signs around it.
func isOnly(password, word string) bool {
	return strings.ContainsFunc(word, unicode.IsLetter) && strings.Contains(password, word) &&
		!strings.ContainsFunc(strings.ReplaceAll(password, word, ""), unicode.IsLetter)
}
