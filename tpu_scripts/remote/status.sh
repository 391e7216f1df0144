#!/usr/bin/env bash
# status.sh RUN: the token of a run that is under way, and how far it says it got.
set -euo pipefail
# shellcheck source=tpu_scripts/remote/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

! is_running "$1" || echo "@kd running $me $(of_run "$1" token)"
# Lines of experiments: from which step a stage was resumed, and which stages were finished before.
# Two starts that differ in them had progress between them.
[[ -e $runs/$1.log ]] || exit 0
from=$(of_run "$1" from)
tail --bytes "+$((${from:-0} + 1))" "$runs/$1.log" |
    sed -n "s/^stage .*: \(resumed at step\|finished before\).*/@kd reached $me &/p"
