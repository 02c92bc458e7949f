#!/bin/sh
# Gives the project another name: "make rename NAME=...". It replaces the old one, in lower, upper
# and mixed case, in every text file that Git has or would add, and in the names of these: module
# and imports, the program, settings of Docker, the database role, metrics, the issuer of tokens,
# texts. A second run with the same NAME changes nothing, and another NAME replaces the first: what
# the sources contain already, if only in a word, is refused. Lines that say "never renamed" stay,
# and so does schema.sql, whose checksums are in the databases.
set -eu
export LC_ALL=C
cd "$(dirname "$0")/.."
die() { printf 'rename: %s\n' "$*" >&2; exit 1; }

new=${1-} old=$(sed -n 's/^module //p' go.mod)
case $new in
"") die 'Say the name: make rename NAME=...' ;;
[!a-z]* | *[!a-z0-9]* | ? | ?? | ?????????????????????*)
	die 'NAME must be 3 to 20 lower-case letters and digits, a letter first: it becomes the name' \
		'of a Go module, a role of PostgreSQL, a Docker image and the prefix of metrics. What' \
		'people see is APP_NAME, which may be any text.' ;;
"$old") echo "rename: the project is called $new already." && exit 0 ;;
*"$old"* | postgres) die "NAME must not be postgres, and not contain $old." ;;
esac
case $old in *[!a-z0-9]*) die "go.mod calls the module $old, which is no single word." ;; esac
command -v gofmt >/dev/null || die 'gofmt is missing: install Go first.'
git rev-parse --git-dir >/dev/null 2>&1 ||
	die 'This is no Git checkout, which tells the sources from other files: run git init first.'

search() {
	git grep --no-color -Ii --untracked "$@" -- . \
		':!passwords.txt' ':!go.sum' ':!schema.sql' ':!test/judged'
}
used=$(search -n -e "$new" | grep -v -e 'never renamed' -e '^[^:]*\.md:' | head -n 1 | cut -c 1-99)
[ -z "$used" ] || die "the sources contain $new already; choose another name. $used"
if (cd / && go list std) | cut -d / -f 1 | grep -qx "$new" ||
	! echo "package x; func $new() {}" | gofmt >/dev/null 2>&1; then
	die "$new is a word of Go or one of its packages; choose another name."
fi

upper() { echo "$1" | tr a-z A-Z; }
capital() { printf %s "${1%"${1#?}"}" | tr a-z A-Z && echo "${1#?}"; }
tmp=$(mktemp)
trap 'rm -f "$tmp"' EXIT
search -l -e "$old" | while IFS= read -r file; do
	sed "/never renamed/!{
		s/$old/$new/g
		s/$(capital "$old")/$(capital "$new")/g
		s/$(upper "$old")/$(upper "$new")/g
	}" "$file" >"$tmp"
	cat "$tmp" >"$file" # so that it keeps its mode
done
git ls-files -co --exclude-standard | grep "$old" | while IFS= read -r file; do
	to=$(echo "$file" | sed "s/$old/$new/g")
	mkdir -p "$(dirname "$to")"
	[ ! -e "$file" ] || mv "$file" "$to"
done
gofmt -w . # the columns of comments have moved
rm -f "./$old" # the program, which Git ignored under this name
[ ! -f "deploy/$old.env" ] || mv "deploy/$old.env" "deploy/$new.env"
echo "rename: $old is now $new. docs/your-product.md says what follows."
