#!/usr/bin/env bash
# start.sh RUN TOKEN COMMAND...: starts COMMAND in the tree, apart from the connection.
#
# A token is started once: the same call may come twice where a connection was lost. Runs that are
# under way are ended first.
set -euo pipefail
# shellcheck source=tpu_scripts/remote/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

name=$1 token=$2
shift 2
[[ -x $venv/bin/python ]] || die 2 "$venv is missing; setup.sh makes it"
mkdir -p "$runs" "$workdir/runs"
exec 9>"$runs/lock"
flock 9
[[ $(of_run "$name" token) != "$token" ]] || exit 0
end_runs
# Experiments write to runs/ by default.
[[ ! -d $tree/runs || -L $tree/runs ]] || die 2 "$tree/runs is a folder of its own; remove it"
ln -sfn "$workdir/runs" "$tree/runs"
if [[ -n ${KD_WORKDIR:-} ]]; then
    export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$workdir/compiled}
fi
# It means that this is no Google machine: jax.distributed would not find the other workers.
unset TPU_SKIP_MDS_QUERY
export KD_WORKDIR=$workdir PATH=$venv/bin:$PATH PYTHONPATH=$tree
cd -- "$tree"
rm -f "$runs/$name.exit"
[[ -e $runs/$name.began ]] || : >"$runs/$name.began"
{ stat -c %s "$runs/$name.log" 2>/dev/null || echo 0; } >"$runs/$name.from"
KD_RUN=$runs/$name setsid nohup bash "$tree/tpu_scripts/remote/supervise.sh" "$name" "$@" \
    </dev/null >>"$runs/$name.log" 2>&1 9>&- &
echo "$!" >"$runs/$name.pid"
echo "$token" >"$runs/$name.token"
# Until it is known by its environment, it would look as if it had been killed.
while ! is_running "$name" && kill -0 "$!" 2>/dev/null; do sleep 0.05; done
echo "[$me] started $name"
