// Reference is what Latch is measured against by "make bench": the least that can be written with the same
// libraries. It serves /health from constant bytes, and /users/me and /documents/search with an HMAC check, the
// statement that Latch makes, and encoding/json; without limits, logs, request ids, strict reading, retries or deadlines.
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

type user struct {
	ID        int64     `json:"id"`
	Email     string    `json:"email"`
	FullName  *string   `json:"full_name"`
	IsActive  bool      `json:"is_active"`
	IsAdmin   bool      `json:"is_admin"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// claims are what a token says.
type claims struct {
	Sub      string
	Sid, Exp int64
}

// check reads the token of a request.
func check(r *http.Request, key []byte) (c claims, user int64, ok bool) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	dot := strings.LastIndexByte(token, '.')
	h := hmac.New(sha256.New, key)
	h.Write([]byte(token[:max(dot, 0)]))
	sum, _ := base64.RawURLEncoding.DecodeString(token[dot+1:])
	_, payload, _ := strings.Cut(token[:max(dot, 0)], ".")
	text, _ := base64.RawURLEncoding.DecodeString(payload)
	ok = hmac.Equal(sum, h.Sum(nil)) && json.Unmarshal(text, &c) == nil
	user, _ = strconv.ParseInt(c.Sub, 10, 64)
	return c, user, ok
}

func me(pool *pgxpool.Pool, key []byte, sql string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, id, ok := check(r, key)
		if !ok {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		var u user
		if err := pool.QueryRow(r.Context(), sql, c.Sid, id, c.Exp).Scan(&u.ID, &u.Email, &u.FullName, &u.IsActive, &u.IsAdmin, &u.CreatedAt, &u.UpdatedAt); err != nil {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		body, _ := json.Marshal(u)
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	}
}

type document struct {
	ID        int64           `json:"id"`
	Content   string          `json:"content"`
	Metadata  json.RawMessage `json:"metadata"`
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

type found struct {
	Document document `json:"document"`
	Score    float64  `json:"score"`
	Distance float64  `json:"distance"`
}

func search(pool *pgxpool.Pool, key []byte, sql string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, id, ok := check(r, key)
		var in struct{ Embedding []float32 }
		if !ok || json.NewDecoder(r.Body).Decode(&in) != nil {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		rows, _ := pool.Query(r.Context(), sql, id, false, c.Sid, c.Exp, 10, pgvector.NewHalfVector(in.Embedding))
		results, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f found, err error) {
			var embedding *pgvector.HalfVector
			d := &f.Document
			return f, row.Scan(&d.ID, &d.Content, (*[]byte)(&d.Metadata), &d.CreatedAt, &d.UpdatedAt, &embedding, &f.Score, &f.Distance)
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		body, _ := json.Marshal(map[string]any{"mode": "vector", "results": results})
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	}
}

// health writes the bytes that Latch writes, and nothing else.
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

func main() {
	conf, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		panic(err)
	}
	conf.AfterConnect = pgxvector.RegisterTypes
	pool, err := pgxpool.NewWithConfig(context.Background(), conf)
	if err != nil {
		panic(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/api/v1/health", health)
	key := []byte(os.Getenv("SECRET_KEY"))
	http.Handle("/api/v1/users/me", me(pool, key, os.Getenv("STATEMENT")))
	http.Handle("/api/v1/documents/search", search(pool, key, os.Getenv("SEARCH")))
	fmt.Println(http.Serve(l, nil))
}
