#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The first program of the image node: options and what is no program are for node.
set -e
case ${1:-} in
-*) set -- node "$@" ;;
'') set -- node ;;
*) command -v "$1" >/dev/null || set -- node "$@" ;;
esac
exec "$@"
