#!/usr/bin/env bash
# Installs the programs that the checks run beside Go: Node 18 or later and npm,
# for the linter of the documents. Does nothing when they are there. As root on
# Debian or Ubuntu it installs what is missing; elsewhere it names it and fails.
set -euo pipefail

missing=()
node -e 'process.exit(process.versions.node.split(".")[0] >= 18 ? 0 : 1)' 2>/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
((${#missing[@]})) || exit 0

if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
	echo "installing what the checks need: ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
	exit 0
fi

echo "missing: ${missing[*]} (Node 18 or later). Install with: apt-get install ${missing[*]}" >&2
exit 1
