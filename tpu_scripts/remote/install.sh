#!/usr/bin/env bash
# Installs what the tree needs, at the versions of constraints.txt, in an environment beside it;
# then says which versions there are. The tree is not installed: a run reads it where it lies.
set -euo pipefail
# shellcheck source=tpu_scripts/remote/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# The images for v4 to v6e come with Python 3.10, which is too old: uv brings a newer one.
make_environment() {
    local python
    for python in python3.13 python3.12 python3.11; do
        if "$python" -c "import ensurepip, venv" 2>/dev/null; then
            "$python" -m venv "$venv"
            return
        fi
    done
    local uv
    uv=$(command -v uv) || uv=$HOME/.local/bin/uv
    # The variable: newer systems do not let pip install into the home folder otherwise.
    [[ -x $uv ]] || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv ||
        die 1 "has no Python from 3.11 on, and uv, which brings one, cannot be installed"
    "$uv" venv --quiet --seed --python 3.12 "$venv"
}

stamp=$(cat "$tree/constraints.txt" "$tree/pyproject.toml" | sha256sum)
if [[ $(cat "$venv/stamp" 2>/dev/null) != "$stamp" ]]; then
    echo "[$me] installs the packages"
    rm -rf "$venv"
    make_environment
    "$venv/bin/python" - "$tree/pyproject.toml" >"$venv/requirements.txt" <<'END'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *project["optional-dependencies"]["tpu"], sep="\n")
END
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$tree/constraints.txt" --requirement "$venv/requirements.txt" ||
        die 1 "pip install failed; its message is above"
    printf '%s\n' "$stamp" >"$venv/stamp"
fi
"$venv/bin/python" - "$me" <<'END'
import platform
import sys
from importlib import metadata

for name in ("python", "jax", "jaxlib", "libtpu"):
    try:
        version = platform.python_version() if name == "python" else metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "missing"
    print("@kd version", sys.argv[1], name, version)
END
