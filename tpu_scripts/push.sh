#!/usr/bin/env bash
# Brings the code to all workers: push.sh [--dirty | --commit COMMIT] [--dry-run]
#
# It brings the commit HEAD, with its id in the file REVISION, and refuses a working tree that
# differs from it. --dirty brings the tracked files as they are and marks the revision "-dirty".
# --commit brings another commit, whatever the working tree looks like.
#
# The tree is unpacked into a folder of its own, and KD_REMOTE becomes a link to it. A run that is
# under way goes on with the tree that it began with.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tpu_scripts/remote.sh
source "$here/remote.sh"

dirty=0 commit=
while (($#)); do
    case $1 in
        --dirty) dirty=1 ;;
        --commit)
            commit=$(value_of "$@")
            shift
            ;;
        *) common_flag "$1" ;;
    esac
    shift
done
((!dirty)) || [[ -z $commit ]] || die 2 "--dirty and --commit exclude each other"
need_resource

root=$(git -C "$here" rev-parse --show-toplevel) || die 2 "$here is in no git repository"
if ((dirty)); then
    commit=$(git -C "$root" rev-parse HEAD)
    revision=$commit
    [[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] || revision+=-dirty
elif [[ -n $commit ]]; then
    revision=$(git -C "$root" rev-parse --verify --quiet "$commit^{commit}") ||
        die 2 "--commit: there is no commit $commit"
else
    revision=$(committed)
fi

folder=TEMPORARY_FOLDER # with --dry-run
if ((!dry_run)); then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
archive=$folder/kd_jax.tar.gz

tracked_files() { # those that are there, each with a 0 behind it
    local file
    git -C "$root" ls-files -z | while IFS= read -rd "" file; do
        [[ ! -e $root/$file && ! -L $root/$file ]] || printf '%s\0' "$file"
    done
}

if [[ $revision == *-dirty ]]; then
    tracked_files | run tar -czf "$archive" -C "$root" --null --files-from=-
else
    run git -C "$root" archive --format=tar.gz --output="$archive" "$revision"
fi
copy_to_workers "$archive" "$KD_REMOTE.tar.gz"
trees=$(quoted "$KD_REMOTE.trees")
command="mkdir -p $trees && tree=\$(mktemp -d $trees/${revision:0:12}.XXXXXX)"
command+=" && tar -xzf $(quoted "$KD_REMOTE.tar.gz") -C \"\$tree\""
command+=" && bash \"\$tree/tpu_scripts/remote/swap.sh\" $revision"
on_workers "$command"
((dry_run)) || say "all workers have $revision"
