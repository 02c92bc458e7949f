-- The database, as one append-only list of migrations. A section that has been released is never
-- edited (its checksum is kept in the database): a change is a new section at the end. Sections run in
-- order, each in a transaction of its own. One headed "(no transaction)", as CREATE INDEX CONCURRENTLY
-- needs, runs statement by statement, split at each semicolon that ends a line. After a failure it runs
-- again from its start, so its statements must be repeatable (DROP INDEX CONCURRENTLY IF EXISTS first).

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

-- migration 2: documents

-- {dimensions} is EMBEDDING_DIMENSIONS and {text_search} is TEXT_SEARCH_CONFIG, as they are when this section is
-- applied; a start with others is refused from then on.

CREATE EXTENSION IF NOT EXISTS btree_gin; -- an index of an owner together with words or metadata

-- Settings that are fixed once there are documents: another value would make nonsense of them.
CREATE TABLE choices (
    name  text NOT NULL, -- of the setting; EMBEDDINGS_MODEL comes with the first start that has one
    value text NOT NULL,
    CONSTRAINT choices_pkey PRIMARY KEY (name)
);
INSERT INTO choices VALUES ('EMBEDDING_DIMENSIONS', '{dimensions}'), ('TEXT_SEARCH_CONFIG', '{text_search}');

CREATE TABLE documents (
    owner_id   bigint      NOT NULL,
    id         bigint      GENERATED ALWAYS AS IDENTITY,
    content    text        NOT NULL,              -- 1 to 65,536 characters
    metadata   jsonb       NOT NULL,              -- an object
    embedding  halfvec({dimensions}) NOT NULL,
    words      tsvector    NOT NULL GENERATED ALWAYS AS (to_tsvector('{text_search}',
               translate(regexp_replace(content, '(\S{100})', '\1 ', 'g'), '<', ' '))) STORED, -- for the parser: see below
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT documents_pkey PRIMARY KEY (owner_id, id),
    CONSTRAINT documents_owner_id_fkey FOREIGN KEY (owner_id) REFERENCES users ON DELETE CASCADE,
    CONSTRAINT documents_content_check CHECK (char_length(content) BETWEEN 1 AND 65536),
    -- 16 KiB as it was sent; spaces and numbers may grow, but not 1e308 into 309 digits a thousand times.
    CONSTRAINT documents_metadata_check CHECK (jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 32768)
);

-- PostgreSQL's parser of words takes quadratic time for long runs like a_a_a_ and ./././, and for unclosed
-- tags: 64 KiB of them took 20 s. So words end at 100 characters, and there are no tags: 0.2 s.

-- A vector is read whole, and most of them for each search: beside its row, not in the TOAST table.
ALTER TABLE documents ALTER COLUMN embedding SET STORAGE PLAIN;

-- Search reads owners and vectors from this index alone, in order, as long as the visibility map is fresh:
-- so the table is vacuumed after each 1,000 new rows, without pauses. There is no HNSW index on purpose: the
-- planner would take it, and lose rows. A B-tree holds 2,704 bytes a row, which is 1,336 dimensions; above
-- that, the primary key finds the rows of an owner.
DO $$ BEGIN
    IF {dimensions} <= 1336 THEN
        CREATE INDEX documents_nearest_idx ON documents (owner_id) INCLUDE (id, embedding);
    END IF;
END $$;
ALTER TABLE documents SET (
    autovacuum_vacuum_insert_threshold = 1000, autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX documents_metadata_idx ON documents USING gin (owner_id, metadata jsonb_path_ops); -- filters
CREATE INDEX documents_words_idx ON documents USING gin (owner_id, words); -- modes text and hybrid

-- migration 3: search for accounts

CREATE EXTENSION IF NOT EXISTS pg_trgm;

-- Part of an e-mail or a name, in any case, of three characters or more.
CREATE INDEX users_search_idx ON users USING gin (email gin_trgm_ops, full_name gin_trgm_ops);

-- migration 4: random session ids

-- Tokens name sessions. A sequence goes back in a restore and in a fail-over that loses its tail, and
-- then an old token would name a new row. So the program makes the ids: random, below 2^53.
ALTER TABLE sessions ALTER COLUMN id DROP IDENTITY;
ALTER TABLE sessions ADD CONSTRAINT sessions_id_check CHECK (id > 0 AND id < 9007199254740992);

-- migration 5: e-mail changes that wait for nobody

-- A foreign key might refer to a column with a plain unique index. So PostgreSQL lets a change of it wait
-- for all who insert rows that belong to the account: for its batches of documents. None can refer to
-- this index.
ALTER TABLE users DROP CONSTRAINT users_email_key;
CREATE UNIQUE INDEX users_email_key ON users (email) WHERE email IS NOT NULL;

-- migration 6: HNSW indexes of large owners

-- What "latch index" has measured of an owner's index, which is called documents_hnsw_ and the owner's id. A
-- search uses the index while the row is here; the sweep drops the index of an owner who has gone.
CREATE TABLE vector_indexes (
    owner_id    bigint      NOT NULL,
    ef_search   integer     NOT NULL,               -- hnsw.ef_search of searches: more finds more, and takes longer
    recall      float8      NOT NULL,               -- share of the true 10 nearest that searches find
    documents   bigint      NOT NULL,               -- of the owner when it was measured
    measured_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT vector_indexes_pkey PRIMARY KEY (owner_id),
    CONSTRAINT vector_indexes_owner_id_fkey FOREIGN KEY (owner_id) REFERENCES users ON DELETE CASCADE,
    CONSTRAINT vector_indexes_ef_search_check CHECK (ef_search BETWEEN 1 AND 1000)
);

-- migration 7: keys of documents

-- The check is not valid for old rows, which have no key, so that it reads none of them.
ALTER TABLE documents ADD COLUMN key text; -- the owner's own id: 1 to 255 characters; null: none
ALTER TABLE documents ADD CONSTRAINT documents_key_check CHECK (char_length(key) BETWEEN 1 AND 255) NOT VALID;

-- migration 8: unique keys of documents (no transaction)

-- This reads the whole table, at some 100 MB a second, while requests go on. Rows without a key are not in the
-- index.
DROP INDEX CONCURRENTLY IF EXISTS documents_key_idx;
CREATE UNIQUE INDEX CONCURRENTLY documents_key_idx ON documents (owner_id, key) WHERE key IS NOT NULL;

-- migration 9: words without punctuation

-- PostgreSQL's parser makes one word of a/b.c, of an address, of -5. So a word was found only with all that it
-- was joined to. search_text is for documents and queries alike: it composes accents and separates words by
-- commas; in a query, what commas separate has to follow each other. Without the signs that begin tags, paths
-- and addresses the parser takes linear time. Words still end at 100 characters: its limit is 2 KB. The signs
-- of queries, " and the minus, stay.
CREATE FUNCTION search_text(text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN regexp_replace(regexp_replace(CASE WHEN $1 IS NORMALIZED THEN $1 ELSE normalize($1) END,
        '[!#-,./:-@\[-`{-~]+', ',', 'g'), '([^\s,]{100})', '\1,', 'g');

-- This writes the table and its indexes anew, which takes some ten minutes for a million documents of 1 KB,
-- and room for both. Requests that need documents are answered by 503 meanwhile.
ALTER TABLE documents DROP COLUMN words;
ALTER TABLE documents ADD COLUMN words tsvector NOT NULL GENERATED ALWAYS AS
    (to_tsvector('{text_search}', search_text(replace(replace(content, '"', ','), '-', ',')))) STORED;
CREATE INDEX documents_words_idx ON documents USING gin (owner_id, words);
