package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

func TestHash(t *testing.T) {
	t.Parallel()
	h := newHasher(cheap)
	hash := func(password string) string {
		encoded, err := h.hash(t.Context(), clientKey{}, password)
		if err != nil {
			t.Fatal(err)
		}
		return encoded
	}
	for _, password := range []string{goodPass, "pässwörter \u212A",
		strings.Repeat("x", maxPasswordBytes)} {
		encoded := hash(password)
		if encoded == hash(password) {
			t.Errorf("two hashes of %.10q are the same", password)
		}
		for try, want := range map[string]bool{password: true, password + " ": false,
			strings.ToUpper(password): false, password[1:]: false, "": false} {
			got, err := h.verify(t.Context(), clientKey{}, try, encoded)
			if got != want || err != nil {
				t.Errorf("verify(%.10q, hash of %.10q) = %v, %v, want %v",
					try, password, got, err, want)
			}
		}
	}
	p, salt, tag, err := parsePHC(hash(goodPass))
	if p != cheap || len(salt) != 16 || len(tag) != 32 || err != nil {
		t.Errorf("a fresh hash has %+v, %d, %d, %v", p, len(salt), len(tag), err)
	}
	const noPasses = "$argon2id$v=19$m=64,t=0,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA"
	for _, encoded := range []string{"x", noPasses} {
		ok, err := h.verify(t.Context(), clientKey{}, goodPass, encoded)
		if ok || !errors.Is(err, errMalformedHash) {
			t.Errorf("verify(…, %q) = %v, %v, want errMalformedHash", encoded, ok, err)
		}
	}
}

// TestUnknownAccount checks that the dummy costs as much as a current hash, and matches nothing.
func TestUnknownAccount(t *testing.T) {
	t.Parallel()
	h := newHasher(cheap)
	if p, _, _, err := parsePHC(h.dummy); p != cheap || err != nil {
		t.Errorf("the dummy has %+v, %v", p, err)
	}
	_, salt, _, _ := parsePHC(h.dummy)
	key := argon2.IDKey([]byte(goodPass), salt, cheap.time, cheap.memory, cheap.threads, tagBytes)
	h.dummy = formatPHC(cheap, salt, key)
	if ok, err := h.verify(t.Context(), clientKey{}, goodPass, ""); ok || err != nil {
		t.Errorf("the dummy's own password = %v, %v, want false", ok, err)
	}
}

// TestKnownHashes verifies hashes of Argon2's reference implementation, Debian's package argon2.
// (The vectors of RFC 9106 have a secret and associated data, which PHC strings cannot express.)
func TestKnownHashes(t *testing.T) {
	t.Parallel()
	h := newHasher(cheap)
	for password, encoded := range map[string]string{
		// printf 'correct horse battery' |
		//	argon2 somesalt01234567 -id -t 2 -k 19456 -p 1 -l 32 -v 13 -e
		"correct horse battery": "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQwMTIzNDU2Nw$" +
			"UDoM11ZO7pTPMAhviWtOYptn+dvAa9IfrllhgjUNVec",
		// printf 'p\303\244ssw\303\266rter' | argon2 saltsalt -id -t 3 -k 256 -p 4 -l 16 -v 13 -e
		"pässwörter": "$argon2id$v=19$m=256,t=3,p=4$c2FsdHNhbHQ$/EdqZiKqcS53ZAHPTOXi+Q",
	} {
		if ok, err := h.verify(t.Context(), clientKey{}, password, encoded); !ok || err != nil {
			t.Errorf("verify(%q, %q) = %v, %v", password, encoded, ok, err)
		}
	}
}

func TestTodaysParams(t *testing.T) {
	t.Parallel()
	want := argonParams{19456, 2, 1}
	if currentParams != want || saltBytes != 16 || tagBytes != 32 {
		t.Errorf("currentParams = %+v, salt %d, tag %d; the contract has %+v, 16, 32",
			currentParams, saltBytes, tagBytes, want)
	}
	salt, tag := make([]byte, 16), make([]byte, 32)
	h := &hasher{params: argonParams{128, 2, 1}}
	for encoded, want := range map[string]bool{
		formatPHC(argonParams{128, 2, 1}, salt, tag):      false,
		formatPHC(argonParams{256, 3, 1}, salt, tag):      false,
		formatPHC(argonParams{127, 2, 1}, salt, tag):      true,
		formatPHC(argonParams{256, 1, 1}, salt, tag):      true,
		formatPHC(argonParams{128, 2, 1}, salt[:15], tag): true,
		formatPHC(argonParams{128, 2, 1}, salt, tag[:31]): true,
		"x": false,
	} {
		if got := h.outdated(encoded); got != want {
			t.Errorf("outdated(%q) = %v, want %v", encoded, got, want)
		}
	}
}

// phc returns a PHC string with these parameters, salt and tag.
func phc(params, salt, tag string) string {
	return "$argon2id$v=19$" + params + "$" + salt + "$" + tag
}

// changedPHC replaces old by new in a valid PHC string.
func changedPHC(old, new string) string {
	return strings.Replace(phc("m=19456,t=2,p=1", salt16, tag32), old, new, 1)
}

const (
	salt16 = "c29tZXNhbHQwMTIzNDU2Nw"
	tag32  = "UDoM11ZO7pTPMAhviWtOYptn+dvAa9IfrllhgjUNVec"
)

// badPHC are strings that parsePHC must refuse.
var badPHC = map[string]string{
	"empty":            "",
	"dollars":          "$$$$$",
	"bcrypt":           "$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW",
	"no passes":        phc("m=19456,t=0,p=1", salt16, tag32),
	"many passes":      phc("m=19456,t=11,p=1", salt16, tag32),
	"no threads":       phc("m=19456,t=2,p=0", salt16, tag32),
	"many threads":     phc("m=19456,t=2,p=9", salt16, tag32),
	"256 threads":      phc("m=19456,t=2,p=256", salt16, tag32),
	"257 threads":      phc("m=19456,t=2,p=257", salt16, tag32),
	"no memory":        phc("m=0,t=2,p=1", salt16, tag32),
	"little memory":    phc("m=63,t=2,p=8", salt16, tag32),
	"much memory":      phc("m=131073,t=2,p=1", salt16, tag32),
	"huge memory":      phc("m=4294967295,t=2,p=1", salt16, tag32),
	"memory wraps":     phc("m=4294986752,t=2,p=1", salt16, tag32),
	"negative":         phc("m=-19456,t=2,p=1", salt16, tag32),
	"leading zero":     phc("m=019456,t=2,p=1", salt16, tag32),
	"plus":             phc("m=+19456,t=2,p=1", salt16, tag32),
	"hexadecimal":      phc("m=0x4c00,t=2,p=1", salt16, tag32),
	"space":            phc("m= 19456,t=2,p=1", salt16, tag32),
	"other order":      phc("t=2,m=19456,p=1", salt16, tag32),
	"more parameters":  phc("m=19456,t=2,p=1,keyid=AA", salt16, tag32),
	"short salt":       phc("m=19456,t=2,p=1", "AAAAAAAAAA", tag32),
	"long salt":        phc("m=19456,t=2,p=1", strings.Repeat("AAAA", 22), tag32),
	"no tag":           phc("m=19456,t=2,p=1", salt16, ""),
	"short tag":        phc("m=19456,t=2,p=1", salt16, "AAAAAAAAAAAAAAAAAAAA"),
	"long tag":         phc("m=19456,t=2,p=1", salt16, strings.Repeat("AAAA", 22)),
	"salt's last bits": phc("m=19456,t=2,p=1", "c29tZXNhbHQwMTIzNDU2Nx", tag32),
	"tag's last bits":  phc("m=19456,t=2,p=1", salt16, tag32[:42]+"d"),
	"padding":          phc("m=19456,t=2,p=1", salt16+"==", tag32),
	"line feed":        phc("m=19456,t=2,p=1", salt16[:4]+"\n"+salt16[4:], tag32),
	"URL's base64":     phc("m=19456,t=2,p=1", salt16, strings.ReplaceAll(tag32, "+", "-")),
	"behind":           phc("m=19456,t=2,p=1", salt16, tag32+"$"),
	"argon2i":          changedPHC("argon2id", "argon2i"),
	"argon2d":          changedPHC("argon2id", "argon2d"),
	"version 16":       changedPHC("v=19", "v=16"),
	"no version":       changedPHC("$v=19", ""),
	"in front":         "x" + phc("m=19456,t=2,p=1", salt16, tag32),
	"upper case":       changedPHC("argon2id", "ARGON2ID"),
}

func TestParsePHC(t *testing.T) {
	t.Parallel()
	for name, encoded := range badPHC {
		if p, _, _, err := parsePHC(encoded); !errors.Is(err, errMalformedHash) {
			t.Errorf("%s: parsePHC(%q) = %+v, %v, want errMalformedHash", name, encoded, p, err)
		}
	}
	for params, want := range map[string]argonParams{"m=19456,t=2,p=1": {19456, 2, 1},
		"m=8,t=1,p=1": {8, 1, 1}, "m=64,t=1,p=8": {64, 1, 8},
		"m=131072,t=10,p=8": {131072, 10, 8}} {
		if got, _, _, err := parsePHC(phc(params, salt16, tag32)); got != want || err != nil {
			t.Errorf("parsePHC(%s) = %+v, %v, want %+v", params, got, err, want)
		}
	}
}

// FuzzPHC checks that an accepted string has one spelling, and a cost that neither panics nor
// exhausts the machine.
func FuzzPHC(f *testing.F) {
	f.Add(phc("m=19456,t=2,p=1", salt16, tag32))
	f.Add(phc("m=131072,t=10,p=8", salt16, tag32))
	for _, encoded := range badPHC {
		f.Add(encoded)
	}
	f.Fuzz(func(t *testing.T, encoded string) {
		p, salt, tag, err := parsePHC(encoded)
		if err != nil {
			if !errors.Is(err, errMalformedHash) {
				t.Errorf("parsePHC(%q) = %v", encoded, err)
			}
			return
		}
		if again := formatPHC(p, salt, tag); again != encoded {
			t.Errorf("parsePHC(%q) is written %q", encoded, again)
		}
		if p.memory > 128<<10 || p.time > 10 || p.threads > 8 || len(salt) > 64 ||
			len(tag) > 64 || len(tag) < 16 {
			t.Fatalf("parsePHC(%q) = %+v: out of bounds", encoded, p)
		}
		// IDKey panics on t=0 and p=0; the other parameters are kept low to be fast.
		argon2.IDKey(nil, salt, min(p.time, 1), min(p.memory, 64), p.threads, uint32(len(tag)))
	})
}

func TestBlocklist(t *testing.T) {
	t.Parallel()
	if len(commonPasswords) < 3000 {
		t.Errorf("the blocklist has %d entries, want at least 3000", len(commonPasswords))
	}
	entries := 0
	for line := range strings.Lines(passwordList) {
		word := strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(word, "# ") || word == "#" {
			continue
		}
		entries++
		if utf8.RuneCountInString(word) < 8 || word != strings.ToLower(word) ||
			word != strings.TrimSpace(word) {
			t.Errorf("the blocklist holds %q, which no password can be", word)
		}
		accepted := func(password string) bool {
			return checkPasswordChoice(password, "ada@example.com", "Other") == ""
		}
		if accepted(word) || accepted(strings.ToUpper(word)) {
			t.Errorf("%q of the blocklist is accepted", word)
		}
	}
	if entries != len(commonPasswords) {
		t.Errorf("the blocklist has %d lines for %d entries", entries, len(commonPasswords))
	}
}

func TestPasswordChoice(t *testing.T) {
	t.Parallel()
	const email, product = "ada.lovelace@example.com", "Other Cloud"
	for password, want := range map[string]string{
		"a good passphrase":        "",
		"ada.lovelace@example.org": "",
		"ada.lovelace1":            "",
		"other clouds":             "",
		"latchkeysmith":            "",
		"12345678 Latch!x":         "",
		"пароль42":                 "",
		"        ":                 "",
		"seven77":                  "8 characters",
		"пароль4":                  "8 characters",
		"":                         "8 characters",
		"eight\x0088":              "U+0000",
		"eight\xff88":              "UTF-8",
		strings.Repeat("ü", 513):   "1024 bytes",
		"password1":                "common",
		"PassWord1":                "common",
		"00000000":                 "common",
		"aaaaaaaa":                 "common",
		"AAAAAAAAAAAA":             "common",
		"********":                 "common",
		"abcdefgh":                 "common",
		"zyxwvuts":                 "common",
		"87654321":                 "common",
		"90123456":                 "common",
		"99999999":                 "common",
		"poiuytre":                 "common",
		"ASDFGHJKL;":               "common",
		email:                      "e-mail",
		strings.ToUpper(email):     "e-mail",
		"Ada.Lovelace":             "e-mail",
		"other cloud":              "name of this service",
		"OTHER CLOUD 2026!":        "name of this service",
		"latchlatchlatch":          "name of this service",
		"Latch12345":               "name of this service",
	} {
		got := checkPasswordChoice(password, email, product)
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("checkPasswordChoice(%q) = %q, want %q in it", password, got, want)
		}
		if password != "" && strings.Contains(got, password) {
			t.Errorf("the refusal of %q repeats it", password)
		}
	}
	if got := checkPasswordChoice(strings.Repeat("ü", 512), email, product); got != "" {
		t.Errorf("1024 bytes are refused: %s", got)
	}
	for length, want := range map[int]bool{1024: true, 1025: false} {
		if _, refusal := checkPasswordBytes(strings.Repeat("x", length)); (refusal == "") != want {
			t.Errorf("checkPasswordBytes of %d bytes = %q", length, refusal)
		}
	}
}

// TestHashGivesBackItsSlot checks that hash and verify release their slot, also when they fail.
func TestHashGivesBackItsSlot(t *testing.T) {
	t.Parallel()
	h := newHasher(cheap)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 3 * h.slots.total {
		h.hash(gone, clientKey{}, goodPass)
		h.verify(gone, clientKey{}, goodPass, h.dummy)
		h.verify(t.Context(), clientKey{}, goodPass, "malformed")
		if _, err := h.hash(t.Context(), clientKey{}, goodPass); err != nil {
			t.Fatalf("hash %d = %v", i, err)
		}
	}
	if used, waiting := h.slots.state(); used != 0 || waiting != 0 {
		t.Errorf("%d slots are taken and %d wait, want none", used, waiting)
	}
}
