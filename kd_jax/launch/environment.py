"""What a run was made with: code, packages, devices, command; nothing about the person.

No user name, no host name, no absolute path: this is published with the results.
"""

import datetime
import hashlib
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "chex"),
    *("tensorflow-datasets", "tyro", "numpy", "scipy", "safetensors", "tokenizers", "gguf"),
    "scikit-learn",
)
_ABSOLUTE = re.compile(r"(?<![\w.])(?:[a-z0-9]+:/)?(?:/|~/)[^\s'\",;:=]+", re.IGNORECASE)


def describe(command: Sequence[str] = ()) -> dict[str, Any]:
    """The environment as plain JSON data; starts the backend."""
    import jax

    devices = jax.devices()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": scrub(" ".join(command)),
        "git": git_state(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "devices": {
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        # Tells runs of one machine from runs of another, and nothing else about it.
        "host": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8],
        "system": f"{platform.system()} {platform.machine()}, {_cpu()}",
    }


def scrub(value: Any) -> Any:
    """The same JSON data, every absolute path, home path and bucket cut to its last part."""
    if isinstance(value, dict):
        return {k: scrub(v) for k, v in value.items()}
    if isinstance(value, list):
        return [scrub(v) for v in value]
    if isinstance(value, str):
        return _ABSOLUTE.sub(lambda m: ".../" + m.group().rstrip("/").rsplit("/", 1)[-1], value)
    return value


def command_line(module: str, argv: Sequence[str]) -> list[str]:
    return ["python", "-m", module, *argv]


def git_state() -> dict[str, Any] | None:
    """{"commit", "dirty"} of the code that runs; None where it is not known.

    Outside a git repository, from the file REVISION that tpu_scripts/push.sh leaves with the code.
    """
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # Installed inside somebody else's repository, we are not tracked: its commit is not ours.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return _revision(folder.parents[1] / "REVISION")


def _revision(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    revision = file.read_text().strip()
    commit = revision.removesuffix("-dirty")
    return {"commit": commit, "dirty": revision != commit}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or sys.platform
