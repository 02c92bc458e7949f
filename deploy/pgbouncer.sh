#!/bin/sh
# Starts PgBouncer, with what may not stand in a file. With the argument "reload", in the running
# container, it applies another POSTGRES_PASSWORD or PRIMARY; established connections stay.
set -eu
umask 077
printf '"latch" "%s"\n' "$(printf %s "$POSTGRES_PASSWORD" | sed 's/"/""/g')" >/tmp/userlist.txt
sed "s/host=PRIMARY/host=$PRIMARY/" /pgbouncer.ini >/tmp/pgbouncer.ini
[ "${1-}" = reload ] && exec kill -HUP 1
exec pgbouncer /tmp/pgbouncer.ini
