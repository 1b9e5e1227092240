#!/usr/bin/env bash
# Installs the programs that the tests run: redis-server, chromium, nginx, curl,
# Node 18 or later with npm, a C compiler for the race detector, and what compiles
# and runs the kits of examples: Python, Mono (7 MB), a JDK. Does nothing when they
# are there. As root on Debian or Ubuntu it installs what is missing;
# elsewhere it names it, and the tests that need it fail and say so: a green run
# means that everything ran.
set -euo pipefail

missing=()
command -v "${CC:-gcc}" >/dev/null || missing+=(gcc libc6-dev)
command -v redis-server >/dev/null || missing+=(redis-server)
command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
	command -v google-chrome >/dev/null || missing+=(chromium)
PATH=$PATH:/usr/sbin command -v nginx >/dev/null || missing+=(nginx-light)
command -v curl >/dev/null || missing+=(curl)
node -e 'process.exit(process.versions.node.split(".")[0] >= 18 ? 0 : 1)' 2>/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
command -v python3 >/dev/null || missing+=(python3)
command -v mcs >/dev/null || missing+=(mono-mcs)
command -v javac >/dev/null || missing+=(default-jdk-headless)
((${#missing[@]})) || exit 0

if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
	echo "installing what the tests need: ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	export RUNLEVEL=1 # start no service: the tests start what they need on free ports
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
	exit 0
fi

echo "missing: ${missing[*]}. Install with: apt-get install ${missing[*]}" >&2
[[ -z ${CI:-} ]] || exit 1
