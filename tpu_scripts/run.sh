#!/usr/bin/env bash
# Runs a command on all workers: run.sh [--name RUN] [--detach] [--dry-run] -- COMMAND...
#                                run.sh --stop [--dry-run]
#
#   run.sh --name npo -- python -m experiments.unlearning.npo_tofu paper
#
# COMMAND runs in KD_REMOTE, with the packages of setup.sh, and with runs/ leading to KD_WORKDIR. It
# gets its arguments as they are given here; `env NAME=VALUE COMMAND` sets variables for it.
# It goes on when the connection is lost, or with Ctrl-C: the same call follows it again. What is
# under way is not started twice; a run under another name is asked to save and ended first.
# --detach does not follow it. --stop asks what runs to save and stop.
#
# With KD_WORKDIR, compiled programs are kept in KD_WORKDIR/compiled, unless COMMAND sets
# JAX_COMPILATION_CACHE_DIR.
#
# Code 0 if COMMAND ended with 0 on all workers; else that of the first worker that failed; 134 if
# workers were only lost; 75 if all that did not finish were asked to stop, and saved; 255 if the
# workers cannot be reached.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tpu_scripts/remote.sh
source "$here/remote.sh"

name=run detach=0 stop=0
while (($#)); do
    case $1 in
        --name)
            name=$(name_of "$@")
            shift
            ;;
        --detach) detach=1 ;;
        --stop) stop=1 ;;
        --) break ;;
        *) common_flag "$1" ;;
    esac
    shift
done
if ((stop)); then
    (($# == 0)) || die 2 "--stop takes no command"
    need_resource
    on_workers "$(remote stop.sh)"
    exit
fi
(($# > 1)) || die 2 "give the command behind -- (see --help)"
shift
need_resource

answers=$(mktemp)
trap 'rm -f "$answers"' EXIT
trap 'say "the run goes on: the same command follows it, run.sh --stop ends it"; exit 130' INT

# Connections that were lost one after the other. Without an answer for long, the workers are gone.
lost=0
reconnect() { # CODE: returns when it is time to try again
    local state
    (($1 != 127)) || die 2 "the code is not on the workers: run push.sh"
    state=$(resource_state ACTIVE) || state=UNKNOWN
    [[ $state == ACTIVE || $state == UNKNOWN ]] || die 255 "lost the workers: $KD_NAME is $state"
    ((++lost < 10)) || die 255 "cannot reach the workers; if the run is there, it goes on"
    say "lost the connection (code $1); tries again in $KD_POLL s"
    sleep "$KD_POLL"
}

until ask "$answers" status.sh "$name"; do
    reconnect $?
done
# A start has a token: where the call is repeated, it is not started again.
token=$(awk '$1 == "running" { print $3; exit }' "$answers")
if [[ -n $token ]]; then
    say "$name is under way: following it, starting nothing"
elif ((dry_run)); then
    token=TOKEN
else
    token=$(date +%s).$$.$RANDOM
fi
until on_workers "$(remote start.sh "$name" "$token" "$@")"; do
    ended=$?
    if ((ended == 2)); then
        on_workers "$(remote stop.sh)" || true # a part of the workers has nobody to talk to
        die 2 "could not start $name on all workers"
    fi
    reconnect "$ended"
done
if ((detach)); then
    ((dry_run)) || say "$name is under way; the same command without --detach follows it"
    exit 0
fi

follow=(follow.sh "$name" "$token")
while true; do
    began=$SECONDS ended=0
    ask "$answers" "${follow[@]}" || ended=$?
    ((ended)) || break
    ((SECONDS - began < 60)) || lost=0
    reconnect "$ended"
    follow=(follow.sh "$name" "$token" again)
done
((!dry_run)) || exit 0
awk '$3 != 0 { print "worker " $2 " ended with " $3 }' "$answers" >&2
# Lines "exit WORKER CODE", in the order of their end.
ended=$(awk '
    $3 == 0 || $3 == 75 || $3 == 134 { seen[$3] = 1; next }
    !failed { failed = $3 }
    END { print !NR ? 255 : failed ? failed : 134 in seen ? 134 : 75 in seen ? 75 : 0 }' "$answers")
exit "$ended"
