#!/usr/bin/env bash
# Runs all tests of the module that it is called in with the race detector,
# arguments go to "go test". A hung test fails after 20 minutes with every
# goroutine's stack. With CI set a skipped test is an error.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if ! command -v "${CC:-gcc}" >/dev/null; then
	echo "no C compiler: the race detector needs one (apt-get install gcc libc6-dev)" >&2
	exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export CGO_ENABLED=1
"$root/.tools/gotestsum" --format pkgname-and-test-fails --jsonfile "$log" -- -race -timeout 20m "${@:-./...}"

if [[ -n ${CI:-} ]] && skipped=$(grep '"Action":"skip"' "$log" | grep -o '"Test":"[^"]*"'); then
	printf 'skipped, which CI does not allow:\n%s\n' "$skipped" >&2
	exit 1
fi
