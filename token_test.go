package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const oldTestKey = "an older test key of the suite: canary 9876543210"

var (
	testRing    = newKeyring([]string{testKey, oldTestKey}, "latch", 30*time.Minute)
	testSession = session{ID: 7, UserID: 42, Generation: 3,
		RotatedAt: time.Unix(1_700_000_000, 999), ExpiresAt: time.Unix(1_700_600_000, 1)}
)

// verifyJWT is another service's view: all it has is the token and the text of SECRET_KEY.
func verifyJWT(t *testing.T, token, secret string) (header, claims map[string]any) {
	t.Helper()
	part := strings.Split(token, ".")
	if len(part) != 3 {
		t.Fatalf("the token has %d parts", len(part))
	}
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(part[0] + "." + part[1]))
	got, err := base64.RawURLEncoding.DecodeString(part[2])
	if err != nil || !hmac.Equal(got, h.Sum(nil)) {
		return nil, nil
	}
	for i, to := range []*map[string]any{&header, &claims} {
		text, err := base64.RawURLEncoding.DecodeString(part[i])
		if err == nil {
			err = json.Unmarshal(text, to)
		}
		if err != nil {
			t.Fatalf("part %d: %v", i, err)
		}
	}
	return header, claims
}

// parseAccess returns the claims of a valid access token, with what verifyAccess makes of them.
func parseAccess(k *keyring, token string) (c accessClaims, userID int64, ok bool) {
	ref, ok := k.verifyAccess(token)
	for _, key := range k.keys {
		if key.access.verify(token, &c) {
			break
		}
	}
	if ok && (ref.session != c.Session || ref.expires != c.Expires) {
		panic("verifyAccess returns other claims than the token has")
	}
	return c, ref.user, ok
}

// parseRefresh is parseAccess for a refresh token.
func parseRefresh(k *keyring, token string) (c refreshClaims, userID int64, ok bool) {
	ref, generation, ok := k.verifyRefresh(token)
	for _, key := range k.keys {
		if key.refresh.verify(token, &c) {
			break
		}
	}
	if ok && (ref.session != c.Session || ref.expires != c.Expires || generation != c.Generation) {
		panic("verifyRefresh returns other claims than the token has")
	}
	return c, ref.user, ok
}

func TestAccessTokenForOthers(t *testing.T) {
	t.Parallel()
	pair := testRing.issue(testSession)
	header, claims := verifyJWT(t, pair.AccessToken, testKey)
	if want := map[string]any{"alg": "HS256", "typ": "JWT"}; !reflect.DeepEqual(header, want) {
		t.Errorf("header = %v, want %v", header, want)
	}
	jti, _ := claims["jti"].(string)
	want := map[string]any{"iss": "latch", "aud": "latch", "sub": "42", "sid": 7.0, "jti": jti,
		"iat": 1_700_000_000.0, "exp": 1_700_001_800.0}
	if jti == "" || !reflect.DeepEqual(claims, want) {
		t.Errorf("claims = %v, want %v with a jti", claims, want)
	}
	if pair.TokenType != "bearer" || pair.ExpiresIn != 1800 {
		t.Errorf("issue = %q, %d, want bearer, 1800", pair.TokenType, pair.ExpiresIn)
	}
	if header, _ := verifyJWT(t, pair.RefreshToken, testKey); header != nil {
		t.Error("whoever verifies access tokens can make refresh tokens")
	}
}

func TestRefreshToken(t *testing.T) {
	t.Parallel()
	part := strings.Split(testRing.issue(testSession).RefreshToken, ".")
	for i, want := range []map[string]any{
		{"alg": "HS256", "typ": "rt+jwt"},
		{"sub": "42", "sid": 7.0, "gen": 3.0, "iat": 1_700_000_000.0, "exp": 1_700_600_000.0},
	} {
		var got map[string]any
		text, _ := base64.RawURLEncoding.DecodeString(part[i])
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("part %d = %v, want %v", i, got, want)
		}
	}
}

func TestIssueIsPure(t *testing.T) {
	t.Parallel()
	first := testRing.issue(testSession)
	replica := newKeyring([]string{testKey}, "latch", 30*time.Minute)
	if again := replica.issue(testSession); again != first {
		t.Error("the same state gave other tokens on another replica")
	}
	next := testSession
	next.Generation++
	other := testRing.issue(next)
	if other.AccessToken == first.AccessToken || other.RefreshToken == first.RefreshToken {
		t.Error("another generation gave the same tokens")
	}
}

func TestParseTokens(t *testing.T) {
	t.Parallel()
	pair := testRing.issue(testSession)
	a, id, ok := parseAccess(testRing, pair.AccessToken)
	access := accessClaims{"latch", "latch", 42, 7, "7.3", 1_700_000_000, 1_700_001_800}
	if !ok || id != 42 || a != access {
		t.Errorf("parseAccess = %+v, %d, %v", a, id, ok)
	}
	r, id, ok := parseRefresh(testRing, pair.RefreshToken)
	refresh := refreshClaims{42, 7, 3, 1_700_000_000, 1_700_600_000}
	if !ok || id != 42 || r != refresh {
		t.Errorf("parseRefresh = %+v, %d, %v", r, id, ok)
	}
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	before := newKeyring([]string{oldTestKey}, "latch", time.Hour)
	after := newKeyring([]string{testKey}, "latch", time.Hour)
	pair := before.issue(testSession)
	for name, row := range map[string]struct {
		ring *keyring
		want bool
	}{"old": {before, true}, "new and old": {testRing, true}, "new": {after, false}} {
		if _, _, ok := parseAccess(row.ring, pair.AccessToken); ok != row.want {
			t.Errorf("%s: parseAccess of an old token = %v, want %v", name, ok, row.want)
		}
		if _, _, ok := parseRefresh(row.ring, pair.RefreshToken); ok != row.want {
			t.Errorf("%s: parseRefresh of an old token = %v, want %v", name, ok, row.want)
		}
	}
	if _, _, ok := parseAccess(after, testRing.issue(testSession).AccessToken); !ok {
		t.Error("the first key does not sign")
	}
}

// TestTokenIssuer: the setting names issuer and audience. Refresh tokens, which no other service
// reads, do not depend on it.
func TestTokenIssuer(t *testing.T) {
	t.Parallel()
	const issuer = "https://api.example.com/<&>"
	ring := newKeyring([]string{testKey}, issuer, time.Hour)
	pair := ring.issue(testSession)
	_, claims := verifyJWT(t, pair.AccessToken, testKey)
	if claims["iss"] != issuer || claims["aud"] != issuer {
		t.Errorf("claims = %v", claims)
	}
	if _, _, ok := parseAccess(ring, pair.AccessToken); !ok {
		t.Error("its own access token is refused")
	}
	if _, _, ok := parseRefresh(testRing, pair.RefreshToken); !ok {
		t.Error("another issuer refuses the refresh token")
	}
}

// badTokens returns tokens that are nearly valid, by what is wrong with them.
func badTokens() map[string]string {
	key := testRing.keys[0]
	pair := testRing.issue(testSession)
	other := newKeyring([]string{"some other key of the test suite: 0123"}, "latch", time.Hour)
	bad := map[string]string{"empty": "", "two dots": "..", "no header": "." + pair.AccessToken,
		"other key": other.issue(testSession).AccessToken}
	claims, _, _ := parseAccess(testRing, pair.AccessToken)
	refresh, _, _ := parseRefresh(testRing, pair.RefreshToken)
	accessByRefresh := signer{key.access.header, key.refresh.key}
	refreshByAccess := signer{key.refresh.header, key.access.key}
	bad["access signed by the refresh key"] = accessByRefresh.sign(claims)
	bad["refresh signed by the access key"] = refreshByAccess.sign(refresh)
	bad["access claims in a refresh token"] = key.refresh.sign(claims)
	bad["refresh claims in an access token"] = key.access.sign(refresh)
	former := base64url.EncodeToString([]byte(`{"alg":"HS256","typ":"at+jwt","kid":"AAAAAAAAAAA"}`))
	bad["the former header, with a kid"] = signer{former + ".", key.access.key}.sign(claims)
	for name, token := range changedTokens(pair.AccessToken, key.access) {
		bad["access: "+name] = token
	}
	for name, token := range changedTokens(pair.RefreshToken, key.refresh) {
		bad["refresh: "+name] = token
	}
	named := newKeyring([]string{testKey}, "other", time.Hour)
	bad["access: TOKEN_ISSUER=other"] = named.issue(testSession).AccessToken
	otherIssuer := accessClaims{"other", "latch", 42, 7, "7.3", 1, 2}
	otherAudience := accessClaims{"latch", "other", 42, 7, "7.3", 1, 2}
	bad["access: other issuer"] = key.access.sign(otherIssuer)
	bad["access: other audience"] = key.access.sign(otherAudience)
	return bad
}

// changedTokens returns changed copies of token, by what is changed. s signs some of them anew.
func changedTokens(token string, s signer) map[string]string {
	part := strings.Split(token, ".")
	signed := func(header, payload string) string {
		return header + "." + payload + "." + s.mac(header+"."+payload)
	}
	encode := base64.RawURLEncoding.EncodeToString
	recode := func(segment, old, new string) string {
		text, _ := base64.RawURLEncoding.DecodeString(segment)
		return encode([]byte(strings.Replace(string(text), old, new, 1)))
	}
	unsigned, signature := part[0]+"."+part[1], part[2]
	changed := map[string]string{
		"truncated":             token[:len(token)-1],
		"no signature":          part[0] + "." + part[1],
		"empty signature":       part[0] + "." + part[1] + ".",
		"dot behind":            token + ".",
		"dot in front":          "." + token,
		"dot within":            part[0] + ".." + part[1] + "." + part[2],
		"padding":               token + "=",
		"space behind":          token + " ",
		"line feed behind":      token + "\n",
		"line feed in payload":  signed(part[0], part[1]+"\n"),
		"return in payload":     signed(part[0], part[1][:5]+"\r"+part[1][5:]),
		"line feed in header":   signed(part[0]+"\n", part[1]),
		"line feed in the sum":  unsigned + "." + signature[:9] + "\r\n" + signature[9:],
		"alg none":              recode(part[0], "HS256", "none") + "." + part[1] + ".",
		"alg none, signed":      signed(recode(part[0], "HS256", "none"), part[1]),
		"header with space":     signed(recode(part[0], `{`, `{ `), part[1]),
		"header without typ":    signed(recode(part[0], `"typ"`, `"tip"`), part[1]),
		"payload tampered":      part[0] + "." + recode(part[1], `"42"`, `"43"`) + "." + signature,
		"unknown claim":         signed(part[0], recode(part[1], `{`, `{"adm":true,`)),
		"claim twice":           signed(part[0], recode(part[1], `{`, `{"sub":"42",`)),
		"claim missing":         signed(part[0], recode(part[1], `"sid":7,`, ``)),
		"subject is no id":      signed(part[0], recode(part[1], `"42"`, `"042"`)),
		"subject is zero":       signed(part[0], recode(part[1], `"42"`, `"0"`)),
		"subject is a number":   signed(part[0], recode(part[1], `"42"`, `42`)),
		"session is text":       signed(part[0], recode(part[1], `7`, `"7"`)),
		"time with a fraction":  signed(part[0], recode(part[1], `1700000000`, `1700000000.5`)),
		"payload is no JSON":    signed(part[0], recode(part[1], `}`, `}}`)),
		"payload is no object":  signed(part[0], "W10"),
		"payload is no base64":  signed(part[0], "*"),
		"payload, other base64": signed(part[0], "e31"), // {} with a bit too many
	}
	header512 := recode(part[0], "HS256", "HS512")
	h := hmac.New(sha512.New, []byte(testKey))
	h.Write([]byte(header512 + "." + part[1]))
	changed["alg HS512"] = header512 + "." + part[1] + "." + encode(h.Sum(nil))
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	for flip := 1; flip < 4; flip++ { // 43 characters hold 258 bits for 256: four spellings
		spelling := token[:len(token)-1] + alphabet[last^flip:][:1]
		changed[fmt.Sprintf("spelling %d of the sum", flip)] = spelling
	}
	return changed
}

func TestBadTokens(t *testing.T) {
	t.Parallel()
	bad := badTokens()
	pair := testRing.issue(testSession)
	for name, token := range bad {
		if token == pair.AccessToken || token == pair.RefreshToken {
			t.Errorf("%s: is a good token, and proves nothing", name)
		}
		if _, _, ok := parseAccess(testRing, token); ok {
			t.Errorf("%s: parseAccess takes it", name)
		}
		if _, _, ok := parseRefresh(testRing, token); ok {
			t.Errorf("%s: parseRefresh takes it", name)
		}
	}
	if _, _, ok := parseAccess(testRing, pair.RefreshToken); ok {
		t.Error("parseAccess takes a refresh token")
	}
	if _, _, ok := parseRefresh(testRing, pair.AccessToken); ok {
		t.Error("parseRefresh takes an access token")
	}
}

// FuzzToken checks that an accepted token encodes again to the same bytes, so that it has one
// spelling. The text is also tried as a payload that a holder of the key signed.
func FuzzToken(f *testing.F) {
	pair := testRing.issue(testSession)
	old := newKeyring([]string{oldTestKey}, "latch", time.Hour).issue(testSession)
	valid := []string{pair.AccessToken, pair.RefreshToken, old.AccessToken, old.RefreshToken}
	for _, token := range slices.Concat(valid, slices.Sorted(maps.Values(badTokens()))) {
		f.Add(token)
	}
	f.Add(`{"iss":"latch","aud":"latch","sub":"42","sid":7,"jti":"7.3","iat":1,"exp":2}`)
	f.Add(`{"sub":"42","sid":7,"gen":3,"iat":1,"exp":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		access, refresh := testRing.keys[0].access, testRing.keys[0].refresh
		tokens := []string{text, signPayload(access, text), signPayload(refresh, text)}
		for _, token := range tokens {
			a, aID, isAccess := parseAccess(testRing, token)
			r, rID, isRefresh := parseRefresh(testRing, token)
			if isAccess && isRefresh {
				t.Fatalf("%q is both", token)
			}
			same := func(sign func(key) string) bool {
				equal := func(k key) bool { return sign(k) == token }
				return token != text || slices.ContainsFunc(testRing.keys, equal)
			}
			if isAccess && (!same(func(k key) string { return k.access.sign(a) }) ||
				aID != a.User || aID < 1 || a.Issuer != "latch" ||
				a.Audience != "latch" || a.Session < 1) {
				t.Errorf("parseAccess(%q) = %+v, %d", token, a, aID)
			}
			if isRefresh && (!same(func(k key) string { return k.refresh.sign(r) }) ||
				rID != r.User || rID < 1 || r.Session < 1 || r.Generation < 0) {
				t.Errorf("parseRefresh(%q) = %+v, %d", token, r, rID)
			}
		}
	})
}

func signPayload(s signer, payload string) string {
	text := s.header + base64.RawURLEncoding.EncodeToString([]byte(payload))
	return text + "." + s.mac(text)
}
