#!/bin/sh
# Restarts the VM that this run is for: a new boot, whose software TPM starts afresh.
#
# The run's token travels in a configuration that curl reads from its standard input:
# everybody on the host can read arguments. Asked twice, everything here does no harm.
set -eu

server=$TRUSTFABRIC_URL/api/servers/$TRUSTFABRIC_SERVER_ID
body=$TRUSTFABRIC_RUN_DIR/answer
patience=${PATIENCE_SECONDS:-60}

# ask METHOD URL: the answer in $body, its status in $code ("000": there was none)
ask() {
    code=$(printf 'header = "Authorization: Bearer %s"\n' "$TRUSTFABRIC_TOKEN" |
        curl --silent --config - --max-time 10 --output "$body" \
            --write-out '%{http_code}' --request "$1" "$2") || code=000
}

say() { printf '%s\n' "$*"; }
fail() { say "$*" >&2; exit "$1"; }

# insist METHOD URL STATUS…: ask until one of these answers comes
insist() {
    method=$1 url=$2
    shift 2
    left=$patience
    while ask "$method" "$url"; do
        for wanted in "$@"; do
            [ "$code" = "$wanted" ] && return
        done
        case $code in
            000 | 5??) ;;
            401 | 403) fail 77 "refused: $code $(head -c 300 "$body")" ;;
            *) fail 1 "refused: $code $(head -c 300 "$body")" ;;
        esac
        [ "$left" -gt 0 ] || fail 75 "no answer within $patience s"
        left=$((left - 1))
        sleep 1
    done
}

# reach STATUS: wait until the server's status is this one
reach() {
    turns=$((patience * 5))
    while :; do
        insist GET "$server" 200
        status=$(grep -o '"status": *"[a-z-]*"' "$body" | head -n 1 | cut -d '"' -f 4)
        [ "$status" = "$1" ] && return
        [ "$turns" -gt 0 ] || fail 75 "still $status after $patience s"
        turns=$((turns - 1))
        sleep 0.2
    done
}

say "stopping server $TRUSTFABRIC_SERVER_ID (attempt $TRUSTFABRIC_ATTEMPT)"
insist POST "$server/stop" 202
reach stopped
say "stopped"

say "starting server $TRUSTFABRIC_SERVER_ID"
insist POST "$server/start" 202 409
reach running
say "running: a new boot"
