#!/usr/bin/env bash
# stop.sh: asks the runs on this worker to save and stop, and waits for that.
set -euo pipefail
# shellcheck source=tpu_scripts/remote/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

mkdir -p "$runs"
exec 9>"$runs/lock"
flock 9
end_runs
