#!/usr/bin/env bash
# mount.sh gs://BUCKET[/FOLDER]: mounts it at KD_WORKDIR with gcsfuse.
#
# The bucket needs a hierarchical namespace (gcloud storage buckets create
# --uniform-bucket-level-access --enable-hierarchical-namespace): a finished stage appears by the
# renaming of its folder, which is one atomic step only there; elsewhere it is a copy, file by file.
set -euo pipefail
# shellcheck source=tpu_scripts/remote/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

bucket=${1#gs://}
folder=${bucket#"${bucket%%/*}"}
bucket=${bucket%%/*} folder=${folder#/} folder=${folder%/}
if mountpoint --quiet "$workdir"; then
    there=$(findmnt --noheadings --output SOURCE --mountpoint "$workdir")
    [[ $there == "$bucket" ]] || die 2 "$there is mounted at $workdir; KD_BUCKET is $bucket"
    echo "[$me] $workdir: mounted before"
    exit
fi
command -v gcsfuse >/dev/null || die 2 "has no gcsfuse; install it (Cloud Storage FUSE), or let" \
    "KD_WORKDIR name another folder that all workers share"
mkdir -p "$workdir" 2>/dev/null || sudo install -d -o "$(id -u)" -g "$(id -g)" "$workdir"
# Folders that were uploaded as names of objects only are seen too. Nothing is remembered of what is
# there or not: workers read what others have just written, and on TPU machines the memory of
# gcsfuse has no end by default.
gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    ${folder:+--only-dir "$folder"} "$bucket" "$workdir" >&2 ||
    die 1 "cannot mount $1 at $workdir; may the TPU's service account read and write the bucket?"
echo "[$me] $workdir: mounted"
