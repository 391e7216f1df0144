#!/usr/bin/env bash
# log.sh RUN [follow]: what the run has said on this worker, all its starts.
set -euo pipefail
# shellcheck source=tpu_scripts/remote/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ -e $runs/$1.log ]] || die 2 "has no run $1;" \
    "it has:$(find "$runs" -name "*.log" -printf " %f" 2>/dev/null | sed "s/\.log\b//g")"
tail --lines +1 ${2:+--follow} "$runs/$1.log" | sed -u "s/^/[$me] /"
