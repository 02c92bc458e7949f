#!/bin/sh
# Installs the named programs where they are missing: .ci/setup.sh [chromedriver] [promtool]
# [systemd-analyze] [pgbouncer] [nginx] [haproxy] [wrk]. Only some tests, "make fault" and "make
# bench" call them. A program that cannot be installed is reported and no error: the tests that need
# it skip, or fail if CI is set.
set -eu

say() { printf '.ci/setup.sh: %s\n' "$*" >&2; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

has() {
	if [ "$1" = chromedriver ]; then has_browser || return 1; fi
	command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ]
}

has_browser() {
	for name in chromium chromium-browser google-chrome \
		'/Applications/Google Chrome.app/Contents/MacOS/Google Chrome'; do
		if command -v "$name" >/dev/null; then return; fi
	done
	return 1
}

install_packages() {
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 \
		install --no-install-recommends "$@"
}

# Installs a server without starting it, which its package would do, now and at every boot.
install_server() {
	if [ -d /run/systemd/system ]; then as_root systemctl mask "$1.service"; fi
	install_packages "$1" || :
	if [ -d /run/systemd/system ]; then
		as_root systemctl unmask "$1.service"
		as_root systemctl disable "$1.service"
	fi
}

# Debian 12 and Ubuntu have promtool only in the package of the server, which would be started too.
extract_promtool() {
	dir=$(mktemp -d)
	if cd "$dir" && as_root apt-get -q -o APT::Sandbox::User=root download prometheus; then
		dpkg -x prometheus_*.deb . && as_root install usr/bin/promtool /usr/local/bin/
	fi
	cd / && as_root rm -rf "$dir"
}

install_program() {
	case $1 in
	chromedriver)
		grep -qsx ID=debian /etc/os-release || return 0 # Ubuntu's is a link to its snap store
		install_packages chromium chromium-driver
		;;
	promtool)
		if apt-cache show promtool >/dev/null 2>&1; then
			install_packages promtool
		else
			extract_promtool
		fi
		;;
	wrk) install_packages wrk ;;
	systemd-analyze) install_packages systemd ;;
	*) install_server "$1" ;;
	esac
}

updated=''
for program in "$@"; do
	if has "$program"; then continue; fi
	say "Missing: $program."
	if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null; }; then
		[ "$updated" ] || as_root apt-get -q update || say 'Failed: apt-get update.'
		updated=yes
		install_program "$program" || :
	fi
	has "$program" || say "Not installed: $program. THE TESTS THAT NEED IT WILL BE SKIPPED."
done
