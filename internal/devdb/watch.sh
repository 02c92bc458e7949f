#!/bin/sh
# Builds and runs the program, and again at every change of its sources: "make dev". Where they do
# not build, the old program goes on. Ctrl-C ends it.
set -eu
cd "$(dirname "$0")/../.."
built=.data/built pid=''

stop() {
	[ "$pid" ] || return 0
	kill "$pid" 2>/dev/null || : # it has ended by itself
	wait "$pid" || :
	pid=''
}
trap 'stop; exit 0' INT TERM HUP

# What is embedded counts as a source, and so does .env. "make reset-dev" removes .data/.
changed() {
	[ ! -e $built ] || find . \( -name .git -o -name .data -o -name test -o -name docs \) -prune \
		-o \( -name '*_test.go' -o -type d \) -o -newer $built -print | grep -q \
		-e '\.go$' -e '\.sql$' -e '\.html$' -e '\.json$' -e '\.txt$' -e '/go\.mod$' -e '/\.env$'
}

while :; do
	mkdir -p .data
	touch $built
	if go build -o "$1" .; then
		stop
		"./$1" &
		pid=$!
	fi
	until changed; do sleep 1; done
	echo 'A source has changed.'
done
