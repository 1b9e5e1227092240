#!/usr/bin/env bash
# Asks a status URL until the orchestration has ended, as a shell script does that
# knows the HTTP API of Durable Functions and nothing of the relay: poll.sh URL.
# Prints one line per answer, code and body. TOKEN is the bearer.
set -euo pipefail

url=$1
headers=$(mktemp) body=$(mktemp)
trap 'rm -f "$headers" "$body"' EXIT
header() { sed -n "s/^$1: *//Ip" "$headers" | tr -d '\r'; }

while :; do
	code=$(curl --silent --show-error --location --max-time 10 --header "Authorization: Bearer $TOKEN" \
		--dump-header "$headers" --output "$body" --write-out '%{http_code}' "$url")
	echo "$code $(cat "$body")"
	[[ $code == 202 ]] || exit 0
	url=$(header location)
	sleep "$(header retry-after)"
done
