#!/bin/sh
# Installs what "make run" (./setup.sh), "make test" (./setup.sh test) and "make bench" and "make fault" need, where it is missing:
# PostgreSQL 14+ with pgvector 0.7+, the first with halfvec, and for the tests a C compiler, which
# "go test -race" calls; where apt has them also Chromium with its driver, for the test of the docs page, and promtool,
# for that of the metrics, which are skipped without. Where everything is there, it does nothing and says nothing.
set -eu
umask 022        # what goes to /etc and /usr is for everybody to read
unset MAKEFLAGS  # those of make run are not for pgvector's make

say() { printf 'setup.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# The directories and the versions are those of findPostgres in devdb.go.
has_postgres() {
	on_path=$(command -v pg_ctl) || on_path=''
	for bin in /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin \
		/usr/pgsql-*/bin /usr/local/pgsql/bin "${on_path%/*}"; do
		if ! [ -x "$bin/postgres" ] || ! [ -x "$bin/initdb" ] || ! [ -x "$bin/pg_ctl" ]; then continue; fi
		major=$("$bin/pg_config" --version 2>/dev/null | sed 's/[^0-9]*\([0-9]*\).*/\1/')
		[ "${major:-0}" -ge 14 ] || continue
		vector=$("$bin/pg_config" --sharedir)/extension/vector.control
		if grep -Eqs "^default_version *= *'(0\.([7-9]|[1-9][0-9])|[1-9])" "$vector"; then return; fi
	done
	return 1
}

# A gcc without the C library's headers, a package of their own on Debian, is not enough.
has_cc() { echo '#include <stdlib.h>' | ${CC:-gcc} -E - >/dev/null 2>&1; }

has_browser() {
	command -v chromedriver >/dev/null || return 1
	for name in chromium chromium-browser google-chrome '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome'; do
		if command -v "$name" >/dev/null; then return; fi
	done
	return 1
}

may_install() { command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null; }; }

# want COMMAND PACKAGE...: what is wanted for some tests. What fails here is only said.
want() {
	name=$1; shift
	if command -v "$name" >/dev/null || [ -x "/usr/sbin/$name" ] || ! may_install; then return; fi
	say "Missing: $name. Running: apt-get install --no-install-recommends $*"
	{ as_root apt-get -q update && as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 \
		install --no-install-recommends "$@"; } || say "Failed: apt-get install $*"
}

# Ubuntu's chromium is a link to its snap store.
want_browser() {
	if has_browser; then return; fi
	if grep -qsx ID=debian /etc/os-release; then want chromedriver chromium chromium-driver; fi
	has_browser || say 'There is no Chromium or Chrome with chromedriver: THE TEST OF THE DOCS PAGE WILL BE SKIPPED.'
}

# Where promtool has no package of its own, as in Debian 12, it is taken out of that of prometheus, which
# installed would start a server, now and at every boot.
want_promtool() {
	if command -v promtool >/dev/null || ! may_install; then return; fi
	if apt-cache show promtool >/dev/null 2>&1; then want promtool promtool; return; fi
	say 'Missing: promtool for the test of the metrics. Taking it out of the package prometheus, to /usr/local/bin.'
	dir=$(mktemp -d)
	(cd "$dir" && as_root apt-get -q update && as_root apt-get -q -o APT::Sandbox::User=root download prometheus &&
		dpkg -x prometheus_*.deb . && as_root install usr/bin/promtool /usr/local/bin/) || say 'Failed: promtool. ITS CHECK WILL BE SKIPPED.'
	as_root rm -rf "$dir"
}

extras() {
	case $mode in
	test) want_browser; want_promtool ;;
	fault) want_browser; want_promtool; want pgbouncer pgbouncer ;;
	bench) want wrk wrk ;;
	esac
}

check() {
	postgres='' cc=''
	has_postgres || postgres='PostgreSQL 14+ with pgvector 0.7+'
	[ -z "$mode" ] || has_cc || cc='a C compiler (gcc and the C library)'
	missing=$postgres${postgres:+${cc:+ and }}$cc
	[ -z "$missing" ]
}

mode=${1-} # test, fault, bench, or nothing
if check; then extras; exit 0; fi

if [ "$(uname)" = Darwin ] && command -v brew >/dev/null; then
	say "Missing: $missing."
	brew='brew install postgresql@17 pgvector'
	[ -z "$postgres" ] || { say "Running: $brew" && $brew; } || die "Failed: $brew"
	check || die "Still missing: $missing.${cc:+ For the compiler run xcode-select --install.}"
	extras
	exit 0
fi
if [ "$(uname)" = Darwin ] || ! command -v apt-get >/dev/null; then
	if docker info >/dev/null 2>&1; then extras; exit 0; fi # the program then uses the image named below
	say "Missing: $missing. This script knows only apt-get and Homebrew; here please install it yourself."
	[ "$(uname)" != Darwin ] || say 'With Homebrew, from https://brew.sh: brew install postgresql@17 pgvector'
	die 'Docker does as well: where it runs, go run . uses the image pgvector/pgvector:pg17 by itself.'
fi

# The highest NN whose postgresql-NN-pgvector apt offers in 0.7 or later. Debian 12 and Ubuntu 24.04 have none.
offered() {
	apt-cache pkgnames postgresql- | sed -n 's/^postgresql-\([0-9]*\)-pgvector$/\1/p' | sort -rn | while read -r nn; do
		version=$(LC_ALL=C apt-cache policy "postgresql-$nn-pgvector" | sed -n 's/^ *Candidate: \([0-9]\)/\1/p')
		if [ "$nn" -ge 14 ] && dpkg --compare-versions "${version:-0}" ge 0.7; then echo "$nn" && break; fi
	done
}

plan() {
	packages=${cc:+ gcc libc6-dev} build='' major=''
	[ "$postgres" ] || return 0
	major=$(offered)
	packages=${major:+ postgresql-$major-pgvector}$packages
	[ -z "$major" ] || return 0
	major=$(LC_ALL=C apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p')
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
as_root apt-get -q update || say 'Failed: apt-get update. Going on with the package lists as they are.'
plan
[ -z "$postgres" ] || [ "${major:-0}" -ge 14 ] || die "Failed: apt offers no PostgreSQL 14+${major:+, only $major}."
say "Running: apt-get install --no-install-recommends$packages"
[ -z "$build" ] || say 'and then, as apt has no pgvector 0.7+, make install of pgvector 0.8.0 from the source in Debian 13.'

cleanup() {
	cd / && rm -rf "$tmp"
	[ -z "$dropin" ] || as_root sh -c "rm -f $dropin; rmdir -p ${dropin%/*} 2>/dev/null || :"
}
tmp=$(mktemp -d) dropin=''
trap cleanup EXIT; trap 'exit 1' HUP INT TERM
if [ "$postgres" ]; then # Debian's package makes a database and starts it, now and at every boot. Not for us:
	dropin=/etc/postgresql-common/createcluster.d/zz-latch.conf
	as_root sh -c "mkdir -p ${dropin%/*} && echo 'create_main_cluster = false' >$dropin" || die "Failed: writing $dropin"
fi
# shellcheck disable=SC2086 # $packages is several
as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 \
	install --no-install-recommends $packages || die "Failed: apt-get install$packages"

if [ "$build" ]; then
	# The hash is the one in Debian's signed package. So this needs no keyring, and an older Ubuntu's may lack Debian 13's key.
	url=http://deb.debian.org/debian/pool/main/p/pgvector/pgvector_0.8.0.orig.tar.gz
	sha256=867a2c328d4928a5a9d6f052cd3bc78c7d60228a9b914ad32aa3db88e9de27b0
	cd "$tmp"
	/usr/lib/apt/apt-helper -o APT::Sandbox::User=root download-file $url "$tmp/pgvector.tar.gz" SHA256:$sha256 ||
		die "Failed: download of $url"
	tar -xzf pgvector.tar.gz --strip-components=1
	config=/usr/lib/postgresql/$major/bin/pg_config
	make -s OPTFLAGS='' PG_CONFIG="$config" || die 'Failed: make of pgvector' # OPTFLAGS: not only for this CPU
	as_root make -s OPTFLAGS='' PG_CONFIG="$config" install || die 'Failed: make install of pgvector'
fi
check || die "Failed: everything is installed, but still missing: $missing"
extras
