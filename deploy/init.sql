-- Creates the role of the service, which owns its database and is no superuser. The image runs this
-- at the first start of an empty volume. It may run again, to set another POSTGRES_PASSWORD, or to
-- give the tables of an older volume, whose service was the superuser, to the role:
--   docker compose exec db psql -U postgres -d app_db -f /docker-entrypoint-initdb.d/init.sql
\set ON_ERROR_STOP on
SET client_min_messages = warning;
\getenv role SERVICE_ROLE
\getenv password POSTGRES_PASSWORD
\getenv replication REPLICATION_PASSWORD

SELECT :'role' <> current_user AS has_role, -- not with POSTGRES_USER=postgres, as it once was
    NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') AS is_new
\gset
\if :has_role
    \if :is_new
        CREATE ROLE :"role";
    \endif
    ALTER ROLE :"role" LOGIN PASSWORD :'password';
    ALTER DATABASE :"DBNAME" OWNER TO :"role";
    SELECT format('ALTER TABLE %s OWNER TO %I', oid::regclass, :'role') FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
    \gexec
    -- Without a password the superuser can log in only inside the container.
    ALTER ROLE CURRENT_USER PASSWORD NULL;
\endif

-- Needs a superuser. Other extensions, and all updates of them, come with the migrations.
CREATE EXTENSION IF NOT EXISTS vector;

\if :{?replication}
    CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'replication';
    \! echo 'host replication replicator all scram-sha-256' >>"$PGDATA/pg_hba.conf"
\endif
