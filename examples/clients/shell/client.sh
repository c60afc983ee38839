#!/bin/sh
# A client in a shell script, on Linux, with socat: client.sh PATH MESSAGE...
#
# Sends each MESSAGE on a connection of its own, and prints its reply. pipe-client does the same on one connection, and
# on Windows as well.
set -eu

path=$1
shift
for message in "$@"; do
    # Type 5 is SOCK_SEQPACKET. What socat reads at once, up to -b bytes, is one message. It waits up to -t seconds for the
    # server to close, which it does once it has replied.
    printf '%s' "$message" | socat -b 65536 -t 20 - "UNIX-CONNECT:$path,type=5"
    echo
done
