-- Run once, on the first start of the first node. The service owns its database and is no superuser; the
-- superuser logs in inside the container only, because it has no password.
\getenv password POSTGRES_PASSWORD
\getenv replication REPLICATION_PASSWORD
CREATE ROLE latch LOGIN PASSWORD :'password';
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'replication';
CREATE DATABASE app_db OWNER latch;
ALTER ROLE postgres PASSWORD NULL;
\! echo 'host replication replicator all scram-sha-256' >> "$PGDATA/pg_hba.conf"
\connect app_db
CREATE EXTENSION vector; -- which only a superuser may; the others, and their updates, come with the migrations
