#!/usr/bin/env bash
# Fuzzes each Fuzz function in turn for FUZZTIME (30s).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

found=0
while IFS=: read -r file name; do
	found=$((found + 1))
	echo "== ${file%/*} $name"
	go test -run='^$' -fuzz="^$name\$" -fuzztime="${FUZZTIME:-30s}" "./${file%/*}"
done < <(git grep -hoE --full-name '^func Fuzz[A-Za-z0-9_]*\(' -- '*_test.go' >/dev/null &&
	git grep -oE '^func Fuzz[A-Za-z0-9_]*' -- '*_test.go' | sed 's/:func /:/')
echo "$found fuzz targets ran"
((found))
