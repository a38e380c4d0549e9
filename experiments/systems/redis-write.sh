#!/bin/sh
# Writes as an application does that knows its Sentinels: asks one of them for the master, then writes there.
#   redis-write.sh SENTINEL...
set -u
for sentinel in "$@"; do
    master=$(timeout 0.3 redis-cli -h "$sentinel" -p 26379 --raw sentinel get-master-addr-by-name shop | head -n 1)
    [ -n "$master" ] || continue
    [ "$(timeout 0.5 redis-cli -h "$master" -p 6379 --raw set drill written)" = OK ] && exit 0
    exit 1
done
exit 2
