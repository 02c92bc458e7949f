#!/bin/sh
# Installs the services that Latch is compared with and compares them: "make bench-peers". The
# arguments are flags of TestPeers. Everything goes to one directory outside of the checkout, some
# 2 GB with Go's caches. A service that cannot be installed is left out, and the report says so.
set -u
cd "$(dirname "$0")" || exit 1
here=$PWD
export GOTOOLCHAIN=auto PYTHONDONTWRITEBYTECODE=1
export PEERS_DIR="${PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/latch-bench-peers}"
export POCKETBASE_VERSION=v0.40.4 KRATOS_VERSION=v1.3.1
mkdir -p "$PEERS_DIR" || exit 1

# python NAME REQUIREMENTS: a virtual environment that has exactly these packages.
python() {
	env=$PEERS_DIR/$1
	if cmp -s "$2" "$env/installed"; then return; fi
	rm -rf "$env"
	python3 -m venv "$env" && "$env/bin/pip" install -q -r "$2" && cp "$2" "$env/installed"
}

# What PocketBase releases is this example, which serves an empty schema.
pocketbase() {
	dir=$PEERS_DIR/pocketbase-$POCKETBASE_VERSION
	if [ -x "$dir/base" ]; then return; fi
	GOBIN=$dir CGO_ENABLED=0 go install -trimpath -ldflags='-s -w' \
		"github.com/pocketbase/pocketbase/examples/base@$POCKETBASE_VERSION"
}

# "go install" refuses a module that replaces others. One of those, a client for its tests, is not
# part of the module.
kratos() {
	dir=$PEERS_DIR/kratos-$KRATOS_VERSION
	if [ -x "$dir/kratos" ]; then return; fi
	module=github.com/ory/kratos@$KRATOS_VERSION
	source=$(cd / && go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	[ -d "$source" ] || return 1
	rm -rf "$dir" && mkdir -p "$dir" && cp -R "$source" "$dir/source" &&
		chmod -R u+w "$dir/source" && cd "$dir/source" &&
		go mod edit -dropreplace=github.com/ory/client-go &&
		CGO_ENABLED=0 go build -mod=mod -trimpath -ldflags='-s -w' -o "$dir/kratos" . &&
		rm -rf "$dir/source"
}

# try COMMAND...: tells what could not be installed, and goes on.
try() { ("$@") || printf 'run.sh: not installed, and so left out: %s\n' "$*" >&2; }

try python fastapi "$here/fastapi/requirements.txt"
try python chroma "$here/chroma.txt"
try pocketbase
try kratos
cd ../../.. || exit 1
exec go test -tags bench -run '^TestPeers$' -timeout 90m -v ./test/bench -args "$@"
