#!/usr/bin/env bash
# swap.sh REVISION: puts the tree that this file lies in in the place of the one before.
#
# The place is a link, so that there is a whole tree at any moment and a run that is under way keeps
# the one it began with. Trees in which nothing runs are removed.
set -euo pipefail
# shellcheck source=tpu_scripts/remote/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ ! -e $base || -L $base ]] ||
    die 2 "$base is a folder that push.sh has not made; move it away, or name another in KD_REMOTE"
printf '%s\n' "$1" >"$tree/REVISION"
ln -s "$tree" "$base.new.$$"
mv -T "$base.new.$$" "$base"
used=$(readlink /proc/[0-9]*/cwd 2>/dev/null || true)
for old in "$base.trees"/*/; do
    old=${old%/}
    [[ $old == "$tree" ]] || grep -qxF "$old" <<<"$used" || rm -rf "$old"
done
echo "[$me] $base is $1"
