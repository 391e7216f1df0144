#!/usr/bin/env bash
# follow.sh RUN TOKEN [again]: prints what the run says until it ends, then its exit code.
# again: only its last lines, after a connection was lost.
set -euo pipefail
# shellcheck source=tpu_scripts/remote/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

name=$1 token=$2
if [[ $(of_run "$name" token) != "$token" ]]; then
    echo "[$me] knows nothing of this start of $name: the machine has been replaced"
    echo "@kd exit $me 134" # to the other workers it is a lost peer
    exit
fi
from=(--bytes "+$(($(of_run "$name" from) + 1))")
[[ ${3:-} != again ]] || from=(--lines 20)
# tail ends, with the last lines read, when this process does. A run that has ended may stay in the
# table of processes for a while, so tail cannot wait for that one.
while is_running "$name" && kill -0 $$; do sleep 0.5; done &
tail --follow --sleep-interval=0.5 --pid="$!" "${from[@]}" "$runs/$name.log" | sed -u "s/^/[$me] /"
[[ -z $(tail --bytes=1 "$runs/$name.log") ]] || echo
code=$(of_run "$name" exit)
# Without a code it was killed, or the machine restarted.
echo "@kd exit $me ${code:-137}"
