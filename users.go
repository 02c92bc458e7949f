package main

// users.go is accounts: what they are, what their owners may change, and what admins may.
//
// Threats and answers. A stolen access token: on /users/me a new password and a deletion need the
// current password, and the hashing limiter bounds guesses; an admin's token may set any account's
// password, and each change is in the log. Account enumeration by changing one's own address:
// maxEmailChanges. No admin left: store.lockUser. A user who sends is_admin: it is accepted only
// if it changes nothing.

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	maxEmailChanges = 5         // of one user in emailInterval, refused ones included
	emailInterval   = time.Hour // counted by each process for itself
)

var errEmailChanges = newProblem(503, errBusy.code, "The e-mail address was changed too often; "+
	"try again later.", "Retry-After", fmt.Sprint(emailInterval.Seconds()))

// user is an account as clients see it, and all they see of it.
type user struct {
	ID        int64     `json:"id" example:"7"`
	Email     string    `json:"email" example:"ada@example.com"`
	FullName  *string   `json:"full_name" example:"Ada Lovelace"`
	IsActive  bool      `json:"is_active" example:"true" doc:"false: no login, and no session."`
	IsAdmin   bool      `json:"is_admin"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

func (u user) location() string { return fmt.Sprintf("/users/%d", u.ID) }

// newUser is an account to be created. addUser sets the hash.
type newUser struct {
	Email, PasswordHash string
	FullName            *string
	IsActive, IsAdmin   bool
}

// userChange is what store.updateUser changes; nil and unset fields keep their value.
type userChange struct {
	Email, PasswordHash *string
	FullName            nullable[string]
	IsActive, IsAdmin   *bool
	OldHash             string     // refuse unless this is still the hash; empty: do not check
	UpdatedAt           *time.Time // refuse unless this is still the user's; nil: do not check
	KeepSession         int64      // the session that a new password does not end; 0: none
}

// addUser checks and hashes the password and stores the account.
func (s *server) addUser(ctx context.Context, c *caller, n newUser, password string) (user, error) {
	var err error
	if n.PasswordHash, err = s.newHash(ctx, c, password, n.Email); err != nil {
		return user{}, err
	}
	return s.store.createUser(ctx, n)
}

// newHash returns the hash of a password that email's account may have, or why it may not.
func (s *server) newHash(ctx context.Context, c *caller, password, email string) (string, error) {
	if refusal := checkPasswordChoice(password, email, s.cfg.AppName); refusal != "" {
		return "", invalidField("password", "value_error", refusal)
	}
	return s.hasher.hash(ctx, c.key(), password)
}

// me returns the caller, as the query that checked the token read it.
func (s *server) me(_ context.Context, c *caller, _ none) (user, error) { return c.user, nil }

// readOnly are members that clients may send back as received, but not change.
type readOnly struct {
	SentID    *int64     `json:"id" readonly:"true"` // not ID, which is the path's
	CreatedAt *time.Time `json:"created_at" readonly:"true"`
	UpdatedAt *time.Time `json:"updated_at" readonly:"true"`
}

// check returns the 422 for members that differ from what is stored, and for further faults.
func (r readOnly) check(id int64, created, updated time.Time, faults ...fieldError) error {
	faults = slices.Concat(faults, unequal("id", r.SentID, id),
		unequal("created_at", r.CreatedAt, created), unequal("updated_at", r.UpdatedAt, updated))
	if len(faults) == 0 {
		return nil
	}
	return invalid(faults...)
}

// unequal returns a fault if a member was sent and is not the stored value. Times are in UTC.
func unequal[T comparable](name string, sent *T, stored T) []fieldError {
	if sent == nil || *sent == stored {
		return nil
	}
	msg := "cannot be changed; leave it out, or send it as it is"
	if name == "updated_at" {
		msg = "is not the stored time: the object has changed; read it again, or leave it out"
	}
	return []fieldError{{[]any{"body", name}, msg, "read_only"}}
}

// errStale is the refusal of an updated_at that has changed after check has read it.
var errStale = invalid(unequal("updated_at", new(time.Time), time.Unix(0, 0))...)

type updateMeInput struct {
	Email           *string          `json:"email" format:"email" max:"254"`
	FullName        nullable[string] `json:"full_name" max:"255" example:"Ada King"`
	Password        *string          `json:"password" format:"password" min:"8" max:"1024"`
	CurrentPassword *string          `json:"current_password" format:"password" min:"1" max:"1024"`
	IsActive        *bool            `json:"is_active" readonly:"true"`
	IsAdmin         *bool            `json:"is_admin" readonly:"true"`
	readOnly
}

// updateMe changes the caller. A new password needs the current one, and ends all other sessions.
func (s *server) updateMe(ctx context.Context, c *caller, in updateMeInput) (user, error) {
	faults := append(unequal("is_active", in.IsActive, c.IsActive),
		unequal("is_admin", in.IsAdmin, c.IsAdmin)...)
	if in.Password != nil && in.CurrentPassword == nil {
		faults = append(faults, fieldError{[]any{"body", "current_password"},
			"is required to change the password", "missing"})
	}
	if err := in.check(c.ID, c.CreatedAt, c.UpdatedAt, faults...); err != nil {
		return user{}, err
	}
	if in.Email != nil && *in.Email != c.Email {
		release, err := s.emailChanges.acquire(ctx, c.key(), 1)
		if err != nil {
			return user{}, errEmailChanges
		}
		time.AfterFunc(emailInterval, release) // so used counts the last hour
	}
	var u user
	change := func(oldHash string) (err error) {
		ch := userChange{Email: in.Email, FullName: in.FullName, OldHash: oldHash,
			UpdatedAt: in.UpdatedAt, KeepSession: c.session}
		u, err = s.change(ctx, c, c.user, ch, in.Password)
		return err
	}
	err := s.withPassword(ctx, c, in.CurrentPassword, change)
	return u, authError(err)
}

// authError returns errInvalidToken where err says that the caller's own account or session was not
// found: it has ended since, and the next request would be answered so. Else it returns err.
func authError(err error) error {
	if errors.Is(err, errNotFound) {
		return errInvalidToken
	}
	return err
}

// withPassword calls f with the hash of the caller's password, "" where none was sent, or returns
// errWrongPassword. Where f does that, it tries again: a login may have hashed the password anew.
func (s *server) withPassword(
	ctx context.Context, c *caller, password *string, f func(hash string) error,
) error {
	if password == nil {
		return f("")
	}
	for try := 1; ; try++ {
		hash, err := s.confirmPassword(ctx, c, *password)
		if err != nil {
			return err
		}
		if err = f(hash); try == 2 || !errors.Is(err, errWrongPassword) {
			return err
		}
	}
}

// confirmPassword returns the hash of the caller's password, or errWrongPassword if it is another.
// A session has one check at a time: guesses with a stolen token leave room for the owner's.
func (s *server) confirmPassword(ctx context.Context, c *caller, password string) (string, error) {
	release, err := s.confirmations.acquire(ctx, clientKey{user: c.session}, 1)
	if err != nil {
		return "", err
	}
	defer release()
	hash, err := s.store.passwordHash(ctx, c.ID)
	if err != nil {
		return "", authError(err)
	}
	ok, err := s.hasher.verify(ctx, c.key(), password, hash)
	switch {
	case errors.Is(err, errMalformedHash):
		s.log.Warn("malformed_hash", "user_id", c.ID)
	case err != nil || ok:
		return hash, err
	}
	s.event(c, "wrong_password", c.ID)
	return "", errWrongPassword
}

// change applies ch and the new password, if any, to the account target. It logs what changed.
func (s *server) change(
	ctx context.Context, c *caller, target user, ch userChange, password *string,
) (user, error) {
	if password != nil {
		email := target.Email
		if ch.Email != nil {
			email = *ch.Email
		}
		hash, err := s.newHash(ctx, c, *password, email)
		if err != nil {
			return user{}, err
		}
		ch.PasswordHash = &hash
	}
	if ch.Email == nil && !ch.FullName.Set && ch.PasswordHash == nil &&
		ch.IsActive == nil && ch.IsAdmin == nil {
		return target, nil
	}
	was, u, err := s.store.updateUser(ctx, target.ID, ch)
	if err != nil {
		return user{}, err
	}
	s.eventIf(ch.PasswordHash != nil, c, "password_changed", u.ID)
	s.eventIf(was.Email != u.Email, c, "email_changed", u.ID)
	s.eventIf(was.IsAdmin != u.IsAdmin, c, "role_changed", u.ID, "is_admin", u.IsAdmin)
	s.eventIf(was.IsActive && !u.IsActive, c, "deactivated", u.ID)
	s.eventIf(!was.IsActive && u.IsActive, c, "reactivated", u.ID)
	return u, nil
}

type deleteMeInput struct {
	CurrentPassword string `json:"current_password" format:"password" min:"1" max:"1024"`
}

// deleteMe deletes the caller's account and all that belongs to it.
func (s *server) deleteMe(ctx context.Context, c *caller, in deleteMeInput) (none, error) {
	err := s.withPassword(ctx, c, &in.CurrentPassword, func(hash string) error {
		return s.removeUser(ctx, c, c.ID, hash)
	})
	return none{}, authError(err)
}

// removeUser deletes an account with its data: see store.deleteUser.
func (s *server) removeUser(ctx context.Context, c *caller, id int64, oldHash string) error {
	deactivated, err := s.store.deleteUser(ctx, id, oldHash)
	s.eventIf(err == nil, c, "deleted", id)
	s.eventIf(err != nil && deactivated, c, "deactivated", id)
	return err
}

// usersInput is the query of GET /users.
type usersInput struct {
	Skip     *int64  `query:"skip" min:"0" doc:"How many to skip; not together with after."`
	Limit    int64   `query:"limit" min:"1" max:"100" default:"100"`
	After    *int64  `query:"after" min:"1"`
	Q        *string `query:"q" min:"1" max:"254"`
	IsActive *bool   `query:"is_active"`
	IsAdmin  *bool   `query:"is_admin"`
}

// listUsers returns a page of accounts in the order of ids.
func (s *server) listUsers(ctx context.Context, _ *caller, in usersInput) (page[[]user], error) {
	if in.Skip != nil && in.After != nil {
		return page[[]user]{}, invalid(fieldError{[]any{"query", "skip"},
			"cannot be combined with after", "value_error"})
	}
	list, err := s.store.listUsers(ctx, in)
	return pageOf(list, in.Limit, func(u user) int64 { return u.ID }), err
}

type createUserInput struct {
	Email    string           `json:"email" format:"email" max:"254" example:"grace@example.com"`
	Password string           `json:"password" format:"password" min:"8" max:"1024"`
	FullName nullable[string] `json:"full_name" max:"255"`
	IsActive *bool            `json:"is_active" doc:"Defaults to true."`
	IsAdmin  *bool            `json:"is_admin" doc:"Defaults to false."`
}

// createUser creates an account for somebody else, also while registration is closed.
func (s *server) createUser(ctx context.Context, c *caller, in createUserInput) (user, error) {
	n := newUser{Email: in.Email, FullName: in.FullName.Value,
		IsActive: in.IsActive == nil || *in.IsActive, IsAdmin: in.IsAdmin != nil && *in.IsAdmin}
	u, err := s.addUser(ctx, c, n, in.Password)
	s.eventIf(err == nil, c, "user_created", u.ID, "is_admin", u.IsAdmin)
	return u, err
}

func (s *server) getUser(ctx context.Context, _ *caller, in idInput) (user, error) {
	return s.store.getUser(ctx, in.ID)
}

type updateUserInput struct {
	ID       int64            `path:"id" min:"1"`
	Email    *string          `json:"email" format:"email" max:"254"`
	FullName nullable[string] `json:"full_name" max:"255" doc:"null clears it."`
	Password *string          `json:"password" format:"password" min:"8" max:"1024"`
	IsActive *bool            `json:"is_active" doc:"false ends all sessions of the account."`
	IsAdmin  *bool            `json:"is_admin"`
	readOnly
}

// updateUser changes any account, also the admin's own.
func (s *server) updateUser(ctx context.Context, c *caller, in updateUserInput) (user, error) {
	target, err := s.store.getUser(ctx, in.ID)
	if err == nil {
		err = in.check(target.ID, target.CreatedAt, target.UpdatedAt)
	}
	if err != nil {
		return user{}, err
	}
	ch := userChange{Email: in.Email, FullName: in.FullName, IsActive: in.IsActive,
		IsAdmin: in.IsAdmin, UpdatedAt: in.UpdatedAt}
	return s.change(ctx, c, target, ch, in.Password)
}

// deleteUser deletes another account. The caller's own takes a password: see deleteMe.
func (s *server) deleteUser(ctx context.Context, c *caller, in idInput) (none, error) {
	if in.ID == c.ID {
		return none{}, errSelfDelete
	}
	return none{}, s.removeUser(ctx, c, in.ID, "")
}

// emailPattern is the grammar of an e-mail address: a dot-string (RFC 5321, its atoms of RFC 5322),
// an at sign, and a domain of two or more labels whose last starts with a letter, as all in use do.
// It is ASCII only: Unicode's case folding would let two spellings name one account. Go matches it
// in linear time.
const emailPattern = "^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+([.][A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@" +
	"([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?[.])+[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"

var emailGrammar = regexp.MustCompile(emailPattern)

// parseEmail returns the address in lower case, or why text is not one.
func parseEmail(text string) (value, refusal string) {
	if len(text) > 254 || strings.IndexByte(text, '@') > 64 { // RFC 5321, section 4.5.3.1
		return "", "must have at most 254 characters, and 64 before the @"
	}
	if !emailGrammar.MatchString(text) {
		return "", "must be an e-mail address such as name@example.com"
	}
	return strings.ToLower(text), ""
}
