package main

// password.go hashes and judges passwords. Argon2id is slow and large on purpose, so it runs in a few
// slots behind a bounded queue: without them 200 logins at once take 5.9 GB, and every other request
// waits for the processor. Nothing here logs, and no error holds a password or a hash.

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

// argonParams are the cost of a hash.
type argonParams struct {
	memory  uint32 // KiB
	time    uint32 // passes
	threads uint8
}

// todaysParams are OWASP's first choice for Argon2id (Password Storage Cheat Sheet). They need 19 MiB
// and about 25 ms of one core. Raising one re-hashes each password at its owner's next login.
var todaysParams = argonParams{memory: 19456, time: 2, threads: 1}

const (
	saltBytes = 16 // RFC 9106, section 3.1
	tagBytes  = 32

	maxPasswordBytes = 1024 // enough for any passphrase; bounds what one request makes us hash

	// hashWait is how long a request waits for a slot before it is shed: the patience of a person
	// who logs in. hashQueue bounds the waiting requests of one slot: 2 s of hashes of 25 ms.
	hashWait  = 2 * time.Second
	hashQueue = 80
)

// errMalformedHash says that a stored hash is not one of ours.
var errMalformedHash = errors.New("stored password hash is malformed or out of bounds")

// hasher hashes and verifies passwords, no more at once than it has slots.
type hasher struct {
	params  argonParams
	slots   chan struct{}
	waiting atomic.Int64
	shed    atomic.Int64 // requests turned away
	dead    atomic.Int64 // KiB of hashes that are done, not yet collected
	dummy   string       // the hash of a password nobody has, for names nobody has
}

// newHasher makes a hasher with one slot for each core but one, which is kept for all other requests
// (with a slot on every core their p99 was four times as high), and at least one.
func newHasher(params argonParams) *hasher {
	h := &hasher{params: params, slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1))}
	h.dummy = h.compute(rand.Text())
	return h
}

// hash returns the PHC string of password under a fresh salt. It waits for a slot: errBusy after
// hashWait or when the queue is full, the context's error when the client has gone.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	if err := h.acquire(ctx); err != nil {
		return "", err
	}
	defer h.release(h.params.memory)
	return h.compute(password), nil
}

// verify tells whether password has the hash encoded. An empty encoded stands for an unknown account:
// it costs as much as a known one and matches nothing. Errors as hash, and errMalformedHash.
func (h *hasher) verify(ctx context.Context, password, encoded string) (bool, error) {
	known := encoded != ""
	if !known {
		encoded = h.dummy
	}
	params, salt, want, err := parsePHC(encoded)
	if err != nil {
		return false, err
	}
	if err := h.acquire(ctx); err != nil {
		return false, err
	}
	defer h.release(params.memory)
	got := argon2.IDKey([]byte(password), salt, params.time, params.memory, params.threads, uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1 && known, nil
}

// outdated tells whether encoded was made with less than today's cost.
func (h *hasher) outdated(encoded string) bool {
	p, salt, tag, err := parsePHC(encoded)
	return err == nil && (p.memory < h.params.memory || p.time < h.params.time || len(salt) < saltBytes || len(tag) < tagBytes)
}

func (h *hasher) compute(password string) string {
	salt := make([]byte, saltBytes)
	rand.Read(salt) // never fails: crypto/rand ends the program instead
	tag := argon2.IDKey([]byte(password), salt, h.params.time, h.params.memory, h.params.threads, tagBytes)
	return formatPHC(h.params, salt, tag)
}

func (h *hasher) acquire(ctx context.Context) error {
	select {
	case h.slots <- struct{}{}:
		return nil
	default:
	}
	if h.waiting.Add(1) > int64(hashQueue*cap(h.slots)) {
		h.waiting.Add(-1)
		h.shed.Add(1)
		return errBusy
	}
	defer h.waiting.Add(-1)
	patience := time.NewTimer(hashWait)
	defer patience.Stop()
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-patience.C:
		h.shed.Add(1)
		return errBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}

// release gives the slot of a hash that took so many KiB to the next. Once what is dead is as much as all slots take,
// it is collected first, so that the next hashes get it again: that takes some 0.5 ms. Left to itself, Go takes
// new memory for each second hash and gives the old back to the system, which costs a fifth of all hashes in page
// faults, and 20 MiB.
func (h *hasher) release(memory uint32) {
	if h.dead.Add(int64(memory)) >= int64(cap(h.slots))*int64(todaysParams.memory) {
		h.dead.Store(0)
		runtime.GC()
	}
	<-h.slots
}

// full tells whether acquire would refuse at once.
func (h *hasher) full() bool { return h.waiting.Load() >= int64(hashQueue*cap(h.slots)) }

// formatPHC writes the PHC string of Argon2id version 19 (0x13).
func formatPHC(p argonParams, salt, tag []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", p.memory, p.time, p.threads, b64.EncodeToString(salt), b64.EncodeToString(tag))
}

// parsePHC reads what formatPHC writes, in that one spelling. Whoever can write to the database could
// otherwise make one login take all memory, or crash the program: argon2 panics on zero passes or
// threads. So the cost is bounded: 8 KiB a thread (RFC 9106) to 64 MiB, 10 passes, 4 threads.
func parsePHC(encoded string) (p argonParams, salt, tag []byte, err error) {
	part := strings.Split(encoded, "$")
	if len(encoded) > 256 || len(part) != 6 {
		return p, nil, nil, errMalformedHash
	}
	_, err = fmt.Sscanf(part[3], "m=%d,t=%d,p=%d", &p.memory, &p.time, &p.threads)
	if err == nil {
		salt, err = base64.RawStdEncoding.DecodeString(part[4])
	}
	if err == nil {
		tag, err = base64.RawStdEncoding.DecodeString(part[5])
	}
	bounded := p.threads >= 1 && p.threads <= 4 && p.memory >= 8*uint32(p.threads) && p.memory <= 64<<10 && p.time >= 1 && p.time <= 10 &&
		len(salt) >= 8 && len(salt) <= 64 && len(tag) >= 16 && len(tag) <= 64
	if err != nil || !bounded || formatPHC(p, salt, tag) != encoded {
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

// checkPasswordLength is the upper bound, which counts bytes; characters are bounded by the inputs' tags.
func checkPasswordLength(password string) (value, refusal string) {
	if len(password) > maxPasswordBytes {
		return "", fmt.Sprintf("must have at most %d bytes in UTF-8", maxPasswordBytes)
	}
	return password, ""
}

// checkPasswordChoice says why password, of a length that is allowed, is too easy to guess for the
// account called email on the service called product, or "" where it is not (NIST SP 800-63B, 3.1.1.2:
// common and expected values are refused, and there are no rules of composition).
func checkPasswordChoice(password, email, product string) (refusal string) {
	local, _, _ := strings.Cut(email, "@")
	lower := strings.ToLower(password)
	switch {
	case utf8.RuneCountInString(password) < 8 || len(password) > maxPasswordBytes || !utf8.ValidString(password) || strings.ContainsRune(password, 0):
		return "must have 8 characters to 1024 bytes of UTF-8, without U+0000" // the gate has seen to it; "latch admin" has not
	case commonPasswords[lower]:
		return "is one of the most common passwords; choose another"
	case lower == strings.ToLower(email) || lower == strings.ToLower(local):
		return "must not be the e-mail address or its first part"
	case isNothingBut(lower, strings.ToLower(product)) || isNothingBut(lower, "latch"):
		return "must not be the name of this service"
	}
	return ""
}

// isNothingBut tells whether password is word, once or repeated, with nothing but digits and signs around.
func isNothingBut(password, word string) bool {
	return strings.ContainsFunc(word, unicode.IsLetter) && strings.Contains(password, word) &&
		!strings.ContainsFunc(strings.ReplaceAll(password, word, ""), unicode.IsLetter)
}
