# shellcheck shell=bash
# For scripts that use remote/, the part of the pushed tree that runs on the workers. Sourced after
# lib.sh.

# shellcheck disable=SC2154  # here is lib.sh's

remote() { # SCRIPT ARGUMENT...: the command that runs remote/SCRIPT on a worker
    local settings=()
    [[ -z $KD_WORKDIR ]] || settings+=("KD_WORKDIR=$KD_WORKDIR")
    quoted ${settings[@]+"${settings[@]}"} bash "$KD_REMOTE/tpu_scripts/remote/$1" "${@:2}"
}

quoted() { # WORD...: the words as a shell reads them back
    local line
    printf -v line '%q ' "$@"
    printf '%s' "${line% }"
}

# Prints what the workers say as it comes, but for lines "@kd ...", which are meant for the script:
# these replace the text of FILE. The code is that of on_workers.
ask() { # FILE SCRIPT ARGUMENT...
    local file=$1
    shift
    : >"$file"
    on_workers "$(remote "$@")" | keep "$file"
}

keep() { # FILE
    local line
    while IFS= read -r line || [[ -n $line ]]; do
        if [[ $line == "@kd "* ]]; then
            printf '%s\n' "${line#@kd }" >>"$1"
        else
            printf '%s\n' "$line"
        fi
    done
}

name_of() { # FLAG [VALUE]...: prints the name of a run
    local name
    name=$(value_of "$@") || exit
    [[ $name =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] ||
        die 2 "$1: takes letters, digits, '_', '-' and '.', got '$name'"
    printf '%s' "$name"
}

committed() { # prints HEAD; an error where the working tree differs from it
    local changes
    changes=$(git -C "$here" status --porcelain -- :/) || die 2 "$here is in no git repository"
    [[ -z $changes ]] || die 2 "the working tree differs from HEAD:" \
        "$(head -n 3 <<<"$changes" | tr '\n' ';') commit it first, or see push.sh --dirty"
    git -C "$here" rev-parse HEAD
}
