#!/usr/bin/env bash
# supervise.sh RUN COMMAND...: runs COMMAND and keeps its code; SIGTERM asks it to save and stop.
set -euo pipefail
# shellcheck source=tpu_scripts/remote/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

name=$1
shift
echo "== $(date -u +%FT%TZ) revision $(cat "$tree/REVISION"):$(printf ' %q' "$@")"
# It ends a worker that is stuck, and says why one died.
"$venv/bin/python" -m kd_jax.launch.local -n 1 -- "$@" &
child=$!
trap 'asked=1; kill -TERM "$child" 2>/dev/null || true' TERM
while :; do
    asked=0 code=0
    wait "$child" || code=$?
    [[ $asked == 1 ]] || break # the trap broke off the wait
done
echo "== $(date -u +%FT%TZ) exit code $code"
echo "$code" >"$runs/$name.exit.new"
mv "$runs/$name.exit.new" "$runs/$name.exit"
