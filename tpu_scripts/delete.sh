#!/usr/bin/env bash
# Deletes the TPUs, and whatever only their disks hold: delete.sh [--yes] [--dry-run]
#
# Asks first; without a terminal to ask at, --yes is needed. With xpk it deletes the workload
# KD_NAME; the cluster stays.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

yes=0
while (($#)); do
    case $1 in
        --yes) yes=1 ;;
        *) common_flag "$1" ;;
    esac
    shift
done
need_resource

what="$KD_NAME in $KD_ZONE of $KD_PROJECT"
[[ $KD_BACKEND != xpk ]] || what="workload $KD_NAME of cluster $KD_CLUSTER"
state=$(resource_state ACTIVE)
if [[ $state == ABSENT ]]; then
    [[ $KD_BACKEND != mig ]] || delete_group_parts || die 1 "could not delete the template"
    say "$what is not there: nothing to delete"
    exit 0
fi
if ((!yes && !dry_run)); then
    [[ -t 0 ]] || die 2 "no terminal to ask at: say --yes to delete $what"
    read -rp "Delete $what ($state)? [y/N] " answer || answer=
    [[ $answer == [yY] ]] || die 1 "nothing was deleted"
fi
delete_resource || die 1 "could not delete $what"
((dry_run)) || say "deleted $what"
