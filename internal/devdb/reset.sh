#!/bin/sh
# Deletes the private database of development and its signing key, after asking: "make reset-dev".
set -eu
cd "$(dirname "$0")/../.."
if ! [ -d .data ]; then
	echo 'There is no .data/, so there is nothing to delete.'
	exit
fi
pid=$(head -n 1 .data/postgres/postmaster.pid 2>/dev/null) || pid=''
if [ "$pid" ] && ps -p "$pid" >/dev/null; then
	echo 'The database is running: end "make run" first. After a crash, start and end it once more.'
	exit 1
fi
printf 'Delete the database of development and its signing key, %s/.data? [y/N] ' "$PWD"
answer=''
read -r answer || echo
case $answer in
[yY] | [yY][eE][sS])
	[ -d .data/postgres ] || echo 'Its data are in a volume of Docker: see "docker volume ls".'
	rm -rf .data
	echo 'Deleted.'
	;;
*) echo 'Kept.' ;;
esac
