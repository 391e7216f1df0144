#!/usr/bin/env bash
# profile.sh RUN: the newest profile that this worker wrote since RUN began, as a tar archive.
set -euo pipefail
# shellcheck source=tpu_scripts/remote/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ -e $runs/$1.began ]] || die 2 "has no run $1"
# The name of a trace begins with the host's: other machines may write to the same folder.
trace=$(find "$workdir/runs" -path "*/plugins/profile/*" -name "$(hostname)*.xplane.pb" \
    -newer "$runs/$1.began" -printf "%T@ %h\n" 2>/dev/null | sort -n | tail --lines 1)
[[ -n $trace ]] || die 2 "$1 has written no profile;" \
    "--profile 10:15 behind an experiment's command makes one of the steps 10 to 15"
cd -- "$workdir"
folder=${trace#* }
tar --create "${folder#"$workdir/"}"
