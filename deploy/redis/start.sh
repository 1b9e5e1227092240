#!/bin/sh
# Starts redis-server with the users of users.acl, beside this file, and the password
# that stands in $REDIS_PASSWORD_FILE. Further arguments are redis-server's.
# What Redis reads is written to $REDIS_RUN, a folder that nobody else may read.
set -eu
umask 077
hash=$(tr -d '\r\n' <"$REDIS_PASSWORD_FILE" | sha256sum | cut -d ' ' -f 1)
sed "s/#0\{64\}/#$hash/" "$(dirname "$0")/users.acl" >"$REDIS_RUN/users.acl"
exec redis-server --include "$REDIS_RUN/users.acl" "$@"
