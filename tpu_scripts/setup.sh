#!/usr/bin/env bash
# Installs the packages on all workers, after push.sh: setup.sh [--mount] [--dry-run]
#
# Each worker gets the versions of constraints.txt, with the extra "tpu", in an environment beside
# the tree, KD_REMOTE.venv. Nothing is done where that has happened before. Versions of Python, jax,
# jaxlib and libtpu that differ between workers are an error.
#
# --mount mounts the bucket KD_BUCKET at KD_WORKDIR. It must be a bucket with a hierarchical
# namespace: only there is a folder renamed in one step, which is how finished stages appear.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tpu_scripts/remote.sh
source "$here/remote.sh"

mount=0
while (($#)); do
    case $1 in
        --mount) mount=1 ;;
        *) common_flag "$1" ;;
    esac
    shift
done
if ((mount)); then
    need KD_BUCKET KD_WORKDIR
    [[ -z $KD_BUCKET || $KD_BUCKET == gs://?* ]] ||
        problems+=("KD_BUCKET=$KD_BUCKET is not of the form gs://bucket or gs://bucket/folder")
fi
need_resource

answers=$(mktemp)
trap 'rm -f "$answers"' EXIT
code=0
ask "$answers" install.sh || code=$?
((code != 127)) || die 2 "the code is not on the workers: run push.sh"
((code == 0)) || die "$code" "the packages could not be installed on all workers"
# Lines "version WORKER PACKAGE VERSION" become lines "PACKAGE VERSION: WORKER...".
found=$(awk '{ on[$3 " " $4] = on[$3 " " $4] " " $2 } END { for (v in on) print v ":" on[v] }' \
    "$answers" | sort)
if [[ $found == *" missing:"* || -n $(cut -d " " -f 1 <<<"$found" | uniq -d) ]]; then
    say "$found"
    die 1 "a package is missing, or its versions differ between workers (the list above);" \
        "delete $KD_REMOTE.venv on the odd ones, then run setup.sh"
fi
((dry_run)) || say "all workers: $(cut -d : -f 1 <<<"$found" | paste -sd ,)"
if ((mount)); then
    on_workers "$(remote mount.sh "$KD_BUCKET")"
fi
