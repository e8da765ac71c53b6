#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The first program of the image postgres: starts what it is given. Before the first start of the server it makes the database
# cluster, as the environment says:
#
#   POSTGRES_PASSWORD          of the superuser; required
#   POSTGRES_USER              the superuser's name (default: postgres)
#   POSTGRES_DB                a database to make (default: as the user)
#   POSTGRES_INITDB_ARGS       options for initdb
#   POSTGRES_INITDB_WALDIR     where the write-ahead log is to be
#   POSTGRES_HOST_AUTH_METHOD  of connections from elsewhere (default: scram-sha-256; with trust, no password is required)
#   PGDATA                     the cluster's directory
#
# Each of the first three may be said by a file, as in POSTGRES_PASSWORD_FILE=/run/secrets/password. Then it runs what is in
# /docker-entrypoint-initdb.d: *.sh, *.sql, *.sql.gz.
set -eu

say() { echo "postgres: $*" >&2; }
fail() { say "$*"; exit 1; }

# read_variable NAME [DEFAULT]: sets NAME from NAME_FILE, or from DEFAULT.
read_variable() {
	eval "value=\${$1:-} file=\${$1_FILE:-}"
	[ -z "$value" ] || [ -z "$file" ] || fail "$1 and $1_FILE are both set: set one of them"
	if [ -n "$file" ]; then
		value=$(cat "$file") || fail "cannot read $1_FILE"
	fi
	value=${value:-${2:-}}
	eval "$1=\$value"
	unset "$1_FILE"
}

# The cluster belongs to the user postgres, who alone may run the server.
become_postgres() {
	while read -r key uid _; do [ "$key" != Uid: ] || break; done </proc/self/status
	[ "$uid" = 0 ] || return 0
	[ -d "$PGDATA" ] || mkdir -p "$PGDATA"
	# A new volume is root's.
	if [ -O "$PGDATA" ]; then chown -R postgres:postgres "$PGDATA"; fi
	if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
		mkdir -p "$POSTGRES_INITDB_WALDIR"
		chown -R postgres:postgres "$POSTGRES_INITDB_WALDIR"
		chmod 700 "$POSTGRES_INITDB_WALDIR"
	fi
	exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
}

make_cluster() {
	read_variable POSTGRES_PASSWORD
	read_variable POSTGRES_USER postgres
	read_variable POSTGRES_DB "$POSTGRES_USER"
	method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
	if [ -z "$POSTGRES_PASSWORD" ] && [ "$method" != trust ]; then
		fail "no password for the superuser: pass -e POSTGRES_PASSWORD=…, or -e POSTGRES_HOST_AUTH_METHOD=trust to let everybody in"
	fi
	chmod 700 "$PGDATA"
	# Made beside its place and then moved, the file that shows that there is a cluster last: a start that was killed half-way
	# leaves nothing that the next one would take for one.
	new=$PGDATA/new-cluster
	rm -rf "$new"
	# Over TCP the password is asked for, within the sandbox too: initdb would trust the loopback address.
	set -- --pgdata="$new" --username="$POSTGRES_USER" --auth-host="$method" \
		${POSTGRES_INITDB_WALDIR:+--waldir="$POSTGRES_INITDB_WALDIR"}
	# Words, as the official image takes them.
	eval "set -- \"\$@\" ${POSTGRES_INITDB_ARGS:-}"
	if [ -n "$POSTGRES_PASSWORD" ]; then
		initdb --pwfile=/dev/stdin "$@" <<-PASSWORD
			$POSTGRES_PASSWORD
		PASSWORD
	else
		initdb "$@"
	fi
	printf '\nhost all all all %s\n' "$method" >>"$new/pg_hba.conf"
	mv "$new/PG_VERSION" "$PGDATA/.PG_VERSION"
	mv "$new"/* "$PGDATA"
	rm -rf "$new"
	mv "$PGDATA/.PG_VERSION" "$PGDATA/PG_VERSION"
	if [ "$POSTGRES_DB" != postgres ] || ! [ "$(echo /docker-entrypoint-initdb.d/*)" = '/docker-entrypoint-initdb.d/*' ]; then
		fill_cluster
	fi
	say "the database cluster is made"
}

# Starts a server that nobody reaches from elsewhere, and hands it what is to be done at first.
fill_cluster() {
	export PGPASSWORD="${PGPASSWORD:-$POSTGRES_PASSWORD}"
	pg_ctl -w -t 3600 -o "-c listen_addresses=" start
	if [ "$POSTGRES_DB" != postgres ]; then
		# The name is a value for psql, which quotes it.
		echo 'CREATE DATABASE :"db";' | run_sql --dbname postgres --set db="$POSTGRES_DB"
	fi
	for file in /docker-entrypoint-initdb.d/*; do
		case $file in
		*.sh) say "running $file"; if [ -x "$file" ]; then "$file"; else . "$file"; fi ;;
		*.sql) say "running $file"; run_sql --dbname "$POSTGRES_DB" --file "$file" ;;
		*.sql.gz) say "running $file"; gunzip -c "$file" | run_sql --dbname "$POSTGRES_DB" ;;
		'/docker-entrypoint-initdb.d/*') ;;
		*) say "passing over $file" ;;
		esac
	done
	pg_ctl -w -t 3600 -m fast stop
	unset PGPASSWORD
}

run_sql() { psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --no-password "$@"; }

# Options are the server's.
case ${1:-} in -*) set -- postgres "$@" ;; esac
if [ "${1:-}" = postgres ]; then
	become_postgres "$@"
	[ -s "$PGDATA/PG_VERSION" ] || make_cluster
	unset POSTGRES_PASSWORD
fi
exec "$@"
