"""Runs a script of tpu_scripts/ against the fake gcloud (fake/gcloud says what it understands)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "tpu_scripts"
FAKE = HERE / "fake"

SETTINGS = {
    "KD_PROJECT": "the-project",
    "KD_ZONE": "us-east5-b",
    "KD_NAME": "pod",
    "KD_ACCELERATOR": "v6e-16",
    "KD_POLL": "0",
}


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str
    calls: list[list[str]]  # argv of every call of the fakes, this run's only


@pytest.fixture
def fake_dir(tmp_path) -> Path:
    """FAKE_DIR of the fixture `scripts`: worker-N/ are the workers' home folders."""
    folder = tmp_path / "fake"
    folder.mkdir()
    return folder


@pytest.fixture
def scripts(fake_dir, tmp_path) -> Callable[..., Result]:
    """scripts("create.sh", *arguments, timeout=60, stdin=None, KD_X=..., FAKE_Y=...) -> Result.

    A script is named by its place in tpu_scripts/, or by an absolute path. The environment holds
    PATH, HOME, SETTINGS and the keywords, nothing else; a keyword of None unsets that variable.
    The current folder is the test's own.
    """

    def run(script: str, *arguments: str, timeout: float = 60, stdin=None, **settings) -> Result:
        environment = {
            # With this Python as python3: a shim on PATH would take longer than the fake.
            "PATH": f"{FAKE}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "FAKE_DIR": str(fake_dir),
            **SETTINGS,
            **settings,
        }
        log = fake_dir / "calls.jsonl"
        before = len(log.read_text().splitlines()) if log.exists() else 0
        done = subprocess.run(
            [str(SCRIPTS / script), *arguments],
            env={name: str(value) for name, value in environment.items() if value is not None},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        lines = log.read_text().splitlines()[before:] if log.exists() else []
        calls = [json.loads(line)["argv"] for line in lines]
        return Result(done.returncode, done.stdout, done.stderr, calls)

    return run


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """golden(name, text) compares with golden/NAME.txt; KD_JAX_WRITE_GOLDENS=1 writes it."""

    def compare(name: str, text: str) -> None:
        path = HERE / "golden" / f"{name}.txt"
        if os.environ.get("KD_JAX_WRITE_GOLDENS") == "1":
            path.write_text(text)
        assert text == path.read_text()

    return compare
