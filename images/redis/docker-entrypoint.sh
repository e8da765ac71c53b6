#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The first program of the image redis: starts what it is given, redis-server as the user redis.
# It forks nothing that is not needed: each process costs a guest that is slow in its kernel.
set -e

# Options, or a configuration file, are redis-server's.
case ${1:-} in
-* | *.conf) set -- redis-server "$@" ;;
esac

if [ "$1" = redis-server ]; then
	shift
	# Who has published the port wants it reached. A configuration file says for itself who may.
	case ${1:-} in
	*.conf) ;;
	*) set -- --protected-mode no "$@" ;;
	esac
	set -- redis-server "$@"
	while read -r key uid _; do [ "$key" != Uid: ] || break; done </proc/self/status
	if [ "$uid" = 0 ]; then
		# A new volume is root's.
		[ ! -O . ] || chown -R redis:redis .
		set -- setpriv --reuid=redis --regid=redis --init-groups "$@"
	fi
fi
exec "$@"
