package main

// auth.go is registration, login, refresh, logout and sessions.
//
// Threats and answers. Account enumeration by timing: at a login, an unknown e-mail costs one hash
// like a known one, and the answer is the same. (Registration tells that an address is taken:
// the contract wants it.) A stolen refresh token: its second use, by thief or owner, ends the
// session. A stolen access token: every request queries the session, so a logout counts at once.
// A login that races with a password change or a deactivation: store.createSession makes a session
// only if the checked hash is still the account's.

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode"
)

const (
	sessionLifetime = 30 * 24 * time.Hour // absolute, however often it is refreshed
	sweepInterval   = 10 * time.Minute
	maxBearer       = 4 << 10 // bytes of the Authorization header; our tokens have some 300
)

type registerInput struct {
	Email    string           `json:"email" format:"email" max:"254" example:"ada@example.com"`
	Password string           `json:"password" format:"password" min:"8" max:"1024"`
	FullName nullable[string] `json:"full_name" max:"255" example:"Ada Lovelace"`
}

// register creates an account. It starts no session and never makes an admin.
func (s *server) register(ctx context.Context, c *caller, in registerInput) (user, error) {
	if !s.cfg.RegistrationOpen {
		return user{}, errRegistrationClosed
	}
	n := newUser{Email: in.Email, FullName: in.FullName.Value, IsActive: true}
	u, err := s.addUser(ctx, c, n, in.Password)
	s.eventIf(err == nil, c, "registered", u.ID)
	return u, err
}

type loginInput struct {
	Username     *string `json:"username" form:"username" min:"1"` // the e-mail, not yet trimmed
	Password     *string `json:"password" form:"password" format:"password" min:"1" max:"1024"`
	GrantType    *string `json:"grant_type" form:"grant_type" enum:"password,refresh_token,"`
	RefreshToken *string `json:"refresh_token" form:"refresh_token" min:"1" max:"4096"`
}

// login checks a password and starts a session; as OAuth 2's one token URL, it also refreshes.
func (s *server) login(ctx context.Context, c *caller, in loginInput) (tokens, error) {
	if in.GrantType != nil && *in.GrantType == "refresh_token" {
		if in.RefreshToken == nil {
			return tokens{}, invalidField("refresh_token", "missing", "is required")
		}
		return s.refresh(ctx, c, refreshInput{RefreshToken: *in.RefreshToken})
	}
	var missing []fieldError
	if in.Username == nil {
		missing = append(missing, fieldError{[]any{"body", "username"}, "is required", "missing"})
	}
	if in.Password == nil {
		missing = append(missing, fieldError{[]any{"body", "password"}, "is required", "missing"})
	}
	if missing != nil {
		return tokens{}, invalid(missing...)
	}
	if s.hasher.slots.full() { // then most logins are refused, which must not cost a query each
		return tokens{}, s.hasher.slots.busy()
	}
	var u storedUser
	for range 2 { // again if the hash has changed since it was read
		var err error
		if u, err = s.checkPassword(ctx, c, in); err != nil {
			return tokens{}, err
		}
		started, err := s.store.createSession(ctx, u.ID, u.PasswordHash, c, s.idleLimit())
		if err == nil {
			s.rehash(ctx, c, u, *in.Password)
			s.event(c, "login_ok", u.ID, "session_id", started.ID)
			return s.keys.issue(started), nil
		}
		if !errors.Is(err, errNotFound) {
			return tokens{}, err
		}
	}
	s.event(c, "login_failed", u.ID, "reason", "changed_meanwhile")
	return tokens{}, errInvalidCredentials
}

// checkPassword returns the account that may log in, with the hash that the password matched.
func (s *server) checkPassword(ctx context.Context, c *caller, in loginInput) (storedUser, error) {
	email, _ := parseEmail(strings.TrimSpace(*in.Username)) // "": no account has it
	u, notFound := s.store.userByEmail(ctx, email)
	if notFound != nil && !errors.Is(notFound, errNotFound) {
		return u, notFound
	}
	ok, err := s.hasher.verify(ctx, c.key(), *in.Password, u.PasswordHash)
	reason, refusal := "wrong_password", errInvalidCredentials
	switch {
	case errors.Is(err, errMalformedHash):
		s.log.Warn("malformed_hash", "user_id", u.ID)
	case err != nil:
		return u, err
	case ok && u.IsActive:
		return u, nil
	case ok:
		reason, refusal = "account_inactive", errAccountInactive
	case notFound != nil:
		reason = "unknown_email"
	}
	s.event(c, "login_failed", u.ID, "reason", reason)
	return u, refusal
}

// rehash stores password at today's cost if u's hash has a lower one. Where that fails, the old
// hash stays until the next login.
func (s *server) rehash(ctx context.Context, c *caller, u storedUser, password string) {
	if !s.hasher.outdated(u.PasswordHash) {
		return
	}
	hash, err := s.hasher.hash(ctx, c.key(), password)
	if err == nil {
		err = s.store.rehash(ctx, u.ID, u.PasswordHash, hash)
	}
	if err != nil {
		s.log.Warn("rehash_failed", "user_id", u.ID, "error", err.Error())
	}
}

// refreshInput has a grant_type, which a form must send (RFC 6749, section 6) and JSON may.
type refreshInput struct {
	RefreshToken  string  `json:"refresh_token" form:"refresh_token" min:"1" max:"4096"`
	FormGrantType string  `form:"grant_type" enum:"refresh_token" example:"refresh_token"`
	GrantType     *string `json:"grant_type" enum:"refresh_token,"`
}

// refresh exchanges a refresh token for its successor and a new access token.
func (s *server) refresh(ctx context.Context, c *caller, in refreshInput) (tokens, error) {
	ref, generation, ok := s.keys.verifyRefresh(in.RefreshToken)
	if !ok {
		return tokens{}, errInvalidRefresh
	}
	grace := time.Duration(s.cfg.RefreshGrace) * time.Second
	rotated, err := s.store.rotateSession(ctx, ref, generation, s.idleLimit(), grace)
	switch {
	case err == nil:
		return s.keys.issue(rotated), nil
	case errors.Is(err, errNotFound):
		err = errInvalidRefresh
	case errors.Is(err, errRefreshReused):
		s.stats.refreshReuse.Add(1)
		s.event(c, "refresh_reuse", ref.user, "session_id", ref.session)
	}
	return tokens{}, err
}

func (s *server) idleLimit() time.Duration {
	return time.Duration(s.cfg.RefreshDays) * 24 * time.Hour
}

// revokeInput has any token, and a hint, which is ignored as other parameters of a form are.
type revokeInput struct {
	Token string           `json:"token" form:"token" format:"opaque" min:"1"`
	Hint  nullable[string] `json:"token_type_hint" format:"opaque"`
}

// revoke ends the session of a token, so that a client whose access token has expired can log out.
// A token that is not ours is no error (RFC 7009, section 2.2).
func (s *server) revoke(ctx context.Context, c *caller, in revokeInput) (none, error) {
	ref, ok := s.keys.verifyAccess(in.Token)
	if !ok {
		ref, _, ok = s.keys.verifyRefresh(in.Token)
	}
	if !ok {
		return none{}, nil
	}
	err := s.store.endSession(ctx, ref.user, ref.session)
	s.eventIf(err == nil, c, "logout", ref.user, "scope", "revoke", "session_id", ref.session)
	if errors.Is(err, errNotFound) {
		err = nil // it has ended before
	}
	return none{}, err
}

// bearerToken returns the token of the Authorization header, or why there is none.
func bearerToken(r *http.Request) (string, error) {
	value := r.Header.Get("Authorization")
	scheme, token, _ := strings.Cut(value, " ")
	token = strings.TrimLeft(token, " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", errNotAuthenticated
	}
	if len(r.Header.Values("Authorization")) > 1 || len(value) > maxBearer {
		return "", errInvalidToken
	}
	return token, nil
}

type logoutInput struct {
	Scope string `query:"scope" enum:"local,others,global" default:"local"`
}

// logout ends sessions; their access tokens are refused from the next request on.
func (s *server) logout(ctx context.Context, c *caller, in logoutInput) (none, error) {
	var err error
	switch in.Scope {
	case "local":
		if err = s.store.endSession(ctx, c.ID, c.session); errors.Is(err, errNotFound) {
			err = nil // it has ended while this request was under way
		}
	case "others":
		err = s.store.endSessions(ctx, c.ID, c.session)
	case "global":
		err = s.store.endSessions(ctx, c.ID, 0)
	}
	s.eventIf(err == nil, c, "logout", c.ID, "scope", in.Scope)
	return none{}, err
}

// sessionInfo is a session as its owner sees it.
type sessionInfo struct {
	ID         int64     `json:"id" example:"4503599627370496"`
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at" doc:"The login or the last refresh."`
	ExpiresAt  time.Time `json:"expires_at"`
	UserAgent  string    `json:"user_agent" example:"Mozilla/5.0" doc:"Of the login."`
	IP         *string   `json:"ip" example:"192.0.2.7" doc:"Of the login."`
	Current    bool      `json:"current" example:"true" doc:"Whether this request uses it."`
}

func (s *server) listSessions(ctx context.Context, c *caller, _ none) ([]sessionInfo, error) {
	return s.store.listSessions(ctx, c.ID, c.session)
}

type idInput struct {
	ID int64 `path:"id" min:"1"`
}

func (s *server) endSession(ctx context.Context, c *caller, in idInput) (none, error) {
	err := s.store.endSession(ctx, c.ID, in.ID)
	s.eventIf(err == nil, c, "logout", c.ID, "scope", "session", "session_id", in.ID)
	return none{}, err
}

// sweep deletes expired sessions and checks HNSW indexes each sweepInterval, until ctx ends.
func (s *server) sweep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(sweepInterval):
		}
		if n, err := s.store.sweepSessions(ctx); err != nil {
			s.log.Warn("sweep_failed", "error", err.Error())
		} else if n > 0 {
			s.log.Info("sessions_swept", "count", n)
		}
		if err := s.checkIndexes(ctx); err != nil {
			s.log.Warn("sweep_failed", "error", err.Error())
		}
	}
}

// event logs what an operator or auditor looks for, under a stable name: what happened to the
// account userID (0: unknown), and by whom if another account did it.
func (s *server) event(c *caller, name string, userID int64, more ...any) {
	attrs := []any{"request_id", c.requestID, "client", c.ip, "user_id", userID}
	if c.ID != 0 && c.ID != userID {
		attrs = append(attrs, "by", c.ID)
	}
	s.log.Log(context.Background(), levelAudit, name, append(attrs, more...)...)
}

// eventIf logs an event that has happened.
func (s *server) eventIf(happened bool, c *caller, name string, userID int64, more ...any) {
	if happened {
		s.event(c, name, userID, more...)
	}
}

// cleanText makes text from outside, such as a User-Agent, short and printable.
func cleanText(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), maxText)], "")
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, text)
}
