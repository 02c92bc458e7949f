-- Moves the accounts of a FastAPI application to Latch, within one database: docs/from-fastapi.md says how.
-- The first run, before Latch's first migration, moves the application's tables to the schema fastapi. The
-- next, after "latch migrate", copies the accounts, and says which it could not copy and why. Nothing is
-- deleted, and an account that was copied is left alone from then on, so it may run any number of times.

BEGIN;
SET LOCAL TimeZone = 'UTC'; -- of times without a zone: datetime.utcnow()
SET LOCAL client_min_messages = warning;
CREATE TEMP TABLE report (n serial, line text) ON COMMIT DROP;

-- can_check says whether Latch can check a password by this hash: bcryptForm and parsePHC in credentials.go.
CREATE OR REPLACE FUNCTION pg_temp.can_check(hash text) RETURNS boolean LANGUAGE sql AS $$
    SELECT length(hash) = 60 AND hash ~ '^\$2[aby]\$(0[4-9]|1[0-4])\$[./A-Za-z0-9]+$' OR coalesce((
        SELECT cost[1]::integer BETWEEN 8 * cost[2]::integer AND 131072
            AND length(part[5]) BETWEEN 11 AND 86 AND length(part[6]) BETWEEN 22 AND 86
            AND part[5] || part[6] ~ '^[A-Za-z0-9+/]+$' AND hash LIKE '$argon2id$v=19$%' AND cardinality(part) = 6
        FROM string_to_array(hash, '$') part,
            regexp_match(part[4], '^m=([1-9]\d{0,5}),t=(?:[1-9]|10),p=([1-8])$') cost), false)
$$;

DO $do$
DECLARE
    tab       text;
    source    regclass; -- the table of the accounts
    is_latch  boolean := EXISTS (SELECT FROM pg_attribute
        WHERE attrelid = to_regclass('public.schema_migrations') AND attname = 'checksum');
    ids       regclass; -- the sequence of Latch's ids
    a_time    text := '^\d{4}-[^B]+$'; -- of the years 1 to 9999, and not infinity: RFC 3339 has no others
BEGIN
    CREATE SCHEMA IF NOT EXISTS fastapi;
    CREATE TABLE IF NOT EXISTS fastapi.latch_users (
        old_id text PRIMARY KEY,
        new_id bigint, -- in Latch's users; null: not copied
        note   text
    );

    FOR tab IN SELECT relname FROM pg_class c
        WHERE NOT is_latch AND relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
          AND NOT EXISTS (SELECT FROM pg_depend -- not those of extensions
              WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
    LOOP
        EXECUTE format('ALTER TABLE public.%I SET SCHEMA fastapi', tab);
    END LOOP;

    SELECT c.oid INTO source
    FROM pg_class c, LATERAL (SELECT array_agg(attname::text) AS names FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) columns
    WHERE relnamespace = 'fastapi'::regnamespace AND relkind IN ('r', 'p') AND names @> '{id,email}'
      AND names && '{hashed_password,password_hash,password}'
    ORDER BY relname = 'users' DESC, relname = 'user' DESC, relname LIMIT 1;
    IF source IS NULL THEN
        RAISE 'No table here has the columns id, email and hashed_password. Restore the dump of the FastAPI database into this one first.';
    END IF;
    IF NOT is_latch THEN
        INSERT INTO report (line) VALUES ('The tables of the application are in the schema fastapi now.'),
            ('Next: run "latch migrate", and then this script again.');
        RETURN;
    END IF;

    -- The rows as JSON, which gives null for a column that there is not.
    EXECUTE format('CREATE TEMP TABLE old ON COMMIT DROP AS SELECT to_jsonb(u) AS r FROM %s u', source);
    CREATE TEMP TABLE account ON COMMIT DROP AS
    SELECT r->>'id' AS old_id, lower(btrim(r->>'email', E' \t\r\n') COLLATE "C") AS email,
        CASE WHEN hash ~ '^\\x' THEN encode(hash::bytea, 'escape') ELSE btrim(hash, E' \t\r\n') END AS hash,
        coalesce(r->>'full_name', r->>'name', nullif(btrim(concat_ws(' ', r->>'first_name', r->>'last_name')), '')) AS name,
        CASE WHEN r->'is_active' IS NOT NULL THEN (r->>'is_active')::boolean
            ELSE NOT coalesce((r->>'disabled')::boolean, false) END AS active,
        coalesce((r->>'is_deleted')::boolean, false) OR r->>'deleted_at' IS NOT NULL AS deleted,
        coalesce((r->>'is_admin')::boolean, (r->>'is_superuser')::boolean, false) AS admin,
        CASE WHEN r->>'created_at' ~ a_time THEN (r->>'created_at')::timestamptz END AS created,
        CASE WHEN r->>'updated_at' ~ a_time THEN (r->>'updated_at')::timestamptz END AS updated,
        r->>'created_at' !~ a_time OR r->>'updated_at' !~ a_time AS has_bad_time
    FROM old, coalesce(r->>'hashed_password', r->>'password_hash', r->>'password', '') AS hash;

    -- Of several spellings of an address one can be copied: first an active one, an admin, the oldest.
    DELETE FROM fastapi.latch_users WHERE new_id IS NULL; -- they may have been corrected since
    CREATE TEMP TABLE moving ON COMMIT DROP AS
    SELECT a.*, CASE
            WHEN coalesce(email, '') = '' THEN 'it has no e-mail address'
            WHEN octet_length(email) > 254 OR position('@' IN email) > 65 OR email !~ (
                '^[a-z0-9!#$%&''*+/=?^_`{|}~-]+([.][a-z0-9!#$%&''*+/=?^_`{|}~-]+)*@'
                '([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?[.])+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$')
            THEN 'Latch does not take its e-mail address'
            WHEN chosen <> old_id THEN format('its e-mail address is that of %s', chosen)
            WHEN EXISTS (SELECT FROM public.users u WHERE u.email = a.email)
            THEN 'Latch has another account with its e-mail address'
        END AS refusal,
        -- The id stays if it is a number that no other account has.
        CASE WHEN old_id ~ '^[1-9][0-9]{0,17}$' AND NOT EXISTS (
            SELECT FROM public.users u WHERE u.id::text = old_id) THEN old_id::bigint END AS new_id
    FROM (SELECT *, first_value(old_id) OVER (PARTITION BY email ORDER BY deleted, active DESC NULLS LAST,
        admin DESC, created, length(old_id), old_id) AS chosen FROM account) a
    WHERE NOT EXISTS (SELECT FROM fastapi.latch_users l WHERE l.old_id = a.old_id)
    ORDER BY created, length(old_id), old_id; -- of new ids

    ids := pg_get_serial_sequence('public.users', 'id');
    PERFORM setval(ids, greatest(max(new_id), pg_sequence_last_value(ids))) FROM moving HAVING max(new_id) > 0;
    UPDATE moving SET new_id = nextval(ids) WHERE new_id IS NULL AND refusal IS NULL;
    INSERT INTO public.users
        (id, email, password_hash, full_name, is_active, is_admin, created_at, updated_at)
    OVERRIDING SYSTEM VALUE
    SELECT new_id, email, hash, left(name, 255), active IS TRUE AND NOT deleted, admin,
        coalesce(created, now()), coalesce(updated, created, now())
    FROM moving WHERE refusal IS NULL;

    INSERT INTO fastapi.latch_users
    SELECT old_id, CASE WHEN refusal IS NULL THEN new_id END, coalesce('not copied: ' || refusal, nullif(concat_ws('; ',
        CASE WHEN hash = '' THEN 'it has no password'
            WHEN NOT pg_temp.can_check(hash) THEN 'it needs a new password: Latch cannot check its hash' END,
        CASE WHEN char_length(name) > 255 THEN 'its name is cut to 255 characters' END,
        CASE WHEN has_bad_time THEN 'its times are out of range, and are now those of this run' END,
        CASE WHEN deleted THEN 'it was marked as deleted, and is inactive'
            WHEN active IS NULL THEN 'is_active was null, and it is inactive' END), ''))
    FROM moving;

    INSERT INTO report (line)
    SELECT format('%s of %s accounts of %s are copied, %s of them in this run.', count(new_id), count(*), source,
        (SELECT count(*) FROM moving WHERE refusal IS NULL)) FROM fastapi.latch_users;
    INSERT INTO report (line)
    SELECT format('Account %s, %s: %s.', l.old_id, coalesce(r->>'email', 'without e-mail'), note)
    FROM fastapi.latch_users l JOIN old ON r->>'id' = l.old_id WHERE note <> ''
    ORDER BY new_id IS NOT NULL, length(l.old_id), l.old_id;
    INSERT INTO report (line)
    SELECT format('%s accounts have a new id: fastapi.latch_users has the old ones.', count(*))
    FROM fastapi.latch_users WHERE new_id::text <> old_id HAVING count(*) > 0;
    INSERT INTO report (line)
    SELECT format('Latch has no place for the columns %s; they stay in %s.', string_agg(attname, ', '), source)
    FROM pg_attribute WHERE attrelid = source AND attnum > 0 AND NOT attisdropped AND attname <> ALL
        ('{id,email,hashed_password,password_hash,password,full_name,name,first_name,last_name,is_active,disabled,
        is_deleted,deleted_at,is_admin,is_superuser,created_at,updated_at}') HAVING count(*) > 0;
    INSERT INTO report (line)
    SELECT format('%s of %s still refers to %s.', conname, conrelid::regclass, source)
    FROM pg_constraint WHERE confrelid = source ORDER BY conname;
    INSERT INTO report (line)
    SELECT 'No account is an active admin. Make one: latch admin EMAIL'
    WHERE NOT EXISTS (SELECT FROM public.users WHERE is_admin AND is_active);
END $do$;

SELECT line AS "from FastAPI" FROM report ORDER BY n;
COMMIT;
