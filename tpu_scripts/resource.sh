# shellcheck shell=bash
# The states of the resource, whatever the backend, and its deletion. Sourced by lib.sh, which sets
# place, dry_run and absent (SC2154: shellcheck does not see who sources a file).
# shellcheck disable=SC2154

# ABSENT, or in the words of queued resources, whatever the backend: WAITING_FOR_RESOURCES,
# PROVISIONING, ACTIVE, FAILED, SUSPENDING, SUSPENDED (preempted), DELETING, ...
resource_state() { # ASSUMED: prints the state; with --dry-run, the one assumed
    local output code=0
    case $KD_BACKEND in
        qr)
            output=$(fetch gcloud compute tpus queued-resources describe "$KD_NAME" \
                "${place[@]}" '--format=value(state.state)') || code=$?
            ;;
        mig) output=$(instances name,instanceStatus) || code=$? ;;
        xpk)
            output=$(fetch gcloud container clusters list --project="$KD_PROJECT" \
                --filter="name=$KD_CLUSTER" '--format=value(status)') || code=$?
            ;;
    esac
    if ((dry_run)); then
        printf '%s\n' "$1"
    elif ((code == 4)) || [[ $KD_BACKEND == xpk && -z $output && $code == 0 ]]; then
        printf 'ABSENT\n'
    elif ((code)); then
        die 1 "could not read the state of $KD_NAME"
    else
        "state_of_$KD_BACKEND" "$output"
    fi
}

state_of_qr() {
    printf '%s\n' "${1:-UNKNOWN}"
}

state_of_mig() { # LINES, "name status" each; instances that are not made yet have no status
    local running wanted
    running=$(grep -cE '\sRUNNING$' <<<"$1") || true
    wanted=$(wc -l <<<"$1")
    [[ -z $KD_TOPOLOGY ]] || wanted=$(group_size)
    if grep -qE '\s(STOPPING|STOPPED|SUSPENDING|SUSPENDED|TERMINATED)$' <<<"$1"; then
        printf 'SUSPENDED\n'
    elif [[ -z $1 ]]; then
        printf 'WAITING_FOR_RESOURCES\n'
    elif ((running == wanted)); then
        printf 'ACTIVE\n'
    else
        printf 'PROVISIONING\n'
    fi
}

state_of_xpk() { # STATUS of the cluster
    case $1 in
        RUNNING) printf 'ACTIVE\n' ;;
        ERROR | DEGRADED) printf 'FAILED\n' ;;
        STOPPING) printf 'DELETING\n' ;;
        *) printf 'PROVISIONING\n' ;;
    esac
}

group_size() { # machines of the slice: chips of KD_TOPOLOGY, four a machine
    local chips=$((${KD_TOPOLOGY//x/ * }))
    printf '%s\n' $(((chips + 3) / 4))
}

instances() { # FIELDS: of the instances of the group, a line each, by name
    local lines
    lines=$(fetch gcloud compute instance-groups managed list-instances "$KD_NAME" \
        "${place[@]}" "--format=value($1)") || return
    ((dry_run)) || sort <<<"$lines"
}

delete_resource() { # also what an earlier, interrupted deletion left
    case $KD_BACKEND in
        # --force: with its nodes, and from every state.
        qr) persist "$absent" gcloud compute tpus queued-resources delete "$KD_NAME" "${place[@]}" \
            --force --quiet ;;
        mig)
            persist "$absent" gcloud compute instance-groups managed delete "$KD_NAME" \
                "${place[@]}" --quiet && delete_group_parts
            ;;
        # The cluster may hold others' work. Without --workload, xpk would delete all of it.
        xpk) persist "$absent" xpk workload delete --workload="$KD_NAME" --cluster="$KD_CLUSTER" \
            "${place[@]}" ;;
    esac
}

delete_group_parts() { # the template and the policy that create.sh makes for an instance group
    persist "$absent" gcloud compute instance-templates delete "$KD_NAME-template" \
        --project="$KD_PROJECT" --quiet &&
        persist "$absent" gcloud compute resource-policies delete "$KD_NAME-policy" \
            --project="$KD_PROJECT" --region="${KD_ZONE%-*}" --quiet
}
