#!/usr/bin/env bash
# Prints what a run has said: logs.sh [--name RUN] [--worker N|all] [--follow] [--dry-run]
#
# Of worker 0 unless told; N is S:N for worker N of slice S. All starts of the run on the machines
# that there are now. --follow goes on until Ctrl-C.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tpu_scripts/remote.sh
source "$here/remote.sh"

name=run worker=0 follow=()
while (($#)); do
    case $1 in
        --name)
            name=$(name_of "$@")
            shift
            ;;
        --worker)
            worker=$(value_of "$@")
            [[ $worker =~ ^(all|([0-9]+:)?[0-9]+)$ ]] ||
                die 2 "--worker: takes a number, slice:number or all, got '$worker'"
            shift
            ;;
        --follow) follow=(follow) ;;
        *) common_flag "$1" ;;
    esac
    shift
done
need_resource

on_workers "$(remote log.sh "$name" ${follow[@]+"${follow[@]}"})" "$worker"
