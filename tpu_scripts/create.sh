#!/usr/bin/env bash
# Asks for TPUs: create.sh [--dry-run]
#
# KD_BACKEND says how:
#   qr   a queued resource of the Cloud TPU API (v4 to v6e)
#   mig  a managed instance group of Compute Engine (v5p, v6e, TPU7x and later): one slice
#   xpk  a GKE cluster, KD_CLUSTER; an existing one is used as it is
# KD_CAPACITY says on which terms: on-demand, spot, reserved or flex-start.
#
# Can be run again: what waits or is active stays as it is; what failed or was preempted is
# deleted first. It does not wait for the TPUs: wait.sh does.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly exists='ALREADY_EXISTS|already exists' # then an attempt without an answer succeeded

while (($#)); do
    common_flag "$1"
    shift
done

check() {
    one_of KD_CAPACITY on-demand spot reserved flex-start
    need KD_ACCELERATOR
    case $KD_BACKEND in
        qr) if [[ $KD_ACCELERATOR == tpu7x* ]]; then
            problems+=("KD_ACCELERATOR=$KD_ACCELERATOR needs KD_BACKEND=mig or xpk")
        elif [[ -n $KD_ACCELERATOR ]]; then
            need KD_RUNTIME
        fi ;;
        mig)
            need KD_TOPOLOGY
            [[ -z $KD_ACCELERATOR ]] || need KD_RUNTIME KD_MACHINE
            ;;
    esac
    if [[ $KD_CAPACITY == reserved && $KD_BACKEND != qr ]]; then need KD_RESERVATION; fi
    need_resource
}

# Flags: cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create. Flex-start
# and a reservation by name were only in gcloud alpha when this was written.
create_qr() {
    local track=() flags=()
    case $KD_CAPACITY in
        spot) flags=(--spot) ;;
        reserved)
            flags=(--reserved)
            if [[ -n $KD_RESERVATION ]]; then
                track=(alpha)
                flags=(--reservation="$KD_RESERVATION")
            fi
            ;;
        flex-start)
            track=(alpha)
            flags=(--provisioning-model=flex-start --max-run-duration="$KD_MAX_RUN"
                --valid-until-duration="$KD_VALID_FOR")
            ;;
    esac
    if ((KD_SLICES > 1)); then
        flags+=(--node-count="$KD_SLICES" --node-prefix="$KD_NAME")
    else
        flags+=(--node-id="$KD_NAME")
    fi
    persist "$exists" gcloud "${track[@]}" compute tpus queued-resources create "$KD_NAME" \
        "${place[@]}" --accelerator-type="$KD_ACCELERATOR" --runtime-version="$KD_RUNTIME" \
        "${flags[@]}"
}

# docs.cloud.google.com/compute/docs/tpus/create-tpu-mig-multi-host-slice: a workload policy with
# the topology makes the machines of the group one slice. Bulk mode (all machines or none) is
# documented for reservations and flex-start; what it does for the other two could not be
# confirmed, so there gcloud chooses.
create_mig() {
    local region=${KD_ZONE%-*} template=() group=() size policies
    policies="projects/$KD_PROJECT/regions/$region/resourcePolicies"
    size=$(group_size)
    case $KD_CAPACITY in
        spot) template=(--provisioning-model=SPOT --instance-termination-action=STOP) ;;
        reserved)
            template=(--provisioning-model=RESERVATION_BOUND --instance-termination-action=DELETE
                --reservation-affinity=specific --reservation="$KD_RESERVATION")
            group=(--target-size-policy-mode=bulk)
            ;;
        flex-start)
            template=(--provisioning-model=FLEX_START --instance-termination-action=DELETE
                --max-run-duration="$KD_MAX_RUN")
            group=(--target-size-policy-mode=bulk)
            ;;
    esac
    # Other disks are refused.
    if [[ $KD_ACCELERATOR == tpu7x* ]]; then template+=(--boot-disk-type=hyperdisk-balanced); fi
    if ((size > 1)); then
        persist "$exists" gcloud compute resource-policies create workload-policy \
            "$KD_NAME-policy" --project="$KD_PROJECT" --region="$region" \
            --type=HIGH_THROUGHPUT --accelerator-topology="$KD_TOPOLOGY" || return
        group+=(--workload-policy="$policies/$KD_NAME-policy")
    fi
    persist "$exists" gcloud compute instance-templates create "$KD_NAME-template" \
        --project="$KD_PROJECT" --machine-type="$KD_MACHINE" \
        --image-project=ubuntu-os-accelerator-images --image-family="$KD_RUNTIME" \
        --boot-disk-size="$KD_DISK" --maintenance-policy=TERMINATE --scopes=cloud-platform \
        "${template[@]}" || return
    # A machine that is repaired alone would not be in the slice again.
    persist "$exists" gcloud compute instance-groups managed create "$KD_NAME" "${place[@]}" \
        --template="$KD_NAME-template" --size="$size" --default-action-on-vm-failure=do-nothing \
        "${group[@]}"
}

# github.com/AI-Hypercomputer/xpk, docs/usage/clusters.md.
create_xpk() {
    local flags
    case $KD_CAPACITY in
        on-demand) flags=--on-demand ;;
        spot) flags=--spot ;;
        reserved) flags=--reservation=$KD_RESERVATION ;;
        flex-start) flags=--flex ;;
    esac
    persist "$exists" xpk cluster create --cluster="$KD_CLUSTER" "${place[@]}" \
        --tpu-type="$KD_ACCELERATOR" --num-slices="$KD_SLICES" "$flags"
}

check
what=$KD_NAME
[[ $KD_BACKEND != xpk ]] || what="cluster $KD_CLUSTER"
state=$(resource_state ABSENT)
for ((turn = 0; turn < 20; turn++)); do
    [[ $state == DELETING || $state == SUSPENDING ]] || break
    say "$what is $state: waiting until it is gone"
    sleep "$KD_POLL"
    state=$(resource_state ABSENT)
done
case $state in
    ABSENT)
        # Leftovers may have been made for another topology or capacity; no group uses them.
        [[ $KD_BACKEND != mig ]] || delete_group_parts || die 1 "could not delete the template"
        ;;
    DELETING | SUSPENDING) die 1 "$what is still $state: try again later" ;;
    FAILED | SUSPENDED)
        [[ $KD_BACKEND != xpk ]] || die 1 "$what is broken; nothing here deletes a cluster"
        say "$what is $state: deleting it first"
        delete_resource || die 1 "could not delete $what"
        ;;
    *)
        say "$what is there already ($state): left as it is"
        exit 0
        ;;
esac
"create_$KD_BACKEND" || die 1 "could not create $what"
((dry_run)) || say "asked for $what; wait.sh waits until it is ACTIVE"
