// Reference is what Latch is measured against by "make bench": the least that can be written with the same
// libraries. It serves /health from constant bytes, and /users/me with an HMAC check, the statement that Latch
// makes, and json.Marshal; without limits, logs, request ids, strict reading, retries or deadlines.
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

	"github.com/jackc/pgx/v5/pgxpool"
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

func me(pool *pgxpool.Pool, key []byte, sql string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		dot := strings.LastIndexByte(token, '.')
		h := hmac.New(sha256.New, key)
		h.Write([]byte(token[:max(dot, 0)]))
		sum, _ := base64.RawURLEncoding.DecodeString(token[dot+1:])
		var claims struct {
			Sub      string
			Sid, Exp int64
		}
		_, payload, _ := strings.Cut(token[:max(dot, 0)], ".")
		text, _ := base64.RawURLEncoding.DecodeString(payload)
		if !hmac.Equal(sum, h.Sum(nil)) || json.Unmarshal(text, &claims) != nil {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		id, _ := strconv.ParseInt(claims.Sub, 10, 64)
		var u user
		if err := pool.QueryRow(r.Context(), sql, claims.Sid, id, claims.Exp).Scan(&u.ID, &u.Email, &u.FullName, &u.IsActive, &u.IsAdmin, &u.CreatedAt, &u.UpdatedAt); err != nil {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		body, _ := json.Marshal(u)
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
	pool, err := pgxpool.New(context.Background(), os.Getenv("DATABASE_URL"))
	if err != nil {
		panic(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/api/v1/health", health)
	http.Handle("/api/v1/users/me", me(pool, []byte(os.Getenv("SECRET_KEY")), os.Getenv("STATEMENT")))
	fmt.Println(http.Serve(l, nil))
}
