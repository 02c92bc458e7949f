#!/bin/sh
# Installs what "make run" needs, and with the argument "test" also what "make test" needs, where it
# is missing: PostgreSQL 14+ with pgvector 0.7+, the first with halfvec; for the tests a C compiler,
# which "go test -race" calls. If nothing is missing, it does nothing and prints nothing.
set -eu
umask 022       # every user may read what goes to /etc and /usr
unset MAKEFLAGS # those of "make run" are not for pgvector's make

mode=${1-} # "test" or nothing
say() { printf 'setup.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# The directories and the versions are those of FindPostgres in devdb.go.
has_postgres() {
	on_path=$(command -v pg_ctl) || on_path=''
	for bin in /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql@*/bin \
		/usr/local/opt/postgresql@*/bin /usr/pgsql-*/bin /usr/local/pgsql/bin "${on_path%/*}"; do
		if ! [ -x "$bin/initdb" ] || ! [ -x "$bin/pg_ctl" ]; then continue; fi
		major=$("$bin/pg_config" --version 2>/dev/null | sed 's/[^0-9]*\([0-9]*\).*/\1/')
		[ "${major:-0}" -ge 14 ] || continue
		vector=$("$bin/pg_config" --sharedir)/extension/vector.control
		pattern="^default_version *= *'(0\.([7-9]|[1-9][0-9])|[1-9])"
		if grep -Eqs "$pattern" "$vector"; then return; fi
	done
	return 1
}

# On Debian the headers of the C library are a package of their own; gcc alone is not enough.
has_cc() { echo '#include <stdlib.h>' | ${CC:-gcc} -E - >/dev/null 2>&1; }

check() {
	postgres='' cc=''
	has_postgres || postgres='PostgreSQL 14+ with pgvector 0.7+'
	[ "$mode" != test ] || has_cc || cc='a C compiler (gcc and the C library)'
	missing=$postgres${postgres:+${cc:+ and }}$cc
	[ -z "$missing" ]
}
if check; then exit 0; fi

if [ "$(uname)" = Darwin ] && command -v brew >/dev/null; then
	say "Missing: $missing."
	brew='brew install postgresql@17 pgvector'
	[ -z "$postgres" ] || { say "Running: $brew" && $brew; } || die "Failed: $brew"
	check || die "Still missing: $missing.${cc:+ For the compiler run xcode-select --install.}"
	exit 0
fi
if [ "$(uname)" = Darwin ] || ! command -v apt-get >/dev/null; then
	if docker info >/dev/null 2>&1; then exit 0; fi # the program then uses Docker by itself
	say "Missing: $missing. This script knows only apt-get and Homebrew; please install it."
	[ "$(uname)" != Darwin ] || say 'With https://brew.sh: brew install postgresql@17 pgvector'
	die 'Docker does as well: where it runs, "go run ." starts PostgreSQL in a container.'
fi

# Prints the highest NN for which apt offers postgresql-NN-pgvector in 0.7 or later. Debian 12 and
# Ubuntu 24.04 offer none.
offered() {
	apt-cache pkgnames postgresql- | sed -n 's/^postgresql-\([0-9]*\)-pgvector$/\1/p' | sort -rn |
		while read -r nn; do
			version=$(LC_ALL=C apt-cache policy "postgresql-$nn-pgvector" |
				sed -n 's/^ *Candidate: \([0-9]\)/\1/p')
			if [ "$nn" -ge 14 ] && dpkg --compare-versions "${version:-0}" ge 0.7; then
				echo "$nn" && break
			fi
		done
}

# Sets the packages to install, and build where pgvector must be compiled.
plan() {
	packages=${cc:+ gcc libc6-dev} build='' major=''
	[ "$postgres" ] || return 0
	major=$(offered)
	packages=${major:+ postgresql-$major-pgvector}$packages
	[ -z "$major" ] || return 0
	major=$(LC_ALL=C apt-cache depends postgresql 2>/dev/null |
		sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p')
	packages=" postgresql-$major postgresql-server-dev-$major gcc libc6-dev make" build=yes
}

if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
	plan
	say "Missing: $missing."
	say 'To install that takes root, and there is no sudo. An administrator must run:'
	[ -z "$build" ] || die "  sh $(cd "$(dirname "$0")" && pwd)/setup.sh${mode:+ $mode}"
	die "  apt-get update && apt-get install --no-install-recommends$packages"
fi
say "Missing: $missing. Running apt-get update to see what there is to install."
as_root true || die 'Failed: sudo'
as_root apt-get -q update || say 'Failed: apt-get update. Going on with the old package lists.'
plan
[ -z "$postgres" ] || [ "${major:-0}" -ge 14 ] ||
	die "Failed: apt offers no PostgreSQL 14+${major:+, only $major}."
say "Running: apt-get install --no-install-recommends$packages"
[ -z "$build" ] || say 'and then, as apt has no pgvector 0.7+, make install of its source.'

cleanup() {
	cd / && rm -rf "$tmp"
	[ -z "$dropin" ] || as_root sh -c "rm -f $dropin; rmdir -p ${dropin%/*} 2>/dev/null || :"
}
tmp=$(mktemp -d) dropin=''
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
if [ "$postgres" ]; then # else Debian's package creates a database and starts it at every boot
	dropin=/etc/postgresql-common/createcluster.d/zz-latch.conf
	as_root sh -c "mkdir -p ${dropin%/*} && echo 'create_main_cluster = false' >$dropin" ||
		die "Failed: writing $dropin"
fi
# shellcheck disable=SC2086 # $packages is several
as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 \
	install --no-install-recommends $packages || die "Failed: apt-get install$packages"

# Debian's archive serves a version while one of its suites has it. The newest comes first. The last
# is that of Debian 13, which stays for years, but has CVE-2026-3172: a parallel build of an HNSW
# index can write past a buffer. The hashes are those of Debian's signed source packages. So the
# check needs no keyring; that of an older Ubuntu lacks Debian's newer keys.
fetch_pgvector() {
	while read -r version sha256; do
		url=http://deb.debian.org/debian/pool/main/p/pgvector/pgvector_$version.orig.tar.gz
		if /usr/lib/apt/apt-helper -o APT::Sandbox::User=root download-file "$url" \
			"$tmp/pgvector.tar.gz" "SHA256:$sha256" >"$tmp/log" 2>&1 </dev/null; then
			say "Building pgvector $version, the newest here that Debian's archive serves."
			[ "$version" != 0.8.0 ] || say 'It has CVE-2026-3172: build no HNSW index in parallel.'
			return
		fi
	done <<-'END'
		0.8.7 b028949dce65a39818cf2bccd64c0a2abc68262a2079f598b161de9c82c9510e
		0.8.6 25c9b78cfdaa43c66788d7490246ac24e4fe1c86f19c4b60c089b723f84a4a0d
		0.8.0 867a2c328d4928a5a9d6f052cd3bc78c7d60228a9b914ad32aa3db88e9de27b0
	END
	cat "$tmp/log" >&2
	die "Failed: download of $url"
}

if [ "$build" ]; then
	fetch_pgvector
	cd "$tmp"
	tar -xzf pgvector.tar.gz --strip-components=1
	config=/usr/lib/postgresql/$major/bin/pg_config # OPTFLAGS: for every CPU, not only for this one
	make -s OPTFLAGS='' PG_CONFIG="$config" || die 'Failed: make of pgvector'
	as_root make -s OPTFLAGS='' PG_CONFIG="$config" install ||
		die 'Failed: make install of pgvector'
fi
check || die "Failed: everything is installed, but still missing: $missing"
