#!/usr/bin/env bash
# Waits until the TPUs are there: wait.sh [--timeout SECONDS] [--dry-run]
#
# Looks every KD_POLL seconds. Code 0 once the resource is ACTIVE, 1 if it failed, was preempted
# or is not there, 124 after --timeout (3600) seconds.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

timeout=3600
while (($#)); do
    case $1 in
        --timeout)
            timeout=$(number_of "$@")
            shift
            ;;
        *) common_flag "$1" ;;
    esac
    shift
done
need_resource

what=$KD_NAME
[[ $KD_BACKEND != xpk ]] || what="cluster $KD_CLUSTER"
before=
while true; do
    state=$(resource_state ACTIVE)
    if [[ $state != "$before" ]] && ((!dry_run)); then
        say "$what: $state after $SECONDS s"
        before=$state
    fi
    case $state in
        ACTIVE) exit 0 ;;
        # The words of queued resources. ACCEPTED is the old name of WAITING_FOR_RESOURCES.
        WAITING_FOR_RESOURCES | ACCEPTED | CREATING | PROVISIONING) ;;
        ABSENT) die 1 "$what does not exist: run create.sh" ;;
        FAILED) die 1 "$what FAILED: no capacity in time, no quota or a wrong request;" \
            "create.sh deletes it and asks again" ;;
        SUSPENDING | SUSPENDED) die 1 "$what was preempted or reclaimed ($state);" \
            "create.sh deletes it and asks again" ;;
        DELETING) die 1 "$what is being deleted" ;;
        *) say "$what: unknown state '$state', waiting on" ;;
    esac
    ((SECONDS < timeout)) || die 124 "$what is still $state after $timeout s"
    sleep "$KD_POLL"
done
