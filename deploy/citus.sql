-- Distributes the table of documents by owner over the workers of a Citus cluster; docs/citus.md says
-- when that pays. Run it once, as the owner of the tables, on the coordinator, with all replicas
-- stopped, after "latch migrate", and with the name of the database in place of app_db:
--   psql -d app_db -v ON_ERROR_STOP=1 -1 -f citus.sql

-- A distributed table cannot refer to the accounts, which stay on the coordinator. This does what the
-- foreign key did when an account is deleted.
CREATE FUNCTION delete_documents() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM documents WHERE owner_id = OLD.id;
    RETURN NULL;
END $$;
CREATE TRIGGER users_delete_documents AFTER DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION delete_documents();
ALTER TABLE documents DROP CONSTRAINT documents_owner_id_fkey;

SELECT create_distributed_table('documents', 'owner_id');
SELECT truncate_local_data_after_distributing_table('documents');

-- The settings of Latch's connections end at the coordinator; these reach the workers too.
ALTER DATABASE app_db SET random_page_cost = 1.1;
ALTER DATABASE app_db SET jit = off;
