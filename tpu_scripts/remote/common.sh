# shellcheck shell=bash disable=SC2034,SC2088  # what is set here is for others; ~ is matched
# Sourced by the scripts of this folder. They run on a worker, from the tree that push.sh brought:
#
#   ~/kd_jax         a link to the tree in use (KD_REMOTE)
#   ~/kd_jax.trees/  the trees; a run that is under way keeps the one it began with
#   ~/kd_jax.venv/   the packages, which setup.sh installs
#   ~/kd_jax.work/   where runs lie, unless KD_WORKDIR names a place
#   ~/kd_runs/       RUN.log: what a run said, all its starts; and of the last start RUN.token,
#                    which start it is, .from, where the log stood, .pid, and .exit, its code
#
# A line that begins with "@kd " is for the script that asked, not for a person.
set -euo pipefail

tree=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
base=${tree%.trees/*}
venv=$base.venv
runs=$HOME/kd_runs
me=${WORKER_ID:-$(hostname -s)}

die() { # CODE MESSAGE: 2 for what a person must put right, 1 for what may go well another time
    echo "error: worker $me: ${*:2}" >&2
    exit "$1"
}

# Where runs lie: the same place on all workers.
case ${KD_WORKDIR:-} in
    "") workdir=$base.work ;;
    /*) workdir=$KD_WORKDIR ;;
    "~/"*) workdir=$HOME/${KD_WORKDIR#"~/"} ;;
    *) workdir=$HOME/$KD_WORKDIR ;;
esac

# The text of a run's token, pid, exit or from; nothing where there is none.
of_run() { # RUN ENDING
    cat "$runs/$1.$2" 2>/dev/null || true
}

# Is the process there that watches over a run? All processes of a run have KD_RUN in their
# environment: a number that has gone to another process since is not taken for ours.
is_running() { # RUN
    grep -qzsxF "KD_RUN=$runs/$1" "/proc/$(of_run "$1" pid)/environ"
}

# Asks the runs to save and stop, and ends what is left of them after three minutes: only one
# process at a time can hold the TPU.
end_runs() {
    local file running=() pids
    for file in "$runs"/*.pid; do
        file=${file##*/}
        is_running "${file%.pid}" && running+=("${file%.pid}")
    done
    for file in "${running[@]}"; do
        echo "[$me] ends the run $file"
        kill -TERM "$(of_run "$file" pid)" || true
    done
    for _ in {1..900}; do
        local left=0
        for file in "${running[@]}"; do
            is_running "$file" && left=1
        done
        [[ $left == 1 ]] || break
        sleep 0.2
    done
    pids=$(grep -lzsF "KD_RUN=$runs/" /proc/[0-9]*/environ | cut -d/ -f3 || true)
    # shellcheck disable=SC2086  # numbers, one a word
    [[ -z $pids ]] || kill -KILL $pids 2>/dev/null || true
}
