#!/usr/bin/env bash
# Fetches the newest profile that worker 0 wrote in a run: profile.sh [--name RUN] [--dry-run]
#
# An experiment with --profile 10:15 writes one, of its steps 10 to 15. It comes to lie in
# runs/profiles/RUN here.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tpu_scripts/remote.sh
source "$here/remote.sh"

name=run
while (($#)); do
    case $1 in
        --name)
            name=$(name_of "$@")
            shift
            ;;
        *) common_flag "$1" ;;
    esac
    shift
done
need_resource

target=$(dirname "$here")/runs/profiles/$name
if ((dry_run)); then
    on_workers "$(remote profile.sh "$name")" 0
    exit
fi
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
on_workers "$(remote profile.sh "$name")" 0 >"$archive"
mkdir -p "$target"
tar -xf "$archive" -C "$target"
say "$target:"
tar -tf "$archive" | sed 's/^/  /' >&2
say "xprof --logdir FOLDER shows it: FOLDER is the one above plugins/ (pip install xprof)"
