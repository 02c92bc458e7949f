-- Creates the role of the service, which owns its database and is no superuser. The image runs this
-- at the first start of an empty volume. It may run again: then it sets the role's password anew,
-- and gives tables that belong to the superuser, as those of older releases do, to the role.
\set ON_ERROR_STOP on
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
