-- The database, as one append-only list of migrations. A section that has been released is never
-- edited (its checksum is kept in the database): a change is a new section at the end. Sections run in
-- order, each in a transaction of its own. One headed "(no transaction)", as CREATE INDEX CONCURRENTLY
-- needs, runs statement by statement, split at each semicolon that ends a line; it may be started again
-- after a failure half-way, so it must be written to bear that (DROP INDEX CONCURRENTLY IF EXISTS first).

-- migration 1: accounts

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE users (
    id            bigint      GENERATED ALWAYS AS IDENTITY,
    email         text        NOT NULL,              -- lower-case ASCII: one spelling an account
    password_hash text        NOT NULL,              -- Argon2id, PHC string
    full_name     text,                              -- up to 255 characters; null: not told
    is_active     boolean     NOT NULL DEFAULT true, -- false: no login, and no session lives
    is_admin      boolean     NOT NULL DEFAULT false,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT users_pkey PRIMARY KEY (id),
    CONSTRAINT users_email_key UNIQUE (email),
    CONSTRAINT users_email_check CHECK (octet_length(email) BETWEEN 3 AND 254 AND email = lower(email)),
    CONSTRAINT users_full_name_check CHECK (char_length(full_name) <= 255)
);

-- The few rows that the last-admin rule locks and counts.
CREATE INDEX users_active_admins_idx ON users (id) WHERE is_admin AND is_active;

-- A login. Its tokens hold the id and the generation; nothing here can be replayed as a token.
CREATE TABLE sessions (
    id         bigint      GENERATED ALWAYS AS IDENTITY,
    user_id    bigint      NOT NULL,
    generation bigint      NOT NULL DEFAULT 0,       -- how often it was refreshed; only this refresh token counts
    created_at timestamptz NOT NULL DEFAULT now(),   -- the login
    rotated_at timestamptz NOT NULL DEFAULT now(),   -- the login or the last refresh
    expires_at timestamptz NOT NULL,                 -- rotated_at plus the idle limit, at most created_at plus the absolute one
    user_agent text        NOT NULL,                 -- of the login, at most 256 bytes, for the owner's list
    ip         inet,                                 -- of the login
    CONSTRAINT sessions_pkey PRIMARY KEY (id),
    CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE,
    CONSTRAINT sessions_generation_check CHECK (generation >= 0)
);

CREATE INDEX sessions_user_id_idx ON sessions (user_id, id); -- the owner's list, the cap, the cascade
CREATE INDEX sessions_expires_at_idx ON sessions (expires_at); -- the sweep
