#!/usr/bin/env bash
# Runs a command to its end, whatever happens to the TPUs:
#   watch.sh [--name RUN] [--retries N] [--dry-run] -- COMMAND...
#
# create.sh, wait.sh, push.sh, setup.sh (with --mount if KD_BUCKET is set), run.sh, and again until
# COMMAND ends with 0. It brings the same commit each time, and COMMAND goes on from its last save:
# KD_WORKDIR must be a folder that outlives the TPUs, such as the mounted bucket.
#
# Not counted as failures: code 75 (asked to stop, saved), and losing the TPUs (preempted,
# reclaimed, deleted). What else goes wrong is tried again, with growing waits, until it has failed
# --retries (10) times in a row without progress; the code is then that of the last failure.
# Progress is a stage that was finished, or resumed at another step than the time before.
# Can be run again, also from another machine: it follows what is under way.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tpu_scripts/remote.sh
source "$here/remote.sh"

name=run retries=10
while (($#)); do
    case $1 in
        --name)
            name=$(name_of "$@")
            shift
            ;;
        --retries)
            retries=$(number_of "$@")
            ((retries > 0)) || die 2 "--retries: takes at least 1"
            shift
            ;;
        --) break ;;
        *) common_flag "$1" ;;
    esac
    shift
done
(($# > 1)) || die 2 "give the command behind -- (see --help)"
shift
mount=()
if [[ -n $KD_BUCKET ]]; then
    need KD_WORKDIR
    mount=(--mount)
fi
[[ $KD_BACKEND != xpk ]] || problems+=("KD_BACKEND=xpk restarts workloads itself (max-restarts)")
[[ $KD_POLL =~ ^[0-9]+$ ]] || problems+=("KD_POLL=$KD_POLL is not a whole number")
need_resource
commit=$(committed)

flags=()
((!dry_run)) || flags=(--dry-run)
script() { # NAME ARGUMENT...
    "$here/$1" ${flags[@]+"${flags[@]}"} "${@:2}"
}

prepare() {
    script create.sh && script wait.sh && script push.sh --commit "$commit" &&
        script setup.sh ${mount[@]+"${mount[@]}"}
}

answers=$(mktemp)
trap 'rm -f "$answers"' EXIT
failures=0 reached=
while true; do
    step=prepare code=0
    prepare || code=$?
    ((code != 2)) || die 2 "stopped: trying again would not help"
    if ((code == 0)); then
        step=run
        script run.sh --name "$name" -- "$@" || code=$?
        ((code)) || exit 0
        ((code != 130)) || exit 130
    fi
    # Waited before the state is read: it takes the cloud a while to say that it took the TPUs.
    pause=$((KD_POLL * (1 << (failures < 4 ? failures : 4))))
    say "$step ended with code $code; looks again in $pause s"
    sleep "$pause"
    state=$(resource_state ACTIVE) || state=UNKNOWN
    case $step:$code:$state in
        run:75:*) say "asked to stop, and saved: goes on" ;;
        prepare:124:*) say "still waiting for TPUs" ;;
        run:*:FAILED | run:*:ABSENT | *:SUSPENDING | *:SUSPENDED | *:DELETING)
            say "the TPUs were taken away ($state): asks for new ones"
            ;;
        *)
            before=$reached
            if [[ $state == ACTIVE ]] && ask "$answers" status.sh "$name"; then
                reached=$(grep '^reached' "$answers" | sort) || reached=
            fi
            if [[ $reached != "$before" ]]; then
                failures=0
                say "there was progress since the last failure"
            fi
            ((++failures < retries)) ||
                die "$code" "failed $failures times in a row without progress (code $code)"
            say "failure $failures of $retries"
            ;;
    esac
done
