# shellcheck shell=bash
# Shared by the scripts, which source it first. It sets, besides functions:
#   dry_run  1 once --dry-run was given: commands are printed, none is run
#   place    --project=... --zone=..., the flags that nearly every gcloud command takes
#   here     the folder of these scripts
# Its parts: arguments, commands, workers; resource.sh knows the states of the backends.
# Codes: 2 a mistake of the user; 1 a failure; what a command on the workers ended with.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
dry_run=0
missing=()  # variables that must be set
problems=() # sentences on variables that are set wrongly
exec 3>&1 # standard output of the script, also within $(...): where --dry-run prints

# shellcheck source=tpu_scripts/env.sh
source "$here/env.sh"
place=(--project="$KD_PROJECT" --zone="$KD_ZONE")
# shellcheck source=tpu_scripts/resource.sh
source "$here/resource.sh"

say() { # MESSAGE: for people, on standard error
    printf '%s\n' "$*" >&2
}

die() { # CODE MESSAGE
    say "${0##*/}: ${*:2}"
    exit "$1"
}

# Older ones take an empty array for an unset variable; macOS comes with 3.2.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die 2 "needs bash 4.4 or later"

# Arguments -------------------------------------------------------------------------------------

show_help() { # the comment at the top of the script
    sed -n '2,${/^#/!q; s/^# \{0,1\}//p}' "$0"
}

common_flag() { # FLAG: handles --dry-run and --help; ends with an error for any other
    case $1 in
        --dry-run) dry_run=1 ;;
        -h | --help)
            show_help
            exit 0
            ;;
        *) die 2 "unknown argument '$1' (see --help)" ;;
    esac
}

value_of() { # FLAG [VALUE]...: prints the value
    (($# > 1)) || die 2 "$1 needs a value"
    printf '%s' "$2"
}

number_of() { # FLAG [VALUE]...: prints the value, a whole number
    local number
    number=$(value_of "$@") || exit
    [[ $number =~ ^(0|[1-9][0-9]*)$ ]] || die 2 "$1 must be a whole number, got '$number'"
    printf '%s' "$number"
}

need() { # VARIABLE...: notes the ones that are not set, for no_problems
    local name
    for name; do
        [[ -n ${!name} ]] || missing+=("$name")
    done
}

one_of() { # VARIABLE VALUE...: notes a variable that has none of the values
    local name=$1 value
    for value in "${@:2}"; do
        [[ ${!name} != "$value" ]] || return 0
    done
    problems+=("$name=${!name} is none of: ${*:2}")
}

need_resource() { # notes what naming the resource takes; ends the script if anything is wrong
    need KD_PROJECT KD_ZONE KD_NAME
    one_of KD_BACKEND qr mig xpk
    [[ $KD_BACKEND != xpk ]] || need KD_CLUSTER
    [[ $KD_SLICES =~ ^[1-9][0-9]*$ ]] || problems+=("KD_SLICES=$KD_SLICES is not a number above 0")
    [[ $KD_BACKEND != mig || $KD_SLICES == 1 ]] ||
        problems+=("KD_BACKEND=mig makes one slice, KD_SLICES=$KD_SLICES needs qr or xpk")
    [[ -z $KD_TOPOLOGY || $KD_TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
        problems+=("KD_TOPOLOGY=$KD_TOPOLOGY is not of the form 4x4 or 4x4x8")
    no_problems
}

no_problems() { # ends the script with everything that was noted, in one message
    local names text
    if ((${#missing[@]})); then
        names=$(printf ', %s' "${missing[@]}")
        problems=("not set: ${names:2}" "${problems[@]}")
    fi
    if ((${#problems[@]})); then
        text=$(printf '; %s' "${problems[@]}")
        die 2 "${text:2} (export them, or write them into a file and name it: KD_ENV=FILE)"
    fi
    ((dry_run)) || command -v gcloud >/dev/null || die 2 "gcloud is not installed"
    ((dry_run)) || [[ $KD_BACKEND != xpk ]] || command -v xpk >/dev/null ||
        die 2 "xpk is not installed: pip install xpk"
}

# Commands --------------------------------------------------------------------------------------

trace() { # COMMAND...: "+ command", quoted so that a shell reads it back
    local line
    line="+$(printf ' %q' "$@")"
    if ((dry_run)); then printf '%s\n' "$line" >&3; else say "$line"; fi
}

run() { # COMMAND...: prints it and, unless --dry-run, runs it
    trace "$@"
    ((dry_run)) || "$@"
}

# Failures that asking again does not mend.
readonly final='PERMISSION_DENIED|INVALID_ARGUMENT|UNAUTHENTICATED|unrecognized arguments'
# qr says NOT_FOUND, Compute Engine "was not found".
readonly absent='NOT_FOUND|was not found'

fetch() { # COMMAND...: its output; asks KD_RETRIES times; code 4 where the resource is not there
    local attempt output errors
    if ((dry_run)); then
        trace "$@"
        return
    fi
    errors=$(mktemp)
    for ((attempt = 1; attempt <= KD_RETRIES; attempt++)); do
        if output=$("$@" 2>"$errors"); then
            rm -f "$errors"
            printf '%s\n' "$output"
            return 0
        elif grep -qE "$absent" "$errors"; then
            rm -f "$errors"
            return 4
        fi
        cat "$errors" >&2
        if ((attempt == KD_RETRIES)) || grep -qE "$final" "$errors"; then break; fi
        sleep "$KD_POLL"
    done
    rm -f "$errors"
    return 1
}

# An attempt may succeed without an answer, and the next one then fails, with an error like DONE:
# $absent when something is deleted.
persist() { # DONE COMMAND...: like run, KD_RETRIES times; errors that match DONE are a success
    local done=$1 attempt errors
    shift
    trace "$@"
    ((!dry_run)) || return 0
    errors=$(mktemp)
    for ((attempt = 1; attempt <= KD_RETRIES; attempt++)); do
        if "$@" 2>"$errors"; then
            cat "$errors" >&2
            rm -f "$errors"
            return 0
        elif grep -qE "$done" "$errors"; then
            rm -f "$errors"
            return 0
        fi
        cat "$errors" >&2
        if ((attempt == KD_RETRIES)) || grep -qE "$final" "$errors"; then break; fi
        say "attempt $attempt of $KD_RETRIES failed; again in $KD_POLL s"
        sleep "$KD_POLL"
    done
    rm -f "$errors"
    return 1
}

# Workers ---------------------------------------------------------------------------------------

nodes() { # the names of the slices, a line each
    local slice
    if ((KD_SLICES == 1)); then
        printf '%s\n' "$KD_NAME"
        return
    fi
    for ((slice = 0; slice < KD_SLICES; slice++)); do
        printf '%s-%d\n' "$KD_NAME" "$slice"
    done
}

# on_workers COMMAND [WORKER]: runs COMMAND, one string that a shell on the worker reads, on all
# workers at once; on one if WORKER is N (of slice 0) or S:N (of slice S). Output comes as it is
# written. The code is that of the first worker that failed; 255 can also be a lost connection,
# after which COMMAND may still be running. Quote what you put into COMMAND with printf %q.
on_workers() {
    local command=$1
    at_workers ssh "${2:-all}"
}

# copy_to_workers FILE TARGET [WORKER]: copies a file of this machine to ~/TARGET on the workers.
copy_to_workers() {
    local file=$1 target_path=$2
    at_workers scp "${3:-all}"
}

at_workers() { # ssh|scp WORKER: for on_workers and copy_to_workers, whose variables it reads
    local worker=$2 slice=0 list targets
    case $KD_BACKEND in
        qr)
            mapfile -t targets < <(nodes)
            if [[ $worker == *:* ]]; then
                slice=${worker%%:*}
                worker=${worker#*:}
            fi
            [[ $worker == all ]] || targets=("${targets[slice]:-}")
            ;;
        mig)
            list=$(instances name) || die 1 "could not list the instances of $KD_NAME"
            ((!dry_run)) || list=INSTANCE # the group chooses their names
            mapfile -t targets <<<"$list"
            [[ $worker == all ]] || ((dry_run)) || targets=("${targets[worker]:-}")
            ;;
        *) die 2 "KD_BACKEND=$KD_BACKEND has no ssh: its workers are pods, see kubectl" ;;
    esac
    [[ -n ${targets[0]} ]] || die 2 "$KD_NAME has no worker $2"
    together "$1" "${targets[@]}"
}

together() { # ssh|scp TARGET...: at once; the code is that of the first target that failed
    local how=$1 target argv
    shift
    if (($# == 1)); then
        worker_command "$how" "$1"
        run "${argv[@]}"
        return
    fi
    (
        pids=() code=0
        # Commands in the background do not see Ctrl-C.
        trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM
        for target; do
            worker_command "$how" "$target"
            trace "${argv[@]}"
            ((dry_run)) || { "${argv[@]}" & pids+=($!); }
        done
        for pid in "${pids[@]}"; do
            wait "$pid" || {
                last=$?
                ((code)) || code=$last
            }
        done
        exit "$code"
    )
}

worker_command() { # ssh|scp TARGET: sets argv
    local extra
    read -ra extra <<<"$KD_SSH_FLAGS"
    argv=(gcloud compute)
    [[ $KD_BACKEND == mig ]] || argv+=(tpus tpu-vm)
    if [[ $1 == ssh ]]; then
        # A connection that died is noticed after 90 seconds.
        argv+=(ssh "$2" --command="$command" --ssh-flag=-oServerAliveInterval=30)
    else
        argv+=(scp "$file" "$2:$target_path")
    fi
    [[ $KD_BACKEND == mig ]] || argv+=(--worker="$worker")
    argv+=("${place[@]}" --quiet "${extra[@]}")
}
