package main

// auth.go is an account's life as its owner sees it: register, log in, refresh, log out.
//
// Threats and answers. A list of accounts by stopwatch: an unknown e-mail costs one hash like a known one,
// and the answer is the same bytes. (Registration does tell that an address is taken; so the contract
// wants it.) A stolen refresh token: whoever uses it second is found out, and the session ends. A stolen
// access token: the session is asked of the database at each request, so a logout is at once.
// A login that races with a password change or a deactivation: the session is only made if
// the hash that was checked is still the account's (store.createSession).

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
	maxBearer       = 4 << 10 // bytes of the Authorization header; our tokens have some 350
)

type registerInput struct {
	Email    string     `json:"email" format:"email" max:"254" example:"ada@example.com"`
	Password string     `json:"password" format:"password" min:"8" max:"1024" doc:"At most 1024 bytes in UTF-8; common passwords and the e-mail are refused." example:"correct horse battery"`
	FullName nullString `json:"full_name" max:"255" example:"Ada Lovelace"`
}

// register creates an account. It logs nobody in, and never makes an admin.
func (s *server) register(ctx context.Context, c *caller, in registerInput) (user, error) {
	if !s.cfg.RegistrationOpen {
		return user{}, errRegistrationClosed
	}
	u, err := s.addUser(ctx, newUser{Email: in.Email, FullName: in.FullName.Value, IsActive: true}, in.Password)
	if err == nil {
		s.event(c, "registered", u.ID)
	}
	return u, err
}

type loginInput struct {
	Username  string  `form:"username" json:"username" min:"1" max:"254" doc:"The e-mail address." example:"ada@example.com"`
	Password  string  `form:"password" json:"password" format:"password" min:"1" max:"1024" example:"correct horse battery"`
	GrantType *string `form:"grant_type" enum:"password," doc:"OAuth 2's password grant."`
	toleratedInput
}

// login checks a password and starts a session.
func (s *server) login(ctx context.Context, c *caller, in loginInput) (tokens, error) {
	if s.hasher.full() { // in a storm most are shed, and none of these should cost the database a query
		return tokens{}, errBusy
	}
	for try := 1; ; try++ {
		a, err := s.checkPassword(ctx, c, in)
		if err != nil {
			return tokens{}, err
		}
		session, err := s.store.createSession(a.ID, a.PasswordHash, c, s.idleLimit())
		if errors.Is(err, errNotFound) && try == 1 {
			continue // the password has changed since it was read, or another login has hashed it anew: look again
		}
		if errors.Is(err, errNotFound) {
			s.event(c, "login_failed", a.ID, "reason", "changed_meanwhile")
			return tokens{}, errInvalidCredentials
		}
		if err != nil {
			return tokens{}, err
		}
		if s.hasher.outdated(a.PasswordHash) {
			s.rehash(ctx, a, in.Password)
		}
		s.event(c, "login_ok", a.ID, "session_id", session.ID)
		return s.keys.issue(session), nil
	}
}

// checkPassword returns the account that in may log in to, with the hash that its password was checked against.
func (s *server) checkPassword(ctx context.Context, c *caller, in loginInput) (credentials, error) {
	a, unknown := s.store.credentials(lowerASCII(in.Username))
	if unknown != nil && !errors.Is(unknown, errNotFound) {
		return a, unknown
	}
	ok, err := s.hasher.verify(ctx, in.Password, a.PasswordHash)
	switch {
	case err != nil:
		return a, err
	case !ok:
		s.event(c, "login_failed", a.ID, "reason", map[bool]string{true: "wrong_password", false: "unknown_email"}[unknown == nil])
		return a, errInvalidCredentials
	case !a.IsActive:
		s.event(c, "login_failed", a.ID, "reason", "account_inactive")
		return a, errAccountInactive
	}
	return a, nil
}

// rehash stores password under today's cost. Where that fails, the old hash does until the next login.
func (s *server) rehash(ctx context.Context, a credentials, password string) {
	hash, err := s.hasher.hash(ctx, password)
	if err == nil {
		err = s.store.rehash(a.ID, a.PasswordHash, hash)
	}
	if err != nil {
		s.log.Warn("rehash_failed", "user_id", a.ID, "error", err.Error())
	}
}

type refreshTokenInput struct {
	RefreshToken string `json:"refresh_token" form:"refresh_token" min:"1" max:"4096" example:"eyJhbGciOiJIUzI1NiJ9.eyJnZW4iOjB9.c2lnbmF0dXJl"`
	GrantType    string `form:"grant_type" enum:"refresh_token" example:"refresh_token"`
	toleratedInput
}

// toleratedInput is what OAuth 2 clients send beside, to no effect.
type toleratedInput struct {
	Scope        *string `form:"scope" doc:"Tolerated and unused."`
	ClientID     *string `form:"client_id" doc:"Tolerated and unused."`
	ClientSecret *string `form:"client_secret" doc:"Tolerated and unused."`
}

// refresh rotates a session: the old refresh token is spent, and the answer holds its successor.
func (s *server) refresh(_ context.Context, c *caller, in refreshTokenInput) (tokens, error) {
	claims, userID, ok := s.keys.parseRefresh(in.RefreshToken)
	if !ok {
		return tokens{}, errInvalidRefresh
	}
	session, err := s.store.rotateSession(rotation{
		ticket: ticket{claims.Session, userID, claims.Expires}, generation: claims.Generation,
		idle: s.idleLimit(), absolute: sessionLifetime, grace: time.Duration(s.cfg.RefreshGrace) * time.Second,
	})
	switch {
	case errors.Is(err, errNotFound):
		return tokens{}, errInvalidRefresh
	case errors.Is(err, errRefreshReused):
		s.stats.refreshUsed.Add(1)
		s.event(c, "refresh_reuse", userID, "session_id", claims.Session)
		return tokens{}, err
	case err != nil:
		return tokens{}, err
	}
	return s.keys.issue(session), nil
}

func (s *server) idleLimit() time.Duration { return time.Duration(s.cfg.RefreshDays) * 24 * time.Hour }

// readToken takes c's ticket from the request's bearer token, or says why it cannot. Whether the session lives is
// another question: authenticate asks it.
func (s *server) readToken(r *http.Request, c *caller) error {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return errNotAuthenticated
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if token = strings.TrimLeft(token, " "); !strings.EqualFold(scheme, "Bearer") || token == "" {
		return errNotAuthenticated
	}
	if len(values) > 1 || len(values[0]) > maxBearer {
		return errInvalidToken
	}
	var ok bool
	if c.ticket, ok = s.keys.checkAccess(token); !ok {
		return errInvalidToken
	}
	c.ID = c.ticket.user
	return nil
}

// authenticate reads the account of c's ticket: errInvalidToken where its session has ended.
func (s *server) authenticate(c *caller) error {
	return ownGone(s.store.authenticate(c.ticket, &c.user))
}

type logoutInput struct {
	Scope string `query:"scope" enum:"local,others,global" default:"local" doc:"This session, all the others, or all."`
}

// logout ends sessions; their access tokens are dead from the next request on.
func (s *server) logout(_ context.Context, c *caller, in logoutInput) (none, error) {
	var err error
	switch in.Scope {
	case "local":
		if err = s.store.endSession(c.ID, c.session); errors.Is(err, errNotFound) {
			err = nil // it ended while this request was under way, which is what was asked for
		}
	case "others":
		err = s.store.endSessions(c.ID, c.session)
	case "global":
		err = s.store.endSessions(c.ID, 0)
	}
	if err == nil {
		s.event(c, "logout", c.ID, "scope", in.Scope)
	}
	return none{}, err
}

// sessionInfo is a session as its owner sees it.
type sessionInfo struct {
	ID         int64     `json:"id" example:"12"`
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at" doc:"The login or the last refresh."`
	ExpiresAt  time.Time `json:"expires_at"`
	UserAgent  string    `json:"user_agent" example:"Mozilla/5.0" doc:"Of the login."`
	IP         *string   `json:"ip" example:"192.0.2.7" doc:"Of the login."`
	Current    bool      `json:"current" example:"true" doc:"Whether it is the session of this request."`
}

func (s *server) listSessions(_ context.Context, c *caller, _ none) ([]sessionInfo, error) {
	return s.store.listSessions(c.ID, c.session)
}

type idInput struct {
	ID int64 `path:"id" min:"1"`
}

func (s *server) endSession(_ context.Context, c *caller, in idInput) (none, error) {
	err := s.store.endSession(c.ID, in.ID)
	if err == nil {
		s.event(c, "logout", c.ID, "scope", "session", "session_id", in.ID)
	}
	return none{}, err
}

// sweep deletes dead sessions from time to time, until ctx ends.
func (s *server) sweep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(sweepInterval):
		}
		if n, err := s.store.sweepSessions(); err != nil {
			s.log.Warn("sweep_failed", "error", err.Error())
		} else if n > 0 {
			s.log.Info("sessions_swept", "count", n)
		}
	}
}

// event logs what an operator or auditor looks for, under a stable name: what happened to the account
// userID (0: unknown), and by whom where it was another.
func (s *server) event(c *caller, name string, userID int64, more ...any) {
	attrs := []any{"request_id", c.requestID, "client", c.client, "user_id", userID}
	if c.ID != 0 && c.ID != userID {
		attrs = append(attrs, "by", c.ID)
	}
	s.log.Info(name, append(attrs, more...)...)
}

// cleanAgent makes a User-Agent fit to be stored and shown: text without control characters, cut.
func cleanAgent(agent string) string {
	agent = strings.ToValidUTF8(agent[:min(len(agent), maxAgent)], "")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, agent)
}
