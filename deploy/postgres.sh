#!/bin/bash
# Starts a node of PostgreSQL: postgres.sh PEER [first]. A node without data becomes the standby of
# its peer; only if "first" is given and no peer answers, it starts a new database. A node with data
# starts as what it was. PgBouncer alone decides which node is written to.
set -euo pipefail
peer=$1 slot=standby copy=$PGDATA.copy
export PGPASSWORD=$REPLICATION_PASSWORD PGCONNECT_TIMEOUT=5

if [ ! -s "$PGDATA/PG_VERSION" ] && { [ "${2-}" != first ] || pg_isready -q -h "$peer"; }; then
	# A slot keeps what the standby has still to read. An older slot may have lost it.
	drop="SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
		WHERE slot_name = '$slot'"
	until rm -rf "$copy" &&
		psql -qX -h "$peer" -U replicator -d postgres -c "$drop" >/dev/null &&
		pg_basebackup -h "$peer" -U replicator -D "$copy" -c fast -C -S "$slot"; do
		echo "waiting for a primary at $peer"
		sleep 2
	done
	touch "$copy/standby.signal"
	mv "$copy" "$PGDATA"
fi

# The two primary_ settings count on a standby only. The WAL kept for an absent standby is bounded.
exec docker-entrypoint.sh postgres \
	-c primary_conninfo="host=$peer user=replicator application_name=$slot" \
	-c primary_slot_name="$slot" -c max_slot_wal_keep_size=4GB -c wal_keep_size=256MB
