//go:build bench

// Reference is what the benchmark compares the program with: the least that can be written with the
// same libraries. Each operation checks an HMAC, runs one statement and answers by encoding/json,
// without limits, logs, request ids, strict reading, retries or deadlines. GET /health answers
// constant bytes.
package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgvector/pgvector-go"
	pgxvector "github.com/pgvector/pgvector-go/pgx"
)

// server has the pool and the key of all tokens.
type server struct {
	pool *pgxpool.Pool
	key  []byte
}

// claims are the payload of both kinds of token.
type claims struct {
	Subject    string `json:"sub"`
	Session    int64  `json:"sid"`
	Generation int64  `json:"gen,omitempty"`
	Expires    int64  `json:"exp"`
}

type user struct {
	ID        int64     `json:"id"`
	Email     string    `json:"email"`
	FullName  *string   `json:"full_name"`
	IsActive  bool      `json:"is_active"`
	IsAdmin   bool      `json:"is_admin"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

const selectUser = `
	SELECT u.id, u.email, u.full_name, u.is_active, u.is_admin, u.created_at, u.updated_at
	FROM sessions s JOIN users u ON u.id = s.user_id
	WHERE s.id = $1 AND s.user_id = $2 AND $3::bigint > extract(epoch FROM now())
	  AND s.expires_at > now() AND u.is_active`

// verify reads a token and the id of its user.
func (s *server) verify(token string) (c claims, id int64, ok bool) {
	dot := strings.LastIndexByte(token, '.')
	h := hmac.New(sha256.New, s.key)
	h.Write([]byte(token[:max(dot, 0)]))
	sum, _ := base64.RawURLEncoding.DecodeString(token[dot+1:])
	_, payload, _ := strings.Cut(token[:max(dot, 0)], ".")
	text, _ := base64.RawURLEncoding.DecodeString(payload)
	ok = hmac.Equal(sum, h.Sum(nil)) && json.Unmarshal(text, &c) == nil
	id, _ = strconv.ParseInt(c.Subject, 10, 64)
	return c, id, ok
}

func (s *server) authorize(r *http.Request) (c claims, id int64, ok bool) {
	return s.verify(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
}

// me is GET /users/me. With its types, its statement and verify it is the 60-line handler.
func (s *server) me(w http.ResponseWriter, r *http.Request) {
	c, id, ok := s.authorize(r)
	if !ok {
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	var u user
	err := s.pool.QueryRow(r.Context(), selectUser, c.Session, id, c.Expires).Scan(
		&u.ID, &u.Email, &u.FullName, &u.IsActive, &u.IsAdmin, &u.CreatedAt, &u.UpdatedAt)
	if err != nil {
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	answer(w, http.StatusOK, u)
}

func answer(w http.ResponseWriter, status int, v any) {
	body, _ := json.Marshal(v)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

const rotate = `
	UPDATE sessions s SET generation = $3 + 1, rotated_at = now(),
	    expires_at = least(now() + interval '7 days', s.created_at + interval '30 days')
	FROM users u
	WHERE s.id = $1 AND s.user_id = $2 AND s.generation <= $3::bigint
	  AND $4::bigint > extract(epoch FROM now())
	  AND u.id = s.user_id AND s.expires_at > now() AND u.is_active
	RETURNING extract(epoch FROM s.expires_at)::bigint`

// refresh is POST /auth/refresh.
func (s *server) refresh(w http.ResponseWriter, r *http.Request) {
	var in struct {
		RefreshToken string `json:"refresh_token"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	c, id, ok := s.verify(in.RefreshToken)
	if !ok {
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	next := claims{Subject: c.Subject, Session: c.Session, Generation: c.Generation + 1}
	row := s.pool.QueryRow(r.Context(), rotate, c.Session, id, c.Generation, c.Expires)
	if err := row.Scan(&next.Expires); err != nil {
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	access := claims{c.Subject, c.Session, 0, time.Now().Add(30 * time.Minute).Unix()}
	answer(w, http.StatusOK, map[string]any{
		"access_token": s.sign(access), "refresh_token": s.sign(next),
		"token_type": "bearer", "expires_in": 1800,
	})
}

func (s *server) sign(c claims) string {
	payload, _ := json.Marshal(c)
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + encode(payload)
	h := hmac.New(sha256.New, s.key)
	h.Write([]byte(text))
	return text + "." + encode(h.Sum(nil))
}

type document struct {
	ID        int64           `json:"id"`
	Content   string          `json:"content"`
	Metadata  json.RawMessage `json:"metadata"`
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

type newDocument struct {
	Content   string          `json:"content"`
	Metadata  json.RawMessage `json:"metadata"`
	Embedding []float32       `json:"embedding"`
}

const isLive = `EXISTS (SELECT FROM sessions s JOIN users u ON u.id = s.user_id
	WHERE s.id = $2 AND s.user_id = $1 AND $3::bigint > extract(epoch FROM now())
	  AND s.expires_at > now() AND u.is_active)`

const insertDocument = `
	INSERT INTO documents (owner_id, content, metadata, embedding)
	SELECT $1, $4, $5, $6 WHERE ` + isLive + `
	RETURNING id, content, metadata, created_at, updated_at`

// create is POST /documents for one document.
func (s *server) create(w http.ResponseWriter, r *http.Request) {
	c, id, ok := s.authorize(r)
	var in newDocument
	if !ok || json.NewDecoder(r.Body).Decode(&in) != nil {
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	var d document
	err := s.pool.QueryRow(r.Context(), insertDocument, id, c.Session, c.Expires,
		in.Content, []byte(in.Metadata), pgvector.NewHalfVector(in.Embedding)).Scan(
		&d.ID, &d.Content, (*[]byte)(&d.Metadata), &d.CreatedAt, &d.UpdatedAt)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, http.StatusCreated, d)
}

type result struct {
	Document document `json:"document"`
	Score    float64  `json:"score"`
	Distance float64  `json:"distance"`
}

const nearest = `
	WITH nearest AS MATERIALIZED (
	    SELECT id, embedding <=> $4 AS distance FROM documents
	    WHERE owner_id = $1 AND ` + isLive + ` ORDER BY distance, id LIMIT 10)
	SELECT d.id, d.content, d.metadata, d.created_at, d.updated_at, 1 - n.distance, n.distance
	FROM nearest n JOIN documents d ON d.owner_id = $1 AND d.id = n.id ORDER BY n.distance, n.id`

// search is POST /documents/search by an embedding.
func (s *server) search(w http.ResponseWriter, r *http.Request) {
	c, id, ok := s.authorize(r)
	var in newDocument
	if !ok || json.NewDecoder(r.Body).Decode(&in) != nil {
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	vector := pgvector.NewHalfVector(in.Embedding)
	rows, _ := s.pool.Query(r.Context(), nearest, id, c.Session, c.Expires, vector)
	results, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f result, err error) {
		d := &f.Document
		return f, row.Scan(&d.ID, &d.Content, (*[]byte)(&d.Metadata), &d.CreatedAt, &d.UpdatedAt,
			&f.Score, &f.Distance)
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, http.StatusOK, map[string]any{"mode": "vector", "results": results})
}

// health writes the bytes that the program writes.
func health(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("X-Request-Id", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", "20")
	w.Write([]byte(`{"status":"healthy"}`))
}

func run() error {
	conf, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	conf.AfterConnect = pgxvector.RegisterTypes
	pool, err := pgxpool.NewWithConfig(context.Background(), conf)
	if err != nil {
		return err
	}
	s := &server{pool, []byte(os.Getenv("SECRET_KEY"))}
	http.HandleFunc("GET /api/v1/health", health)
	http.HandleFunc("GET /api/v1/users/me", s.me)
	http.HandleFunc("POST /api/v1/auth/refresh", s.refresh)
	http.HandleFunc("POST /api/v1/documents", s.create)
	http.HandleFunc("POST /api/v1/documents/search", s.search)
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		return err
	}
	return http.Serve(l, nil)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "reference:", err)
		os.Exit(1)
	}
}
