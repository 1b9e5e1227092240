#!/bin/sh
# Starts redis-server with the users of users.acl, beside this file. The password of the
# relay's stands in $REDIS_PASSWORD_FILE, those of the notifier's and the bridge's, if they may
# log in, in $REDIS_NOTIFIER_PASSWORD_FILE and $REDIS_BRIDGE_PASSWORD_FILE. Further arguments are redis-server's.
# What Redis reads is written to $REDIS_RUN, a folder that nobody else may read.
set -eu
umask 077
users=$REDIS_RUN/users.acl
cp "$(dirname "$0")/users.acl" "$users"
password() { # of the user $1, which stands in the file $2
	hash=$(tr -d '\r\n' <"$2" | sha256sum | cut -d ' ' -f 1)
	sed "/^user $1 /s/#0\{64\}/#$hash/" "$users" >"$users.new" && mv "$users.new" "$users"
}
password relay "$REDIS_PASSWORD_FILE"
if [ -n "${REDIS_NOTIFIER_PASSWORD_FILE:-}" ]; then password notifier "$REDIS_NOTIFIER_PASSWORD_FILE"; fi
if [ -n "${REDIS_BRIDGE_PASSWORD_FILE:-}" ]; then password bridge "$REDIS_BRIDGE_PASSWORD_FILE"; fi
exec redis-server --include "$users" "$@"
