package main

// users.go is accounts: what they are, what their owners may change, and what admins may.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// user is an account as clients see it, and all they ever see of it.
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

// newUser is an account to be. addUser makes the hash.
type newUser struct {
	Email, PasswordHash string
	FullName            *string
	IsActive, IsAdmin   bool
}

// userChange is what store.updateUser changes; nil and unset fields stay.
type userChange struct {
	Email, PasswordHash *string
	FullName            nullString
	IsActive, IsAdmin   *bool
	OldHash             string // refuse unless this is still the hash; empty: do not ask
	KeepSession         int64  // the session that a new password does not end; 0: none
}

// addUser judges and hashes the password and stores the account.
func (s *server) addUser(ctx context.Context, n newUser, password string) (u user, err error) {
	if n.PasswordHash, err = s.newPassword(ctx, password, n.Email); err != nil {
		return user{}, err
	}
	return s.store.createUser(n)
}

// newPassword returns the hash of a password that email's account may have, or why it may not.
func (s *server) newPassword(ctx context.Context, password, email string) (hash string, err error) {
	if refusal := checkPasswordChoice(password, email, s.cfg.AppName); refusal != "" {
		return "", invalid(fieldError{[]any{"body", "password"}, refusal, "value_error"})
	}
	return s.hasher.hash(ctx, password)
}

// me returns the caller, as the query that checked the token read it.
func (s *server) me(_ context.Context, c *caller, _ none) (user, error) { return c.user, nil }

type updateMeInput struct {
	Email           *string    `json:"email" format:"email" max:"254" example:"ada@example.com"`
	FullName        nullString `json:"full_name" max:"255" doc:"null clears it." example:"Ada King"`
	Password        *string    `json:"password" format:"password" min:"8" max:"1024" doc:"Needs current_password; ends the other sessions."`
	CurrentPassword *string    `json:"current_password" format:"password" min:"1" max:"1024"`
}

// updateMe changes the caller's account. A new password needs the current one, and ends all other sessions.
func (s *server) updateMe(ctx context.Context, c *caller, in updateMeInput) (user, error) {
	change := userChange{Email: in.Email, FullName: in.FullName, KeepSession: c.session}
	if in.Password != nil && in.CurrentPassword == nil {
		return user{}, invalid(fieldError{[]any{"body", "current_password"}, "is required to change the password", "missing"})
	}
	if in.CurrentPassword != nil {
		hash, err := s.confirmPassword(ctx, c, *in.CurrentPassword)
		if err != nil {
			return user{}, err
		}
		change.OldHash = hash
	}
	u, err := s.change(ctx, c, c.user, change, in.Password)
	return u, ownGone(err)
}

// ownGone is err where it concerns the caller's own account: one that has gone since the token was checked
// is answered as it would be a moment later.
func ownGone(err error) error {
	if errors.Is(err, errNotFound) {
		return errInvalidToken
	}
	return err
}

// confirmPassword returns the hash of the caller's password if it is the given one, else errWrongPassword.
func (s *server) confirmPassword(ctx context.Context, c *caller, password string) (hash string, err error) {
	hash, err = s.store.passwordHash(c.ID)
	if err != nil {
		return "", ownGone(err)
	}
	ok, err := s.hasher.verify(ctx, password, hash)
	if err == nil && !ok {
		s.event(c, "wrong_password", c.ID)
		err = errWrongPassword
	}
	return hash, err
}

// change applies ch, and the new password if there is one, to the account target, and logs what it did.
func (s *server) change(ctx context.Context, c *caller, target user, ch userChange, password *string) (user, error) {
	if password != nil {
		hash, err := s.newPassword(ctx, *password, *cmp.Or(ch.Email, &target.Email))
		if err != nil {
			return user{}, err
		}
		ch.PasswordHash = &hash
	}
	if ch.Email == nil && !ch.FullName.Set && ch.PasswordHash == nil && ch.IsActive == nil && ch.IsAdmin == nil {
		return target, nil
	}
	before, after, err := s.store.updateUser(target.ID, ch)
	if err != nil {
		return user{}, err
	}
	if ch.PasswordHash != nil {
		s.event(c, "password_changed", after.ID)
	}
	if before.Email != after.Email {
		s.event(c, "email_changed", after.ID)
	}
	if before.IsAdmin != after.IsAdmin {
		s.event(c, "role_changed", after.ID, "is_admin", after.IsAdmin)
	}
	if before.IsActive != after.IsActive {
		s.event(c, map[bool]string{true: "reactivated", false: "deactivated"}[after.IsActive], after.ID)
	}
	return after, nil
}

type deleteMeInput struct {
	CurrentPassword string `json:"current_password" format:"password" min:"1" max:"1024" example:"correct horse battery"`
}

// deleteMe deletes the caller's account and all that belongs to it.
func (s *server) deleteMe(ctx context.Context, c *caller, in deleteMeInput) (none, error) {
	hash, err := s.confirmPassword(ctx, c, in.CurrentPassword)
	if err != nil {
		return none{}, err
	}
	return none{}, ownGone(s.remove(c, c.ID, hash))
}

func (s *server) remove(c *caller, id int64, oldHash string) error {
	err := s.store.deleteUser(id, oldHash)
	if err == nil {
		s.event(c, "deleted", id)
	}
	return err
}

// userFilter is the query of GET /users.
type userFilter struct {
	Skip     *int64  `query:"skip" min:"0" doc:"How many to pass over; not together with after."`
	Limit    int64   `query:"limit" min:"1" max:"100" default:"100"`
	After    *int64  `query:"after" min:"1" doc:"Only ids above this one: the next page, at the same cost however deep."`
	Q        *string `query:"q" min:"1" max:"254" doc:"Part of the e-mail or the name, in any case."`
	IsActive *bool   `query:"is_active"`
	IsAdmin  *bool   `query:"is_admin"`
}

// listUsers returns a page of accounts in the order of ids.
func (s *server) listUsers(_ context.Context, _ *caller, in userFilter) (page[[]user], error) {
	if in.Skip != nil && in.After != nil {
		return page[[]user]{}, invalid(fieldError{[]any{"query", "skip"}, "cannot be combined with after", "value_error"})
	}
	list, err := s.store.listUsers(in)
	return pageOf(list, in.Limit, func(u user) int64 { return u.ID }), err
}

type createUserInput struct {
	Email    string     `json:"email" format:"email" max:"254" example:"grace@example.com"`
	Password string     `json:"password" format:"password" min:"8" max:"1024" example:"correct horse battery"`
	FullName nullString `json:"full_name" max:"255"`
	IsActive *bool      `json:"is_active" doc:"true unless told."`
	IsAdmin  *bool      `json:"is_admin" doc:"false unless told."`
}

// createUser lets an admin make an account for somebody, also while registration is closed.
func (s *server) createUser(ctx context.Context, c *caller, in createUserInput) (user, error) {
	n := newUser{Email: in.Email, FullName: in.FullName.Value, IsActive: in.IsActive == nil || *in.IsActive, IsAdmin: in.IsAdmin != nil && *in.IsAdmin}
	u, err := s.addUser(ctx, n, in.Password)
	if err == nil {
		s.event(c, "user_created", u.ID, "is_admin", u.IsAdmin)
	}
	return u, err
}

func (s *server) getUser(_ context.Context, _ *caller, in idInput) (user, error) {
	return s.store.getUser(in.ID)
}

type updateUserInput struct {
	ID       int64      `path:"id" min:"1"`
	Email    *string    `json:"email" format:"email" max:"254"`
	FullName nullString `json:"full_name" max:"255" doc:"null clears it."`
	Password *string    `json:"password" format:"password" min:"8" max:"1024" doc:"Ends all sessions of the account."`
	IsActive *bool      `json:"is_active" doc:"false ends all sessions of the account."`
	IsAdmin  *bool      `json:"is_admin"`
}

// updateUser changes any account, also the admin's own.
func (s *server) updateUser(ctx context.Context, c *caller, in updateUserInput) (user, error) {
	target, err := s.store.getUser(in.ID)
	if err != nil {
		return user{}, err
	}
	return s.change(ctx, c, target, userChange{Email: in.Email, FullName: in.FullName, IsActive: in.IsActive, IsAdmin: in.IsAdmin}, in.Password)
}

// deleteUser deletes another account. One's own takes a password: deleteMe.
func (s *server) deleteUser(_ context.Context, c *caller, in idInput) (none, error) {
	if in.ID == c.ID {
		return none{}, errSelfDelete
	}
	return none{}, s.remove(c, in.ID, "")
}

// emailPattern is the grammar of an e-mail address: a dot-string (RFC 5321, its atoms of RFC 5322), an at
// sign, and a domain of two or more labels whose last starts with a letter, as all in use do. All ASCII:
// Unicode's ways to fold case would make two spellings of one account. Go matches it in linear time.
const emailPattern = "^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+([.][A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@" +
	"([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?[.])+[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"

var emailGrammar = regexp.MustCompile(emailPattern)

// parseEmail returns the address in lower case, or why text is none.
func parseEmail(text string) (value, refusal string) {
	if len(text) > 254 || strings.IndexByte(text, '@') > 64 { // RFC 5321, section 4.5.3.1
		return "", "must have at most 254 characters, and 64 before the @"
	}
	if !emailGrammar.MatchString(text) {
		return "", "must be an e-mail address such as name@example.com"
	}
	return strings.ToLower(text), ""
}

// lowerASCII lowers A to Z and nothing else: strings.ToLower makes a k of the Kelvin sign.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
