#!/bin/sh
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
#
# A double: stands for a release of llama.cpp that starts, answers well for a while, and then crashes in the middle of its work.
#
# The real llama-server with the same arguments answers; once it has answered $FLAKY_REQUESTS requests (default 20) it is
# killed, whatever else it has in hand, and the container ends with status 137. Docker starts it again, and it counts anew.
# It counts requests that computed something, by what llama-server logs at the end of each, not questions about health or metrics.
# It leaves out every other way to fail: a crash while loading, a request that never ends, a slow leak.
set -eu

limit=${FLAKY_REQUESTS:-20}
log=${TMPDIR:-/tmp}/llama-server.log
rm -f "$log"
mkfifo "$log"

# Passes the log on as it comes, and kills the server when its time has come.
count() {
    answered=0
    while IFS= read -r line; do
        printf '%s\n' "$line"
        case $line in
            *" print_timing: "*" total time = "*) answered=$((answered + 1)) ;;
            *) continue ;;
        esac
        if [ "$answered" -eq "$limit" ]; then
            # It logs before the last bytes of the answer are out.
            sleep 0.2
            printf 'flaky: %s requests answered, crashing\n' "$answered"
            kill -KILL "$1"
        fi
    done
}

llama-server "$@" >"$log" 2>&1 &
server=$!
trap 'kill -TERM "$server" 2>/dev/null || true' TERM INT
count "$server" <"$log" &

# A signal ends the waiting and not the server.
status=0
while kill -0 "$server" 2>/dev/null; do
    status=0
    wait "$server" || status=$?
done
# Where the server ended at the same moment, the waiting above told of the signal (143). A shell that has told of the server knows it no more (127).
last=0
wait "$server" 2>/dev/null || last=$?
[ "$last" -eq 127 ] || status=$last
exit "$status"
