#!/bin/sh
# Makes clients of /openapi.json with the common generators, compiles them, and has a driver of
# each call the program: register, login, refresh, me, create, list, search, and a 422. The table
# of the results goes to docs/clients.md, everything else to a cache outside of the checkout. What
# this machine lacks is said in the table, and the others go on. The status is 1 if a step failed.
#
# usage: run.sh [generator...]    only these; then the table is printed only
set -eu
export GOTOOLCHAIN=auto

# The versions of the generators and, where they do not pin them, of what their code imports. Those
# of npm are in package.json.
openapi_generator=7.25.0
openapi_python_client=0.29.1
oapi_codegen=2.8.2
ogen=1.24.0
langchain_tests=1.1.9
python_imports='mypy==2.4.1 pydantic==2.14.4 python-dateutil==2.9.0.post0
	types-python-dateutil==2.9.0.20261116 typing-extensions==4.16.0 urllib3==2.8.0'
go_imports='github.com/oapi-codegen/runtime@v1.9.0 github.com/oapi-codegen/nullable@v1.2.0
	golang.org/x/oauth2@v0.38.0'
mvn_dependency=org.apache.maven.plugins:maven-dependency-plugin:3.11.0

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${CLIENTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/latch-clients}
made=$cache/made logs=$cache/logs table=$cache/table.md
node=$cache/npm/node_modules/node/bin/node # from npm: orval and hey-api want 22.18 and later
export DOCUMENT="$cache/openapi.json" BASE="http://127.0.0.1:${PORT:-8791}"
only=" $* "
failed=0

say() { printf 'clients: %s\n' "$*" >&2; }
has() { for name; do command -v "$name" >/dev/null || return 1; done; }

# The program runs on a PostgreSQL of its own, which it makes in an empty directory.
start_program() {
	dir=$(mktemp -d)
	chmod 711 "$dir" # started by root, PostgreSQL runs as another user
	trap stop_program EXIT
	trap 'exit 1' INT TERM
	(cd "$root" && go build -o "$dir/latch" .)
	(cd "$dir" && exec env -i PATH="$PATH" HOME="$HOME" PORT="${BASE##*:}" ./latch) \
		>"$logs/latch.log" 2>&1 &
	pid=$!
	for _ in $(seq 60); do
		kill -0 "$pid" || { cat "$logs/latch.log" >&2; exit 1; }
		if curl -fs "$BASE/api/v1/health/db" >/dev/null; then break; fi
		sleep 1
	done
	curl -fsS "$BASE/openapi.json" -o "$DOCUMENT" && kill -0 "$pid"
}

stop_program() {
	[ -z "${pid:-}" ] || { kill "$pid" && wait "$pid"; } || true
	rm -rf "$dir"
}

# row NAME VERSION GENERATE COMPILE DRIVE: runs the three functions in turn, with NAME, and adds a
# row to the table.
row() {
	name=$1 version=$2 log=$logs/$1.log cells='' over=''
	case $only in "  " | *" $name "*) ;; *) return ;; esac
	: >"$log"
	export DRIVER="$name"
	for step in "$3" "$4" "$5 all_works"; do
		if [ "$over" ]; then cells="$cells – |"; continue; fi
		say "$name: ${step% *}"
		echo "== $step" >>"$log"
		set +e # a condition would switch it off inside too
		(set -e; for part in $step; do "$part" "$name"; done) >>"$log" 2>&1
		over=$?
		set -e
		if [ "$over" = 0 ]; then cells="$cells yes |" over=''; continue; fi
		lacks=$(sed -n '$s/^lacks: /not tried: no /p' "$log")
		[ "$lacks" ] || failed=1
		say "$name: ${lacks:-failed; see $log}"
		cells="$cells ${lacks:-**no**} |"
	done
	login=$(sed -n 's/^works: login by \([A-Za-z]*\).*/\1/p' "$log" | paste -sd, | sed 's/,/, /')
	echo "| $name | $version |$cells ${login:-–} |" >>"$table"
}

# all_works NAME: whether the driver has printed each of its steps.
all_works() {
	for what in register 'login by' refresh me create 'list with filter' search 422; do
		grep -q "^works: $what" "$logs/$1.log" ||
			{ echo "the driver did not try: $what"; return 1; }
	done
}

# ---- TypeScript ----

npm_version() { sed -n "s|^ *\"$1\": \"\(.*\)\".*|\1|p" "$here/package.json"; }
bin() { program=$1; shift; "$node" "$cache/npm/node_modules/$program" "$@"; }

install_npm() {
	has npm node || { echo 'lacks: npm'; return 1; }
	mkdir -p "$cache/npm"
	(cd "$cache/npm" && cmp -s "$here/package.json" installed.json || {
		rm -rf node_modules && cp "$here/package.json" .
		npm install --no-audit --no-fund && cp package.json installed.json
	})
	mkdir -p "$made/ts/$1"
	ln -sfn "$cache/npm/node_modules" "$made/ts/node_modules"
	cp "$here/$1.ts" "$here/steps.ts" "$here/tsconfig.json" "$made/ts/$1/"
	cd "$made/ts/$1"
}

generate_openapi_typescript() {
	install_npm "$1"
	bin openapi-typescript/bin/cli.js "$DOCUMENT" -o made.ts
}

generate_hey_api() {
	install_npm "$1"
	bin @hey-api/openapi-ts/bin/run.js -i "$DOCUMENT" -o made
}

generate_orval() {
	install_npm "$1"
	cp "$here/orval.config.cjs" . # its paths are relative to it
	bin orval/dist/bin/orval.mjs --config orval.config.cjs
}

generate_typescript() {
	install_npm "$1"
	openapi_generator "$1" "$PWD/made"
}

compile_typescript() { cd "$made/ts/$1" && bin typescript/bin/tsc -p .; }
drive_typescript() { "$node" "$made/ts/$1/out/$1.js"; }

# ---- openapi-generator ----

# openapi_generator NAME DIRECTORY [OPTION...]: generates a client; NAME ends with the language.
openapi_generator() {
	has java mvn || { echo 'lacks: Java and Maven'; return 1; }
	jar=$cache/openapi-generator-cli-$openapi_generator.jar
	[ -f "$jar" ] || mvn -q -B "$mvn_dependency:copy" -DoutputDirectory="$cache" \
		-Dartifact="org.openapitools:openapi-generator-cli:$openapi_generator"
	language=${1#openapi-generator-} to=$2
	shift 2
	java -jar "$jar" generate -g "$language" -i "$DOCUMENT" -o "$to" "$@"
}

# ---- Go ----

init_go() {
	mkdir -p "$made/go" && cd "$made/go"
	[ -f go.mod ] || go mod init clients
}

generate_oapi_codegen() {
	init_go && mkdir -p oapi
	go run "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v$oapi_codegen" \
		-config "$here/oapi-codegen.yaml" "$DOCUMENT"
}

generate_ogen() {
	init_go
	go run "github.com/ogen-go/ogen/cmd/ogen@v$ogen" --target ogen --package ogen "$DOCUMENT"
}

generate_go() {
	init_go
	openapi_generator "$1" openapi
	rm -rf openapi/go.mod openapi/go.sum openapi/test
}

compile_go() {
	cd "$made/go" && mkdir -p "run-$1"
	sed '/^\/\/go:build/d' "$here/$1.go" >"run-$1/main.go"
	go get "github.com/ogen-go/ogen@v$ogen" $go_imports
	go mod tidy
	go build -o "run-$1/driver" "./run-$1"
}

drive_go() { "$made/go/run-$1/driver"; }

# ---- Python ----

install_python() {
	has python3 || { echo 'lacks: Python'; return 1; }
	[ -x "$cache/python/bin/mypy" ] || python3 -m venv "$cache/python"
	"$cache/python/bin/pip" install -q --disable-pip-version-check \
		"openapi-python-client==$openapi_python_client" $python_imports
	mkdir -p "$made/$1" && cd "$made/$1"
	cp "$here/$1.py" driver.py
}

generate_openapi_python_client() {
	install_python "$1"
	"$cache/python/bin/openapi-python-client" generate --path "$DOCUMENT" --meta none \
		--output-path openapi_python --config "$here/$1.yaml"
}

generate_python() {
	install_python "$1"
	openapi_generator "$1" "$PWD/client"
	ln -s client/openapi_client openapi_client
}

compile_python() { cd "$made/$1" && "$cache/python/bin/mypy" --check-untyped-defs driver.py; }
drive_python() { cd "$made/$1" && "$cache/python/bin/python" driver.py; }

# ---- Java and Kotlin ----

generate_java() {
	openapi_generator "$1" "$made/$1" --additional-properties=containerDefaultToNull=true
	cp "$here/Driver.java" "$made/$1/src/main/java/"
}

generate_kotlin() {
	openapi_generator "$1" "$made/$1"
	cp "$here/kotlin.xml" "$made/$1/pom.xml"
	cp "$here/Driver.kt" "$made/$1/src/main/kotlin/"
}

compile_maven() {
	cd "$made/$1"
	mvn -q -B -Dstyle.color=never compile "$mvn_dependency:build-classpath" \
		-Dmdep.outputFile=classpath
}

drive_java() { java -cp "$made/$1/target/classes:$(cat "$made/$1/classpath")" Driver; }
drive_kotlin() { java -cp "$made/$1/target/classes:$(cat "$made/$1/classpath")" DriverKt; }

# LangChain's own tests of vector stores, on docs/langchain_latch.py.
test_langchain() {
	has python3 || { say 'langchain: not tried: no Python'; return; }
	[ -x "$cache/langchain/bin/pip" ] || python3 -m venv "$cache/langchain"
	"$cache/langchain/bin/pip" install -q --disable-pip-version-check \
		"langchain-tests==$langchain_tests" &&
		"$cache/langchain/bin/python" -m pytest -q -p no:cacheprovider -o asyncio_mode=auto \
			"$here/langchain_test.py"
}

rm -rf "$made"
mkdir -p "$made" "$logs"
echo '| generator | version | generates | compiles | runs | login by |' >"$table"
echo '|---|---|---|---|---|---|' >>"$table"
start_program
row openapi-typescript "$(npm_version openapi-typescript)" \
	generate_openapi_typescript compile_typescript drive_typescript
row hey-api "$(npm_version @hey-api/openapi-ts)" \
	generate_hey_api compile_typescript drive_typescript
row orval "$(npm_version orval)" generate_orval compile_typescript drive_typescript
row openapi-python-client "$openapi_python_client" \
	generate_openapi_python_client compile_python drive_python
row oapi-codegen "$oapi_codegen" generate_oapi_codegen compile_go drive_go
row ogen "$ogen" generate_ogen compile_go drive_go
for language in typescript-fetch typescript-axios; do
	row "openapi-generator-$language" "$openapi_generator" \
		generate_typescript compile_typescript drive_typescript
done
row openapi-generator-python "$openapi_generator" generate_python compile_python drive_python
row openapi-generator-go "$openapi_generator" generate_go compile_go drive_go
row openapi-generator-java "$openapi_generator" generate_java compile_maven drive_java
row openapi-generator-kotlin "$openapi_generator" generate_kotlin compile_maven drive_kotlin
case $only in "  " | *" langchain "*) test_langchain >&2 || failed=1 ;; esac
cat "$table"
if [ "$only" = "  " ]; then
	page=$root/docs/clients.md
	sed -e '/^<!-- table -->/,/^<!-- end -->/{//!d;}' -e "/^<!-- table -->/r $table" "$page" \
		>"$cache/page.md"
	cp "$cache/page.md" "$page"
fi
exit "$failed"
